# SPDX-License-Identifier: GPL-3.0-or-later
"""Homes: what is right, what is wrong, and what a VPS gets of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit_samples import (
    FRITZBOX,
    FULL,
    NAS,
    TCP,
    UPDATER,
    Data,
    Mistake,
    as_sh_reads_it,
    check_mistake,
    data,
    file_of,
    keys,
    plan_of,
    top,
    without,
)

from home_forwarder.config import load_config
from home_forwarder.plan import CONF
from home_forwarder.planning import make_plan
from home_forwarder.render import module_of

# ---- Right -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("xxx.myfritz.net", "xxx.myfritz.net"),
        ("XXX.MyFritz.NET", "xxx.myfritz.net"),
        ("xxx.myfritz.net.", "xxx.myfritz.net"),
        ("_x.my-fritz.net", "_x.my-fritz.net"),
        ("1und1.net", "1und1.net"),
        ("4.3.2.1.sip.test", "4.3.2.1.sip.test"),
        ("bücher.test", "xn--bcher-kva.test"),
        ("BÜCHER.test", "xn--bcher-kva.test"),
        ("bu\u0308cher.test", "xn--bcher-kva.test"),  # decomposed, as macOS writes it
        ("xn--bcher-kva.test", "xn--bcher-kva.test"),
        ("straße.test", "xn--strae-oqa.test"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8::192.0.2.1", "2001:db8::c000:201"),
        ("fd12:3456::1", "fd12:3456::1"),
        ("x" * 63 + ".test", "x" * 63 + ".test"),
    ],
)
def test_host_names_and_addresses(written: str, meant: str) -> None:
    """Names become A-labels, as DNS wants them; literals get their one spelling (RFC 5952)."""
    config = load_config(data(homes=[{**FRITZBOX, "hostname": written}, NAS]))
    assert config.homes[0].hostname == meant


@pytest.mark.parametrize(
    "description", ["x" * 200, '"It\'s" $HOME `id` \\ 100 % #1;', "Büro 家 🏠", " spaced "]
)
def test_descriptions_are_kept_as_they_are(description: str) -> None:
    config = load_config(data(homes=[{**FRITZBOX, "description": description}, NAS]))
    assert config.homes[0].label == description


def test_sixty_four_homes() -> None:
    """Promise 8 is for so many."""
    homes = [{**NAS, "name": f"home{number}"} for number in range(64)]
    config = load_config({"homes": homes})
    assert len(config.homes) == 64
    assert config.index_of["home63"] == 63


@pytest.mark.parametrize(
    ("said", "indices"),
    [
        ([None, None], [0, 1]),
        ([1, 0], [1, 0]),
        ([None, 999], [0, 999]),
        ([0, None], [0, 1]),
        ([5, None], [5, 1]),
        ([None, 1], [0, 1]),
    ],
)
def test_index(said: list[int | None], indices: list[int]) -> None:
    """Said, or else the position: who takes a home away and says the others' moves nobody."""
    homes = [
        {**home, **({} if index is None else {"index": index})}
        for home, index in zip((FRITZBOX, NAS), said, strict=True)
    ]
    config = load_config(data(homes=homes))
    assert [config.index_of[each.name] for each in config.homes] == indices
    assert list(config.numbered) == sorted(indices)
    assert [config.numbered[index].name for index in indices] == ["fritzbox", "nas"]


# ---- Wrong -----------------------------------------------------------------------------------


def home(name: str, change: Data, key: str, right: str) -> Mistake:
    """A mistake in homes[0]; the value of its first key is what is wrong."""
    return Mistake(
        name,
        {"homes": [{**FRITZBOX, **change}, NAS]},
        f"homes[0].{key}: ",
        repr(next(iter(change.values()))),
        right,
    )


DNS_NAME = "write the DNS name of the home"
GLOBAL = "write a global IPv6 address"

