# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a VPS reaches its homes and lets clients in: what is asked, and what is said of the answer."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from unit_remote import remote
from unit_samples import TCP, UDP, data

from home_forwarder.config import Config, load_config
from home_forwarder.planning import ADDRESSES
from home_forwarder.reach import (
    Reached,
    question,
    summary_of,
    suspects_of,
    troubles_of,
    warnings,
)
from home_forwarder.remote.reach import connect_all
from operations.from_here import DATAGRAMS, HEADERS, SIZE, judge
from operations.results import Results

WELL = {"address": "2001:db8::1", "at": "", "error": ""}
RANGE = {**TCP, "port": "8000-8010", "target_port": 9000, "listen": "4"}


def config_of(*forwards: dict[str, Any]) -> Config:
    return load_config(data(forwards=list(forwards)))


def reached(config: Config, **changes: object) -> Reached:
    """What a VPS answers where all is well, with some of it changed: "ways", "ports" by number."""
    asked = question(config)
    answer: dict[str, Any] = {
        "ways": [dict(WELL) for _ in asked["ways"]],  # type: ignore[attr-defined]
        "ports": [[] for _ in asked["ports"]],  # type: ignore[attr-defined]
        "own": ["203.0.113.1"],
        "root": True,
    }
    for key, value in changes.items():
        if isinstance(value, dict):
            for number, each in value.items():
                answer[key][number] = each
        else:
            answer[key] = value
    return Reached.from_json(answer)


def test_question() -> None:
    """Of a range the first and the last port; what several forwards lead to is tried once."""
    asked = question(config_of(TCP, {**TCP, "port": 8080, "target_port": 44444}, RANGE, UDP))
    assert asked["ways"] == [
        *((0, "tcp", 44444), (0, "tcp", 9000), (0, "tcp", 9010)),
        (1, "udp", 33333),
    ]
    assert asked["ports"] == [
        *((4, "tcp", 44444), (6, "tcp", 44444), (4, "tcp", 8080), (6, "tcp", 8080)),
        *((4, "tcp", 8000), (4, "tcp", 8010), (4, "udp", 33333), (6, "udp", 33333)),
    ]


@pytest.mark.parametrize(
    ("at", "error", "what", "remedy"),
    [
        ("address", "unknown", "no address of Fritz!Box at home (xxx.myfritz.net)", "AAAA record"),
        ("address", "unreadable", "could not be read without root", "log in as root"),
        ("route", "EADDRNOTAVAIL", "no IPv6 address of its own", "switch IPv6 on"),
        ("route", "EAFNOSUPPORT", "no IPv6 address of its own", "switch IPv6 on"),
        ("route", "ENETUNREACH", "no route to Fritz!Box at home, [2001:db8::1]", "default route"),
        ("connect", "ECONNREFUSED", "[2001:db8::1]:44444, refuses", "listen on tcp port 44444"),
        ("connect", "ETIMEDOUT", "does not answer within 3 s", "switched on"),
        ("connect", "EHOSTUNREACH", "within 3 s (no route to host)", "switched on"),
        ("connect", "EACCES", "is forbidden by a firewall on the way", "home's router"),
    ],
)
def test_what_is_in_the_way_to_a_home(at: str, error: str, what: str, remedy: str) -> None:
    """Promise 18: kinds that an admin does different things about, told apart."""
    config = config_of(TCP, UDP)
    answer = reached(config, ways={0: {"address": "2001:db8::1", "at": at, "error": error}})
    ((seen, to_do),) = troubles_of(config, answer, config.forwards[0])
    assert what in seen
    assert remedy in to_do
    assert troubles_of(config, answer, config.forwards[1]) == []
    (warning,) = warnings(config, answer)
    assert warning == f"tcp 44444: {seen}; {to_do}"
    assert summary_of(config, answer).startswith("for udp 33333 there is a route")


def test_what_forwards_have_in_common_is_said_once() -> None:
    config = config_of(*({**TCP, "port": 8000 + number} for number in range(20)))
    rule = {"what": "drop", "who": "nft", "where": "table inet filter, chain input", "sure": True}
    off = {"address": "2001:db8::1", "at": "route", "error": "EADDRNOTAVAIL"}
    answer = reached(
        config, ways=dict.fromkeys(range(20), off), ports={number: [rule] for number in range(40)}
    )
    first, second = warnings(config, answer)
    assert "tcp 8000, tcp 8001" in first
    assert "and 12 more: this VPS has no IPv6" in first
    assert "over IPv4 and IPv6; to mend it, in that chain" in second
    assert summary_of(config, answer) == ""


