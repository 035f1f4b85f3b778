# SPDX-License-Identifier: GPL-3.0-or-later
"""Deploying to a real VPS: the first time, again, changed data, and back to nothing."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest
from lab_samples import STANDARD, TCP, UDP, home_data

from home_forwarder.plan import UNITS
from lab import Lab
from lab.checkout import Checkout
from lab.traffic import ask_tcp, ask_udp, ask_until, whoami
from lab.vps import Vps


def changed(output: str) -> list[str]:
    """The operations that did something, from pyinfra's table of results."""
    rows = re.findall(r"^ {4}(\S.*?) {2,}(\d+) +(\S+) +(\S+) +(\S+)", output, re.M)
    return [
        name
        for name, _, success, error, _ in rows
        if name != "Grand total" and (success != "-" or error != "-")
    ]


def started_at(vps: Vps, unit: str) -> str:
    """When a unit's process was started; empty if it does not run."""
    return vps.run(["systemctl", "show", "-P", "ExecMainStartTimestampMonotonic", unit]).stdout


@pytest.mark.vps(packages=[], prepare=None)
@pytest.mark.relays(everywhere=True)
def test_first_deploy_forwards(
    lab: Lab, vps: Vps, checkout: Checkout, standard: list[dict[str, Any]]
) -> None:
    """From an empty VPS to an IPv4-only client that reaches an IPv6-only home."""
    checkout.declare(home_data(lab), standard)
    checkout.deploy()
    with lab.inside("client"):
        assert ask_tcp(vps.ipv4, TCP) == f"home0 {lab.home['home0'].address}"
        assert ask_udp(vps.ipv4, UDP) == f"home0 {lab.home['home0'].address} hello"
        assert ask_tcp(vps.ipv4, 8001) == f"home1 {lab.home['home1'].address}"
    with lab.inside("client6"):
        assert ask_tcp(vps.ipv6, TCP) == f"home0 {lab.home['home0'].address}"
        assert ask_udp(vps.ipv6, UDP) == f"home0 {lab.home['home0'].address} hello"
    journal = vps.run("journalctl -q -o cat -t home-tcpforwarder").stdout
    assert "Forwarding to The home home0: home0.home.example:44444" in journal


def test_second_deploy_changes_nothing(deployed: Checkout) -> None:
    """Promise 9."""
    assert changed(deployed.deploy().stderr) == []
    dry = deployed.pyinfra("inventory.py", "deploy.py", "--dry")
    assert "Will " not in dry.stderr + dry.stdout


@pytest.mark.relays("socat")
def test_what_systemd_has_not_read_is_loaded(vps: Vps, deployed: Checkout) -> None:
    """Promise 12: a deploy that ended after writing or deleting a unit's file, before the reload."""
    for cut_off in (
        f"touch {UNITS}/home-address-updater.timer",
        f"mkdir {UNITS}/x; rmdir {UNITS}/x",
    ):
        vps.run(cut_off)
        assert changed(deployed.deploy().stderr) == ["Make this VPS as declared"], cut_off
        assert changed(deployed.deploy().stderr) == []


@pytest.mark.parametrize(
    ("release", "ports"), [("bookworm", 1), ("trixie", 300)], indirect=["release"]
)
def test_remote_commands_do_not_grow(lab: Lab, vps: Vps, checkout: Checkout, ports: int) -> None:
    """Promise 13, counted at the VPS's sshd."""
    vps.run("echo LogLevel VERBOSE >>/etc/ssh/sshd_config && systemctl restart ssh")
    checkout.declare(
        home_data(lab, count=1),
        [
            {"home": "home0", "protocol": "tcp", "port": 10000 + port, "target_port": TCP}
            for port in range(ports)
        ],
    )
    checkout.deploy()
    vps.run("journalctl --rotate --vacuum-time=1s -q")
    checkout.deploy()
    sessions = vps.run("journalctl -q -o cat -u ssh | grep 'Starting session'").stdout.splitlines()
    # One look before anything is done, one at the end, and one at the homes. The lab's own connection is
    # older than the log level, and so not in the log.
    assert len(sessions) == 3


def test_changed_settings_restart_that_forward_only(
    lab: Lab, vps: Vps, deployed: Checkout, standard: list[dict[str, Any]]
) -> None:
    """Promises 5 and 10: an open connection of another forward survives."""
    changed_unit = "home-tcpforwarder-46-to-6@1:8001.service"
    before = started_at(vps, changed_unit)
    with lab.inside("client"):
        connection = socket.create_connection((vps.ipv4, TCP), timeout=5)
        whoami(connection)
    forwards = [*standard[:2], {**standard[2], "idle_timeout": 60}]
    deployed.declare(
        [{**home, "description": "renamed"} for home in home_data(lab)],
        forwards,
        check_interval=1800,
    )
    deployed.deploy()
    assert whoami(connection) == f"home0 {lab.home['home0'].address}"
    assert started_at(vps, changed_unit) != before
    pid = vps.run(["systemctl", "show", "-P", "MainPID", changed_unit]).stdout.strip()
    told = vps.run(f"tr '\\0' ' ' </proc/{pid}/cmdline; cat /proc/{pid}/fd/0").stdout
    assert ("-T 60 " in told) or ("proxy_timeout 60s;" in told)
    assert changed(deployed.deploy().stderr) == []


