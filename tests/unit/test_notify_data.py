# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is told, and how: what is right, what is wrong, and what a VPS gets of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from unit_samples import UPDATER, as_sh_reads_it, data, file_of, plan_of

from home_forwarder.config import load_config
from home_forwarder.mistakes import DataError
from home_forwarder.parts.notify import Notify
from home_forwarder.plan import CONF, Package, Plan
from home_forwarder.render import module_of

SECRET = "correct-horse"  # noqa: S105 - it is made to be searched for


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pyinfra is run, with some files beside."""
    monkeypatch.chdir(tmp_path)
    for name, content, mode in (
        ("secret", f"{SECRET}\n", 0o600),
        ("url", f"https://ntfy.sh/{SECRET}\n", 0o600),
        ("readable", f"{SECRET}\n", 0o644),
        ("group", f"{SECRET}\n", 0o640),
        ("empty", "\n", 0o600),
        ("lines", f"{SECRET}\n{SECRET}\n", 0o600),
        ("umlaut", "pässwort\n", 0o600),
        ("binary", "\x00\x01\n", 0o600),
    ):
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_text(content, encoding="utf-8")
        path.chmod(mode)
    return tmp_path


def notify_of(given: object) -> Notify:
    notify = load_config({"homes": [], "notify": given}).notify
    assert notify is not None
    return notify


LOGIN = {"user": "me", "password_file": "secret"}
TOKEN = {"token_file": "secret"}
MAIL = {"mail_to": "me@address.test"}
NTFY = {"url": "https://ntfy.sh/topic", "preset": "ntfy"}


def smtp(**keys: object) -> dict[str, object]:
    return {**MAIL, "smtp": keys}


def webhook(**keys: object) -> dict[str, object]:
    return {"webhook": keys}


def secret_mistakes(where: str, make: Any) -> dict[str, tuple[object, str, str]]:
    """A file with a secret that cannot be used, named by the key `where`."""
    return {
        f"{where}: {name}": (make(value), f"{where}: {value!r} ", says)
        for name, value, says in (
            ("missing", "nowhere", "cannot be read here (No such file or directory)"),
            ("directory", ".", "cannot be read here (Is a directory)"),
            ("below a file", "secret/x", "cannot be read here (Not a directory)"),
            ("for all", "readable", "can be read by others (mode 644); do: chmod 600 readable"),
            ("for a group", "group", "can be read by others (mode 640); do: chmod 600 group"),
            ("empty", "empty", "does not hold one line"),
            ("two lines", "lines", "does not hold one line"),
            ("umlaut", "umlaut", "has letters that are not ASCII in it"),
            ("binary", "binary", "does not hold one line"),
            ("no text", 7, "is not the path of a file"),
            ("empty path", "", "is not the path of a file"),
            ("NUL", "a\0b", "is not the path of a file"),
        )
    }


MISTAKES: dict[str, tuple[object, str, str]] = {
    "nobody": ({}, "notify.mail_to: is missing", 'write "mail_to": "root"'),
    "mail_to is None": ({"mail_to": None}, "notify.mail_to: None", "a local user such as 'root'"),
    "smtp, but to whom": ({"smtp": {}}, "notify.mail_to: is missing, but smtp is about", "write"),
    "sendmail, but to whom": (
        {"sendmail": True, "program": "/usr/bin/x"},
        "notify.mail_to: is missing, but sendmail is about mails",
        'write "mail_to"',
    ),
    "misspelt": ({**MAIL, "webhok": {}}, "notify.webhok: no such key", "did you mean 'webhook'?"),
    "misspelt in smtp": (
        smtp(hots="x"),
        "notify.smtp.hots: no such key",
        "did you mean 'host'?",
    ),
    "unlike any of smtp": (smtp(x=1), "notify.smtp.x: no such key", "the keys are host, port, "),
    "misspelt in webhook": (
        webhook(url="https://address.test", tokenfile="x"),
        "notify.webhook.tokenfile: no such key",
        "did you mean 'token_file'?",
    ),
    "smtp is text": ({**MAIL, "smtp": "localhost"}, "notify.smtp: 'localhost' is not a dict", "{"),
    "webhook is text": ({"webhook": "https://x.test"}, "notify.webhook: 'https", "write {"),
    "host is a number": (smtp(host=7), "notify.smtp.host: 7 ", "'smtp.provider.net'"),
    "host with a blank": (smtp(host="a b"), "notify.smtp.host: 'a b' ", "'smtp.provider.net'"),
    "host is a word": (smtp(host="mail"), "notify.smtp.host: 'mail' ", "or 'localhost'"),
    "host with a port": (smtp(host="mail.test:25"), "notify.smtp.host: ", "'smtp.provider.net'"),
    "host of the example": (smtp(host="smtp.example.net"), "notify.smtp.host: ", "placeholder"),
    "port is text": (smtp(port="25"), "notify.smtp.port: '25' ", "from 1 to 65535"),
    "security unknown": (smtp(security="ssl"), "notify.smtp.security: 'ssl' ", "'starttls'"),
    "user is a number": (smtp(user=7), "notify.smtp.user: 7 ", "without spaces"),
    "user with a line": (smtp(user="a\nb"), "notify.smtp.user: 'a\\nb' ", "without spaces"),
    "no password": (smtp(user="me"), "notify.smtp.password_file: is missing", "write"),
    "no user": (
        {**MAIL, "smtp": {"password_file": "secret"}},
        "notify.smtp.user: is missing",
        "write",
    ),
    "password over the internet": (
        smtp(host="mail.test", security="none", **LOGIN),
        "notify.smtp.security: 'none' would send the password in clear text to mail.test",
        "write 'starttls' or 'tls'",
    ),
    "password over the internet, by address": (
        smtp(host="9.9.9.9", security="none", **LOGIN),
        "notify.smtp.security: 'none' would send the password in clear text to 9.9.9.9",
        "write 'starttls' or 'tls'",
    ),
    "root elsewhere": (
        {"mail_to": "me@address.test, root", "smtp": {"host": "mail.test"}},
        "notify.mail_to: 'root' is nobody to mail.test",
        "write a whole mail address",
    ),
    "two ways for a mail": (
        {**MAIL, "smtp": {}, "sendmail": True},
        "notify.sendmail: smtp is another way",
        "leave one of them out",
    ),
    "sendmail is a path": (
        {**MAIL, "sendmail": "/usr/sbin/sendmail"},
        "notify.sendmail: '/usr/sbin/sendmail' ",
        "neither True nor False",
    ),
    "mail_from is a name": (
        {**MAIL, "mail_from": "root"},
        "notify.mail_from: 'root' ",
        "such as 'vps@provider.net'",
    ),
    "mail_from with a header": (
        {**MAIL, "mail_from": "a@b.test\nBcc: c@d.test"},
        "notify.mail_from: ",
        "such as 'vps@provider.net'",
    ),
    "no url": (webhook(), "notify.webhook.url: is missing", '"url_file"'),
    "two urls": (
        webhook(url="https://a.test", url_file="url"),
        "notify.webhook.url_file: there is a url as well",
        "leave one of them out",
    ),
    "url is a name": (webhook(url="ntfy.sh/x"), "notify.webhook.url: 'ntfy.sh/x' ", "https://"),
    "url of a file": (webhook(url="file:///etc/passwd"), "notify.webhook.url: 'file:", "https://"),
    "url with a blank": (webhook(url="https://a.test/x y"), "notify.webhook.url: ", "https://"),
    "url with a line": (webhook(url="https://a.test/\r\nX: y"), "notify.webhook.url: ", "https:"),
    "url without a host": (webhook(url="https:///x"), "notify.webhook.url: ", "https://"),
    "url with a bad port": (webhook(url="https://a.test:x/"), "notify.webhook.url: ", "https://"),
    "url of no IPv6 address": (webhook(url="https://[x/"), "notify.webhook.url: ", "https://"),
    "url with a password": (
        webhook(url="https://me:pw@a.test/"),
        "notify.webhook.url: ",
        "put a token into a token_file",
    ),
    "url of the example": (webhook(url="https://ntfy.example.org/x"), "notify.webhook.url", "plac"),
    "what url_file holds": (
        webhook(url_file="secret"),
        "notify.webhook.url_file: what 'secret' holds is not a URL",
        "https://",
    ),
    "preset unknown": (
        webhook(url="https://a.test", preset="slack"),
        "notify.webhook.preset: 'slack' ",
        "'json', 'ntfy', 'gotify'",
    ),
    "ntfy without a topic": (
        webhook(url="https://ntfy.sh/", preset="ntfy"),
        "notify.webhook.url: has no topic",
        "https://ntfy.sh/my-topic",
    ),
    "gotify without a token": (
        webhook(url="https://gotify.test", preset="gotify"),
        "notify.webhook.token_file: is missing",
        "the file that holds the application's token",
    ),
    "gotify as people write it": (
        webhook(url="https://gotify.test/?token=x", preset="gotify", **TOKEN),
        "notify.webhook.url: has a '?'",
        "leave it and the rest out",
    ),
    "token over the internet": (
        webhook(url="http://a.test/", **TOKEN),
        "notify.webhook.url: would send a secret in clear text",
        "write https://",
    ),
    "program without a path": ({"program": "x"}, "notify.program: 'x' ", "'/usr/local/bin/tell"),
    "program with arguments": ({"program": "/bin/x -y"}, "notify.program: '/bin/x -y' ", "path"),
    "program at home": ({"program": "/root/x"}, "notify.program: '/root/x' ", "'/usr/local/bin'"),
    "program in /tmp": ({"program": "/tmp/x"}, "notify.program: '/tmp/x' ", "'/usr/local/bin'"),
    "program around": ({"program": "/opt/../root/x"}, "notify.program: ", "'/usr/local/bin'"),
    **secret_mistakes("notify.smtp.password_file", lambda v: smtp(user="me", password_file=v)),
    **secret_mistakes("notify.webhook.token_file", lambda v: webhook(**NTFY, token_file=v)),
    **secret_mistakes("notify.webhook.url_file", lambda v: webhook(url_file=v)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str) -> None:
    """Promise 11: one line, that says where, what was written and what would be right; promise 17."""
    given, starts, right = MISTAKES[name]
    with pytest.raises(DataError) as caught:
        notify_of(given)
    (line,) = caught.value.mistakes
    assert line.startswith(starts)
    assert right in line
    assert "\n" not in line
    assert SECRET not in line


RIGHT: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "the seed's": ({"mail_to": "root"}, {"SEND_MAILS_TO": "root"}),
    "localhost": (
        {"mail_to": "root", "smtp": {"port": 2525}},
        {
            "SEND_MAILS_TO": "root",
            "NOTIFY_SMTP_HOST": "localhost",
            "NOTIFY_SMTP_PORT": "2525",
            "NOTIFY_SMTP_SECURITY": "none",
        },
    ),
    "a provider": (
        {**smtp(host="Smtp.Provider.NET", **LOGIN), "mail_from": "vps@address.test"},
        {
            "SEND_MAILS_TO": "me@address.test",
            "NOTIFY_MAIL_FROM": "vps@address.test",
            "NOTIFY_SMTP_HOST": "smtp.provider.net",
            "NOTIFY_SMTP_PORT": "587",
            "NOTIFY_SMTP_SECURITY": "starttls",
            "NOTIFY_SMTP_USER": "me",
        },
    ),
    "a provider with TLS": (
        smtp(host="[2001:db8::25]", security="tls", **LOGIN),
        {
            "SEND_MAILS_TO": "me@address.test",
            "NOTIFY_SMTP_HOST": "2001:db8::25",
            "NOTIFY_SMTP_PORT": "465",
            "NOTIFY_SMTP_SECURITY": "tls",
            "NOTIFY_SMTP_USER": "me",
        },
    ),
    "through a tunnel": (
        smtp(host="10.0.0.1", security="none", **LOGIN),
        {
            "SEND_MAILS_TO": "me@address.test",
            "NOTIFY_SMTP_HOST": "10.0.0.1",
            "NOTIFY_SMTP_PORT": "25",
            "NOTIFY_SMTP_SECURITY": "none",
            "NOTIFY_SMTP_USER": "me",
        },
    ),
    "sendmail": (
        {"mail_to": "root", "sendmail": True},
        {"SEND_MAILS_TO": "root", "NOTIFY_SENDMAIL": "1"},
    ),
    "no sendmail": ({"mail_to": "root", "sendmail": False}, {"SEND_MAILS_TO": "root"}),
    "ntfy": (
        {"webhook": NTFY},
        {"NOTIFY_WEBHOOK_PRESET": "ntfy", "NOTIFY_WEBHOOK_URL": "https://ntfy.sh/topic"},
    ),
    "a secret URL": (webhook(url_file="url"), {"NOTIFY_WEBHOOK_PRESET": "json"}),
    "a URL with what a shell reads": (
        webhook(url="https://a.test/$x?`y`&z"),
        {"NOTIFY_WEBHOOK_PRESET": "json", "NOTIFY_WEBHOOK_URL": "https://a.test/\\$x?\\`y\\`&z"},
    ),
    "gotify in a tunnel": (
        webhook(url="http://10.0.0.1:8080", preset="gotify", **TOKEN),
        {"NOTIFY_WEBHOOK_PRESET": "gotify", "NOTIFY_WEBHOOK_URL": "http://10.0.0.1:8080"},
    ),
    "a program": (
        {"program": "/usr/local/bin/tell-me"},
        {"NOTIFY_PROGRAM": "/usr/local/bin/tell-me"},
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_conf(name: str) -> None:
    """What is written to the conf file: all there is, but no secret."""
    given, expected = RIGHT[name]
    content = file_of(plan_of(notify=given), CONF)
    lines = [line for line in content.splitlines() if line.startswith(("SEND_", "NOTIFY_"))]
    assert sorted(lines) == sorted(f'{key}="{value}"' for key, value in expected.items())


@pytest.mark.parametrize("mail_to", ["root", "a`id`@address.test", "$HOME@address.test", "o'neil"])
def test_mail_address_is_read_alike_by_all(mail_to: str, tmp_path: Path) -> None:
    """Promise 15: so is a mail address."""
    content = file_of(plan_of(notify={"mail_to": mail_to}), CONF)
    assert module_of(UPDATER).parse_settings(content)["SEND_MAILS_TO"] == mail_to
    assert as_sh_reads_it(content, ["SEND_MAILS_TO"], tmp_path) == [mail_to]


@pytest.mark.parametrize(
    "mail_to",
    ["root", "me@address.test", "root, me@address.test", "a,b", "o'neil+home@address.test"],
)
def test_mail_to(mail_to: str) -> None:
    notify = load_config(data(notify={"mail_to": mail_to})).notify
    assert notify is not None
    assert notify.mail_to == mail_to


ALL: dict[str, Any] = {
    **smtp(host="mail.test", **LOGIN),
    "webhook": {**NTFY, **TOKEN},
    "program": "/usr/local/bin/tell-me",
}


def test_secrets_are_shown_nowhere() -> None:
    """Promise 17: in the plan they are for root only, and neither it nor the config shows them."""
    plan = plan_of(notify=ALL)
    holders = {file.path: file for file in plan.files if SECRET in file.content}
    assert set(holders) == {
        "/etc/home-forwarder/smtp-password",
        "/etc/home-forwarder/webhook-token",
    }
    for file in holders.values():
        assert (file.mode, file.owner, file.group, file.secret) == ("600", "root", "root", True)
        assert file.content == f"{SECRET}\n"
    config = load_config({"homes": [], "notify": ALL})
    for shown in (plan, config, config.notify):
        assert SECRET not in repr(shown)
        assert SECRET not in str(shown)
    assert not any(file.secret for file in plan_of(notify=MAIL).files)


def credentials(plan: Plan, unit: str) -> list[str]:
    lines = file_of(plan, f"{unit}.service").splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith("LoadCredential=")]


def test_each_way_knows_its_own_secrets_only() -> None:
    """Promise 17."""
    plan = plan_of(notify=ALL)
    assert credentials(plan, "home-notifier") == ["smtp-password:/etc/home-forwarder/smtp-password"]
    assert credentials(plan, "home-notifier-webhook") == [
        "webhook-token:/etc/home-forwarder/webhook-token"
    ]
    assert credentials(plan, "home-notifier-program") == []


def test_units() -> None:
    """A way that is not declared has none."""
    names = {unit.rpartition(".")[0] for unit in plan_of(notify=ALL).units if "notifier" in unit}
    assert names == {"home-notifier", "home-notifier-webhook", "home-notifier-program"}
    units = {unit for unit in plan_of(notify={"mail_to": "root"}).units if "notifier" in unit}
    assert units == {f"home-notifier.{kind}" for kind in ("service", "path", "timer")}
    nothing = plan_of()
    assert [unit for unit in nothing.units if "notifier" in unit] == []
    assert [file.path for file in nothing.files if "notif" in file.path] == []


def test_certificates_are_needed_for_tls_only() -> None:
    for given, needed in (
        (None, False),
        ({"mail_to": "root"}, False),
        (smtp(host="mail.test"), True),
        ({"webhook": NTFY}, True),
        (webhook(url="http://a.test"), False),
    ):
        assert (Package("ca-certificates") in plan_of(notify=given).packages) is needed


def test_paths_of_secrets(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From where pyinfra is run, from the home directory, or from the root."""
    monkeypatch.setenv("HOME", str(here))
    for path in ("secret", "./secret", "~/secret", str(here / "secret")):
        found = notify_of(smtp(user="me", password_file=path)).smtp
        assert found
        assert found.password_file
        assert found.password_file.text == SECRET
