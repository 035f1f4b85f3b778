# SPDX-License-Identifier: GPL-3.0-or-later
"""Both ends of every measurement: the server at home, and the clients. Prints one line of JSON.

As light as Python can be, since clients, relay and server share the machine: bulk data is sent from
the page cache (sendfile) and thrown away unread (MSG_TRUNC), many datagrams are sent by one call and
counted by the kernel (a socket filter), so that the relay is what costs.

TCP, the client's first byte: A answer 64 bytes and close; B send without end; H answer and hold.
UDP, the first byte: C count it; Q answer how many C there have been; else echo.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import select
import socket
import struct
import sys
import threading
import time
from pathlib import Path

BLOCK = 4 * 1024 * 1024  # bytes by one call: so many that Python costs nothing
ANSWER = b"x" * 64
WARM_UP = 0.2  # seconds until TCP's windows are open
LARGEST_BURST = 0.001  # seconds whose datagrams may follow each other directly
TIME_TO_FINISH = 4.0  # seconds for what is under way when the time is up: a SYN sent twice more
LOWEST_RATE = 2_000.0  # datagrams a second, which every relay manages
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
UDP_SEGMENT = 103  # linux/udp.h
MOST_SEGMENTS = 16  # datagrams in one call; more would be a burst for the relay
COUNTED, QUESTION = b"C", b"Q"
# Classic BPF (linux/filter.h), behind the 8 bytes of UDP's header: drop what begins with COUNTED.
DROP_COUNTED = (
    (0x30, 0, 0, 8),  # load the byte at 8
    (0x15, 0, 1, COUNTED[0]),  # another one: skip a line
    (0x06, 0, 0, 0),  # keep nothing of it
    (0x06, 0, 0, 0xFFFFFFFF),
)


# ---- The server ------------------------------------------------------------------------------


def send_without_end(connection: socket.socket, file: int) -> None:
    with connection, contextlib.suppress(OSError):
        while True:
            os.sendfile(connection.fileno(), file, 0, BLOCK)


def close_when_done(poll: select.epoll, held: dict[int, socket.socket]) -> None:
    while True:
        for number, _ in poll.poll():
            held.pop(number).close()


def serve_tcp(port: int) -> None:
    file = os.memfd_create("bulk", 0)
    os.write(file, bytes(BLOCK))
    poll, held = select.epoll(), dict[int, socket.socket]()
    threading.Thread(target=close_when_done, args=(poll, held), daemon=True).start()
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Who has been accepted has sent its first byte.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)
        listener.bind(("::", port))
        listener.listen(4096)
        while True:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError):
                match connection.recv(1):
                    case b"B":
                        threading.Thread(
                            target=send_without_end, args=(connection, file), daemon=True
                        ).start()
                        continue
                    case b"H":
                        connection.send(b"H")
                        held[connection.fileno()] = connection
                        poll.register(connection, select.EPOLLIN)
                        continue
                    case b"A":
                        connection.send(ANSWER)
            connection.close()


def drop_counted(datagrams: socket.socket) -> None:
    """Let the kernel drop what is only to be counted; it counts what a filter drops."""
    program = b"".join(struct.pack("=HBBI", *line) for line in DROP_COUNTED)
    place = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(DROP_COUNTED), ctypes.addressof(place))
    datagrams.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)


def dropped(port: int) -> int:
    """How many datagrams the kernel has dropped at a port: the last column of /proc/net/udp6."""
    lines = Path("/proc/self/net/udp6").read_text().splitlines()
    rows = [line.split() for line in lines[1:]]
    return sum(int(row[-1]) for row in rows if row[1].endswith(f":{port:04X}"))


def serve_udp(port: int) -> None:
    buffer = bytearray(65536)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams:
        drop_counted(datagrams)
        datagrams.bind(("::", port))
        while True:
            size, peer = datagrams.recvfrom_into(buffer)
            answer = memoryview(buffer)[:size]
            if answer == QUESTION:
                answer = memoryview(struct.pack("!I", dropped(port)))
            with contextlib.suppress(OSError):
                datagrams.sendto(answer, peer)


def serve(arguments: argparse.Namespace) -> None:
    allow_many_files()
    if os.fork() == 0:
        serve_udp(arguments.port)
    serve_tcp(arguments.port)


# ---- The clients -----------------------------------------------------------------------------


def allow_many_files() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def throughput(arguments: argparse.Namespace) -> dict[str, object]:
    """Receive from some connections at once; bits per second after the warm-up."""
    received = [0] * arguments.streams
    over = threading.Event()

    def receive(number: int) -> None:
        buffer = bytearray(BLOCK)
        with socket.create_connection((arguments.address, arguments.port), 10) as connection:
            connection.settimeout(None)
            connection.send(b"B")
            while not over.is_set():
                size = connection.recv_into(buffer, 0, socket.MSG_TRUNC)
                if not size:
                    return
                received[number] += size

    threads = [threading.Thread(target=receive, args=(n,)) for n in range(arguments.streams)]
    for thread in threads:
        thread.start()
    time.sleep(WARM_UP)
    before, started = sum(received), time.monotonic()
    time.sleep(arguments.seconds)
    after, ended = sum(received), time.monotonic()
    over.set()
    for thread in threads:
        thread.join(5)
    return {
        "bits_per_second": 8 * (after - before) / (ended - started),
        "bytes": sum(received),
        "streams": sum(map(bool, received)),
    }


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def connections(arguments: argparse.Namespace) -> dict[str, object]:
    """Connect, send a byte, read the answer, again and again, with some clients at once."""
    kind, peer = family(arguments.address), (arguments.address, arguments.port)
    poll = select.epoll()
    begun: dict[int, tuple[socket.socket, float]] = {}
    times: list[float] = []
    failed = 0

    def begin() -> None:
        each = socket.socket(kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        begun[each.fileno()] = (each, time.perf_counter())
        poll.register(each, select.EPOLLOUT)
        each.connect_ex(peer)

    started = time.perf_counter()
    deadline = started + arguments.seconds
    in_time = 0
    for _ in range(arguments.clients):
        begin()
    while begun and time.perf_counter() < deadline + TIME_TO_FINISH:
        for number, event in poll.poll(0.2):
            each, since = begun[number]
            try:
                if event & select.EPOLLOUT:
                    each.send(b"A")
                    poll.modify(number, select.EPOLLIN)
                    continue
                answered = bool(each.recv(4096))
            except OSError:
                answered = False
            now = time.perf_counter()
            each.close()
            del begun[number]
            if answered:
                times.append(now - since)
                in_time += now < deadline
            else:
                failed += 1
            if now < deadline:
                begin()
    now = time.perf_counter()
    times += [now - since for _, since in begun.values()]  # at least
    return {
        "per_second": in_time / arguments.seconds,
        "p50": percentile(times, 0.5),
        "p99": percentile(times, 0.99),
        "failed": failed + len(begun),
    }


def hold(arguments: argparse.Namespace) -> dict[str, object]:
    """Keep connections open until standard input ends."""
    allow_many_files()
    kept = []
    with contextlib.suppress(OSError):
        for _ in range(arguments.clients):
            each = socket.create_connection((arguments.address, arguments.port), 5)
            each.send(b"H")
            if each.recv(1) != b"H":
                break
            kept.append(each)
    print(json.dumps({"held": len(kept)}), flush=True)
    sys.stdin.read()
    for each in kept:
        each.close()
    return {}


def establish(datagrams: socket.socket) -> bool:
    """Send until an echo comes, so that the relay has its session."""
    datagrams.settimeout(0.5)
    for _ in range(6):
        with contextlib.suppress(OSError):
            datagrams.send(b"hello")
            if datagrams.recv(65536) == b"hello":
                return True
    return False


def count_at(home: tuple[str, int]) -> int:
    """How many datagrams have reached home so far, once that changes no more."""
    last = -1
    with socket.socket(family(home[0]), socket.SOCK_DGRAM) as question:
        question.settimeout(1)
        question.connect(home)
        for _ in range(50):
            time.sleep(0.02)
            question.send(QUESTION)
            count = int(struct.unpack("!I", question.recv(16))[0])
            if count == last:
                break
            last = count
    return last


def send_at(datagrams: socket.socket, size: int, rate: float, seconds: float) -> int:
    """Send evenly; how many there were. What a hiccup of ours delays is left out, not sent at once."""
    datagrams.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
    data = memoryview((COUNTED + bytes(size - 1)) * MOST_SEGMENTS)
    most = max(1, int(rate * LARGEST_BURST))
    sent, left_out, started = 0, 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        due = int(rate * passed) - sent - left_out
        left_out += max(0, due - most)
        due = min(due, most)
        while due > 0:
            now = min(due, MOST_SEGMENTS)
            with contextlib.suppress(OSError):
                datagrams.send(data[: now * size])
            sent += now
            due -= now
        time.sleep(LARGEST_BURST / 20)
    datagrams.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
    return sent


def rate(arguments: argparse.Namespace) -> dict[str, object]:
    """The highest rate at which less than 1 % is lost, by halving the interval of its logarithm."""
    home = (arguments.home, arguments.home_port)
    low, high, best = LOWEST_RATE, arguments.most, 0.0
    with socket.socket(family(arguments.address), socket.SOCK_DGRAM) as datagrams:
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 1024 * 1024)
        datagrams.connect((arguments.address, arguments.port))
        if not establish(datagrams):
            return {"per_second": 0.0}
        for _ in range(arguments.steps):
            wanted = (low * high) ** 0.5
            for _ in range(2):  # a hiccup of the machine is no verdict
                before = count_at(home)
                started = time.perf_counter()
                sent = send_at(datagrams, arguments.size, wanted, arguments.seconds)
                took = max(time.perf_counter() - started, arguments.seconds)
                arrived = count_at(home) - before
                if good := arrived >= 0.99 * sent:
                    break
            if good:
                best = max(best, arrived / took)
                low = wanted
                if sent / took < 0.7 * wanted:  # we cannot send any faster
                    break
            else:
                high = wanted
    return {"per_second": best}


def round_trips(arguments: argparse.Namespace) -> dict[str, object]:
    """One datagram there and back at a time."""
    times, lost = [], 0
    data = bytes(100)
    with socket.socket(family(arguments.address), socket.SOCK_DGRAM) as datagrams:
        datagrams.connect((arguments.address, arguments.port))
        if not establish(datagrams):
            return {"p50": None, "p99": None, "lost": 1}
        deadline = time.perf_counter() + arguments.seconds
        while (started := time.perf_counter()) < deadline:
            try:
                datagrams.send(data)
                datagrams.recv(2048)
            except OSError:
                lost += 1
                continue
            times.append(time.perf_counter() - started)
    return {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99), "lost": lost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    server = commands.add_parser("serve")
    server.set_defaults(run=serve)
    server.add_argument("port", type=int)
    for run in (throughput, connections, hold, rate, round_trips):
        client = commands.add_parser(run.__name__)
        client.set_defaults(run=run)
        client.add_argument("address")
        client.add_argument("port", type=int)
        client.add_argument("--seconds", type=float, default=1.0)
        client.add_argument("--streams", type=int, default=1)
        client.add_argument("--clients", type=int, default=1)
        client.add_argument("--size", type=int, default=100)
        client.add_argument("--steps", type=int, default=8)
        client.add_argument("--most", type=float, default=2e6, help="datagrams a second")
        client.add_argument("--home")
        client.add_argument("--home-port", type=int)
    arguments = parser.parse_args()
    result = arguments.run(arguments)
    if result:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
