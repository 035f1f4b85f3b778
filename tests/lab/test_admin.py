# SPDX-License-Identifier: GPL-3.0-or-later
"""What an admin does on the VPS itself, without pyinfra."""

from __future__ import annotations

import json
import time

import pytest
from lab_samples import TCP, UDP

from lab import Lab
from lab.checkout import Checkout
from lab.traffic import ask_tcp, ask_udp, ask_until
from lab.vps import Vps

RELAYS = {
    "tcp": [
        "home-tcpforwarder-46-to-6@0:44444.service",
        "home-tcpforwarder-46-to-6@1:8001.service",
    ],
    "udp": ["home-udpforwarder-46-to-6@0:33333.service"],
}


def pids(vps: Vps, protocol: str) -> list[str]:
    """The relay processes of a protocol, once nothing starts or stops any more; "0" for one that does
    not run. Restarting a group is over before the restarts of its forwards are."""
    vps.run("timeout 10 sh -c 'while systemctl list-jobs | grep -q home-; do sleep 0.1; done'")
    return [
        vps.run(["systemctl", "show", "-P", "MainPID", unit]).stdout.strip()
        for unit in RELAYS[protocol]
    ]


def test_groups(lab: Lab, vps: Vps, booted: Checkout) -> None:
    """Restart, stop and start reach exactly the forwards of the group."""
    tcp, udp = pids(vps, "tcp"), pids(vps, "udp")
    vps.run("systemctl restart home-tcpforwarders")
    assert not set(pids(vps, "tcp")) & {*tcp, "0"}
    assert pids(vps, "udp") == udp
    tcp = pids(vps, "tcp")
    vps.run("systemctl restart home-forwarders")
    assert not set(pids(vps, "tcp") + pids(vps, "udp")) & {*tcp, *udp, "0"}
    vps.run("systemctl stop home-udpforwarders")
    assert pids(vps, "udp") == ["0"]
    assert "0" not in pids(vps, "tcp")
    vps.run("systemctl stop home-forwarders")
    assert pids(vps, "tcp") == ["0", "0"]
    vps.run("systemctl start home-forwarders")
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, "home0")
        ask_until(ask_tcp, vps.ipv4, 8001, "home1")
        ask_until(ask_udp, vps.ipv4, UDP, "home0")
    vps.run("systemctl restart home-tcpforwarder@0:44444")
    assert pids(vps, "tcp")[0] not in ("0", tcp[0])


def test_a_stopped_forward_stays_stopped(lab: Lab, vps: Vps, booted: Checkout) -> None:
    """A change of address restarts what runs, and starts nothing that an admin stopped."""
    vps.run("systemctl stop home-tcpforwarder@0:44444")
    lab.home["home0"].move()
    vps.run("home-address-update")
    with lab.inside("client"):
        ask_until(ask_udp, vps.ipv4, UDP, lab.home["home0"].address, seconds=12)
    assert pids(vps, "tcp")[0] == "0"


def test_by_hand_as_the_seed_does(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """A conf file, the resolver, a timer, forwards: written and enabled on the VPS."""
    checkout.declare([], [])
    checkout.deploy()
    vps.write(
        "/etc/home-forwarder.conf",
        'HOME_ADDRESS_COUNT=2\nHOME_HOSTDESC_0="Fritz!Box at home"\n'
        "HOME_HOSTNAME_0=home0.home.example\nHOME_HOSTDESC_1='Home server'\n"
        "HOME_HOSTNAME_1=home1.home.example\n",
    )
    shown = vps.run("home-address-update").stdout
    assert "2 homes: 0 changed, 0 unresolved" in shown
    assert vps.run("cat /etc/home-address-ipv6").stdout == "".join(
        f"HOME_IPV6_ADDRESS_{n}={lab.home[f'home{n}'].address}\n" for n in (0, 1)
    )
    assert vps.run(". /etc/home-address-ipv6; echo $HOME_IPV6_ADDRESS_1").stdout.strip() == (
        lab.home["home1"].address
    )
    assert vps.run("cat /etc/home-address-ipv4").stdout == ""
    vps.run(
        "systemctl enable --now home-address-updater.timer home-address-watcher@0.path"
        " home-tcpforwarder@0:44444 home-udpforwarder@1:33333"
        " home-tcpforwarders home-udpforwarders home-forwarders"
    )
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, "home0")
        ask_until(ask_udp, vps.ipv4, UDP, "home1")
    lab.home["home0"].move()
    vps.run("home-address-update")
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, lab.home["home0"].address)
    journal = vps.run("journalctl -q -o cat -t home-tcpforwarder").stdout
    assert "Forwarding to Fritz!Box at home: home0.home.example:44444" in journal
    vps.reboot()
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, "home0", seconds=10)
        ask_until(ask_udp, vps.ipv4, UDP, "home1", seconds=10)


@pytest.mark.relays("socat")
def test_ipv4_address_of_a_home(lab: Lab, vps: Vps, booted: Checkout) -> None:
    """A home that has an A record as well: known, and no reason to restart anything."""
    before = pids(vps, "tcp")
    home = lab.home["home0"]
    lab.dns.set(home.hostname, aaaa=[home.address], a=["198.51.100.77"])
    shown = json.loads(vps.run("home-address-update --json").stdout)
    assert shown["homes"][0]["ipv4"]["address"] == "198.51.100.77"
    assert vps.run("cat /etc/home-address-ipv4").stdout == "HOME_IPV4_ADDRESS_0=198.51.100.77\n"
    time.sleep(0.5)
    assert pids(vps, "tcp") == before
    lab.dns.set(home.hostname, aaaa=[home.address])


@pytest.mark.relays("socat")
def test_a_mistyped_instance_fails_once(lab: Lab, vps: Vps, booted: Checkout) -> None:
    """With a sentence that says what is wrong; and nobody tries it again."""
    wrong = ("nas:8080", "1-8081", "1:0", "1:8084x", "1:65536")
    for instance in wrong:
        vps.run(["systemctl", "start", f"home-tcpforwarder@{instance}"], check=False)
    time.sleep(2.5)
    said = vps.run("journalctl -q -o cat -t home-tcpforwarder").stdout.splitlines()
    for instance in wrong:
        assert (
            len([line for line in said if line.startswith(f"'{instance}' is not INDEX:PORT")]) == 1
        )
        unit = f"home-tcpforwarder-46-to-6@{instance}.service"
        shown = vps.run(["systemctl", "show", "-P", "ActiveState", "-P", "NRestarts", unit]).stdout
        assert sorted(shown.split()) == ["0", "failed"]
