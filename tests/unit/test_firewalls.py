# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a client's first packet by the rules of a VPS, as its tools list them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from unit_remote import tools

from home_forwarder.remote import firewalls
from home_forwarder.remote.firewalls import Packet, findings

SSH, TCP, UDP = ("tcp", 22), ("tcp", 44444), ("udp", 44444)

# What ufw 0.36.2 of Debian makes of `ufw allow 22/tcp`, without what is not called for input.
UFW = """\
*filter
:INPUT DROP [0:0]
:ufw-after-input - [0:0]
:ufw-before-input - [0:0]
:ufw-logging-deny - [0:0]
:ufw-not-local - [0:0]
:ufw-skip-to-policy-input - [0:0]
:ufw-user-input - [0:0]
-A INPUT -j ufw-before-input
-A INPUT -j ufw-after-input
-A ufw-after-input -p udp -m udp --dport 137 -j ufw-skip-to-policy-input
-A ufw-after-input -m addrtype --dst-type BROADCAST -j ufw-skip-to-policy-input
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j ufw-logging-deny
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-input -p udp -m udp --sport 67 --dport 68 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j ufw-logging-deny
-A ufw-not-local -j DROP
-A ufw-skip-to-policy-input -j DROP
-A ufw-user-input -p tcp -m tcp --dport 22 -m comment --comment "a -j DROP in words" -j ACCEPT
COMMIT
"""
DOCKER = """\
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 44444 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:INPUT ACCEPT [0:0]
COMMIT
"""
FAIL2BAN = """\
*filter
:INPUT ACCEPT [0:0]
:f2b-sshd - [0:0]
-A INPUT -p tcp -m multiport --dports 22,44444:44450 -j f2b-sshd
-A f2b-sshd -s 198.51.100.9/32 -j REJECT --reject-with icmp-port-unreachable
-A f2b-sshd -j RETURN
COMMIT
"""


def chain(name: str, hook: str = "", policy: str = "accept", **more: str) -> dict[str, Any]:
    """As nft lists it."""
    based = {"type": "filter", "hook": hook, "prio": 0, "policy": policy} if hook else {}
    return {"chain": {"family": "inet", "table": "t", "name": name, **based, **more}}


def rule(of: str, *expressions: dict[str, Any], table: str = "t") -> dict[str, Any]:
    return {"rule": {"family": "inet", "table": table, "chain": of, "expr": list(expressions)}}


