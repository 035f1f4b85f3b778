# SPDX-License-Identifier: GPL-3.0-or-later
"""What a deploy does to a VPS that differs from its plan: that, and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
from unit_samples import (
    FRITZBOX,
    NAS,
    TCP,
    UDP,
    Data,
    file_of,
    matching,
    plan_of,
    with_file,
    with_unit,
)

from home_forwarder.compare import (
    ADDRESS,
    NO_CHANGES,
    REVISION,
    Changes,
    Observed,
    compare,
)
from home_forwarder.plan import CONF, UNITS, Plan

UPDATER_UNIT = "home-address-updater.service"
TIMER = "home-address-updater.timer"
GROUP = "home-tcpforwarders.service"
FRONT = "home-tcpforwarder@0:44444.service"
RELAY = "home-tcpforwarder-46-to-6@0:44444.service"
OTHER_RELAY = "home-udpforwarder-46-to-6@1:33333.service"
DROP_IN = f"{UNITS}/{RELAY}.d/forward.conf"
STRAY = "home-udpforwarder-46-to-6@1:8080.service"
WATCHERS = ("home-address-watcher@0.path", "home-address-watcher@1.path")

PLAN = plan_of()
RUNS_WITH = {REVISION: PLAN.relays[0].revision, ADDRESS: "2001:db8::1"}
NO_PROCESS: Data = {"runs": False, "environment": {}}


def without_file(seen: Observed, path: str) -> Observed:
    """The VPS without a file."""
    return replace(seen, files={key: value for key, value in seen.files.items() if key != path})


def as_dict(changes: Changes) -> Data:
    """Comparable: of what is written, the paths."""
    return {
        **asdict(changes),
        "write": tuple(sorted(each.path for each in changes.write)),
        "restart": tuple(sorted(changes.restart)),
        "start": tuple(sorted(changes.start)),
    }


def expect(**changes: object) -> Data:
    """Nothing to do but this."""
    return {**as_dict(NO_CHANGES), **changes}


Drift = Callable[[Observed], Observed]

DRIFTS: dict[str, tuple[Drift, Data]] = {
    "none": (lambda seen: seen, {}),
    # Files.
    "conf edited by hand": (
        lambda seen: with_file(seen, CONF, sha256="0"),
        {"write": (CONF,), "read_again": (UPDATER_UNIT,)},
    ),
    "mode": (
        lambda seen: with_file(seen, CONF, mode="600"),
        {"write": (CONF,), "read_again": (UPDATER_UNIT,)},
    ),
    "owner": (
        lambda seen: with_file(seen, "/usr/local/bin/home-address-update", owner="nobody"),
        {"write": ("/usr/local/bin/home-address-update",)},
    ),
    "group": (
        lambda seen: with_file(seen, "/usr/local/lib/home-forwarder/relay", group="users"),
        {"write": ("/usr/local/lib/home-forwarder/relay",)},
    ),
    "file missing": (
        lambda seen: without_file(seen, "/usr/local/lib/home-forwarder/relay"),
        {"write": ("/usr/local/lib/home-forwarder/relay",)},
    ),
    "directory in the place of a file": (
        lambda seen: with_file(seen, CONF, sha256=None),
        {"write": (CONF,), "read_again": (UPDATER_UNIT,)},
    ),
    "link in the place of a file": (
        lambda seen: with_file(seen, CONF, sha256=None, target="/tmp/conf"),
        {"write": (CONF,), "read_again": (UPDATER_UNIT,)},
    ),
    "file in the place of a link": (
        lambda seen: with_file(seen, "/etc/home-address-ipv6", target=None, sha256="0", mode="644"),
        {"write": ("/etc/home-address-ipv6",)},
    ),
    "link to elsewhere": (
        lambda seen: with_file(seen, "/etc/home-address-ipv6", target="/dev/shm/x"),
        {"write": ("/etc/home-address-ipv6",)},
    ),
    "unit disabled": (
        lambda seen: without_file(seen, f"{UNITS}/multi-user.target.wants/{FRONT}"),
        {"write": (f"{UNITS}/multi-user.target.wants/{FRONT}",), "reload": True},
    ),
    "service template edited": (
        lambda seen: with_file(seen, f"{UNITS}/home-tcpforwarder-46-to-6@.service", sha256="0"),
        {"write": (f"{UNITS}/home-tcpforwarder-46-to-6@.service",), "reload": True},
    ),
    "timer edited": (
        lambda seen: with_file(seen, f"{UNITS}/{TIMER}", sha256="0"),
        {"write": (f"{UNITS}/{TIMER}",), "reload": True, "restart": (TIMER,)},
    ),
    "path template edited": (
        lambda seen: with_file(seen, f"{UNITS}/home-address-watcher@.path", sha256="0"),
        {
            "write": (f"{UNITS}/home-address-watcher@.path",),
            "reload": True,
            "restart": WATCHERS,
        },
    ),
    "drop-in edited, relay not restarted": (
        lambda seen: with_file(seen, DROP_IN, sha256="0"),
        {"write": (DROP_IN,), "reload": True},
    ),
    "undeclared file of ours": (
        lambda seen: with_file(seen, "/usr/local/bin/home-address-update.sh"),
        {"remove": ("/usr/local/bin/home-address-update.sh",)},
    ),
    "undeclared forward enabled": (
        lambda seen: with_file(
            seen,
            f"{UNITS}/multi-user.target.wants/home-tcpforwarder@1:8080.service",
            target=f"{UNITS}/home-tcpforwarder@.service",
        ),
        {
            "remove": (f"{UNITS}/multi-user.target.wants/home-tcpforwarder@1:8080.service",),
            "reload": True,
        },
    ),
    # Files that their reader has not read: a deploy was cut off between writing and reading them.
    "the look-up has not read the conf": (
        lambda seen: with_file(seen, CONF, unread=True),
        {"read_again": (UPDATER_UNIT,)},
    ),
    "the look-up has not read a program": (
        lambda seen: with_file(seen, "/usr/local/bin/home-address-update", unread=True),
        {},
    ),
    "a file that goes was not read": (
        lambda seen: with_file(seen, "/etc/home-forwarder/webhook-url", unread=True),
        {"remove": ("/etc/home-forwarder/webhook-url",)},
    ),
    # Units that run.
    "undeclared unit runs": (
        lambda seen: with_unit(seen, STRAY, active="active"),
        {"stop": (STRAY,)},
    ),
    "undeclared unit waits for its restart": (
        lambda seen: with_unit(seen, STRAY, active="activating", sub="auto-restart"),
        {"stop": (STRAY,)},
    ),
    "undeclared unit failed": (
        lambda seen: with_unit(seen, STRAY, active="failed"),
        {"stop": (STRAY,)},
    ),
    "undeclared unit is loaded only": (lambda seen: with_unit(seen, STRAY, active="inactive"), {}),
    "triggered service runs": (
        lambda seen: with_unit(seen, "home-address-updater.service", active="activating"),
        {},
    ),
    "relay runs with older settings": (
        lambda seen: with_unit(seen, RELAY, environment={**RUNS_WITH, REVISION: "0"}),
        {"restart": (RELAY,)},
    ),
    "relay runs without a revision": (
        lambda seen: with_unit(seen, RELAY, environment={ADDRESS: RUNS_WITH[ADDRESS]}),
        {"restart": (RELAY,)},
    ),
    "relay leads to where the home was": (
        lambda seen: with_unit(seen, RELAY, environment={**RUNS_WITH, ADDRESS: "2001:db8::dead"}),
        {"restart": (RELAY,)},
    ),
    "relay runs, and where the home is is unknown": (
        lambda seen: replace(seen, addresses={"1": "2001:db8::2"}),
        {},
    ),
    "systemd has not read the relay again": (
        lambda seen: with_file(seen, DROP_IN, unread=True),
        {"reload": True},
    ),
    "systemd has not read the timer again": (
        lambda seen: with_file(seen, f"{UNITS}/{TIMER}", unread=True),
        {"reload": True, "restart": (TIMER,)},
    ),
    "systemd has not read the watchers again": (
        lambda seen: with_file(seen, f"{UNITS}/home-address-watcher@.path", unread=True),
        {"reload": True, "restart": WATCHERS},
    ),
    "systemd has not read that something is gone": (
        lambda seen: replace(seen, deleted_since_load=True),
        {"reload": True},
    ),
    "forward's template edited": (
        lambda seen: with_file(seen, f"{UNITS}/home-tcpforwarder@.service", sha256="0"),
        {"write": (f"{UNITS}/home-tcpforwarder@.service",), "reload": True},
    ),
    # Units that do not run.
    "timer stopped": (
        lambda seen: with_unit(seen, TIMER, active="inactive"),
        {"start": (TIMER,)},
    ),
    "watcher failed": (
        lambda seen: with_unit(seen, WATCHERS[1], active="failed"),
        {"start": (WATCHERS[1],)},
    ),
    "forward stopped, and with it its relay": (
        lambda seen: with_unit(
            with_unit(seen, RELAY, active="inactive", **NO_PROCESS),
            FRONT,
            active="inactive",
        ),
        {"start": (FRONT,)},
    ),
    "relay stopped": (
        lambda seen: with_unit(seen, RELAY, active="inactive", **NO_PROCESS),
        {"start": (RELAY,)},
    ),
    "relay failed": (
        lambda seen: with_unit(seen, RELAY, active="failed", **NO_PROCESS),
        {"start": (RELAY,)},
    ),
    "relay unknown to systemd": (
        lambda seen: replace(
            seen, units={name: each for name, each in seen.units.items() if name != RELAY}
        ),
        {"start": (RELAY,)},
    ),
    "relay about to be started again": (
        lambda seen: with_unit(seen, RELAY, active="activating", sub="auto-restart", **NO_PROCESS),
        {"start": (RELAY,)},
    ),
    "relay starts": (
        lambda seen: with_unit(seen, RELAY, active="activating", sub="start", **NO_PROCESS),
        {},
    ),
    "relay waits for an address": (
        lambda seen: replace(
            with_unit(seen, RELAY, active="inactive", **NO_PROCESS),
            addresses={"1": "2001:db8::2"},
        ),
        {},
    ),
    "other home's address unknown": (
        lambda seen: replace(
            with_unit(seen, RELAY, active="inactive", **NO_PROCESS),
            addresses={"0": "2001:db8::1"},
        ),
        {"start": (RELAY,)},
    ),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_each_drift_has_its_change(drift: str) -> None:
    """Promise 9: nothing to do on a VPS that matches. Promise 12: each difference is repaired."""
    change, expected = DRIFTS[drift]
    assert as_dict(compare(PLAN, change(matching(PLAN)))) == expect(**expected)


@pytest.mark.parametrize(
    "forwards",
    [
        [],
        [{**TCP, "port": "8000-8255"}],
        [{**TCP, "listen": "4"}, {**TCP, "listen": "6"}],
        [{**TCP, "listen": "4"}, {**TCP, "listen": "6", "home": "nas"}],
    ],
)
def test_a_vps_that_matches_is_left_alone(forwards: list[Data]) -> None:
    """Promise 9: for any plan."""
    plan = plan_of(forwards=forwards)
    assert compare(plan, matching(plan)) == NO_CHANGES


def test_new_vps() -> None:
    """Everything is written, read and started; the look-up comes before the relays."""
    changes = compare(PLAN, Observed())
    assert set(changes.write) == set(PLAN.entries)
    assert set(changes.start) == set(PLAN.running)
    assert (changes.stop, changes.remove, changes.restart) == ((), (), ())
    assert changes.reload
    assert changes.read_again == (UPDATER_UNIT,)
    assert changes.may_start_relays


def test_undeploy() -> None:
    """Promise 9: with an empty plan everything of ours goes, and nothing is left to do then."""
    seen = matching(PLAN)
    running = {name for name, each in seen.units.items() if each.active == "active"}
    assert as_dict(compare(Plan(), seen)) == expect(
        stop=tuple(sorted(running)), remove=tuple(sorted(seen.files)), reload=True
    )
    assert compare(Plan(), Observed()) == NO_CHANGES


LISTEN_4: Data = {"forwards": [{**TCP, "listen": "4"}, UDP]}
SCENARIOS: dict[str, tuple[Data, Data, Data]] = {
    # name: the data before, the data after, what is stopped, removed, restarted and started;
    # what is written is checked by its file names
    "description of a home": (
        {},
        {"homes": [{**FRITZBOX, "description": "Cellar"}, NAS]},
        {"write": {CONF}, "read_again": (UPDATER_UNIT,)},
    ),
    "host name of a home": (
        {},
        {"homes": [{**FRITZBOX, "hostname": "yyy.myfritz.net"}, NAS]},
        {"write": {CONF}, "read_again": (UPDATER_UNIT,)},
    ),
    "who gets mails": (
        {"notify": {"mail_to": "me@provider.net"}},
        {"notify": {"mail_to": "root"}},
        {"write": {CONF}, "read_again": (UPDATER_UNIT,)},
    ),
    "interval": (
        {},
        {"check_interval": 30},
        {"write": {f"{UNITS}/{TIMER}"}, "reload": True, "restart": {TIMER}},
    ),
    "settings of one forward": (
        {},
        {"forwards": [{**TCP, "target_port": 80}, UDP]},
        {"write": {DROP_IN}, "reload": True, "restart": {RELAY}},
    ),
    "settings of the other forward": (
        {},
        {"forwards": [TCP, {**UDP, "idle_timeout": 60}]},
        {
            "write": {f"{UNITS}/{OTHER_RELAY}.d/forward.conf"},
            "reload": True,
            "restart": {OTHER_RELAY},
        },
    ),
    "one port of a range": (
        {"forwards": [{**TCP, "port": "8000-8001"}]},
        {"forwards": [{**TCP, "port": 8000}, {**TCP, "port": 8001, "max_connections": 5}]},
        {
            "write": {f"{UNITS}/home-tcpforwarder-46-to-6@0:8001.service.d/forward.conf"},
            "reload": True,
            "restart": {"home-tcpforwarder-46-to-6@0:8001.service"},
        },
    ),
    "forwards in another order": ({}, {"forwards": [UDP, TCP]}, {}),
    "forward no longer declared": (
        {},
        {"forwards": [UDP]},
        {
            "stop": {FRONT, RELAY},
            "remove": {
                DROP_IN,
                f"{UNITS}/multi-user.target.wants/{FRONT}",
                f"{UNITS}/{GROUP}.wants/{FRONT}",
            },
            "reload": True,
        },
    ),
    "home no longer declared": (
        {"forwards": [TCP]},
        {"forwards": [TCP], "homes": [FRITZBOX]},
        {
            "write": {CONF},
            "read_again": (UPDATER_UNIT,),
            "stop": {WATCHERS[1]},
            "remove": {f"{UNITS}/paths.target.wants/{WATCHERS[1]}"},
            "reload": True,
        },
    ),
    "one of two families no longer declared": (
        {"forwards": [{**TCP, "listen": "4"}, {**TCP, "listen": "6"}]},
        {"forwards": [{**TCP, "listen": "4"}]},
        {
            "write": {f"{UNITS}/{FRONT}"},
            "stop": {RELAY.replace("-46-", "-6-")},
            "remove": {f"{UNITS}/{RELAY.replace('-46-', '-6-')}.d/forward.conf"},
            "reload": True,
        },
    ),
    "forward declared": (
        {"forwards": [UDP]},
        {},
        {
            "write": {
                DROP_IN,
                f"{UNITS}/multi-user.target.wants/{FRONT}",
                f"{UNITS}/{GROUP}.wants/{FRONT}",
            },
            "reload": True,
            "start": {FRONT},
        },
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_changed_data_changes_no_more_than_it_must(scenario: str) -> None:
    """Promises 9 and 10: what is not declared goes, and nobody else's connection drops."""
    before, after, expected = SCENARIOS[scenario]
    wanted = {
        key: tuple(sorted(value)) if isinstance(value, set) else value
        for key, value in expected.items()
    }
    assert as_dict(compare(plan_of(**after), matching(plan_of(**before)))) == expect(**wanted)


