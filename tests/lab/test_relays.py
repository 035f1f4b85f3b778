# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay processes: how they carry traffic, what they survive, what they cannot do."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import Any

import pytest
from lab_samples import STANDARD, TCP, UDP, home_data

from lab import Lab
from lab.checkout import Checkout
from lab.traffic import ask_tcp, ask_udp, ask_until, whoami
from lab.vps import Vps

TCP_RELAY = "home-tcpforwarder-46-to-6@0:44444.service"
UDP_RELAY = "home-udpforwarder-46-to-6@0:33333.service"


def main_pid(vps: Vps, unit: str) -> str:
    return vps.run(["systemctl", "show", "-P", "MainPID", unit]).stdout.strip()


@pytest.mark.relays(everywhere=True)
def test_half_close_waits_for_a_slow_answer(lab: Lab, vps: Vps, booted: Checkout) -> None:
    """A client that is done sending and waits 10 s for the answer gets all of it."""
    size = 1_000_000
    with lab.inside("client"):
        connection = socket.create_connection((vps.ipv4, TCP), timeout=20)
        connection.sendall(f"slow 10 {size}\n".encode())
        connection.shutdown(socket.SHUT_WR)
    received = 0
    while chunk := connection.recv(65536):
        received += len(chunk)
    assert received == size


def test_idle_connections_end(
    lab: Lab, vps: Vps, checkout: Checkout, standard: list[dict[str, Any]]
) -> None:
    """idle_timeout, and not before."""
    checkout.declare(home_data(lab), [{**standard[0], "idle_timeout": 3}])
    checkout.deploy()
    with lab.inside("client"):
        connection = socket.create_connection((vps.ipv4, TCP), timeout=10)
    for _ in range(3):
        time.sleep(1.5)
        whoami(connection)
    started = time.monotonic()
    assert connection.recv(1) == b""
    assert 2 < time.monotonic() - started < 6


