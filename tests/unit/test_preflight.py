# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of the homes' names before a deploy."""

from __future__ import annotations

import pytest

from home_forwarder.config import Home
from operations.preflight import LONG_TTL, Records, warnings

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
