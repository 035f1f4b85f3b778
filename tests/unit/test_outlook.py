# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said before a deploy of what it begins to forward, and of what goes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit_samples import FRITZBOX, NAS, TCP, UDP, Data, file_of, matching, plan_of, with_unit

from home_forwarder.compare import PER_CLIENT, PROGRAM, Changes, Observed, compare
from home_forwarder.outlook import losses, new_forwards, new_limits, other_programs
from home_forwarder.plan import CONF, Plan

RELAY = "home-tcpforwarder-46-to-6@0:44444.service"

# ---- What begins -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (None, {}, ["tcp 44444 to xxx.myfritz.net", "udp 33333 to somedyndns.address.test"]),
        ({}, {}, []),
        ({"forwards": [UDP]}, {}, ["tcp 44444 to xxx.myfritz.net"]),
        ({}, {"forwards": [UDP]}, []),
        ({}, {"forwards": [{**TCP, "target_port": 80}, UDP]}, []),
        (
            {"forwards": []},
            {"forwards": [{**TCP, "port": "8000-8001"}]},
            ["tcp 8000 to xxx.myfritz.net", "tcp 8001 to xxx.myfritz.net"],
        ),
        # A relay for each family is one forward.
        (
            {"forwards": []},
            {"forwards": [{**TCP, "listen": "4"}, {**TCP, "listen": "6"}]},
            ["tcp 44444 to xxx.myfritz.net"],
        ),
        (
            {"homes": [], "forwards": []},
            {"homes": [{**FRITZBOX, "index": 7}], "forwards": [TCP]},
            ["tcp 44444 to xxx.myfritz.net"],
        ),
    ],
)
def test_new_forwards(before: Data | None, after: Data, said: list[str]) -> None:
    """As the user would say them, in the order of the data; not what goes on."""
    plan = plan_of(**after)
    seen = Observed() if before is None else matching(plan_of(**before))
    assert new_forwards(plan, compare(plan, seen)) == said


def test_a_forward_that_was_stopped_is_new() -> None:
    plan = plan_of()
    front = RELAY.replace("-46-to-6", "")
    assert new_forwards(plan, Changes(start=(front, RELAY))) == ["tcp 44444 to xxx.myfritz.net"]
    assert new_forwards(plan, Changes(start=(RELAY,), restart=(front,))) == []


# ---- What becomes another program ----------------------------------------------------------------

BY_SOCAT: Data = {**UDP, "relay": "socat"}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([BY_SOCAT], [UDP], "udp 33333 to somedyndns.address.test: forwarded by nginx from now on"),
        ([UDP], [BY_SOCAT], "udp 33333 to somedyndns.address.test: forwarded by socat from now on"),
        ([TCP], [{**TCP, "relay": "nginx"}], "tcp 44444 to xxx.myfritz.net: forwarded by nginx"),
        (
            [{**BY_SOCAT, "port": "8000-8010"}],
            [{**UDP, "port": "8000-8010"}],
            "udp 8000 to somedyndns.address.test, udp 8001 to somedyndns.address.test, ",
        ),
        (
            [{**BY_SOCAT, "listen": "4"}, {**BY_SOCAT, "listen": "6"}],
            [{**UDP, "listen": "4"}, {**UDP, "listen": "6"}],
            "udp 33333 to somedyndns.address.test: forwarded by nginx",
        ),
        ([UDP], [UDP], None),
        ([BY_SOCAT], [BY_SOCAT], None),
        ([], [UDP], None),
        ([UDP], [], None),
        ([UDP], [{**UDP, "idle_timeout": 60}], None),
    ],
)
def test_other_programs(before: list[Data], after: list[Data], said: str | None) -> None:
    """A line for all forwards that change over, and how to keep them as they are."""
    seen = matching(plan_of(forwards=before))
    lines = list(other_programs(plan_of(forwards=after), seen))
    assert len(lines) == (1 if said else 0)
    if said:
        assert lines[0].startswith(said)
        program = (before[0].get("relay") or "nginx") if before[0] is not TCP else "socat"
        assert lines[0].endswith(f'connections end once; "relay": "{program}" would keep it')
        assert len(lines[0]) < 500


def test_what_does_not_run_becomes_nothing_else() -> None:
    """Its program is not known, and it has no connections."""
    plan = plan_of(forwards=[UDP])
    seen = with_unit(matching(plan), plan.relays[0].unit, runs=False, environment={})
    assert list(other_programs(plan, seen)) == []


