# SPDX-License-Identifier: GPL-3.0-or-later
"""The launcher of the relays: socat's command line, and what it says when there is none."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from unit_samples import ADDRESS, EACH, RELAY, program

from home_forwarder.render import load_program

relay = load_program(RELAY)

pytestmark = pytest.mark.usefixtures("no_settings")


def parts(command: list[str]) -> tuple[dict[str, str], str, str]:
    """Options, listening address, target address."""
    options = dict(zip(command[1:-2:2], command[2:-2:2], strict=True))
    return options, command[-2], command[-1]


@pytest.mark.parametrize(("protocol", "listen"), EACH)
def test_listening_side(protocol: str, listen: str) -> None:
    """The family is always said: socat's and the system's defaults differ between versions."""
    command = relay.socat(protocol, listen, 8080, ADDRESS, 80)
    _, accept, _ = parts(command)
    kind, *options = accept.split(",")
    assert kind == f"{protocol.upper()}{'4' if listen == '4' else '6'}-LISTEN:8080"
    v6only = [option for option in options if option.startswith("ipv6-v6only=")]
    assert v6only == {"46": ["ipv6-v6only=0"], "4": [], "6": ["ipv6-v6only=1"]}[listen]
    assert {"fork", "reuseaddr", "max-children=1024"} <= set(options)
    assert ("backlog=512" in options) is (protocol == "tcp")
    assert ("keepalive" in options) is (protocol == "tcp")


@pytest.mark.parametrize(("protocol", "listen"), EACH)
def test_target_side(protocol: str, listen: str) -> None:
    """Always IPv6, always an address: no new connection asks DNS (promise 4)."""
    _, _, connect = parts(relay.socat(protocol, listen, 8080, ADDRESS, 80))
    target, *options = connect.split(",")
    assert target == f"{protocol.upper()}6:[{ADDRESS}]:80"
    assert ("keepalive" in options) is (protocol == "tcp")
    assert any(re.fullmatch("connect-timeout=[1-9][0-9]*", option) for option in options) is (
        protocol == "tcp"
    )


@pytest.mark.parametrize(
    ("protocol", "idle", "seconds"),
    [("tcp", None, "7440"), ("udp", None, "300"), ("tcp", "60", "60"), ("udp", "", "300")],
)
def test_idle_time(
    protocol: str, idle: str | None, seconds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-t as long as -T: a slow answer after the client's end is not cut off."""
    if idle is not None:
        monkeypatch.setenv("FORWARD_IDLE_TIMEOUT", idle)
    command = relay.socat(protocol, "46", 1, ADDRESS, 1)
    options, _, _ = parts(command)
    assert command[0] == "/usr/bin/socat"
    assert (options["-t"], options["-T"]) == (seconds, seconds)
    assert int(options["-b"]) >= 65536


@pytest.mark.parametrize(("protocol", "listen"), EACH)
def test_idle_time_is_never_0(protocol: str, listen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """socat 1.8.0.1 and later end each connection at once with -T 0."""
    monkeypatch.setenv("FORWARD_IDLE_TIMEOUT", "0")
    options, _, _ = parts(relay.socat(protocol, listen, 1, ADDRESS, 1))
    assert float(options.get("-T", "1")) > 0
    assert float(options["-t"]) > 0


def test_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARD_MAX_CONNECTIONS", "7")
    _, accept, _ = parts(relay.socat("udp", "4", 1, ADDRESS, 1))
    assert "max-children=7" in accept.split(",")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program(RELAY), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["tcp", "46"],
        ["tcp", "46", "0:80", "x"],
        ["TCP", "46", "0:80"],
        ["sctp", "46", "0:80"],
        ["tcp", "64", "0:80"],
        ["tcp", "", "0:80"],
        ["tcp", "46", "0"],
        ["tcp", "46", "0:"],
        ["tcp", "46", ":80"],
        ["tcp", "46", "0:80:80"],
        ["tcp", "46", "a:80"],
        ["tcp", "46", "0:http"],
        ["tcp", "46", "0:0"],
        ["tcp", "46", "0:65536"],
        ["tcp", "46", "0:80,fork"],
        ["tcp", "46", "0:80 EXEC:sh"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str]) -> None:
    """Promise 15: an instance's name is two numbers or nothing."""
    done = run(*arguments, HOME_HOSTNAME_0="nas.address.test", HOME_IPV6_ADDRESS_0=ADDRESS)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("usage: relay tcp|udp 46|4|6 INDEX:PORT")
    assert done.stderr.count("\n") == 1


