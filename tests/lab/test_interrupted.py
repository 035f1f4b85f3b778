# SPDX-License-Identifier: GPL-3.0-or-later
"""Promise 12: a deploy that is cut off anywhere is repaired by running it again."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from lab_samples import STANDARD, TCP, UDP, apply_now, home_data, look

from home_forwarder.applying import steps_of
from home_forwarder.compare import NO_CHANGES, compare
from home_forwarder.config import load_config
from home_forwarder.plan import Plan
from home_forwarder.planning import make_plan
from lab import Lab
from lab.checkout import Checkout
from lab.traffic import ask_tcp, ask_udp, ask_until, whoami
from lab.vps import Vps

POINTS = 6
"""Of a first deploy, and as many of a changing one."""

CHANGED = [STANDARD[0], {**STANDARD[1], "idle_timeout": 77}, {**STANDARD[2], "port": 8002}]


def kill(lab: Lab, process: subprocess.Popen[str]) -> None:
    """The operator's machine dies: the VPS sees the connection end."""
    process.kill()
    process.wait()


def lose_connection(lab: Lab, process: subprocess.Popen[str]) -> None:
    """The operator's line is cut: the VPS sees nothing, what it was told to do runs on."""
    lab.operator.unplug()
    time.sleep(0.3)
    kill(lab, process)
    lab.operator.plug()


INTERRUPTIONS: dict[str, Callable[[Lab, subprocess.Popen[str]], None]] = {
    "bookworm": kill,
    "trixie": lose_connection,
}


def plan(lab: Lab, forwards: list[dict[str, object]]) -> Plan:
    return make_plan(load_config({"homes": home_data(lab), "forwards": forwards}))


def cut_off(lab: Lab, checkout: Checkout, interrupt: Callable[..., None], seconds: float) -> None:
    """Start a deploy and end it after that many seconds."""
    process = checkout.start_pyinfra(
        "-y", "inventory.py", "deploy.py", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(seconds)
    interrupt(lab, process)


def has_whole_files_only(vps: Vps, *plans: Plan) -> bool:
    """Is every file of ours on the VPS exactly as some plan says?"""
    whole = {
        (hashlib.sha256(file.content.encode()).hexdigest(), file.path)
        for each in plans
        for file in each.files
    }
    command = "find /etc/systemd/system /etc/home-* /usr/local -type f"
    found = vps.run(
        f"{command} '(' -name 'home-*' -o -path '*home-*' ')' ! -name '*.home-forwarder-new'"
        " -exec sha256sum {} +",
        check=False,
    ).stdout
    return {tuple(line.split(maxsplit=1)) for line in found.splitlines()} <= whole


def assert_converges(lab: Lab, vps: Vps, checkout: Checkout, port: int) -> None:
    """The next deploy mends everything, and the one after it has nothing to do."""
    checkout.deploy()
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, "home0")
        ask_until(ask_udp, vps.ipv4, UDP, "home0", seconds=12)
        ask_until(ask_tcp, vps.ipv4, port, "home1")
    shown = checkout.pyinfra("inventory.py", "deploy.py", "--dry").stderr
    assert "Will " not in shown


@pytest.fixture
def seconds(lab: Lab, release: str, checkout: Checkout) -> float:
    """How long a deploy takes here and now."""
    lab.add_vps("vps1", release, packages=["socat"])
    checkout.declare(home_data(lab), STANDARD)
    started = time.monotonic()
    checkout.deploy()
    lab.remove_vps("vps1")
    return time.monotonic() - started


@pytest.mark.parametrize("release", ["trixie"], indirect=True)
def test_first_deploy_cut_off(lab: Lab, release: str, checkout: Checkout, seconds: float) -> None:
    for point in range(POINTS):
        vps = lab.add_vps("vps1", release, packages=["socat"])
        checkout.declare(home_data(lab), STANDARD)
        # The first third is spent before the operator connects.
        cut_off(lab, checkout, INTERRUPTIONS[release], seconds * (1 + 2 * point / POINTS) / 3)
        assert has_whole_files_only(vps, plan(lab, STANDARD)), point
        assert_converges(lab, vps, checkout, 8001)
        lab.remove_vps("vps1")


@pytest.mark.parametrize("release", ["bookworm"], indirect=True)
def test_changing_deploy_cut_off(lab: Lab, release: str, vps: Vps, checkout: Checkout) -> None:
    """Between two states, there and back; a forward that does not change is never disturbed."""
    checkout.declare(home_data(lab), STANDARD)
    checkout.deploy()
    started = time.monotonic()
    checkout.deploy()
    seconds = (time.monotonic() - started) * 1.4  # a deploy that changes something takes longer
    with lab.inside("client"):
        connection = socket.create_connection((vps.ipv4, TCP), timeout=5)
    for point in range(POINTS):
        forwards = STANDARD if point % 2 else CHANGED
        checkout.declare(home_data(lab), forwards)
        cut_off(lab, checkout, INTERRUPTIONS[release], seconds * (1 + 2 * point / POINTS) / 3)
        assert has_whole_files_only(vps, plan(lab, STANDARD), plan(lab, CHANGED)), point
        assert_converges(lab, vps, checkout, 8001 if point % 2 else 8002)
        whoami(connection)


