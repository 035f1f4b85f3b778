# SPDX-License-Identifier: GPL-3.0-or-later
"""The forwards of a VPS, tried from the operator's machine, as a client would.

TCP is connected to. Of UDP nothing comes back that would tell, so datagrams of a size that is seldom
are sent, and the relay's unit is asked whether they came in.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from shlex import quote

from pyinfra.api.host import Host
from pyinfra.api.state import State

from home_forwarder.config import Config
from home_forwarder.parts.forwards import Forward
from home_forwarder.plan import Plan
from home_forwarder.reach import Reached, ends_of, name_of
from home_forwarder.remote.reach import connect_all, no_way
from home_forwarder.render import sent_source_of
from operations.sending import Call, run

SECONDS = 3.0
"""For all of TCP."""
DATAGRAMS, SIZE = 5, 173
"""Of one burst; bytes of each."""
HEADERS = {4: 28, 6: 48}
"""Bytes of IP and UDP."""
SETTLE = 0.5
"""Seconds for a burst to come in, or to see how much traffic there is without it."""
NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
            *("172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3"),
            *("::/8", "fc00::/7", "fe80::/10", "ff00::/8"),
        ),
    )
)
"""What a client elsewhere cannot reach: RFC 6890."""


@dataclass(frozen=True)
class Try:
    """One port of a forward at one address of the VPS."""

    where: str
    outcome: str
    """reached; dropped; refused; unsure (not proven); left out (not tried)."""
    why: str = ""


Tries = Mapping[tuple[str, int], list[Try]]
"""By a forward's name and family."""


@dataclass(frozen=True)
class _Entry:
    """What is tried."""

    forward: Forward
    family: int
    address: str
    port: int

    @property
    def where(self) -> str:
        address = f"[{self.address}]" if self.family == 6 else self.address
        return f"{address}:{self.port}"


def try_from_here(
    state: State, host: Host, config: Config, plan: Plan, reached: Reached
) -> dict[tuple[str, int], list[Try]]:
    """Try each forward over each family that it listens on.

    Raises: what operations.sending.run() raises.
    """
    found: dict[tuple[str, int], list[Try]] = {}
    entries = []
    addresses = addresses_of(host, reached)
    for forward, family in of_families(config):
        tries = found.setdefault((name_of(forward), family), [])
        if not addresses[family]:
            why = f"the VPS has no public IPv{family} address that is known here"
            tries.append(Try(f"IPv{family}", "left out", why))
        for address in addresses[family]:
            if no_way(address):
                why = f"this machine has no IPv{family}"
                tries.append(Try(address, "left out", why))
                continue
            entries += [_Entry(forward, family, address, port) for port in ends_of(forward)]
    for entry, tried in (*_try_tcp(entries), *_try_udp(state, host, plan, entries)):
        found[name_of(entry.forward), entry.family].append(tried)
    return found


def of_families(config: Config) -> Iterator[tuple[Forward, int]]:
    """Each forward with each family that it listens on."""
    for forward in config.forwards:
        for family in forward.listen:
            yield forward, int(family)


def addresses_of(host: Host, reached: Reached) -> dict[int, list[str]]:
    """Where clients find the VPS, by family: as seen there; behind a NAT of the provider, where it is
    logged in to."""
    found: dict[int, list[str]] = {4: [], 6: []}
    for each in _public(reached.own):
        found[each.version].append(str(each))
    name = host.data.get("ssh_hostname") or host.name
    for each in _public(_looked_up(str(name))):
        if not found[each.version]:
            found[each.version].append(str(each))
    return found


def _looked_up(name: str) -> list[str]:
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(answer[4][0]) for answer in answers]


def _public(
    addresses: Iterable[str],
) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if not any(address in network for network in NOT_PUBLIC):
            yield address


def _try_tcp(entries: Iterable[_Entry]) -> Iterator[tuple[_Entry, Try]]:
    tcp = [entry for entry in entries if entry.forward.protocol == "tcp"]
    results = connect_all([(entry.address, entry.port) for entry in tcp], SECONDS)
    for entry, error in zip(tcp, results, strict=True):
        if not error:
            yield entry, Try(entry.where, "reached")
        elif error == "ECONNREFUSED":
            yield entry, Try(entry.where, "refused", "the connection is refused")
        else:
            said = "" if error == "ETIMEDOUT" else f" ({error})"
            yield entry, Try(entry.where, "dropped", f"no answer within {SECONDS:.0f} s{said}")


