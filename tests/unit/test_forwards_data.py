# SPDX-License-Identifier: GPL-3.0-or-later
"""Forwards: what is right, what is wrong, and what a VPS gets of it."""

from __future__ import annotations

from typing import Any

import pytest
from unit_samples import (
    FRITZBOX,
    FULL,
    NAS,
    RELAY,
    TCP,
    UDP,
    Data,
    Mistake,
    check_mistake,
    data,
    file_of,
    keys,
    plan_of,
    top,
    without,
)

from home_forwarder.config import load_config
from home_forwarder.parts.forwards import IDLE_TIMEOUT, Forward
from home_forwarder.render import module_of
from home_forwarder.values import PortRange

# ---- Right -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "idle"), [(TCP, 7440), (UDP, 300)])
def test_defaults_of_a_forward(given: dict[str, object], idle: int) -> None:
    """RFC 5382 and RFC 4787 say how long an idle connection lives at least."""
    forward = load_config(data(forwards=[given])).forwards[0]
    assert (forward.listen, forward.max_connections, forward.idle_seconds) == ("46", 1024, idle)
    assert forward.target_of(forward.port.first) == given["port"]


def test_defaults_are_those_of_the_relay() -> None:
    """An ad-hoc instance without a drop-in behaves as a declared one with nothing but a port."""
    relay = module_of(RELAY)
    assert relay.IDLE_TIMEOUT == IDLE_TIMEOUT
    limit = Forward.model_fields["max_connections"].default
    assert limit == relay.MAX_CONNECTIONS
    assert relay.LISTEN.keys() == {"46", "4", "6"}


@pytest.mark.parametrize(
    ("port", "first", "last"),
    [
        (1, 1, 1),
        (65535, 65535, 65535),
        ("8080", 8080, 8080),
        ("8000-8010", 8000, 8010),
        ("8000-8000", 8000, 8000),
        ("8000-8255", 8000, 8255),
        ("65280-65535", 65280, 65535),
    ],
)
def test_ports(port: object, first: int, last: int) -> None:
    """A number, or a range with both ends."""
    (forward,) = load_config(data(forwards=[{**TCP, "port": port}])).forwards
    assert forward.port == PortRange(first, last)
    assert list(forward.port) == list(range(first, last + 1))
    assert len(forward.port) == last - first + 1


def test_target_ports_of_a_range() -> None:
    """target_port is that of the first port; 65535 is the last there is."""
    given = {**TCP, "port": "8000-8010", "target_port": 65525}
    (forward,) = load_config(data(forwards=[given])).forwards
    assert [forward.target_of(port) for port in forward.port] == list(range(65525, 65536))


@pytest.mark.parametrize(
    "forwards",
    [
        pytest.param(
            [{**TCP, "listen": "4"}, {**TCP, "listen": "6", "home": "nas"}], id="one family each"
        ),
        pytest.param([TCP, {**TCP, "protocol": "udp"}], id="tcp and udp"),
        pytest.param([{**TCP, "port": "80-89"}, {**TCP, "port": "90-99"}], id="ranges that touch"),
        pytest.param([{**UDP, "port": 22}], id="udp on the number of ssh"),
        pytest.param([TCP, {**TCP, "port": 1, "target_port": 44444}], id="one target twice"),
        pytest.param([], id="none"),
    ],
)
def test_forwards_that_do_not_clash(forwards: list[dict[str, object]]) -> None:
    assert len(load_config(data(forwards=forwards)).forwards) == len(forwards)


# ---- Wrong -----------------------------------------------------------------------------------


def forward(name: str, change: Data, key: str, right: str, written: str = "") -> Mistake:
    """A mistake in forwards[0]; the value of its first key is what is wrong if not said else."""
    return Mistake(
        name,
        {"forwards": [{**TCP, **change}]},
        f"forwards[0].{key}: ",
        written or repr(next(iter(change.values()))),
        right,
    )


A_PORT = "write a number from 1 to 65535, or a range such as '8000-8010'"

