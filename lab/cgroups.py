# SPDX-License-Identifier: GPL-3.0-or-later
"""A control group of its own for each VPS, on machines with cgroup v2 and with v1 hierarchies.

systemd-nspawn with --keep-unit runs its payload below the group that it is started in. All VPSes
started from one group would share one payload group, hence one group for each.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lab.processes import Process, end

ROOT = Path("/sys/fs/cgroup")
V1_HIERARCHIES = ("systemd", "unified", "memory", "pids", "cpu", "cpuacct")
EMPTY_WITHIN = 10.0
"""Seconds for all processes of a group to die, and for the kernel to let go of it."""


class Cgroup:
    """One control group by name, in every hierarchy that a VPS needs."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def paths(self) -> list[Path]:
        """The directories of this group, whether they exist or not."""
        if (ROOT / "cgroup.controllers").exists():
            return [ROOT / self.name]
        # cpu and cpuacct may be links to one directory, cpu,cpuacct.
        tops = {(ROOT / name).resolve() for name in V1_HIERARCHIES if (ROOT / name).is_dir()}
        return sorted(top / self.name for top in tops)

    def create(self, memory: int | None = None) -> None:
        """Make the group; `memory` is its limit in bytes, None for no limit."""
        for path in self.paths:
            if path.parent == ROOT:
                _delegate(ROOT)
            path.mkdir(exist_ok=True)
            if memory is not None:
                # Only one of the hierarchies has the memory controller.
                for file in ("memory.max", "memory.limit_in_bytes"):
                    if (path / file).exists():
                        (path / file).write_text(str(memory))

    def processes(self) -> list[Process]:
        """Every process in this group and in the groups below it."""
        pids: set[int] = set()
        for path in self.paths:
            for directory in _below(path):
                with contextlib.suppress(OSError):
                    pids.update(map(int, (directory / "cgroup.procs").read_text().split()))
        found = (Process.of(pid, self.name) for pid in pids if pid > 0)
        return [process for process in found if process]

    def remove(self) -> None:
        """Kill what is left in the group and remove it; nothing happens if it does not exist."""
        deadline = time.monotonic() + EMPTY_WITHIN
        while (left := self.processes()) and time.monotonic() < deadline:
            end(left, grace=0)
        for path in self.paths:
            while path.exists():
                for directory in _below(path):
                    with contextlib.suppress(OSError):
                        directory.rmdir()
                if time.monotonic() > deadline:
                    break
                if path.exists():  # a killed process leaves its group a moment after its end
                    time.sleep(0.02)


def _below(path: Path) -> Iterator[Path]:
    """The groups below `path`, deepest first, and `path` itself last."""
    for directory, _, _ in os.walk(path, topdown=False):
        yield Path(directory)


def _delegate(group: Path) -> None:
    """Let the groups below `group` have the controllers that it has itself (cgroup v2)."""
    for controller in (group / "cgroup.controllers").read_text().split():
        with contextlib.suppress(OSError):
            (group / "cgroup.subtree_control").write_text(f"+{controller}")
