# SPDX-License-Identifier: GPL-3.0-or-later
"""home-address-update: what an answer means, what is read and written, one whole run."""

from __future__ import annotations

import ast
import contextlib
import ipaddress
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit_samples import REPO, UPDATER, program

from home_forwarder.parts.addresses import Home, addresses_part
from home_forwarder.render import module_of, render, sent_source_of

updater = module_of(UPDATER)
Answer = updater.Answer

A, B, C = "2001:db8::a", "2001:db8::b", "2001:db8::c"
V4, V4_NEW = "192.0.2.1", "192.0.2.2"
OWN = [(int(ipaddress.IPv6Address("2001:db8:f::1")), 0)]
NOW = 1_750_000_000.0
PATIENCE = 1800.0
TIMEOUT = "no answer within 15 s"
NO_NAME = "Name or service not known"


def home(allow_private: bool = False) -> Any:
    settings = {"HOME_ADDRESS_COUNT": "1", "HOME_HOSTNAME_0": "nas.test", "HOME_HOSTDESC_0": "NAS"}
    if allow_private:
        settings["HOME_ALLOW_PRIVATE_0"] = "1"
    return updater.Home(settings, 0)


def found(*addresses: str) -> Any:
    return Answer(list(addresses))


def failed() -> Any:
    return Answer([], TIMEOUT)


def negative() -> Any:
    return Answer([], NO_NAME, negative=True)


def known(address: str, *more: str) -> dict[str, Any]:
    """As the state has it, which is also what a Known is made from."""
    return {"address": address, "addresses": sorted((address, *more))}


def trouble(kind: str, seconds: float, reported: bool = False) -> dict[str, Any]:
    facts: dict[str, Any] = {"trouble": kind, "since": NOW - seconds}
    return {**facts, "reported": True} if reported else facts


class Case(NamedTuple):
    """What was known, the answer, what is known then, and the events that are told."""

    before: dict[str, Any]
    answer: Any
    after: dict[str, Any]
    events: list[str]
    family: str = "ipv6"
    allow_private: bool = False


