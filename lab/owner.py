# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose a lab is: it ends with the process that owns it, also when that is told to terminate.

A process that is killed leaves an orphan, which is removed when the next lab is brought up.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from lab.processes import Process

STATE = Path("/run/home-forwarder-lab")
"""A directory for each lab that is up; in /run, since no lab survives a reboot of the machine."""


# ---- Written down ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Owner:
    """The process that a lab ends with; None in its place if it is to stay."""

    pid: int
    start: int


def write_owner(directory: Path, mark: str, owned: bool) -> None:
    """Write down whose the lab in `directory` is: this process's, or nobody's if it is to stay."""
    process = Process.of(os.getpid()) if owned else None
    facts = {
        "owner": asdict(Owner(process.pid, process.start)) if process else None,
        "mark": mark,
    }
    new = directory / "lab.new"
    new.write_text(json.dumps(facts))
    new.rename(directory / "lab.json")


def owner_of(directory: Path) -> Owner | None:
    """The owner of the lab in `directory`; None if it is to stay."""
    try:
        owner = json.loads((directory / "lab.json").read_text())["owner"]
        return Owner(**owner) if owner else None
    except (OSError, ValueError, KeyError, TypeError):
        return Owner(0, 0)  # killed while it was being made


def mark_of(directory: Path) -> str:
    """What the processes of the lab in `directory` carry in their environment; "" if unknown."""
    try:
        return str(json.loads((directory / "lab.json").read_text())["mark"])
    except (OSError, ValueError, KeyError):
        return ""


# ---- All labs of this machine ----------------------------------------------------------------


def names() -> list[str]:
    """The names of the labs that are up, or left by a killed run."""
    if not STATE.is_dir():
        return []
    return sorted(path.name for path in STATE.iterdir() if path.is_dir())


def is_orphan(name: str) -> bool:
    """Whether the owner of lab `name` was killed; False if there is no such lab."""
    directory = STATE / name
    owner = owner_of(directory)
    return directory.is_dir() and bool(owner and not Process(owner.pid, owner.start).alive)


@contextlib.contextmanager
def state_lock() -> Iterator[None]:
    """Let one process at a time make or remove labs; leaves no file behind."""
    path = STATE.with_suffix(".lock")
    while True:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                # Whoever had it before has removed it: what we hold is no longer the lock.
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    try:
                        yield
                    finally:
                        path.unlink(missing_ok=True)
                    return


# ---- The end of the owner --------------------------------------------------------------------

_downs: list[Callable[[], None]] = []
"""Lab.down of each lab that this process owns."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP; as an interrupt it leaves `with` blocks and test fixtures properly."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def leave_in_order_when_terminated() -> None:
    """Raise Terminated in the main thread at SIGTERM and SIGHUP, unless somebody handles them."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _terminate)


def end_with_this_process(down: Callable[[], None]) -> None:
    """Call `down` at the end of this process, unless it is forgotten before."""
    if not _downs:
        atexit.register(_down_all, os.getpid())
    leave_in_order_when_terminated()
    _downs.append(down)


def forget(down: Callable[[], None]) -> None:
    """Do not call `down` any more; nothing happens if it was not to be called."""
    if down in _downs:
        _downs.remove(down)


def _down_all(pid: int) -> None:
    if os.getpid() != pid:
        return  # a fork that leaves by sys.exit() inherits our exit handlers, but owns no lab
    for down in list(_downs):
        down()
