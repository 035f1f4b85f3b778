# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan is made of: the packages, files, links, listeners and units of one VPS, as data.

Each part of home_forwarder/parts/ makes a Part; home_forwarder/planning.py adds them up to a Plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from home_forwarder.render import render, shell_quote, source_of, without_comments
from home_forwarder.values import PortRange

UNITS = "/etc/systemd/system"
CONF = "/etc/home-forwarder.conf"
STATE = "/var/lib/home-forwarder"
SECRETS = "/etc/home-forwarder"


@dataclass(frozen=True)
class Package:
    """A package that a VPS needs: Debian's name, and RPM's if that is another."""

    name: str
    rpm: str = ""
    unless: str = ""
    """A shell command of ours that ends with 0 where a program that can do the same is there."""
    service: str = ""
    """The distribution's service that its installation would start: it stays off, unless it was
    there before."""

    @property
    def job(self) -> dict[str, str]:
        """As home_forwarder/remote/installed.py reads it."""
        return {key: value for key, value in asdict(self).items() if value}


CERTIFICATES = Package("ca-certificates")
"""For TLS to know a server by its certificate."""


@dataclass(frozen=True)
class File:
    """A regular file with all of its text; mode in octal digits."""

    path: str
    content: str = field(repr=False)
    mode: str = "644"
    owner: str = "root"
    group: str = "root"
    secret: bool = False
    """Its content is shown to nobody."""
    without_comments: str = field(default="", repr=False)
    """Another content that is as good: the same without its comments, for user-data."""
    reader: str = ""
    """The unit that reads it when it starts, and has to start again when it has changed. Unit files
    need none: systemd reads them."""
    generic: bool = False
    """It is the same on every VPS, so nobody needs to read it before a deploy."""

    def accepts(self, sha256: str) -> bool:
        """Is that (in hexadecimal digits) the digest of what the file must hold?"""
        contents = [self.content, *([self.without_comments] if self.without_comments else [])]
        return sha256 in [hashlib.sha256(each.encode()).hexdigest() for each in contents]


@dataclass(frozen=True)
class Link:
    """A symbolic link. A unit is enabled by links, as `systemctl enable` makes them."""

    path: str
    target: str


@dataclass(frozen=True)
class Listen:
    """What a unit listens on: ports of "tcp" or "udp", on the families "46", "4" or "6"."""

    protocol: str
    families: str
    ports: PortRange
    unit: str


@dataclass(frozen=True)
class Relay:
    """A relay process: its unit, the forward's unit, what it is, listens on and leads to."""

    unit: str
    forward: str
    protocol: str
    listen: str
    ports: PortRange
    home: int
    """The INDEX of the home."""
    program: str
    """A key of home_forwarder.relay_programs.RELAY_PROGRAMS."""
    revision: str
    """What tells a relay that runs with these settings from one that does not."""
    per_client: int = 0
    """How many connections, or UDP peers, one client may have; 0 if as many as all."""


@dataclass(frozen=True)
class Ours:
    """What on a VPS belongs to a part, whether it is declared or not: what is not declared goes."""

    units: tuple[str, ...] = ()
    """Regular expressions of whole unit names."""
    drop_ins: tuple[str, ...] = ()
    """Regular expressions of whole names in UNIT.d of these units. An admin's own are not."""
    files: tuple[tuple[str, str], ...] = ()
    """Pairs of a directory and a regular expression of whole names in it."""


@dataclass(frozen=True)
class Part:
    """What a VPS gets for one part of what is declared."""

    packages: tuple[Package, ...] = ()
    files: tuple[File, ...] = ()
    links: tuple[Link, ...] = ()
    enabled: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Units that run from the boot on, each with the units that want it."""
    triggered: tuple[str, ...] = ()
    """Services that come and go: started by a timer or a path unit."""
    relays: tuple[Relay, ...] = ()
    listens: tuple[Listen, ...] = ()
    settings: tuple[str, ...] = ()
    """Lines of /etc/home-forwarder.conf, from setting(). Nothing in them is secret."""


@dataclass(frozen=True)
class Plan:
    """One VPS as it must be. An empty plan is a VPS with nothing of ours."""

    packages: tuple[Package, ...] = ()
    files: tuple[File, ...] = ()
    links: tuple[Link, ...] = ()
    running: tuple[str, ...] = ()
    """Units that must be active, relays aside."""
    relays: tuple[Relay, ...] = ()
    """Relays run as soon as their home's address is known."""
    triggered: tuple[str, ...] = ()
    listens: tuple[Listen, ...] = ()
    homes: Mapping[int, str] = field(default_factory=dict)
    """The host name of each home, by INDEX."""

    @property
    def entries(self) -> tuple[File | Link, ...]:
        """Everything that stands in the file system."""
        return (*self.files, *self.links)

    @property
    def units(self) -> frozenset[str]:
        """Every unit that may exist."""
        return frozenset((*self.running, *self.triggered, *(relay.unit for relay in self.relays)))


def setting(key: str, value: str | int, *, quoted: bool = True) -> str:
    """A line of /etc/home-forwarder.conf."""
    return f"{key}={shell_quote(str(value)) if quoted else value}"


def program_file(path: str) -> File:
    """A program that stays on a VPS, out of vps/."""
    source = source_of(path)
    return File(path, source, mode="755", without_comments=without_comments(source), generic=True)


def unit_file(name: str, template: str = "", *, generic: bool = True, **values: object) -> File:
    """A unit, or a drop-in NAME.d/X, out of templates/.

    template: if it is called otherwise there.
    generic: False if what the user declared stands in it.
    """
    text = render(f"{UNITS.lstrip('/')}/{template or name}.j2", **values)
    bare = "".join(line for line in text.splitlines(keepends=True) if line[:1] not in "#\n")
    return File(f"{UNITS}/{name}", text, without_comments=bare, generic=generic)


def some_of(names: Iterable[str], shown: int = 8) -> str:
    """A list for people, cut off after `shown`: «a, b and 3 more»."""
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more
