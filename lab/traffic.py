# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients do: ask a home who it is. Call these inside the client (`with lab.inside("client")`)."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

Ask = Callable[[str, int], str]

SECONDS = 5.0
"""Until a client gives up."""


def ask_tcp(address: str, port: int) -> str:
    """The home's answer over TCP, "NAME ADDRESS". Raises: OSError if there is none."""
    with socket.create_connection((address, port), timeout=SECONDS) as connection:
        return whoami(connection)


def whoami(connection: socket.socket) -> str:
    """The home's answer on an open connection; may be asked again. Raises: OSError."""
    connection.sendall(b"whoami\n")
    answer = connection.recv(200).decode().strip()
    if not answer:
        raise ConnectionResetError("the connection was closed without an answer")
    return answer


def ask_udp(address: str, port: int) -> str:
    """The home's answer to one datagram, "NAME ADDRESS hello". Raises: OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(SECONDS)
        datagrams.connect((address, port))
        datagrams.send(b"hello")
        return datagrams.recv(200).decode().strip()


def ask_until(ask: Ask, address: str, port: int, expected: str, seconds: float = SECONDS) -> float:
    """Ask again and again until `expected` is in the answer.

    Returns: how long it took, in seconds. Raises: TimeoutError with the last answer or error.
    """
    started = time.monotonic()
    last: object = None
    while (taken := time.monotonic() - started) < seconds:
        try:
            last = ask(address, port)
            if expected in str(last):
                return taken
        except OSError as error:
            last = error
        time.sleep(0.02)
    raise TimeoutError(f"no answer with {expected!r} within {seconds} s; the last was: {last!r}")