DECISIONS = {
    "first": Case({}, found(A), known(A), []),
    "first of several": Case({}, found(B, A), known(B, A), []),
    "same": Case(known(A), found(A), known(A), []),
    # Promise 3: addresses are a set.
    "another order": Case(known(A, B), found(B, A), known(A, B), []),
    "one more": Case(known(A), found(C, B, A), known(A, B, C), []),
    "another one gone": Case(known(A, B, C), found(B, A), known(A, B), []),
    "ours gone": Case(known(A, B), found(B, C), known(B, C), ["changed"]),
    "moved": Case(known(A), found(B), known(B), ["changed"]),
    # Promise 1: a failure changes nothing.
    "failure": Case(known(A, B), failed(), {**known(A, B), **trouble("failed", 0)}, []),
    "failure, nothing known": Case({}, failed(), trouble("failed", 0), []),
    "failure goes on": Case(
        {**known(A), **trouble("failed", 1799)},
        failed(),
        {**known(A), **trouble("failed", 1799)},
        [],
    ),
    "failure for long": Case(
        {**known(A), **trouble("failed", 1800)},
        failed(),
        {**known(A), **trouble("failed", 1800, reported=True)},
        ["unresolved"],
    ),
    "failure was reported": Case(
        {**known(A), **trouble("failed", 9999, reported=True)},
        failed(),
        {**known(A), **trouble("failed", 9999, reported=True)},
        [],
    ),
    # Promise 2: a negative answer keeps the address, and is reported once.
    "negative": Case(known(A), negative(), {**known(A), **trouble("negative", 0)}, []),
    "empty answer": Case(known(A), found(), {**known(A), **trouble("failed", 0)}, []),
    "negative goes on": Case(
        {**known(A), **trouble("negative", 1799)},
        negative(),
        {**known(A), **trouble("negative", 1799)},
        [],
    ),
    "negative for long": Case(
        {**known(A), **trouble("negative", 1801)},
        negative(),
        {**known(A), **trouble("negative", 1801, reported=True)},
        ["unresolved"],
    ),
    "negative, never known, for long": Case(
        trouble("negative", 1801),
        negative(),
        trouble("negative", 1801, reported=True),
        ["unresolved"],
    ),
    "negative was reported": Case(
        {**known(A), **trouble("negative", 9999, reported=True)},
        negative(),
        {**known(A), **trouble("negative", 9999, reported=True)},
        [],
    ),
    "failed, then negative: one trouble": Case(
        {**known(A), **trouble("failed", 9999, reported=True)},
        negative(),
        {**known(A), **trouble("negative", 9999, reported=True)},
        [],
    ),
    "failed, then negative: one time": Case(
        {**known(A), **trouble("failed", 1800)},
        negative(),
        {**known(A), **trouble("negative", 1800, reported=True)},
        ["unresolved"],
    ),
    "over": Case(
        {**known(A), **trouble("negative", 9999, reported=True)}, found(A), known(A), ["recovered"]
    ),
    "over before it was reported": Case(
        {**known(A), **trouble("failed", 60)}, found(A), known(A), []
    ),
    "over, and moved": Case(
        {**known(A), **trouble("failed", 9999, reported=True)},
        found(B),
        known(B),
        ["changed", "recovered"],
    ),
    "over, never known": Case(
        trouble("negative", 9999, reported=True), found(A), known(A), ["recovered"]
    ),
    # Promise 4: what must not be a target.
    "refused": Case(
        known(A), found("::1"), {**known(A), **trouble("refused", 0, reported=True)}, ["refused"]
    ),
    "refused, nothing known": Case(
        {}, found("fe80::1"), trouble("refused", 0, reported=True), ["refused"]
    ),
    "refused again": Case(
        {**known(A), **trouble("refused", 60, reported=True)},
        found("::1"),
        {**known(A), **trouble("refused", 60, reported=True)},
        [],
    ),
    "refused after a report": Case(
        {**known(A), **trouble("negative", 9999, reported=True)},
        found("::1"),
        {**known(A), **trouble("refused", 9999, reported=True)},
        [],
    ),
    "VPS itself": Case(
        known(A),
        found("2001:db8:f::1"),
        {**known(A), **trouble("refused", 0, reported=True)},
        ["refused"],
    ),
    "one of two refused": Case(known(A), found("::1", A), known(A), []),
    "moved, one of two refused": Case(known(A), found("::1", B), known(B), ["changed"]),
    "private": Case({}, found("fd00::1"), trouble("refused", 0, reported=True), ["refused"]),
    "private allowed": Case({}, found("fd00::1"), known("fd00::1"), [], allow_private=True),
    "no longer refused": Case(
        {**known(A), **trouble("refused", 60, reported=True)}, found(A), known(A), ["recovered"]
    ),
    # IPv4: kept for information; most homes have none.
    "IPv4": Case({}, found(V4), known(V4), [], "ipv4"),
    "IPv4 moved": Case(known(V4), found(V4_NEW), known(V4_NEW), ["changed"], "ipv4"),
    "no IPv4": Case({}, negative(), {}, [], "ipv4"),
    "no IPv4 any more": Case(
        known(V4), negative(), {**known(V4), **trouble("negative", 0)}, [], "ipv4"
    ),
    "IPv4 fails": Case(known(V4), failed(), {**known(V4), **trouble("failed", 0)}, [], "ipv4"),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_decide(name: str) -> None:
    """Promises 1, 2, 3 and 4."""
    case = DECISIONS[name]
    before = updater.Known(**case.before)
    after, events, log = updater.decide(
        home(case.allow_private), case.family, before, case.answer, OWN, NOW, PATIENCE
    )
    facts = after.as_json()
    assert {key: value for key, value in facts.items() if value is not False} == case.after
    assert [event.kind for event in events] == case.events
    again = updater.Known(**case.before)
    assert vars(before) == vars(again), "what was known is not the function's to change"
    assert all("\n" not in line and line for line in log)
    for event in events:
        assert event.facts["family"] == case.family
        assert event.facts["at"] == NOW
        json.dumps(event.facts)


@pytest.mark.parametrize("name", [name for name, case in DECISIONS.items() if case.events])
def test_trouble_is_never_told_twice(name: str) -> None:
    """Promises 1 and 2: whatever was told, the same answer a minute later tells nothing more."""
    case = DECISIONS[name]
    place, before = home(case.allow_private), updater.Known(**case.before)
    after, events, _ = updater.decide(place, case.family, before, case.answer, OWN, NOW, PATIENCE)
    assert events
    later = updater.decide(place, case.family, after, case.answer, OWN, NOW + 60, PATIENCE)
    assert later[1] == []


@pytest.mark.parametrize("answers", [[failed], [negative], [failed, negative]])
@pytest.mark.parametrize("family", ["ipv6", "ipv4"])
def test_a_long_trouble_from_its_begin_to_its_end(answers: list[Any], family: str) -> None:
    """Promise 2: one report after 30 minutes, one when it is over, and the address stays."""
    address = A if family == "ipv6" else V4
    state, told = updater.Known(**known(address)), []
    for minute in range(120):
        answer = answers[minute % len(answers)]()
        state, events, _ = updater.decide(
            home(), family, state, answer, OWN, NOW + 60 * minute, PATIENCE
        )
        told += [(minute, event.kind) for event in events]
        assert state.address == address
    state, events, _ = updater.decide(
        home(), family, state, found(address), OWN, NOW + 7200, PATIENCE
    )
    told += [(120, event.kind) for event in events]
    assert told == [(30, "unresolved"), (120, "recovered")]
    assert state.as_json() == known(address)


@pytest.mark.parametrize("last", [negative, failed])
def test_a_home_without_ipv4_is_not_reported_for_it(last: Any) -> None:
    """Promise 2: DNS fails for long, for both families: one report, of the one that is used."""
    state = updater.Known()
    told = []
    for minute in range(60):
        state, events, _ = updater.decide(
            home(), "ipv4", state, failed(), OWN, NOW + 60 * minute, PATIENCE
        )
        told += events
    state, events, _ = updater.decide(home(), "ipv4", state, last(), OWN, NOW + 3600, PATIENCE)
    assert told + events == []
    assert state.as_json() == {}


# ---- Addresses that are refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("2001:db8::1", None),
        ("2000::", None),
        ("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None),
        ("::1", "a loopback address"),
        ("::", "the unspecified address"),
        ("::ffff:192.0.2.1", "an IPv4-mapped address"),
        ("::ffff:127.0.0.1", "an IPv4-mapped address"),
        ("fe80::1", "a link-local address"),
        ("febf::1", "a link-local address"),
        ("ff02::1", "a multicast address"),
        ("ff0e::1", "a multicast address"),
        ("fec0::1", "not a global unicast address"),
        ("fc00::1", "a private address"),
        ("fdff::1", "a private address"),
        ("::2", "not a global unicast address"),
        ("::127.0.0.1", "not a global unicast address"),
        ("64:ff9b::192.0.2.1", "not a global unicast address"),
        ("100::1", "not a global unicast address"),
        ("4000::1", "not a global unicast address"),
        ("1fff::1", "not a global unicast address"),
        ("2001:db8:f::1", "an address of this VPS itself"),
        ("2001:db8:f::2", None),
        ("2001:db8:a:b::", "an address of this VPS itself"),
        ("2001:db8:a:b:ffff::1", "an address of this VPS itself"),
        ("2001:db8:a:c::1", None),
        ("fd12::1", "an address of this VPS itself"),
    ],
)
@pytest.mark.parametrize("allow_private", [False, True])
def test_refusal(address: str, reason: str | None, allow_private: bool) -> None:
    """Promise 4; allow_private opens fc00::/7 and nothing else."""
    own = [
        *OWN,
        (int(ipaddress.IPv6Address("fd12::1")), 0),
        (int(ipaddress.IPv6Address("2001:db8:a:b::")) >> 64, 64),  # AnyIP: a local route
    ]
    said = updater.refusal(address, own, allow_private)
    if reason is None or (allow_private and reason == "a private address"):
        assert said is None
    else:
        assert said is not None
        assert said.startswith(reason)


IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
20010db8000000000000000000000005 02 40 00 80     eth0
fe80000000000000505400fffe123456 02 40 20 80     eth0
20010db8000000000000000000000006 0b 80 00 80 wg-with.dots
"""
IPV6_ROUTE = """\
20010db8000000000000000000000000 40 {none} 00 {none} 00000100 00000001 00000000 00000001     eth0
20010db8000100000000000000000000 30 {none} 00 {none} 00000400 00000001 00000000 80000001       lo
00000000000000000000000000000000 00 {none} 00 {gate} 00000400 00000002 00000000 00000003     eth0
20010db8000000000000000000000005 80 {none} 00 {none} 00000000 00000003 00000000 80200001     eth0
20010db8000000000000000000000000 80 {none} 00 {none} 00000000 00000003 00000000 00300001     eth0
00000000000000000000000000000000 00 {none} 00 {none} ffffffff 00000001 00000000 80200200       lo
""".format(none="0" * 32, gate="fe80" + "0" * 27 + "1")


def write_proc(directory: Path) -> str:
    (directory / "if_inet6").write_text(IF_INET6)
    (directory / "ipv6_route").write_text(IPV6_ROUTE)
    return str(directory)


def test_own_networks(tmp_path: Path) -> None:
    """Promise 4: the addresses of all interfaces, and what the routes call local or anycast."""
    own = updater.own_networks(write_proc(tmp_path))
    assert set(own) == {
        (1, 0),
        (0x20010DB8000000000000000000000005, 0),
        (0xFE80000000000000505400FFFE123456, 0),
        (0x20010DB8000000000000000000000006, 0),
        (0x20010DB80001, 80),
        (0x20010DB8000000000000000000000000, 0),
    }


@pytest.mark.parametrize(
    ("address", "ours"),
    [
        ("2001:db8::5", True),
        ("2001:db8::6", True),
        ("2001:db8::", True),
        ("2001:db8:1::77", True),
        ("2001:db8::7", False),
        ("2001:db8:2::1", False),
        ("2001:4860::1", False),
    ],
)
def test_own_networks_are_refused(address: str, ours: bool, tmp_path: Path) -> None:
    """Promise 4: a relay must not call the VPS itself."""
    own = updater.own_networks(write_proc(tmp_path))
    assert (updater.refusal(address, own, allow_private=True) is not None) is ours


def test_a_host_without_ipv6(tmp_path: Path) -> None:
    assert updater.own_networks(str(tmp_path)) == []


# ---- The configuration -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("# comment\n; comment\n\n   \n", {}),
        ("A=1", {"A": "1"}),
        ("A=1\nB=2\nA=3\n", {"A": "3", "B": "2"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("  A=1  ", {"A": "1"}),
        ("A=", {"A": ""}),
        ('A=""', {"A": ""}),
        ("A=''", {"A": ""}),
        ('A="x y"', {"A": "x y"}),
        ("A='x \"$y\" \\'", {"A": 'x "$y" \\'}),
        ('A="it\'s"', {"A": "it's"}),
        ("A=x=y", {"A": "x=y"}),
        ("A=x y", {"A": "x y"}),
        ("A=x\\ y", {"A": "x y"}),
        (r'A="\"\`\$\\"', {"A": '"`$\\'}),
        (r'A="\a\ "', {"A": r"\a\ "}),
        ('A="#1"', {"A": "#1"}),
        ("HOME_HOSTDESC_0=Küche", {"HOME_HOSTDESC_0": "Küche"}),
    ],
)
def test_parse_settings(text: str, settings: dict[str, str]) -> None:
    """As sh and systemd's EnvironmentFile= read it: the seed's file, and ours."""
    assert updater.parse_settings(text) == settings


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("A", 1),
        ("=1", 1),
        ("A=1\nB\n", 2),
        ("A B=1", 1),
        ("1A=1", 1),
        ("export A=1", 1),
        ("A =1", 1),
        ('A="x', 1),
        ('A="', 1),
        ('A="x" y', 1),
        ('A="x\\"', 1),
        ("A='x", 1),
        ("A='", 1),
        ("A='x'y'", 1),
        ("\n\nif true; then", 3),
    ],
)
def test_lines_that_are_no_settings(text: str, number: int) -> None:
    """One clear error that says where."""
    with pytest.raises(updater.Problem, match=f"^line {number} is not KEY=value"):
        updater.parse_settings(text)


lines = st.text(st.one_of(st.sampled_from("A=\"'\\$`# ;\n\r"), st.characters()), max_size=60)


@given(lines)
def test_any_text_is_settings_or_a_problem(text: str) -> None:
    """Promise 7: whatever an editor left, the program ends with a clear word."""
    with contextlib.suppress(updater.Problem):
        assert all(key.isidentifier() for key in updater.parse_settings(text))


number = st.one_of(st.text(max_size=6), st.integers(-3, 3).map(str))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "HOME_ADDRESS_COUNT": number,
            "HOME_HOSTNAME_0": st.text(max_size=9),
            "HOME_HOSTNAME_1": st.text(max_size=9),
            "HOME_HOSTDESC_0": st.text(max_size=9),
            "UNRESOLVED_AFTER": number,
        },
    )
)
@example({"HOME_ADDRESS_COUNT": "9" * 5000})
@example({"UNRESOLVED_AFTER": "9" * 5000})
@example({"HOME_ADDRESS_COUNT": "999999999"})
def test_any_settings_are_homes_or_a_problem(settings: dict[str, str]) -> None:
    """Nothing but Problem is raised; a look-up of what is accepted raises nothing."""
    with contextlib.suppress(updater.Problem):
        assert updater.number_of(settings, "UNRESOLVED_AFTER", 1800) >= 0
    homes = []
    with contextlib.suppress(updater.Problem):
        homes = updater.homes_of(settings)
    for each in homes:
        assert each.hostname
        assert each.label
        if "\0" in each.hostname:
            updater.look_up(each.hostname, socket.AF_INET6)  # ends before it asks anyone


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "HOME_ADDRESS_COUNT must be the number of homes, and is ''"),
        ({"HOME_ADDRESS_COUNT": "two"}, "HOME_ADDRESS_COUNT must be the number of homes, and is"),
        ({"HOME_ADDRESS_COUNT": "-1"}, "HOME_ADDRESS_COUNT must be the number"),
        ({"HOME_ADDRESS_COUNT": "1"}, "HOME_ADDRESS_COUNT=1, but there is no HOME_HOSTNAME_0"),
        (
            {"HOME_ADDRESS_COUNT": "2", "HOME_HOSTNAME_0": "nas.test"},
            "HOME_ADDRESS_COUNT=2, but there is no HOME_HOSTNAME_1",
        ),
        (
            {"HOME_ADDRESS_COUNT": "1", "HOME_HOSTNAME_0": "küche.test"},
            "HOME_HOSTNAME_0 must be",
        ),
        # A gap is one that no line is about, and never the last.
        (
            {
                "HOME_ADDRESS_COUNT": "3",
                "HOME_HOSTNAME_0": "nas.test",
                "HOME_HOSTDESC_1": "forgotten",
                "HOME_HOSTNAME_2": "x.test",
            },
            "HOME_ADDRESS_COUNT=3, but there is no HOME_HOSTNAME_1",
        ),
        (
            {
                "HOME_ADDRESS_COUNT": "3",
                "HOME_HOSTNAME_0": "nas.test",
                "HOME_HOSTNAME_1": "",
                "HOME_HOSTNAME_2": "x.test",
            },
            "HOME_ADDRESS_COUNT=3, but there is no HOME_HOSTNAME_1",
        ),
        (
            {
                "HOME_ADDRESS_COUNT": "3",
                "HOME_HOSTNAME_0": "nas.test",
                "HOME_ALLOW_PRIVATE_1": "1",
                "HOME_HOSTNAME_2": "x.test",
            },
            "HOME_ADDRESS_COUNT=3, but there is no HOME_HOSTNAME_1",
        ),
        (
            {"HOME_ADDRESS_COUNT": "999999999", "HOME_HOSTNAME_0": "nas.test"},
            "HOME_ADDRESS_COUNT=999999999, but there is no HOME_HOSTNAME_999999998",
        ),
    ],
)
def test_wrong_homes(settings: dict[str, str], said: str) -> None:
    with pytest.raises(updater.Problem, match=f"^{said}"):
        updater.homes_of(settings)


@pytest.mark.parametrize(
    ("count", "indexes"),
    [("0", []), ("1", [0]), ("3", [0, 2]), ("3", [2]), ("12", [3, 11]), ("999999999", [999999998])],
)
def test_homes_with_gaps(count: str, indexes: list[int]) -> None:
    """The count is one more than the last INDEX; what is behind it does not count."""
    settings = {f"HOME_HOSTNAME_{index}": f"home{index}.test" for index in indexes}
    settings.update(HOME_ADDRESS_COUNT=count, HOME_HOSTDESC_9999999990="no home of ours")
    homes = updater.homes_of(settings)
    assert [(each.index, each.hostname) for each in homes] == [
        (index, f"home{index}.test") for index in indexes
    ]


@pytest.mark.parametrize("indexes", [[], [0], [0, 1], [0, 2], [1, 7], [2, 10]])
def test_conf_as_it_is_deployed(indexes: list[int]) -> None:
    """A gap leaves no line behind; the rest is read back as it was declared."""
    homes = [
        Home(
            name=f"home{index}", hostname=f"home{index}.test", allow_private=index == 2, index=index
        )
        for index in indexes
    ]
    part = addresses_part(dict(zip(indexes, homes, strict=True)), 60, 1800)
    text = render("etc/home-forwarder.conf.j2", settings=part.settings)
    read = updater.homes_of(updater.parse_settings(text))
    assert [(each.index, each.hostname, each.label, each.allow_private) for each in read] == [
        (index, home.hostname, home.name, home.allow_private)
        for index, home in zip(indexes, homes, strict=True)
    ]


# ---- State -------------------------------------------------------------------------------------


GOOD_STATE = {
    "homes": {
        "nas.test": {
            "ipv6": {"address": A, "addresses": [A, B]},
            "ipv4": {"trouble": "failed", "since": NOW, "reported": True},
        }
    }
}


def read_back(directory: Path, content: bytes) -> dict[str, Any]:
    path = directory / "state.json"
    path.write_bytes(content)
    state: dict[str, Any] = updater.read_state(str(path))
    return state


def check_usable(state: dict[str, Any]) -> None:
    """Each fact that read_state lets through can be decided on, and written."""
    for hostname, families in state.items():
        assert isinstance(hostname, str)
        for family, known in families.items():
            for address in [known.address, *known.addresses] if known.address else []:
                socket.inet_pton(updater.FAMILIES[family], address)
            later, _, _ = updater.decide(home(), family, known, failed(), OWN, NOW, PATIENCE)
            json.dumps(later.as_json(), allow_nan=False)
            time.localtime(later.since)
            updater.decide(home(), family, known, found(A), OWN, NOW, PATIENCE)


def test_state_comes_back(tmp_path: Path) -> None:
    state = read_back(tmp_path, json.dumps(GOOD_STATE).encode())
    families = {family: known.as_json() for family, known in state["nas.test"].items()}
    assert families == GOOD_STATE["homes"]["nas.test"]


def test_no_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert updater.read_state(str(tmp_path / "state.json")) == {}
    assert "No state yet" in capsys.readouterr().err


def slot(**facts: object) -> bytes:
    return json.dumps({"homes": {"nas.test": {"ipv6": facts}}}).encode()


DAMAGED = {
    "empty": b"",
    "zeros": b"\0" * 512,
    "half": json.dumps(GOOD_STATE).encode()[:60],
    "no text": b"\xff\xfe",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "no homes": b"{}",
    "homes is a list": b'{"homes": []}',
    "home is null": b'{"homes": {"nas.test": null}}',
    "family is text": b'{"homes": {"nas.test": {"ipv6": "x"}}}',
    "deep": b"[" * 100_000,
    "address is no address": slot(address="nonsense", addresses=["nonsense"]),
    "address is a name": slot(address="localhost", addresses=["localhost"]),
    "address is a number": slot(address=7, addresses=[7]),
    "address of the other family": slot(address="192.0.2.1", addresses=["192.0.2.1"]),
    "address with a line": slot(address=f"{A}\nX=1", addresses=[A]),
    "address with a scope": slot(address="fe80::1%lo", addresses=["fe80::1%lo"]),
    "no list of addresses": slot(address=A),
    "addresses is a dict": slot(address=A, addresses={A: A}),
    "addresses is text": slot(address=A, addresses=A),
    "since is text": slot(trouble="failed", since="noon"),
    "since is a number in quotes": slot(trouble="failed", since="1750000000"),
    "since is missing": slot(trouble="failed"),
    "since is huge": b'{"homes": {"nas.test": {"ipv6": {"trouble": "failed", "since": 1'
    + b"0" * 400
    + b"}}}}",
    "since has many digits": b'{"homes": {"nas.test": {"ipv6": {"trouble": "failed", "since": 1'
    + b"0" * 5000
    + b"}}}}",
    "since is no number": b'{"homes": {"nas.test": {"ipv6": {"trouble": "failed", "since": NaN}}}}',
    "since is infinite": slot(trouble="failed", since=float("inf")),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_state(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Promise 7: it starts over, says so in one line, and never ends with an exception."""
    assert read_back(tmp_path, DAMAGED[name]) == {}
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert said.count("\n") == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(A),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
facts_values = st.fixed_dictionaries(
    {},
    optional={
        "address": st.sampled_from([A, V4, "x"]) | json_values,
        "addresses": st.lists(st.sampled_from([A, V4, "x"]), max_size=3) | json_values,
        "trouble": st.just("failed") | json_values,
        "since": json_values,
        "reported": json_values,
    },
)
families_values = json_values | st.fixed_dictionaries(
    {}, optional={"ipv6": facts_values | json_values, "ipv4": facts_values}
)


