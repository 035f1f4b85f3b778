# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's data, checked: homes, forwards, notify and the settings beside them.

`load_config` is the only way in. It finds every mistake before any host is touched (promise 11) and
says of each one where it is, what was written and what would be right.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from home_forwarder.values import (
    IDLE_TIMEOUT,
    MAX_CONNECTIONS,
    MAX_IDLE_TIMEOUT,
    PortRange,
    Secret,
    one_of,
    parse_hostname,
    parse_mail_from,
    parse_mail_server,
    parse_mail_to,
    parse_name,
    parse_operator,
    parse_own_name,
    parse_ports,
    parse_program,
    parse_ssh_keys,
    parse_switch,
    parse_text,
    parse_timezone,
    parse_url,
    parse_user,
    read_secret,
    read_secret_url,
    whole_number,
)

MAX_HOMES = 64
"""Promise 8 is kept for up to this many homes."""


class DataError(Exception):
    """The user's data is wrong; `mistakes` has one line for each mistake."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Home(_Model):
    """One home: what it is called, and where DNS says it is."""

    name: Annotated[str, BeforeValidator(parse_name)]
    hostname: Annotated[str, BeforeValidator(parse_hostname)]
    description: Annotated[str | None, BeforeValidator(parse_text)] = None
    allow_private: Annotated[bool, BeforeValidator(parse_switch)] = False

    @property
    def label(self) -> str:
        """How people call it: the description, or else the name."""
        return self.description or self.name


class Forward(_Model):
    """One port, or range of ports, of the VPS that leads to a home."""

    home: Annotated[str, BeforeValidator(parse_name)]
    protocol: Annotated[Literal["tcp", "udp"], one_of("tcp", "udp")]
    port: Annotated[PortRange, BeforeValidator(parse_ports)]
    target_port: Annotated[int, whole_number("a port", 1, 65535)] | None = None
    listen: Annotated[Literal["46", "4", "6"], one_of("46", "4", "6")] = "46"
    idle_timeout: (
        Annotated[int, whole_number("a time", 1, MAX_IDLE_TIMEOUT, "of seconds")] | None
    ) = None
    max_connections: Annotated[int, whole_number("a limit", 1, MAX_CONNECTIONS)] = 1024
    relay: Annotated[Literal["socat", "nginx"], one_of("socat", "nginx")] = "socat"
    proxy_protocol: Annotated[bool, BeforeValidator(parse_switch)] = False

    @property
    def idle_seconds(self) -> int:
        """The declared idle_timeout, or its protocol's default."""
        return self.idle_timeout or IDLE_TIMEOUT[self.protocol]

    def target_of(self, port: int) -> int:
        """The port at home that `port` of the VPS leads to."""
        return (self.target_port or self.port.first) + port - self.port.first


class Smtp(_Model):
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


class Webhook(_Model):
    """A server that takes our messages by HTTP."""

    url: Annotated[str | None, BeforeValidator(parse_url)] = None
    url_file: Annotated[Secret | None, BeforeValidator(read_secret_url)] = None
    preset: Annotated[Literal["json", "ntfy", "gotify"], one_of("json", "ntfy", "gotify")] = "json"
    token_file: Annotated[Secret | None, BeforeValidator(read_secret)] = None

    @property
    def any_url(self) -> str:
        """The URL, wherever it was written; not to be shown."""
        return self.url or (self.url_file.text if self.url_file else "")


class Notify(_Model):
    """Who is told of a change, and how."""

    mail_to: Annotated[str | None, BeforeValidator(parse_mail_to)] = None
    mail_from: Annotated[str | None, BeforeValidator(parse_mail_from)] = None
    smtp: Smtp | None = None
    sendmail: Annotated[bool, BeforeValidator(parse_switch)] = False
    webhook: Webhook | None = None
    program: Annotated[str | None, BeforeValidator(parse_program)] = None


class FirstBoot(_Model):
    """What cloud_init.py adds for a new VPS, beside the forwarding; a deploy does not read it."""

    operator: Annotated[str | None, BeforeValidator(parse_operator)] = None
    ssh_keys: Annotated[tuple[str, ...], BeforeValidator(parse_ssh_keys)] = ()
    security_updates: Annotated[bool, BeforeValidator(parse_switch)] = False
    hostname: Annotated[str | None, BeforeValidator(parse_own_name)] = None
    timezone: Annotated[str | None, BeforeValidator(parse_timezone)] = None


class Config(_Model):
    """All of one VPS's data, valid."""

    homes: tuple[Home, ...]
    forwards: tuple[Forward, ...] = ()
    notify: Notify | None = None
    first_boot: FirstBoot = FirstBoot()
    check_interval: Annotated[int, whole_number("an interval", 10, 86400, "of seconds")] = 60
    unresolved_after: Annotated[int, whole_number("a time", 60, 604800, "of seconds")] = 1800
    preflight: Annotated[bool, BeforeValidator(parse_switch)] = True
    remove_state: Annotated[bool, BeforeValidator(parse_switch)] = False
    ssh_port: Annotated[int, whole_number("a port", 1, 65535)] = Field(default=22)

    def index_of(self, home: str) -> int:
        """The INDEX of the home with this name: its position in `homes`."""
        return next(index for index, each in enumerate(self.homes) if each.name == home)


KEYS = tuple(Config.model_fields)
"""Every top-level key that we read."""


def load_config(data: Mapping[str, object]) -> Config:
    """Check one VPS's data.

    Raises: DataError with a line for each mistake: the key, the value and what would be right.
    """
    try:
        config = Config.model_validate(dict(data))
    except ValidationError as error:
        raise DataError([_explain(each, data) for each in error.errors()]) from None
    mistakes = [*_repeated_homes(config), *_wrong_forwards(config), *_wrong_notify(config.notify)]
    if config.first_boot.operator and not config.first_boot.ssh_keys:
        mistakes.append(
            "first_boot.ssh_keys: is missing; without a key nobody could log in as"
            f" {config.first_boot.operator!r}"
        )
    if mistakes:
        raise DataError(mistakes)
    return config


