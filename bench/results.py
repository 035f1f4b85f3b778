# SPDX-License-Identifier: GPL-3.0-or-later
"""Samples, and what is made of them: medians with their quartiles, ratios, goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """Something measured: its unit, and whether more of it is better."""

    name: str
    unit: str
    more_is_better: bool


@dataclass(frozen=True)
class Sample:
    """One measured value.

    benchmark: e.g. "throughput"
    case: e.g. "1 stream"
    peer: who was measured: "direct", "ours, socat", ...
    """

    benchmark: str
    case: str
    figure: Figure
    peer: str
    round: int
    value: float


@dataclass(frozen=True)
class Row:
    """All samples of one peer in one case."""

    peer: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper one; of one value, that value."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        lower, _, upper = statistics.quantiles(self.values, n=4, method="inclusive")
        return lower, upper


@dataclass(frozen=True)
class Table:
    """One figure in one case, a row for each peer in the order in which they were measured."""

    benchmark: str
    case: str
    figure: Figure
    rows: tuple[Row, ...]

    def row(self, peer: str) -> Row | None:
        return next((row for row in self.rows if row.peer == peer), None)


def tables(samples: Iterable[Sample]) -> list[Table]:
    """The samples by benchmark, case and figure."""
    found: dict[tuple[str, str, Figure], dict[str, list[float]]] = {}
    for sample in samples:
        rows = found.setdefault((sample.benchmark, sample.case, sample.figure), {})
        rows.setdefault(sample.peer, []).append(sample.value)
    return [
        Table(*key, tuple(Row(peer, tuple(values)) for peer, values in rows.items()))
        for key, rows in found.items()
    ]