@given(json_values | st.fixed_dictionaries({"homes": json_values}))
def test_any_json_as_state(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    """Promise 7: never an exception."""
    check_usable(read_back(tmp_path_factory.getbasetemp(), json.dumps(value).encode()))


@settings(max_examples=200)
@given(families_values)
def test_any_facts_as_state(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    """Promise 7: what is let through can be used."""
    state = {"homes": {"nas.test": value}}
    check_usable(read_back(tmp_path_factory.getbasetemp(), json.dumps(state).encode()))


@given(st.binary(max_size=200))
def test_any_bytes_as_state(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Promise 7: never an exception."""
    check_usable(read_back(tmp_path_factory.getbasetemp(), content))


@contextlib.contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """A write that grows a file beyond `size` bytes fails, for root as well."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_write_whole(tmp_path: Path) -> None:
    """True if and only if the content was another one; then it is another file."""
    path = tmp_path / "state"
    old_mask = os.umask(0o077)
    try:
        assert updater.write_whole(str(path), "one\n")
    finally:
        os.umask(old_mask)
    assert path.read_text() == "one\n"
    assert path.stat().st_mode & 0o777 == 0o644
    inode = path.stat().st_ino
    with path.open() as reader:
        assert not updater.write_whole(str(path), "one\n")
        assert path.stat().st_ino == inode
        assert updater.write_whole(str(path), "two\n")
        assert reader.read() == "one\n", "a reader sees a whole file, the old one"
    assert path.read_text() == "two\n"
    assert names(tmp_path) == {"state"}


@pytest.mark.parametrize("content", ["x" * 100_000, "x" * 20])
def test_write_whole_on_a_full_disk(content: str, tmp_path: Path) -> None:
    """Promise 7: the old file is as it was, and nothing is left over."""
    path = tmp_path / "state"
    path.write_text("one\n")
    with disk_full_after(10), pytest.raises(OSError, match="File too large"):
        updater.write_whole(str(path), content)
    assert path.read_text() == "one\n"
    assert names(tmp_path) == {"state"}


def test_write_whole_after_a_run_was_killed(tmp_path: Path) -> None:
    """Promise 7: what it left is in nobody's way."""
    path = tmp_path / "state"
    left = tmp_path / ".state.new"
    left.write_text("half")
    left.chmod(0o400)
    assert updater.write_whole(str(path), "one\n")
    assert path.read_text() == "one\n"
    assert names(tmp_path) == {"state"}


def test_write_whole_replaces_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"\xff")
    assert updater.write_whole(str(path), "one\n")
    assert path.read_text() == "one\n"


# ---- Look-ups and the lock ---------------------------------------------------------------------


def homes_named(*hostnames: str) -> list[Any]:
    settings = {"HOME_ADDRESS_COUNT": str(len(hostnames))}
    settings |= {f"HOME_HOSTNAME_{n}": hostname for n, hostname in enumerate(hostnames)}
    homes: list[Any] = updater.homes_of(settings)
    return homes


def test_look_ups_end_in_time() -> None:
    """Promise 8: 64 homes, and no name server that ever answers."""
    never = threading.Event()
    homes = homes_named(*(f"home{number}.test" for number in range(64)))

    def block(hostname: str, family: int) -> Any:
        never.wait()
        return found(A)

    started = time.monotonic()
    answers = updater.look_up_all(homes, started + 0.3, block)
    taken = time.monotonic() - started
    never.set()
    assert taken < 3
    assert len(answers) == 128
    for answer in answers.values():
        assert (answer.addresses, answer.negative) == ([], False)
        assert answer.reason.startswith("no answer within")


def test_a_slow_home_does_not_delay_another() -> None:
    """Promise 8: who has answered counts, whoever else has not."""
    never = threading.Event()

    def some(hostname: str, family: int) -> Any:
        if hostname == "slow.test":
            never.wait()
        return found(A if family == socket.AF_INET6 else V4)

    homes = homes_named("slow.test", "nas.test")
    answers = updater.look_up_all(homes, time.monotonic() + 0.3, some)
    never.set()
    assert answers["nas.test", "ipv6"].addresses == [A]
    assert answers["nas.test", "ipv4"].addresses == [V4]
    assert answers["slow.test", "ipv6"].addresses == []


def test_answers_after_the_deadline_do_not_count() -> None:
    """A run's answers do not change any more while it decides on them."""
    go = threading.Event()

    def late(hostname: str, family: int) -> Any:
        go.wait()
        return found(A)

    answers = updater.look_up_all(homes_named("nas.test"), time.monotonic(), late)
    go.set()
    time.sleep(0.1)
    assert answers["nas.test", "ipv6"].addresses == []


def test_homes_that_share_a_name_share_its_look_up() -> None:
    asked = []

    def count(hostname: str, family: int) -> Any:
        asked.append((hostname, family))
        return found(A)

    updater.look_up_all(homes_named("nas.test", "nas.test"), time.monotonic() + 5, count)
    assert sorted(asked) == sorted([("nas.test", socket.AF_INET6), ("nas.test", socket.AF_INET)])


def test_look_up_of_a_literal() -> None:
    """Needs no DNS, and has no IPv4 address."""
    assert updater.look_up(A, socket.AF_INET6).addresses == [A]
    answer = updater.look_up(A, socket.AF_INET)
    assert (answer.addresses, answer.negative) == ([], True)


HOLDER = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_run(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its standard input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.stdin.close()


def test_lock_waits_for_another_run(tmp_path: Path) -> None:
    """Promise 7: two runs at once do not disturb each other."""
    with another_run(tmp_path) as process:
        assert process.stdin is not None
        closer = threading.Timer(0.4, process.stdin.close)
        started = time.monotonic()
        closer.start()
        lock = updater.Lock(str(tmp_path), started + 10)
        assert 0.3 < time.monotonic() - started < 5
        os.close(lock.descriptor)


def test_lock_gives_up_in_time(tmp_path: Path) -> None:
    """Promise 8: also while another run hangs."""
    with another_run(tmp_path):
        started = time.monotonic()
        with pytest.raises(updater.Problem, match="another run"):
            updater.Lock(str(tmp_path), started + 0.2)
        assert time.monotonic() - started < 3


def test_status_of_a_busy_run(tmp_path: Path) -> None:
    """75 tells it from an error; nothing was written."""
    code = (
        "import sys; from home_forwarder.render import module_of;"
        f"program = module_of({UPDATER!r}); program.RUN_SECONDS = 2.2; sys.exit(program.main())"
    )
    (tmp_path / "watch").mkdir()
    (tmp_path / "spool").mkdir()
    with another_run(tmp_path):
        done = subprocess.run(
            [sys.executable, "-B", "-c", code, "--state", str(tmp_path), "--conf", "/nonexistent"],
            cwd=REPO,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (75, "")
    assert "another run of home-address-update is in progress" in done.stderr
    assert names(tmp_path) == {"watch", "spool"}


def test_times_fit_into_the_promise() -> None:
    """Promise 8: 20 seconds, of which the look-ups leave some for the rest."""
    assert updater.LOOK_UP_SECONDS <= (
        updater.RUN_SECONDS - updater.WRITE_SECONDS - updater.ASK_SECONDS
    )
    assert updater.RUN_SECONDS < 20


# ---- One whole run -----------------------------------------------------------------------------


class Vps:
    """A configuration and a state directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.conf = directory / "home-forwarder.conf"
        self.state = directory / "state"
        self.command = [*program(UPDATER), "--conf", str(self.conf), "--state", str(self.state)]

    def homes(self, *hostnames: str, more: str = "") -> Vps:
        """hostnames: by INDEX; an empty one for a gap."""
        lines = [f"HOME_ADDRESS_COUNT={len(hostnames)}\n", more]
        for index, hostname in enumerate(hostnames):
            if hostname:
                lines.append(
                    f'HOME_HOSTNAME_{index}={hostname}\nHOME_HOSTDESC_{index}="Home {index}"\n'
                )
        self.conf.write_text("".join(lines))
        return self

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments], capture_output=True, text=True, timeout=30, check=False
        )

    def read(self, name: str) -> str:
        return (self.state / name).read_text()

    def spooled(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted((self.state / "spool").iterdir())]


@pytest.fixture
def vps(tmp_path: Path) -> Vps:
    return Vps(tmp_path)


def test_first_run(vps: Vps) -> None:
    """The files of the seed, in the seed's format."""
    done = vps.homes(A, B).run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"Home 0: found at {A}",
        f"Home 1: found at {B}",
        "2 homes: 0 changed, 0 unresolved",
    ]
    assert vps.read("home-address-ipv6") == (f"HOME_IPV6_ADDRESS_0={A}\nHOME_IPV6_ADDRESS_1={B}\n")
    assert vps.read("home-address-ipv4") == ""
    assert (vps.read("watch/0"), vps.read("watch/1")) == (f"{A}\n", f"{B}\n")
    assert names(vps.state) == {
        "state.json",
        "home-address-ipv4",
        "home-address-ipv6",
        "watch",
        "spool",
    }
    assert vps.spooled() == []
    for path in vps.state.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_second_run_writes_nothing(vps: Vps) -> None:
    """Promise 5: a file that is written anew would restart a home's forwards."""
    vps.homes(A, B).run()
    before = {path: path.stat() for path in vps.state.rglob("*")}
    done = vps.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2 homes: 0 changed, 0 unresolved\n"
    for path, stat in before.items():
        now = path.stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns), path


def test_only_the_watch_file_of_the_moved_home_is_written(vps: Vps) -> None:
    """Promise 5: the other home's forwards go on."""
    vps.homes(A, B).run()
    inodes = [(vps.state / "watch" / name).stat().st_ino for name in ("0", "1")]
    vps.homes(A, C).run()
    assert (vps.state / "watch" / "0").stat().st_ino == inodes[0]
    assert (vps.state / "watch" / "1").stat().st_ino != inodes[1]
    assert vps.read("home-address-ipv6").splitlines()[1] == f"HOME_IPV6_ADDRESS_1={C}"


def test_a_move_is_told(vps: Vps) -> None:
    """A literal that the state knew at another address stands for a name that moved."""
    vps.homes(A, more='SEND_MAILS_TO="root"\n').run()
    state = json.loads(vps.read("state.json"))
    state["homes"][A]["ipv6"] = known(B)
    (vps.state / "state.json").write_text(json.dumps(state))
    done = vps.run("--json")
    assert done.returncode == 0
    (event,) = vps.spooled()
    assert (event["event"], event["index"], event["old"], event["new"]) == ("changed", 0, B, A)
    assert (event["label"], event["hostname"], event["family"]) == ("Home 0", A, "ipv6")
    assert json.loads(done.stdout)["events"] == [event]
    assert vps.run().stdout == "1 home: 0 changed, 0 unresolved\n"
    assert len(vps.spooled()) == 1


def test_nobody_to_tell(vps: Vps) -> None:
    """Without SEND_MAILS_TO nothing piles up in the spool."""
    vps.homes("::1")
    assert vps.run().returncode == 3
    assert vps.spooled() == []


def test_refused_target(vps: Vps) -> None:
    """Promise 4: no address is written, the reason is said and told, once."""
    vps.homes("::1", A, more="SEND_MAILS_TO=root\n")
    done = vps.run()
    assert done.returncode == 3
    assert "refused for Home 0: ::1 is a loopback address" in done.stdout
    assert done.stdout.endswith("2 homes: 0 changed, 1 unresolved\n")
    assert vps.read("home-address-ipv6") == f"HOME_IPV6_ADDRESS_1={A}\n"
    assert vps.read("watch/0") == "nowhere: ::1\n"
    assert [event["event"] for event in vps.spooled()] == ["refused"]
    assert vps.run().returncode == 3
    assert len(vps.spooled()) == 1


def test_another_home_without_an_address(vps: Vps) -> None:
    """An INDEX that stands for another home now no longer leads to the old one."""
    vps.homes(A).run()
    vps.homes("::1").run()
    assert vps.read("home-address-ipv6") == ""
    assert vps.read("watch/0") == "nowhere: ::1\n"


@pytest.mark.parametrize(("more", "status"), [("", 3), ("HOME_ALLOW_PRIVATE_0=1\n", 0)])
def test_allow_private(more: str, status: int, vps: Vps) -> None:
    """Promise 4: a ULA only if it is asked for."""
    assert vps.homes("fd12:3456::1", more=more).run().returncode == status


def test_address_of_this_machine(vps: Vps) -> None:
    """Promise 4: a name that someone points at the VPS itself."""
    addresses = [
        socket.inet_ntop(socket.AF_INET6, address.to_bytes(16, "big"))
        for address, shift in updater.own_networks()
        if not shift
    ]
    # One that nothing else speaks against, if this machine has such a one.
    addresses.sort(key=lambda address: updater.refusal(address, [], True) or "")
    own = next(iter(addresses), "::1")
    vps.homes(own, more="HOME_ALLOW_PRIVATE_0=1\n")
    assert vps.run().returncode == 3
    assert vps.read("home-address-ipv6") == ""


def test_fewer_homes(vps: Vps) -> None:
    """What is no longer there is not watched any more."""
    vps.homes(A, B, C).run()
    vps.homes(A).run()
    assert names(vps.state / "watch") == {"0"}
    assert vps.read("home-address-ipv6") == f"HOME_IPV6_ADDRESS_0={A}\n"
    assert json.loads(vps.read("state.json"))["homes"].keys() == {A}


def test_homes_in_another_order(vps: Vps) -> None:
    """State goes by host name: INDEX 0 is now the other home."""
    vps.homes(A, B).run()
    done = vps.homes(B, A).run()
    assert done.stdout == "2 homes: 0 changed, 0 unresolved\n"
    assert (vps.read("watch/0"), vps.read("watch/1")) == (f"{B}\n", f"{A}\n")


def test_a_gap_is_no_home(vps: Vps) -> None:
    """Taking a home away moves nobody: the others keep their INDEX, and their forwards go on."""
    vps.homes(A, B, C).run()
    kept = ("watch/0", "watch/2")
    inodes = [(vps.state / name).stat().st_ino for name in kept]
    done = vps.homes(A, "", C).run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2 homes: 0 changed, 0 unresolved\n"
    assert vps.read("home-address-ipv6") == f"HOME_IPV6_ADDRESS_0={A}\nHOME_IPV6_ADDRESS_2={C}\n"
    assert names(vps.state / "watch") == {"0", "2"}
    assert [(vps.state / name).stat().st_ino for name in kept] == inodes
    assert json.loads(vps.read("state.json"))["homes"].keys() == {A, C}

    vps.homes(A, "", "::1", more="SEND_MAILS_TO=root\n")
    told = json.loads(vps.run("--json").stdout)
    assert [(each["index"], each["hostname"]) for each in told["homes"]] == [(0, A), (2, "::1")]
    assert [(event["event"], event["index"]) for event in told["events"]] == [("refused", 2)]
    (event,) = vps.spooled()
    assert (event["index"], event["label"]) == (2, "Home 2")
    assert vps.read("watch/2") == "nowhere: ::1\n"
    assert vps.homes("", B).run().stdout.endswith("1 home: 0 changed, 0 unresolved\n")
    assert names(vps.state / "watch") == {"1"}


def test_json(vps: Vps) -> None:
    vps.homes(A, "::1")
    done = vps.run("--json")
    told = json.loads(done.stdout)
    assert done.returncode == 3
    assert [(each["index"], each["hostname"]) for each in told["homes"]] == [(0, A), (1, "::1")]
    assert told["homes"][0]["ipv6"] == {"address": A, "addresses": [A]}
    assert told["homes"][1]["ipv6"]["trouble"] == "refused"
    assert [event["event"] for event in told["events"]] == ["refused"]


def test_help(vps: Vps) -> None:
    done = vps.run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("--json", "--conf", "--state", "exit status", "/etc/home-forwarder.conf"):
        assert text in done.stdout


def test_wrong_usage(vps: Vps) -> None:
    done = vps.run("--nonsense")
    assert done.returncode == 2
    assert not vps.state.exists()


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """One line, and nothing else."""
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("home-address-update: ")
    return done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "HOME_ADDRESS_COUNT must be the number of homes"),
        (b"HOME_ADDRESS_COUNT=2\nHOME_HOSTNAME_0=x.test\n", "there is no HOME_HOSTNAME_1"),
        (b"HOME_ADDRESS_COUNT=1\nnonsense\n", "line 2 is not KEY=value"),
        (b"HOME_ADDRESS_COUNT=1\nHOME_HOSTNAME_0=\xff\n", "decode byte 0xff"),
        (b"HOME_ADDRESS_COUNT=0\nUNRESOLVED_AFTER=soon\n", "UNRESOLVED_AFTER must be a number"),
        (b"HOME_ADDRESS_COUNT=1\nHOME_HOSTNAME_0=a\0b.test\n", "HOME_HOSTNAME_0"),
        (b"HOME_ADDRESS_COUNT=" + b"9" * 5000 + b"\n", "HOME_ADDRESS_COUNT"),
    ],
    ids=["empty", "home missing", "no setting", "no UTF-8", "no number", "NUL", "many digits"],
)
def test_wrong_conf(content: bytes, said: str, vps: Vps) -> None:
    """One clear error that names the file; state is kept (promise 7)."""
    vps.homes(A).run()
    vps.conf.write_bytes(content)
    before = {path: path.read_bytes() for path in vps.state.rglob("*") if path.is_file()}
    error = error_of(vps.run())
    assert f"{vps.conf}: " in error
    assert said in error
    assert {path: path.read_bytes() for path in vps.state.rglob("*") if path.is_file()} == before


