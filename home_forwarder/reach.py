# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a VPS reach its homes, and would it let clients in? What to ask it, and what to say of the answer.

home_forwarder/remote/reach.py looks. Of a range of ports the first and the last are tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from home_forwarder.compare import made
from home_forwarder.config import Config
from home_forwarder.parts.addresses import Home
from home_forwarder.parts.forwards import Forward
from home_forwarder.plan import some_of
from home_forwarder.planning import ADDRESSES

SECONDS = 3
"""For all homes together; a lost packet is sent again after 1 s."""


@dataclass(frozen=True)
class SeenWay:
    """A connection from the VPS to a home."""

    address: str
    at: str
    """Where it failed: "address" (none is known), "route" (nothing could be sent), "connect"; "" if it
    did not."""
    error: str
    """ECONNREFUSED and its like, ETIMEDOUT if there was no answer in time."""


@dataclass(frozen=True)
class Finding:
    """Rules of the VPS that a client's first packet meets."""

    what: str
    """drop; taken if they send it elsewhere; some if they drop it under a condition."""
    who: str
    """nft, iptables, ip6tables, ufw or firewalld."""
    where: str
    sure: bool
    """It is certain that they do, and not only possible."""


@dataclass(frozen=True)
class Reached:
    """What the VPS has answered to question(); its lists are in the order of ways_of() and ports_of()."""

    ways: tuple[SeenWay, ...]
    ports: tuple[tuple[Finding, ...], ...]
    own: tuple[str, ...]
    """Its addresses, those of loopback and link left out."""
    root: bool
    """Nobody else sees the rules."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reached:
        """From what a VPS answered. Raises: TypeError if it is of another shape."""
        reached: Reached = made(cls, data)
        return reached


def name_of(forward: Forward) -> str:
    """How people call a forward: tcp 44444."""
    only = "" if forward.listen == "46" else f" (IPv{forward.listen})"
    return f"{forward.protocol} {forward.port}{only}"


def ends_of(forward: Forward) -> list[int]:
    """The ports of it that are tried."""
    return sorted({forward.port.first, forward.port.last})


def ways_of(config: Config) -> list[tuple[int, str, int]]:
    """What is tried from the VPS: INDEX of the home, protocol, port there; each once."""
    return list(dict.fromkeys(way for forward in config.forwards for way in _ways(config, forward)))


def ports_of(config: Config) -> list[tuple[int, str, int]]:
    """Where clients come in: family, protocol, port."""
    return [port for forward in config.forwards for port in _ports(forward)]


def question(config: Config) -> dict[str, object]:
    """What home_forwarder/remote/reach.py is asked."""
    return {
        "addresses": ADDRESSES,
        "seconds": SECONDS,
        "ways": ways_of(config),
        "ports": ports_of(config),
    }


def _ways(config: Config, forward: Forward) -> list[tuple[int, str, int]]:
    index = config.index_of[forward.home]
    return [(index, forward.protocol, forward.target_of(port)) for port in ends_of(forward)]


def _ports(forward: Forward) -> list[tuple[int, str, int]]:
    return [
        (int(family), forward.protocol, port)
        for family in forward.listen
        for port in ends_of(forward)
    ]


# ---- From the VPS to a home ------------------------------------------------------------------

Trouble = tuple[str, str]
"""What is wrong, and what to do about it."""


def troubles_of(config: Config, reached: Reached, forward: Forward) -> list[Trouble]:
    """Why a forward does not reach its home; empty if it does."""
    home = config.numbered[config.index_of[forward.home]]
    seen = dict(zip(ways_of(config), reached.ways, strict=True))
    ways = _ways(config, forward)
    return list(dict.fromkeys(_trouble(home, way, seen[way]) for way in ways if seen[way].at))


def _trouble(home: Home, way: tuple[int, str, int], seen: SeenWay) -> Trouble:
    """In words. Source of what the errors mean: ip(7), ipv6(7), icmpv6_err_convert() of Linux."""
    _, protocol, port = way
    where = f"{home.label}, [{seen.address}]:{port},"
    if seen.error == "unreadable":
        return f"the address of {home.label} could not be read without root", "log in as root"
    if seen.at == "address":
        return (
            f"no address of {home.label} ({home.hostname}) is known",
            "see that the name has an AAAA record; home-address-update on the VPS says what is wrong",
        )
    if seen.error in ("EADDRNOTAVAIL", "EAFNOSUPPORT"):
        return (
            f"this VPS has no IPv6 address of its own, and so no way to {home.label},"
            f" [{seen.address}]",
            "switch IPv6 on in the provider's panel and in the VPS's network settings"
            " (net.ipv6.conf.all.disable_ipv6 must be 0), then see: ip -6 address",
        )
    if seen.at == "route":
        return (
            f"this VPS has no route to {home.label}, [{seen.address}] ({_said(seen.error)})",
            "it needs IPv6 with a default route, from router advertisements or to the gateway that the"
            " provider names; see: ip -6 address, ip -6 route",
        )
    if seen.error == "ECONNREFUSED":
        return (
            f"{where} refuses the connection",
            f"let a program listen on {protocol} port {port} there, for IPv6, or correct target_port; a"
            " router may refuse as well: open the port in it",
        )
    if seen.error in ("EACCES", "EPERM"):
        return (
            f"{where} is forbidden by a firewall on the way",
            f"let {protocol} {port} in at the home's router, and out at this VPS",
        )
    reason = "" if seen.error == "ETIMEDOUT" else f" ({_said(seen.error)})"
    return (
        f"{where} does not answer within {SECONDS} s{reason}",
        f"see that it is switched on, that its router lets {protocol} {port} in for it over IPv6, and that"
        f" {home.hostname} has its present address",
    )


def _said(error: str) -> str:
    return {
        "ENETUNREACH": "network is unreachable",
        "EHOSTUNREACH": "no route to host",
        "EACCES": "a route forbids it",
    }.get(error, error)


# ---- From a client to the VPS ----------------------------------------------------------------


@dataclass(frozen=True)
class Obstacle:
    """What rules of the VPS do to the clients of a forward."""

    finding: Finding
    protocol: str
    families: tuple[int, ...]
    ports: tuple[int, ...]

    @property
    def what(self) -> str:
        """In words, without the forward's name."""
        who, where = self.finding.who, self.finding.where
        place = f"{who} ({where})" if who in ("ufw", "firewalld") else f"{who}, {where},"
        does = {
            "drop": "drops what clients send",
            "taken": "takes away what clients send, by a DNAT rule",
            "some": "drops what clients send under some condition",
        }[self.finding.what]
        over = " and ".join(f"IPv{family}" for family in self.families)
        return f"{place} {does} over {over}"

    @property
    def remedy(self) -> str:
        """What an admin does about it."""
        who, protocol, port = self.finding.who, self.protocol, self.ports[0]
        if self.finding.what == "taken":
            return (
                f"take that rule away or forward another port; a container that publishes {protocol} port"
                f" {port} makes one, too"
            )
        if self.finding.what == "some":
            return "see whether this client is meant by it"
        if who == "ufw":
            return f"on the VPS: ufw allow {port}/{protocol}"
        if who == "firewalld":
            return (
                f"on the VPS: firewall-cmd --permanent --add-port={port}/{protocol}, then firewall-cmd"
                " --reload"
            )
        if who == "nft":
            return (
                "in that chain, before what drops, and where the rules are kept (/etc/nftables.conf):"
                f" {protocol} dport {port} accept"
            )
        return (
            f"on the VPS, and where the rules are kept: {who} -I INPUT -p {protocol} --dport {port} -j"
            " ACCEPT"
        )