# ---- What limits a client from now on -------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "environment", "said"),
    [
        (
            [UDP],
            {PROGRAM: "nginx"},
            "udp 33333 to somedyndns.address.test: one client may have 256 ",
        ),
        ([UDP], {PROGRAM: "nginx", PER_CLIENT: "256"}, None),
        ([{**UDP, "max_per_client": 9}], {PROGRAM: "nginx", PER_CLIENT: "256"}, None),
        ([{**UDP, "max_connections": 255}], {PROGRAM: "nginx"}, None),
        ([BY_SOCAT], {}, None),
        # That it is another program from now on is said already.
        ([UDP], {}, None),
    ],
)
def test_new_limits(declared: list[Data], environment: dict[str, str], said: str | None) -> None:
    """Of relays that run without; nobody is told twice."""
    plan = plan_of(forwards=declared)
    seen = with_unit(matching(plan), plan.relays[0].unit, environment=environment)
    lines = list(new_limits(plan, seen))
    assert [line[: len(said or "")] for line in lines] == ([said] if said else [])
    assert list(new_limits(plan, matching(plan))) == list(new_limits(plan, Observed())) == []


# ---- What goes ---------------------------------------------------------------------------------

OTHER = {"name": "other", "hostname": "other.test"}


def said_of(before: Data, after: Data) -> list[str]:
    """Of a VPS that is as declared by `before`."""
    return list(losses(plan_of(**after), matching(plan_of(**before))))


def seen_with(conf: str, *running: str) -> Observed:
    """A VPS with this conf, and relays that run."""
    seen = Observed(texts={CONF: conf})
    for unit in running:
        seen = with_unit(seen, unit, active="active", runs=True)
    return seen


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {}),
        ({}, {"forwards": []}),
        ({"homes": [FRITZBOX], "forwards": [TCP]}, {}),
        ({}, {"homes": [{**FRITZBOX, "description": "Cellar"}, NAS]}),
        ({}, {"homes": [{**FRITZBOX, "name": "box"}, NAS], "forwards": [UDP]}),
        # An index that says what the position said.
        ({}, {"homes": [{**NAS, "index": 1}, {**FRITZBOX, "index": 0}]}),
        ({"notify": {"mail_to": "root"}}, {"notify": {"mail_to": "me@address.test"}}),
        ({"notify": {"program": "/usr/local/bin/x"}}, {}),
        (
            {"homes": [NAS, {**NAS, "name": "b"}], "forwards": [UDP]},
            {"homes": [{**NAS, "name": "b"}, NAS], "forwards": [UDP]},
        ),
    ],
)
def test_nothing_goes(before: Data, after: Data) -> None:
    assert said_of(before, after) == []


def test_a_home_that_is_taken_away() -> None:
    assert said_of({}, {"homes": [FRITZBOX], "forwards": [TCP]}) == [
        "home 1 (Home server, somedyndns.address.test) is not declared: it goes, and its forwards with it"
    ]


def test_another_host_name_is_another_home() -> None:
    (line,) = said_of({}, {"homes": [{**FRITZBOX, "hostname": "yyy.myfritz.net"}, NAS]})
    assert line.startswith("home 0 (Fritz!Box at home, xxx.myfritz.net) is not declared")


def test_a_home_that_moves() -> None:
    """Promise 5: whose connections end, and what would keep them."""
    three = {"homes": [OTHER, FRITZBOX, NAS]}
    assert said_of(three, {"homes": [FRITZBOX, NAS]}) == [
        "home 0 (other, other.test) is not declared: it goes, and its forwards with it",
        "xxx.myfritz.net becomes home 0 and was home 1: the connections of its forwards end;"
        ' "index": 1 for that home would keep them',
        "somedyndns.address.test becomes home 1 and was home 2: the connections of its forwards end;"
        ' "index": 2 for that home would keep them',
    ]
    kept = {"homes": [{**FRITZBOX, "index": 1}, {**NAS, "index": 2}]}
    assert said_of(three, kept) == [
        "home 0 (other, other.test) is not declared: it goes, and its forwards with it"
    ]


