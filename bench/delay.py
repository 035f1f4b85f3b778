# SPDX-License-Identifier: GPL-3.0-or-later
"""A long line: every packet between two interfaces is passed on after a while, both ways.

For kernels without netem. Works packet by packet, so that handshakes, acknowledgements and every
round trip of ssh take their time, as they would on a real line. Runs in the namespace of both.
"""

from __future__ import annotations

import argparse
import contextlib
import selectors
import socket
import struct
import time
from collections import deque

ETH_P_ALL = 3  # linux/if_ether.h
WAITING = 8 * 1024 * 1024  # bytes: what arrives while Python is busy with others is not lost
# linux/if_packet.h; the socket module does not have them.
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
LARGEST = 128 * 1024  # bytes; a packet that is cut up only later (GSO) has 64 KiB, and its header


def open_interface(name: str) -> socket.socket:
    """A socket for all that comes in at an interface, and may go out there.

    With a header that tells of unfinished checksums and of packets larger than the line's, so that
    they can be passed on as they are (virtio_net_hdr of packet(7)).
    """
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    opened.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WAITING)
    # Promiscuous: what is for the others' addresses as well.
    membership = struct.pack("iHH8s", socket.if_nametoindex(name), 1, 0, b"")
    opened.setsockopt(SOL_PACKET, 1, membership)
    opened.bind((name, ETH_P_ALL))
    opened.setblocking(False)
    return opened


def pass_on(one: socket.socket, other: socket.socket, seconds: float) -> None:
    """For ever."""
    waiting: deque[tuple[float, socket.socket, bytes]] = deque()
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while True:
            rest = max(waiting[0][0] - time.monotonic(), 0) if waiting else None
            for key, _ in selector.select(rest):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        packet = key.fileobj.recv(LARGEST)  # type: ignore[union-attr]
                        waiting.append((time.monotonic() + seconds, key.data, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, to, packet = waiting.popleft()
                with contextlib.suppress(OSError):  # lost, as packets may be
                    to.send(packet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("interfaces", nargs=2)
    parser.add_argument("--milliseconds", type=float, required=True, help="one way")
    arguments = parser.parse_args()
    one, other = map(open_interface, arguments.interfaces)
    print("ready", flush=True)
    pass_on(one, other, arguments.milliseconds / 1000)


if __name__ == "__main__":
    main()
