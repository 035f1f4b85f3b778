# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: print, as JSON, whether it reaches the homes, and whether clients get in. Changes nothing.

Standard library of Python 3.9. The argument is the question, as JSON: question() in
home_forwarder/reach.py makes it. TCP is tried by connecting; nothing is sent. Of UDP it is only seen
whether there is a route: a datagram would be taken for a client's.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import selectors
import socket
import sys
import time

from home_forwarder.remote.firewalls import Packet, findings

LINK_LOCAL = "fe80:"
TEMPORARY, UNUSABLE = 0x01, 0x08 | 0x20 | 0x40
"""Flags of /proc/net/if_inet6, linux/if_addr.h: IFA_F_TEMPORARY; DADFAILED, DEPRECATED, TENTATIVE."""


def name_of(number: int) -> str:
    """ECONNREFUSED and its like; "" of 0."""
    return errno.errorcode.get(number, str(number)) if number else ""


def no_way(address: str) -> str:
    """Why this machine cannot even send to an address; "" if it can. Nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            source = probe.getsockname()[0]
    except OSError as error:
        return name_of(error.errno or errno.EINVAL)
    # What the kernel takes when there is no better one; no answer comes back to it.
    return "EADDRNOTAVAIL" if source.startswith(LINK_LOCAL) and source != address else ""


def connect_all(targets: list[tuple[str, int]], seconds: float) -> list[str]:
    """Connect by TCP to all of these at the same time, and end the connections at once.

    Returns: of each the name of an error, ETIMEDOUT if it took longer; "" if it is open.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    results = ["ETIMEDOUT"] * len(targets)
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as waiting:
        for number, (address, port) in enumerate(targets):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                connection = socket.socket(family, socket.SOCK_STREAM)
                connection.setblocking(False)
                started = connection.connect_ex((address, port))
            except OSError as error:
                results[number] = name_of(error.errno or errno.EINVAL)
                continue
            if started in (0, errno.EINPROGRESS):
                waiting.register(connection, selectors.EVENT_WRITE, number)
            else:
                results[number] = name_of(started)
                connection.close()
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                connection = key.fileobj  # type: ignore[assignment]
                results[key.data] = name_of(
                    connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                )
                waiting.unregister(connection)
                connection.close()
        for key in list(waiting.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
    return results


def known_addresses(path: str, expression: str) -> dict[str, str] | None:
    """The homes' addresses by INDEX; None if we may not read them."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return dict(re.findall(expression, file.read()))
    except PermissionError:
        return None
    except OSError:
        return {}


def ways(question: dict) -> list[dict[str, str]]:  # type: ignore[type-arg]
    """Of each home, protocol and port: the home's address, and the error of connecting there, if any;
    "at" is "route" if nothing could be sent at all."""
    known = known_addresses(*question["addresses"])
    found = []
    targets = []
    for index, protocol, port in question["ways"]:
        address = (known or {}).get(str(index), "")
        at, error = "", ""
        if not address:
            at, error = "address", "unknown" if known is not None else "unreadable"
        elif error := no_way(address):
            at = "route"
        elif protocol == "tcp":
            at = "connect"
            targets.append((address, port))
        found.append({"address": address, "at": at, "error": error})
    tried = list(dict.fromkeys(targets))
    results = dict(zip(tried, connect_all(tried, question["seconds"])))
    for (_, _, port), each in zip(question["ways"], found):
        if each["at"] == "connect":
            each["error"] = results[each["address"], port]
            each["at"] = "connect" if each["error"] else ""
    return found


def own_addresses() -> list[str]:
    """This machine's addresses that others can use, those of loopback and link left out."""
    found = []
    try:
        with open("/proc/net/fib_trie") as file:
            found += re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", file.read())
    except OSError:
        pass
    try:
        with open("/proc/net/if_inet6") as file:
            lines = [line.split() for line in file]
    except OSError:
        lines = []
    for digits, _, _, scope, flags, _ in lines:
        if scope == "00" and not int(flags, 16) & (TEMPORARY | UNUSABLE):
            found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return [each for each in dict.fromkeys(found) if not each.startswith("127.")]


def main() -> None:
    question = json.loads(sys.argv[1])
    print(
        json.dumps(
            {
                "ways": ways(question),
                "ports": findings([Packet(*each) for each in question["ports"]]),
                "own": own_addresses(),
                "root": os.geteuid() == 0,
            }
        )
    )


if __name__ == "__main__":
    main()