def test_a_home_that_moves_and_has_no_running_forwards() -> None:
    """Nobody is concerned."""
    plan = plan_of(homes=[NAS, FRITZBOX])
    seen = matching(plan_of())
    seen = replace(
        seen, units={name: replace(each, runs=False) for name, each in seen.units.items()}
    )
    assert list(losses(plan, seen)) == []
    only_nas = with_unit(seen, "home-udpforwarder-46-to-6@1:33333.service", runs=True)
    (line,) = losses(plan, only_nas)
    assert line.startswith("somedyndns.address.test becomes home 0 and was home 1")


def test_forwards_of_home_1_are_not_those_of_home_11() -> None:
    seen = seen_with(
        "HOME_ADDRESS_COUNT=12\nHOME_HOSTNAME_1=xxx.myfritz.net\nHOME_HOSTNAME_11=other.test\n",
        "home-tcpforwarder-46-to-6@11:80.service",
    )
    plan = plan_of(homes=[FRITZBOX, {**OTHER, "index": 11}], forwards=[])
    assert list(losses(plan, seen)) == []


def test_homes_with_one_host_name() -> None:
    """The one that goes is said to go, not to become the one that was there before."""
    twin = {**NAS, "name": "twin", "description": "Twin"}
    both: Data = {"homes": [NAS, twin], "forwards": [UDP, {**TCP, "home": "twin"}]}
    (line,) = said_of(both, {"homes": [NAS], "forwards": [UDP]})
    assert line.startswith("home 1 (Twin, somedyndns.address.test) is not declared")
    assert said_of({"homes": [NAS], "forwards": [UDP]}, both) == []


def test_who_got_mails() -> None:
    """Those of the shell version too: what to write is said."""
    assert said_of({"notify": {"mail_to": "root, me@address.test"}}, {}) == [
        "SEND_MAILS_TO=root, me@address.test is not declared: nobody will get mails of changes; to keep"
        ' it, write notify = {"mail_to": "root, me@address.test"}'
    ]
    (line,) = said_of({"notify": {"mail_to": "root"}}, {"notify": {"program": "/usr/bin/x"}})
    assert line.startswith("SEND_MAILS_TO=root is not declared")


OF_THE_SHELL = """# Written by hand
HOME_ADDRESS_COUNT=2
HOME_HOSTDESC_0='Fritz!Box'
HOME_HOSTNAME_0=XXX.MyFritz.NET.
HOME_HOSTNAME_1="somedyndns.address.test."
SEND_MAILS_TO=root
"""


def test_conf_of_the_shell_version() -> None:
    """A name in capitals, or with its final dot, is the same name."""
    relay = "home-tcpforwarder-46-to-6@0:44444.service"
    seen = seen_with(OF_THE_SHELL, relay)
    assert list(losses(plan_of(notify={"mail_to": "root"}), seen)) == []
    (mails,) = losses(plan_of(), seen)
    assert mails.startswith("SEND_MAILS_TO=root is not declared")
    moved, gone = losses(
        plan_of(homes=[OTHER, FRITZBOX], notify={"mail_to": "x"}, forwards=[]), seen
    )
    assert moved.startswith("xxx.myfritz.net becomes home 1 and was home 0")
    assert gone == (
        "home 1 (somedyndns.address.test, somedyndns.address.test) is not declared: it goes, and its"
        " forwards with it"
    )


def test_gaps() -> None:
    """An INDEX that no home has had is none that goes."""
    sparse = {"homes": [{**FRITZBOX, "index": 5}, {**NAS, "index": 900}]}
    assert said_of(sparse, sparse) == []
    assert len(said_of(sparse, {"homes": [{**NAS, "index": 900}], "forwards": [UDP]})) == 1
    assert "HOME_HOSTNAME_900" in file_of(plan_of(**sparse), CONF)


@pytest.mark.parametrize(
    "conf",
    [
        "",
        "\0\0",
        "HOME_HOSTNAME_0=xxx.myfritz.net\nnot a setting\n",
        'HOME_HOSTNAME_0="xxx\n',
        "HOME_HOSTNAME_=x\nHOME_HOSTNAME_x=y\nHOME_HOSTNAME_-1=z\nHOME_HOSTNAME=w\n",
        "HOME_HOSTNAME_²=x\n",
    ],
)
def test_a_conf_that_says_nothing(conf: str) -> None:
    """Empty, or made unreadable by hand: nothing is said, and nothing fails."""
    assert list(losses(plan_of(), seen_with(conf, RELAY))) == []


def test_no_conf_at_all() -> None:
    assert list(losses(plan_of(), Observed())) == []
    assert list(losses(Plan(), seen_with("SEND_MAILS_TO=root\n"))) == []
