# SPDX-License-Identifier: GPL-3.0-or-later
"""Part of programs that are sent to a VPS: who listens where. Standard library of Python 3.9.

Asked of the kernel in numbers, so that no name that a process gives itself is read as anything else.
"""

from __future__ import annotations

import os
import re
import socket
import struct


def processes() -> dict[str, str]:
    """Every process with the service of the system that it belongs to, "" for none.

    A user's own service manager can call its units as it likes, and a container what runs in it; but
    both are below a unit that is not of the kind asked for here.
    """
    service = re.compile(re.escape(_top()) + r"(?:[^/\n]+\.slice/)*([^/\n]+\.service)(?:/.*)?")
    found = {}
    for pid in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        units = [service.fullmatch(group) for group in _groups(pid)]
        found[pid] = next((unit[1] for unit in units if unit), "")
    return found


def _groups(pid: str) -> list[str]:
    """The control groups of a process in systemd's hierarchy, which two kinds of lines may name."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            return re.findall(r"(?m)^\d+:(?:name=systemd)?:(/.+)$", file.read())
    except OSError:
        return []


def _top() -> str:
    """Where the services of the system are: not at the top in a container without a namespace."""
    before = [
        group[: -len("/init.scope")] for group in _groups("1") if group.endswith("/init.scope")
    ]
    return (before or [""])[0] + "/system.slice/"


def listeners(
    ports: list[tuple[str, int, int]], owners: dict[str, str]
) -> list[dict[str, str | int]]:
    """Who listens on these ports, (protocol, first, last) each.

    owners: of processes(), those first that are likely to be it.
    Returns: protocol, address ("*" for both families at once), port, program and unit; these two are
    empty where it is not ours to see, without root.
    """
    found = []
    for protocol in sorted({protocol for protocol, _, _ in ports}):
        for address, port, inode in _sockets(protocol):
            if any(of == protocol and first <= port <= last for of, first, last in ports):
                found.append((protocol, address, port, inode))
    holders = _holders({inode for *_, inode in found}, owners)
    return [
        {
            "protocol": protocol,
            "address": address,
            "port": port,
            "program": _name_of(holders.get(inode, "")),
            "unit": owners.get(holders.get(inode, ""), ""),
        }
        for protocol, address, port, inode in found
    ]


def _sockets(protocol: str) -> list[tuple[str, int, int]]:
    """Local address, port and inode of the sockets that wait for clients."""
    try:
        return _asked_of_the_kernel(protocol)
    except OSError:  # a kernel without sock_diag(7) for this protocol
        return _listed_in_proc(protocol)


def _listed_in_proc(protocol: str) -> list[tuple[str, int, int]]:
    """proc(5): /proc/net/tcp and its like, which do not say whether a socket takes IPv4 as well."""
    found = []
    state = {"tcp": "0A", "udp": "07"}[protocol]
    for suffix, family in (("", socket.AF_INET), ("6", socket.AF_INET6)):
        try:
            with open(f"/proc/net/{protocol}{suffix}") as file:
                lines = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue  # no IPv6 here
        for fields in (fields for fields in lines if fields[3] == state):
            number, port = fields[1].split(":")
            words = struct.unpack(f">{len(number) // 8}I", bytes.fromhex(number))
            text = socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))
            found.append(("*" if text == "::" else text, int(port, 16), int(fields[9])))
    return found


def _asked_of_the_kernel(protocol: str) -> list[tuple[str, int, int]]:
    """sock_diag(7). Raises: OSError."""
    number, state = {"tcp": (socket.IPPROTO_TCP, 10), "udp": (socket.IPPROTO_UDP, 7)}[protocol]
    found = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as kernel:  # NETLINK_SOCK_DIAG
        for family in (socket.AF_INET, socket.AF_INET6):
            body = struct.pack("=BBBBI48x", family, number, 0, 0, 1 << state)
            # SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP
            kernel.send(struct.pack("=IHHII", 16 + len(body), 20, 0x301, 1, 0) + body)
            for message in _messages(kernel):
                port, address = struct.unpack_from(">4xH2x16s", message)
                inode = struct.unpack_from("=I", message, 68)[0]
                text = socket.inet_ntop(family, address[: 4 if family == socket.AF_INET else 16])
                if text == "::" and not _is_v6_only(message[72:]):
                    text = "*"
                found.append((text, port, inode))
    return found


def _messages(kernel: socket.socket) -> list[bytes]:
    """The messages of one answer. Raises: OSError."""
    found: list[bytes] = []
    while True:
        data = kernel.recv(1 << 18)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind == 3:  # NLMSG_DONE
                return found
            if kind == 2:  # NLMSG_ERROR
                code = -struct.unpack_from("=i", data, 16)[0]
                raise OSError(code, os.strerror(code))
            found.append(data[16:length])
            data = data[(length + 3) & ~3 :]


def _is_v6_only(attributes: bytes) -> bool:
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if kind == 11:  # INET_DIAG_SKV6ONLY
            return bool(attributes[4])
        attributes = attributes[(max(length, 4) + 3) & ~3 :]
    return False


def _holders(inodes: set[int], owners: dict[str, str]) -> dict[int, str]:
    """The process that has each socket. It ends with the last one: some have thousands of files."""
    found: dict[int, str] = {}
    for pid in owners if inodes else ():
        try:
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
                if target.startswith("socket:[") and int(target[8:-1]) in inodes:
                    found.setdefault(int(target[8:-1]), pid)
                    if len(found) == len(inodes):
                        return found
        except OSError:
            continue  # it has ended, or is not ours to see
    return found


def _name_of(pid: str) -> str:
    """What a process calls itself, for people; it may be anything."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read(64).rstrip("\n")
    except OSError:
        return ""
    return name if name.isprintable() else ascii(name)
