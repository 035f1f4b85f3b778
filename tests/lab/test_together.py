# SPDX-License-Identifier: GPL-3.0-or-later
"""Several who deploy to one VPS, and users of the VPS who would rather they did not."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from lab_samples import STANDARD, TCP, UDP, home_data, look, read_until

from home_forwarder.applying import LOCK
from home_forwarder.compare import NO_CHANGES, compare
from home_forwarder.config import load_config
from home_forwarder.planning import make_plan
from lab import Lab
from lab.checkout import Checkout
from lab.traffic import ask_tcp, ask_udp
from lab.vps import Vps

ROUNDS = 20
SETTINGS: dict[str, Any] = {"preflight": False, "check_interval": 3600}


@pytest.fixture
def second(lab: Lab, tmp_path: Path) -> Checkout:
    """Another operator's checkout."""
    return Checkout(lab, tmp_path / "second")


@pytest.mark.relays("socat")
@pytest.mark.parametrize("release", ["trixie"], indirect=True)
def test_two_deploys_at_once(lab: Lab, vps: Vps, checkout: Checkout, second: Checkout) -> None:
    """Promise 21: never a mixture. Whoever says last that it went well is what is there."""
    homes = home_data(lab)
    # One port leads to another home with each of them, and another range is forwarded.
    declared = {
        checkout: [
            {"home": "home0", "protocol": "udp", "port": UDP, "relay": "socat"},
            {"home": "home0", "protocol": "tcp", "port": "9000-9001", "target_port": 8000},
        ],
        second: [
            {"home": "home1", "protocol": "udp", "port": UDP, "relay": "socat"},
            {"home": "home1", "protocol": "tcp", "port": "9100-9101", "target_port": 8000},
        ],
    }
    leads_to = {checkout: "home0", second: "home1"}
    for each, forwards in declared.items():
        each.declare(homes, forwards, **SETTINGS)
    for number in range(ROUNDS):  # the second begins ever later in the first one's run
        running = {}
        for each in declared:
            running[each] = each.start_pyinfra(
                *("-y", "inventory.py", "deploy.py"),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            time.sleep(0.02 * number)
        ended: list[Checkout] = []
        while running:
            for each, process in list(running.items()):
                if process.poll() is not None:
                    said = process.communicate()[0]
                    assert "Traceback" not in said
                    assert process.returncode == 0, said  # 60 s are enough for each
                    ended.append(each)
                    del running[each]
            time.sleep(0.01)
        last = ended[-1]
        plan = make_plan(load_config({"homes": homes, "forwards": declared[last], **SETTINGS}))
        assert compare(plan, look(vps, plan)) == NO_CHANGES
        with lab.inside("client"):
            assert ask_udp(vps.ipv4, UDP).startswith(leads_to[last])
        there = vps.run("ss -Hltn | grep -cE ':9[01]0[01] '").stdout
        assert int(there) == 2


@pytest.mark.relays("socat")
def test_another_deploy_is_waited_for(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """Promise 21: it is said for whom; a lock whose holder is gone is none."""
    checkout.declare(home_data(lab), STANDARD)
    vps.run(
        f"systemd-run -q --unit=holder flock {LOCK} sh -c"
        f" 'echo me@laptop since 12:00:00 UTC >{LOCK}; sleep 300'; sleep 0.5"
    )
    waiting = checkout.start_pyinfra(
        *("-y", "inventory.py", "deploy.py"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = read_until(waiting, "is deploying to this VPS; waiting")
    assert "me@laptop since 12:00:00 UTC" in said
    assert vps.run("find /etc/systemd/system -name 'home-*'").stdout == ""
    vps.run("systemctl stop holder")
    waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    checkout.declare(home_data(lab), STANDARD[:1])
    vps.run(
        f"systemd-run -q --unit=killed flock {LOCK} sleep 60; sleep 0.2; systemctl kill -s KILL killed"
    )
    assert "is deploying" not in checkout.deploy().stderr
    assert vps.run(["stat", "-c", "%a %U", LOCK]).stdout == "600 root\n"


@pytest.mark.relays("socat")
def test_only_what_was_agreed_to_is_done(
    lab: Lab, vps: Vps, checkout: Checkout, second: Checkout
) -> None:
    """Promise 21: the operator sees what would be done, and meanwhile somebody else deploys."""
    checkout.declare(home_data(lab), STANDARD, preflight=False)
    second.declare(home_data(lab), STANDARD[:1], preflight=False)
    asking = checkout.start_pyinfra(
        *("inventory.py", "deploy.py"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    read_until(asking, "Make this VPS as declared   ")
    second.deploy()
    rest, _ = asking.communicate("\n", timeout=60)
    assert "this VPS has changed since it was looked at" in rest
    assert asking.returncode != 0
    assert "Will " not in second.pyinfra("inventory.py", "deploy.py", "--dry").stderr


NAMED = """
import ctypes, socket, sys, time
listener = socket.create_server(("", int(sys.argv[1])))
ctypes.CDLL(None).prctl(15, sys.argv[2].encode().decode("unicode_escape").encode(), 0, 0, 0)
time.sleep(600)
"""


@pytest.mark.relays("socat")
def test_names_of_processes(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """What a process of any user calls itself stops no deploy and no verification, and fools none."""
    checkout.declare(home_data(lab), STANDARD, check_interval=3600)
    checkout.deploy()
    relay = vps.run("systemctl show -P MainPID home-tcpforwarder-46-to-6@0:44444").stdout.strip()
    vps.write("/srv/named.py", NAMED)
    for number, name in enumerate((r"a\nb", "", r"\x1b[31m", f'x",pid={relay},"', "( ) 1 1")):
        vps.run(
            [
                *("systemd-run", "-q", "--uid=nobody", f"--unit=named{number}"),
                *("python3", "/srv/named.py", str(44450 + number), name),
            ]
        )
    vps.run("timeout 10 sh -c 'until ss -Hltn | grep -q :44454; do sleep 0.1; done'; sleep 0.3")
    checkout.deploy()
    checkout.verify("-q")
    for port, name in ((44450, r"'a\nb'"), (44453, f'x",pid={relay}')):
        checkout.declare(
            home_data(lab), [*STANDARD, {"home": "home0", "protocol": "tcp", "port": port}]
        )
        result = checkout.deploy(check=False)
        assert result.returncode != 0
        assert f"tcp port {port} is taken by {name}" in result.stderr
        assert "Traceback" not in result.stderr
    with lab.inside("client"):
        ask_tcp(vps.ipv4, TCP)


@pytest.mark.relays("socat")
def test_units_of_a_user(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """A control group that a user may name is not one of the system."""
    vps.run(
        "mkdir -p /sys/fs/cgroup/user.slice/user-1000.slice/home-tcpforwarder-46-to-6@0:44444.service"
        " && systemd-run -q --uid=nobody --unit=squatter socat"
        f" TCP4-LISTEN:{TCP},fork,reuseaddr EXEC:/bin/true && sleep 0.3 && cat"
        " /sys/fs/cgroup/system.slice/squatter.service/cgroup.procs"
        " >/sys/fs/cgroup/user.slice/user-1000.slice/home-tcpforwarder-46-to-6@0:44444.service/cgroup.procs"
    )
    checkout.declare(home_data(lab), STANDARD)
    result = checkout.deploy(check=False)
    assert result.returncode != 0
    assert f"tcp port {TCP} is taken by socat" in result.stderr
