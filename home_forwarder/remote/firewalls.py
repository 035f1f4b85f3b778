# SPDX-License-Identifier: GPL-3.0-or-later
"""Part of programs that are sent to a VPS: what becomes of a client's first packet here. Standard
library of Python 3.9.

The rules of nft and iptables are read, not tried, so of each outcome it is said whether it is sure: a
rule with a condition that is not understood here makes everything after it unsure.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Optional

FAMILIES = {"inet": (4, 6), "ip": (4,), "ip6": (6,)}
IPTABLES = {"iptables-save": 4, "ip6tables-save": 6}
IPTABLES_TABLES = ("filter", "nat", "mangle", "raw", "security")
HOOKS = ("input", "prerouting")
DEEPEST = 16
"""Chains that call one another; nft allows 16."""
SECONDS = 5
"""For a tool to list its rules."""


class Packet(NamedTuple):
    """The first one of a client: family 4 or 6, protocol tcp or udp, port."""

    family: int
    protocol: str
    port: int


class Rule(NamedTuple):
    """One rule, as it is for a packet. match: None if that cannot be told. verdict: accept, drop, taken,
    return, jump, goto, ? for one that is not understood, or empty for one that lets it go on."""

    match: Optional[bool]  # noqa: UP045 - evaluated by Python 3.9
    verdict: str
    to: str = ""


class Chain(NamedTuple):
    """hook: in small letters, empty if others call it. policy: accept or drop."""

    hook: str
    policy: str
    rules: list[Any]


def both(*matches: bool | None) -> bool | None:
    """All of these."""
    if False in matches:
        return False
    return None if None in matches else True


def opposite(match: bool | None) -> bool | None:
    return None if match is None else not match


def said(*command: str) -> str:
    """What a tool prints; nothing if it fails or is not there."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.decode(errors="replace")


# ---- Rulesets --------------------------------------------------------------------------------


class Table:
    """A table of rules: what the tool calls it, the families that it is for, its chains by name."""

    def __init__(self, tool: str, name: str, families: tuple[int, ...]) -> None:
        self.tool = tool
        self.name = name
        self.families = families
        self.chains: dict[str, Chain] = {}
        self.sets: dict[str, Any] = {}

    def read(self, rule: Any, packet: Packet) -> Rule:
        if self.tool == "nft":
            return nft_rule(rule, packet, self.sets)
        return iptables_rule(rule, packet, self.chains)

    def fates(self, chain: str, packet: Packet, depth: int = 0) -> dict[str, str]:
        """What may become of a packet in a chain, each with the chain in which it does.

        The verdicts of a rule; "" is that it comes out at the end; "some" that a rule drops it under a
        condition, and others not. Of the rest, more than one means that none is sure.
        """
        found: dict[str, str] = {}
        if depth > DEEPEST or chain not in self.chains:
            return {"?": chain, "": chain}
        for each in self.chains[chain].rules:
            rule = self.read(each, packet)
            if rule.match is False or not rule.verdict:
                continue
            if rule.verdict in ("jump", "goto"):
                outcomes = self.fates(rule.to, packet, depth + 1)
            else:
                outcomes = {"" if rule.verdict == "return" else rule.verdict: chain}
            if rule.match is None and "drop" in outcomes:  # an address that is banned, a limit
                outcomes["some"] = outcomes.pop("drop")
            goes_on = rule.verdict == "?" or (rule.verdict == "jump" and "" in outcomes)
            found.update(
                {
                    key: where
                    for key, where in outcomes.items()
                    if (key or not goes_on) and key not in found
                }
            )
            if rule.match and not goes_on:
                return found
        found[""] = chain
        return found


def nft_tables(listed: str) -> list[Table]:
    """listed: what `nft -j list ruleset` prints."""
    try:
        entries = json.loads(listed or "{}").get("nftables", [])
    except ValueError:
        return []
    tables: dict[tuple[str, str], Table] = {}
    for entry in entries:
        for kind, each in entry.items():
            if kind not in ("chain", "rule", "set") or each["family"] not in FAMILIES:
                continue
            place = (each["family"], each["table"])
            table = tables.setdefault(place, Table("nft", " ".join(place), FAMILIES[place[0]]))
            if kind == "chain":
                of_filter = each.get("type") in ("filter", "nat")
                hook = each.get("hook", "") if of_filter else ""
                table.chains[each["name"]] = Chain(hook, each.get("policy", "accept"), [])
            elif kind == "set":
                table.sets["@" + each["name"]] = each.get("elem", [])
            elif each["chain"] in table.chains:
                table.chains[each["chain"]].rules.append(each["expr"])
    return list(tables.values())


