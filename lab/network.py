# SPDX-License-Identifier: GPL-3.0-or-later
"""Network namespaces: one that plays the internet with a bridge, one for each host.

Each host has one interface, eth0, whose other end is a port of the bridge, named like the host.
All addresses are from the documentation ranges (RFC 5737, RFC 3849) and on-link for everybody.
Nobody has a default route, and the machine's own namespace has no leg in the lab.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.errors import LabError

IPV4_PREFIXES = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
IPV6_PREFIX = "2001:db8::/32"
INTERNET = "internet"
NAMESPACES = Path("/run/netns")

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


def ip(*arguments: str, netns: str | None = None, batch: Sequence[str] = ()) -> str:
    """Run ip(8), in the namespace `netns` if given. Returns: what it prints.

    batch: commands for one `ip -batch`

    Raises: LabError with ip's own message.
    """
    command = ["ip", *(["-n", netns] if netns else []), *(["-batch", "-"] if batch else [])]
    result = subprocess.run(
        [*command, *arguments], input="\n".join(batch), text=True, capture_output=True, check=False
    )
    if result.returncode != 0:
        what = "; ".join(batch) or " ".join(arguments)
        raise LabError(f"ip failed ({what}): {result.stderr.strip()}")
    return result.stdout


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Put the calling thread, and only it, into a network namespace for a while.

    Sockets that are made there belong to that namespace for ever; so do processes started there.
    """
    here = Path("/proc/thread-self/ns/net")
    with here.open() as before, (NAMESPACES / namespace).open() as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(before.fileno())


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Network:
    """The namespaces of one lab."""

    def __init__(self, lab: str) -> None:
        self.prefix = f"homelab.{lab}."

    def namespace(self, host: str) -> str:
        """The name of the namespace of `host`, as `ip netns` shows it."""
        return self.prefix + host

    def create(self) -> None:
        """Make the internet: a namespace with nothing but a bridge."""
        self._add_namespace(INTERNET)
        ip(
            netns=self.namespace(INTERNET),
            batch=[
                "link add name bridge type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                "link set dev bridge up",
            ],
        )

    def attach(self, host: str, addresses: Sequence[str]) -> None:
        """Make the namespace of `host` with these addresses, and plug it in."""
        self._add_namespace(host)
        name = self.namespace(host)
        ipv6 = any(":" in address for address in addresses)
        ipv4 = any("." in address for address in addresses)
        with inside(name):
            # A host without IPv6 has no link-local address either; the others shall not wait
            # for duplicate address detection.
            for scope in ("all", "default"):
                settings = Path(f"/proc/sys/net/ipv6/conf/{scope}")
                (settings / "accept_dad").write_text("0")
                (settings / "disable_ipv6").write_text("0" if ipv6 else "1")
            # Unprivileged programs may ping, as on a Debian system with systemd.
            Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
        ip(
            netns=self.namespace(INTERNET),
            batch=[
                f"link add name {host} type veth peer name eth0 address {_mac(addresses)} netns {name}",
                f"link set dev {host} master bridge up",
            ],
        )
        ip(
            netns=name,
            batch=[
                "link set dev lo up",
                "link set dev eth0 up",
                *(f"addr add {_with_prefix(address)} dev eth0" for address in addresses),
                *(f"route replace {prefix} dev eth0" for prefix in IPV4_PREFIXES if ipv4),
            ],
        )

    def detach(self, host: str) -> None:
        """Remove the namespace of `host` and its port of the bridge."""
        with contextlib.suppress(LabError):  # it goes away with its peer, too
            ip("link", "del", "dev", host, netns=self.namespace(INTERNET))
        self._delete_namespace(self.namespace(host))

    def plug(self, host: str, connected: bool = True) -> None:
        """Connect `host` to the internet, or pull its cable."""
        state = "up" if connected else "down"
        ip("link", "set", "dev", host, state, netns=self.namespace(INTERNET))

    def add_address(self, host: str, address: str) -> None:
        """Give `host` one more address."""
        ip(netns=self.namespace(host), batch=[f"addr add {_with_prefix(address)} dev eth0"])
        if ":" not in address:
            return
        link = json.loads(ip("-json", "link", "show", "dev", "eth0", netns=self.namespace(host)))[0]
        with inside(self.namespace(host)):
            _advertise(address, link["address"])

    def remove_address(self, host: str, address: str) -> None:
        """Take an address from `host`."""
        ip(netns=self.namespace(host), batch=[f"addr del {_with_prefix(address, bare=True)}"])

    def remove(self) -> None:
        """Remove every namespace of this lab; nothing happens if there is none."""
        for path in NAMESPACES.glob(f"{self.prefix}*"):
            self._delete_namespace(path.name)

    def _add_namespace(self, host: str) -> None:
        ip("netns", "add", self.namespace(host))

    @staticmethod
    def _delete_namespace(name: str) -> None:
        if (NAMESPACES / name).exists():
            ip("netns", "del", name)


def _with_prefix(address: str, bare: bool = False) -> str:
    """`address` with the length of its on-link prefix; unless `bare`, with ip's options."""
    prefix = IPV6_PREFIX if ":" in address else IPV4_PREFIXES[0]
    on_link = f"{address}/{prefix.partition('/')[2]}"
    if ":" not in address:
        return on_link
    return f"{on_link} dev eth0" if bare else f"{on_link} nodad"


def _mac(addresses: Sequence[str]) -> str:
    """A hardware address that goes with `addresses`.

    A host that takes the place of a removed one has the same, so nobody's neighbour cache is wrong.
    """
    digest = hashlib.sha256(" ".join(addresses).encode()).hexdigest()
    return ":".join(["02", *(digest[i : i + 2] for i in range(0, 10, 2))])


def _advertise(address: str, mac: str) -> None:
    """Tell the neighbours of eth0, unasked, that `address` is at `mac` now (RFC 4861, 7.2.6).

    The address may have been somebody else's a moment ago. `nodad` keeps the kernel from saying so.
    """
    link_layer = bytes.fromhex(mac.replace(":", ""))
    target = socket.inet_pton(socket.AF_INET6, address)
    override = 0x20000000
    message = struct.pack("!BBHI16sBB6s", 136, 0, 0, override, target, 2, 1, link_layer)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
        raw.sendto(message, ("ff02::1", 0))
