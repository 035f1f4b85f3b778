# SPDX-License-Identifier: GPL-3.0-or-later
"""What a mail says. That it arrives is for the lab tests."""

from __future__ import annotations

import email
import email.policy
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit_samples import NOTIFY

from home_forwarder.config import load_config
from home_forwarder.mistakes import DataError
from home_forwarder.render import module_of

notify = module_of(NOTIFY)
AT = 1_750_000_000.0
SINCE = AT - 1800

EVENT: dict[str, Any] = {
    "index": 0,
    "label": "Fritz!Box at home",
    "hostname": "xxx.myfritz.net",
    "family": "ipv6",
    "at": AT,
}
EVENTS: dict[str, dict[str, Any]] = {
    "changed": {**EVENT, "event": "changed", "old": "2001:db8::1", "new": "2001:db8::2"},
    "unresolved": {
        **EVENT,
        "event": "unresolved",
        "reason": "Name or service not known",
        "kept": "2001:db8::1",
        "since": SINCE,
    },
    "recovered": {**EVENT, "event": "recovered", "new": "2001:db8::2", "since": SINCE},
    "refused": {
        **EVENT,
        "event": "refused",
        "reason": "::1 is a loopback address",
        "kept": None,
        "since": SINCE,
    },
}
FORWARDS = ["  tcp 44444", "  udp 33333"]


def clock(seconds: float) -> str:
    return str(notify.time.strftime("%Y-%m-%d %H:%M:%S %z", notify.time.localtime(seconds)))


@pytest.mark.parametrize(
    ("event", "subject"),
    [
        ("changed", "Fritz!Box at home: moved from 2001:db8::1 to 2001:db8::2"),
        ("unresolved", "Fritz!Box at home: xxx.myfritz.net does not resolve"),
        ("recovered", "Fritz!Box at home: xxx.myfritz.net resolves again"),
        ("refused", "Fritz!Box at home: an address of xxx.myfritz.net was refused"),
    ],
)
def test_subject(event: str, subject: str) -> None:
    assert notify.subject(EVENTS[event]) == subject
    assert notify.mail(EVENTS[event], "root")["Subject"] == subject


@pytest.mark.parametrize(
    ("event", "lines"),
    [
        (
            "changed",
            ["Was at:    2001:db8::1", "Is now at: 2001:db8::2", "", "Forwards restarted:"],
        ),
        (
            "unresolved",
            [
                "Reason:    Name or service not known",
                f"Since:     {clock(SINCE)}",
                "Kept:      2001:db8::1",
                "",
                "Forwards concerned:",
            ],
        ),
        (
            "recovered",
            [
                "Address:   2001:db8::2",
                f"Since:     {clock(SINCE)} without an answer",
                "",
                "Forwards concerned:",
            ],
        ),
        (
            "refused",
            [
                "Reason:    ::1 is a loopback address",
                f"Since:     {clock(SINCE)}",
                "Kept:      no address was known before",
                "",
                "Forwards concerned:",
            ],
        ),
    ],
)
def test_body(event: str, lines: list[str]) -> None:
    head = ["Home:      Fritz!Box at home (xxx.myfritz.net)", f"Time:      {clock(AT)}"]
    text = notify.body(EVENTS[event], FORWARDS)
    assert text.splitlines() == [*head, *lines, *FORWARDS]
    assert text.endswith("\n")


@pytest.mark.parametrize("event", EVENTS)
def test_body_without_forwards(event: str) -> None:
    assert "Forwards" not in notify.body(EVENTS[event], [])


def test_body_of_an_ipv4_change() -> None:
    """Forwards do not use it: it must not look as if they were restarted."""
    text = notify.body({**EVENTS["changed"], "family": "ipv4"}, FORWARDS)
    assert "restarted" not in text
    assert "tcp 44444" not in text
    assert "forwards use its IPv6 address only" in text


