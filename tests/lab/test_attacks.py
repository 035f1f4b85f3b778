# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody can do who has taken one of our units over: tried from inside the unchanged unit.

docs/security.md says what is promised; promises 16 and 19.
"""

from __future__ import annotations

import re
import socket
import time
from contextlib import suppress
from typing import Any

import pytest
from lab_samples import STANDARD, home_data

from lab import Lab
from lab.checkout import Checkout
from lab.vps import Vps

pytestmark = pytest.mark.relays("socat")  # it is the unit's, whatever runs in it

RELAY = "home-tcpforwarder-46-to-6@0:44444.service"
SENDERS = {"mail": "home-notifier.service", "program": "home-notifier-program.service"}
NOBODY_HOME = 8009
"""A port of the VPS that leads to one where nobody listens at home."""


@pytest.fixture
def declared(lab: Lab) -> dict[str, Any]:
    """Two channels, and a forward that leads to nobody."""
    return {
        "homes": home_data(lab),
        "forwards": [
            *STANDARD,
            {"home": "home0", "protocol": "tcp", "port": NOBODY_HOME, "target_port": 9},
        ],
        "check_interval": 3600,
        "notify": {"mail_to": "root", "program": "/usr/local/bin/tell"},
    }


def be(vps: Vps, unit: str, code: str) -> None:
    """Let a unit run this Python code in place of its program, in the same sandbox as the same user."""
    name = re.sub(r"\W", "-", unit)
    vps.write(f"/usr/local/lib/{name}.py", code)
    vps.run(f"mkdir -p '/run/systemd/system/{unit}.d'")
    vps.write(
        f"/run/systemd/system/{unit}.d/attack.conf",
        "[Service]\nExecStart=\nType=oneshot\nRestart=no\nSyslogIdentifier=attack\n"
        f"ExecStart=/usr/bin/python3 -u /usr/local/lib/{name}.py\n",
    )
    vps.run("systemctl daemon-reload")


def be_itself(vps: Vps, unit: str) -> None:
    """Take it back."""
    vps.run(f"rm -r '/run/systemd/system/{unit}.d'; systemctl daemon-reload")


def attack(vps: Vps, unit: str, code: str) -> str:
    """What code that runs in a unit prints."""
    be(vps, unit, code)
    vps.run(["systemctl", "restart", unit], check=False)
    run = vps.run(["systemctl", "show", "-P", "InvocationID", unit]).stdout.strip()
    be_itself(vps, unit)
    vps.run("journalctl --sync")
    return vps.run(
        ["journalctl", "-q", "-o", "cat", "-t", "attack", f"_SYSTEMD_INVOCATION_ID={run}"]
    ).stdout


SERVER = """
import socket, time
servers = [
    socket.create_server((address, 8888), family=family)
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))
]
time.sleep(600)
"""

REACH = """
import socket
for place in PLACES:
    try:
        socket.create_connection((place, 8888), 0.4)
        print("POSSIBLE:", place)
    except OSError:
        pass
print("all tried")
"""


def test_what_units_do_not_reach(vps: Vps, booted: Checkout) -> None:
    """Promise 16: the loopback, what is link-local, as a cloud's metadata; and the VPS's own
    addresses, where systemd can do that."""
    metadata = ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"]
    for address in metadata:
        vps.run(f"ip address add {address}/{128 if ':' in address else 32} dev lo")
    vps.run(["systemd-run", "-q", "python3", "-c", SERVER])
    vps.run("systemctl stop home-tcpforwarders; sleep 0.5")
    hidden = ["127.0.0.1", "::1", *metadata]
    own = [vps.ipv4, vps.ipv6]
    outside = f"PLACES = {[*hidden, *own]}\n{REACH}"
    vps.write("/usr/local/lib/reach.py", outside)
    said = vps.run("python3 /usr/local/lib/reach.py").stdout
    assert re.findall("POSSIBLE: (.*)", said) == [*hidden, *own]
    said = attack(vps, RELAY, outside)
    assert "all tried" in said
    # Without the BPF framework, as in Debian 12, the addresses of the VPS are open.
    able = "+BPF_FRAMEWORK" in vps.run("systemctl --version").stdout
    assert re.findall("POSSIBLE: (.*)", said) == ([] if able else own)
    for unit in SENDERS.values():
        said = attack(vps, unit, outside)
        assert "all tried" in said
        assert not {"169.254.169.254", "fd00:ec2::254"} & set(re.findall("POSSIBLE: (.*)", said))


def test_strangers_do_not_write_the_journal(lab: Lab, vps: Vps, booted: Checkout) -> None:
    """500 clients of a home that refuses them leave a few hundred lines, and no more however many come."""
    with lab.inside("client"):
        for _ in range(800):
            with suppress(OSError):
                socket.create_connection((vps.ipv4, NOBODY_HOME), timeout=2).close()
    time.sleep(1)
    unit = f"home-tcpforwarder-46-to-6@0:{NOBODY_HOME}.service"
    lines = int(vps.run(f"journalctl -q -o cat -u '{unit}' | wc -l").stdout)
    assert 50 < lines < 600  # journald's limit grows with the space on the disk
