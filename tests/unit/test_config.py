# SPDX-License-Identifier: GPL-3.0-or-later
"""Valid data: what it means, and which defaults stand behind it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_samples import FRITZBOX, NAS, TCP, UDP, Data, data

from home_forwarder.config import Config, load_config
from home_forwarder.mistakes import DataError


def test_defaults() -> None:
    """The tables of design.md."""
    config = load_config({"homes": [{"name": "nas", "hostname": "nas.address.test"}]})
    assert (config.forwards, config.notify) == ((), None)
    assert (config.check_interval, config.unresolved_after, config.ssh_port) == (60, 1800, 22)
    assert (config.preflight, config.remove_state) == (True, False)
    assert (config.homes[0].description, config.homes[0].label) == (None, "nas")
    assert config.homes[0].allow_private is False


def test_another_ssh_port_frees_22() -> None:
    config = load_config(data(ssh_port=2222, forwards=[{**TCP, "port": 22}]))
    assert config.forwards[0].port.first == 22


@pytest.mark.parametrize(
    ("written", "meant"),
    [(True, True), ("on", True), ("Yes", True), (False, False), ("off", False), ("FALSE", False)],
)
def test_switches(written: object, meant: bool) -> None:
    """--data preflight=off on the command line can say it only as text."""
    assert load_config(data(preflight=written)).preflight is meant


def test_tuples_are_lists_too() -> None:
    assert load_config(data(homes=(FRITZBOX, NAS), forwards=(TCP,))) == load_config(
        data(forwards=[TCP])
    )


def test_checked_data_cannot_be_changed() -> None:
    """What was checked is what is deployed."""
    config: Config = load_config(data())
    with pytest.raises(ValueError):
        config.forwards[0].listen = "4"


# ---- Who has which port ------------------------------------------------------------------------


def clashes(*forwards: Data, ssh_port: int = 22) -> list[str]:
    """What is wrong with the ports of these."""
    try:
        load_config(data(forwards=list(forwards), ssh_port=ssh_port))
    except DataError as error:
        return error.mistakes
    return []


def taken(where: int, port: int, family: int, by: int, *, right: str = "") -> str:
    return (
        f"forwards[{where}].port: tcp port {port} on IPv{family} is taken by forwards[{by}] already;"
        f" use another port{right}"
    )


ONE_EACH = ", or listen on one family each"
SSH = "22 is the VPS's own ssh port; forward another one (or say in inventory.py which ssh_port sshd really uses)"


@pytest.mark.parametrize(
    ("forwards", "said"),
    [
        ([TCP, TCP], [taken(1, 44444, 4, 0, right=ONE_EACH)]),
        # The first one has it; the others are not told of each other.
        (
            [TCP, TCP, TCP],
            [taken(1, 44444, 4, 0, right=ONE_EACH), taken(2, 44444, 4, 0, right=ONE_EACH)],
        ),
        ([{**TCP, "listen": "6"}, TCP], [taken(1, 44444, 6, 0, right=ONE_EACH)]),
        ([TCP, {**TCP, "listen": "6"}], [taken(1, 44444, 6, 0)]),
        ([{**TCP, "listen": "4"}, {**TCP, "listen": "4"}], [taken(1, 44444, 4, 0)]),
        ([{**TCP, "listen": "4"}, {**TCP, "listen": "6"}], []),
        # One family each, and a third that wants both.
        (
            [{**TCP, "listen": "4"}, {**TCP, "listen": "6"}, TCP],
            [taken(2, 44444, 4, 0, right=ONE_EACH), taken(2, 44444, 6, 1, right=ONE_EACH)],
        ),
        ([TCP, {**TCP, "protocol": "udp"}], []),
        # Ranges: a line for each other, with the first port.
        (
            [{**TCP, "port": "80-90"}, {**TCP, "port": "85-95"}],
            [taken(1, 85, 4, 0, right=ONE_EACH)],
        ),
        (
            [{**TCP, "port": "85-95"}, {**TCP, "port": "80-90"}],
            [taken(1, 85, 4, 0, right=ONE_EACH)],
        ),
        (
            [{**TCP, "port": 80}, {**TCP, "port": 90}, {**TCP, "port": "70-100"}],
            [taken(2, 80, 4, 0, right=ONE_EACH), taken(2, 90, 4, 1, right=ONE_EACH)],
        ),
        (
            [{**TCP, "port": "80-90"}, {**TCP, "port": "85-95"}, {**TCP, "port": "85-100"}],
            [
                taken(1, 85, 4, 0, right=ONE_EACH),
                taken(2, 85, 4, 0, right=ONE_EACH),
                taken(2, 91, 4, 1, right=ONE_EACH),
            ],
        ),
        ([{**TCP, "port": "80-84"}, {**TCP, "port": "85-90"}], []),
        # ssh.
        ([{**TCP, "port": 22}], [f"forwards[0].port: {SSH}"]),
        ([{**TCP, "port": 22, "listen": "6"}], [f"forwards[0].port: {SSH}"]),
        (
            [{**TCP, "port": "20-30"}, {**TCP, "port": "10-22"}],
            [
                f"forwards[0].port: {SSH}",
                taken(1, 20, 4, 0, right=ONE_EACH),
                f"forwards[1].port: {SSH}",
            ],
        ),
        ([{**UDP, "port": 22}], []),
    ],
)
def test_clashes(forwards: list[Data], said: list[str]) -> None:
    """Promise 11: each forward that cannot have its port, the first such port, and who has it."""
    assert clashes(*forwards) == said


def test_a_clash_with_another_ssh_port() -> None:
    assert clashes({**TCP, "port": 22}, ssh_port=2222) == []
    (line,) = clashes({**TCP, "port": "2220-2230"}, ssh_port=2222)
    assert line == f"forwards[0].port: {SSH.replace('22 is', '2222 is')}"


@given(
    st.lists(
        st.builds(
            lambda first, more, protocol, listen: {
                "home": "nas",
                "protocol": protocol,
                "port": f"{first}-{first + more}",
                "listen": listen,
            },
            st.integers(18, 30),
            st.integers(0, 5),
            st.sampled_from(["tcp", "udp"]),
            st.sampled_from(["46", "4", "6"]),
        ),
        max_size=6,
    )
)
def test_any_ports(forwards: list[Data]) -> None:
    """Promise 11: accepted if and only if each port is wanted once; and each line is true."""
    wanted = [
        {
            (forward["protocol"], port, family)
            for port in range(
                int(forward["port"].partition("-")[0]), int(forward["port"].partition("-")[2]) + 1
            )
            for family in forward["listen"]
        }
        for forward in forwards
    ]
    ssh = {("tcp", 22, "4"), ("tcp", 22, "6")}
    lines = clashes(*forwards)
    assert (sum(map(len, [ssh, *wanted])) == len(set().union(ssh, *wanted))) is (lines == [])
    assert len(set(lines)) == len(lines)
    for line in lines:
        found = re.match(
            r"forwards\[(\d)\]\.port: (?:(tcp|udp) port (\d+) on IPv(.) is taken by forwards\[(\d)\]|22 is)",
            line,
        )
        assert found
        number, protocol, port, family, other = found.groups()
        if other is None:
            assert ssh & wanted[int(number)]
        else:
            assert int(other) < int(number)
            assert (protocol, int(port), family) in wanted[int(number)] & wanted[int(other)]