def iptables_tables(listed: str, family: int) -> list[Table]:
    """listed: what iptables-save or ip6tables-save prints."""
    tables: list[Table] = []
    for line in listed.splitlines():
        if line.startswith("*"):
            name = line[1:].strip()
            tables.append(Table("iptables" if family == 4 else "ip6tables", name, (family,)))
        elif line.startswith(":") and tables:
            name, policy = line[1:].split()[:2]
            hook = name.lower() if name in ("INPUT", "PREROUTING") else ""
            tables[-1].chains[name] = Chain(hook, "drop" if policy == "DROP" else "accept", [])
        elif line.startswith("-A ") and tables:
            words = shlex.split(line)
            if words[1] in tables[-1].chains:
                tables[-1].chains[words[1]].rules.append(words[2:])
    return tables


def is_of_iptables(table: Table) -> bool:
    """A table of nft that iptables has made; iptables itself says more of it."""
    family, _, name = table.name.partition(" ")
    return family != "inet" and name in IPTABLES_TABLES and all(map(str.isupper, hooked(table)))


def hooked(table: Table) -> list[str]:
    return [name for name, chain in table.chains.items() if chain.hook]


# ---- What one rule says of a packet -------------------------------------------------------------


def nft_rule(expressions: list[dict[str, Any]], packet: Packet, sets: dict[str, Any]) -> Rule:
    """libnftables-json(5)."""
    match: bool | None = True
    for expression in expressions:
        for key, value in expression.items():
            if key == "match":
                match = both(match, nft_match(value, packet, sets))
            elif key in ("accept", "drop", "return"):
                return Rule(match, key)
            elif key == "reject":
                return Rule(match, "drop")
            elif key in ("dnat", "redirect", "tproxy"):
                return Rule(match, "taken")
            elif key in ("jump", "goto"):
                return Rule(match, key, value["target"])
            elif key == "vmap":
                return nft_map(match, value, packet, sets)
            elif key in ("xt", "queue", "fwd", "dup", "synproxy"):
                return Rule(match, "?")
            elif key not in ("counter", "log", "mangle", "notrack", "ct helper", "flow"):
                match = both(match, None)  # limit, and what else there may be
    return Rule(match, "")


def nft_map(match: bool | None, vmap: dict[str, Any], packet: Packet, sets: dict[str, Any]) -> Rule:
    """A map of verdicts: that of the first entry that fits."""
    data = vmap["data"]
    for key, verdict in data.get("set", []) if isinstance(data, dict) else []:
        fits = nft_match({"op": "==", "left": vmap["key"], "right": key}, packet, sets)
        if fits is None:
            return Rule(None, "?")
        if fits:
            return nft_rule([verdict], packet, sets)._replace(match=match)
    return Rule(match, "") if isinstance(data, dict) else Rule(None, "?")


def nft_match(match: dict[str, Any], packet: Packet, sets: dict[str, Any]) -> bool | None:
    """Does one condition hold for the packet?"""
    left, right = match["left"], match["right"]
    values = sets.get(right, right) if isinstance(right, str) else right
    if not isinstance(left, dict):
        return None
    ((kind, what),) = left.items()
    found: bool | None = None
    if kind == "payload" and isinstance(what, dict):
        protocol, name = what.get("protocol"), what.get("field")
        if protocol in ("tcp", "udp", "th") and name == "dport":
            found = both(protocol in (packet.protocol, "th"), is_in(packet.port, values))
        elif protocol in ("ip", "ip6"):
            if protocol != ("ip" if packet.family == 4 else "ip6"):
                return False
            found = is_in(packet.protocol, values) if name in ("protocol", "nexthdr") else None
        elif protocol in ("tcp", "udp"):
            return False if protocol != packet.protocol else None
        elif protocol in ("icmp", "icmpv6", "sctp", "dccp", "esp", "ah", "igmp"):
            return False
    elif kind == "meta":
        key = what.get("key")
        if key == "l4proto":
            found = is_in(packet.protocol, values)
        elif key == "nfproto":
            found = is_in(f"ipv{packet.family}", values)
        elif key == "protocol":
            found = is_in("ip" if packet.family == 4 else "ip6", values)
        elif key in ("iif", "iifname"):
            found = comes_by(values) if isinstance(values, str) else None
    elif kind == "ct":
        if what.get("key") == "state":
            found = is_in("new", values)
        elif what.get("key") == "status":
            found = False  # dnat and its like
    elif kind == "fib" and what.get("result") == "type":
        found = is_in("local", values)
    return opposite(found) if match["op"] == "!=" else found


@lru_cache
def outward() -> set[str]:
    """The interfaces with a default route."""
    found = set()
    for path, zeros, position in (("route", "0" * 8, 1), ("ipv6_route", "0" * 32, 0)):
        try:
            with open(f"/proc/net/{path}") as file:
                lines = [line.split() for line in file]
        except OSError:
            continue
        for words in lines:
            name = words[0] if position else words[-1]
            is_default = words[position] == zeros and words[7 if position else 1].strip("0") == ""
            if is_default and name != "lo":
                found.add(name)
    return found


