# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run leaves behind: tables, JSON, a chart; and whether the goals were met."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2

from bench.deploying import COMMANDS, SECONDS
from bench.peers import DIRECT, OURS, SHELL
from bench.relays import (
    ANSWERED,
    BUSY,
    CPU,
    GBIT,
    NEW,
    P99,
    PSS,
    UDP_P50,
    UDP_P99,
    UDP_RATE,
)
from bench.results import Figure, Row, Sample, Table, tables

CHART = Path(__file__).with_name("chart.svg.j2")
SOCAT, NGINX = OURS


# ---- Goals -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """A goal, what was reached, and whether that is enough."""

    text: str
    reached: str
    met: bool


class Results:
    """The tables of a run, found by benchmark, case and figure."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.tables = tables(samples)

    def table(self, benchmark: str, case: str, figure: Figure) -> Table | None:
        return next(
            (
                table
                for table in self.tables
                if (table.benchmark, table.case, table.figure) == (benchmark, case, figure)
            ),
            None,
        )

    def median(self, benchmark: str, case: str, figure: Figure, peer: str) -> float | None:
        table = self.table(benchmark, case, figure)
        row = table.row(peer) if table else None
        return row.median if row else None

    def best_peer(self, benchmark: str, case: str, figure: Figure) -> Row | None:
        """The best that is neither ours nor the direct path."""
        table = self.table(benchmark, case, figure)
        rows = [row for row in table.rows if row.peer not in (DIRECT, *OURS)] if table else []
        if not table or not rows:
            return None
        best = max if table.figure.more_is_better else min
        return best(rows, key=lambda row: row.median)

    def goals(self) -> list[Goal]:
        """Those whose figures this run has."""
        found: list[Goal | None] = [
            self._beside_the_best("throughput", "1 stream", GBIT, OURS, 1.0),
            self._beside_the_best("throughput", "8 streams", GBIT, OURS, 1.0),
            self._beside_the_best("connections", "1 client", NEW, [NGINX], 0.95),
            self._beside_the_best("connections", "32 clients at once", NEW, [NGINX], 0.95),
            self._beside("connections", "1 client", NEW, SOCAT, SHELL, 1.0),
            self._beside("connections", "32 clients at once", NEW, SOCAT, SHELL, 1.0),
            self._p99(),
            self._beside_the_best("udp", "100 bytes", UDP_RATE, OURS, 1.0),
            self._beside_the_best("udp", "1400 bytes", UDP_RATE, OURS, 1.0),
            *(self._no_change(forwards) for forwards in (2, 100)),
            self._same_for_any_number(),
            self._beside_ansible(),
            self._ten(),
        ]
        return [goal for goal in found if goal]

    def _beside_the_best(
        self, benchmark: str, case: str, figure: Figure, ours: Iterable[str], least: float
    ) -> Goal | None:
        best = self.best_peer(benchmark, case, figure)
        candidates = {name: self.median(benchmark, case, figure, name) for name in ours}
        known = {name: value for name, value in candidates.items() if value}
        if not best or not known or not best.median:
            return None
        name = max(known, key=lambda each: known[each])
        ratio = known[name] / best.median
        return Goal(
            f"{benchmark}, {case}: at least {least:g} of the best peer",
            f"{ratio:.2f} of {best.peer} ({name})",
            ratio >= least,
        )

    def _beside(
        self, benchmark: str, case: str, figure: Figure, ours: str, peer: str, least: float
    ) -> Goal | None:
        own = self.median(benchmark, case, figure, ours)
        other = self.median(benchmark, case, figure, peer)
        if not own or not other:
            return None
        return Goal(
            f"{benchmark}, {case}: {ours} at least {least:g} of the {peer}",
            f"{own / other:.2f}",
            own / other >= least,
        )

    def _p99(self) -> Goal | None:
        where = ("connections", "32 clients at once", P99)
        own, other = self.median(*where, SOCAT), self.median(*where, SHELL)
        if not own or not other:
            return None
        return Goal(
            f"connections, 32 clients: p99 of {SOCAT} at most a tenth of the {SHELL}'s",
            f"1/{other / own:.0f}",
            own <= other / 10,
        )

    def _deploy(self, kind: str, vpses: str, forwards: int, ms: int, tool: str) -> float | None:
        case = f"{kind}, {vpses}, {forwards} forwards, {ms} ms"
        return self.median("deploy", case, SECONDS, tool)

    def _no_change(self, forwards: int) -> Goal | None:
        took = self._deploy("no change", "1 VPS", forwards, 40, "ours")
        if not took:
            return None
        return Goal(
            f"a deploy without a change of {forwards} forwards, 40 ms: at most 3 s",
            f"{took:.1f} s",
            took <= 3,
        )

    def _same_for_any_number(self) -> Goal | None:
        few = self._deploy("no change", "1 VPS", 2, 40, "ours")
        many = self._deploy("no change", "1 VPS", 100, 40, "ours")
        if not few or not many:
            return None
        return Goal(
            "a deploy without a change: the same for 2 and 100 forwards (within a quarter)",
            f"{many / few:.2f} times the time",
            many <= 1.25 * few,
        )

    def _beside_ansible(self) -> Goal | None:
        ours = self._deploy("no change", "1 VPS", 2, 40, "ours")
        ansible = self._deploy("no change", "1 VPS", 2, 40, "Ansible")
        if not ours or not ansible:
            return None
        return Goal(
            "a deploy without a change: at least 5 times faster than Ansible's",
            f"{ansible / ours:.0f} times",
            ansible >= 5 * ours,
        )

    def _ten(self) -> Goal | None:
        one = self._deploy("no change", "1 VPS", 2, 40, "ours")
        ten = self._deploy("no change", "10 VPSes", 2, 40, "ours")
        if not one or not ten:
            return None
        return Goal(
            "10 VPSes in at most 3 times the time of one (no change, 40 ms)",
            f"{ten / one:.1f} times",
            ten <= 3 * one,
        )


# ---- Tables ----------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """With three digits that mean something."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.2g}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose columns stand below each other in plain text, too."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = [
        [
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


def _full(table: Table) -> str:
    """A table with quartiles and ratios."""
    against = [peer for peer in (DIRECT, *OURS, "ours") if table.row(peer)]

    def ratio(row: Row, peer: str) -> str:
        other = table.row(peer)
        assert other
        if peer == DIRECT:
            return f"{row.median / other.median:.2f}" if other.median else ""
        return f"{other.median / row.median:.2f}" if row.median else ""

    heads = ["of the direct path" if peer == DIRECT else f"{peer} ÷ this" for peer in against]
    rows = [
        [
            row.peer,
            number(row.median),
            "–".join(map(number, row.quartiles)),
            *(ratio(row, peer) for peer in against),
        ]
        for row in table.rows
    ]
    better = "more" if table.figure.more_is_better else "less"
    title = f"#### {table.benchmark}, {table.case}: {table.figure.name} ({table.figure.unit}; {better} is better)"
    return f"{title}\n\n{markdown(['', 'median', 'quartiles', *heads], rows)}\n"


Column = tuple[str, str, str, Figure]
"""Its heading; benchmark, case and figure of what stands in it."""

SUMMARY: dict[str, list[Column]] = {
    "TCP": [
        ("1 stream, Gbit/s", "throughput", "1 stream", GBIT),
        ("8 streams, Gbit/s", "throughput", "8 streams", GBIT),
        ("s of CPU/GB", "throughput", "1 stream", CPU),
        ("new/s, 1 client", "connections", "1 client", NEW),
        ("new/s, 32 clients", "connections", "32 clients at once", NEW),
        ("p99 of 32, ms", "connections", "32 clients at once", P99),
        ("MiB, 1 idle", "memory", "1 idle connection", PSS),
        ("MiB, 1,000 idle", "memory", "1,000 idle connections", PSS),
        ("KiB, a busy one", "memory", "8 busy connections", BUSY),
    ],
    "UDP": [
        ("100 bytes, Mbit/s", "udp", "100 bytes", UDP_RATE),
        ("1,400 bytes, Mbit/s", "udp", "1400 bytes", UDP_RATE),
        ("round trip p50, µs", "udp", "1 client", UDP_P50),
        ("p99, µs", "udp", "1 client", UDP_P99),
        ("answered of 100 at once", "udp", "100 clients at the same moment", ANSWERED),
        ("answered of 2,000 at 1,000/s", "udp", "2,000 clients at 1,000/s", ANSWERED),
    ],
}


def summary(results: Results) -> str:
    """A row for each relay, the most telling figures."""
    parts = []
    for title, columns in SUMMARY.items():
        found = [column for column in columns if results.table(*column[1:])]
        peers: dict[str, None] = {}
        for _, benchmark, case, figure in found:
            table = results.table(benchmark, case, figure)
            peers |= {row.peer: None for row in table.rows} if table else {}
        if peers:
            rows = [
                [
                    peer,
                    *(number(results.median(*column[1:], peer)) for column in found),
                ]
                for peer in peers
            ]
            parts.append(markdown([title, *(column[0] for column in found)], rows))
    cases = {table.case: None for table in results.tables if table.benchmark == "deploy"}
    if cases:
        tools = ("ours", "Ansible", "floor (ssh, tar)")
        rows = []
        for case in cases:
            row = [case]
            for tool in tools:
                took = results.median("deploy", case, SECONDS, tool)
                commands = results.median("deploy", case, COMMANDS, tool)
                row.append(f"{took:.1f} s, {commands:.0f}" if took and commands else "")
            rows.append(row)
        parts.append(markdown(["deploy: time, remote commands", *tools], rows))
    return "\n\n".join(parts)


def goals(results: Results) -> str:
    """The goals and what was reached."""
    rows = [[goal.text, goal.reached, "met" if goal.met else "MISSED"] for goal in results.goals()]
    return markdown(["goal", "reached", ""], rows) if rows else ""


# ---- Files -----------------------------------------------------------------------------------


def machine() -> dict[str, object]:
    """What it was measured on."""
    cpu = "unknown"
    memory = 0
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            memory = round(int(line.split()[1]) / 2**20)
    cores = sum(
        line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines()
    )
    return {
        "cpu": cpu,
        "cores": cores,
        "memory_gib": memory,
        "kernel": platform.release().split("-")[0],
        "load_before": float(Path("/proc/loadavg").read_text().split()[0]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def write(directory: Path, samples: Sequence[Sample], facts: dict[str, object]) -> None:
    """table.md, which begins with the summary and the goals; results.json; chart.svg."""
    directory.mkdir(parents=True, exist_ok=True)
    results = Results(samples)
    title = (
        f"{facts['date']}; {facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']};"
        f" VPS: {facts['release']}; {facts['rounds']} rounds of {facts['seconds']:g} s"
    )
    head = "\n\n".join(part for part in (summary(results), goals(results)) if part)
    full = "\n".join(map(_full, results.tables))
    (directory / "table.md").write_text(f"{title}\n\n{head}\n\n### All figures\n\n{full}")
    data = {
        "machine": facts,
        "goals": [vars(goal) for goal in results.goals()],
        "samples": [
            {
                "benchmark": sample.benchmark,
                "case": sample.case,
                "figure": sample.figure.name,
                "unit": sample.figure.unit,
                "peer": sample.peer,
                "round": sample.round,
                "value": sample.value,
            }
            for sample in samples
        ],
    }
    (directory / "results.json").write_text(json.dumps(data, indent=1) + "\n")
    if picture := chart(results, facts):
        (directory / "chart.svg").write_text(picture)


CAPTION, TITLE, BAR, GAP = 34, 26, 20, 22
"""Heights in chart.svg.j2, in pixels: its text has 11 to 14."""

PANELS: tuple[Column, ...] = (
    ("TCP throughput, 1 stream, Gbit/s", "throughput", "1 stream", GBIT),
    ("New TCP connections per second, 32 clients", "connections", "32 clients at once", NEW),
    (
        "UDP: of 2,000 new clients in 2 s, how many are answered",
        "udp",
        "2,000 clients at 1,000/s",
        ANSWERED,
    ),
)


def chart(results: Results, facts: dict[str, object]) -> str | None:
    """An SVG with a panel for each of PANELS; None if the run has not all of their figures."""
    panels = []
    top = CAPTION
    for title, benchmark, case, figure in PANELS:
        table = results.table(benchmark, case, figure)
        if not table:
            return None
        longest = max(max(row.median, *row.quartiles) for row in table.rows) or 1
        bars = [
            {
                "name": row.peer,
                "value": number(row.median),
                "share": row.median / longest,
                "low": row.quartiles[0] / longest,
                "high": row.quartiles[1] / longest,
                "kind": "ours" if row.peer in OURS else "direct" if row.peer == DIRECT else "peer",
                "y": top + TITLE + BAR * index,
            }
            for index, row in enumerate(table.rows)
        ]
        panels.append({"title": title, "bars": bars, "y": top})
        top += TITLE + BAR * len(bars) + GAP
    caption = (
        f"{str(facts['date']).partition(' ')[0]}; {facts['cpu']}, {facts['cores']} cores for client,"
        f" relay and home; medians, lines: quartiles of {facts['rounds']} rounds"
    )
    template = jinja2.Template(
        CHART.read_text(), undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True
    )
    picture: str = template.render(panels=panels, height=top + 6, caption=caption)
    return picture + "\n"
