# SPDX-License-Identifier: GPL-3.0-or-later
"""Who listens on a VPS: asked of the kernel, whatever processes call themselves."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from home_forwarder.remote import sockets
from home_forwarder.remote.sockets import listeners, processes
from home_forwarder.render import sent_source_of

ME = str(os.getpid())
MY_NAME = Path("/proc/self/comm").read_text().rstrip("\n")
OURS = processes()[ME]
"""The service that these tests run in; mostly none."""
ALL_PORTS = [("tcp", 1, 65535), ("udp", 1, 65535)]


def of(port: int, protocol: str = "tcp") -> list[dict[str, Any]]:
    """Who listens on one port."""
    return listeners([(protocol, port, port)], processes())


def mine(port: int, protocol: str = "tcp") -> list[dict[str, Any]]:
    """Of these, our own: others may listen on the same machine."""
    return [each for each in listeners([(protocol, port, port)], {ME: OURS}) if each["program"]]


@contextmanager
def bound(protocol: str, address: str, *, both: bool = False) -> Iterator[int]:
    """A socket of ours that waits for clients, on a port of its own. both: families."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[protocol]
    with socket.socket(family, kind) as each:
        if family == socket.AF_INET6:
            each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        each.bind((address, 0))
        if protocol == "tcp":
            each.listen()
        yield each.getsockname()[1]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("address", "both", "said"),
    [
        ("0.0.0.0", False, "0.0.0.0"),
        ("127.0.0.1", False, "127.0.0.1"),
        ("::", True, "*"),
        ("::", False, "::"),
        ("::1", False, "::1"),
    ],
)
def test_addresses(protocol: str, address: str, both: bool, said: str) -> None:
    """One for both families is told from one for IPv6 alone."""
    with bound(protocol, address, both=both) as port:
        assert of(port, protocol) == [
            {
                "protocol": protocol,
                "address": said,
                "port": port,
                "program": MY_NAME,
                "unit": OURS,
            }
        ]
        assert mine(port, {"tcp": "udp", "udp": "tcp"}[protocol]) == []
        assert mine(port - 1, protocol) + mine(port + 1, protocol) == []
    assert mine(port, protocol) == []


def test_a_socket_for_each_family() -> None:
    """As nginx listens."""
    with bound("tcp", "::") as port, socket.create_server(("0.0.0.0", port)):
        assert {each["address"] for each in mine(port)} == {"::", "0.0.0.0"}


def test_who_does_not_wait_for_clients_is_not_listed() -> None:
    """A port that is bound only, a connection, a UDP socket that has its peer."""
    with ExitStack() as stack:
        idle = stack.enter_context(socket.socket())
        idle.bind(("127.0.0.1", 0))
        port = stack.enter_context(bound("tcp", "127.0.0.1"))
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.connect(("127.0.0.1", 9))
        asked = [("tcp", each.getsockname()[1]) for each in (idle, client)]
        for protocol, number in [*asked, ("udp", udp.getsockname()[1])]:
            assert mine(number, protocol) == []
        assert len(mine(port)) == 1


def test_no_ports_are_nobody() -> None:
    assert listeners([], processes()) == []


def test_many() -> None:
    """The kernel's answer comes in many pieces; each is read."""
    with ExitStack() as stack:
        ports = {stack.enter_context(bound("tcp", "127.0.0.1")) for _ in range(400)}
        found = {each["port"] for each in listeners(ALL_PORTS, processes())}
    assert ports <= found


LISTENING = """
import socket, sys
with open("/proc/self/comm", "w") as file:
    file.write(sys.argv[1])
with socket.create_server(("127.0.0.1", 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@contextmanager
def started(source: str, *arguments: str) -> Iterator[tuple[str, int]]:
    """A Python program that goes on until it may end. Yields: the line that it says, and its pid."""
    child = subprocess.Popen(
        [sys.executable, "-IS", "-c", source, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout
        yield child.stdout.readline(), child.pid
    finally:
        child.communicate("")


@contextmanager
def listening_as(name: str) -> Iterator[tuple[int, int]]:
    """A process that calls itself `name`, and listens. Yields: its port and pid."""
    with started(LISTENING, name) as (port, pid):
        yield int(port), pid


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"'a\nb'"),
        ('x",pid=1,"', 'x",pid=1,"'),
        (")) S 1 (", ")) S 1 ("),
        ("\x1b[2Jx", r"'\x1b[2Jx'"),
        ("ü" * 7, "ü" * 7),
        (" ", " "),
    ],
)
def test_what_a_process_calls_itself_changes_nothing(name: str, shown: str) -> None:
    """Promise 18: nobody can be taken for a relay of ours by its name, or keep a deploy from looking."""
    with listening_as(name) as (port, pid), bound("tcp", "127.0.0.1") as other:
        owners = {**processes(), ME: "home-tcpforwarder-46-to-6@0:80.service", "1": "one.service"}
        found = listeners(ALL_PORTS, owners)
        (it,) = [each for each in found if each["port"] == port]
        assert (it["program"], it["unit"]) == (shown, owners[str(pid)])
        (ours,) = [each for each in found if each["port"] == other]
        assert ours["unit"] == owners[ME]


AS_NOBODY = """
import json, sys
with open("/proc/self/comm", "w") as file:
    file.write("others")
