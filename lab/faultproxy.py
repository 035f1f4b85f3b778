# SPDX-License-Identifier: GPL-3.0-or-later
"""The resolver that VPSes ask: passes queries on to the real name server, except where told to lie.

It counts every query. Orders come as one JSON object a line over a unix socket; see `Orders`.
Runs in the namespace of the host «dns»: `faultproxy.py --control SOCKET --upstream ADDRESS
--listen ADDRESS ...`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

TTL = 60
"""Seconds, of what is made up; as long as the real server's, so that a cache treats both alike."""
UPSTREAM_TIMEOUT = 3.0
"""Seconds for the real server; below the 5 of resolv.conf(5), so that who asks is told SERVFAIL."""
LONGEST_CNAME_CHAIN = 8
"""It keeps a loop of them from going on for ever."""
MOST_REMEMBERED = 20_000
"""Queries; a lab that runs for days does not fill the memory."""
Fault = dict[str, Any]

RCODES = {
    "servfail": dns.rcode.SERVFAIL,
    "refused": dns.rcode.REFUSED,
    "formerr": dns.rcode.FORMERR,
    "notimp": dns.rcode.NOTIMP,
    "nxdomain": dns.rcode.NXDOMAIN,
    "nodata": dns.rcode.NOERROR,
}


class Resolver:
    """Answers queries, lies as ordered, and remembers what was asked."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.faults: dict[tuple[str, str], Fault] = {}
        self.log: deque[dict[str, Any]] = deque(maxlen=MOST_REMEMBERED)

    async def answer(self, wire: bytes, client: str, transport: str) -> bytes | None:
        """The answer to one query in wire format, or None for no answer at all."""
        try:
            query = dns.message.from_wire(wire)
            question = query.question[0]
        except (dns.exception.DNSException, IndexError):
            return None
        name = question.name.to_text().lower()
        rdtype = dns.rdatatype.to_text(question.rdtype)
        entry = {"name": name, "type": rdtype, "client": client, "transport": transport}
        self.log.append({**entry, "time": time.time()})
        fault = self._fault(name, rdtype)
        if fault:
            await asyncio.sleep(fault.get("delay", 0))
            if fault["kind"] == "timeout":
                return None
            if fault["kind"] == "garbage":
                return wire[:2] + b"\xff" * 30
        response = self._lie(query, fault) if fault else None
        response = response or await self._ask(query)
        # As they are: the library would shuffle the records of one set.
        response.answer = [
            dns.rrset.from_rdata(rrset.name, rrset.ttl, record)
            for rrset in response.answer
            for record in rrset
        ]
        if transport == "tcp":
            return response.to_wire()
        if fault and fault["kind"] == "truncate":
            truncated = dns.message.make_response(query, recursion_available=True)
            truncated.flags |= dns.flags.TC
            return truncated.to_wire()
        return response.to_wire(max_size=max(query.payload, 512), prefer_truncation=True)

    def _fault(self, name: str, rdtype: str) -> Fault | None:
        for key in ((name, rdtype), (name, ""), ("*", rdtype), ("*", "")):
            if key in self.faults:
                return self.faults[key]
        return None

    def _lie(self, query: dns.message.Message, fault: Fault) -> dns.message.Message | None:
        """The answer that a fault asks for, None if the true answer is wanted."""
        response = dns.message.make_response(query, recursion_available=True)
        kind = fault["kind"]
        if kind in RCODES:
            response.set_rcode(RCODES[kind])
            return response
        name, rdtype = query.question[0].name, query.question[0].rdtype
        if kind == "rotate":
            addresses = fault["addresses"]
            family = [a for a in addresses if (":" in a) == (rdtype == dns.rdatatype.AAAA)]
            if family and rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
                turn = fault["turns"] = fault.get("turns", -1) + 1
                shift = turn % len(family)
                rotated = family[shift:] + family[:shift]
                response.answer.append(dns.rrset.from_text(name, TTL, "IN", rdtype, *rotated))
            return response
        if kind == "records":
            for record in fault["records"]:
                response.answer.append(parse_record(record, name))
            return response
        return None

    async def _ask(self, query: dns.message.Message) -> dns.message.Message:
        """Ask the real server; follow a CNAME that leaves the zone, as a resolver does."""
        try:
            response = await self._ask_once(query)
            rdtype = query.question[0].rdtype
            for _ in range(LONGEST_CNAME_CHAIN):
                last = response.answer[-1] if response.answer else None
                if not last or last.rdtype != dns.rdatatype.CNAME or rdtype == last.rdtype:
                    break
                more = await self._ask_once(dns.message.make_query(last[0].target, rdtype))
                response.set_rcode(more.rcode())
                if not more.answer:
                    break
                response.answer.extend(more.answer)
        except (OSError, dns.exception.DNSException):
            response = dns.message.make_response(query)
            response.set_rcode(dns.rcode.SERVFAIL)
        response.flags |= dns.flags.RA
        response.flags &= ~dns.flags.AA
        return response

    async def _ask_once(self, query: dns.message.Message) -> dns.message.Message:
        response, _ = await dns.asyncquery.udp_with_fallback(query, self.upstream, UPSTREAM_TIMEOUT)
        return response


def parse_record(text: str, owner: dns.name.Name) -> dns.rrset.RRset:
    """Read «[OWNER] TYPE DATA», e.g. «AAAA ::1»; the owner is the name asked for by default."""
    first, _, rest = text.strip().partition(" ")
    try:
        dns.rdatatype.from_text(first)
    except dns.rdatatype.UnknownRdatatype:
        owner = dns.name.from_text(first)
        first, _, rest = rest.strip().partition(" ")
    root = dns.name.root
    return dns.rrset.from_text_list(owner, TTL, "IN", first, [rest], origin=root, relativize=False)


class Orders:
    """What the lab may ask of the proxy, one method for each kind of order."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver

    def obey(self, order: dict[str, Any]) -> Any:
        """Carry one order out. Returns: its result."""
        kind = order.pop("order")
        methods: dict[str, Callable[..., Any]] = {
            "fault": self.fault,
            "clear": self.clear,
            "log": self.log,
            "reset": self.reset,
            "faults": self.faults,
        }
        return methods[kind](**order)

    def fault(self, name: str, rdtype: str, **fault: Any) -> None:
        """Lie about `name` from now on, for queries of `rdtype` only unless that is empty."""
        for record in fault.get("records", ()):
            parse_record(record, dns.name.root)  # an error is to appear here, not in an answer
        self.resolver.faults[name, rdtype] = fault

    def clear(self, name: str | None = None) -> None:
        """Tell the truth again about `name`, or about everything."""
        faults = self.resolver.faults
        self.resolver.faults = {k: f for k, f in faults.items() if name and k[0] != name}

    def faults(self) -> list[dict[str, Any]]:
        """The lies in force."""
        return [{"name": k[0], "type": k[1], **f} for k, f in self.resolver.faults.items()]

    def log(self) -> list[dict[str, Any]]:
        """The queries seen, oldest first."""
        return list(self.resolver.log)

    def reset(self) -> None:
        """Forget the queries seen."""
        self.resolver.log.clear()


