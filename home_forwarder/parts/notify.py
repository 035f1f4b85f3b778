# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is told of a change, and by which channel: mail, webhook, program."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator

from home_forwarder.plan import (
    CERTIFICATES,
    SECRETS,
    File,
    Ours,
    Part,
    program_file,
    setting,
    unit_file,
)
from home_forwarder.values import (
    Model,
    Secret,
    is_placeholder,
    one_of,
    parse_dns_name,
    parse_switch,
    read_secret,
    whole_number,
)

PROGRAM = "/usr/local/lib/home-forwarder/notify"
OURS = Ours(
    units=(r"home-notifier(-webhook|-program)?\.(service|timer|path)",),
    files=((SECRETS, r"smtp-password|webhook-url|webhook-token"),),
)

# ---- What may be declared --------------------------------------------------------------------

_MAILBOX = r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~][A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]*"


def parse_mail_to(value: object) -> str:
    # After the @, a name, or an address in brackets: RFC 5321, 4.1.3.
    address = _MAILBOX + r"(?:@(?:[A-Za-z0-9.-]+|\[(?:IPv6:)?[0-9A-Fa-f.:]+\]))?"
    if not isinstance(value, str) or not re.fullmatch(rf"{address}(?:, ?{address})*", value):
        raise ValueError(
            f"{value!r} is not a mail address; write a local user such as 'root', an address,"
            " or several of them with commas between"
        )
    return value