def match(left: dict[str, Any], right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def dport(protocol: str, ports: object) -> dict[str, Any]:
    return match({"payload": {"protocol": protocol, "field": "dport"}}, ports)


def meta(key: str, value: object, op: str = "==") -> dict[str, Any]:
    return match({"meta": {"key": key}}, value, op)


ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}
ESTABLISHED = match({"ct": {"key": "state"}}, ["established", "related"], "in")
BANNED = match({"meta": {"key": "mark"}}, 7)
"""A condition that is not understood."""
CLOSED = chain("input", "input", "drop")
OPEN = chain("input", "input")
# What firewalld 1.3.3 makes of the zone public with ssh, in short.
FIREWALLD = [
    json.loads(json.dumps(entry).replace('"t"', '"firewalld"'))
    for entry in (
        chain("filter_INPUT", "input"),
        chain("ZONES"),
        chain("public"),
        chain("public_allow"),
        rule("filter_INPUT", ESTABLISHED, ACCEPT),
        rule("filter_INPUT", match({"ct": {"key": "status"}}, "dnat", "in"), ACCEPT),
        rule("filter_INPUT", meta("iifname", "lo"), ACCEPT),
        rule("filter_INPUT", {"jump": {"target": "ZONES"}}),
        rule("filter_INPUT", {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}),
        rule("ZONES", {"goto": {"target": "public"}}),
        rule("public", {"jump": {"target": "public_allow"}}),
        rule("public", meta("l4proto", {"set": ["icmp", "ipv6-icmp"]}), ACCEPT),
        rule("public", {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}),
        rule("public_allow", dport("tcp", 22), ACCEPT),
    )
]
SURELY, PERHAPS = ("drop", True), ("drop", False)
TAKEN = ("taken", True)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([], {}, id="no rules"),
        pytest.param([OPEN], {}, id="policy accept"),
        pytest.param([CLOSED], {SSH: SURELY, TCP: SURELY, UDP: SURELY}, id="policy drop"),
        pytest.param(
            [CLOSED, rule("input", ESTABLISHED, ACCEPT), rule("input", dport("tcp", 22), ACCEPT)],
            {TCP: SURELY, UDP: SURELY},
            id="a port is let in",
        ),
        pytest.param(
            [CLOSED, rule("input", dport("tcp", {"set": [22, {"range": [44000, 45000]}]}), ACCEPT)],
            {UDP: SURELY},
            id="a set with a range is let in",
        ),
        pytest.param(
            [CLOSED, rule("input", dport("th", 44444), {"counter": {}}, ACCEPT)],
            {SSH: SURELY},
            id="either protocol",
        ),
        pytest.param(
            [OPEN, rule("input", {"log": None}, dport("udp", 44444), DROP)],
            {UDP: SURELY},
            id="one port is dropped",
        ),
        pytest.param(
            [OPEN, rule("input", dport("tcp", 44444), {"reject": None})],
            {TCP: SURELY},
            id="one port is refused",
        ),
        pytest.param(
            [CLOSED, rule("input", meta("l4proto", "tcp"), ACCEPT)], {UDP: SURELY}, id="l4proto"
        ),
        pytest.param(
            [CLOSED, rule("input", meta("iifname", "lo", "!="), ACCEPT)], {}, id="all but lo"
        ),
        pytest.param([CLOSED, rule("input", ACCEPT), rule("input", DROP)], {}, id="in their order"),
        pytest.param(
            [CLOSED, rule("input", BANNED, ACCEPT)],
            {SSH: PERHAPS, TCP: PERHAPS, UDP: PERHAPS},
            id="some clients are let in",
        ),
        pytest.param(
            [OPEN, rule("input", BANNED, DROP)],
            dict.fromkeys((SSH, TCP, UDP), ("some", False)),
            id="some clients are banned",
        ),
        pytest.param(
            [
                CLOSED,
                {"set": {"family": "inet", "table": "t", "name": "open", "elem": [22, 44444]}},
                rule("input", dport("tcp", "@open"), ACCEPT),
            ],
            {UDP: SURELY},
            id="a named set",
        ),
        pytest.param(
            [
                CLOSED,
                rule(
                    "input",
                    {
                        "vmap": {
                            "key": {"ct": {"key": "state"}},
                            "data": {"set": [["established", ACCEPT], ["invalid", DROP]]},
                        }
                    },
                ),
                rule(
                    "input",
                    {
                        "vmap": {
                            "key": {"payload": {"protocol": "udp", "field": "dport"}},
                            "data": {"set": [[53, DROP], [44444, ACCEPT]]},
                        }
                    },
                ),
            ],
            {SSH: SURELY, TCP: SURELY},
            id="maps of verdicts",
        ),
        pytest.param(
            [CLOSED, rule("input", {"xt": {"type": "match", "name": "bpf"}}, ACCEPT)],
            {SSH: PERHAPS, TCP: PERHAPS, UDP: PERHAPS},
            id="what nft itself cannot show",
        ),
        pytest.param(
            [CLOSED, rule("input", {"jump": {"target": "input"}})],
            {SSH: PERHAPS, TCP: PERHAPS, UDP: PERHAPS},
            id="chains that go round",
        ),
        pytest.param(FIREWALLD, {TCP: SURELY, UDP: SURELY}, id="firewalld"),
        pytest.param(
            [
                chain("pre", "prerouting", type="nat"),
                rule("pre", dport("tcp", 44444), {"dnat": {"addr": "192.0.2.9", "port": 80}}),
            ],
            {TCP: TAKEN},
            id="DNAT",
        ),
        pytest.param(
            [OPEN, chain("out", "output", "drop"), chain("forward", "forward", "drop")],
            {},
            id="other hooks",
        ),
    ],
)
def test_nft(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    entries: list[dict[str, Any]],
    expected: dict[tuple[str, int], tuple[str, bool]],
) -> None:
    """Promise 18: nothing is claimed that is not sure."""
    listed = json.dumps({"nftables": [{"metainfo": {"version": "1.1.3"}}, *entries]})
    monkeypatch.setenv("PATH", tools(tmp_path, nft=listed + "\n")["PATH"])
    monkeypatch.setattr(firewalls, "outward", set)
    for family in (4, 6):
        assert seen(family) == expected