class Datagrams(asyncio.DatagramProtocol):
    """Queries over UDP."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket to answer on."""
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Answer one query, without making the others wait."""
        task = asyncio.get_running_loop().create_task(self._answer(data, addr))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _answer(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if wire := await self.resolver.answer(data, addr[0], "udp"):
            self.transport.sendto(wire, addr)


async def serve(control: str, upstream: str, listen: list[str]) -> None:
    """Serve until the process is ended."""
    resolver = Resolver(upstream)
    orders = Orders(resolver)

    async def queries(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = writer.get_extra_info("peername")[0]
        while True:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            wire = await resolver.answer(await reader.readexactly(length), client, "tcp")
            if wire:
                writer.write(struct.pack("!H", len(wire)) + wire)
                await writer.drain()

    async def obey(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            try:
                reply = {"result": orders.obey(json.loads(line))}
            except Exception as error:  # the one who ordered is to see it, whatever it is
                reply = {"error": f"{type(error).__name__}: {error}"}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()

    Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

    def closing(handle: Handler) -> Handler:
        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await handle(reader, writer)
            writer.close()

        return guarded

    loop = asyncio.get_running_loop()
    for address in listen:
        await loop.create_datagram_endpoint(lambda: Datagrams(resolver), local_addr=(address, 53))
        await asyncio.start_server(closing(queries), address, 53)
    Path(control).unlink(missing_ok=True)
    await asyncio.start_unix_server(closing(obey), control)
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="The lab's resolver, which lies on request.")
    parser.add_argument("--control", required=True, help="unix socket for orders")
    parser.add_argument("--upstream", required=True, help="address of the real name server")
    parser.add_argument("--listen", required=True, nargs="+", help="addresses to answer on")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.control, arguments.upstream, arguments.listen))


if __name__ == "__main__":
    main()
