# SPDX-License-Identifier: GPL-3.0-or-later
"""What lab tests declare, and what they begin with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from home_forwarder.plan import File, Plan
from lab import Lab

TCP, UDP = 44444, 33333
"""Ports that every home serves, beside 8000 to 8009 for both protocols."""

STANDARD = [
    {"home": "home0", "protocol": "tcp", "port": TCP},
    {"home": "home0", "protocol": "udp", "port": UDP},
    {"home": "home1", "protocol": "tcp", "port": 8001},
]


def home_data(lab: Lab, *, count: int = 2) -> list[dict[str, Any]]:
    """The first homes of the lab as data: a home named like it, with a description."""
    return [
        {"name": name, "hostname": home.hostname, "description": f"The home {name}"}
        for name, home in list(lab.home.items())[:count]
    ]


def disable_nginx_service(root: Path) -> None:
    """As it is where a deploy has installed nginx."""
    (root / "etc/systemd/system/multi-user.target.wants/nginx.service").unlink()


def write_plan(plan: Plan, before: Callable[[Path], None] | None, root: Path) -> None:
    """Put all files and links of a plan below the root directory of a VPS that is switched off.

    before: what else is to be done there, first
    """
    if before:
        before(root)
    for entry in plan.entries:
        path = root / entry.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(entry, File):
            path.write_text(entry.content, encoding="utf-8")
            path.chmod(int(entry.mode, 8))
        else:
            path.symlink_to(entry.target)
