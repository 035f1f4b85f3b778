# SPDX-License-Identifier: GPL-3.0-or-later
"""What each way says of an event, besides the text of a mail, which test_notify.py is about."""

from __future__ import annotations

import email
import email.policy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_samples import NOTIFY, UPDATER

from home_forwarder.render import module_of

notify = module_of(NOTIFY)

EVENT: dict[str, Any] = {
    "index": 1,
    "label": "Küche",
    "hostname": "xxx.myfritz.net",
    "family": "ipv6",
    "at": 1_750_000_000.25,
}
CHANGED = {**EVENT, "event": "changed", "old": "2001:db8::1", "new": "2001:db8::2"}
UNRESOLVED = {
    **EVENT,
    "event": "unresolved",
    "reason": "no answer within 15 s",
    "kept": None,
    "since": 1_749_998_000.5,
}
FORWARDS = ["  tcp 44444", "  udp 33333"]


def test_message_of() -> None:
    """The same keys for every event: whoever reads them needs not ask which there are."""
    changed, unresolved = notify.message_of(CHANGED, FORWARDS), notify.message_of(UNRESOLVED, [])
    assert list(changed) == list(unresolved)
    assert {key: changed[key] for key in changed if key not in ("vps", "text")} == {
        "event": "changed",
        "index": 1,
        "hostname": "xxx.myfritz.net",
        "description": "Küche",
        "family": "ipv6",
        "old_address": "2001:db8::1",
        "new_address": "2001:db8::2",
        "kept_address": None,
        "reason": None,
        "time": 1_750_000_000,
        "since": None,
        "forwards": ["tcp 44444", "udp 33333"],
        "subject": "Küche: moved from 2001:db8::1 to 2001:db8::2",
    }
    assert changed["text"] == notify.body(CHANGED, FORWARDS)
    assert unresolved["since"] == 1_749_998_000


URL = "https://address.test/topic"


@pytest.mark.parametrize(
    ("preset", "token", "url", "content"),
    [
        ("json", None, URL, notify.message_of(CHANGED, FORWARDS)),
        ("json", "tk", URL, notify.message_of(CHANGED, FORWARDS)),
        (
            "ntfy",
            "tk",
            "https://address.test/",
            {
                "topic": "topic",
                "title": notify.subject(CHANGED),
                "message": notify.body(CHANGED, FORWARDS),
            },
        ),
        (
            "gotify",
            "tk",
            "https://address.test/topic/message",
            {
                "title": notify.subject(CHANGED),
                "message": notify.body(CHANGED, FORWARDS),
                "priority": 5,
            },
        ),
    ],
)
def test_request(preset: str, token: str | None, url: str, content: object) -> None:
    told = notify.message_of(CHANGED, FORWARDS)
    sent_to, headers, body = notify.request(preset, URL, token, told)
    assert sent_to == url
    assert json.loads(body) == content
    assert body.isascii()
    assert headers["Content-Type"] == "application/json"
    assert headers.get("Authorization") == (f"Bearer {token}" if token else None)


@given(st.text(), st.text())
def test_no_header_of_a_request_depends_on_the_event(label: str, reason: str) -> None:
    """Promise 15: what DNS or a user wrote is in the body, as JSON, and nowhere else."""
    told = notify.message_of({**UNRESOLVED, "label": label, "reason": reason}, FORWARDS)
    for preset in ("json", "ntfy", "gotify"):
        usual = notify.request(preset, URL, "tk", notify.message_of(CHANGED, []))
        assert notify.request(preset, URL, "tk", told)[:2] == usual[:2]


def test_environment() -> None:
    variables = notify.environment(notify.message_of(UNRESOLVED, FORWARDS))
    expected = {
        "HOME_EVENT": "unresolved",
        "HOME_INDEX": "1",
        "HOME_HOSTNAME": "xxx.myfritz.net",
        "HOME_DESCRIPTION": "Küche",
        "HOME_FAMILY": "ipv6",
        "HOME_OLD_ADDRESS": "",
        "HOME_NEW_ADDRESS": "",
        "HOME_KEPT_ADDRESS": "",
        "HOME_REASON": "no answer within 15 s",
        "HOME_TIME": "1750000000",
        "HOME_SINCE": "1749998000",
        "HOME_FORWARDS": "tcp 44444, udp 33333",
        "HOME_SUBJECT": "Küche: xxx.myfritz.net does not resolve",
    }
    assert {key: variables[key] for key in expected} == expected
    assert set(variables) - set(expected) == {"PATH", "LANG", "HOME_VPS", "HOME_TEXT"}


@given(st.text(), st.text())
def test_environment_of_any_event_can_be_given(label: str, reason: str) -> None:
    """Promise 15: no variable more or less, and none that execve(2) would refuse."""
    usual = notify.environment(notify.message_of(UNRESOLVED, []))
    variables = notify.environment(
        notify.message_of({**UNRESOLVED, "label": label, "reason": reason}, [])
    )
    assert set(variables) == set(usual)
    assert variables["PATH"] == usual["PATH"]
    assert not any("\0" in value for value in variables.values())


def test_sender_of_a_mail() -> None:
    message = notify.mail(CHANGED, "root", "vps@address.test", "1750000000.250000-000-1-changed")
    assert message["From"] == "home-forwarder <vps@address.test>"
    assert notify.envelope(message) == "vps@address.test"
    assert message["Message-ID"].startswith("<1750000000.250000-000-1-changed@")
    assert notify.envelope(notify.mail(CHANGED, "root")).startswith("root@")


def test_a_mail_is_7_bit() -> None:
    """Not every server takes more; and what is ASCII stays readable for grep."""
    raw = notify.mail(CHANGED, "root").as_bytes()
    assert raw.isascii()
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    assert parsed["Subject"] == notify.subject(CHANGED)
    assert parsed.get_content() == notify.body(CHANGED, [])
    assert b"Home:      NAS (" in notify.mail({**CHANGED, "label": "NAS"}, "root").as_bytes()


@pytest.mark.parametrize("words", ["a\nb", "a\r\nb", "\x1b[31mred", "a\x00b", "a\u2028b"])
def test_others_words_are_one_line_of_the_journal(words: str) -> None:
    """A server's answer cannot look like a line of ours."""
    assert notify.plain(words).isprintable()
    assert len(notify.plain(words * 1000)) == 300


@pytest.mark.parametrize(
    ("codes", "kind"),
    [([550], "Refused"), ([550, 554], "Refused"), ([450], "NotNow"), ([550, 451], "NotNow")],
)
def test_which_refusal_is_for_good(codes: list[int], kind: str) -> None:
    """RFC 5321, 4.2.1."""
    error = notify._refusal([(code, b"5.7.1 no\r\nreally") for code in codes])
    assert type(error).__name__ == kind
    assert f"{codes[0]} 5.7.1 no  really" in str(error)


def test_both_programs_mean_the_same_ways() -> None:
    """What one spools the other sends."""
    updater = module_of(UPDATER)
    assert {way: key for way, (key, _) in notify.WAYS.items()} == updater.WAYS