MISTAKES = [
    Mistake(
        "home key misspelt",
        {"homes": [{**FRITZBOX, "desciption": "x"}]},
        "homes[0].desciption: ",
        "desciption",
        "did you mean 'description'?",
    ),
    Mistake(
        "key with a line break",
        {"homes": [{**FRITZBOX, "na\nme": 1}, NAS]},
        "homes[0]",
        "na",
        "no such key",
    ),
    Mistake(
        "key that is no text",
        {"homes": [{**FRITZBOX, 1: "x"}, NAS]},
        "homes[0]",
        "1",
        "no such key",
    ),
    Mistake(
        "home without name", {"homes": [without(FRITZBOX, "name")]}, "homes[0].name: ", "", "fritz"
    ),
    Mistake(
        "home without hostname",
        {"homes": [without(FRITZBOX, "hostname")]},
        "homes[0].hostname: ",
        "is missing",
        "the DNS name of the home",
    ),
    top("homes is a dict", "homes", {"fritzbox": "xxx.myfritz.net"}, "write homes = [{"),
    top("homes is text", "homes", "xxx.myfritz.net", "write homes = [{"),
    top("homes is nothing", "homes", None, "write homes = [{"),
    Mistake(
        "home is text", {"homes": ["fritzbox"]}, "homes[0]: ", "'fritzbox'", 'write {"key": value'
    ),
    home("name with a space", {"name": "fritz box"}, "name", "such as 'fritzbox'"),
    home("name with a capital", {"name": "Fritzbox"}, "name", "a-z, 0-9"),
    home("name too long", {"name": "f" * 33}, "name", "up to 32"),
    home("name is a number", {"name": 7}, "name", "such as 'fritzbox'"),
    home("hostname is a number", {"hostname": 7}, "hostname", DNS_NAME),
    home("hostname empty", {"hostname": ""}, "hostname", DNS_NAME),
    home("hostname without a dot", {"hostname": "fritzbox"}, "hostname", DNS_NAME),
    home("hostname with a space", {"hostname": "my fritz.net"}, "hostname", DNS_NAME),
    home("hostname with a port", {"hostname": "xxx.myfritz.net:80"}, "hostname", DNS_NAME),
    home("hostname is a URL", {"hostname": "http://xxx.myfritz.net/"}, "hostname", DNS_NAME),
    home("hostname with shell code", {"hostname": "$(reboot).net"}, "hostname", DNS_NAME),
    home("hostname with a line break", {"hostname": "xxx.myfritz.net\n"}, "hostname", DNS_NAME),
    home("hostname with an empty label", {"hostname": "xxx..net"}, "hostname", DNS_NAME),
    home("hostname begins with a hyphen", {"hostname": "-xxx.net"}, "hostname", DNS_NAME),
    home("label too long", {"hostname": "x" * 64 + ".net"}, "hostname", DNS_NAME),
    home("hostname too long", {"hostname": "xxx." * 64 + "net"}, "hostname", DNS_NAME),
    home("bad IDNA", {"hostname": "höme\u200d.net"}, "hostname", DNS_NAME),
    home("bad IDNA, empty label", {"hostname": "höme..net"}, "hostname", DNS_NAME),
    home("IPv4 literal", {"hostname": "192.0.2.7"}, "hostname", "reached over IPv6"),
    home("looks like IPv4", {"hostname": "192.0.2.300"}, "hostname", "looks like an IPv4 address"),
    home("short IPv4", {"hostname": "127.1"}, "hostname", "looks like an IPv4 address"),
    home("wide IPv4 digits", {"hostname": "１９２.0.2.7"}, "hostname", DNS_NAME),
    home("IPv6 loopback", {"hostname": "::1"}, "hostname", GLOBAL),
    home("IPv6 unspecified", {"hostname": "::"}, "hostname", GLOBAL),
    home("IPv6 link-local", {"hostname": "fe80::1"}, "hostname", GLOBAL),
    home("IPv6 multicast", {"hostname": "ff02::1"}, "hostname", GLOBAL),
    home("IPv4-mapped", {"hostname": "::ffff:192.0.2.7"}, "hostname", GLOBAL),
    home("IPv6 with a scope", {"hostname": "2001:db8::1%eth0"}, "hostname", GLOBAL),
    home("IPv6 broken", {"hostname": "2001:db8:::1"}, "hostname", DNS_NAME),
    home("placeholder home", {"hostname": "fritzbox.example.net"}, "hostname", "placeholder"),
    home(
        "description of two lines", {"description": "Fritz\nBox"}, "description", "write one line"
    ),
    home("description empty", {"description": " "}, "description", "write one line"),
    home("description too long", {"description": "x" * 201}, "description", "200 characters"),
    home("description with a terminal code", {"description": "\x1b[2J"}, "description", "one line"),
    home("description is a number", {"description": 7}, "description", "write one line"),
    home("allow_private is text", {"allow_private": "maybe"}, "allow_private", "True nor False"),
    Mistake(
        "home name twice",
        {"homes": [FRITZBOX, NAS, {**NAS, "name": "fritzbox"}]},
        "homes[2].name: ",
        "'fritzbox' is the name of homes[0] already",
        "give each home a name of its own",
    ),
    home("index negative", {"index": -1}, "index", "a whole number from 0 to 999"),
    home("index too large", {"index": 1000}, "index", "a whole number from 0 to 999"),
    home("index is text", {"index": "1"}, "index", "a whole number from 0 to 999"),
    home("index is a bool", {"index": True}, "index", "a whole number from 0 to 999"),
    Mistake(
        "index twice",
        {"homes": [{**FRITZBOX, "index": 7}, {**NAS, "index": 7}]},
        "homes[1].index: ",
        "7 is the index of homes[0] already",
        "write another, such as 0",
    ),
    Mistake(
        "index of a later home's position",
        {"homes": [{**FRITZBOX, "index": 1}, NAS]},
        "homes[0].index: ",
        "1 is what homes[1] has by its position",
        "write another, such as 0, or give homes[1] an index as well",
    ),
    Mistake(
        "index of an earlier home's position",
        {"homes": [FRITZBOX, {**NAS, "index": 0}]},
        "homes[1].index: ",
        "0 is what homes[0] has by its position",
        "write another, such as 1, or give homes[0] an index as well",
    ),
    Mistake(
        "too many homes",
        {
            "homes": [*[{**NAS, "name": f"home{number}"} for number in range(64)], FRITZBOX],
            "forwards": [],
        },
        "homes: ",
        "there are 65",
        "at most 64",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.name for mistake in MISTAKES])
