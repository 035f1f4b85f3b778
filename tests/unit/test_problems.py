# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a VPS cannot be deployed to as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from unit_samples import TCP, UDP, Data, matching, plan_of, with_unit

from home_forwarder.compare import Listener, Observed, problems
from home_forwarder.plan import Plan

TIMER = "home-address-updater.timer"
FRONT = "home-tcpforwarder@0:44444.service"
RELAY = "home-tcpforwarder-46-to-6@0:44444.service"
STRAY = "home-udpforwarder-46-to-6@1:8080.service"

Drift = Callable[[Observed], Observed]


def listener(
    address: str, port: int = 44444, protocol: str = "tcp", unit: str = "", program: str = ""
) -> Listener:
    return Listener(protocol, address, port, program, unit)


def nginx(address: str, port: int = 44444, protocol: str = "tcp") -> Listener:
    return listener(address, port, protocol, unit="nginx.service", program="nginx")


TAKEN = "tcp port 44444 is taken by nginx (nginx.service); forward another port"


def with_stray(vps: Observed, there: Listener) -> Observed:
    """A VPS with one who listens, and a unit of ours that is not declared."""
    return replace(with_unit(vps, STRAY), listeners=(there,))


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
    ("IPv4", "46", nginx("0.0.0.0"), True),
    ("IPv6", "46", nginx("::"), True),
    ("both families", "46", nginx("*"), True),
    ("one address", "46", nginx("192.0.2.1"), True),
    ("one IPv6 address", "46", nginx("2001:db8::1"), True),
    ("one interface", "46", nginx("127.0.0.53"), True),
    ("IPv4, we listen on IPv4", "4", nginx("0.0.0.0"), True),
    ("IPv6, we listen on IPv4", "4", nginx("::"), False),
    ("both, we listen on IPv4", "4", nginx("*"), True),
    ("IPv4, we listen on IPv6", "6", nginx("0.0.0.0"), False),
    ("IPv6, we listen on IPv6", "6", nginx("::"), True),
    ("both, we listen on IPv6", "6", nginx("*"), True),
    ("the other protocol", "46", nginx("*", protocol="udp"), False),
    ("another port", "46", nginx("*", port=44445), False),
    ("our relay", "46", listener("*", program="socat", unit=RELAY), False),
    ("our undeclared relay", "46", listener("*", program="socat", unit=STRAY), False),
):
    PROBLEMS[f"port taken: {name}"] = (
        {"forwards": [{**TCP, "listen": listen}, UDP]},
        partial(with_stray, there=seen),
        [TAKEN] if taken else [],
    )
PROBLEMS["port taken twice by one"] = (
    {},
    lambda seen: replace(seen, listeners=(nginx("0.0.0.0"), nginx("::"))),
    [TAKEN],
)
PROBLEMS["port taken by nobody known"] = (
    {},
    lambda seen: replace(seen, listeners=(listener("*"),)),
    ["tcp port 44444 is taken by another program; forward another port"],
)
PROBLEMS["port of a range taken"] = (
    {"forwards": [{**TCP, "port": "44440-44450"}]},
    lambda seen: replace(seen, listeners=(nginx("*"),)),
    [TAKEN],
)


PROBLEMS["not root, who sees nobody's sockets"] = (
    {},
    lambda seen: replace(seen, root=False, listeners=(listener("*"), listener("*", unit=STRAY))),
    ["not root: set"],
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
    seen = replace(matching(plan_of()), listeners=(nginx("*"),))
    assert problems(Plan(), seen) == []
