# SPDX-License-Identifier: GPL-3.0-or-later
"""A crowd, bounded and inside the lab, at one forward: everything else goes on."""

from __future__ import annotations

import socket
import time
from typing import Any

from lab_samples import TCP, UDP, home_data

from lab import Lab
from lab.checkout import Checkout
from lab.traffic import ask_tcp, ask_udp, ask_until
from lab.vps import Vps

LIMIT = 100
CROWD = 400


def all_else_works(lab: Lab, vps: Vps) -> None:
    """The other forwards, ssh, and the resolver, each within a second or two."""
    started = time.monotonic()
    with lab.inside("client6"):
        assert ask_tcp(vps.ipv4, 8001).startswith("home1 ")
        assert ask_udp(vps.ipv4, 8002).startswith("home1 ")
    assert "0 unresolved" in vps.run("home-address-update").stdout
    assert time.monotonic() - started < 4


def served(vps: Vps, relay: str, protocol: str, port: int) -> int:
    """How many clients a relay serves now."""
    if relay == "socat":  # one process that listens, and one for each client
        return int(vps.run(f"pgrep -fc '^/usr/bin/socat .*LISTEN:{port},'").stdout) - 1
    found = vps.run(f"ss -Hn --{protocol} state established dport = :{port}").stdout
    return len(found.splitlines())  # to the home, a socket for each client


def test_a_crowd_at_one_forward(
    lab: Lab, vps: Vps, checkout: Checkout, relay: str, standard: list[dict[str, Any]]
) -> None:
    """max_connections holds for TCP and for UDP, nobody else notices, and all is well afterwards."""
    checkout.declare(
        home_data(lab),
        [
            {**standard[0], "max_connections": LIMIT},
            {**standard[1], "max_connections": LIMIT, "idle_timeout": 5},
            standard[2],
            {"home": "home1", "protocol": "udp", "port": 8002, "relay": relay},
        ],
    )
    checkout.deploy()
    with lab.inside("client"):
        crowd = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(CROWD)]
        for connection in crowd:
            connection.setblocking(False)
            connection.connect_ex((vps.ipv4, TCP))
        peers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(CROWD)]
        for peer in peers:
            peer.sendto(b"hello", (vps.ipv4, UDP))
            time.sleep(0.002)
    time.sleep(1)
    all_else_works(lab, vps)
    assert served(vps, relay, "tcp", TCP) == LIMIT
    least = LIMIT if relay == "nginx" else LIMIT // 2  # socat mixes some peers up
    assert least <= served(vps, relay, "udp", UDP) <= LIMIT
    for each in crowd + peers:
        each.close()
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, "home0", seconds=10)
        ask_until(ask_udp, vps.ipv4, UDP, "home0", seconds=20)
