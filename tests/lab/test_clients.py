# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that want more than their share, or claim to be somebody else (promise 20)."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab_samples import NGINX_PACKAGES, TCP, UDP, disable_nginx_service, home_data

from lab import Lab
from lab.checkout import Checkout
from lab.traffic import ONE_TRY, ask_tcp, ask_udp, ask_until, whoami
from lab.vps import Vps

LIMIT, PER_CLIENT = 1024, 256
"""max_connections and max_per_client where neither is declared."""
OTHER_UDP = 8002
SAME_64 = ("::1", ":0:2::", ":0:2:0:0:1", ":0:a:b:c:d")
"""Ends of addresses that have their first 64 bits in common, and are written in different ways."""


@pytest.mark.vps(packages=["socat", *NGINX_PACKAGES], prepare=disable_nginx_service)
def test_a_client_takes_its_share(
    lab: Lab, vps: Vps, checkout: Checkout, record_property: Callable[[str, object], None]
) -> None:
    """Forwards that say nothing of clients: no datagram makes them talk to themselves, and no address,
    nor a /64 of addresses, can take more than its share of them."""
    checkout.declare(
        home_data(lab),
        [
            {"home": "home0", "protocol": "udp", "port": UDP},
            {"home": "home1", "protocol": "udp", "port": OTHER_UDP},
            {"home": "home0", "protocol": "tcp", "port": TCP, "relay": "nginx"},
        ],
    )
    checkout.deploy()
    for own in (vps.ipv4, vps.ipv6):
        for source in (UDP, OTHER_UDP):
            received = echoes(lab, vps, own, source)
            record_property("figure", f"a datagram from [{own}]:{source} to :{UDP}: {received}")
            assert received < 10
    connections_of_one_client(lab, vps)
    peers_of_one_client(lab, vps)
    needed = peers_of_many(lab, vps)
    record_property(
        "figure",
        f"{needed} addresses silence a UDP forward, with {PER_CLIENT} peers each",
    )
    assert needed == LIMIT // PER_CLIENT


# ---- Datagrams that claim to come from the VPS itself ----------------------------------------


def echoes(lab: Lab, vps: Vps, own: str, source: int) -> int:
    """Send one datagram that claims to come from a port of the VPS, and a true one.

    Returns: how many datagrams the VPS has got a second later.
    """
    host = lab.client6 if ":" in own else lab.client
    before = datagrams(vps)
    with host.inside():
        ask_udp(own, UDP)  # so that neighbours know each other
        send_as(own, source, own, UDP)
    time.sleep(1)
    return datagrams(vps) - before


def datagrams(vps: Vps) -> int:
    """How many UDP datagrams the VPS has got since it is up."""
    with vps.inside():
        ipv6 = Path("/proc/thread-self/net/snmp6").read_text(encoding="ascii").split()
        ipv4 = Path("/proc/thread-self/net/snmp").read_text(encoding="ascii").splitlines()
    names, numbers = (line.split() for line in ipv4 if line.startswith("Udp:"))
    count = dict(zip(names, numbers, strict=True))["InDatagrams"]
    return int(count) + int(ipv6[ipv6.index("Udp6InDatagrams") + 1])


def send_as(source: str, source_port: int, target: str, port: int) -> None:
    """One UDP datagram with a source of one's choice."""
    addresses = [ipaddress.ip_address(address).packed for address in (source, target)]
    payload = b"x"
    length = 8 + len(payload)
    header = struct.pack("!HHHH", source_port, port, length, 0)
    pseudo = b"".join(addresses) + struct.pack("!LL", length, socket.IPPROTO_UDP)
    header = header[:6] + struct.pack("!H", checksum(pseudo + header + payload))
    if ":" in source:
        family = socket.AF_INET6
        head = struct.pack("!LHBB", 6 << 28, length, socket.IPPROTO_UDP, 64)
    else:
        family = socket.AF_INET
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0)
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(head + b"".join(addresses) + header + payload, (target, 0))


def checksum(data: bytes) -> int:
    """Of the internet protocols (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# ---- More than one's share -------------------------------------------------------------------


def connections_of_one_client(lab: Lab, vps: Vps) -> None:
    """One address holds as many connections as it gets; another one is served."""
    with contextlib.ExitStack() as stack:
        with lab.inside("client"):
            held = [
                stack.enter_context(socket.create_connection((vps.ipv4, TCP), timeout=5))
                for _ in range(PER_CLIENT)
            ]
            assert all(whoami(each).startswith("home0 ") for each in held)
            with pytest.raises(OSError):
                ask_tcp(vps.ipv4, TCP)
        with lab.inside("client6"):
            assert ask_tcp(vps.ipv6, TCP).startswith("home0 ")
    assert (
        "limiting connections by zone"
        in vps.run("journalctl -q -o cat -t home-tcpforwarder").stdout
    )


def peers_of_one_client(lab: Lab, vps: Vps) -> None:
    """One address sends from more ports than a forward has places; then a /64 of addresses does so at
    the other forward."""
    with lab.inside("client"):
        flood(vps.ipv4, UDP, [""], LIMIT + 100)
    with lab.inside("client6"):
        assert ask_udp(vps.ipv6, UDP).startswith("home0 ")
    with more_addresses(lab, [f"2001:db8:c{rest}" for rest in SAME_64]) as same:
        with lab.inside("client6"):
            flood(vps.ipv6, OTHER_UDP, same, LIMIT + 100)
        with lab.inside("client"):
            assert ask_udp(vps.ipv4, OTHER_UDP).startswith("home1 ")


def peers_of_many(lab: Lab, vps: Vps) -> int:
    """How many addresses it takes to silence a forward, with as many datagrams as it has places."""
    vps.run(["systemctl", "restart", f"home-udpforwarder@0:{UDP}.service"])
    with lab.inside("client"):
        ask_until(ask_udp, vps.ipv4, UDP, "home0 ")
    with more_addresses(lab, [f"2001:db8:d:{number}::1" for number in range(1, 7)]) as sources:
        for count, address in enumerate(sources, 1):
            with lab.inside("client6"):
                flood(vps.ipv6, UDP, [address], PER_CLIENT + 100)  # some may be lost
            with lab.inside("client"):
                try:
                    ask_udp(vps.ipv4, UDP, ONE_TRY)
                except OSError:
                    return count
    return 0


@contextlib.contextmanager
def more_addresses(lab: Lab, addresses: list[str]) -> Iterator[list[str]]:
    """Addresses that client6 has for a while."""
    for address in addresses:
        lab.site.network.add_address("client6", address)
    yield addresses
    for address in addresses:
        lab.site.network.remove_address("client6", address)


def flood(address: str, port: int, sources: list[str], count: int) -> None:
    """Datagrams of a byte, each from another port, by turns from the sources."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for number in range(count):
        with socket.socket(family, socket.SOCK_DGRAM) as peer:
            peer.bind((sources[number % len(sources)], 0))
            peer.sendto(b"x", (address, port))
        if number % 50 == 0:
            time.sleep(0.02)