def comes_by(interface: str) -> bool | None:
    """Does a client come in by this one? None if it is not known by which."""
    names = outward()
    if interface == "lo" or interface in names:
        return interface != "lo"
    return False if names and not interface.endswith(("*", "+")) else None


def is_in(value: int | str, values: Any) -> bool | None:
    """Is a value one of these? None if that cannot be told."""
    if isinstance(values, list):
        each = [is_in(value, one) for one in values]
        return True if True in each else None if None in each else False
    if isinstance(values, dict):
        ((kind, what),) = values.items()
        if kind == "set":
            return is_in(value, what)
        if kind == "range" and all(isinstance(end, int) for end in (value, *what)):
            return bool(what[0] <= value <= what[1])
        if kind == "elem":
            return is_in(value, what.get("val"))
        return None
    if isinstance(values, str) and values.startswith("@"):
        return None
    return bool(value == values)


def iptables_rule(words: list[str], packet: Packet, chains: dict[str, Chain]) -> Rule:
    """iptables(8), iptables-extensions(8)."""
    match: bool | None = True
    negated = False
    rest = list(words)
    while rest:
        option = rest.pop(0)
        if option == "!":
            negated = True
            continue
        if option in ("-j", "-g"):
            target = rest.pop(0) if rest else ""
            return Rule(match, *iptables_verdict(option, target, chains))
        values = []
        while rest and not (rest[0].startswith("-") or rest[0] == "!"):
            values.append(rest.pop(0))
        if option == "--comment":
            continue
        holds = iptables_match(option, values[0] if values else "", packet, negated)
        match = both(match, opposite(holds) if negated else holds)
        negated = False
    return Rule(match, "")


def iptables_verdict(option: str, target: str, chains: dict[str, Chain]) -> tuple[str, str]:
    if target in chains:
        return ("jump" if option == "-j" else "goto"), target
    verdicts = {
        "ACCEPT": "accept",
        "DROP": "drop",
        "REJECT": "drop",
        "RETURN": "return",
        "DNAT": "taken",
        "REDIRECT": "taken",
        "TPROXY": "taken",
        "NFQUEUE": "?",
    }
    return verdicts.get(target, ""), ""


def iptables_match(option: str, value: str, packet: Packet, negated: bool) -> bool | None:
    if option == "-m":
        return True  # its own options follow; those that are not known make it unsure
    if option in ("-p", "--protocol"):
        return value in ("all", packet.protocol)
    if option in ("--dport", "--destination-port", "--dports"):
        for each in value.split(","):
            first, _, last = each.partition(":")
            if not (first + last).isdecimal():
                return None
            if int(first) <= packet.port <= int(last or first):
                return True
        return False
    if option in ("--ctstate", "--state"):
        return "NEW" in value.split(",")
    if option == "-i":
        # A client comes from outside: not from lo, and hardly from what a rule excludes.
        return False if negated else comes_by(value)
    if option == "--dst-type":
        return value == "LOCAL"
    if option == "--syn":
        return packet.protocol == "tcp"
    return None


# ---- What is found ---------------------------------------------------------------------------


def all_tables() -> Iterator[Table]:
    of_iptables = [
        table for tool, family in IPTABLES.items() for table in iptables_tables(said(tool), family)
    ]
    yield from of_iptables
    for table in nft_tables(said("nft", "-j", "list", "ruleset")):
        if not (of_iptables and is_of_iptables(table)):
            yield table


def owner_of(table: Table, has_ufw: bool) -> str:
    """Whose rules these are: what an admin works with."""
    if table.name == "inet firewalld":
        return "firewalld"
    return "ufw" if has_ufw and table.name == "filter" else table.tool


def findings(packets: list[Packet]) -> list[list[dict[str, Any]]]:
    """What on this VPS drops each of these packets, or takes it elsewhere.

    "what": drop, taken, or some if it is dropped under a condition. "who": nft, iptables, ip6tables, ufw,
    firewalld. "where": its table and chain. "sure": nothing before lets it in, as far as is understood.
    """
    tables = list(all_tables())
    has_ufw = "Status: active" in said("ufw", "status")
    found: list[list[dict[str, Any]]] = []
    for packet in packets:
        found.append([])
        for table in (table for table in tables if packet.family in table.families):
            for name in hooked(table):
                chain = table.chains[name]
                fates = table.fates(name, packet) if chain.hook in HOOKS else {}
                if "" in fates:  # it came to the end
                    fates.setdefault(chain.policy, fates.pop(""))
                found[-1] += [
                    {
                        "what": what,
                        "who": owner_of(table, has_ufw),
                        "where": f"table {table.name}, chain {fates[what]}",
                        "sure": set(fates) - {"some"} == {what},
                    }
                    for what in ("taken", "drop", "some")
                    if what in fates
                ]
    return found
