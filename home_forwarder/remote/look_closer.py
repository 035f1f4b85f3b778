# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: print, as JSON, what observe.py does not tell. Changes nothing.

Standard library of Python 3.9. What `systemctl is-enabled` says of our units, the last run of
home-address-updater.service, and the main processes of our relays.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

UPDATER = "home-address-updater.service"
TIMER = "home-address-updater.timer"
FIRST_RUN_SECONDS = 30
"""The timer looks the homes up 5 s after the boot, and that takes 20 s at most."""


def output(*command: str) -> str:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return result.stdout.decode(errors="replace")


def show(properties: str, *units: str) -> list[dict[str, str]]:
    """Properties of units, a dict for each."""
    text = output("systemctl", "show", "--property=" + properties, *units)
    return [
        dict(line.partition("=")[::2] for line in block.splitlines())
        for block in text.split("\n\n")
    ]


def enabled(names: list[str]) -> dict[str, str]:
    """What `systemctl is-enabled` says of each unit."""
    states = output("systemctl", "is-enabled", *names).splitlines()
    if len(states) != len(names):  # before systemd 253 there is no line for a unit without a file
        states = [output("systemctl", "is-enabled", name).strip() for name in names]
    return {name: states[number] for number, name in enumerate(names)}


def process(pid: str) -> dict[str, object] | None:
    """Whom a process runs as, what it may do, and its settings; None if it has ended."""
    try:
        status = Path("/proc", pid, "status").read_text(errors="replace")
        environment = Path("/proc", pid, "environ").read_bytes().decode(errors="replace")
    except OSError:
        return None
    fields = dict(line.partition(":\t")[::2] for line in status.splitlines())
    return {
        "uids": [int(uid) for uid in fields["Uid"].split()],
        "capabilities": {key: int(fields[key], 16) for key in fields if key.startswith("Cap")},
        "no_new_privileges": fields["NoNewPrivs"] == "1",
        "environment": dict(
            entry.partition("=")[::2]
            for entry in environment.split("\0")
            if entry.startswith(("HOME_", "FORWARD_"))
        ),
    }


def is_due() -> bool:
    """Is the first look-up since the boot still to come, or going on?"""
    state = show("ActiveState", UPDATER)[0].get("ActiveState")
    due = show("NextElapseUSecMonotonic", TIMER)[0].get("NextElapseUSecMonotonic", "")
    return state == "activating" or due not in ("", "0", "infinity")


def wait_for_first_run() -> bool:
    """True if the VPS was looked at so soon after its boot that there was something to wait for."""
    waited = False
    deadline = time.monotonic() + FIRST_RUN_SECONDS
    while not show("ExecMainExitTimestamp", UPDATER)[0].get("ExecMainExitTimestamp"):
        if time.monotonic() > deadline or not is_due():
            break
        waited = True
        time.sleep(0.2)
    return waited


def main() -> None:
    waited = wait_for_first_run()
    loaded = show("Id,MainPID", "home-*")
    linked = [path.name for path in Path("/etc/systemd/system").glob("*.wants/home-*")]
    print(
        json.dumps(
            {
                "waited": waited,
                "enabled": enabled(sorted({unit["Id"] for unit in loaded if unit} | set(linked))),
                "updater": show("ActiveState,Result,ExecMainStatus,ExecMainExitTimestamp", UPDATER)[
                    0
                ],
                "processes": {
                    unit["Id"]: process(unit["MainPID"])
                    for unit in loaded
                    if unit.get("MainPID", "0") != "0"
                },
            }
        )
    )


if __name__ == "__main__":
    main()