def parse_mail_from(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(_MAILBOX + r"@[A-Za-z0-9.-]+", value):
        raise ValueError(
            f"{value!r} is not a mail address; write the sender's, such as 'vps@provider.net'"
        )
    return value


def parse_mail_server(value: object) -> str:
    right = "write the name of a mail server, such as 'smtp.provider.net', or 'localhost'"
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a host name; {right}")
    try:
        return str(ipaddress.ip_address(re.sub(r"^\[(.*)\]$", r"\1", value)))
    except ValueError:
        return value if value == "localhost" else parse_dns_name(value, right)


def parse_user(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]{1,200}", value):
        raise ValueError(
            f"{value!r} is not a user name; write it as the mail server has it, without spaces"
        )
    return value


def parse_url(value: object, shown: str | None = None) -> str:
    """An http or https URL.

    shown: what a message says in its place, for one that is secret.
    """
    shown = shown or repr(value)
    right = "write a URL such as 'https://ntfy.sh/my-topic'"
    try:
        if not isinstance(value, str) or not re.fullmatch(r"https?://[!-~]{1,2000}", value):
            raise ValueError
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{shown} is not a URL; {right}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{shown} has a password in it; put a token into a token_file instead")
    if not host or port == 0 or parts.fragment:
        raise ValueError(f"{shown} is not the URL of a server; {right}")
    if is_placeholder(host):
        raise ValueError(f"{shown} is at the placeholder of the example; {right}")
    return value


def parse_program(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"(/[A-Za-z0-9._+-]+)+", value):
        raise ValueError(
            f"{value!r} is not a program; write its path on the VPS, such as '/usr/local/bin/tell-me'"
        )
    if re.match(r"/(home|root|tmp|var/tmp|run/user)/", value) or "/../" in value:
        raise ValueError(
            f"{value!r} is where no service may look; put the program elsewhere, such as into"
            " '/usr/local/bin'"
        )
    return value


def read_secret_url(value: object) -> Secret:
    secret = read_secret(value)
    parse_url(secret.text, shown=f"what {value!r} holds")
    return secret


class Smtp(Model):
    """The server that takes our mails."""

    host: Annotated[str, BeforeValidator(parse_mail_server)] = "localhost"
    port: Annotated[int, whole_number("a port", 1, 65535)] | None = None
    security: (
        Annotated[Literal["none", "starttls", "tls"], one_of("none", "starttls", "tls")] | None
    ) = None
    user: Annotated[str | None, BeforeValidator(parse_user)] = None
    password_file: Annotated[Secret | None, BeforeValidator(read_secret)] = None

    @property
    def chosen_security(self) -> str:
        """As declared; else none on the VPS itself, and STARTTLS over a network."""
        return self.security or ("none" if _is_on_the_vps(self.host) else "starttls")

    @property
    def chosen_port(self) -> int:
        """As declared, or what belongs to the security (RFC 5321, RFC 6409, RFC 8314)."""
        return self.port or {"none": 25, "starttls": 587, "tls": 465}[self.chosen_security]


class Webhook(Model):
    """A server that takes our messages by HTTP."""

    url: Annotated[str | None, BeforeValidator(parse_url)] = None
    url_file: Annotated[Secret | None, BeforeValidator(read_secret_url)] = None
    preset: Annotated[Literal["json", "ntfy", "gotify"], one_of("json", "ntfy", "gotify")] = "json"
    token_file: Annotated[Secret | None, BeforeValidator(read_secret)] = None

    @property
    def any_url(self) -> str:
        """The URL, wherever it was written; not to be shown."""
        return self.url or (self.url_file.text if self.url_file else "")


class Notify(Model):
    """Who is told of a change, and how."""

    mail_to: Annotated[str | None, BeforeValidator(parse_mail_to)] = None
    mail_from: Annotated[str | None, BeforeValidator(parse_mail_from)] = None
    smtp: Smtp | None = None
    sendmail: Annotated[bool, BeforeValidator(parse_switch)] = False
    webhook: Webhook | None = None
    program: Annotated[str | None, BeforeValidator(parse_program)] = None

    def mistakes(self) -> Iterator[str]:
        """What is wrong with it as a whole."""
        if self.mail_to is None:
            right = 'write "mail_to": "root" or another mail address'
            about_mail = [key for key in ("mail_from", "smtp", "sendmail") if getattr(self, key)]
            if about_mail:
                yield f"notify.mail_to: is missing, but {about_mail[0]} is about mails; {right}"
            elif self.webhook is None and self.program is None:
                yield f"notify.mail_to: is missing; {right}, or leave notify out to tell nobody"
        if self.smtp and self.sendmail:
            yield "notify.sendmail: smtp is another way for the same mails; leave one of them out"
        if self.smtp:
            yield from _wrong_smtp(self.smtp, self.mail_to or "")
        if self.webhook:
            yield from _wrong_webhook(self.webhook)


def _is_on_the_vps(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_private(host: str) -> bool:
    """Does what is sent to `host` stay on the VPS, or in a private network such as a tunnel's?"""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost"


def _wrong_smtp(smtp: Smtp, mail_to: str) -> Iterator[str]:
    if smtp.user and smtp.password_file is None:
        yield 'notify.smtp.password_file: is missing; write "password_file": "smtp-password", a file'
    if smtp.password_file and not smtp.user:
        yield 'notify.smtp.user: is missing; write "user": and the name that the password belongs to'
    if smtp.user and smtp.chosen_security == "none" and not _is_private(smtp.host):
        yield (
            "notify.smtp.security: 'none' would send the password in clear text to"
            f" {smtp.host}; write 'starttls' or 'tls'"
        )
    for address in re.split(", ?", mail_to):
        if address and "@" not in address and not _is_on_the_vps(smtp.host):
            yield (
                f"notify.mail_to: {address!r} is nobody to {smtp.host}; write a whole mail address,"
                " such as 'me@provider.net'"
            )


def _wrong_webhook(webhook: Webhook) -> Iterator[str]:
    where = "notify.webhook"
    if webhook.url and webhook.url_file:
        yield f"{where}.url_file: there is a url as well; leave one of them out"
    if not webhook.any_url:
        yield (
            f'{where}.url: is missing; write "url": "https://ntfy.sh/my-topic" or, for one that is'
            ' secret, "url_file": and the file that holds it'
        )
        return
    key = "url" if webhook.url else "url_file"
    parts = urlsplit(webhook.any_url)
    if webhook.preset == "ntfy" and not re.fullmatch(r"/[A-Za-z0-9_-]{1,64}", parts.path):
        yield f"{where}.{key}: has no topic for ntfy; write it as in 'https://ntfy.sh/my-topic'"
    if webhook.preset == "gotify" and webhook.token_file is None:
        yield (
            f'{where}.token_file: is missing; Gotify needs one; write "token_file": and the file'
            " that holds the application's token"
        )
    if webhook.preset != "json" and parts.query:
        yield f"{where}.{key}: has a '?', which {webhook.preset} does not; leave it and the rest out"
    secret = webhook.token_file or webhook.url_file
    if secret and parts.scheme == "http" and not _is_private(str(parts.hostname)):
        yield f"{where}.{key}: would send a secret in clear text; write https:// in place of http://"


# ---- What a VPS gets for it ------------------------------------------------------------------


def notify_part(notify: Notify | None) -> Part:
    """A sender for each channel: a path unit, a timer, a service, and its secrets."""
    if notify is None:
        return Part()
    files = [program_file(PROGRAM)]
    channels = {
        **({"home-notifier": "mail"} if notify.mail_to else {}),
        **({"home-notifier-webhook": "webhook"} if notify.webhook else {}),
        **({"home-notifier-program": "program"} if notify.program else {}),
    }
    for name, channel in channels.items():
        secrets = _secrets(notify, channel)
        for secret, content in secrets.items():
            files.append(File(f"{SECRETS}/{secret}", f"{content.text}\n", mode="600", secret=True))
        files.append(
            unit_file(
                f"{name}.service",
                "home-notifier.service",
                way=channel,
                secrets={secret: f"{SECRETS}/{secret}" for secret in secrets},
                sendmail=channel == "mail" and notify.sendmail,
            )
        )
        for kind in ("path", "timer"):
            files.append(unit_file(f"{name}.{kind}", f"home-notifier.{kind}", way=channel))
    return Part(
        packages=(CERTIFICATES,) if _speaks_tls(notify) else (),
        files=tuple(files),
        enabled=(
            *((f"{name}.path", ("paths.target",)) for name in channels),
            *((f"{name}.timer", ("timers.target",)) for name in channels),
        ),
        triggered=tuple(f"{name}.service" for name in channels),
        settings=tuple(setting(key, value) for key, value in _settings(notify).items() if value),
    )


def _secrets(notify: Notify, channel: str) -> dict[str, Secret]:
    """What the sender of a channel must know and nobody else may, by the name of its credential."""
    found: dict[str, Secret | None] = {}
    if notify.smtp and channel == "mail":
        found["smtp-password"] = notify.smtp.password_file
    if notify.webhook and channel == "webhook":
        found["webhook-url"] = notify.webhook.url_file
        found["webhook-token"] = notify.webhook.token_file
    return {name: secret for name, secret in found.items() if secret}


def _settings(notify: Notify) -> dict[str, str | None]:
    settings: dict[str, str | None] = {
        "SEND_MAILS_TO": notify.mail_to,
        "NOTIFY_MAIL_FROM": notify.mail_from,
        "NOTIFY_SENDMAIL": "1" if notify.sendmail else None,
        "NOTIFY_PROGRAM": notify.program,
    }
    if notify.smtp:
        settings["NOTIFY_SMTP_HOST"] = notify.smtp.host
        settings["NOTIFY_SMTP_PORT"] = str(notify.smtp.chosen_port)
        settings["NOTIFY_SMTP_SECURITY"] = notify.smtp.chosen_security
        settings["NOTIFY_SMTP_USER"] = notify.smtp.user
    if notify.webhook:
        settings["NOTIFY_WEBHOOK_PRESET"] = notify.webhook.preset
        settings["NOTIFY_WEBHOOK_URL"] = notify.webhook.url
    return settings


def _speaks_tls(notify: Notify) -> bool:
    """Does a sender have to know a server by its certificate?"""
    return bool(
        (notify.smtp and notify.smtp.chosen_security != "none")
        or (notify.webhook and notify.webhook.any_url.startswith("https:"))
    )
