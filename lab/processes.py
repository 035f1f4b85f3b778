# SPDX-License-Identifier: GPL-3.0-or-later
"""Which processes belong to a lab, and how they are ended.

A process is known by its PID **and** its start time: a PID alone may have been given to somebody
else in the meantime. Nothing is ever ended by its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

MARK = "HOME_FORWARDER_LAB"
"""Environment variable that every process started by a lab, and all its descendants, carry."""
KILLED_WITHIN = 5.0
"""Seconds until a killed process is gone, even where the machine is busy; it takes milliseconds."""


def start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks after boot, or None if it no longer runs.

    Field 22 of /proc/PID/stat, see proc(5). A zombie counts as gone: it does nothing any more.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may itself contain blanks and parentheses.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def children(pid: int) -> list[int]:
    """The PIDs of the children of `pid`."""
    found = []
    for other in _all_pids():
        try:
            stat = Path(f"/proc/{other}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(other)
    return found


def _all_pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").glob("[0-9]*"))


@dataclass(frozen=True)
class Process:
    """One process: PID, start time in clock ticks, and what it is for."""

    pid: int
    start: int
    what: str = ""

    @classmethod
    def of(cls, pid: int, what: str = "") -> Process | None:
        """The process that has `pid` now, None if there is none."""
        start = start_time(pid)
        return None if start is None else cls(pid, start, what)

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return start_time(self.pid) == self.start

    def signal(self, number: int) -> bool:
        """Send a signal to this very process. Returns: False if it is gone."""
        with self._pidfd() as fd:
            if fd is None:
                return False
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
            return True

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for its end. Returns: whether it is gone."""
        with self._pidfd() as fd:
            return fd is None or bool(select.select([fd], [], [], max(timeout, 0))[0])

    @contextlib.contextmanager
    def _pidfd(self) -> Iterator[int | None]:
        # Once the descriptor is open and the start time checked, the PID cannot change hands.
        try:
            fd = os.pidfd_open(self.pid)
        except (ProcessLookupError, OSError):
            yield None
            return
        try:
            yield fd if self.alive else None
        finally:
            os.close(fd)


def end(processes: Iterable[Process], grace: float = 2.0) -> None:
    """End `processes`: SIGTERM, and SIGKILL for those that still run `grace` seconds later.

    With a grace of 0 there is no SIGTERM. The calling process and its ancestors are left out.
    """
    spared = _self_and_ancestors()
    targets = [process for process in processes if process.pid not in spared]
    if grace > 0:
        targets = [process for process in targets if process.signal(signal.SIGTERM)]
        deadline = time.monotonic() + grace
        targets = [p for p in targets if not p.wait(deadline - time.monotonic())]
    targets = [process for process in targets if process.signal(signal.SIGKILL)]
    for process in targets:
        process.wait(KILLED_WITHIN)


def _self_and_ancestors() -> set[int]:
    pids = set()
    pid = os.getpid()
    while pid > 0:
        pids.add(pid)
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        pid = int(stat.rpartition(")")[2].split()[1])
    return pids


def marked(mark: str) -> list[Process]:
    """The processes that carry `mark` in the environment they were started with."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for pid in _all_pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # gone, or a kernel thread
            continue
        if wanted in environment and (process := Process.of(pid, "marked")):
            found.append(process)
    return found


class Ledger:
    """The processes of one lab, one small file for each, so that any process can end the lab."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def record(self, pid: int, what: str) -> Process | None:
        """Note that `pid` is ours. Returns: None if it has ended already."""
        process = Process.of(pid, what)
        if process:
            (self.directory / f"{pid}.json").write_text(json.dumps(asdict(process)))
        return process

    def forget(self, pid: int) -> None:
        """Strike a process that has ended."""
        (self.directory / f"{pid}.json").unlink(missing_ok=True)

    def all(self) -> list[Process]:
        """The recorded processes that still run."""
        found = []
        for path in sorted(self.directory.glob("*.json")):
            # A file cut short by a killed writer names no process that we could be sure of.
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append(Process(**json.loads(path.read_text())))
        return [process for process in found if process.alive]

    def find(self, what: str) -> Process | None:
        """The running process recorded for `what`."""
        return next((process for process in self.all() if process.what == what), None)
