# SPDX-License-Identifier: GPL-3.0-or-later
"""One VPS in the lab on which our relays and their peers run side by side, one of them under load."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers import OURS, PEERS, PORT_AT_HOME, Peer
from bench.results import Figure, Sample
from home_forwarder.parts.forwards import MAX_CONNECTIONS
from home_forwarder.relay_programs import RELAY_PROGRAMS, package_names
from lab import Lab, LabError
from lab.checkout import Checkout
from lab.host import Host
from lab.vps import Vps

LOAD = Path(__file__).with_name("load.py")
# Beside those of the peers (70xx); to home1, which moves.
MOVING_PORT = {"ours, socat": 7101, "ours, nginx": 7102}
SYSCTLS = {
    # After many short connections ports run out, and every later figure is wrong.
    "ip_local_port_range": "1024\t65000",
    "tcp_tw_reuse": "1",
    "tcp_max_tw_buckets": "500",
}


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    rounds: how often each sample is taken
    seconds: how long one takes
    quick: only see that everything runs
    thorough: also what takes ten minutes more
    """

    rounds: int
    seconds: float
    quick: bool = False
    thorough: bool = False


class Bench:
    """What a benchmark works with: the lab, the scale, and where its samples go."""

    def __init__(
        self, lab: Lab, scale: Scale, release: str, say: Callable[[str], None], work: Path
    ) -> None:
        self.lab = lab
        self.scale = scale
        self.release = release
        self.say = say
        self.work = work
        self.samples: list[Sample] = []
        self.all_peers = list(PEERS)

    @property
    def vps(self) -> Vps:
        """Where the relays run."""
        return self.lab.vps["relays"]

    def record(
        self, benchmark: str, case: str, figure: Figure, peer: str, round: int, value: float
    ) -> None:
        """Keep a sample."""
        self.samples.append(Sample(benchmark, case, figure, peer, round, value))

    def peers(self, protocol: str) -> list[Peer]:
        """Those that relay this protocol, the direct path first."""
        return [
            peer
            for peer in self.all_peers
            if protocol in peer.protocols and (peer.usual or not self.scale.quick)
        ]

    def rounds(self, peers: list[Peer], rounds: int | None = None) -> Iterator[tuple[int, Peer]]:
        """Each peer in turn, again and again: a noisy minute is everybody's.

        Every other round goes backwards, so that nobody always follows the same one.
        """
        for number in range(rounds or self.scale.rounds):
            for peer in peers if number % 2 == 0 else reversed(peers):
                yield number, peer

    def target(self, peer: Peer) -> tuple[str, int]:
        """Where a client connects to: the VPS over IPv4; for the direct path, home over IPv6."""
        if peer.name == "direct":
            return self.lab.home["home0"].address, PORT_AT_HOME
        return self.vps.ipv4, peer.port

    def load(self, what: str, peer: Peer, **options: Any) -> dict[str, Any]:
        """Run one client of bench/load.py. Returns: what it measured."""
        address, port = self.target(peer)
        command = [sys.executable, "-I", "-S", str(LOAD), what, address, str(port)]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        result: dict[str, Any] = json.loads(self.lab.client6.run(command).stdout)
        return result

    def start_load(self, what: str, peer: Peer, **options: Any) -> subprocess.Popen[str]:
        """Start one client that goes on until its standard input ends."""
        address, port = self.target(peer)
        command = [sys.executable, "-I", "-S", str(LOAD), what, address, str(port)]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        return self.lab.client6.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def cpu_seconds(self) -> float:
        """Of the whole VPS so far, the work that the kernel does for its processes included."""
        for path in self.vps.cgroup.paths:
            if (path / "cpuacct.usage").exists():
                return int((path / "cpuacct.usage").read_text()) / 1e9
            if (path / "cpu.stat").exists():
                facts = dict(line.split() for line in (path / "cpu.stat").read_text().splitlines())
                if "usage_usec" in facts:
                    return int(facts["usage_usec"]) / 1e6
        raise LabError("This machine's control groups do not count processor time.")

    def settle(self) -> None:
        """Wait until the VPS has nothing left to do from the sample before."""
        for _ in range(20):  # a second at most: some relays never rest
            before = self.cpu_seconds()
            time.sleep(0.05)
            if self.cpu_seconds() - before < 0.005:  # a tenth of a core: systemd and sshd
                return