def obstacles_of(
    config: Config, reached: Reached, forward: Forward, families: Sequence[int] = (4, 6)
) -> list[Obstacle]:
    """What the VPS's own rules do, or may do, to the clients of a forward."""
    found = dict(zip(ports_of(config), reached.ports, strict=True))
    places: dict[Finding, list[tuple[int, int]]] = {}
    for family, protocol, port in _ports(forward):
        for finding in found[family, protocol, port] if family in families else ():
            places.setdefault(finding, []).append((family, port))
    return [
        Obstacle(
            finding,
            forward.protocol,
            tuple(dict.fromkeys(family for family, _ in where)),
            tuple(dict.fromkeys(port for _, port in where)),
        )
        for finding, where in places.items()
    ]


def suspects_of(config: Config, reached: Reached, forward: Forward, family: int) -> list[str]:
    """Who may have dropped what a client of this family has sent, and what to do: a line each."""
    name = f"{forward.protocol} {forward.port}"
    if not reached.root:
        return [f"a firewall; whose is not seen without root: let {name} in"]
    obstacles = obstacles_of(config, reached, forward, (family,))
    lines = [
        f"{'surely' if each.finding.sure else 'perhaps'} {each.what}; to mend it: {each.remedy}"
        for each in obstacles
    ]
    if any(each.finding.sure for each in obstacles):
        return lines
    seen = "" if lines else ", since nothing on the VPS is seen to drop it"
    return [
        *lines,
        f"a firewall of the provider{seen}: let {name} in there (its panel may call it security group or"
        " network firewall)",
    ]


# ---- After a deploy --------------------------------------------------------------------------


def summary_of(config: Config, reached: Reached) -> str:
    """What is well, in a sentence; empty if nothing was tried."""
    well = [each for each in config.forwards if not troubles_of(config, reached, each)]
    parts = []
    tcp = [forward for forward in well if forward.protocol == "tcp"]
    udp = [forward for forward in well if forward.protocol == "udp"]
    if tcp:
        parts.append(f"the homes of {some_of(map(name_of, tcp))} answer this VPS")
    if udp:
        parts.append(
            f"for {some_of(map(name_of, udp))} there is a route (UDP itself was not tried)"
        )
    return "; ".join(parts)


def warnings(config: Config, reached: Reached) -> Iterator[str]:
    """What is not well, in sentences; what several forwards have in common is said once."""
    names: dict[Trouble, list[str]] = {}
    rules: dict[str, list[tuple[str, Obstacle]]] = {}
    for forward in config.forwards:
        name = name_of(forward)
        for trouble in troubles_of(config, reached, forward):
            names.setdefault(trouble, []).append(name)
        for obstacle in obstacles_of(config, reached, forward):
            if obstacle.finding.sure:
                rules.setdefault(obstacle.what, []).append((name, obstacle))
    for (what, remedy), of in names.items():
        yield f"{some_of(of)}: {what}; {remedy}"
    for what, kept_out in rules.items():
        likewise = ", and the others likewise" if len(kept_out) > 1 else ""
        yield (
            f"{some_of(name for name, _ in kept_out)}: {what}; to mend it,"
            f" {kept_out[0][1].remedy}{likewise}"
        )