def test_missing_conf(vps: Vps) -> None:
    assert f"{vps.conf} does not exist" in error_of(vps.run())


def test_conf_that_cannot_be_read(vps: Vps) -> None:
    """It is the configuration that is wrong, not the state."""
    vps.conf.mkdir()
    error = error_of(vps.run())
    assert str(vps.conf) in error
    assert "write" not in error


def test_state_that_cannot_be_written(vps: Vps) -> None:
    vps.homes(A)
    vps.state.write_text("a file where the directory should be")
    assert "cannot read or write the state" in error_of(vps.run())


def test_full_disk(vps: Vps) -> None:
    """Promise 7: the files of the last run stay as they were; a later run makes up for it."""
    vps.homes(A, B).run()
    before = {path: path.read_bytes() for path in vps.state.rglob("*") if path.is_file()}
    vps.homes(A, C)
    with disk_full_after(40):
        done = vps.run()
    assert "cannot read or write the state" in error_of(done)
    assert {path: path.read_bytes() for path in vps.state.rglob("*") if path.is_file()} == before
    assert vps.run().returncode == 0
    assert vps.read("watch/1") == f"{C}\n"


@pytest.mark.parametrize("name", ["address is no address", "since is huge", "half", "deep"])
def test_run_after_damage(name: str, vps: Vps) -> None:
    """Promise 7: a damaged state is in the way of one run at most."""
    vps.homes(A).run()
    (vps.state / "state.json").write_bytes(DAMAGED[name])
    done = vps.run()
    assert done.returncode == 0, done.stderr
    assert "is damaged" in done.stderr
    assert vps.run().stderr == ""


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"homes": {}}'])
def test_state_lost_while_dns_fails(content: bytes | None, vps: Vps) -> None:
    """Promises 1 and 2 without the state: what the relays start from is kept, and not written anew."""
    vps.homes(A, B).run()
    vps.conf.write_text(vps.conf.read_text().replace(B, "nas.invalid"))
    kept = [*vps.state.glob("home-address-*"), *vps.state.glob("watch/*")]
    before = {path: path.stat().st_ino for path in kept}
    (vps.state / "state.json").unlink()
    if content is not None:
        (vps.state / "state.json").write_bytes(content)
    done = vps.run()
    assert (done.returncode, f"keeping {B}" in done.stdout) == (3, True), done.stdout
    assert {path: path.stat().st_ino for path in before} == before
    assert json.loads(vps.read("state.json"))["homes"]["nas.invalid"]["ipv6"]["address"] == B
    assert vps.run().stderr == ""