os.setgroups([])
os.setuid(65534)
with socket.create_server(("127.0.0.1", 0)) as listening:
    seen = listeners([("tcp", int(sys.argv[1]), int(sys.argv[1]))], processes())
    print(json.dumps([listening.getsockname()[1], seen]), flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: SOCKETS OF OTHER USERS WERE NOT TRIED")
def test_sockets_of_other_users() -> None:
    """Root sees whose each socket is; nobody else does, and no guess is made."""
    with bound("tcp", "127.0.0.1") as ours:
        source = sent_source_of("sockets.py") + AS_NOBODY
        with started(source, str(ours)) as (answer, _):
            port, seen = json.loads(answer)
            assert [(each["port"], each["program"], each["unit"]) for each in seen] == [
                (ours, "", "")
            ]
            assert [each["program"] for each in of(port)] == ["others"]


def test_a_process_that_ends_meanwhile() -> None:
    """Of whom only its number is left."""
    owners = {"999999999": "gone.service", "not-a-pid": "x.service", **processes()}
    with bound("tcp", "127.0.0.1") as port:
        assert [each["unit"] for each in listeners([("tcp", port, port)], owners)] == [OURS]


def test_the_kernel_says_no() -> None:
    """Raised, and not taken for «nobody listens»."""
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.settimeout(5)
    with ours, kernels:
        kernels.send(struct.pack("=IHHIIi16x", 36, 2, 0, 1, 0, -1))
        with pytest.raises(PermissionError):
            sockets._messages(ours)


# ---- Units of processes ------------------------------------------------------------------------


def unit_of(groups: list[str], monkeypatch: pytest.MonkeyPatch, top: str = "") -> str:
    """The service of the system that a process in these control groups belongs to."""
    table = {ME: groups, "1": [f"{top}/init.scope"]}
    monkeypatch.setattr(sockets, "_groups", lambda pid: table.get(pid, []))
    return processes()[ME]


RELAY = "home-tcpforwarder-46-to-6@0:80.service"
USERS = "/user.slice/user-1000.slice/user@1000.service/app.slice"
UNITS = {
    # the control group: the service
    f"/system.slice/{RELAY}": RELAY,
    f"/system.slice/system-home\\x2dtcpforwarder.slice/{RELAY}": RELAY,
    f"/system.slice/a.slice/a-b.slice/{RELAY}": RELAY,
    f"/system.slice/{RELAY}/payload/x": RELAY,
    "/system.slice/ssh.service": "ssh.service",
    # Below another unit: its own matter.
    f"/system.slice/docker.service/{RELAY}": "docker.service",
    f"/system.slice/docker.service/system.slice/{RELAY}": "docker.service",
    f"/system.slice/docker-0123.scope/{RELAY}": "",
    f"/system.slice/docker-0123.scope/system.slice/{RELAY}": "",
    f"{USERS}/{RELAY}": "",
    f"{USERS}/home-tcpforwarder@0:1.service": "",
    f"/user.slice/user-1000.slice/session-1.scope/{RELAY}": "",
    f"/machine.slice/machine-x.scope/system.slice/{RELAY}": "",
    f"/docker/0123/system.slice/{RELAY}": "",
    # None.
    "/system.slice/home-tcp.socket": "",
    "/system.slice": "",
    f"/{RELAY}": "",
    "/init.scope": "",
    "/": "",
    "": "",
}


@pytest.mark.parametrize("group", UNITS)
@pytest.mark.parametrize("top", ["", "/payload", "/lxc/vps1"])
def test_units(group: str, top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 18: what a user's own manager or a container calls its units is no unit of the system;
    also in a container without a namespace of its own, where the groups have a part in front."""
    assert unit_of([top + group], monkeypatch, top) == UNITS[group]
    assert unit_of(["/", top + group], monkeypatch, top) == UNITS[group]


def test_a_unit_of_the_host_is_none_of_the_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unit_of([f"/system.slice/{RELAY}"], monkeypatch, "/payload") == ""


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("0::/a.slice/b.service\n", ["/a.slice/b.service"]),
        ("1:name=systemd:/a\n0::/b\n", ["/a", "/b"]),
        ("4:memory:/x\n3:cpu,cpuacct:/y\n2:name=other:/z\n", []),
        ("", []),
    ],
)
def test_which_groups_are_systemds(
    text: str, groups: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One hierarchy, several, and both."""
    (tmp_path / "cgroup").write_text(text)
    real = open
    monkeypatch.setattr(
        "builtins.open",
        lambda path, *a, **k: real(
            tmp_path / "cgroup" if path == "/proc/12345/cgroup" else path, *a, **k
        ),
    )
    assert sockets._groups("12345") == groups


def test_a_process_without_groups() -> None:
    assert sockets._groups("999999999") == []