def seen(family: int) -> dict[tuple[str, int], tuple[str, bool]]:
    """What is found for each of some packets; at most one thing."""
    packets = [Packet(family, *each) for each in (SSH, TCP, UDP)]
    found = {}
    for packet, each in zip(packets, findings(packets), strict=True):
        assert len(each) < 2
        for finding in each:
            found[packet.protocol, packet.port] = (finding["what"], finding["sure"])
    return found


@pytest.mark.parametrize(
    ("listed", "ufw", "expected", "who"),
    [
        (UFW, "Status: active\n", {TCP: SURELY, UDP: SURELY}, "ufw"),
        (UFW, "Status: inactive\n", {TCP: SURELY, UDP: SURELY}, "iptables"),
        (UFW.replace("--dport 22", "--dport 44444"), "", {SSH: SURELY, UDP: SURELY}, "iptables"),
        (UFW.replace(":INPUT DROP", ":INPUT ACCEPT"), "", {}, ""),
        (DOCKER, "", {TCP: TAKEN}, "iptables"),
        (FAIL2BAN, "", {SSH: ("some", False), TCP: ("some", False)}, "iptables"),
        (FAIL2BAN.replace("-s 198.51.100.9/32 ", ""), "", {SSH: SURELY, TCP: SURELY}, "iptables"),
        ("*filter\n:INPUT DROP\n-A INPUT ! -p udp -j ACCEPT\n", "", {UDP: SURELY}, "iptables"),
        ("*filter\n:INPUT DROP\n-A INPUT ! -i lo -j ACCEPT\n", "", {}, ""),
        (
            "*filter\n:INPUT DROP\n-A INPUT -m recent --set -j ACCEPT\n",
            "",
            {SSH: PERHAPS, TCP: PERHAPS, UDP: PERHAPS},
            "iptables",
        ),
        ("", "", {}, ""),
        ("no rules\n-A INPUT\n", "", {}, ""),
    ],
)
def test_iptables(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    listed: str,
    ufw: str,
    expected: dict[tuple[str, int], tuple[str, bool]],
    who: str,
) -> None:
    """Of IPv4 only; ufw is called by its name where it is active."""
    # What nft says of the same rules is left out.
    chains = [{"chain": {**CLOSED["chain"], "family": "ip", "table": "filter", "name": "INPUT"}}]
    nft = json.dumps({"nftables": chains if "*filter" in listed else []})
    path = tools(tmp_path, iptables_save=listed, ufw=ufw, nft=nft + "\n")["PATH"]
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr(firewalls, "outward", lambda: {"eth0"})
    assert seen(4) == expected
    assert seen(6) == {}
    (found,) = findings([Packet(4, *UDP)])
    assert not found or found[0]["who"] == who


@pytest.mark.parametrize(
    ("outward", "interface", "expected"),
    [
        (set(), "lo", False),
        (set(), "eth0", None),
        ({"eth0"}, "eth0", True),
        ({"eth0"}, "lo", False),
        ({"eth0"}, "wg0", False),
        ({"eth0"}, "e*", None),
    ],
)
def test_clients_come_in_where_the_default_route_goes_out(
    monkeypatch: pytest.MonkeyPatch, outward: set[str], interface: str, expected: bool | None
) -> None:
    monkeypatch.setattr(firewalls, "outward", lambda: outward)
    assert firewalls.comes_by(interface) is expected