def data_of(homes: list[dict[str, Any]], ports: dict[str, int]) -> dict[str, Any]:
    """Homes with a forward each; without a look-up by the timer for the length of the test."""
    forwards = [
        {"home": name, "protocol": "tcp", "port": port, "target_port": TCP}
        for name, port in ports.items()
    ]
    return {"homes": homes, "forwards": forwards, "check_interval": 86400}


def cuts(steps: list[list[Any]]) -> Iterator[list[list[Any]]]:
    """What is done of the steps when they are cut off: in the middle of the files, and between them."""
    (write, files), *_ = steps
    yield [[write, files[: len(files) // 2]]]
    for number in range(1, len(steps)):
        yield steps[:number]


@pytest.mark.parametrize(
    ("release", "transition"),
    [("trixie", "add"), ("trixie", "remove"), ("bookworm", "reorder")],
    indirect=["release"],
)
def test_homes_cut_off(lab: Lab, vps: Vps, checkout: Checkout, transition: str) -> None:
    """Promise 12: at every point of adding, removing and reordering homes, the next deploy mends all,
    and each forward leads to its own home as soon as that has ended well."""
    homes = home_data(lab, count=3)
    few = data_of(homes[:2], {"home0": 8000, "home1": 8001})
    many = data_of(homes, {"home0": 8000, "home1": 8001, "home2": 8002})
    before, after = {
        "add": (few, many),
        "remove": (many, data_of(homes[1:], {"home1": 8001, "home2": 8002})),
        "reorder": (many, data_of(homes[::-1], {"home0": 8000, "home1": 8001, "home2": 8002})),
    }[transition]

    def deploy(data: dict[str, Any]) -> None:
        checkout.declare(**data, preflight=False)
        checkout.deploy()
        with lab.inside("client"):
            for forward in data["forwards"]:
                assert ask_tcp(vps.ipv4, forward["port"]).startswith(forward["home"])

    deploy(before)
    wanted = make_plan(load_config(after))
    steps = steps_of(wanted, compare(wanted, look(vps, wanted)))
    for number, cut in enumerate(cuts(steps)):
        apply_now(vps, wanted, cut)
        with lab.inside("client"):
            for forward in after["forwards"]:
                with suppress(OSError):  # refused it may be, but never another home's
                    assert ask_tcp(vps.ipv4, forward["port"]).startswith(forward["home"])
        if number % 3 == 1:
            deploy(after)  # an operator's, at some of the points
        else:
            apply_now(vps, wanted)  # what it does
            with lab.inside("client"):
                for forward in after["forwards"]:
                    assert ask_tcp(vps.ipv4, forward["port"]).startswith(forward["home"])
        assert compare(wanted, look(vps, wanted)) == NO_CHANGES
        apply_now(vps, make_plan(load_config(before)))


def full_disk(vps: Vps, _port: int) -> str:
    vps.run(
        "mkdir /tmp/all && cp -a /etc/systemd/system/. /tmp/all && mount -t tmpfs -o size=160k tmpfs"
        " /etc/systemd/system && cp -a /tmp/all/. /etc/systemd/system"
        " && head -c 1M /dev/zero >/etc/systemd/system/fill; true"
    )
    return (
        "rm /etc/systemd/system/fill; cp -a /etc/systemd/system/. /tmp/all;"
        " umount /etc/systemd/system; cp -a /tmp/all/. /etc/systemd/system"
    )


def read_only_disk(vps: Vps, _port: int) -> str:
    vps.run(
        "mount --bind /etc/systemd/system /etc/systemd/system"
        " && mount -o remount,bind,ro /etc/systemd/system"
    )
    return "umount /etc/systemd/system"


def masked_unit(vps: Vps, port: int) -> str:
    vps.run(f"systemctl mask home-tcpforwarder@1:{port}.service")
    return f"systemctl unmask home-tcpforwarder@1:{port}.service"


def foreign_program(vps: Vps, port: int) -> str:
    vps.run(
        f"systemd-run -q --unit=squatter socat TCP4-LISTEN:{port},reuseaddr,fork EXEC:/bin/true; sleep 0.5"
    )
    return "systemctl stop squatter"


OBSTACLES: dict[Callable[[Vps, int], str], str] = {
    full_disk: "No space left on device",
    read_only_disk: "Read-only file system",
    masked_unit: "systemctl unmask home-tcpforwarder@1:{port}.service",
    foreign_program: "tcp port {port} is taken by socat (squatter.service)",
}
"""What an obstacle to the forward of a port makes a deploy say. Each returns how to undo it."""


def test_obstacles(lab: Lab, vps: Vps, deployed: Checkout) -> None:
    """One clear error; what runs goes on untouched; without the obstacle, all goes well."""
    ports, forwards = [8001, 8002], [STANDARD, CHANGED]
    for obstacle, message in OBSTACLES.items():
        ports.reverse()
        forwards.reverse()
        with lab.inside("client"):
            connections = [
                socket.create_connection((vps.ipv4, port), timeout=5) for port in (TCP, ports[1])
            ]
        deployed.declare(home_data(lab), forwards[0], check_interval=3600)
        undo = obstacle(vps, ports[0])
        result = deployed.deploy(check=False)
        assert result.returncode != 0, obstacle
        assert message.format(port=ports[0]) in result.stderr
        assert "Traceback" not in result.stderr
        for connection in connections:
            whoami(connection)
        vps.run(undo)
        assert_converges(lab, vps, deployed, ports[0])
