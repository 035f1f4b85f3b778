# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmarks of relays: throughput, new connections, UDP, memory."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

from bench.peers import DIRECT, PORT_AT_HOME, Peer
from bench.results import Figure
from bench.setting import Bench
from lab.traffic import udp_crowd

GBIT = Figure("throughput", "Gbit/s", True)
CPU = Figure("processor time of the VPS", "s/GB", False)
NEW = Figure("new connections", "1/s", True)
P50 = Figure("connect and answer, p50", "ms", False)
P99 = Figure("connect and answer, p99", "ms", False)
UDP_RATE = Figure("rate below 1 % loss", "Mbit/s", True)
UDP_P50 = Figure("round trip, p50", "µs", False)
UDP_P99 = Figure("round trip, p99", "µs", False)
ANSWERED = Figure("got their own answer", "clients", True)
MISLED = Figure("got another's answer", "clients", False)
PSS = Figure("memory of the relay's processes (PSS)", "MiB", False)
TOTAL = Figure("memory a connection adds, the kernel's included", "KiB", False)
BUSY = Figure("memory a connection adds when busy (PSS)", "KiB", False)

STREAMS = 8  # enough to keep every process of a relay busy
MORE = 3  # times as many samples, each as much shorter: waiting suffers from a noisy machine most
CROWD_ROUNDS = 3  # those that lose datagrams take 5 s each time

# Runs on the VPS: the memory of all processes of some units, in KiB.
UNITS_PSS = """
import json, os, subprocess, sys
found = {}
for unit in sys.argv[1:]:
    group = subprocess.run(["systemctl", "show", "-P", "ControlGroup", unit], text=True,
                           capture_output=True).stdout.strip()
    total = 0
    for top in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"):
        if not group or not os.path.isdir(top + group):
            continue
        for directory, _, files in os.walk(top + group):
            for pid in open(directory + "/cgroup.procs").read().split():
                try:
                    for line in open(f"/proc/{pid}/smaps_rollup"):
                        if line.startswith("Pss:"):
                            total += int(line.split()[1])
                except OSError:
                    pass
        break
    found[unit] = total
print(json.dumps(found))
"""


def throughput(bench: Bench) -> None:
    """One direction, from home to the client, as most data goes."""
    for streams in (1, STREAMS):
        case = "1 stream" if streams == 1 else f"{streams} streams"
        bench.say(f"throughput, {case} ...")
        for number, peer in bench.rounds(bench.peers("tcp")):
            bench.settle()
            before = bench.cpu_seconds()
            result = bench.load("throughput", peer, streams=streams, seconds=bench.scale.seconds)
            spent = bench.cpu_seconds() - before
            bench.record(
                "throughput", case, GBIT, peer.name, number, result["bits_per_second"] / 1e9
            )
            if peer.name != DIRECT and result["bytes"]:
                bench.record(
                    "throughput", case, CPU, peer.name, number, spent / (result["bytes"] / 1e9)
                )


def connections(bench: Bench) -> None:
    """Connect, send a byte, get the answer, close."""
    for clients in (1, 32):
        case = "1 client" if clients == 1 else f"{clients} clients at once"
        bench.say(f"connections, {case} ...")
        for number, peer in bench.rounds(bench.peers("tcp"), MORE * bench.scale.rounds):
            bench.settle()
            seconds = bench.scale.seconds / MORE
            result = bench.load("connections", peer, clients=clients, seconds=seconds)
            bench.record("connections", case, NEW, peer.name, number, result["per_second"])
            if not math.isnan(result["p50"]):
                bench.record("connections", case, P50, peer.name, number, result["p50"] * 1000)
                bench.record("connections", case, P99, peer.name, number, result["p99"] * 1000)


