# SPDX-License-Identifier: GPL-3.0-or-later
"""The job of home_forwarder/remote/apply.py: what is to be done on a VPS, step by step, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from home_forwarder.compare import Changes
from home_forwarder.plan import File, Link, Plan
from home_forwarder.planning import UNFINISHED, question
from home_forwarder.render import sent_source_of

LOCK = "/run/home-forwarder.lock"
"""Held by whoever changes a VPS: a deploy, pull mode, the first boot."""
LOCK_SECONDS = 2.0
"""So long does one try wait for the lock; who deploys asks again, and says so."""

Job = dict[str, object]


def job_of(plan: Plan, changes: Changes, who: str, basis: str) -> Job:
    """A deploy. Nothing is done unless the VPS is as it was when `changes` were decided.

    who: for others who wait for it. basis: Observed.basis of that time, or as much of it as matters.
    """
    return {
        "lock": LOCK,
        "patience": LOCK_SECONDS,
        "who": who,
        "unfinished": UNFINISHED,
        "steps": steps_of(plan, changes),
        "observe": sent_source_of("observe.py"),
        "question": question(plan),
        "basis": basis,
    }


def first_job_of(plan: Plan) -> Job:
    """A first boot, for home_forwarder/remote/first_boot.py: everything is new. Of programs and units it
    is what a deploy takes as the same, without comments."""
    return {
        "lock": LOCK,
        "who": "the first boot",
        "unfinished": UNFINISHED,
        "addresses": question(plan)["addresses"],
        "write": [entry_of(entry, bare=True) for entry in plan.entries],
        "systemctl": [["daemon-reload"], ["start", *_readers(plan)], ["start", *plan.running]],
        "relays": _relays(plan),
    }


def steps_of(plan: Plan, changes: Changes) -> list[list[object]]:
    """What apply.py does, in this order; a step that has nothing to do is left out.

    Files come first: when they cannot be written, nothing has been stopped.
    """
    relays = _relays(plan) if changes.may_start_relays else []
    steps: list[list[object]] = [
        ["write", [entry_of(entry) for entry in changes.write]],
        ["stop", changes.stop],
        ["remove", changes.remove],
        ["reload", changes.reload],
        ["read", changes.read_again],
        ["restart", changes.restart],
        ["start", changes.start],
        ["wait", relays],
    ]
    return [step for step in steps if step[1]]


def entry_of(entry: File | Link, *, bare: bool = False) -> dict[str, str]:
    """A file or link as apply.py writes it."""
    if isinstance(entry, Link):
        return asdict(entry)
    content = (bare and entry.without_comments) or entry.content
    return {
        **{key: getattr(entry, key) for key in ("path", "mode", "owner", "group")},
        "content": content,
    }


def _readers(plan: Plan) -> tuple[str, ...]:
    return tuple(dict.fromkeys(file.reader for file in plan.files if file.reader))


def _relays(plan: Plan) -> list[dict[str, object]]:
    return [
        {
            "unit": relay.unit,
            "protocol": relay.protocol,
            "first": relay.ports.first,
            "last": relay.ports.last,
            "home": relay.home,
        }
        for relay in plan.relays
    ]


def paths_of(entries: Iterable[File | Link]) -> tuple[str, ...]:
    """Where they stand."""
    return tuple(entry.path for entry in entries)
