# SPDX-License-Identifier: GPL-3.0-or-later
"""How the checks of a verification ended, in a line for each VPS: what is well, what is not, and what
nobody has tried (promise 18)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from home_forwarder.plan import some_of


@dataclass
class _Group:
    """The checks of one kind."""

    counts: Counter[str] = field(default_factory=Counter)
    """passed, failed, skipped."""
    reasons: dict[str, None] = field(default_factory=dict)
    """Of those that were skipped, in their order."""

    @property
    def is_well(self) -> bool:
        """Has all of it been seen, and passed?"""
        return set(self.counts) == {"passed"}


class Results:
    """Of some VPSes, each with checks of several groups."""

    def __init__(self, names: Iterable[str]) -> None:
        self._groups: dict[str, dict[str, _Group]] = {name: {} for name in names}

    def add(self, name: str, group: str, outcome: str, reason: str = "") -> None:
        """A check of a VPS has passed, failed, or was skipped, and then for which reason."""
        found = self._groups[name].setdefault(group, _Group())
        found.counts[outcome] += 1
        if outcome == "skipped":
            found.reasons.setdefault(reason)

    def lines(
        self, groups: Mapping[str, str], reasons: Mapping[str, str]
    ) -> Iterator[tuple[str, bool]]:
        """A line for each VPS, and whether all of it is well.

        groups: what each is called. reasons: why there is nothing of one, if that is known.
        """
        for name, found in self._groups.items():
            said = [
                f"{label}: {_said(found.get(group, _Group()), reasons.get(group, ''))}"
                for group, label in groups.items()
            ]
            is_well = all(group in found and found[group].is_well for group in groups)
            yield f"{name}: {' | '.join(said)}", is_well


def _said(group: _Group, reason: str) -> str:
    counts = group.counts
    total = counts.total()
    if not total:
        return f"not tried ({reason})" if reason else "not tried"
    open_ends = f"{counts['skipped']} not seen: {some_of(group.reasons, 3)}"
    if counts["failed"]:
        text = f"NO, {counts['failed']} of {total} failed"
    elif counts["passed"]:
        text = f"yes ({counts['passed']} of {total})"
    else:
        return open_ends
    return f"{text}, {open_ends}" if counts["skipped"] else text
