# SPDX-License-Identifier: GPL-3.0-or-later
"""Green means that it works (promise 18): what is in the way between a client and a home is said by a
deploy and by a verification, with the reason and the remedy.

One VPS is deployed once; each fault is taken away again.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab_samples import verify

from lab import Lab
from lab.checkout import Checkout
from lab.host import Host
from lab.network import ip

HOMES = [{"name": name, "hostname": f"{name}.home.example"} for name in ("home0", "home1")]
FORWARDS: list[dict[str, object]] = [
    {"home": "home0", "protocol": "tcp", "port": 44444},
    {"home": "home0", "protocol": "tcp", "port": 8080, "target_port": 44444, "relay": "nginx"},
    {"home": "home0", "protocol": "tcp", "port": "8000-8002", "listen": "4"},
    {"home": "home0", "protocol": "udp", "port": 33333},
    {"home": "home0", "protocol": "udp", "port": 33334, "relay": "socat", "listen": "4"},
    {"home": "home1", "protocol": "tcp", "port": 22222},
]
NAMES = ["tcp 44444", "tcp 8080", "tcp 8000-8002 (IPv4)", "udp 33333", "udp 33334 (IPv4)"]
"""Of those to home0."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """One VPS, deployed."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    with Lab(f"reach-{worker}", vpses={"vps1": "trixie"}, homes=["home0", "home1"]) as lab:
        serve(lab)
        lab.home["home1"].serve(tcp=[22222])
        checkout = Checkout(lab, tmp_path_factory.mktemp("checkout"))
        checkout.declare(HOMES, FORWARDS, check_interval=3600, preflight=False)
        checkout.deploy()
        yield checkout


def serve(lab: Lab) -> None:
    lab.home["home0"].serve(tcp=[44444, 8000, 8001, 8002], udp=[33333, 33334])


def answers(*names: str) -> set[str]:
    return {f"test_home_answers[vps1-{name}]" for name in names}


def lets_in(*names: str) -> set[str]:
    return {f"test_lets_clients_in[vps1-{name}]" for name in names}


def from_here(*names: str) -> set[str]:
    return {f"test_reached_from_here[vps1-{name}]" for name in names}


def test_all_is_well(site: Checkout) -> None:
    """Promise 18: and what was not tried is not called well."""
    deployed = site.deploy().stderr
    assert (
        "the homes of tcp 44444, tcp 8080, tcp 8000-8002 (IPv4), tcp 22222 answer this VPS; for udp"
        " 33333, udp 33334 (IPv4) there is a route (UDP itself was not tried)" in deployed
    )
    result = verify(site, "--from-here")
    assert (result.status, result.failed, result.skipped) == (0, {}, {}), result.output
    assert (
        "its homes answer: yes (6 of 6) | its rules let clients in: yes (6 of 6) | reached from here: yes"
        " (10 of 10)" in result.output
    )
    without = verify(site)
    assert without.status == 0
    assert "vps1: as declared: yes (" in without.output
    assert "reached from here: not tried (--from-here would)" in without.output


def test_nobody_looks_where_it_is_not_wanted(site: Checkout) -> None:
    """`--data reach=off`, `--no-reach`: nothing is sent to a home."""
    assert "homes of tcp" not in site.deploy("--data", "reach=off").stderr
    result = verify(site, "--no-reach")
    assert result.status == 0
    assert "its homes answer: not tried (--no-reach)" in result.output
    assert "skipped" not in result.output


# ---- From the VPS to a home ------------------------------------------------------------------


@contextmanager
def ipv6_off(host: Host) -> Iterator[None]:
    """As `sysctl net.ipv6.conf.all.disable_ipv6=1` does; the addresses are lost by it."""
    setting = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    address = host.addresses[1]
    with host.inside():
        setting.write_text("1")
    try:
        yield
    finally:
        with host.inside():
            setting.write_text("0")
        host.site.network.add_address(host.name, address)


@contextmanager
def no_route(lab: Lab) -> Iterator[None]:
    """The VPS has an address, and no way to anybody."""
    vps = lab.vps["vps1"]
    route = "2001:db8::/32 dev eth0 proto kernel metric 256"
    ip(netns=vps.namespace, batch=[f"route del {route}"])
    try:
        yield
    finally:
        ip(netns=vps.namespace, batch=[f"route add {route}"])


@contextmanager
def home_off(lab: Lab) -> Iterator[None]:
    lab.home["home1"].unplug()
    try:
        yield
    finally:
        lab.home["home1"].plug()


@contextmanager
def ports_closed(lab: Lab) -> Iterator[None]:
    """Of the range the last one only."""
    home = lab.home["home0"]
    home.stop_serving()
    home.serve(tcp=[8000, 8001], udp=[33333, 33334])
    try:
        yield
    finally:
        home.stop_serving()
        serve(lab)


