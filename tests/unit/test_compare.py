# SPDX-License-Identifier: GPL-3.0-or-later
"""What a deploy does to a VPS that differs from its plan: that, and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from unit_samples import FRITZBOX, NAS, TCP, UDP, Data, matching, plan_of

from home_forwarder.compare import Changes, Observed, compare, problems
from home_forwarder.plan import UNITS, Plan

NOTHING = Changes(stop=(), write=(), remove=(), reload=False, look_up=False, restart=(), start=())
CONF = "/etc/home-forwarder.conf"
TIMER = "home-address-updater.timer"
GROUP = "home-tcpforwarders.service"
FRONT = "home-tcpforwarder@0:44444.service"
RELAY = "home-tcpforwarder-46-to-6@0:44444.service"
OTHER_RELAY = "home-udpforwarder-46-to-6@1:33333.service"
DROP_IN = f"{UNITS}/{RELAY}.d/forward.conf"
STRAY = "home-udpforwarder-46-to-6@1:8080.service"
WATCHERS = ("home-address-watcher@0.path", "home-address-watcher@1.path")

PLAN = plan_of()


def unit(seen: Observed, name: str, **properties: object) -> Observed:
    """The VPS with some properties of a unit changed, or with one more unit."""
    base = seen.units.get(name) or {
        **seen.units["home-address-updater.service"],
        "LoadState": "loaded",
    }
    return replace(seen, units={**seen.units, name: {**base, **properties}})


def entry(seen: Observed, path: str, **properties: Any) -> Observed:
    """The VPS with some properties of a file changed, or with one more file."""
    base = seen.files.get(path) or {"mode": "644", "owner": "root", "group": "root"}
    changed = {key: value for key, value in {**base, **properties}.items() if value is not None}
    return replace(seen, files={**seen.files, path: changed})


def without(seen: Observed, path: str) -> Observed:
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
    return {**as_dict(NOTHING), **changes}


Drift = Callable[[Observed], Observed]

DRIFTS: dict[str, tuple[Drift, Data]] = {
    "none": (lambda seen: seen, {}),
    # Files.
    "conf edited by hand": (
        lambda seen: entry(seen, CONF, sha256="0"),
        {"write": (CONF,), "look_up": True},
    ),
    "mode": (lambda seen: entry(seen, CONF, mode="600"), {"write": (CONF,), "look_up": True}),
    "owner": (
        lambda seen: entry(seen, "/usr/local/bin/home-address-update", owner="nobody"),
        {"write": ("/usr/local/bin/home-address-update",)},
    ),
    "group": (
        lambda seen: entry(seen, "/usr/local/lib/home-forwarder/relay", group="users"),
        {"write": ("/usr/local/lib/home-forwarder/relay",)},
    ),
    "file missing": (
        lambda seen: without(seen, "/usr/local/lib/home-forwarder/relay"),
        {"write": ("/usr/local/lib/home-forwarder/relay",)},
    ),
    "directory in the place of a file": (
        lambda seen: entry(seen, CONF, sha256=None, other=True),
        {"write": (CONF,), "look_up": True},
    ),
    "link in the place of a file": (
        lambda seen: entry(seen, CONF, sha256=None, target="/tmp/conf"),
        {"write": (CONF,), "look_up": True},
    ),
    "file in the place of a link": (
        lambda seen: entry(seen, "/etc/home-address-ipv6", target=None, sha256="0", mode="644"),
        {"write": ("/etc/home-address-ipv6",)},
    ),
    "link to elsewhere": (
        lambda seen: entry(seen, "/etc/home-address-ipv6", target="/dev/shm/x"),
        {"write": ("/etc/home-address-ipv6",)},
    ),
    "unit disabled": (
        lambda seen: without(seen, f"{UNITS}/multi-user.target.wants/{FRONT}"),
        {"write": (f"{UNITS}/multi-user.target.wants/{FRONT}",), "reload": True},
    ),
    "service template edited": (
        lambda seen: entry(seen, f"{UNITS}/home-tcpforwarder-46-to-6@.service", sha256="0"),
        {"write": (f"{UNITS}/home-tcpforwarder-46-to-6@.service",), "reload": True},
    ),
    "timer edited": (
        lambda seen: entry(seen, f"{UNITS}/{TIMER}", sha256="0"),
        {"write": (f"{UNITS}/{TIMER}",), "reload": True, "restart": (TIMER,)},
    ),
    "path template edited": (
        lambda seen: entry(seen, f"{UNITS}/home-address-watcher@.path", sha256="0"),
        {
            "write": (f"{UNITS}/home-address-watcher@.path",),
            "reload": True,
            "restart": WATCHERS,
        },
    ),
    "drop-in edited, relay not restarted": (
        lambda seen: entry(seen, DROP_IN, sha256="0"),
        {"write": (DROP_IN,), "reload": True},
    ),
    "undeclared file of ours": (
        lambda seen: entry(seen, "/usr/local/bin/home-address-update.sh"),
        {"remove": ("/usr/local/bin/home-address-update.sh",)},
    ),
    "undeclared forward enabled": (
        lambda seen: entry(
            seen,
            f"{UNITS}/multi-user.target.wants/home-tcpforwarder@1:8080.service",
            target=f"{UNITS}/home-tcpforwarder@.service",
        ),
        {
            "remove": (f"{UNITS}/multi-user.target.wants/home-tcpforwarder@1:8080.service",),
            "reload": True,
        },
    ),
    # Units that run.
    "undeclared unit runs": (
        lambda seen: unit(seen, STRAY, ActiveState="active"),
        {"stop": (STRAY,)},
    ),
    "undeclared unit waits for its restart": (
        lambda seen: unit(seen, STRAY, ActiveState="activating", SubState="auto-restart"),
        {"stop": (STRAY,)},
    ),
    "undeclared unit failed": (
        lambda seen: unit(seen, STRAY, ActiveState="failed"),
        {"stop": (STRAY,)},
    ),
    "undeclared unit is loaded only": (lambda seen: unit(seen, STRAY, ActiveState="inactive"), {}),
    "triggered service runs": (
        lambda seen: unit(seen, "home-address-updater.service", ActiveState="activating"),
        {},
    ),
    "relay runs with older settings": (
        lambda seen: unit(seen, RELAY, Revision="0"),
        {"restart": (RELAY,)},
    ),
    "relay runs without a revision": (
        lambda seen: unit(seen, RELAY, Revision=""),
        {"restart": (RELAY,)},
    ),
    "relay leads to where the home was": (
        lambda seen: unit(seen, RELAY, HomeAddress="2001:db8::dead"),
        {"restart": (RELAY,)},
    ),
    "relay runs, and where the home is is unknown": (
        lambda seen: replace(seen, addresses={"1": "2001:db8::2"}),
        {},
    ),
    "systemd has not read the relay again": (
        lambda seen: entry(seen, DROP_IN, unread=True),
        {"reload": True},
    ),
    "systemd has not read the timer again": (
        lambda seen: entry(seen, f"{UNITS}/{TIMER}", unread=True),
        {"reload": True, "restart": (TIMER,)},
    ),
    "systemd has not read the watchers again": (
        lambda seen: entry(seen, f"{UNITS}/home-address-watcher@.path", unread=True),
        {"reload": True, "restart": WATCHERS},
    ),
    "systemd has not read that something is gone": (
        lambda seen: replace(seen, deleted_since_load=True),
        {"reload": True},
    ),
    "forward's template edited": (
        lambda seen: entry(seen, f"{UNITS}/home-tcpforwarder@.service", sha256="0"),
        {"write": (f"{UNITS}/home-tcpforwarder@.service",), "reload": True},
    ),
    # Units that do not run.
    "timer stopped": (
        lambda seen: unit(seen, TIMER, ActiveState="inactive"),
        {"look_up": True, "start": (TIMER,)},
    ),
    "watcher failed": (
        lambda seen: unit(seen, WATCHERS[1], ActiveState="failed"),
        {"start": (WATCHERS[1],)},
    ),
    "forward stopped, and with it its relay": (
        lambda seen: unit(
            unit(seen, RELAY, ActiveState="inactive", Runs=False, Revision=""),
            FRONT,
            ActiveState="inactive",
        ),
        {"start": (FRONT,)},
    ),
    "relay stopped": (
        lambda seen: unit(seen, RELAY, ActiveState="inactive", Runs=False, Revision=""),
        {"start": (RELAY,)},
    ),
    "relay failed": (
        lambda seen: unit(seen, RELAY, ActiveState="failed", Runs=False, Revision=""),
        {"start": (RELAY,)},
    ),
    "relay unknown to systemd": (
        lambda seen: replace(
            seen, units={name: each for name, each in seen.units.items() if name != RELAY}
        ),
        {"start": (RELAY,)},
    ),
    "relay about to be started again": (
        lambda seen: unit(
            seen, RELAY, ActiveState="activating", SubState="auto-restart", Runs=False, Revision=""
        ),
        {},
    ),
    "relay waits for an address": (
        lambda seen: replace(
            unit(seen, RELAY, ActiveState="inactive", Runs=False, Revision=""),
            addresses={"1": "2001:db8::2"},
        ),
        {},
    ),
    "other home's address unknown": (
        lambda seen: replace(
            unit(seen, RELAY, ActiveState="inactive", Runs=False, Revision=""),
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
    assert compare(plan, matching(plan)) == NOTHING


def test_new_vps() -> None:
    """Everything is written, read and started; the look-up comes before the relays."""
    changes = compare(PLAN, Observed())
    assert set(changes.write) == set(PLAN.entries)
    assert set(changes.start) == set(PLAN.running)
    assert (changes.stop, changes.remove, changes.restart) == ((), (), ())
    assert changes.reload
    assert changes.look_up


def test_undeploy() -> None:
    """Promise 9: with an empty plan everything of ours goes, and nothing is left to do then."""
    seen = matching(PLAN)
    running = {name for name, each in seen.units.items() if each["ActiveState"] == "active"}
    assert as_dict(compare(Plan(), seen)) == expect(
        stop=tuple(sorted(running)), remove=tuple(sorted(seen.files)), reload=True
    )
    assert compare(Plan(), Observed()) == NOTHING


LISTEN_4: Data = {"forwards": [{**TCP, "listen": "4"}, UDP]}
SCENARIOS: dict[str, tuple[Data, Data, Data]] = {
    # name: the data before, the data after, what is stopped, removed, restarted and started;
    # what is written is checked by its file names
    "description of a home": (
        {},
        {"homes": [{**FRITZBOX, "description": "Cellar"}, NAS]},
        {"write": {CONF}, "look_up": True},
    ),
    "host name of a home": (
        {},
        {"homes": [{**FRITZBOX, "hostname": "yyy.myfritz.net"}, NAS]},
        {"write": {CONF}, "look_up": True},
    ),
    "who gets mails": (
        {"notify": {"mail_to": "me@provider.net"}},
        {"notify": {"mail_to": "root"}},
        {"write": {CONF}, "look_up": True},
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
            "look_up": True,
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
    assert (changes.restart, changes.reload, changes.look_up) == ((), True, False)


# ---- Why a VPS cannot be deployed to ----------------------------------------------------------


def listener(
    address: str, port: int = 44444, protocol: str = "tcp", unit: str = "", program: str = ""
) -> Data:
    return {
        "protocol": protocol,
        "address": address,
        "port": port,
        "program": program,
        "unit": unit,
    }


NGINX = {"program": "nginx", "unit": "nginx.service"}
TAKEN = "tcp port 44444 is taken by nginx (nginx.service); forward another port"

PROBLEMS: dict[str, tuple[Data, Drift, list[str]]] = {
    # name: the data, the VPS, how each line starts
    "none": ({}, lambda seen: seen, []),
    "no systemd": ({}, lambda seen: replace(seen, systemd=False), ["systemd does not run here"]),
    "not root": ({}, lambda seen: replace(seen, root=False), ["not root: set"]),
    "old Python": (
        {},
        lambda seen: replace(seen, python=(3, 8)),
        ["its Python is 3.8; 3.9 or later is needed"],
    ),
    "Python 3.9": ({}, lambda seen: replace(seen, python=(3, 9)), []),
    "Python 3.10": ({}, lambda seen: replace(seen, python=(3, 10)), []),
    "no Python yet": ({}, lambda seen: replace(seen, python=()), []),
    "all at once": (
        {},
        lambda seen: replace(seen, systemd=False, root=False, python=(2, 7)),
        ["systemd does not run", "not root", "its Python is 2.7"],
    ),
    "masked": (
        {},
        lambda seen: replace(seen, masked=(FRONT, TIMER)),
        [
            f"{FRONT} is masked here; to let us have it again: systemctl unmask {FRONT}",
            f"{TIMER} is masked here",
        ],
    ),
    "template masked": (
        {},
        lambda seen: replace(seen, masked=("home-tcpforwarder@.service",)),
        ["home-tcpforwarder@.service is masked here"],
    ),
    "undeclared unit masked": ({}, lambda seen: replace(seen, masked=(STRAY,)), []),
}
for name, listen, seen, taken in (
    ("IPv4", "46", listener("0.0.0.0", **NGINX), True),
    ("IPv6", "46", listener("[::]", **NGINX), True),
    ("both families", "46", listener("*", **NGINX), True),
    ("one address", "46", listener("192.0.2.1", **NGINX), True),
    ("one IPv6 address", "46", listener("[2001:db8::1]", **NGINX), True),
    ("one interface", "46", listener("127.0.0.53%lo", **NGINX), True),
    ("IPv4, we listen on IPv4", "4", listener("0.0.0.0", **NGINX), True),
    ("IPv6, we listen on IPv4", "4", listener("[::]", **NGINX), False),
    ("both, we listen on IPv4", "4", listener("*", **NGINX), True),
    ("IPv4, we listen on IPv6", "6", listener("0.0.0.0", **NGINX), False),
    ("IPv6, we listen on IPv6", "6", listener("[::]", **NGINX), True),
    ("both, we listen on IPv6", "6", listener("*", **NGINX), True),
    ("the other protocol", "46", listener("*", protocol="udp", **NGINX), False),
    ("another port", "46", listener("*", port=44445, **NGINX), False),
    ("our relay", "46", listener("*", program="socat", unit=RELAY), False),
    ("our undeclared relay", "46", listener("*", program="socat", unit=STRAY), False),
):
    PROBLEMS[f"port taken: {name}"] = (
        {"forwards": [{**TCP, "listen": listen}, UDP]},
        lambda vps, seen=seen: replace(unit(vps, STRAY), listeners=(seen,)),
        [TAKEN] if taken else [],
    )
PROBLEMS["port taken twice by one"] = (
    {},
    lambda seen: replace(seen, listeners=(listener("0.0.0.0", **NGINX), listener("[::]", **NGINX))),
    [TAKEN],
)
PROBLEMS["port taken by nobody known"] = (
    {},
    lambda seen: replace(seen, listeners=(listener("*"),)),
    ["tcp port 44444 is taken by another program; forward another port"],
)
PROBLEMS["port of a range taken"] = (
    {"forwards": [{**TCP, "port": "44440-44450"}]},
    lambda seen: replace(seen, listeners=(listener("*", **NGINX),)),
    [TAKEN],
)


@pytest.mark.parametrize("case", PROBLEMS)
def test_problems(case: str) -> None:
    """Said before anything is changed, a line each, with what mends it."""
    changes, drift, expected = PROBLEMS[case]
    plan = plan_of(**changes)
    found = problems(plan, drift(matching(plan)))
    assert len(found) == len(expected), found
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_undeploy_is_stopped_by_no_port() -> None:
    """Whoever has taken the port by now: taking ours away is possible."""
    seen = replace(matching(PLAN), listeners=(listener("*", **NGINX),))
    assert problems(Plan(), seen) == []


def test_observed_from_json() -> None:
    """What observe.py prints, and what a VPS without Python says."""
    seen = Observed.from_json(
        {"python": [3, 11], "listeners": [listener("*")], "own_addresses": ["00"], "root": False}
    )
    assert seen == Observed(
        python=(3, 11), listeners=(listener("*"),), own_addresses=("00",), root=False
    )
