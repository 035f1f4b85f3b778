# SPDX-License-Identifier: GPL-3.0-or-later
"""make demo: the whole thing once, for real, on this machine, in less than a minute."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from lab import CommandFailed, Lab, LabError
from lab.checkout import Checkout
from lab.traffic import ask_tcp, ask_udp, ask_until

TCP_PORT, UDP_PORT = 44444, 33333
ANSWER_TIMEOUT = 10.0
"""Seconds for what takes a second at most, for a machine that has other things to do."""

STARTED = time.monotonic()
IN_COLOUR = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
"""See no-color.org: any value but an empty one."""


def say(text: str) -> None:
    """One line of progress, with the seconds since the start."""
    seconds = f"{time.monotonic() - STARTED:5.1f} s"
    print(f"\033[1m{seconds}\033[0m  {text}" if IN_COLOUR else f"{seconds}  {text}", flush=True)


def show(text: str) -> None:
    """What a command printed."""
    print("".join(f"         | {line}\n" for line in text.strip().splitlines()), end="", flush=True)


def show_traffic(lab: Lab, address: str) -> None:
    """The client asks the home through the VPS until it answers. Raises: TimeoutError."""
    expected = lab.home["home0"].address
    with lab.inside("client"):
        for protocol, port, ask in (("TCP", TCP_PORT, ask_tcp), ("UDP", UDP_PORT, ask_udp)):
            ask_until(ask, address, port, expected, ANSWER_TIMEOUT)
            show(
                f"client --{protocol}--> {address}:{port}   answer: {ask(address, port, ANSWER_TIMEOUT)}"
            )


def run(lab: Lab, checkout: Checkout) -> None:
    """All steps of the demonstration."""
    vps, home = lab.vps["vps1"], lab.home["home0"]
    home.serve(tcp=[TCP_PORT], udp=[UDP_PORT])
    say(
        "Up: a Debian 13 VPS (dual stack), a home (IPv6 only), a client (IPv4 only), DNS, an operator"
    )
    show(
        f"client {lab.client.addresses[0]}  ->  vps1 {vps.ipv4}  ->  {home.hostname} {home.address}"
    )

    checkout.declare(
        [{"name": "fritzbox", "hostname": home.hostname, "description": "Fritz!Box at home"}],
        [
            {"home": "fritzbox", "protocol": "tcp", "port": TCP_PORT},
            {"home": "fritzbox", "protocol": "udp", "port": UDP_PORT},
        ],
    )
    say("The operator runs: pyinfra -y inventory.py deploy.py")
    result = checkout.deploy()
    show("\n".join(line for line in result.stderr.splitlines() if line.strip()))

    say("The IPv4-only client reaches the IPv6-only home through the VPS")
    show_traffic(lab, vps.ipv4)

    old = home.address
    home.move()
    say(f"The home gets a new address: {old} -> {home.address}")
    show(vps.run("home-address-update").stdout)
    say("Traffic follows")
    show_traffic(lab, vps.ipv4)
    show(vps.run("journalctl -q -o cat -t home-tcpforwarder | grep Forwarding").stdout)

    say("The verification: pytest tests/verify --inventory inventory.py")
    show(checkout.verify("-q", "--no-header").stdout)


def main() -> int:
    """Returns: the exit status."""
    try:
        say("Starting a lab (the first time, its image is built: about a minute)")
        with (
            tempfile.TemporaryDirectory(prefix="home-forwarder-demo-") as directory,
            Lab("demo", vpses={"vps1": "trixie"}, homes=["home0"]) as lab,
        ):
            run(lab, Checkout(lab, Path(directory)))
            say("Cleaning up")
    except CommandFailed as error:
        print(f"make demo: {error}\n{error.result.stdout}{error.result.stderr}", file=sys.stderr)
        return 1
    except (LabError, OSError) as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 1
    say("Done. Nothing is left behind; the image stays in the cache.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
