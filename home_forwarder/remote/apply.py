# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: change it, one deploy at a time, and print, as JSON, what came of it.

Standard library of Python 3.9. The job comes through standard input, so that no secret is in an
argument list; job_of() in home_forwarder/applying.py makes it and says what its keys are for.

Whoever changes a VPS holds the lock from its look at the VPS to the end. The lock is the kernel's,
and ends with this process, however it ends. If the look shows another VPS than the one that the
steps were made for, nothing is done.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from home_forwarder.remote.running import Failed, run
from home_forwarder.remote.steps import held, known_homes, wait, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from home_forwarder.remote.steps import Port, Relay

GO_ON = ("restart", "start")
"""Steps after which it goes on if they fail: one broken relay keeps no other down."""


def remove(paths: list[str]) -> None:
    """Delete files, and the directories made for them once they are empty."""
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
        directory = os.path.dirname(path)
        if directory.endswith((".d", ".wants", "/home-forwarder")):
            try:
                os.rmdir(directory)
            except OSError:
                pass  # not empty
    os.sync()


def systemctl(verb: str, units: list[str]) -> None:
    """Once more if systemd called it off: a home that moved just now restarts its forwards."""
    try:
        run(["systemctl", verb, *units])
    except Failed:
        time.sleep(1)
        run(["systemctl", verb, *units])


def stop(units: list[str]) -> None:
    """Stop units, and forget the failure of those that failed, or they would stay known for ever."""
    systemctl("stop", units)
    failed = [unit for unit in units if not call("systemctl", "is-failed", "-q", unit)]
    if failed:
        run(["systemctl", "reset-failed", *failed])


def call(*command: str) -> int:
    return subprocess.run(command, check=False).returncode


def listening(relays: list[Relay], job: dict[str, Any]) -> set[Port]:
    """Who listens where: the unit is that of the process itself."""
    ports = [(relay["protocol"], relay["first"], relay["last"]) for relay in relays]
    found = ask(job, {"ports": ports, "units": job["question"]["units"]})["listeners"]
    return {(each["unit"], each["protocol"], each["port"]) for each in found}


def ask(job: dict[str, Any], question: dict[str, Any]) -> dict[str, Any]:
    """What observe.py answers."""
    command = [sys.executable, "-IS", "-c", job["observe"], json.dumps(question)]
    seen: dict[str, Any] = json.loads(subprocess.check_output(command))
    return seen


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Returns: {"busy": who has the lock}, {"other": what is seen instead}, or what was done:
    {"failed": [why], "done": [steps], "seen": at the end}.
    """
    try:
        busy = held(job["lock"], job["who"], job["patience"])
    except Failed as failure:
        return {"failed": [str(failure)], "done": [], "seen": ask(job, job["question"])}
    if busy:
        return {"busy": busy}
    seen = ask(job, job["question"])
    if not seen["basis"].startswith(job["basis"]):
        return {"other": seen}
    does: dict[str, Callable[[Any], object]] = {
        "write": lambda entries: write(entries, job["unfinished"]),
        "stop": stop,
        "remove": remove,
        "reload": lambda _: run(["systemctl", "daemon-reload"]),
        "read": partial(systemctl, "reload-or-restart"),
        "restart": partial(systemctl, "restart"),
        "start": partial(systemctl, "start"),
        "wait": lambda relays: wait(
            relays, known_homes(*job["question"]["addresses"]), lambda some: listening(some, job)
        ),
    }
    failed, done = [], []
    for verb, what in job["steps"]:
        try:
            does[verb](what)
            done.append(verb)
        except (Failed, OSError) as failure:
            failed.append(
                f"cannot {verb}: {failure}" if isinstance(failure, OSError) else str(failure)
            )
            if verb not in GO_ON:
                break
    return {"failed": failed, "done": done, "seen": ask(job, job["question"])}


def main() -> None:
    os.umask(0o022)
    print(json.dumps(work(json.load(sys.stdin))))


if __name__ == "__main__":
    main()
