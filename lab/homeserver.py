# SPDX-License-Identifier: GPL-3.0-or-later
"""The server at home: says which home was reached at which address, and plays other parts.

Runs in a home's namespace: `homeserver.py NAME --tcp PORT ... --udp PORT ...`. It listens on the
wildcard address, so it keeps serving while the home's addresses change.

TCP: the first line of a connection says what it is for.

    whoami            one line «NAME ADDRESS» for this and each further line
    echo              sends every further byte back, until the client's FIN
    slow SECONDS N    waits for the client's FIN, then SECONDS, then sends N bytes
    sink              reads until the client's FIN, then answers how many bytes that were
    source N          sends N bytes
    reset             ends the connection with a RST
    anything else     is sent back, and every further byte, as with echo

UDP: every datagram is answered with «NAME ADDRESS » and the datagram itself, from ADDRESS.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import socket
import struct

BLOCK = 256 * 1024
"""Bytes at a time: so many that Python is not what a measurement measures."""
LONGEST_LINE = 4096
"""Of a conversation's first; who sends more without a newline has sent data to be echoed."""
WAITING_DATAGRAMS = 4 * 1024 * 1024
"""Bytes: thousands of clients that ask at the same moment are not to be lost here."""
WAITING_CONNECTIONS = 1024
"""Hundreds of clients that connect at the same moment neither."""
DATAGRAMS_AT_ONCE = 100
"""Then TCP's connections have their turn."""


class Conversation:
    """One TCP connection."""

    def __init__(self, home: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader = reader
        self.writer = writer
        address = str(writer.get_extra_info("sockname")[0])
        self.whoami_line = f"{home} {address}\n".encode()

    async def hold(self) -> None:
        """Read the first line and do what it asks for."""
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                await self._answer(await self._first_line())
                await self.writer.drain()
            finally:
                self.writer.close()
                await self.writer.wait_closed()

    async def _first_line(self) -> bytes:
        try:
            return await self.reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return error.partial
        except asyncio.LimitOverrunError:
            return await self.reader.read(LONGEST_LINE)

    async def _answer(self, line: bytes) -> None:
        match line.split():
            case [b"whoami"]:
                await self._whoami()
            case [b"echo"]:
                await self._echo()
            case [b"slow", seconds, size]:
                await self._count()
                await asyncio.sleep(float(seconds))
                await self._send(int(size))
            case [b"sink"]:
                self.writer.write(b"%d\n" % await self._count())
            case [b"source", size]:
                await self._send(int(size))
            case [b"reset"]:
                linger = struct.pack("ii", 1, 0)
                raw = self.writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            case _:
                self.writer.write(line)
                await self._echo()

    async def _whoami(self) -> None:
        self.writer.write(self.whoami_line)
        async for _ in self.reader:
            self.writer.write(self.whoami_line)
            await self.writer.drain()

    async def _echo(self) -> None:
        while data := await self.reader.read(BLOCK):
            self.writer.write(data)
            await self.writer.drain()

    async def _count(self) -> int:
        total = 0
        while data := await self.reader.read(BLOCK):
            total += len(data)
        return total

    async def _send(self, size: int) -> None:
        block = bytes(range(256)) * (BLOCK // 256)
        while size > 0:
            self.writer.write(block[:size])
            await self.writer.drain()
            size -= len(block)


def udp_socket(port: int) -> socket.socket:
    """A UDP socket on [::]:port that tells which address a datagram came to."""
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WAITING_DATAGRAMS)
    udp.bind(("::", port))
    udp.setblocking(False)
    return udp


def answer_datagrams(home: str, udp: socket.socket) -> None:
    """Answer the datagrams that wait, each from the address that it was sent to (RFC 3542)."""
    with contextlib.suppress(BlockingIOError):
        for _ in range(DATAGRAMS_AT_ONCE):
            data, ancillary, _, peer = udp.recvmsg(65536, socket.CMSG_SPACE(20))
            information = ancillary[0][2]
            address = socket.inet_ntop(socket.AF_INET6, information[:16])
            reply = f"{home} {address} ".encode() + data
            # An address that has just been taken away cannot answer any more; nor need it.
            with contextlib.suppress(OSError):
                control = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, information)
                udp.sendmsg([reply], [control], 0, peer)


async def serve(home: str, tcp_ports: list[int], udp_ports: list[int]) -> None:
    """Serve until the process is ended."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Conversation(home, reader, writer).hold()

    for port in tcp_ports:
        await asyncio.start_server(
            converse, "::", port, backlog=WAITING_CONNECTIONS, limit=LONGEST_LINE
        )
    for port in udp_ports:
        udp = udp_socket(port)
        asyncio.get_running_loop().add_reader(udp, answer_datagrams, home, udp)
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="The server at home in the lab.")
    parser.add_argument("name", help="name of the home")
    parser.add_argument("--tcp", type=int, nargs="*", default=[], metavar="PORT")
    parser.add_argument("--udp", type=int, nargs="*", default=[], metavar="PORT")
    arguments = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.name, arguments.tcp, arguments.udp))


if __name__ == "__main__":
    main()