def udp(bench: Bench) -> None:
    """One client: rate and round trips. Many clients: who gets an answer."""
    peers = bench.peers("udp")
    home = bench.lab.home["home0"].address
    for size in (100, 1400):
        case = f"{size} bytes"
        bench.say(f"udp, rate at {case} ...")
        for number, peer in bench.rounds(peers):
            bench.settle()
            result = bench.load(
                "rate",
                peer,
                size=size,
                seconds=min(0.3, bench.scale.seconds / 4),
                steps=3 if bench.scale.quick else 8,
                most=20_000 if bench.scale.quick else 2_000_000,
                home=home,
                home_port=PORT_AT_HOME,
            )
            rate = result["per_second"] * size * 8 / 1e6
            bench.record("udp", case, UDP_RATE, peer.name, number, rate)
    bench.say("udp, round trips ...")
    for number, peer in bench.rounds(peers):
        bench.settle()
        result = bench.load("round_trips", peer, seconds=bench.scale.seconds / 2)
        if result["p50"]:
            bench.record("udp", "1 client", UDP_P50, peer.name, number, result["p50"] * 1e6)
            bench.record("udp", "1 client", UDP_P99, peer.name, number, result["p99"] * 1e6)
    crowds = {"100 clients at the same moment": (100, 0), "2,000 clients at 1,000/s": (2000, 1000)}
    if bench.scale.quick:
        crowds = {"20 clients at the same moment": (20, 0)}
    for case, (clients, per_second) in crowds.items():
        bench.say(f"udp, {case} ...")
        for number, peer in bench.rounds(peers, min(CROWD_ROUNDS, bench.scale.rounds)):
            bench.settle()
            with bench.lab.inside("client6"):
                crowd = udp_crowd(*bench.target(peer), clients, per_second=per_second)
            bench.record("udp", case, ANSWERED, peer.name, number, crowd.answered)
            bench.record("udp", case, MISLED, peer.name, number, crowd.misled)


def memory(bench: Bench) -> None:
    """TCP connections: the relay's processes, and what the whole VPS takes more."""
    peers = [peer for peer in bench.peers("tcp") if peer.units]
    for count in (1, 20) if bench.scale.quick else (1, 100, 1000):
        case = f"{count:,} idle connection{'s' if count > 1 else ''}"
        bench.say(f"memory, {case} ...")
        for number, peer in bench.rounds(peers, min(CROWD_ROUNDS, bench.scale.rounds)):
            bench.settle()
            before = _total_memory(bench)
            client = bench.start_load("hold", peer, clients=count)
            assert client.stdin
            assert client.stdout
            held = json.loads(client.stdout.readline())["held"]
            bench.settle()
            more = _total_memory(bench) - before
            pss = _pss(bench, peer)
            client.stdin.close()
            client.wait(20)
            if held < count:
                bench.say(f"  {peer.name}: only {held} of {count} connections")
                continue
            bench.record("memory", case, PSS, peer.name, number, pss / 1024)
            if count >= 100:  # fewer are lost in the noise of the whole VPS
                bench.record("memory", case, TOTAL, peer.name, number, more / count / 1024)
    bench.say(f"memory, {STREAMS} busy connections ...")
    for number, peer in bench.rounds(peers, min(CROWD_ROUNDS, bench.scale.rounds)):
        bench.settle()
        idle = _pss(bench, peer)
        client = bench.start_load("throughput", peer, streams=STREAMS, seconds=3)
        time.sleep(0.7)  # all streams flow, and there are two seconds left to look
        more = _pss(bench, peer) - idle
        client.communicate(timeout=20)
        bench.record(
            "memory", f"{STREAMS} busy connections", BUSY, peer.name, number, more / STREAMS
        )


def _pss(bench: Bench, peer: Peer) -> int:
    """KiB that the processes of a relay have, what they share divided among them."""
    unit = peer.units["tcp"]
    return int(json.loads(bench.vps.run(["python3", "-c", UNITS_PSS, unit]).stdout)[unit])


def _total_memory(bench: Bench) -> int:
    """Bytes that all processes of the VPS have, and the kernel for them; no files."""
    for path in bench.vps.cgroup.paths:
        facts = _memory_stat(path)
        if "anon" in facts:  # cgroup v2
            return facts["anon"] + facts.get("kernel", 0) + facts.get("sock", 0)
        if "total_rss" in facts:
            kernel = int((path / "memory.kmem.usage_in_bytes").read_text())
            return facts["total_rss"] + kernel
    return 0


def _memory_stat(path: Path) -> dict[str, int]:
    try:
        lines = (path / "memory.stat").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value) for name, value in map(str.split, lines)}