def test_mistake(mistake: Mistake) -> None:
    """Promise 11."""
    check_mistake(mistake)


# ---- What a VPS gets -------------------------------------------------------------------------


def test_check_interval() -> None:
    timer = keys(file_of(plan_of(check_interval=3600), "home-address-updater.timer"))
    assert timer["OnUnitInactiveSec"] == ["3600s"]


def test_a_look_up_may_take_as_long_as_it_promises() -> None:
    """Promise 8: systemd does not cut off what the program would still end in time."""
    (limit,) = keys(file_of(plan_of(**FULL), "home-address-updater.service"))["TimeoutStartSec"]
    assert int(limit.removesuffix("s")) > module_of(UPDATER).RUN_SECONDS


# ---- /etc/home-forwarder.conf ----------------------------------------------------------------


def test_conf_in_the_format_of_the_seed() -> None:
    plan = plan_of(**FULL, unresolved_after=600)
    assert file_of(plan, CONF).splitlines()[1:] == [
        "HOME_ADDRESS_COUNT=2",
        'HOME_HOSTDESC_0="Fritz!Box at home"',
        "HOME_HOSTNAME_0=xxx.myfritz.net",
        'HOME_HOSTDESC_1="Home server"',
        "HOME_HOSTNAME_1=somedyndns.address.test",
        "HOME_ALLOW_PRIVATE_1=1",
        "UNRESOLVED_AFTER=600",
        'SEND_MAILS_TO="root"',
    ]
    assert "SEND_MAILS_TO" not in file_of(plan_of(), CONF)


