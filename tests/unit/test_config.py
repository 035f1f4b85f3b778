# SPDX-License-Identifier: GPL-3.0-or-later
"""Valid data: what it means, and which defaults stand behind it."""

from __future__ import annotations

import pytest
from unit_samples import FRITZBOX, NAS, RELAY, TCP, UDP, data

from home_forwarder.config import Config, Forward, load_config
from home_forwarder.render import load_program
from home_forwarder.values import IDLE_TIMEOUT, PortRange


def test_defaults() -> None:
    """The tables of design.md."""
    config = load_config({"homes": [{"name": "nas", "hostname": "nas.address.test"}]})
    assert (config.forwards, config.notify) == ((), None)
    assert (config.check_interval, config.unresolved_after, config.ssh_port) == (60, 1800, 22)
    assert (config.preflight, config.remove_state) == (True, False)
    assert (config.homes[0].description, config.homes[0].label) == (None, "nas")
    assert config.homes[0].allow_private is False


@pytest.mark.parametrize(("given", "idle"), [(TCP, 7440), (UDP, 300)])
def test_defaults_of_a_forward(given: dict[str, object], idle: int) -> None:
    """RFC 5382 and RFC 4787 say how long an idle connection lives at least."""
    forward = load_config(data(forwards=[given])).forwards[0]
    assert (forward.listen, forward.max_connections, forward.idle_seconds) == ("46", 1024, idle)
    assert forward.target_of(forward.port.first) == given["port"]


def test_defaults_are_those_of_the_relay() -> None:
    """An ad-hoc instance without a drop-in behaves as a declared one with nothing but a port."""
    relay = load_program(RELAY)
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


def test_another_ssh_port_frees_22() -> None:
    config = load_config(data(ssh_port=2222, forwards=[{**TCP, "port": 22}]))
    assert config.forwards[0].port.first == 22


@pytest.mark.parametrize(
    "mail_to",
    ["root", "me@address.test", "root, me@address.test", "a,b", "o'neil+home@address.test"],
)
def test_mail_to(mail_to: str) -> None:
    notify = load_config(data(notify={"mail_to": mail_to})).notify
    assert notify is not None
    assert notify.mail_to == mail_to


@pytest.mark.parametrize(
    "description", ["x" * 200, '"It\'s" $HOME `id` \\ 100 % #1;', "Büro 家 🏠", " spaced "]
)
def test_descriptions_are_kept_as_they_are(description: str) -> None:
    config = load_config(data(homes=[{**FRITZBOX, "description": description}, NAS]))
    assert config.homes[0].label == description


@pytest.mark.parametrize(
    ("written", "meant"),
    [(True, True), ("on", True), ("Yes", True), (False, False), ("off", False), ("FALSE", False)],
)
def test_switches(written: object, meant: bool) -> None:
    """--data preflight=off on the command line can say it only as text."""
    assert load_config(data(preflight=written)).preflight is meant


def test_sixty_four_homes() -> None:
    """Promise 8 is for so many."""
    homes = [{**NAS, "name": f"home{number}"} for number in range(64)]
    config = load_config({"homes": homes})
    assert len(config.homes) == 64
    assert config.index_of("home63") == 63


def test_tuples_are_lists_too() -> None:
    assert load_config(data(homes=(FRITZBOX, NAS), forwards=(TCP,))) == load_config(
        data(forwards=[TCP])
    )


def test_checked_data_cannot_be_changed() -> None:
    """What was checked is what is deployed."""
    config: Config = load_config(data())
    with pytest.raises(ValueError):
        config.forwards[0].listen = "4"
