# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure our relays, the resolver and deploys beside others; see docs/performance.md."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import report
from bench.addresses import addresses
from bench.deploying import deploying
from bench.peers import PEERS
from bench.relays import connections, memory, throughput, udp
from bench.setting import Bench, Scale, setting
from bench.tuning import tuning
from lab import CommandFailed, LabError
from lab.image import RELEASES

BENCHMARKS: dict[str, Callable[[Bench], None]] = {
    "throughput": throughput,
    "connections": connections,
    "udp": udp,
    "memory": memory,
    "addresses": addresses,
    "deploy": deploying,
    "tuning": tuning,
}


def chosen(text: str) -> list[str]:
    """The benchmarks in a comma-separated list, in the order in which they run."""
    names = text.split(",")
    if wrong := [name for name in names if name not in BENCHMARKS]:
        raise argparse.ArgumentTypeError(
            f"there is no benchmark «{wrong[0]}»; choose from {', '.join(BENCHMARKS)}"
        )
    return [name for name in BENCHMARKS if name in names]


def versions(bench: Bench) -> list[str]:
    """Of all peers, as they tell them."""
    commands = {peer.version: None for peer in PEERS if peer.version}
    return [bench.vps.run(command).stdout.strip() for command in commands]


def main() -> int:
    """Run what is asked for. Returns: the exit status; 1 if something does not work."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only",
        type=chosen,
        default=[name for name in BENCHMARKS if name != "tuning"],
        metavar="NAMES",
        help=f"comma-separated: {','.join(BENCHMARKS)}",
    )
    parser.add_argument("--rounds", type=int, default=5, help="samples of each figure (5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a sample (1)")
    parser.add_argument("--release", choices=RELEASES, default="trixie", help="of the VPSes")
    parser.add_argument("--quick", action="store_true", help="few peers, small numbers")
    parser.add_argument(
        "--thorough", action="store_true", help="Ansible with 10 VPSes and 100 forwards as well"
    )
    parser.add_argument("--name", default="bench", help="of the lab (bench)")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench"), metavar="DIR")
    arguments = parser.parse_args()
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:5.0f} s  {line}", file=sys.stderr, flush=True)

    scale = Scale(arguments.rounds, arguments.seconds, arguments.quick, arguments.thorough)
    facts = {
        **report.machine(),
        "release": RELEASES[arguments.release],
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
    }
    try:
        relays = arguments.only != ["deploy"]
        with setting(arguments.name, scale, arguments.release, say, relays=relays) as bench:
            if bench.lab.vps:
                facts["versions"] = versions(bench)
            for name in arguments.only:
                BENCHMARKS[name](bench)
                # After each: what was measured is kept, whatever happens next.
                report.write(arguments.output, bench.samples, facts)
    except (LabError, CommandFailed) as error:
        print(error, file=sys.stderr)
        return 1
    print((arguments.output / "table.md").read_text().partition("\n### All figures")[0])
    say(f"done; tables, raw figures and the chart are in {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