@pytest.mark.parametrize(
    ("findings", "root", "says"),
    [
        (
            [],
            True,
            ["a firewall of the provider, since nothing on the VPS is seen to drop it: let"],
        ),
        ([], False, ["a firewall; whose is not seen without root: let tcp 44444 in"]),
        ([("drop", "nft", True)], True, ["surely nft, t, drops what clients send over IPv4; to"]),
        (
            [("drop", "ufw", True)],
            True,
            ["surely ufw (t) drops what clients send over IPv4; to mend"],
        ),
        (
            [("drop", "firewalld", False)],
            True,
            ["perhaps firewalld (t) drops", "a firewall of the provider: let tcp 44444 in there"],
        ),
        ([("taken", "iptables", True)], True, ["surely iptables, t, takes away what clients send"]),
        (
            [("some", "iptables", False)],
            True,
            ["perhaps iptables, t, drops", "a firewall of the pro"],
        ),
    ],
)
def test_suspects(findings: list[tuple[str, str, bool]], root: bool, says: list[str]) -> None:
    """Who may have dropped it: as far as that is seen on the VPS."""
    config = config_of(TCP)
    seen = [{"what": what, "who": who, "where": "t", "sure": sure} for what, who, sure in findings]
    lines = suspects_of(config, reached(config, ports={0: seen}, root=root), config.forwards[0], 4)
    assert len(lines) == len(says)
    for line, begin in zip(lines, says, strict=True):
        assert line.startswith(begin)


def test_an_answer_of_another_shape_is_refused() -> None:
    with pytest.raises(TypeError):
        Reached.from_json({"ways": [1], "ports": [], "own": [], "root": True})


def test_the_program(tmp_path: Path) -> None:
    """reach.py for real: open, closed, no address; a port that several lead to is tried once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            known = tmp_path / "known"
            known.write_text("HOME_IPV6_ADDRESS_3=127.0.0.1\n")
            asked = {
                "addresses": [str(known), ADDRESSES[1]],
                "seconds": 3,
                "ways": [
                    *([3, "tcp", port], [3, "tcp", closed.getsockname()[1]]),
                    *([3, "udp", 9], [4, "tcp", port]),
                ],
                "ports": [[4, "tcp", port]],
            }
            answer = remote("reach.py", json.dumps(asked))
    seen = Reached.from_json(answer)
    assert [(way.at, way.error) for way in seen.ways] == [
        *(("", ""), ("connect", "ECONNREFUSED"), ("", ""), ("address", "unknown")),
    ]
    assert len(seen.ports) == 1


def test_who_does_not_answer_is_waited_for_together() -> None:
    """A full backlog takes no connection; 200 of them take no longer than one."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = ("127.0.0.1", server.getsockname()[1])
        with socket.create_connection(address):
            results = connect_all([address] * 200, 0.5)
    assert results.count("ETIMEDOUT") > 190


EACH = SIZE + HEADERS[4]


@pytest.mark.parametrize(
    ("noise", "burst", "outcome"),
    [
        ((0, 0), (DATAGRAMS, DATAGRAMS * EACH), "reached"),
        ((0, 0), (DATAGRAMS + 2, DATAGRAMS * EACH + 120), "reached"),
        ((0, 0), (2, 2 * EACH), "reached"),
        ((0, 0), (0, 0), "dropped"),
        ((0, 0), (2, EACH - 1), "dropped"),
        ((9, 900), (0, 0), "dropped"),
        ((9, 900), (DATAGRAMS, DATAGRAMS * EACH), "unsure"),
        ((0, 0), (2, 2 * EACH + 1), "unsure"),
        ((0, 0), (-3, -300), "unsure"),
    ],
)
def test_udp_is_believed_only_where_nothing_else_came_in(
    noise: tuple[int, int], burst: tuple[int, int], outcome: str
) -> None:
    """«Not proven» is no success."""
    start = (1000, 100_000)
    quiet = (start[0] - noise[0], start[1] - noise[1])
    after = (start[0] + burst[0], start[1] + burst[1])
    assert judge((quiet, start), (start, after), 4)[0] == outcome
    assert judge((None, start), (start, after), 4)[0] == "unsure"
    assert judge((quiet, start), (start, None), 4)[0] == "unsure"


def test_the_line_at_the_end() -> None:
    """Promise 18: «as declared» alone is not called well."""
    groups = {"": "as declared", "reach": "reached"}
    results = Results(["vps1", "vps2", "vps3"])
    for name in ("vps1", "vps2"):
        results.add(name, "", "passed")
    results.add("vps1", "reach", "skipped", "no IPv6")
    results.add("vps2", "reach", "passed")
    results.add("vps3", "reach", "failed")
    results.add("vps3", "reach", "skipped", "no IPv6")
    assert list(results.lines(groups, {"reach": "--x would"})) == [
        ("vps1: as declared: yes (1 of 1) | reached: 1 not seen: no IPv6", False),
        ("vps2: as declared: yes (1 of 1) | reached: yes (1 of 1)", True),
        (
            "vps3: as declared: not tried | reached: NO, 1 of 2 failed, 1 not seen: no IPv6",
            False,
        ),
    ]
