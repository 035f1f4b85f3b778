# SPDX-License-Identifier: GPL-3.0-or-later
"""What an admin does on the VPS itself, without pyinfra; and what the VPS tells the admin."""

from __future__ import annotations

import json
import re
import time
from email import message_from_string
from email.message import EmailMessage
from email.policy import default

import pytest
from lab_samples import STANDARD, TCP, UDP, home_data

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
    """The relay processes of a protocol; "0" for one that does not run."""
    return [
        vps.run(["systemctl", "show", "-P", "MainPID", unit]).stdout.strip()
        for unit in RELAYS[protocol]
    ]


def test_groups(lab: Lab, vps: Vps, deployed: Checkout) -> None:
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


def test_a_stopped_forward_stays_stopped(lab: Lab, vps: Vps, deployed: Checkout) -> None:
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


def test_ipv4_address_of_a_home(lab: Lab, vps: Vps, deployed: Checkout) -> None:
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


def mails(vps: Vps, count: int) -> list[EmailMessage]:
    """root's mailbox, once that many mails are in it."""
    vps.run(
        f"timeout 20 sh -c 'until [ $(grep -c ^Subject: /var/mail/root) -ge {count} ];"
        " do sleep 0.2; done' 2>/dev/null"
    )
    box = re.split(r"^From .*\n", vps.read("/var/mail/root"), flags=re.M)[1:]
    return [message_from_string(text, policy=default) for text in box]


@pytest.mark.vps(packages=["socat", "postfix"])
def test_mail_on_change(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """Through the VPS's own postfix: which home, from where to where, the forwards concerned."""
    homes = [{**home_data(lab, count=1)[0], "description": "Fritz!Box at home"}]
    checkout.declare(homes, STANDARD[:2], check_interval=3600, notify={"mail_to": "root"})
    checkout.deploy()
    old = lab.home["home0"].address
    lab.home["home0"].move()
    vps.run("systemctl start home-address-updater")
    (mail,) = mails(vps, 1)
    new = lab.home["home0"].address
    assert mail["Subject"].strip() == f"Fritz!Box at home: moved from {old} to {new}"
    assert "  tcp 44444\n  udp 33333\n" in mail.get_content()
    assert vps.run("ls /var/lib/home-forwarder/spool").stdout == ""


@pytest.mark.vps(packages=["socat", "postfix"])
def test_mails_wait_for_the_mail_server(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """Three changes while the mail server is down: three mails when it is back, each once."""
    checkout.declare(
        home_data(lab, count=1), STANDARD[:2], check_interval=3600, notify={"mail_to": "root"}
    )
    checkout.deploy()
    vps.run("postfix stop", check=False)
    moves = []
    for _ in range(3):
        old = lab.home["home0"].address
        lab.home["home0"].move()
        moves.append(f"moved from {old} to {lab.home['home0'].address}")
        started = time.monotonic()
        vps.run("systemctl start home-address-updater")
        assert time.monotonic() - started < 2, "the update waited for the mail"
    vps.run("systemctl start home-notifier", check=False)
    assert len(vps.run("ls /var/lib/home-forwarder/spool").stdout.split()) == 3
    vps.run("postfix start && systemctl start home-notifier home-notifier")
    assert [mail["Subject"].partition(": ")[2].strip() for mail in mails(vps, 3)] == moves
    assert vps.run("ls /var/lib/home-forwarder/spool").stdout == ""
