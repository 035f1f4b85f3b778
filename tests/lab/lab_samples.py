# SPDX-License-Identifier: GPL-3.0-or-later
"""What lab tests declare, and what they begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
