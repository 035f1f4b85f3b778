# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of the user's data that several parts share: what is right, and what to say of what is not.

Each of these functions returns the value in the form that the rest of the project uses, or raises
ValueError with the value as it was written and what would be right.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import idna
from pydantic import BaseModel, BeforeValidator, ConfigDict

MAX_RANGE = 256
"""Ports of one range: each port is a process of its own on the VPS."""
PLACEHOLDER_DOMAINS = ("example.com", "example.net", "example.org")
"""RFC 2606: nobody's real host is in these; our examples are."""

GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
UNIQUE_LOCAL = ipaddress.IPv6Network("fc00::/7")


class Model(BaseModel):
    """A dict of the user's data. A key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def is_placeholder(name: str) -> bool:
    """Is `name` in one of the domains that only examples use?"""
    return any(name == domain or name.endswith(f".{domain}") for domain in PLACEHOLDER_DOMAINS)


@dataclass(frozen=True)
class PortRange:
    """One port (first == last) or a range of ports, both ends included."""

    first: int
    last: int

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last + 1))

    def __len__(self) -> int:
        return self.last - self.first + 1

    def overlap(self, other: PortRange) -> int | None:
        """The first port that both have; None if there is none."""
        first = max(self.first, other.first)
        return first if first <= min(self.last, other.last) else None

    def __str__(self) -> str:
        return f"{self.first}-{self.last}" if len(self) > 1 else str(self.first)


@dataclass(frozen=True)
class Secret:
    """The one line of a file on the operator's machine. It is shown nowhere."""

    path: str
    text: str = field(repr=False)


def whole_number(what: str, low: int, high: int, unit: str = "") -> BeforeValidator:
    """Accept an int from `low` to `high`; a bool or a string is none."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            amount = f"{unit} from {low} to {high}" if unit else f"from {low} to {high}"
            raise ValueError(f"{value!r} is not {what}; write a whole number {amount}")
        return value

    return BeforeValidator(check)


def parse_ports(value: object) -> PortRange:
    right = "write a number from 1 to 65535, or a range such as '8000-8010'"
    if isinstance(value, PortRange):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        first = last = value
    elif isinstance(value, str) and (
        found := re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", value)
    ):
        first, last = int(found[1]), int(found[2] or found[1])
    else:
        raise ValueError(f"{value!r} is not a port; {right}")
    if not (1 <= first <= 65535 and 1 <= last <= 65535):
        raise ValueError(f"{value!r} is not a port; {right}")
    if last < first:
        raise ValueError(f"{value!r} runs backwards; write the lower port first: '{last}-{first}'")
    if last - first >= MAX_RANGE:
        raise ValueError(
            f"{value!r} has {last - first + 1} ports; a range has at most {MAX_RANGE},"
            " since each port is a process on the VPS"
        )
    return PortRange(first, last)


def parse_name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", value):
        raise ValueError(
            f"{value!r} is not a short name; write up to 32 of a-z, 0-9, '-' and '_',"
            " such as 'fritzbox'"
        )
    return value


def parse_text(value: object) -> str:
    if (
        not isinstance(value, str)
        or not value.strip()
        or len(value) > 200
        or not value.isprintable()
    ):
        raise ValueError(f"{value!r} is not a description; write one line of up to 200 characters")
    return value


def parse_hostname(value: object) -> str:
    """A DNS name in its ASCII form (RFC 5890), lower case without a final dot, or an IPv6 address."""
    right = "write the DNS name of the home, such as 'xxx.myfritz.net', or its IPv6 address"
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a host name; {right}")
    try:
        address = ipaddress.ip_address(re.sub(r"^\[(.*)\]$", r"\1", value))
    except ValueError:
        return parse_dns_name(value, right)
    if isinstance(address, ipaddress.IPv4Address):
        raise ValueError(f"{value!r} is an IPv4 address, but a home is reached over IPv6; {right}")
    if address.scope_id or not (address in GLOBAL_UNICAST or address in UNIQUE_LOCAL):
        raise ValueError(f"{value!r} cannot be reached from a VPS; write a global IPv6 address")
    return str(address)


def parse_dns_name(value: str, right: str) -> str:
    name = value.rstrip(".").lower()
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise ValueError(f"{value!r} is not a host name ({error}); {right}") from None
    if re.fullmatch(r"(.*\.)?(0x[0-9a-f]*|[0-9]+)", name):  # no top-level domain is a number
        raise ValueError(f"{value!r} looks like an IPv4 address; {right}")
    label = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
    if len(name) > 253 or not re.fullmatch(rf"{label}(?:\.{label})*", name):
        raise ValueError(f"{value!r} is not a host name; {right}")
    if "." not in name:
        raise ValueError(f"{value!r} is not a full DNS name (it has no dot); {right}")
    if is_placeholder(name):
        raise ValueError(f"{value!r} is the placeholder of the example; {right}")
    return name


def read_secret(value: object) -> Secret:
    """The secret in the file `value`; a relative path starts where pyinfra is run."""
    right = "write the path of a file on this machine that holds the secret in one line"
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{value!r} is not the path of a file; {right}")
    path = Path(value).expanduser()
    try:
        mode = path.stat().st_mode & 0o777
        text = path.read_bytes().decode("ascii").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ValueError(f"{value!r} cannot be read here ({error.strerror}); {right}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{value!r} has letters that are not ASCII in it; {right}") from None
    if mode & 0o077:
        raise ValueError(f"{value!r} can be read by others (mode {mode:o}); do: chmod 600 {value}")
    if not re.fullmatch(r"[ -~]{1,2000}", text):
        raise ValueError(f"{value!r} does not hold one line of text; {right}")
    return Secret(value, text)


def parse_switch(value: object) -> bool:
    """A bool, or what `--data KEY=off` on the command line can say."""
    words = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError(f"{value!r} is neither True nor False")


def one_of(*choices: str) -> BeforeValidator:
    def check(value: object) -> object:
        if not isinstance(value, str) or value not in choices:
            written = ", ".join(repr(choice) for choice in choices)
            raise ValueError(f"{value!r} is not one of {written}")
        return value

    return BeforeValidator(check)