MISTAKES = [
    Mistake(
        "forward key misspelt",
        {"forwards": [{**TCP, "traget_port": 80}]},
        "forwards[0].traget_port: ",
        "traget_port",
        "did you mean 'target_port'?",
    ),
    Mistake(
        "forward without home",
        {"forwards": [without(TCP, "home")]},
        "forwards[0].home: ",
        "is missing",
        "the name of the home",
    ),
    Mistake(
        "forward without protocol",
        {"forwards": [without(TCP, "protocol")]},
        "forwards[0].protocol: ",
        "is missing",
        '"tcp" or "udp"',
    ),
    Mistake(
        "forward without port",
        {"forwards": [TCP, without(TCP, "port")]},
        "forwards[1].port: ",
        "is missing",
        '"port": 44444',
    ),
    top("forwards is a number", "forwards", 44444, "write forwards = [{"),
    Mistake(
        "forward is a number",
        {"forwards": [44444]},
        "forwards[0]: ",
        "44444",
        'write {"key": value',
    ),
    forward("unknown home", {"home": "fritzbx"}, "home", "did you mean 'fritzbox'?"),
    forward("home like no other", {"home": "cellar"}, "home", "the homes are fritzbox, nas"),
    forward("home by its INDEX", {"home": 0}, "home", "such as 'fritzbox'"),
    forward("protocol in capitals", {"protocol": "TCP"}, "protocol", "'tcp', 'udp'"),
    forward("protocol unknown", {"protocol": "sctp"}, "protocol", "'tcp', 'udp'"),
    forward("protocol is a list", {"protocol": ["tcp", "udp"]}, "protocol", "'tcp', 'udp'"),
    forward("port is the ssh port", {"port": 22}, "port", "the VPS's own ssh port", "22"),
    forward("range with the ssh port", {"port": "20-23"}, "port", "the VPS's own ssh port", "22"),
    Mistake(
        "port is the ssh_port declared",
        {"ssh_port": 44444, "forwards": [TCP]},
        "forwards[0].port: ",
        "44444",
        "which ssh_port sshd really uses",
    ),
    forward("port 0", {"port": 0}, "port", A_PORT),
    forward("port too high", {"port": 65536}, "port", A_PORT),
    forward("port negative", {"port": -1}, "port", A_PORT),
    forward("port is a bool", {"port": True}, "port", A_PORT),
    forward("port is a float", {"port": 80.0}, "port", A_PORT),
    forward("port with a letter", {"port": "80x"}, "port", A_PORT),
    forward("port with a space", {"port": "80 - 90"}, "port", A_PORT),
    forward("port with a line break", {"port": "80\n"}, "port", A_PORT),
    forward("port of other digits", {"port": "８０"}, "port", A_PORT),
    forward("range open", {"port": "80-"}, "port", A_PORT),
    forward("range of three", {"port": "80-90-100"}, "port", A_PORT),
    forward("range ends too high", {"port": "65535-65536"}, "port", A_PORT),
    forward("range backwards", {"port": "8010-8000"}, "port", "'8000-8010'"),
    forward("range too long", {"port": "8000-8256"}, "port", "at most 256"),
    Mistake(
        "one port twice",
        {"forwards": [TCP, {**TCP, "home": "nas"}]},
        "forwards[1].port: ",
        "tcp port 44444 on IPv4 is taken by forwards[0]",
        "use another port",
    ),
    Mistake(
        "port twice on one family",
        {"forwards": [{**TCP, "listen": "6"}, {**TCP, "home": "nas"}]},
        "forwards[1].port: ",
        "tcp port 44444 on IPv6 is taken by forwards[0]",
        "or listen on one family each",
    ),
    Mistake(
        "ranges overlap",
        {"forwards": [{**TCP, "port": "8000-8010"}, {**TCP, "port": "8010-8020"}]},
        "forwards[1].port: ",
        "tcp port 8010 on IPv4 is taken by forwards[0]",
        "use another port",
    ),
    forward("target_port is text", {"target_port": "80x"}, "target_port", "from 1 to 65535"),
    forward("target_port 0", {"target_port": 0}, "target_port", "from 1 to 65535"),
    forward(
        "target_port overflows",
        {"port": "8000-8010", "target_port": 65530},
        "target_port",
        "the last would be 65540",
        "65530",
    ),
    forward("listen is a number", {"listen": 46}, "listen", "'46', '4', '6'"),
    forward("listen the other way round", {"listen": "64"}, "listen", "'46', '4', '6'"),
    forward("idle_timeout 0", {"idle_timeout": 0}, "idle_timeout", "of seconds from 1 to"),
    forward(
        "idle_timeout with a unit", {"idle_timeout": "2h"}, "idle_timeout", "of seconds from 1"
    ),
    forward("max_connections 0", {"max_connections": 0}, "max_connections", "from 1 to 16384"),
    forward("max_connections bool", {"max_connections": True}, "max_connections", "from 1 to"),
    forward("max_connections high", {"max_connections": 16385}, "max_connections", "to 16384"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.name for mistake in MISTAKES])
def test_mistake(mistake: Mistake) -> None:
    """Promise 11."""
    check_mistake(mistake)


