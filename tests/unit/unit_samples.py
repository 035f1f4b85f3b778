# SPDX-License-Identifier: GPL-3.0-or-later
"""What the unit tests share: sample data, and a VPS that matches a plan."""

from __future__ import annotations

import hashlib
import itertools
import sys
from pathlib import Path
from typing import Any

from home_forwarder.compare import Observed
from home_forwarder.config import load_config
from home_forwarder.plan import UNITS, File, Plan, make_plan

REPO = Path(__file__).resolve().parents[2]
UPDATER = "/usr/local/bin/home-address-update"
NOTIFY = "/usr/local/lib/home-forwarder/notify"
RELAY = "/usr/local/lib/home-forwarder/relay"
ADDRESS = "2001:db8::1"
EACH = [*itertools.product(("tcp", "udp"), ("46", "4", "6"))]
"""Protocol and `listen` of each kind of relay."""

FRITZBOX = {"name": "fritzbox", "hostname": "xxx.myfritz.net", "description": "Fritz!Box at home"}
NAS = {"name": "nas", "hostname": "somedyndns.address.test", "description": "Home server"}
TCP = {"home": "fritzbox", "protocol": "tcp", "port": 44444}
UDP = {"home": "nas", "protocol": "udp", "port": 33333}

Data = dict[str, Any]


def program(path: str) -> list[str]:
    """The start of a command line: the program that belongs at `path` on a VPS, as it runs there."""
    return [sys.executable, "-IS", "-B", str(REPO / "vps" / path.lstrip("/"))]


def data(**changes: object) -> Data:
    """Valid data of one VPS, with some keys changed."""
    return {"homes": [FRITZBOX, NAS], "forwards": [TCP, UDP], **changes}


def plan_of(**changes: object) -> Plan:
    """The plan of data(**changes)."""
    return make_plan(load_config(data(**changes)))


def file_of(plan: Plan, path: str) -> str:
    """The content of one file of a plan; `path` may leave the directory of the units out."""
    full = path if path.startswith("/") else f"{UNITS}/{path}"
    return next(file.content for file in plan.files if file.path == full)


def matching(plan: Plan) -> Observed:
    """A VPS that is as its plan says, with the address of every home known."""
    files: dict[str, dict[str, Any]] = {}
    for entry in plan.entries:
        if isinstance(entry, File):
            files[entry.path] = {
                "mode": entry.mode,
                "owner": entry.owner,
                "group": entry.group,
                "sha256": hashlib.sha256(entry.content.encode()).hexdigest(),
            }
        else:
            files[entry.path] = {
                "mode": "777",
                "owner": "root",
                "group": "root",
                "target": entry.target,
            }
    units = {name: _unit("active") for name in plan.running}
    units |= {name: _unit("inactive") for name in plan.triggered}
    units |= {relay.unit: _unit("active") for relay in plan.relays}
    addresses = {str(relay.home): f"2001:db8::{relay.home + 1}" for relay in plan.relays}
    for relay in plan.relays:
        units[relay.unit] |= {
            "Runs": True,
            "Revision": relay.revision,
            "HomeAddress": addresses[str(relay.home)],
        }
    return Observed(
        files=files,
        units=units,
        packages=plan.packages,
        addresses=addresses,
        python=(3, 11),
    )


def _unit(state: str) -> dict[str, Any]:
    return {
        "LoadState": "loaded",
        "ActiveState": state,
        "SubState": "running" if state == "active" else "dead",
        "Runs": False,
        "Revision": "",
        "HomeAddress": "",
    }