def test_another_family() -> None:
    """A forward that listens elsewhere has another relay; the old one is stopped and removed."""
    changes = compare(plan_of(**LISTEN_4), matching(plan_of()))
    new = RELAY.replace("-46-", "-4-")
    assert changes.stop == (RELAY,)
    assert new in changes.start
    assert changes.remove == (DROP_IN,)
    assert {each.path for each in changes.write} == {
        f"{UNITS}/{FRONT}",
        f"{UNITS}/{new}.d/forward.conf",
        f"{UNITS}/multi-user.target.wants/{FRONT}",
        f"{UNITS}/{GROUP}.wants/{FRONT}",
    }
    assert (changes.restart, changes.reload, changes.read_again) == ((), True, ())


# ---- Cut off ---------------------------------------------------------------------------------


def test_cut_off_while_a_home_is_added() -> None:
    """Promise 12: all is written, and nothing read. The new home is looked up now, not when the timer
    comes to it."""
    before = plan_of(homes=[FRITZBOX], forwards=[TCP])
    seen = matching(before)
    written = matching(PLAN)
    seen = replace(
        seen,
        files={
            path: replace(file, unread=path not in seen.files or file != seen.files[path])
            for path, file in written.files.items()
        },
        deleted_since_load=True,
    )
    changes = compare(PLAN, seen)
    assert changes.write == ()
    assert changes.reload
    assert changes.read_again == (UPDATER_UNIT,)
    assert set(changes.start) == {WATCHERS[1], OTHER_RELAY.replace("-46-to-6", "")}


