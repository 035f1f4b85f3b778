# SPDX-License-Identifier: GPL-3.0-or-later
"""The launcher of the relays: socat's command line, and what it says when there is none."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from unit_samples import ADDRESS, EACH, RELAY, REPO, program

from home_forwarder.render import module_of

relay = module_of(RELAY)


def socat(protocol: str, listen: str, port: int = 8080, **settings: str | None) -> list[str]:
    """The command line of socat. settings: FORWARD_*, if any; an ad-hoc instance has none."""
    given = {key: value for key, value in settings.items() if value is not None}
    start = relay.socat(relay.Forward(protocol, listen, port, ADDRESS, given))
    assert (start.stdin, start.variables, start.one_process) == (None, {}, False)
    command: list[str] = start.command
    return command


def parts(command: list[str]) -> tuple[dict[str, str], str, str]:
    """Options, listening address, target address."""
    options = dict(zip(command[1:-2:2], command[2:-2:2], strict=True))
    return options, command[-2], command[-1]


@pytest.mark.parametrize(("protocol", "listen"), EACH)
def test_listening_side(protocol: str, listen: str) -> None:
    """The family is always said: socat's and the system's defaults differ between versions."""
    _, accept, _ = parts(socat(protocol, listen))
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
    _, _, connect = parts(socat(protocol, listen, FORWARD_TARGET_PORT="80"))
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
def test_idle_time(protocol: str, idle: str | None, seconds: str) -> None:
    """-t as long as -T: a slow answer after the client's end is not cut off."""
    command = socat(protocol, "46", FORWARD_IDLE_TIMEOUT=idle)
    options, _, _ = parts(command)
    assert command[0] == "/usr/bin/socat"
    assert (options["-t"], options["-T"]) == (seconds, seconds)
    assert int(options["-b"]) >= 65536


@pytest.mark.parametrize(("protocol", "listen"), EACH)
def test_idle_time_is_never_0(protocol: str, listen: str) -> None:
    """socat 1.8.0.1 and later end each connection at once with -T 0."""
    options, _, _ = parts(socat(protocol, listen, FORWARD_IDLE_TIMEOUT="0"))
    assert float(options.get("-T", "1")) > 0
    assert float(options["-t"]) > 0


def test_limit() -> None:
    _, accept, _ = parts(socat("udp", "4", FORWARD_MAX_CONNECTIONS="7"))
    assert "max-children=7" in accept.split(",")


def test_a_whole_command_line() -> None:
    """Promise 10: a release that changes it must restart relays, and know it."""
    keepalive = "nodelay,keepalive,keepidle=300,keepintvl=30,keepcnt=9"
    assert socat("tcp", "46", 44444) == [
        *("/usr/bin/socat", "-b", "524288", "-t", "7440", "-T", "7440"),
        f"TCP6-LISTEN:44444,ipv6-v6only=0,reuseaddr,fork,max-children=1024,backlog=512,{keepalive}",
        f"TCP6:[{ADDRESS}]:44444,connect-timeout=10,{keepalive}",
    ]
    assert socat("udp", "6", 33333, FORWARD_TARGET_PORT="53") == [
        *("/usr/bin/socat", "-b", "524288", "-t", "300", "-T", "300"),
        "UDP6-LISTEN:33333,ipv6-v6only=1,reuseaddr,fork,max-children=1024",
        f"UDP6:[{ADDRESS}]:53",
    ]


