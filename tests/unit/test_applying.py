# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VPS is told to do, as data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from unit_samples import FULL, matching, plan_of, with_file, with_unit

from home_forwarder.applying import (
    LOCK,
    entry_of,
    first_job_of,
    job_of,
    paths_of,
    steps_of,
)
from home_forwarder.compare import NO_CHANGES, Changes, Observed, compare
from home_forwarder.plan import UNITS, File, Link, Plan
from home_forwarder.planning import question
from home_forwarder.render import sent_source_of

PLAN = plan_of(**FULL)
UPDATER_UNIT = "home-address-updater.service"
ALL = Changes(
    write=(Link("/a", "/b"),),
    stop=("s",),
    remove=("/r",),
    reload=True,
    read_again=("r",),
    restart=("x",),
    start=("y",),
)


def test_order_of_the_steps() -> None:
    """Promise 12: files come before anything is stopped. The look-up comes before the relays."""
    steps: Any = steps_of(PLAN, ALL)
    assert [step[0] for step in steps] == [
        "write",
        "stop",
        "remove",
        "reload",
        "read",
        "restart",
        "start",
        "wait",
    ]
    assert dict(steps)["write"] == [{"path": "/a", "target": "/b"}]


@pytest.mark.parametrize(
    ("changes", "verbs"),
    [
        (NO_CHANGES, []),
        (Changes(stop=("x",)), ["stop"]),
        (Changes(remove=("/x",), reload=True), ["remove", "reload"]),
        (Changes(read_again=("x",)), ["read", "wait"]),
        (Changes(restart=("x",)), ["restart", "wait"]),
        (Changes(start=("x",)), ["start", "wait"]),
    ],
)
def test_what_is_not_needed_is_no_step(changes: Changes, verbs: list[str]) -> None:
    """Relays are waited for if there is a reason why one should come up."""
    assert [step[0] for step in steps_of(PLAN, changes)] == verbs
    assert [step[0] for step in steps_of(Plan(), changes)] == [
        each for each in verbs if each != "wait"
    ]


def test_relays_to_wait_for() -> None:
    """Promise 18: each of them, on its ports."""
    steps: Any = steps_of(PLAN, ALL)
    ((_, waits),) = [step for step in steps if step[0] == "wait"]
    assert [
        (each["unit"], each["protocol"], each["first"], each["last"], each["home"])
        for each in waits
    ] == [
        (relay.unit, relay.protocol, relay.ports.first, relay.ports.last, relay.home)
        for relay in PLAN.relays
    ]


def test_entries() -> None:
    """What a deploy knows of a file, and does not say to the VPS, is not sent."""
    file = File("/x", "long\n", "600", "a", "b", secret=True, without_comments="l\n", reader="r")
    written = {"path": "/x", "mode": "600", "owner": "a", "group": "b"}
    assert entry_of(file) == {**written, "content": "long\n"}
    assert entry_of(file, bare=True) == {**written, "content": "l\n"}
    plain = File("/x", "long\n")
    assert entry_of(plain, bare=True) == entry_of(plain)
    assert entry_of(Link("/a", "/b"), bare=True) == {"path": "/a", "target": "/b"}
    assert paths_of([plain, Link("/a", "/b")]) == ("/x", "/a")


def test_job_of_a_deploy() -> None:
    """Promise 21: it is for the VPS that was looked at, and is refused by another."""
    seen = matching(PLAN)
    job: Any = json.loads(json.dumps(job_of(PLAN, ALL, who="me@laptop", basis=seen.basis)))
    assert (job["who"], job["basis"], job["lock"]) == ("me@laptop", seen.basis, LOCK)
    assert job["question"] == json.loads(json.dumps(question(PLAN)))
    assert job["observe"] == sent_source_of("observe.py")
    assert [step[0] for step in job["steps"]] == [step[0] for step in steps_of(PLAN, ALL)]
    assert str(Path(job["lock"]).parent) == "/run", "gone after a boot"


def test_job_of_a_first_boot() -> None:
    """Everything is new; it does what a deploy to an empty VPS does."""
    job: Any = json.loads(json.dumps(first_job_of(PLAN)))
    deploy: Any = json.loads(json.dumps(job_of(PLAN, compare(PLAN, Observed()), "", "")))
    steps = dict(deploy["steps"])
    assert steps.keys() == {"write", "reload", "read", "start", "wait"}
    assert [each["path"] for each in job["write"]] == [each["path"] for each in steps["write"]]
    assert job["relays"] == steps["wait"]
    reload, read, start = job["systemctl"]
    assert reload == ["daemon-reload"]
    assert (read[0], sorted(read[1:])) == ("start", sorted(steps["read"]))
    assert (start[0], sorted(start[1:])) == ("start", sorted(steps["start"]))
    for key in ("lock", "unfinished"):
        assert job[key] == deploy[key]
    assert job["addresses"] == deploy["question"]["addresses"]
    assert not {"observe", "question", "basis"} & set(job), "there is nothing to be compared with"
    assert len(json.dumps(job["write"])) < 0.9 * len(json.dumps(steps["write"]))


def test_a_deploy_sends_no_more_than_it_must() -> None:
    """Promise 10: of what is as declared, nothing."""
    path = f"{UNITS}/home-forwarders.service"
    seen = with_file(matching(PLAN), path, sha256="0")
    seen = with_unit(seen, PLAN.relays[0].unit, active="failed", runs=False, environment={})
    steps: Any = dict(steps_of(PLAN, compare(PLAN, seen)))  # type: ignore[arg-type]
    assert [each["path"] for each in steps["write"]] == [path]
    assert list(steps["start"]) == [PLAN.relays[0].unit]
    assert set(steps) == {"write", "reload", "start", "wait"}
