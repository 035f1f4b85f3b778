# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a user writes, and whatever DNS answers."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit_samples import UPDATER
from unit_systemd import lay_out, verify

from home_forwarder.config import load_config
from home_forwarder.mistakes import DataError
from home_forwarder.plan import UNITS, File
from home_forwarder.planning import make_plan
from home_forwarder.render import module_of

updater = module_of(UPDATER)

# ---- The user's data -------------------------------------------------------------------------

label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
hostname = st.builds(
    lambda parts: ".".join([*parts, "test"]), st.lists(label, min_size=1, max_size=3)
)
nasty = st.text(
    st.one_of(
        st.sampled_from("%$\"'`\\;#=[]{}<>&|!*?~@:/ "),
        st.characters(exclude_categories=["C", "Z"]),
    ),
    min_size=1,
    max_size=40,
).filter(lambda text: text.strip() != "" and text.isprintable())


@st.composite
def valid_data(draw: st.DrawFn) -> dict[str, Any]:
    """Data that is right: homes with any description, forwards on ports of their own."""
    homes = [
        {
            "name": f"home{number}",
            "hostname": draw(hostname),
            "description": draw(nasty),
            "allow_private": draw(st.booleans()),
        }
        for number in range(draw(st.integers(1, 3)))
    ]
    ports = draw(st.lists(st.integers(1024, 65535), unique=True, max_size=4))
    forwards = []
    for port in ports:
        protocol = draw(st.sampled_from(["tcp", "udp"]))
        relay = draw(st.sampled_from(["socat", "nginx"]))
        forward = {
            "home": f"home{draw(st.integers(0, len(homes) - 1))}",
            "protocol": protocol,
            "port": port,
            "listen": draw(st.sampled_from(["46", "4", "6"])),
            "target_port": draw(st.integers(1, 65535)),
            "idle_timeout": draw(st.integers(1, 86400)),
            "max_connections": draw(st.integers(1, 16384)),
            "relay": relay,
        }
        if relay == "nginx" and protocol == "tcp":
            forward["proxy_protocol"] = draw(st.booleans())
        forwards.append(forward)
    return {"homes": homes, "forwards": forwards}


@given(valid_data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_valid_data_makes_units_that_systemd_accepts(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]
) -> None:
    """Promise 15: what people write for people is in no unit, and systemd has nothing to complain."""
    plan = make_plan(load_config(data))
    root = tmp_path_factory.mktemp("vps")
    lay_out(plan, root)
    assert verify(root) == ""
    units = [file for file in plan.files if file.path.startswith(UNITS) and isinstance(file, File)]
    for home in data["homes"]:
        if len(home["description"]) > 8:
            assert [unit.path for unit in units if home["description"] in unit.content] == []


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.tuples(inner, inner)
    | st.dictionaries(
        st.one_of(
            st.sampled_from(
                ["homes", "forwards", "notify", "name", "hostname", "home", "port", "protocol", "smtp",
                 "webhook", "url", "mail_to", "listen", "first_boot", "description", "relay"]
            ),
            st.text(max_size=8),
            st.integers(),
        ),
        inner,
        max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip


@given(
    st.fixed_dictionaries(
        {"homes": anything},
        optional=dict.fromkeys(
            ("forwards", "notify", "check_interval", "first_boot", "preflight", "hmoes"), anything
        ),
    )
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_data_is_valid_or_explained(data: dict[str, Any]) -> None:
    """Promise 11: no other exception, and one line a mistake."""
    try:
        mistakes = [str(load_config(data))]
    except DataError as error:
        mistakes = error.mistakes
    assert mistakes
    assert all(mistake and "\n" not in mistake for mistake in mistakes)


# ---- DNS answers -----------------------------------------------------------------------------

POOL = [
    "2001:db8::1", "2001:db8::2", "2001:db8:1::1", "2a02::5", "fd00::1", "fe80::1", "::1", "::",
    "::ffff:192.0.2.1", "ff02::1", "64:ff9b::1", "2001:db8:f::10",
]  # fmt: skip
OWN = [(int(ipaddress.IPv6Address("2001:db8:f::10")), 0)]

answers = st.one_of(
    st.builds(
        lambda found: updater.Answer(found), st.lists(st.sampled_from(POOL), min_size=1, max_size=5)
    ),
    st.builds(
        lambda value: updater.Answer([str(ipaddress.IPv6Address(value))]),
        st.integers(0, 2**128 - 1),
    ),
    st.builds(lambda negative: updater.Answer([], "why", negative), st.booleans()),
)


def home(allow_private: bool) -> Any:
    settings = {"HOME_ADDRESS_COUNT": "1", "HOME_HOSTNAME_0": "a.test"}
    return updater.Home({**settings, "HOME_ALLOW_PRIVATE_0": str(int(allow_private))}, 0)


@given(st.lists(st.tuples(answers, st.integers(1, 2000)), max_size=20), st.booleans())
@settings(deadline=None)
def test_any_answers_keep_the_promises(steps: list[tuple[Any, int]], allow_private: bool) -> None:
    """Promises 1 to 4, over a whole history of answers."""
    known = updater.Known()
    now, told = 0.0, ""
    for answer, seconds in steps:
        now += seconds
        before = known.address
        known, events, _ = updater.decide(
            home(allow_private), "ipv6", known, answer, OWN, now, 1800
        )
        good = [each for each in answer.addresses if not updater.refusal(each, OWN, allow_private)]
        address = known.address
        if not good:
            assert address == before  # 1, 2, 4: kept
        elif before in good:
            assert address == before  # 3: stays in use
        else:
            assert address in good
        assert not address or not updater.refusal(address, OWN, allow_private)  # 4
        kinds = [event.kind for event in events]
        assert ("changed" in kinds) == bool(before and address != before)
        for kind in kinds:
            if kind in ("unresolved", "refused"):
                assert told != "trouble"  # never twice the same
                told = "trouble"
            elif kind == "recovered":
                assert told == "trouble"
                told = ""