@pytest.mark.parametrize("one_process", [False, True])
@pytest.mark.parametrize("stdin", [None, "", "configuration: ünïcode\n" * 1000])
def test_become(stdin: str | None, one_process: bool) -> None:
    """The same process, with its environment, and what the program is to read and may open."""
    code = f"""\
import sys
from home_forwarder.render import module_of
relay = module_of({RELAY!r})
ends = "import os, resource, sys; print(os.getpid(), os.environ['A'], os.environ.get('B')," \\
    "resource.getrlimit(resource.RLIMIT_NOFILE), oct(os.umask(0)), sys.stdin.read(), end='')"
variables = {{"B": "b"}} if {one_process} else None
relay.become(relay.Start([sys.executable, "-c", ends], {stdin!r}, variables, {one_process}))
"""
    with subprocess.Popen(
        ["sh", "-c", 'ulimit -S -n 256; umask 777; exec "$0" -B -c "$1"', sys.executable, code],
        env={"A": "a", "PYTHONIOENCODING": "utf-8"},
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        said, _ = process.communicate("as it was", timeout=20)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files, mask = ((most, most), "0o77") if one_process else ((256, most), "0o777")
    read = "as it was" if stdin is None else stdin
    expected = f"{process.pid} a {'b' if one_process else None} {files} {mask} {read}"
    assert (process.returncode, said) == (0, expected)


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
    assert done.returncode == 64
    assert done.stdout == ""
    assert "is not INDEX:PORT, the number of a home" in done.stderr
    assert "usage: relay tcp|udp 46|4|6 INDEX:PORT" in done.stderr
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


@pytest.mark.parametrize(
    "name", ["FORWARD_TARGET_PORT", "FORWARD_IDLE_TIMEOUT", "FORWARD_MAX_CONNECTIONS"]
)
def test_a_setting_that_is_no_number(name: str) -> None:
    """Written by hand into a unit: a sentence, and no traceback."""
    home: dict[str, Any] = {"HOME_HOSTNAME_0": "nas.test", "HOME_IPV6_ADDRESS_0": ADDRESS}
    done = run("tcp", "46", "0:80", **home, **{name: "many"})
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("A FORWARD_ setting must be a number: ")
    assert "'many'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_socat_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where an admin does it all by hand: what to do, and no traceback."""
    monkeypatch.setattr(relay, "SOCAT", "/nonexistent/socat")
    monkeypatch.setattr("sys.argv", ["relay", "tcp", "46", "0:80"])
    monkeypatch.setenv("HOME_HOSTNAME_0", "nas.test")
    monkeypatch.setenv("HOME_IPV6_ADDRESS_0", ADDRESS)
    assert relay.main() == 2
    assert "There is no /nonexistent/socat; to install it: apt-get install socat" in (
        capsys.readouterr().out
    )


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


PORT_HOLDER = "/usr/local/lib/home-forwarder/port-holder"
HOLDER = """
import ctypes, socket, sys, time
family, kind, port, name = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with socket.socket(family, kind) as holder:
    if family == socket.AF_INET6:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    holder.bind(("", port))
    if kind == socket.SOCK_STREAM:
        holder.listen()
    ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
    print(holder.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held(family: int, kind: int, port: int, name: str) -> Iterator[tuple[int, int]]:
    """A port, any if it is 0, that another program has, which calls itself `name`. Its pid, the port."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(family), str(kind), str(port), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.stdin.close()


def said_of(protocol: str, port: int, status: str | None = "98") -> str:
    """What port-holder prints after a relay has ended."""
    done = subprocess.run(
        [*program(PORT_HOLDER), protocol, f"0:{port}"],
        env={"EXIT_STATUS": status} if status else {},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
IPV4, IPV6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("protocol", "family", "kind", "name", "shown"),
    [
        ("tcp", IPV4, STREAM, "nginx", "nginx"),
        ("tcp", IPV6, STREAM, "nginx", "nginx"),
        ("udp", IPV4, DATAGRAM, "wg x", "wg x"),
        ("udp", IPV6, DATAGRAM, "named", "named"),
        ("tcp", IPV4, STREAM, "a\nb", "a?b"),
        ("tcp", IPV4, STREAM, 'x",pid=1,"', 'x",pid=1,"'),
        ("tcp", IPV4, STREAM, "\x1b[31m", "?[31m"),
    ],
)
def test_port_holder(protocol: str, family: int, kind: int, name: str, shown: str) -> None:
    """Which program it is, by what the kernel says of it, whatever it calls itself."""
    with held(family, kind, 0, name) as (pid, port):
        assert said_of(protocol, port) == (
            f"{protocol} port {port} is held by {shown} (pid {pid}); forwarding starts when it is"
            " free\n"
        )
        other = {"tcp": "udp", "udp": "tcp"}[protocol]
        assert said_of(other, port).startswith(
            f"{other} port {port} is held by an unknown program;"
        )


def test_port_holders() -> None:
    """Each family may be held by another program."""
    with (
        held(IPV4, STREAM, 0, "one") as (first, port),
        held(IPV6, STREAM, port, "two") as (then, _),
    ):
        names = sorted([(first, f"one (pid {first})"), (then, f"two (pid {then})")])
        assert f"is held by {', '.join(name for _, name in names)};" in said_of("tcp", port)


@pytest.mark.parametrize("status", ["0", "75", None])
def test_port_holder_says_nothing_else(status: str | None) -> None:
    """It speaks of a taken port, and of nothing else."""
    with held(IPV4, STREAM, 0, "nginx") as (_, port):
        assert said_of("tcp", port, status) == ""