def test_state_lost_and_a_home_moved(vps: Vps) -> None:
    """It is followed, and told, since the address that was in use is known."""
    vps.homes(B, more="SEND_MAILS_TO=root\n").run()
    (vps.state / "state.json").unlink()
    vps.homes(A, more="SEND_MAILS_TO=root\n").run()
    (event,) = vps.spooled()
    assert (event["event"], event["old"], event["new"]) == ("changed", B, A)
    assert vps.read("watch/0") == f"{A}\n"


@pytest.mark.parametrize(
    ("content", "is_readable"),
    [("", True), (f"HOME_IPV6_ADDRESS_0={C}\n", True), ("{", False), ("\0", False)],
)
def test_addresses_that_somebody_changed(content: str, is_readable: bool, vps: Vps) -> None:
    """What relays may have started from is mended, and the watcher has them start again."""
    vps.homes(A, B).run()
    inodes = [(vps.state / "watch" / name).stat().st_ino for name in ("0", "1")]
    (vps.state / "home-address-ipv6").write_text(f"{content}HOME_IPV6_ADDRESS_1={B}\n")
    assert vps.run().returncode == 0
    assert vps.read("home-address-ipv6") == f"HOME_IPV6_ADDRESS_0={A}\nHOME_IPV6_ADDRESS_1={B}\n"
    now = [(vps.state / "watch" / name).stat().st_ino for name in ("0", "1")]
    assert now[0] != inodes[0]
    assert (now[1] == inodes[1]) == is_readable
    assert vps.read("watch/0") == f"{A}\n"