def test_address_not_known_yet() -> None:
    """75, which the unit does not restart: the watcher starts it."""
    done = run("tcp", "46", "1:80", HOME_HOSTNAME_1="nas.test", HOME_HOSTDESC_1="My NAS")
    assert (done.returncode, done.stderr) == (75, "")
    assert done.stdout.startswith("The address of My NAS (nas.test) is not known yet")
    assert done.stdout.count("\n") == 1


def test_address_of_another_home_does_not_count() -> None:
    done = run("tcp", "46", "1:80", HOME_HOSTNAME_1="nas.test", HOME_IPV6_ADDRESS_0=ADDRESS)
    assert done.returncode == 75


def test_unknown_home() -> None:
    done = run("udp", "6", "7:80", HOME_HOSTNAME_1="nas.test", HOME_IPV6_ADDRESS_7=ADDRESS)
    assert done.returncode == 75
    assert "no HOME_HOSTNAME_7" in done.stderr


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("address", "v6only", "listen", "taken"),
    [
        ("0.0.0.0", None, "4", True),
        ("0.0.0.0", None, "46", True),
        ("0.0.0.0", None, "6", False),
        ("127.0.0.1", None, "4", True),
        ("::", 1, "4", False),
        ("::", 1, "6", True),
        ("::", 1, "46", True),
        ("::", 0, "4", True),
        ("::", 0, "6", True),
        ("::", 0, "46", True),
    ],
)
def test_is_taken(
    protocol: str, address: str, v6only: int | None, listen: str, taken: bool
) -> None:
    """A port is taken if the relay's own socket would clash with a program's that is there."""
    family = socket.AF_INET if v6only is None else socket.AF_INET6
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as other:
        if v6only is not None:
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        other.bind((address, 0))
        if protocol == "tcp":
            other.listen()
        port = other.getsockname()[1]
        assert relay.is_taken(protocol, listen, port) is taken
    assert not relay.is_taken(protocol, listen, port)


def test_a_port_that_becomes_free_is_taken_over() -> None:
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        threading.Timer(0.3, other.close).start()
        started = time.monotonic()
        assert relay.wait_for_port("tcp", "4", port)
        assert 0.2 < time.monotonic() - started < 5


def test_a_taken_port_is_given_up_after_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(relay, "PATIENCE", 0.2)
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        assert not relay.wait_for_port("tcp", "4", port)
    assert capsys.readouterr().out.startswith(f"tcp port {port} is taken by another program")
    assert relay.wait_for_port("tcp", "4", port)


@pytest.mark.parametrize(
    ("status", "printed", "said"),
    [
        ("0", "", ""),
        ("75", "", ""),
        (None, "", ""),
        (
            "98",
            "",
            "tcp port 80 is held by an unknown program; forwarding starts when it is free\n",
        ),
        (
            "98",
            'LISTEN 0 511 *:80 *:* users:(("nginx",pid=12,fd=6),("nginx",pid=7,fd=6))',
            "tcp port 80 is held by nginx (pid 12), nginx (pid 7); forwarding starts when it is"
            " free\n",
        ),
    ],
)
def test_port_holder(status: str | None, printed: str, said: str, tmp_path: Path) -> None:
    """It speaks of a taken port, and of nothing else."""
    path = tmp_path / "ss"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\n")
    path.chmod(0o755)
    done = subprocess.run(
        [*program("/usr/local/lib/home-forwarder/port-holder"), "tcp", "0:80"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **({"EXIT_STATUS": status} if status else {})},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