@contextmanager
def address_forgotten(lab: Lab) -> Iterator[None]:
    """As of a home that was never found; its relay runs on."""
    vps = lab.vps["vps1"]
    file = "/var/lib/home-forwarder/home-address-ipv6"
    kept = vps.read(file)
    vps.run("systemctl stop home-address-watcher@1.path")
    vps.run(f"sed -i /ADDRESS_1/d {file}")
    try:
        yield
    finally:
        vps.write(file, kept)
        vps.run("systemctl start home-address-watcher@1.path")


@dataclass(frozen=True)
class Fault:
    """What is in the way, the checks that fail, what is said of it, and the remedy."""

    make: Callable[[Lab], object]
    fails: set[str]
    says: str
    remedy: str


FAULTS = {
    "IPv6 switched off": Fault(
        lambda lab: ipv6_off(lab.vps["vps1"]),
        answers(*NAMES, "tcp 22222"),
        "this VPS has no IPv6 address of its own, and so no way to home0, [2001:db8:a000:1::10]",
        "switch IPv6 on in the provider's panel and in the VPS's network settings",
    ),
    "no route": Fault(
        no_route,
        answers(*NAMES, "tcp 22222"),
        "this VPS has no route to home0, [2001:db8:a000:1::10] (network is unreachable)",
        "it needs IPv6 with a default route",
    ),
    "home off": Fault(
        home_off,
        answers("tcp 22222"),
        "home1, [2001:db8:a001:1::10]:22222, does not answer within 3 s",
        "see that it is switched on",
    ),
    "ports closed": Fault(
        ports_closed,
        answers("tcp 44444", "tcp 8080", "tcp 8000-8002 (IPv4)"),
        "home0, [2001:db8:a000:1::10]:8002, refuses the connection",
        "let a program listen on tcp port 8002 there",
    ),
    "no address": Fault(
        address_forgotten,
        {"test_address[vps1-home1]", *answers("tcp 22222")},
        "no address of home1 (home1.home.example) is known",
        "see that the name has an AAAA record",
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_no_way_to_the_home(site: Checkout, fault: Fault) -> None:
    """Promise 18: a warning of a deploy, a failure of a verification; a dead home takes 3 s of each."""
    before = time.monotonic()
    site.deploy()
    usual = time.monotonic() - before
    with fault.make(site.lab):  # type: ignore[attr-defined]
        before = time.monotonic()
        deployed = site.deploy().stderr
        seconds = time.monotonic() - before
        result = verify(site)
    assert seconds < usual + 4.5, "3 s, and what a busy machine takes"
    assert set(result.failed) == fault.fails, result.output
    said = "\n".join(result.failed.values())
    for text in (fault.says, fault.remedy):
        assert text in deployed
        assert text in said
    assert "Traceback" not in result.output


# ---- From a client to the VPS ----------------------------------------------------------------


@contextmanager
def rules(lab: Lab, host: str, *commands: str) -> Iterator[None]:
    """Of nft, in the network of a host."""
    site = lab.operator.site
    for command in commands:
        lab.operator.run(
            ["nsenter", f"--net=/run/netns/{site.network.namespace(host)}", "nft", command]
        )
    try:
        yield
    finally:
        lab.operator.run(
            ["nsenter", f"--net=/run/netns/{site.network.namespace(host)}", "nft", "flush ruleset"]
        )


NAT = (
    "add table ip nat",
    "add chain ip nat prerouting { type nat hook prerouting priority -100; }",
    "add rule ip nat prerouting tcp dport 8080 dnat to 203.0.113.99:80",
)
FILTER = (
    "add table inet filter",
    "add chain inet filter input { type filter hook input priority 0; policy accept; }",
    "add rule inet filter input tcp dport 44444 drop",
    "add rule inet filter input tcp dport 8002 reject",
    "add rule inet filter input udp dport 33333 drop",
    "add rule inet filter input meta nfproto ipv4 ip saddr 198.51.100.77 drop",
)
CLOSED = (
    "add table inet filter",
    "add chain inet filter input { type filter hook input priority 0; policy drop; }",
    "add rule inet filter input ct state vmap { established : accept, related : accept, invalid : drop }",
    "add rule inet filter input iifname lo accept",
    "add rule inet filter input meta l4proto { icmp, ipv6-icmp } accept",
    "add rule inet filter input tcp dport { 22, 8000-8010 } accept",
    "add rule inet filter input ip saddr 192.0.2.0/24 udp dport 33334 accept",
)


def test_rules_of_the_vps(site: Checkout) -> None:
    """Promise 18: rules that drop TCP, UDP, the last of a range, and one that takes a port away."""
    with rules(site.lab, "vps1", *NAT, *FILTER):
        deployed = site.deploy().stderr
        result = verify(site, "--from-here")
    kept_out = ["tcp 44444", "tcp 8080", "tcp 8000-8002 (IPv4)", "udp 33333"]
    assert set(result.failed) == {
        *lets_in(*kept_out),
        *from_here("tcp 44444 over IPv4", "tcp 44444 over IPv6", "tcp 8080 over IPv4"),
        *from_here("tcp 8000-8002 (IPv4) over IPv4", "udp 33333 over IPv4", "udp 33333 over IPv6"),
    }, result.output
    dropped = "nft, table inet filter, chain input, drops what clients send over IPv4 and IPv6"
    taken = "nft, table ip nat, chain prerouting, takes away what clients send, by a DNAT rule"
    assert f"tcp 44444, udp 33333: {dropped}" in deployed
    assert "(/etc/nftables.conf): tcp dport 44444 accept, and the others likewise" in deployed
    assert f"tcp 8080: {taken} over IPv4; to mend it, take that rule away" in deployed
    failed = result.failed
    assert f"tcp 44444: {dropped}" in failed["test_lets_clients_in[vps1-tcp 44444]"]
    assert "udp dport 33333 accept" in failed["test_lets_clients_in[vps1-udp 33333]"]
    assert "tcp dport 8002 accept" in failed["test_lets_clients_in[vps1-tcp 8000-8002 (IPv4)]"]
    assert taken in failed["test_reached_from_here[vps1-tcp 8080 over IPv4]"]
    of_udp = failed["test_reached_from_here[vps1-udp 33333 over IPv6]"]
    assert "none of 5 datagrams came in\nsuspect: surely nft, table inet filter" in of_udp
    assert "its homes answer: yes (6 of 6) | its rules let clients in: NO, 4 of 6" in result.output


def test_a_policy_that_drops(site: Checkout) -> None:
    """What a rule lets in is let in; where that depends on more than is understood, nothing is claimed."""
    kept_out = ("tcp 44444", "tcp 8080", "tcp 22222", "udp 33333")
    with rules(site.lab, "vps1", *CLOSED):
        deployed = site.deploy().stderr
        result = verify(site, "--from-here")
    assert set(result.failed) == {
        *lets_in(*kept_out),
        *from_here(*(f"{name} over IPv{family}" for name in kept_out for family in "46")),
    }, result.output
    assert "udp 33334 (IPv4): nft" not in deployed
    assert "1 not seen: not clear, perhaps nft, table inet filter, chain input," in result.output


def test_a_firewall_of_the_provider(site: Checkout) -> None:
    """What drops on the way is seen from here only, and nothing on the VPS is suspected."""
    drop = "add rule bridge provider forward ether type ip ip daddr 203.0.113.10"
    with rules(
        site.lab,
        "internet",
        "add table bridge provider",
        "add chain bridge provider forward { type filter hook forward priority 0; }",
        f"{drop} tcp dport 44444 drop",
        f"{drop} udp dport 33333 drop",
    ):
        result = verify(site, "--from-here")
    assert set(result.failed) == from_here("tcp 44444 over IPv4", "udp 33333 over IPv4")
    for check, name in zip(sorted(result.failed), ("tcp 44444", "udp 33333"), strict=True):
        assert (
            "a firewall of the provider, since nothing on the VPS is seen" in result.failed[check]
        )
        assert f"let {name} in there" in result.failed[check]


def test_what_was_not_tried_is_said(site: Checkout) -> None:
    """A machine without IPv6, and UDP that others use as well: neither has passed."""
    vps = site.lab.vps["vps1"]
    stop = threading.Event()

    def talk() -> None:
        with site.lab.inside("client"):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            while not stop.wait(0.05):
                sender.sendto(b"x" * 300, (vps.ipv4, 33334))

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        with ipv6_off(site.lab.operator):
            result = verify(site, "--from-here")
    finally:
        stop.set()
        thread.join()
    assert (result.status, result.failed, result.passed) == (0, {}, 137), result.output
    assert "reached from here: yes (5 of 10), 5 not seen: not tried, this machine has no IPv6" in (
        result.output
    )
    of_udp = result.skipped["test_reached_from_here[vps1-udp 33334 (IPv4) over IPv4]"]
    assert "not proven, other traffic hides whether the datagrams came in" in of_udp


def test_all_is_well_again(site: Checkout) -> None:
    """Every fault has gone."""
    result = verify(site, "--from-here")
    assert (result.status, result.failed, result.skipped) == (0, {}, {}), result.output
