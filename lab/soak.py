# SPDX-License-Identifier: GPL-3.0-or-later
"""make soak: some minutes of traffic to three homes while everything around them goes wrong.

home0 and home1 move, their relays are killed, their forwards are changed by deploys; DNS fails for all
three. home2 never moves and nobody touches its relays: nothing sent to it may be lost.
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab import Lab, LabError
from lab.checkout import Checkout
from lab.traffic import whoami
from lab.vps import Vps

HOMES = ("home0", "home1", "home2")
UNTOUCHED = "home2"
TCP, UDP = 8000, 9000
CHECK_INTERVAL = 10
"""Seconds; the shortest that is allowed, so that a move is followed often in a short run."""
IDLE_TIMEOUT = 600
"""Seconds; clients ask all the time, so no connection ends for it. Deploys of a change count up."""
PAUSE = 0.05
"""Seconds between two questions of a client; what is lost is noticed at once."""
EXPLAINS = 2.5 * CHECK_INTERVAL
"""Seconds for which an event explains what is lost: a move is followed at the next look-up, or at the
one after it if DNS fails just then."""
DNS_FAULTS = ("servfail", "nxdomain", "nodata", "timeout", "garbage", "refused")


@dataclass
class Ledger:
    """What one client sent to one home over one protocol, and what became of it."""

    home: str
    protocol: str
    sent: int = 0
    answered: int = 0
    lost: Counter[str] = field(default_factory=Counter)


class Soak:
    """The lab, the traffic and the events of one run."""

    def __init__(self, lab: Lab, checkout: Checkout, seed: int) -> None:
        self.lab = lab
        self.vps: Vps = lab.vps["vps1"]
        self.checkout = checkout
        self.random = random.Random(seed)
        self.over = threading.Event()
        self.ledgers = [Ledger(home, protocol) for home in HOMES for protocol in ("tcp", "udp")]
        self.events: Counter[str] = Counter()
        self._last: dict[str, tuple[float, str]] = {}
        self._idle_timeout = IDLE_TIMEOUT

    def declare(self) -> None:
        """home2's forwards are the same each time."""
        self.checkout.declare(
            [{"name": home, "hostname": self.lab.home[home].hostname} for home in HOMES],
            [
                {
                    "home": home,
                    "protocol": protocol,
                    "port": port + number,
                    "idle_timeout": IDLE_TIMEOUT if home == UNTOUCHED else self._idle_timeout,
                }
                for number, home in enumerate(HOMES)
                for protocol, port in (("tcp", TCP), ("udp", UDP))
            ],
            check_interval=CHECK_INTERVAL,
        )

    # ---- What goes wrong ---------------------------------------------------------------------

    def move(self, home: str) -> None:
        self.lab.home[home].move()

    def kill_relays(self, home: str) -> None:
        self.vps.run(f"systemctl kill -s KILL 'home-*forwarder-46-to-6@{home[-1]}:*'")

    def dns_fails(self, home: str) -> None:
        self.lab.dns.fault(self.lab.home[home].hostname, self.random.choice(DNS_FAULTS))
        self.vps.run("home-address-update", check=False)
        self.lab.dns.clear_faults()

    def deploy_nothing_new(self, home: str) -> None:
        self.checkout.deploy()

    def deploy_a_change(self, home: str) -> None:
        self._idle_timeout += 1
        self.declare()
        self.checkout.deploy()

    def next_event(self) -> None:
        """One thing goes wrong; what it may cost is noted before it happens."""
        events: dict[str, tuple[Callable[[str], None], tuple[str, ...]]] = {
            "the home moved": (self.move, ("chosen",)),
            "its relays were killed": (self.kill_relays, ("chosen",)),
            "its settings were deployed": (self.deploy_a_change, ("home0", "home1")),
            "DNS failed": (self.dns_fails, ()),
            "a deploy without change": (self.deploy_nothing_new, ()),
        }
        name = self.random.choice(list(events))
        event, disturbs = events[name]
        home = self.random.choice([each for each in HOMES if each != UNTOUCHED])
        if not disturbs:
            home = self.random.choice(HOMES)
        self.events[name] += 1
        for each in disturbs:
            self._last[home if each == "chosen" else each] = (time.monotonic(), name)
        print(f"  {name} ({home})", flush=True)
        event(home)
        for each in disturbs:  # it explains losses until some time after its end
            self._last[home if each == "chosen" else each] = (time.monotonic(), name)

    def why(self, home: str) -> str:
        """What explains that something to `home` is lost now."""
        when, name = self._last.get(home, (0.0, ""))
        return name if name and time.monotonic() - when < EXPLAINS else "UNEXPLAINED"

    # ---- Traffic -----------------------------------------------------------------------------

    def ask_over_tcp(self, ledger: Ledger) -> None:
        """One long connection, asked every 50 ms; a new one when it ends."""
        address = (self.vps.ipv4, TCP + int(ledger.home[-1]))
        connection: socket.socket | None = None
        while not self.over.wait(PAUSE):
            ledger.sent += 1
            try:
                if connection is None:
                    connection = socket.create_connection(address, timeout=3)
                whoami(connection)
                ledger.answered += 1
            except OSError:
                ledger.lost[self.why(ledger.home)] += 1
                if connection is not None:
                    connection.close()
                connection = None

    def ask_over_udp(self, ledger: Ledger) -> None:
        """A question every 50 ms from one socket; an answer has a second to come."""
        address = (self.vps.ipv4, UDP + int(ledger.home[-1]))
        peer: socket.socket | None = None
        while not self.over.wait(PAUSE):
            ledger.sent += 1
            question = str(ledger.sent).encode()
            try:
                if peer is None:
                    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    peer.settimeout(1)
                    peer.connect(address)
                peer.send(question)
                while question not in peer.recv(200).split():
                    pass  # late answers to earlier questions
                ledger.answered += 1
            except OSError:
                ledger.lost[self.why(ledger.home)] += 1
        if peer is not None:
            peer.close()

    def run(self, seconds: float) -> None:
        """Traffic and events for that long, then quiet, then the end."""
        clients = []
        for ledger in self.ledgers:
            ask = self.ask_over_tcp if ledger.protocol == "tcp" else self.ask_over_udp
            clients.append(threading.Thread(target=self._inside, args=(ask, ledger), daemon=True))
        for client in clients:
            client.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(self.random.uniform(1, 4))
            self.next_event()
        self.lab.dns.clear_faults()
        time.sleep(2)  # what is under way gets its answer
        self.over.set()
        for client in clients:
            client.join()

    def _inside(self, ask: Callable[[Ledger], None], ledger: Ledger) -> None:
        with self.lab.inside("client"):
            ask(ledger)

    def report(self) -> Iterator[str]:
        """The lines of the report."""
        yield f"{'home':8}{'protocol':10}{'sent':>8}{'answered':>10}{'lost':>6}  why"
        for each in self.ledgers:
            why = ", ".join(f"{count} {name}" for name, count in each.lost.most_common())
            lost = each.sent - each.answered
            yield f"{each.home:8}{each.protocol:10}{each.sent:8}{each.answered:10}{lost:6}  {why}"
        yield "events: " + ", ".join(
            f"{count}x {name}" for name, count in self.events.most_common()
        )

    @property
    def is_good(self) -> bool:
        """Nothing lost without an explanation; nothing at all lost of the untouched home."""
        return not any(
            each.lost["UNEXPLAINED"] or (each.home == UNTOUCHED and each.lost)
            for each in self.ledgers
        )


def main() -> int:
    """Returns: the exit status; 1 if something was lost that must not be."""
    parser = argparse.ArgumentParser(prog="python -m lab.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180, help="default: %(default)s")
    parser.add_argument("--release", default="trixie", help="of the VPS; default: %(default)s")
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"Soaking for {arguments.seconds:.0f} s, seed {seed}", flush=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="home-forwarder-soak-") as directory,
            Lab("soak", vpses={"vps1": arguments.release}, homes=list(HOMES)) as lab,
        ):
            for number, home in enumerate(HOMES):
                lab.home[home].serve(tcp=[TCP + number], udp=[UDP + number])
            soak = Soak(lab, Checkout(lab, Path(directory)), seed)
            soak.declare()
            soak.checkout.deploy()
            soak.run(arguments.seconds)
    except (LabError, OSError) as error:
        print(f"make soak: {error}", file=sys.stderr)
        return 1
    print("\n".join(soak.report()))
    print("good: nothing was lost that need not be" if soak.is_good else "NOT GOOD")
    return 0 if soak.is_good else 1


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
