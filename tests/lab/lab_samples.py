# SPDX-License-Identifier: GPL-3.0-or-later
"""Data that lab tests declare."""

from __future__ import annotations

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
