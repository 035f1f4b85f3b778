# SPDX-License-Identifier: GPL-3.0-or-later
"""Each benchmark runs, for a second or so, and measures something. No figure is judged here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.relays import ANSWERED, BUSY, MISLED, TOTAL
from bench.report import PANELS, machine, write
from bench.results import Sample
from lab.checkout import PROJECT

MAY_BE_NOTHING = {figure.name for figure in (ANSWERED, BUSY, MISLED, TOTAL)}


@pytest.mark.parametrize(
    "names", ["throughput,connections,udp,memory,addresses", "deploy"], ids=["relays", "deploy"]
)
def test_each_benchmark_runs(names: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--quick", "--rounds", "1", "--seconds", "0.3"]
    command += [
        "--only",
        names,
        "--output",
        str(tmp_path),
        "--name",
        f"b{tmp_path.parent.name[-6:]}",
    ]
    result = subprocess.run(command, cwd=PROJECT, text=True, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    count = Counter(sample["benchmark"] for sample in found["samples"])
    assert sorted(count) == sorted(names.split(","))
    for sample in found["samples"]:
        assert math.isfinite(sample["value"]), sample
        assert sample["value"] > 0 or sample["figure"] in MAY_BE_NOTHING, sample
    assert "| ours" in (tmp_path / "table.md").read_text()


def test_a_wrong_name_is_explained() -> None:
    command = [sys.executable, "-m", "bench", "--only", "throughputs"]
    result = subprocess.run(command, cwd=PROJECT, text=True, capture_output=True)
    assert result.returncode == 2
    assert "there is no benchmark «throughputs»" in result.stderr


def test_the_chart_is_drawn(tmp_path: Path) -> None:
    """Whole figures of two peers are enough for it; names are escaped."""
    samples = [
        Sample(benchmark, case, figure, peer, number, 10.0 + number)
        for _, benchmark, case, figure in PANELS
        for peer in ("direct", "a & b", "ours, nginx")
        for number in range(3)
    ]
    facts = {**machine(), "release": "Debian 13", "rounds": 3, "seconds": 1.0}
    write(tmp_path, samples, facts)
    chart = (tmp_path / "chart.svg").read_text()
    assert chart.count("<rect") == 9
    assert "a &amp; b" in chart
