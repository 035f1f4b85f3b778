# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VPS answers: taken if it has the shape that observe.py gives it, refused if not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pyinfra.api.exceptions import FactProcessError
from unit_samples import Data, plan_of, without

from home_forwarder.compare import ADDRESS, REVISION, Listener, Observed, SeenFile, SeenUnit
from home_forwarder.plan import CONF
from operations.facts import HostState, Question

RELAY = "home-tcpforwarder-46-to-6@0:44444.service"
ANSWER: Data = {
    "basis": "0123",
    "files": {
        "file": {
            "mode": "644",
            "owner": "root",
            "group": "root",
            "sha256": "00",
            "unread": True,
        },
        "link": {"mode": "777", "owner": "root", "group": "root", "target": "x"},
        "other": {"mode": "755", "owner": "root", "group": "root"},
    },
    "deleted_since_load": False,
    "masked": ["x.service"],
    "units": {
        RELAY: {
            "load": "loaded",
            "active": "active",
            "sub": "running",
            "runs": True,
            "environment": {REVISION: "1", ADDRESS: "2001:db8::1"},
        }
    },
    "listeners": [
        {"protocol": "tcp", "address": "*", "port": 80, "program": "nginx", "unit": "nginx.service"}
    ],
    "packages": ["python3"],
    "addresses": {"0": "2001:db8::1"},
    "texts": {CONF: "x"},
    "own_addresses": ["00"],
    "python": [3, 11],
    "systemd": True,
    "root": False,
    "manager": ["apt-get"],
}


def test_observed_from_json() -> None:
    """All that observe.py prints."""
    assert Observed.from_json(ANSWER) == Observed(
        basis="0123",
        files={
            "file": SeenFile("644", "root", "root", sha256="00", unread=True),
            "link": SeenFile("777", "root", "root", target="x"),
            "other": SeenFile("755", "root", "root"),
        },
        masked=("x.service",),
        units={
            RELAY: SeenUnit(
                "loaded", "active", "running", True, {REVISION: "1", ADDRESS: "2001:db8::1"}
            )
        },
        listeners=(Listener("tcp", "*", 80, "nginx", "nginx.service"),),
        packages=("python3",),
        addresses={"0": "2001:db8::1"},
        texts={CONF: "x"},
        own_addresses=("00",),
        python=(3, 11),
        root=False,
        manager=("apt-get",),
    )


def test_observed_without_python() -> None:
    """What a VPS without Python says: less, and the rest is as if nothing were there."""
    seen = Observed.from_json({"systemd": True, "root": True, "manager": ["dnf"]})
    assert seen == Observed(manager=("dnf",))


def wrong_values(value: Any) -> list[Any]:
    """Of another type than `value`; of a list also one with such a thing in it."""
    others = (None, True, 7, 7.5, "x", ["x"], [["x"]], {"x": "y"})
    wrong = [other for other in others if type(other) is not type(value)]
    if isinstance(value, list):
        wrong += [[*value, each] for each in wrong_values(value[0])]
    return wrong


def wrong_answers(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """`value` with one thing in it wrong, and what that is."""
    for other in wrong_values(value):
        yield f"{where} = {other!r}", other
    if isinstance(value, dict):
        for key, each in value.items():
            for name, other in wrong_answers(each, f"{where}/{key}"):
                yield name, {**value, key: other}
    if isinstance(value, list):
        for name, other in wrong_answers(value[0], f"{where}/0"):
            yield name, [other]


def test_other_shapes_are_refused() -> None:
    """Promise 14: a host that answers so fails, and nothing is decided by what it says."""
    accepted = []
    for name, answer in wrong_answers(ANSWER):
        try:
            Observed.from_json(answer)
        except (TypeError, ValueError, KeyError, AttributeError):
            continue
        accepted.append(name)
    assert accepted == ["/files/file/sha256 = None", "/files/link/target = None"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("ports", []), ("files", {"x": {}}), ("units", {"x": {"load": "x"}}), ("listeners", [{}])],
)
def test_keys_too_many_or_too_few(key: str, value: object) -> None:
    """Promise 14, as above."""
    with pytest.raises(TypeError):
        Observed.from_json({**ANSWER, key: value})


@pytest.mark.parametrize(("key", "name"), [("files", "file"), ("units", RELAY), ("listeners", 0)])
def test_inner_keys_too_many_or_too_few(key: str, name: str | int) -> None:
    """Promise 14, as above."""
    good = ANSWER[key][name]
    needed = {
        "files": ("mode", "owner", "group"),
        "units": ("load", "active", "sub"),
        "listeners": ("protocol", "address", "port", "program", "unit"),
    }[key]
    for bad in ({**good, "more": True}, *(without(good, each) for each in needed)):
        with pytest.raises(TypeError):
            Observed.from_json({**ANSWER, key: {name: bad} if isinstance(name, str) else [bad]})


# ---- The fact ------------------------------------------------------------------------------------


def fact(*lines: str) -> Observed:
    """What the fact makes of an answer."""
    state = HostState()
    state.command(Question(plan_of()))
    return state.process([state._call._mark, *lines])


def test_fact() -> None:
    assert fact(json.dumps(ANSWER)) == Observed.from_json(ANSWER)


NO_ANSWER, ANOTHER = r"^the VPS answered ", r"^what the VPS answered is not understood: "


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("", NO_ANSWER),
        ("{", NO_ANSWER),
        ("Welcome to vps1!", NO_ANSWER),
        ("[]", NO_ANSWER),
        ("null", NO_ANSWER),
        ("7", NO_ANSWER),
        ('"x"', NO_ANSWER),
        ("[" * 100_000, NO_ANSWER),
        ('{"x":' * 100_000, ANOTHER),
        ('{"files": 7}', ANOTHER),
        ('{"files": {"x": {}}}', ANOTHER),
        ('{"other": 1}', ANOTHER),
        ('{"python": "3.11"}', ANOTHER),
        ('{"root": null}', ANOTHER),
        ('{"root": null}{"root": true}', ANOTHER),
    ],
    ids=lambda text: text[:30],
)
def test_a_strange_answer_fails_its_host_alone(answer: str, says: str) -> None:
    """Promise 14: pyinfra lets one host fail for this exception, and ends the run for any other."""
    with pytest.raises(FactProcessError, match=says):
        fact(answer)


def test_question_is_short_where_it_is_shown() -> None:
    """It stands in pyinfra's messages."""
    question = Question(plan_of())
    assert len(repr(question)) < 40
    assert "OWNED" not in question.text
    assert json.loads(question.text)["units"]
