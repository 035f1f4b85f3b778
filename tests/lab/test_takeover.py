# SPDX-License-Identifier: GPL-3.0-or-later
"""A VPS that was set up by hand with shell scripts and unit files, as the README's table describes it."""

from __future__ import annotations

from lab_samples import STANDARD, TCP, UDP, home_data

from lab import Lab
from lab.checkout import Checkout
from lab.traffic import ask_tcp, ask_udp, ask_until
from lab.vps import Vps

UNITS = "/etc/systemd/system"
SCRIPT = """#!/bin/bash
. /etc/home-forwarder.conf
: >/etc/home-address-ipv4; : >/etc/home-address-ipv6
for ((i = 0; i < HOME_ADDRESS_COUNT; i++)); do
    name=HOME_HOSTNAME_$i
    echo "HOME_IPV6_ADDRESS_$i=$(getent ahostsv6 ${!name} | awk '{print $1; exit}')" >>/etc/home-address-ipv6
done
"""
GROUP = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"


def shell_version() -> dict[str, str]:
    """Its files: the same names of units, a script, one watcher for all homes."""
    files = {
        "/usr/local/bin/home-address-update.sh": SCRIPT,
        "/etc/home-forwarder.conf": 'HOME_ADDRESS_COUNT=3\nHOME_HOSTDESC_0="Router"\n'
        "HOME_HOSTNAME_0=home0.home.example\nHOME_HOSTNAME_1=home1.home.example\n"
        "HOME_HOSTDESC_2='Cabin'\nHOME_HOSTNAME_2=Home2.home.example.\nSEND_MAILS_TO=root\n",
        f"{UNITS}/home-forwarders.service": f"{GROUP}[Install]\nWantedBy=multi-user.target\n",
        f"{UNITS}/home-address-updater.service": "[Service]\nType=oneshot\n"
        "ExecStart=/usr/local/bin/home-address-update.sh\n",
        f"{UNITS}/home-address-updater.timer": "[Timer]\nOnBootSec=1min\nOnUnitActiveSec=1min\n"
        "[Install]\nWantedBy=timers.target\n",
        f"{UNITS}/home-address-watcher.path": "[Path]\nPathModified=/etc/home-address-ipv6\n"
        "[Install]\nWantedBy=multi-user.target\n",
        f"{UNITS}/home-address-watcher.service": "[Service]\nType=oneshot\n"
        "ExecStart=/bin/systemctl restart home-forwarders\n",
    }
    for protocol in ("tcp", "udp"):
        forwarder, upper = f"home-{protocol}forwarder", protocol.upper()
        files |= {
            f"{UNITS}/{forwarder}s.service": f"[Unit]\nPartOf=home-forwarders.service\n{GROUP}"
            "[Install]\nWantedBy=home-forwarders.service\n",
            f"{UNITS}/{forwarder}@.service": f"[Unit]\nRequires={forwarder}-46-to-6@%i.service\n"
            f"PartOf={forwarder}s.service\n{GROUP}[Install]\nWantedBy={forwarder}s.service\n",
            f"{UNITS}/{forwarder}-46-to-6@.service": f"[Unit]\nPartOf={forwarder}@%i.service\n"
            "[Service]\nEnvironmentFile=/etc/home-forwarder.conf\nRestart=always\n"
            "ExecStart=/bin/bash -c 'i=%i; name=HOME_HOSTNAME_$${i%%:*}; socat"
            f" {upper}6-LISTEN:$${{i##*:}},fork,reuseaddr {upper}6:$${{!name}}:$${{i##*:}}'\n",
        }
    return files


def test_the_shell_version_is_taken_over(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """Its forwards go on under the same names; its script, watcher and leftovers go; one timer."""
    for path, content in shell_version().items():
        vps.write(path, content, mode=0o755 if path.endswith(".sh") else 0o644)
    vps.run(
        "systemctl daemon-reload && home-address-update.sh && systemctl enable --now -q"
        f" home-tcpforwarder@0:{TCP} home-udpforwarder@0:{UDP} home-tcpforwarder@1:8001"
        " home-tcpforwarder@1:8005 home-tcpforwarders home-udpforwarders home-forwarders"
        " home-address-updater.timer home-address-watcher.path"
    )
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, "home0")
    checkout.declare(home_data(lab), STANDARD)
    said = checkout.deploy("--data", "preflight=off").stderr
    assert (
        'SEND_MAILS_TO=root is not declared: nobody will get mails of changes; to keep it, write notify = {"mail_to": "root"}'
        in said
    )
    assert (
        "home 2 (Cabin, home2.home.example) is not declared: it goes, and its forwards with it"
        in said
    )
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, "home0")
        ask_until(ask_udp, vps.ipv4, UDP, "home0")
        ask_until(ask_tcp, vps.ipv4, 8001, "home1")
    left = vps.run(
        f"ls -d /usr/local/bin/home-address-update.sh {UNITS}/home-address-watcher.*"
        f" {UNITS}/*/home-address-watcher.path {UNITS}/*/*8005*; ss -Hltn sport = :8005;"
        " systemctl list-units --all --plain --no-legend home-address-watcher.*",
        check=False,
    )
    assert left.stdout == ""
    timers = vps.run("systemctl list-timers --no-legend 'home-address*' | wc -l").stdout
    assert timers.strip() == "1"
    assert "Will " not in checkout.pyinfra("inventory.py", "deploy.py", "--dry").stderr
    checkout.verify("-q")