def test_undeclared_is_removed(
    lab: Lab, vps: Vps, deployed: Checkout, standard: list[dict[str, Any]]
) -> None:
    """Promise 9: forwards and homes that are gone, and what an admin added by hand."""
    vps.run("systemctl enable --now home-tcpforwarder@1:8002")
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, 8002, "home1 ")
    deployed.declare(home_data(lab, count=1), standard[:1])
    dry = deployed.pyinfra("inventory.py", "deploy.py", "--dry").stderr
    assert "home-tcpforwarder@1:8002.service" in dry
    assert "home-udpforwarder@0:33333.service" in dry
    deployed.deploy()
    assert vps.run("ss -Hltun | grep -E ':(8001|8002|33333) '", check=False).stdout == ""
    left = vps.run("find /etc/systemd/system /etc/home-* -name '*33333*' -o -name '*@1*'").stdout
    assert left == ""
    assert changed(deployed.deploy().stderr) == []
    with lab.inside("client"):
        ask_tcp(vps.ipv4, TCP)


@pytest.mark.relays(everywhere=True)
def test_listen_chooses_the_families(lab: Lab, vps: Vps, checkout: Checkout, relay: str) -> None:
    """listen: "4", "6", one each to different homes on one port, and back to both."""
    forwards = [
        {"home": "home0", "protocol": "tcp", "port": 8001, "listen": "4"},
        {"home": "home1", "protocol": "tcp", "port": 8001, "listen": "6"},
        {"home": "home0", "protocol": "udp", "port": 8001, "listen": "4"},
        {"home": "home0", "protocol": "udp", "port": 8002, "listen": "6"},
    ]
    checkout.declare(home_data(lab), [{**forward, "relay": relay} for forward in forwards])
    checkout.deploy()
    with lab.inside("client6"):
        assert ask_tcp(vps.ipv4, 8001).startswith("home0 ")
        assert ask_tcp(vps.ipv6, 8001).startswith("home1 ")
        assert ask_udp(vps.ipv4, 8001).startswith("home0 ")
        assert ask_udp(vps.ipv6, 8002).startswith("home0 ")
        with pytest.raises(OSError):
            ask_udp(vps.ipv6, 8001)
        with pytest.raises(OSError):
            ask_udp(vps.ipv4, 8002)
    assert changed(checkout.deploy().stderr) == []
    forwards = [
        {"home": "home0", "protocol": "tcp", "port": 8001, "listen": "46"},
        {"home": "home0", "protocol": "udp", "port": "8001-8003", "target_port": 8004},
    ]
    checkout.declare(home_data(lab), [{**forward, "relay": relay} for forward in forwards])
    checkout.deploy()
    with lab.inside("client6"):
        for address in (vps.ipv4, vps.ipv6):
            assert ask_tcp(address, 8001).startswith("home0 ")
            assert ask_udp(address, 8003).startswith("home0 ")
    assert changed(checkout.deploy().stderr) == []


@pytest.mark.relays("socat")
def test_a_home_goes(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """Promise 5: a home that says its index keeps its connections when one before it goes; of one that
    does not, the deploy says beforehand that they end."""
    homes = home_data(lab, count=3)
    homes[2]["index"] = 7
    forwards = [
        {"home": name, "protocol": "tcp", "port": port, "target_port": TCP}
        for name, port in (("home0", 8000), ("home1", 8001), ("home2", 8002))
    ]
    checkout.declare(homes, forwards, check_interval=3600)
    checkout.deploy()
    conf = vps.read("/etc/home-forwarder.conf")
    assert "HOME_ADDRESS_COUNT=8\n" in conf
    with lab.inside("client"):
        kept = socket.create_connection((vps.ipv4, 8002), timeout=5)
        whoami(kept)
    checkout.declare(homes[1:], forwards[1:], check_interval=3600)
    said = checkout.pyinfra("inventory.py", "deploy.py", "--dry").stderr
    assert "home1.home.example becomes home 0 and was home 1: the connections of its" in said
    assert "home 0 (The home home0, home0.home.example) is not declared: it goes" in said
    assert "home2.home.example becomes" not in said
    checkout.deploy()
    assert whoami(kept) == f"home2 {lab.home['home2'].address}"
    with lab.inside("client"):
        assert ask_tcp(vps.ipv4, 8001).startswith("home1 ")
    lab.home["home2"].move()
    vps.run("home-address-update")
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, 8002, f"home2 {lab.home['home2'].address}")