# ---- What a VPS gets -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relay", "settings"),
    [
        ("home-tcpforwarder-46-to-6@0:44444", (44444, 7440, 1024)),
        ("home-udpforwarder-46-to-6@1:33333", (51820, 60, 1024)),
        ("home-udpforwarder-46-to-6@1:33334", (51821, 60, 1024)),
        ("home-tcpforwarder-6-to-6@0:443", (8443, 7440, 1024)),
        ("home-tcpforwarder-46-to-6@1:25", (25, 7440, 10)),
    ],
)
def test_settings_in_the_drop_in(relay: str, settings: tuple[int, int, int]) -> None:
    """A forward's settings stand whole in its drop-in, with room for all of its processes."""
    plan = plan_of(**FULL)
    revision = next(each.revision for each in plan.relays if each.unit == f"{relay}.service")
    found = keys(file_of(plan, f"{relay}.service.d/forward.conf"))
    assert found.keys() == {"Environment", "TasksMax"}
    assert sorted(found["Environment"]) == [
        f"FORWARD_IDLE_TIMEOUT={settings[1]}",
        f"FORWARD_MAX_CONNECTIONS={settings[2]}",
        *(["FORWARD_MAX_PER_CLIENT=256", "FORWARD_RELAY=nginx"] if "udp" in relay else []),
        f"FORWARD_REVISION={revision}",
        f"FORWARD_TARGET_PORT={settings[0]}",
    ]
    assert int(found["TasksMax"][0]) > settings[2]


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        ({"forwards": [{**TCP, "target_port": 80}]}, True),
        ({"forwards": [{**TCP, "idle_timeout": 60}]}, True),
        ({"forwards": [{**TCP, "max_connections": 1}]}, True),
        ({"homes": [{**FRITZBOX, "description": "Another"}, NAS]}, False),
        ({"homes": [{**FRITZBOX, "hostname": "yyy.myfritz.net"}, NAS]}, False),
        ({"homes": [{**FRITZBOX, "allow_private": True}, NAS]}, False),
        ({"homes": [FRITZBOX]}, False),
        ({"forwards": [TCP, {**TCP, "port": 80}]}, False),
        ({"forwards": [{**TCP, "target_port": 44444, "idle_timeout": 7440}]}, False),
        ({"check_interval": 3600, "notify": {"mail_to": "me"}}, False),
    ],
)
def test_revision_follows_the_settings(change: dict[str, Any], changes: bool) -> None:
    """Promise 10: the revision, and the drop-in, change if and only if the settings do."""
    before = plan_of(forwards=[TCP])
    after = plan_of(**{"forwards": [TCP], **change})
    drop_in = f"{before.relays[0].unit}.d/forward.conf"
    assert (after.relays[0].revision != before.relays[0].revision) is changes
    assert (file_of(after, drop_in) != file_of(before, drop_in)) is changes


@pytest.mark.parametrize(
    ("front", "variants"),
    [
        ("home-tcpforwarder@.service", ["46"]),
        ("home-udpforwarder@.service", ["46"]),
        ("home-tcpforwarder@0:80.service", ["4"]),
        ("home-tcpforwarder@1:80.service", ["6"]),
        ("home-tcpforwarder@0:443.service", ["4", "6"]),
    ],
)
def test_a_forward_wants_its_relays_only(front: str, variants: list[str]) -> None:
    """Dependencies cannot be taken away by a drop-in: other families have a file of their own."""
    protocol = front[5:8]
    found = keys(file_of(plan_of(**FULL), front))
    assert found["Wants"] == [
        f"home-{protocol}forwarder-{each}-to-6@%i.service" for each in variants
    ]
    assert "Requires" not in found, "a relay that dies would take the forward with it"


def test_groups() -> None:
    """Stop and restart of a group reach all of its forwards, and their relays."""
    plan = plan_of(**FULL)
    for protocol in ("tcp", "udp"):
        group = f"home-{protocol}forwarders.service"
        assert keys(file_of(plan, group))["PartOf"] == ["home-forwarders.service"]
        assert keys(file_of(plan, f"home-{protocol}forwarder@.service"))["PartOf"] == [group]
        for variant in ("46", "4", "6"):
            unit = keys(file_of(plan, f"home-{protocol}forwarder-{variant}-to-6@.service"))
            assert unit["PartOf"] == [f"home-{protocol}forwarder@%i.service {group}"]
            assert unit["ExecStart"] == [
                f"/usr/local/lib/home-forwarder/relay {protocol} {variant} %i"
            ]
