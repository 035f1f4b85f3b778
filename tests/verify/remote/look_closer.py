# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: print, as JSON, what operations/remote/observe.py does not tell. Changes nothing.

Standard library of Python 3.9. What `systemctl is-enabled` says of our units, the last run of
home-address-updater.service, and the main processes of our relays.
"""

import json
import subprocess
from pathlib import Path

UPDATER = "home-address-updater.service"


def output(*command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return result.stdout.decode(errors="replace")


def show(properties, *units):
    """Properties of units, a dict for each."""
    text = output("systemctl", "show", "--property=" + properties, *units)
    return [
        dict(line.partition("=")[::2] for line in block.splitlines())
        for block in text.split("\n\n")
    ]


def enabled(names):
    """What `systemctl is-enabled` says of each unit."""
    states = output("systemctl", "is-enabled", *names).splitlines()
    if len(states) != len(names):  # before systemd 253 there is no line for a unit without a file
        states = [output("systemctl", "is-enabled", name).strip() for name in names]
    return {name: states[number] for number, name in enumerate(names)}


def process(pid):
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


loaded = show("Id,MainPID", "home-*")
linked = [path.name for path in Path("/etc/systemd/system").glob("*.wants/home-*")]
print(
    json.dumps(
        {
            "enabled": enabled(sorted({unit["Id"] for unit in loaded if unit} | set(linked))),
            "updater": show("ActiveState,Result,ExecMainStatus,ExecMainExitTimestamp", UPDATER)[0],
            "processes": {
                unit["Id"]: process(unit["MainPID"])
                for unit in loaded
                if unit.get("MainPID", "0") != "0"
            },
        }
    )
)