letters = st.one_of(
    st.sampled_from("\"'$`\\%!#;= &|<>(){}[]*?~"),
    st.characters(codec="utf-8", exclude_categories=("C", "Z")).filter(str.isprintable),
)
descriptions = st.lists(letters, min_size=1, max_size=20).map("".join).filter(str.strip)
AWKWARD = [
    "\\",
    "x\\",
    "\\\\",
    '\\"',
    "\\$HOME",
    "$(id)",
    "`id`",
    "'",
    '"',
    " x ",
    "%h %%",
    "\\n",
    "#",
]


@settings(max_examples=60)
@given(st.lists(descriptions, min_size=1, max_size=20))
@example(AWKWARD)
def test_conf_is_read_alike_by_all(tmp_path_factory: Any, texts: list[str]) -> None:
    """Promise 15: a description is text for sh and for our programs, whatever is in it."""
    homes = [{**NAS, "name": f"home{n}", "description": text} for n, text in enumerate(texts)]
    content = file_of(make_plan(load_config({"homes": homes})), CONF)
    names = [f"HOME_HOSTDESC_{n}" for n in range(len(texts))]
    settings = module_of(UPDATER).parse_settings(content)
    assert [settings[name] for name in names] == texts
    assert as_sh_reads_it(content, names, tmp_path_factory.getbasetemp()) == texts


def test_homes_of_the_conf_are_those_of_the_data() -> None:
    """What the resolver on the VPS makes of the file."""
    updater = module_of(UPDATER)
    homes = updater.homes_of(updater.parse_settings(file_of(plan_of(**FULL), CONF)))
    assert [(home.hostname, home.label, home.allow_private) for home in homes] == [
        ("xxx.myfritz.net", "Fritz!Box at home", False),
        ("somedyndns.address.test", "Home server", True),
    ]


SPARSE: Data = {"homes": [{**FRITZBOX, "index": 7}, {**NAS, "index": 2, "allow_private": True}]}


def test_conf_with_gaps() -> None:
    """An INDEX that no home has, has no line; the count is of all up to the highest."""
    assert file_of(plan_of(**SPARSE), CONF).splitlines()[1:-1] == [
        "HOME_ADDRESS_COUNT=8",
        'HOME_HOSTDESC_2="Home server"',
        "HOME_HOSTNAME_2=somedyndns.address.test",
        "HOME_ALLOW_PRIVATE_2=1",
        'HOME_HOSTDESC_7="Fritz!Box at home"',
        "HOME_HOSTNAME_7=xxx.myfritz.net",
    ]


def test_units_have_the_index() -> None:
    """Promise 5: who keeps the INDEX keeps the units, and so the connections."""
    plan = plan_of(**SPARSE)
    assert {relay.unit for relay in plan.relays} == {
        "home-tcpforwarder-46-to-6@7:44444.service",
        "home-udpforwarder-46-to-6@2:33333.service",
    }
    assert {relay.home for relay in plan.relays} == {2, 7}
    assert plan.homes == {2: "somedyndns.address.test", 7: "xxx.myfritz.net"}
    watchers = {unit for unit in plan.units if "watcher" in unit}
    assert watchers == {
        f"home-address-watcher@{index}.{kind}" for index in (2, 7) for kind in ("path", "service")
    }
    names = ("home-tcpforwarder@7:44444.service", "home-udpforwarder@2:33333.service")
    assert set(names) <= set(plan.running)


def test_taking_a_home_away_moves_nobody() -> None:
    """Promise 5: of the others, no unit and no file of theirs is another."""
    before = plan_of(homes=[NAS, {**FRITZBOX, "index": 1}], forwards=[TCP])
    after = plan_of(homes=[{**FRITZBOX, "index": 1}], forwards=[TCP])
    assert after.relays == before.relays
    assert after.units < before.units
    ours = {file for file in after.files if file.path != CONF}
    assert ours <= set(before.files)


@pytest.mark.parametrize(("homes", "count"), [([], 0), ([FRITZBOX], 1), ([FRITZBOX, NAS], 2)])
def test_count_without_gaps(homes: list[Data], count: int) -> None:
    """As before there was an index."""
    text = file_of(plan_of(homes=homes, forwards=[]), CONF)
    assert f"HOME_ADDRESS_COUNT={count}\n" in text
    assert text.count("HOME_HOSTNAME_") == count
