# SPDX-License-Identifier: GPL-3.0-or-later
"""Does it work? The way from the VPS to the homes, and from clients to the VPS."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import pytest

from home_forwarder.parts.forwards import Forward
from home_forwarder.plan import some_of
from home_forwarder.reach import Reached, name_of, obstacles_of, suspects_of, troubles_of
from operations.target import Vps


def reached_of(vps: Vps) -> Reached:
    """What the VPS has said of it."""
    if vps.facts.reached is None:
        pytest.fail("nobody has looked", pytrace=False)
    return vps.facts.reached


def wrong(lines: Iterable[str]) -> NoReturn:
    """Fail with what is wrong, and what to do."""
    pytest.fail("\n".join(lines), pytrace=False)


def test_home_answers(vps: Vps, forward: Forward) -> None:
    """The VPS reaches the home of a forward: by TCP at its port, for UDP by a route."""
    troubles = troubles_of(vps.target.config, reached_of(vps), forward)
    if troubles:
        wrong(
            line
            for what, remedy in troubles
            for line in (f"{name_of(forward)}: {what}", f"to mend it: {remedy}")
        )


def test_lets_clients_in(vps: Vps, way_in: Forward) -> None:
    """No rule of the VPS itself drops what comes to a forward, or takes it away."""
    obstacles = obstacles_of(vps.target.config, reached_of(vps), way_in)
    if any(each.finding.sure for each in obstacles):
        wrong(
            line
            for each in obstacles
            if each.finding.sure
            for line in (f"{name_of(way_in)}: {each.what}", f"to mend it: {each.remedy}")
        )
    unsure = [each.what for each in obstacles if each.finding.what != "some"]
    if unsure:
        pytest.skip(f"not clear, perhaps {'; '.join(unsure)}; --from-here tells")


def test_reached_from_here(vps: Vps, entry: tuple[Forward, int]) -> None:
    """A client like this machine gets in (--from-here); what was not tried has not passed."""
    forward, family = entry
    config, reached = vps.target.config, reached_of(vps)
    tries = vps.facts.from_here[name_of(forward), family]
    failed = [each for each in tries if each.outcome in ("dropped", "refused")]
    if failed:
        wrong(
            [
                *(
                    f"{name_of(forward)}: not reached at {each.where}: {each.why}"
                    for each in failed
                ),
                *(f"suspect: {each}" for each in suspects_of(config, reached, forward, family)),
            ]
        )
    for obstacle in obstacles_of(config, reached, forward, (family,)):
        if obstacle.finding.what == "taken" and obstacle.finding.sure:
            wrong(
                [
                    f"{name_of(forward)}: something answers, but {obstacle.what}",
                    f"to mend it: {obstacle.remedy}",
                ]
            )
    open_ends: dict[str, list[str]] = {}
    for each in (each for each in tries if each.outcome != "reached"):
        verb = "not tried" if each.outcome == "left out" else "not proven"
        open_ends.setdefault(f"{verb}, {each.why}", []).append(each.where)
    if open_ends:
        pytest.skip("; ".join(f"{why} ({some_of(of)})" for why, of in open_ends.items()))
