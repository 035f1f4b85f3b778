# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients do: ask a home who it is. Call these inside the client (`with lab.inside("client")`)."""

from __future__ import annotations

import resource
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

Ask = Callable[[str, int, float], str]

SECONDS = 5.0
"""Until a client gives up."""
ONE_TRY = 1.0
"""Seconds until a client that asks again and again takes a question, or its answer, for lost."""


def ask_tcp(address: str, port: int, patience: float = SECONDS) -> str:
    """The home's answer over TCP, "NAME ADDRESS". Raises: OSError if there is none."""
    with socket.create_connection((address, port), timeout=patience) as connection:
        return whoami(connection)


def whoami(connection: socket.socket) -> str:
    """The home's answer on an open connection; may be asked again. Raises: OSError."""
    connection.sendall(b"whoami\n")
    answer = connection.recv(200).decode().strip()
    if not answer:
        raise ConnectionResetError("the connection was closed without an answer")
    return answer


def ask_udp(address: str, port: int, patience: float = SECONDS) -> str:
    """The home's answer to one datagram, "NAME ADDRESS hello". Raises: OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(patience)
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
            last = ask(address, port, ONE_TRY)
            if expected in str(last):
                return taken
        except OSError as error:
            last = error
        time.sleep(0.02)
    raise TimeoutError(f"no answer with {expected!r} within {seconds} s; the last was: {last!r}")


@dataclass(frozen=True)
class Crowd:
    """What a crowd of UDP clients got.

    clients: how many there were
    answered: how many got their own answer
    misled: how many got an answer to another one's datagram
    """

    clients: int
    answered: int
    misled: int

    def __str__(self) -> str:
        return (
            f"{self.answered} of {self.clients} got their own answer,"
            f" {self.misled} got one that was another's"
        )


def udp_crowd(address: str, port: int, clients: int, per_second: float = 0) -> Crowd:
    """Clients that send one datagram each, and wait SECONDS for answers after the last one has.

    per_second: how many of them begin in a second; by default all at the same moment
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sockets = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(clients)]
    answers: list[set[str]] = [set() for _ in range(clients)]
    with selectors.DefaultSelector() as selector:
        for number, each in enumerate(sockets):
            each.connect((address, port))
            each.setblocking(False)
            selector.register(each, selectors.EVENT_READ, number)

        def receive(seconds: float) -> None:
            for key, _ in selector.select(seconds):
                try:
                    answers[key.data].add(sockets[key.data].recv(200).decode().split()[-1])
                except OSError:  # told by ICMP that nobody listens
                    continue

        started = time.monotonic()
        for number, each in enumerate(sockets):
            due = started + (number / per_second if per_second else 0)
            while (wait := due - time.monotonic()) > 0:
                receive(wait)
            try:
                each.send(f"client-{number}".encode())
            except OSError:
                continue
        deadline = time.monotonic() + SECONDS
        while (left := deadline - time.monotonic()) > 0 and not all(answers):
            receive(left)
        receive(0.2)  # answers that nobody should get any more
    for each in sockets:
        each.close()
    own = [f"client-{number}" for number in range(clients)]
    return Crowd(
        clients=clients,
        answered=sum(each in got for each, got in zip(own, answers, strict=True)),
        misled=sum(bool(got - {each}) for each, got in zip(own, answers, strict=True)),
    )