def test_undeploy_leaves_nothing(vps: Vps, deployed: Checkout) -> None:
    """Everything of ours is gone; the state when asked for."""
    everything = "ls -d /etc/home-* /usr/local/bin/home-* /usr/local/lib/home-* 2>/dev/null; \
        find /etc/systemd/system -name '*home-*'; systemctl list-units --all --plain -q 'home-*'; \
        ss -Hltunp | grep -v sshd"
    deployed.pyinfra("-y", "inventory.py", "undeploy.py")
    assert vps.run(everything, check=False).stdout == ""
    assert vps.run("cat /var/lib/home-forwarder/home-address-ipv6").stdout
    deployed.pyinfra("-y", "inventory.py", "undeploy.py", "--data", "remove_state=yes")
    assert vps.run("ls -d /var/lib/*/home-forwarder /var/lib/home-*", check=False).stdout == ""
    result = deployed.pyinfra("-y", "inventory.py", "undeploy.py")
    assert changed(result.stderr) == []


@pytest.mark.vps(packages=[])
def test_sudo_user_and_no_python(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """Python is installed first if it is missing; a user who may use sudo is enough."""
    vps.run("DEBIAN_FRONTEND=noninteractive apt-get purge -y -qq --autoremove python3-minimal")
    vps.run("! command -v python3")
    checkout.declare(home_data(lab), STANDARD, hosts={"vps1": {"ssh_user": "admin", "_sudo": True}})
    refused = checkout.pyinfra("-y", "inventory.py", "undeploy.py", check=False)
    assert refused.returncode != 0
    assert "no python3 here to see with" in refused.stderr, "nor is it said that nothing is there"
    checkout.deploy()
    with lab.inside("client"):
        ask_tcp(vps.ipv4, TCP)
    assert changed(checkout.deploy().stderr) == []


def test_not_root_says_what_to_do(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """A user without sudo in the inventory: one clear error, nothing changed."""
    checkout.declare(home_data(lab), STANDARD, hosts={"vps1": {"ssh_user": "admin"}})
    result = checkout.deploy(check=False)
    assert result.returncode != 0
    assert '"_sudo": True' in result.stderr
    assert "Traceback" not in result.stderr
    assert vps.run("find /etc/systemd/system -name 'home-*'").stdout == ""


def test_unreachable_vps_does_not_stop_the_others(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """Promise 14; the exit status says that something failed."""
    checkout.declare(
        home_data(lab), STANDARD, hosts={"vps1": {}, "gone": {"ssh_hostname": "203.0.113.250"}}
    )
    result = checkout.deploy(check=False)
    assert result.returncode != 0
    with lab.inside("client"):
        ask_tcp(vps.ipv4, TCP)


def test_foreign_program_on_the_port(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """Found before anything is changed, with its name."""
    vps.run(f"systemd-run -q --unit=squatter socat TCP4-LISTEN:{TCP},fork EXEC:/bin/true")
    checkout.declare(home_data(lab), STANDARD)
    result = checkout.deploy(check=False)
    assert result.returncode != 0
    assert f"tcp port {TCP} is taken by socat (squatter.service)" in result.stderr
    assert vps.run("find /etc/systemd/system -name 'home-*'").stdout == ""


def test_no_systemd(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """A VPS where systemd does not run: a clear error."""
    vps.run("mount -t tmpfs none /run/systemd")
    checkout.declare(home_data(lab), STANDARD)
    result = checkout.deploy(check=False)
    vps.run("umount /run/systemd")
    assert result.returncode != 0
    assert "systemd does not run here" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.relays("socat")
def test_diff_shows_what_changes(lab: Lab, deployed: Checkout) -> None:
    """--dry --diff: the lines that change, and which forward restarts; nothing is changed."""
    deployed.declare(home_data(lab), [*STANDARD[:2], {**STANDARD[2], "max_connections": 7}])
    shown = deployed.pyinfra("inventory.py", "deploy.py", "--dry", "--diff").stderr
    assert "FORWARD_MAX_CONNECTIONS=7" in shown
    assert "FORWARD_MAX_CONNECTIONS=1024" in shown
    assert "Will restart: home-tcpforwarder-46-to-6@1:8001.service" in shown
    assert deployed.pyinfra("inventory.py", "deploy.py", "--dry").stderr.count("Will write") == 1


def test_preflight_warns_and_goes_on(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """No usable AAAA, a refused answer; `--data preflight=off` leaves the look-ups out."""
    lab.dns.fault(lab.home["home1"].hostname, "nxdomain")
    lab.dns.fault(lab.home["home0"].hostname, "records", records=["AAAA ::1"])
    checkout.declare(home_data(lab), STANDARD)
    shown = checkout.deploy().stderr
    assert "could not confirm an IPv6 address of home1.home.example: the name does not" in shown
    assert "::1, an address of home0.home.example, will be refused: it is a loopback" in shown
    lab.dns.reset_counts()
    checkout.pyinfra("inventory.py", "deploy.py", "--dry", "--data", "preflight=off")
    assert lab.dns.queries(lab.home["home0"].hostname, client=lab.operator.addresses[0]) == 0