def test_forwards_of_a_home(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those enabled, of that home and no other."""
    for protocol, instance in (("tcp", "1:80"), ("tcp", "11:81"), ("udp", "1:82"), ("tcp", "0:83")):
        path = tmp_path / f"home-{protocol}forwarders.service.wants"
        path.mkdir(exist_ok=True)
        (path / f"home-{protocol}forwarder@{instance}.service").touch()
    place = notify.WANTS.removeprefix("/etc/systemd/system")
    assert place != notify.WANTS
    monkeypatch.setattr(notify, "WANTS", f"{tmp_path}{place}")
    assert notify.forwards_of(1) == ["  tcp 80", "  udp 82"]
    assert notify.forwards_of(2) == []


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("key", ["label", "hostname", "reason", "old", "new"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", "\u2028", "\x0b"])
def test_no_header_can_be_smuggled_in(event: str, key: str, end: str) -> None:
    """Promise 15: nothing of an event becomes a header, or ends the headers."""
    bad = {**EVENTS[event], key: f"x{end}Bcc: victim@address.test{end}{end}Win money"}
    raw = notify.mail(bad, "root").as_bytes()
    message = email.message_from_bytes(raw, policy=email.policy.default)
    good = notify.mail(EVENTS[event], "root")
    assert sorted(message.keys()) == sorted(good.keys())
    assert message["To"] == "root"


@given(st.text())
def test_any_label_makes_a_mail(label: str) -> None:
    """Promise 15: braces, percents and all letters stay what they are."""
    try:
        label.encode()
    except UnicodeEncodeError:
        return
    raw = notify.mail({**EVENTS["changed"], "label": label}, "root").as_bytes()
    message = email.message_from_bytes(raw, policy=email.policy.default)
    expected = f"{label}: moved from 2001:db8::1 to 2001:db8::2".split()
    assert message["Subject"].split() == expected


@given(
    st.from_regex(
        r"[!-~]{1,12}(@([!-~]{1,12}|\[[0-9A-Fa-f.:]{1,12}\]))?(, ?[!-~]{1,12})?", fullmatch=True
    )
)
@example("0@[")  # Python's email cannot read it
def test_any_accepted_recipient_makes_a_mail(mail_to: str) -> None:
    """What config lets through must not be what keeps a mail from being written."""
    try:
        load_config({"homes": [], "notify": {"mail_to": mail_to}})
    except DataError:
        return
    assert notify.mail(EVENTS["changed"], mail_to).as_bytes()


def test_headers() -> None:
    message = notify.mail(EVENTS["changed"], "root, me@address.test")
    assert message["To"] == "root, me@address.test"
    assert message["Date"] == "Sun, 15 Jun 2025 15:06:40 +0000"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["From"].startswith("home-forwarder <root@")


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        [],
        "x",
        None,
        {**EVENTS["changed"], "event": "nonsense"},
        {key: value for key, value in EVENTS["changed"].items() if key != "old"},
        {**EVENTS["changed"], "at": "noon"},
    ],
)
def test_damaged_messages_are_told_apart(damaged: Any) -> None:
    """deliver() drops what raises one of these, so that it does not block all that follows."""
    with pytest.raises((ValueError, KeyError, TypeError)):
        notify.mail(damaged, "root")


@pytest.mark.parametrize("event", EVENTS)
def test_message_of(event: str) -> None:
    """The same keys for every event: who reads them need not ask which there are."""
    told = notify.message_of({**EVENTS[event], "label": "Fritz!Box\nat  home"}, FORWARDS)
    assert told.keys() == notify.message_of(EVENTS["changed"], []).keys()
    assert told["subject"].isprintable()
    assert told["forwards"] == ["tcp 44444", "udp 33333"]
    assert (told["event"], told["time"]) == (event, int(AT))
    assert told["since"] == (None if event == "changed" else int(SINCE))
    assert told["new_address"] == EVENTS[event].get("new")
    assert told["kept_address"] == EVENTS[event].get("kept")


def test_environment_of_a_program() -> None:
    """Promise 15: text only, every key there, and nothing that execve(2) cannot take."""
    told = notify.message_of({**EVENTS["changed"], "label": "a\0b $(id)"}, FORWARDS)
    variables = notify.environment(told)
    assert variables["HOME_DESCRIPTION"] == "ab $(id)"
    assert variables["HOME_FORWARDS"] == "tcp 44444, udp 33333"
    assert variables["HOME_REASON"] == ""
    assert variables["HOME_TIME"] == str(int(AT))
    assert "HOME" not in variables
    assert all(isinstance(value, str) and "\0" not in value for value in variables.values())


@pytest.mark.parametrize(
    ("preset", "url", "target", "keys"),
    [
        ("json", "https://x.test/hook?a=b", "https://x.test/hook?a=b", None),
        ("ntfy", "https://ntfy.test/topic", "https://ntfy.test/", {"topic", "title", "message"}),
        (
            "gotify",
            "https://push.test/sub/",
            "https://push.test/sub/message",
            {"title", "message", "priority"},
        ),
    ],
)
@pytest.mark.parametrize("token", [None, "s3cret"])
def test_webhook_request(
    preset: str, url: str, target: str, keys: set[str] | None, token: str | None
) -> None:
    """Promise 17: a token is in its header and nowhere else."""
    told = notify.message_of({**EVENTS["changed"], "label": "Küche"}, FORWARDS)
    where, headers, content = notify.request(preset, url, token, told)
    sent = json.loads(content)
    assert where == target
    assert sent.keys() == (keys or told.keys())
    assert "Küche: moved from" in (sent.get("title") or sent["subject"])
    assert headers.get("Authorization") == (token and f"Bearer {token}")
    assert b"s3cret" not in content
    if preset == "ntfy":
        assert sent["topic"] == "topic"
