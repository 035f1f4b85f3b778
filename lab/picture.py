# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab looks like, as text."""

from __future__ import annotations

from collections.abc import Sequence

from lab.home import Home
from lab.host import Host
from lab.image import RELEASES
from lab.lab import Lab
from lab.vps import Vps


def picture(lab: Lab) -> str:
    """Who is connected to the lab's internet, one host a line."""
    rows = [(host.name, *_addresses(host), _remark(lab, host)) for host in lab.hosts.values()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"lab {lab.name}: the internet"]
    for number, row in enumerate(rows, 1):
        branch = "└──" if number == len(rows) else "├──"
        cells = [f"{cell:<{width}}" for cell, width in zip(row[:3], widths, strict=True)]
        lines.append(f"  {branch} {'  '.join([*cells, row[3]])}".rstrip())
    return "\n".join(lines)


def _addresses(host: Host) -> tuple[str, str]:
    ipv4 = [address for address in host.addresses if "." in address]
    ipv6 = [address for address in host.addresses if ":" in address]
    return ", ".join(ipv4) or "-", ", ".join(ipv6) or "-"


def _remark(lab: Lab, host: Host) -> str:
    if isinstance(host, Vps):
        return f"{RELEASES[host.release]}, {'on' if host.is_on else 'off'}"
    if isinstance(host, Home):
        return ", ".join([host.hostname, *_port_ranges(host.ports)])
    if host is lab.dns:
        return "resolver, server"
    return "IPv4 only" if host is lab.client else ""


def _port_ranges(ports: Sequence[str]) -> list[str]:
    """Ports like "TCP 8000", "TCP 8001" as ranges like "TCP 8000-8001"."""
    ranges: list[tuple[str, int, int]] = []
    for protocol, port in sorted((text.split()[0], int(text.split()[1])) for text in ports):
        if ranges and ranges[-1][0] == protocol and ranges[-1][2] + 1 == port:
            ranges[-1] = (protocol, ranges[-1][1], port)
        else:
            ranges.append((protocol, port, port))
    return [f"{p} {first}" if first == last else f"{p} {first}-{last}" for p, first, last in ranges]
