# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of the homes' names before a deploy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit_samples import FRITZBOX, NAS, data, matching, plan_of

from home_forwarder.compare import Observed
from home_forwarder.config import load_config
from home_forwarder.parts.addresses import Home
from home_forwarder.plan import CONF
from operations import preflight
from operations.preflight import (
    LONG_TTL,
    Records,
    warn_about_names,
    warnings,
)

VPS = [(int("20010db8000000000000000000000005", 16), 0)]


@pytest.mark.parametrize(
    ("records", "allow_private", "said"),
    [
        ((["2001:db8::1"], 60), False, []),
        ((["2001:db8::1", "2001:db8::2"], LONG_TTL), False, []),
        ((["2001:db8::1"], LONG_TTL + 1), False, ["the TTL of nas.test is 301 s"]),
        (([], 60), False, []),
        ("the name does not exist", False, ["could not confirm an IPv6 address of nas.test: the"]),
        ("no answer within 5 s", False, ["could not confirm an IPv6 address of nas.test: no"]),
        ((["::1"], 60), False, ["::1, an address of nas.test, will be refused: it is a loopback"]),
        ((["2001:db8::5"], 60), False, ["2001:db8::5, an address of nas.test, will be refused"]),
        ((["fd12::1"], 60), False, ["fd12::1, an address of nas.test, will be refused"]),
        ((["fd12::1"], 60), True, []),
        (
            (["2001:db8::1", "fe80::1", "ff02::1"], 3600),
            False,
            ["fe80::1, an address", "ff02::1, an address", "the TTL of nas.test is 3600 s"],
        ),
    ],
)
def test_warnings(records: Records, allow_private: bool, said: list[str]) -> None:
    """Promise 4, seen from the operator's side: a sentence for each thing that will not work."""
    home = Home(name="nas", hostname="nas.test", allow_private=allow_private)
    found = list(warnings(home, records, VPS))
    assert len(found) == len(said), found
    for line, start in zip(found, said, strict=True):
        assert line.startswith(start)


def test_what_is_only_worth_knowing_is_said_once() -> None:
    """A long TTL, of a home that was not declared before; what will not work, each time."""
    home = Home(name="nas", hostname="nas.test")
    records: Records = (["2001:db8::1", "::1"], LONG_TTL + 1)
    assert len(list(warnings(home, records, VPS, is_new=True))) == 2
    (line,) = warnings(home, records, VPS, is_new=False)
    assert line.startswith("::1, an address of nas.test, will be refused")


def test_a_literal_is_no_address_of_itself() -> None:
    home = Home(name="nas", hostname="2001:db8::5")
    (line,) = warnings(home, (["2001:db8::5"], 0), VPS)
    assert line.startswith("2001:db8::5 will be refused: it is ")


# ---- What is said in the course of a deploy ----------------------------------------------------


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said from now on."""
    lines: list[str] = []
    monkeypatch.setattr(preflight, "_warn", lines.append)
    return lines


def test_names(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name is asked for once, for all VPSes; a literal is not; the TTL is said of new homes."""
    asked: list[str] = []

    def look_up(hostname: str) -> Records:
        asked.append(hostname)
        return ["2001:db8::1", "2001:db8::5"], 3600

    monkeypatch.setattr(preflight, "_look_up", look_up)
    monkeypatch.setattr(preflight, "_answers", {})
    literal = {"name": "literal", "hostname": "2001:db8::5"}
    config = load_config(data(homes=[FRITZBOX, NAS, literal]))
    own = ("20010db8000000000000000000000005",)
    before = plan_of(homes=[NAS], forwards=[])
    warn_about_names(config, replace(matching(before), own_addresses=own))
    of_nas = "nas: 2001:db8::5, an address of somedyndns.address.test, will be refused"
    assert [line[:60] for line in said] == [
        "fritzbox: 2001:db8::5, an address of xxx.myfritz.net, will b",
        "fritzbox: the TTL of xxx.myfritz.net is 3600 s; after a chan",
        of_nas[:60],
        "literal: 2001:db8::5 will be refused: it is an address of th",
    ]
    warn_about_names(config, Observed())
    assert [line.split(";")[0] for line in said[4:]] == [
        "fritzbox: the TTL of xxx.myfritz.net is 3600 s",
        "nas: the TTL of somedyndns.address.test is 3600 s",
    ]
    assert sorted(asked) == ["somedyndns.address.test", "xxx.myfritz.net"]


def test_a_name_that_is_part_of_another_is_new(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_answers", {"nas.test": (["2001:db8::1"], 3600)})
    seen = Observed(texts={CONF: "HOME_HOSTNAME_0=my.nas.test\nHOME_HOSTNAME_1=nas.test.example\n"})
    warn_about_names(load_config(data(homes=[{**NAS, "hostname": "nas.test"}], forwards=[])), seen)
    assert len(said) == 1