# What a deploy does, step by step, to what is seen of the VPS.
DONE: tuple[Callable[[Plan, Changes, Observed], Observed], ...] = (
    lambda plan, changes, seen: replace(
        seen,
        files={
            **seen.files,
            **{
                each.path: replace(matching(plan).files[each.path], unread=True)
                for each in changes.write
            },
        },
    ),
    lambda plan, changes, seen: replace(
        seen,
        units={name: each for name, each in seen.units.items() if name not in changes.stop},
    ),
    lambda plan, changes, seen: replace(
        seen,
        files={path: each for path, each in seen.files.items() if path not in changes.remove},
        deleted_since_load=bool(changes.remove),
    ),
    lambda plan, changes, seen: replace(
        seen,
        files={
            path: replace(each, unread=each.unread and path == CONF)
            for path, each in seen.files.items()
        },
        deleted_since_load=False,
    ),
    lambda plan, changes, seen: replace(
        seen,
        files={path: replace(each, unread=False) for path, each in seen.files.items()},
        addresses=matching(plan).addresses,
    ),
    lambda plan, changes, seen: replace(
        seen,
        units={
            name: matching(plan).units[name] if name in changes.restart else each
            for name, each in seen.units.items()
        },
    ),
    lambda plan, changes, seen: replace(
        seen,
        units={
            **seen.units,
            **{name: each for name, each in matching(plan).units.items() if name in plan.units},
        },
    ),
)
CHANGED: dict[str, tuple[Data, Data]] = {
    "a home and its forward are added": ({"homes": [FRITZBOX], "forwards": [TCP]}, {}),
    "a home and its forward are taken away": ({}, {"homes": [FRITZBOX], "forwards": [TCP]}),
    "homes in another order": ({}, {"homes": [NAS, FRITZBOX]}),
    "a host name": ({}, {"homes": [{**FRITZBOX, "hostname": "yyy.myfritz.net"}, NAS]}),
    "settings": ({}, {"forwards": [{**TCP, "target_port": 80}, UDP], "check_interval": 30}),
}


@pytest.mark.parametrize("cut", range(len(DONE) + 1))
@pytest.mark.parametrize("case", CHANGED)
def test_cut_off_anywhere(case: str, cut: int) -> None:
    """Promise 12: what was not reached is done by the next deploy; then all is as declared."""
    before, after = CHANGED[case]
    plan = plan_of(**after)
    seen = matching(plan_of(**before))
    first = compare(plan, seen)
    for done in DONE[:cut]:
        seen = done(plan, first, seen)
    second = compare(plan, seen)
    left = {
        "reload": cut < 4 and first.reload,
        "read_again": cut < 5 and bool(first.read_again),
        "restart": cut < 6 and bool(first.restart),
    }
    assert {key: bool(getattr(second, key)) for key in left} == left
    for done in DONE:
        seen = done(plan, second, seen)
    assert compare(plan, seen) == NO_CHANGES


def test_the_look_up_is_told_of_every_change_of_the_conf() -> None:
    """Promise 12: the evidence is asked for."""
    readers = {file.path: file.reader for file in PLAN.files if file.reader}
    assert readers[CONF] == UPDATER_UNIT
    assert set(readers.values()) <= PLAN.units
    assert "HOME_HOSTNAME_0" in file_of(PLAN, CONF)