# ---- UDP -------------------------------------------------------------------------------------

Count = tuple[int, int] | None
"""Datagrams and bytes that came in; None if it is not counted."""


def _try_udp(
    state: State, host: Host, plan: Plan, entries: Iterable[_Entry]
) -> Iterator[tuple[_Entry, Try]]:
    udp = [entry for entry in entries if entry.forward.protocol == "udp"]
    units = {entry: _unit_of(entry, plan) for entry in udp}
    if not udp:
        return
    before = _counts(state, host, units.values())
    time.sleep(SETTLE)
    now = _counts(state, host, units.values())
    noise = {unit: (before.get(unit), now.get(unit)) for unit in units.values()}
    for address in dict.fromkeys(entry.address for entry in udp):
        burst = [entry for entry in udp if entry.address == address]
        refused = {entry for entry in burst if not _send(entry)}
        time.sleep(SETTLE)
        after = _counts(state, host, units.values())
        for entry in burst:
            unit = units[entry]
            outcome, why = judge(noise[unit], (now.get(unit), after.get(unit)), entry.family)
            if entry in refused and outcome != "reached":
                outcome, why = "refused", "datagrams are refused"
            yield entry, Try(entry.where, outcome, why)
        now = after


def judge(noise: tuple[Count, Count], burst: tuple[Count, Count], family: int) -> tuple[str, str]:
    """Did a burst come in? From what a unit counted before and after, without it and with it.

    Returns: the outcome, and why if it is not "reached".
    """
    (quiet, start), (first, last) = noise, burst
    if quiet is None or start is None or first is None or last is None:
        why = "its relay's traffic is not counted (IPAccounting=no, or it does not run)"
        return "unsure", why
    others = start[0] - quiet[0]
    datagrams, size = last[0] - first[0], last[1] - first[1]
    each = SIZE + HEADERS[family]
    if others < 0 or datagrams < 0 or size < 0:
        return "unsure", "its relay was started again meanwhile"
    if size < each:
        return "dropped", f"none of {DATAGRAMS} datagrams came in"
    if others:
        return "unsure", "other traffic hides whether the datagrams came in"
    if datagrams >= DATAGRAMS and size >= DATAGRAMS * each:
        return "reached", ""
    if size == datagrams * each:
        return "reached", ""  # some of them were lost
    return "unsure", "other traffic came in, too"


def _unit_of(entry: _Entry, plan: Plan) -> str:
    return next(
        relay.unit
        for relay in plan.relays
        if relay.protocol == "udp"
        and relay.listen == entry.forward.listen
        and entry.port in relay.ports
    )


def _send(entry: _Entry) -> bool:
    """Send a burst. False if somebody refuses it."""
    family = socket.AF_INET6 if entry.family == 6 else socket.AF_INET
    datagram = b"home-forwarder: does this come in? ".ljust(SIZE, b".")
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        try:
            sender.connect((entry.address, entry.port))
            for _ in range(DATAGRAMS):
                sender.send(datagram)
                time.sleep(0.02)  # for a refusal to come back, and not to be taken for a flood
        except OSError:
            return False
    return True


def _counts(state: State, host: Host, units: Iterable[str]) -> dict[str, Count]:
    """What each unit has counted since its start."""
    names = " ".join(map(quote, dict.fromkeys(units)))
    call = Call(
        sent_source_of("run_command.py"),
        (f"systemctl show --property=Id,IPIngressPackets,IPIngressBytes {names}",),
    )
    text = b64decode(run(state, host, call, timeout=60)["stdout"]).decode(errors="replace")
    found: dict[str, Count] = {}
    for block in text.split("\n\n"):
        said = dict(line.partition("=")[::2] for line in block.splitlines())
        numbers = [said.get(key, "") for key in ("IPIngressPackets", "IPIngressBytes")]
        counted = all(number.isdecimal() and int(number) < 1 << 63 for number in numbers)
        found[said.get("Id", "")] = (int(numbers[0]), int(numbers[1])) if counted else None
    return found