def test_max_connections(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """At the limit a client waits; when another one ends, it is served. Other forwards do not notice.

    With nginx it is turned away, see test_nginx.py."""
    checkout.declare(home_data(lab), [{**STANDARD[0], "max_connections": 2}, *STANDARD[1:]])
    checkout.deploy()
    with lab.inside("client"):
        first, second = (socket.create_connection((vps.ipv4, TCP), timeout=5) for _ in range(2))
        whoami(first), whoami(second)
        third = socket.create_connection((vps.ipv4, TCP), timeout=2)
        third.sendall(b"whoami\n")
        with pytest.raises(TimeoutError):
            third.recv(100)
        ask_tcp(vps.ipv4, 8001)
        ask_udp(vps.ipv4, UDP)
    first.close()
    third.settimeout(5)
    assert third.recv(100).startswith(b"home0 ")


def test_dead_peers_are_found(lab: Lab, vps: Vps, booted: Checkout, relay: str) -> None:
    """Both sockets of a connection have keepalive on, with our times; nginx can only switch it on
    towards the home, where the system's times are used."""
    with lab.inside("client"):
        connection = socket.create_connection((vps.ipv4, TCP), timeout=5)
        whoami(connection)
    timers = vps.run(f"ss -Htno state established '( sport = {TCP} or dport = {TCP} )'").stdout
    assert timers.count("timer:(keepalive,") == 2
    minutes = sorted(int(each) for each in re.findall(r"keepalive,(\d+)min", timers))
    assert len(minutes) == 2
    assert minutes[0 if relay == "nginx" else 1] <= 5  # Linux would wait for 120


def test_a_killed_relay_is_back(lab: Lab, vps: Vps, booted: Checkout) -> None:
    """SIGKILL: back within 2 s, again and again."""
    for _ in range(8):
        vps.run(["systemctl", "kill", "-s", "KILL", TCP_RELAY])
        with lab.inside("client"):
            assert ask_until(ask_tcp, vps.ipv4, TCP, "home0") < 2


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_taken_later_is_told_and_waited_for(
    lab: Lab, vps: Vps, booted: Checkout, protocol: str
) -> None:
    """A relay whose port another program took waits, says which one, and is back when it is free."""
    unit, port, ask = {"tcp": (TCP_RELAY, TCP, ask_tcp), "udp": (UDP_RELAY, UDP, ask_udp)}[protocol]
    forward = unit.replace("-46-to-6", "")
    vps.run("sed -i 's/^PATIENCE = 30/PATIENCE = 1/' /usr/local/lib/home-forwarder/relay")
    vps.run(["systemctl", "stop", forward])
    vps.run(
        f"systemd-run -q --unit=squatter socat {protocol.upper()}6-LISTEN:{port},fork EXEC:/bin/true"
    )
    vps.run(f"sleep 0.5; systemctl start {forward}")
    said = vps.run(
        f"timeout 10 journalctl -q -f -n 20 -o cat -u '{unit}' | grep -m 1 'is held by'"
    ).stdout
    assert re.fullmatch(
        rf"{protocol} port {port} is held by socat \(pid [0-9]+\); forwarding starts when it is free\n",
        said,
    )
    assert int(vps.run(["systemctl", "show", "-P", "NRestarts", unit]).stdout) <= 1
    vps.run("systemctl stop squatter")
    with lab.inside("client"):
        ask_until(ask, vps.ipv4, port, "home0", seconds=12)


@pytest.mark.parametrize("unit", [TCP_RELAY, UDP_RELAY])
def test_relays_have_no_privileges(lab: Lab, vps: Vps, booted: Checkout, unit: str) -> None:
    """Promise 16, read from the kernel."""
    status = vps.run(f"cat /proc/{main_pid(vps, unit)}/status").stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    net_bind_service = 1 << 10
    assert "0" not in facts["Uid"].split()
    assert int(facts["CapEff"], 16) | net_bind_service == net_bind_service
    assert int(facts["CapBnd"], 16) | net_bind_service == net_bind_service
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"


# What is tried from inside each of our units, each in a process of its own. All of it works outside.
FORBIDDEN = {
    "read /root": "os.listdir('/root/secrets')",
    "read /home": "os.listdir('/home/admin')",
    "write /etc": "open('/etc/x', 'w')",
    "write /usr": "open('/usr/local/x', 'w')",
    "write /var": "open('/var/lib/x', 'w')",
    "raw socket": "socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)",
    "netlink socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "another user's process": "open('/proc/1/environ').read()",
    "another user": "os.setuid(1)",
    "mount": "subprocess.run(['mount', '-t', 'tmpfs', 'none', '/mnt'], check=True)",
    "new namespace": "subprocess.run(['unshare', '--user', 'true'], check=True)",
    "setuid program": "subprocess.run(['su', '-c', 'true'], check=True)",
    "executable memory": "mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)",
    "setuid file": "open('/tmp/x', 'w'); os.chmod('/tmp/x', 0o4755)",
}
TRIES = f"""
import mmap, os, socket, subprocess
for name, code in {FORBIDDEN!r}.items():
    if os.fork() == 0:
        try:
            exec(code)
        except BaseException:
            os._exit(1)
        os._exit(0)
    if os.wait()[1] == 0:
        print("POSSIBLE:", name, flush=True)
print("all tried", flush=True)
"""
UNITS = (
    TCP_RELAY,
    UDP_RELAY,
    "home-address-updater.service",
    "home-notifier.service",
    "home-address-watcher@0.service",
)


@pytest.mark.relays("socat")  # it is the unit's, and here another program runs in it
def test_the_sandbox_forbids(vps: Vps, booted: Checkout) -> None:
    """Promise 16: each forbidden thing is tried inside each unit, and outside, where it works."""
    vps.run("mkdir /root/secrets")
    vps.write("/usr/local/lib/tries.py", TRIES)
    outside = vps.run("python3 /usr/local/lib/tries.py").stdout
    assert re.findall("POSSIBLE: (.*)", outside) == list(FORBIDDEN)
    for unit in UNITS:
        vps.run(
            f"mkdir -p '/run/systemd/system/{unit}.d' && printf '[Service]\\nExecStart=\\n"
            "Type=oneshot\\nRestart=no\\nSyslogIdentifier=%s\\n"
            f"ExecStart=/usr/bin/python3 /usr/local/lib/tries.py\\n' 'tries-{unit}'"
            f" >'/run/systemd/system/{unit}.d/tries.conf'"
        )
    vps.run("systemctl daemon-reload")
    for unit in UNITS:
        vps.run(["systemctl", "restart", unit])
        said = vps.run(["journalctl", "-q", "-o", "cat", "-t", f"tries-{unit}"]).stdout
        assert "all tried" in said
        assert re.findall("POSSIBLE: (.*)", said) == [], unit


@pytest.mark.relays("socat")  # the unit's as well
def test_loopback_is_out_of_reach_of_a_relay(vps: Vps, booted: Checkout) -> None:
    """A relay that was taken over cannot reach the VPS's own sshd on the loopback."""
    code = 'import socket; socket.create_connection(("{}", 22), 2)'
    for address in ("127.0.0.1", "::1"):
        properties = vps.run(["systemctl", "show", "-p", "IPAddressDeny", TCP_RELAY]).stdout
        assert "127.0.0.0/8" in properties
        inside = vps.run(
            "systemd-run --wait -q -p DynamicUser=yes -p IPAddressDeny=localhost python3 -c"
            f" '{code.format(address)}'",
            check=False,
        )
        outside = vps.run(f"systemd-run --wait -q python3 -c '{code.format(address)}'", check=False)
        assert (inside.returncode != 0, outside.returncode) == (True, 0)


def test_security_scores(vps: Vps, booted: Checkout) -> None:
    """Every unit of ours at 1.5 or better in systemd-analyze security."""
    shown = vps.run("systemd-analyze security --no-pager --json=short").stdout
    scores = {
        each["unit"]: float(each["exposure"])
        for each in json.loads(shown)
        if each["unit"].startswith("home-")
    }
    for unit in (
        "home-address-updater",
        "home-notifier",
        "home-address-watcher@0",
        "home-forwarders",
        "home-tcpforwarders",
        "home-udpforwarders",
        "home-tcpforwarder@0:44444",
        "home-udpforwarder@0:33333",
        "home-tcpforwarder@1:8001",
    ):
        text = vps.run(["systemd-analyze", "security", "--no-pager", f"{unit}.service"]).stdout
        found = re.search(r"exposure level for .*\.service: ([0-9.]+)", text)
        assert found, text
        scores[unit] = float(found[1])
    assert {unit: score for unit, score in scores.items() if score > 1.5} == {}
    assert len(scores) == 12
