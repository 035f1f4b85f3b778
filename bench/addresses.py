# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmarks of addresses: how soon a moved home is reached, and what the resolver costs."""

from __future__ import annotations

import json
import threading
import time

from bench.peers import OURS
from bench.results import Figure
from bench.setting import MOVING_PORT, Bench
from lab.traffic import ask_tcp

FIRST_BYTE = Figure("from the look-up to the first byte", "s", False)
TIME = Figure("one run of the resolver", "ms", False)
CPU = Figure("processor time of one run", "ms", False)

# The way of the shell version: dig for each name and family, one after the other.
DIG = (
    'while read -r name; do dig +short "$name" A; dig +short "$name" AAAA; done <{names} >/dev/null'
)

OWN_DIRECTORIES = """\
mount -t tmpfs tmpfs /var/lib/home-forwarder && mount --bind {conf} /etc/home-forwarder.conf &&
/usr/local/bin/home-address-update >/dev/null && exec python3 -c "$0" "$@"
"""

# Runs a command some times, and prints the seconds and the processor seconds of each.
TIMED = """
import json, resource, subprocess, sys, time
found = []
for _ in range(int(sys.argv[1])):
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL, check=True)
    took, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    found.append((took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
print(json.dumps(found))
"""


def addresses(bench: Bench) -> None:
    """Both parts."""
    bench.say("addresses, a home moves ...")
    for number in range(bench.scale.rounds):
        _move(bench, number)
    for count in (1, 4) if bench.scale.quick else (1, 16, 64):
        bench.say(f"addresses, {count} home{'s' if count > 1 else ''} ...")
        _resolver(bench, count)


def _move(bench: Bench, number: int) -> None:
    """The home moves, the resolver runs; clients ask all the time."""
    home = bench.lab.home["home1"]
    bench.lab.dns.reset_counts()
    address = home.move()
    answered: dict[str, float] = {}

    def ask(name: str) -> None:
        with bench.lab.inside("client"):
            deadline = time.monotonic() + 15  # then this sample is left out
            while time.monotonic() < deadline:
                try:
                    if address in ask_tcp(bench.vps.ipv4, MOVING_PORT[name]):
                        answered[name] = time.time()
                        return
                except OSError:
                    pass
                time.sleep(0.01)

    threads = [threading.Thread(target=ask, args=(name,)) for name in OURS]
    for thread in threads:
        thread.start()
    time.sleep(0.1)  # both ask by now
    bench.vps.run(["home-address-update"])
    looked_up = min(
        query.time
        for query in bench.lab.dns.log()
        if query.type == "AAAA" and query.name == f"{home.hostname}."
    )
    for thread in threads:
        thread.join()
    for name, when in answered.items():
        bench.record("addresses", "a home moves", FIRST_BYTE, name, number, when - looked_up)


def _resolver(bench: Bench, count: int) -> None:
    """One run with so many homes, nothing having changed."""
    names = [f"b{number}.home.example" for number in range(count)]
    for number, name in enumerate(names):
        bench.lab.dns.set(name, aaaa=[f"2001:db8:b{number:03x}::1"])
    lines = [f"HOME_ADDRESS_COUNT={count}"]
    for number, name in enumerate(names):
        lines += [f'HOME_HOSTNAME_{number}="{name}"', f'HOME_HOSTDESC_{number}="{name}"']
    bench.vps.write("/root/bench-homes.conf", "\n".join(lines) + "\n")
    bench.vps.write("/root/bench-names", "\n".join(names) + "\n")
    script = OWN_DIRECTORIES.format(conf="/root/bench-homes.conf")
    ours = ["unshare", "--mount", "sh", "-c", script, TIMED, "1", "home-address-update"]
    dig = ["python3", "-c", TIMED, "1", "bash", "-c", DIG.format(names="/root/bench-names")]
    case = f"{count} home{'s' if count > 1 else ''}"
    for number in range(bench.scale.rounds):
        for name, command in (("ours", ours), ("shell version (dig)", dig)):
            bench.settle()
            for took, spent in json.loads(bench.vps.run(command).stdout.splitlines()[-1]):
                bench.record("addresses", case, TIME, name, number, took * 1000)
                bench.record("addresses", case, CPU, name, number, spent * 1000)