def _where(location: tuple[int | str, ...]) -> str:
    """forwards[1].port, as one would write it in Python."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith("function-"):
            text += f".{part}" if text else str(part)
    return text


def _explain(error: Any, data: Mapping[str, object]) -> str:
    """One line for one of pydantic's errors, in our words."""
    location, kind, value = error["loc"], error["type"], error["input"]
    if kind in ("extra_forbidden", "invalid_key") and not str(location[-1]).isidentifier():
        return f"{_where(location[:-1]) or 'data'}: no such key {location[-1]!r}"
    where = _where(location)
    if kind == "value_error":
        return f"{where}: {error['ctx']['error']}"
    if kind == "missing":
        return f"{where}: is missing; {_REQUIRED[location[-1]]}"
    if kind == "extra_forbidden":
        return f"{where}: no such key{_suggest(location)}"
    if kind in ("tuple_type", "list_type"):
        return f"{where}: {value!r} is not a list; write {location[0]} = [{{...}}, {{...}}]"
    return f'{where}: {value!r} is not a dict; write {{"key": value, ...}}'


_REQUIRED = {
    "homes": 'write homes = [{"name": "fritzbox", "hostname": "xxx.myfritz.net"}]',
    "name": 'write "name": "fritzbox" or another short name',
    "hostname": 'write "hostname": "xxx.myfritz.net", the DNS name of the home',
    "home": "write the name of the home that the forward leads to",
    "protocol": 'write "protocol": "tcp" or "udp"',
    "port": 'write "port": 44444, the port on the VPS, or a range such as "8000-8010"',
}


_MODELS: dict[str, type[_Model]] = {
    "": Config,
    "homes": Home,
    "forwards": Forward,
    "notify": Notify,
    "first_boot": FirstBoot,
    "notify.smtp": Smtp,
    "notify.webhook": Webhook,
}


def _suggest(location: tuple[int | str, ...]) -> str:
    model = _MODELS[".".join(part for part in location[:-1] if isinstance(part, str))]
    known = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; the keys are {', '.join(known)}"


def _repeated_homes(config: Config) -> Iterator[str]:
    if len(config.homes) > MAX_HOMES:
        yield f"homes: there are {len(config.homes)}; a VPS serves at most {MAX_HOMES}"
    first: dict[str, int] = {}
    for index, home in enumerate(config.homes):
        if home.name in first:
            yield (
                f"homes[{index}].name: {home.name!r} is the name of homes[{first[home.name]}] already;"
                " give each home a name of its own"
            )
        first.setdefault(home.name, index)


def _wrong_forwards(config: Config) -> Iterator[str]:
    names = [home.name for home in config.homes]
    taken: dict[tuple[str, int, str], int] = {}
    for index, forward in enumerate(config.forwards):
        where = f"forwards[{index}]"
        if forward.home not in names:
            close = difflib.get_close_matches(forward.home, names, n=1)
            right = f"the homes are {', '.join(names)}" if names else "there are no homes"
            if close:
                right = f"did you mean {close[0]!r}?"
            yield f"{where}.home: {forward.home!r} is not the name of a home; {right}"
        if forward.protocol == "tcp" and config.ssh_port in forward.port:
            yield (
                f"{where}.port: {config.ssh_port} is the VPS's own ssh port; forward another one"
                " (or say in inventory.py which ssh_port sshd really uses)"
            )
        if forward.target_of(forward.port.last) > 65535:
            yield (
                f"{where}.target_port: {forward.target_port} is too high for a range of"
                f" {len(forward.port)} ports; the last would be {forward.target_of(forward.port.last)}"
            )
        if forward.proxy_protocol and forward.protocol != "tcp":
            yield f"{where}.proxy_protocol: True is for tcp only; leave it out of a udp forward"
        elif forward.proxy_protocol and forward.relay != "nginx":
            yield (
                f"{where}.proxy_protocol: True is more than {forward.relay} can do;"
                ' write "relay": "nginx" as well'
            )
        yield from _clashes(where, index, forward, taken)


def _clashes(
    where: str, index: int, forward: Forward, taken: dict[tuple[str, int, str], int]
) -> Iterator[str]:
    """Ports that an earlier forward has: a line for each of those forwards, and its first port."""
    told: set[int] = set()
    for port in forward.port:
        for family in forward.listen:
            other = taken.setdefault((forward.protocol, port, family), index)
            if other != index and other not in told:
                told.add(other)
                yield (
                    f"{where}.port: {forward.protocol} port {port} on IPv{family} is taken by"
                    f" forwards[{other}] already; use another port"
                    + ("" if forward.listen == family else ", or listen on one family each")
                )


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


def _wrong_notify(notify: Notify | None) -> Iterator[str]:
    if notify is None:
        return
    if notify.mail_to is None:
        right = 'write "mail_to": "root" or another mail address'
        about_mail = [key for key in ("mail_from", "smtp", "sendmail") if getattr(notify, key)]
        if about_mail:
            yield f"notify.mail_to: is missing, but {about_mail[0]} is about mails; {right}"
        elif notify.webhook is None and notify.program is None:
            yield f"notify.mail_to: is missing; {right}, or leave notify out to tell nobody"
    if notify.smtp and notify.sendmail:
        yield "notify.sendmail: smtp is another way for the same mails; leave one of them out"
    if notify.smtp:
        yield from _wrong_smtp(notify.smtp, notify.mail_to or "")
    if notify.webhook:
        yield from _wrong_webhook(notify.webhook)


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