@given(
    st.binary(max_size=80)
    | st.builds("HOME_IPV6_ADDRESS_0={}\n".format, st.sampled_from([A, V4]) | st.text()).map(
        lambda text: text.encode("utf-8", "replace")
    )
)
@example(b"HOME_IPV6_ADDRESS_0=::1%lo\n")
@example(b"HOME_IPV6_ADDRESS_0=x\0\n")
def test_any_bytes_as_addresses_in_use(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Promise 7: never an exception, and what is let through can be used."""
    directory = tmp_path_factory.getbasetemp()
    (directory / "home-address-ipv6").write_bytes(content)
    check_usable(updater.state_in_use(str(directory), [home()]))


def test_runs_at_once(vps: Vps) -> None:
    """Promise 7: two conf files by turns, eight runs: each file is a whole one, and they agree."""
    other = Vps(vps.conf.parent)
    other.conf = vps.conf.with_name("other.conf")
    vps.homes(A, B, C)
    other.homes(C, B, A)
    other.command[other.command.index("--conf") + 1] = str(other.conf)
    runs = [
        subprocess.Popen(each.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for each in (vps, other) * 4
    ]
    for run in runs:
        out, err = run.communicate(timeout=30)
        assert run.returncode == 0, err
        assert out.endswith("3 homes: 0 changed, 0 unresolved\n")
    assert set(json.loads(vps.read("state.json"))["homes"]) == {A, B, C}
    watched = [vps.read(f"watch/{index}").strip() for index in range(3)]
    assert watched in ([A, B, C], [C, B, A])
    assert vps.read("home-address-ipv6") == "".join(
        f"HOME_IPV6_ADDRESS_{index}={address}\n" for index, address in enumerate(watched)
    )
    assert not list(vps.state.rglob(".*"))


# ---- Python 3.9 --------------------------------------------------------------------------------


PROGRAMS = sorted(
    path
    for pattern in ("vps/usr/local/bin/*", "vps/usr/local/lib/home-forwarder/*")
    for path in REPO.glob(pattern)
    if path.is_file()
)
REMOTE = sorted((REPO / "home_forwarder" / "remote").glob("*.py"))


@pytest.mark.parametrize("path", [*PROGRAMS, *REMOTE], ids=lambda path: path.name)
def test_programs_of_a_vps_need_no_more_than_python_3_9(path: Path) -> None:
    """Debian 11 has it. Its grammar, its standard library, and no annotation that it evaluates."""
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    modules = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    beside = (
        {"home_forwarder"} if path in REMOTE else set()
    )  # it is sent in the place of its import
    assert modules <= sys.stdlib_module_names - {"tomllib"} | beside
    if "__future__" not in modules:
        evaluated = [
            node.returns if isinstance(node, ast.FunctionDef) else node.annotation
            for node in ast.walk(tree)
            if isinstance(node, ast.arg | ast.FunctionDef)
        ]
        words = {
            ast.unparse(each) for each in evaluated if not isinstance(each, ast.Constant | None)
        }
        assert words <= {"bool", "bytes", "float", "int", "str"}
    calls = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not calls & {"pairwise", "aclosing", "chdir", "batched", "bit_count", "ExceptionGroup"}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_programs_of_a_vps_can_be_started(path: Path) -> None:
    """Isolated from whatever else is installed, and allowed to."""
    assert path.read_text(encoding="utf-8").splitlines()[0] == "#!/usr/bin/python3 -IS"
    assert os.access(path, os.X_OK)


def test_observe_runs_on_an_older_python() -> None:
    """Only then can a deploy say that it is too old: it is of 3.7, with what is sent in its place."""
    source = sent_source_of("observe.py")
    tree = ast.parse(source, feature_version=(3, 7))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.NamedExpr)]
    of_the_module = [
        each
        for each in tree.body
        if not isinstance(each, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom)
    ]
    for each in of_the_module:  # types are not evaluated, but for those that stand by themselves
        assert not [node for node in ast.walk(each) if isinstance(node, ast.Subscript)]
    for later in ("removesuffix", "removeprefix", "math.prod", "shlex.join", "missing_ok", "cache"):
        assert later not in source
