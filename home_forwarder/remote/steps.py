# SPDX-License-Identifier: GPL-3.0-or-later
"""Part of programs that are sent to a VPS: steps that change it, one program at a time.

Standard library of Python 3.9. It is part of user-data, where every byte counts.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time

from home_forwarder.remote.running import Failed, run

TYPE_CHECKING = False
if TYPE_CHECKING:  # only for a type checker, which knows the name
    from collections.abc import Callable
    from typing import Any

    Relay = dict[str, Any]
    Port = tuple[str, str, int]

SECONDS = 5.0  # without a further relay that listens, until the rest is given up
PAUSE = 0.05


def held(path: str, who: str, patience: float) -> str:
    """Take the lock. Returns: "", or who has it and since when if it is not free in time.

    Raises: Failed if there is something else in its place.
    """
    deadline = time.monotonic() + patience
    try:
        # Open, and so held, to our end; not for another file that a link leads to.
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.ftruncate(lock, os.fstat(lock).st_size)  # neither a FIFO nor a device
        os.fchmod(lock, 0o600)  # nobody else may hold it
    except OSError as error:
        raise Failed(f"cannot lock {path}: {error.strerror}") from None
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            return os.pread(lock, 1000, 0).decode(errors="replace").strip() or "somebody"
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{who} since {time.strftime('%H:%M:%S %Z')}\n".encode(), 0)
        except OSError:
            pass  # a full disk; then it is somebody
        return ""


def prepare(entry: dict[str, str], suffix: str) -> None:
    """Write a file or link beside its place."""
    path = entry["path"]
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    new = path + suffix
    if os.path.lexists(new):
        os.unlink(new)  # left by a run that was cut off
    if "target" in entry:
        os.symlink(entry["target"], new)
        return
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8", newline="") as file:
        file.write(entry["content"])
        shutil.chown(new, entry["owner"], entry["group"])
        os.fchmod(descriptor, int(entry["mode"], 8))
        file.flush()
        os.fsync(descriptor)


def write(entries: list[dict[str, str]], suffix: str) -> None:
    """Each file whole: written beside its place, synced, renamed; none before all are written."""
    try:
        for entry in entries:
            prepare(entry, suffix)
        for entry in entries:
            if os.path.isdir(entry["path"]) and not os.path.islink(entry["path"]):
                raise IsADirectoryError(errno.EISDIR, "a directory is in the way", entry["path"])
        for entry in entries:
            os.rename(entry["path"] + suffix, entry["path"])
        os.sync()
    except OSError as error:
        for entry in entries:
            if os.path.lexists(entry["path"] + suffix):
                os.unlink(entry["path"] + suffix)
        raise Failed(f"cannot write the files: {error}") from None


def wait(
    relays: list[Relay], known: set[int], listening: Callable[[list[Relay]], set[Port]]
) -> None:
    """Wait until each relay whose home's address is known listens on all of its ports.

    known: the INDEX of these homes. listening: who listens there: unit, protocol, port.
    Raises: Failed with the ones that do not, and the last line of their journal. Hundreds take their
    time on a small VPS, so it goes on as long as further ones come up.
    """
    missing = [relay for relay in relays if relay["home"] in known]
    deadline = time.monotonic() + SECONDS
    while missing and time.monotonic() < deadline:
        there = listening(missing)
        before = len(missing)
        missing = [relay for relay in missing if not wanted(relay) <= there]
        if len(missing) < before:
            deadline = time.monotonic() + SECONDS
        time.sleep(PAUSE if missing else 0)
    if missing:
        raise Failed("\n".join(f"{each['unit']} does not listen: {said(each)}" for each in missing))


def wanted(relay: Relay) -> set[Port]:
    """Who is to listen where."""
    ports = range(relay["first"], relay["last"] + 1)
    return {(relay["unit"], relay["protocol"], port) for port in ports}


def said(relay: Relay) -> str:
    """The last lines of a relay's own in the journal; systemd's are about this or that attempt."""
    own = "_SYSTEMD_UNIT=" + relay["unit"]
    return "; ".join(run(["journalctl", "-q", "-o", "cat", "-n", "3", own]).splitlines())


def known_homes(path: str, expression: str) -> set[int]:
    """The INDEX of each home whose address is known."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return {int(found[0]) for found in re.findall(expression, file.read())}
    except OSError:
        return set()