def shorten_time_wait(host: Host) -> None:
    with host.inside():
        for name, value in SYSCTLS.items():
            Path(f"/proc/sys/net/ipv4/{name}").write_text(value)


def disable_services(root: Path) -> None:
    """What the packages would start by themselves; `prepare` of Lab.add_vps."""
    for name in ("nginx", "haproxy"):
        wanted = root / f"etc/systemd/system/multi-user.target.wants/{name}.service"
        wanted.unlink(missing_ok=True)


@contextlib.contextmanager
def setting(
    name: str, scale: Scale, release: str, say: Callable[[str], None], *, relays: bool = True
) -> Iterator[Bench]:
    """A lab with what all benchmarks need.

    relays: with the VPS on which relays and peers run
    """
    with (
        tempfile.TemporaryDirectory(prefix="home-forwarder-bench-") as work,
        Lab(name, homes=["home0", "home1"], say=say) as lab,
    ):
        bench = Bench(lab, scale, release, say, Path(work))
        if relays:
            _start_relays(bench)
        yield bench


def _start_relays(bench: Bench) -> None:
    lab = bench.lab
    bench.say("Starting the VPS with all relays ...")
    packages = {name for peer in PEERS for name in peer.packages}
    vps = lab.add_vps(
        "relays",
        bench.release,
        packages=sorted({"socat", *package_names("nginx"), "bind9-dnsutils", *packages}),
        prepare=disable_services,
    )
    home = lab.home["home0"]
    for host in (vps, home, lab.client6):
        shorten_time_wait(host)
    home.popen([sys.executable, "-I", "-S", str(LOAD), "serve", str(PORT_AT_HOME)])
    lab.home["home1"].serve(tcp=[PORT_AT_HOME])
    checkout = Checkout(lab, bench.work / "checkout")
    forwards: list[dict[str, Any]] = []
    for name, relay in OURS.items():
        ours = next(peer for peer in PEERS if peer.name == name)
        each: dict[str, Any] = {"relay": relay, "target_port": PORT_AT_HOME}
        if RELAY_PROGRAMS[relay].max_per_client:
            each["max_per_client"] = MAX_CONNECTIONS  # all load comes from one client
        tcp = {**each, "protocol": "tcp"}
        forwards += [
            {**tcp, "home": "home0", "port": ours.port},
            {
                **each,
                "home": "home0",
                "port": ours.port,
                "protocol": "udp",
                "max_connections": 16_000,  # the crowds of all rounds: peers are kept for minutes
            },
            {**tcp, "home": "home1", "port": MOVING_PORT[name]},
        ]
    homes = [{"name": name, "hostname": host.hostname} for name, host in lab.home.items()]
    checkout.declare(homes, forwards, check_interval=3600)
    checkout.deploy()
    vps.run(f"echo '{home.address} {home.hostname}' >>/etc/hosts")
    start_peers(bench, PEERS)


def start_peers(bench: Bench, peers: list[Peer]) -> None:
    """Start those that run beside ours, and see that each relays. Raises: LabError if not."""
    for peer in peers:
        if peer.start:
            for path, text in peer.files.items():
                bench.vps.write(path, text)
            bench.vps.run(peer.start)
    time.sleep(0.5)
    for peer in peers:
        for protocol in peer.protocols:
            _check(bench, peer, protocol)


def _check(bench: Bench, peer: Peer, protocol: str) -> None:
    """See that this peer relays at all. Raises: LabError if not."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if protocol == "tcp":
            result = bench.load("connections", peer, seconds=0.05)
            works = result["per_second"] > 0
        else:
            result = bench.load("round_trips", peer, seconds=0.05)
            works = bool(result["p50"])
        if works:
            return
        time.sleep(0.3)
    raise LabError(f"{peer.name} does not relay {protocol}: {result}")
