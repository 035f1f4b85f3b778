# SPDX-License-Identifier: GPL-3.0-or-later
"""The first boot of a new VPS: who may log in, what it calls itself.

Only user-data has it (home_forwarder/user_data.py); a deploy does not read it.
"""

from __future__ import annotations

import difflib
import re
import zoneinfo
from collections.abc import Iterator
from typing import Annotated

from pydantic import BeforeValidator

from home_forwarder.plan import File, Package, Part
from home_forwarder.render import render
from home_forwarder.values import Model, parse_switch


def parse_operator(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", value):
        raise ValueError(f"{value!r} is not the name of a user; write one such as 'operator'")
    if value == "root":
        raise ValueError("'root' is there already; leave operator out, and the keys are for root")
    return value


def parse_ssh_keys(value: object) -> tuple[str, ...]:
    """Public keys as in authorized_keys, without options."""
    if not isinstance(value, list | tuple):
        raise ValueError(f'{value!r} is not a list; write ["ssh-ed25519 AAAA... me@laptop"]')
    right = "write the line of a .pub file, such as 'ssh-ed25519 AAAA... me@laptop'"
    for key in value:
        if isinstance(key, str) and "PRIVATE KEY" in key:
            raise ValueError(f"this is a private key, which belongs on no server; {right}")
        if not isinstance(key, str) or not re.fullmatch(
            r"(ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9@.-]+ AAAA[A-Za-z0-9+/]+=*( [ -~]*)?", key
        ):
            raise ValueError(f"{key!r} is not a public key; {right}")
    return tuple(value)


def parse_own_name(value: object) -> str:
    label = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
    if not isinstance(value, str) or not re.fullmatch(rf"{label}(?:\.{label})*", value):
        raise ValueError(f"{value!r} is not a host name; write one such as 'vps1'")
    return value


def parse_timezone(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(
        r"[A-Z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*", value
    ):
        raise ValueError(
            f"{value!r} is not a time zone; write one such as 'Europe/Berlin' or 'UTC'"
        )
    known = zoneinfo.available_timezones()
    if known and value not in known:
        close = difflib.get_close_matches(value, known, n=1)
        right = f"did you mean {close[0]!r}?" if close else "write one such as 'Europe/Berlin'"
        raise ValueError(f"{value!r} is not a time zone; {right}")
    return value


class FirstBoot(Model):
    """What cloud_init.py adds for a new VPS, beside the forwarding."""

    operator: Annotated[str | None, BeforeValidator(parse_operator)] = None
    ssh_keys: Annotated[tuple[str, ...], BeforeValidator(parse_ssh_keys)] = ()
    security_updates: Annotated[bool, BeforeValidator(parse_switch)] = False
    hostname: Annotated[str | None, BeforeValidator(parse_own_name)] = None
    timezone: Annotated[str | None, BeforeValidator(parse_timezone)] = None

    def mistakes(self) -> Iterator[str]:
        """What is wrong with it as a whole."""
        if self.operator and not self.ssh_keys:
            yield (
                "first_boot.ssh_keys: is missing; without a key nobody could log in as"
                f" {self.operator!r}"
            )


def first_boot_part(first_boot: FirstBoot) -> Part:
    """What user-data brings besides the plan. It belongs to the admin afterwards."""
    packages = []
    if first_boot.operator:
        packages.append(Package("sudo"))
    files = []
    if first_boot.security_updates:
        packages.append(Package("unattended-upgrades"))
        path = "etc/apt/apt.conf.d/20auto-upgrades"
        files.append(File(f"/{path}", render(f"cloud-init/{path}.j2")))
    return Part(packages=tuple(packages), files=tuple(files))
