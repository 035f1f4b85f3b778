# SPDX-License-Identifier: GPL-3.0-or-later
"""The homes and their addresses: looked up regularly, kept, and watched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Annotated

from pydantic import BeforeValidator

from home_forwarder.plan import STATE, Link, Ours, Package, Part, program_file, setting, unit_file
from home_forwarder.values import (
    Model,
    parse_hostname,
    parse_name,
    parse_switch,
    parse_text,
    whole_number,
)

UPDATER = "home-address-updater.service"
MAX_HOMES = 64
"""Promise 8 is kept for up to this many homes."""
MAX_INDEX = 999
FAMILIES = ("ipv4", "ipv6")
PACKAGE = Package(
    "python3",
    # Of Debian's python3-minimal, it would not be true.
    unless="/usr/bin/python3 -IS -c 'import argparse, email, http.client, smtplib, ssl'",
)
OURS = Ours(
    units=(
        r"home-address-updater\.(service|timer)",
        r"home-address-watcher(@[^/]*)?\.(path|service)",
    ),
    files=(
        ("/etc", r"home-address-ipv[46]"),
        ("/usr/local/bin", r"home-address-update(\.sh)?"),  # .sh: of the shell version
    ),
)

# ---- What may be declared --------------------------------------------------------------------


class Home(Model):
    """One home: what it is called, and where DNS says it is."""

    name: Annotated[str, BeforeValidator(parse_name)]
    hostname: Annotated[str, BeforeValidator(parse_hostname)]
    description: Annotated[str | None, BeforeValidator(parse_text)] = None
    allow_private: Annotated[bool, BeforeValidator(parse_switch)] = False
    index: Annotated[int, whole_number("an index", 0, MAX_INDEX)] | None = None

    @property
    def label(self) -> str:
        """How people call it: the description, or else the name."""
        return self.description or self.name


def indices(homes: Sequence[Home]) -> list[int]:
    """The INDEX of each home: what it says, or else its position."""
    return [position if home.index is None else home.index for position, home in enumerate(homes)]


def wrong_homes(homes: Sequence[Home]) -> Iterator[str]:
    """What is wrong with the homes as a whole."""
    if len(homes) > MAX_HOMES:
        yield f"homes: there are {len(homes)}; a VPS serves at most {MAX_HOMES}"
    first: dict[str, int] = {}
    for position, home in enumerate(homes):
        if first.setdefault(home.name, position) != position:
            yield (
                f"homes[{position}].name: {home.name!r} is the name of homes[{first[home.name]}]"
                " already; give each home a name of its own"
            )
    yield from _equal_indices(homes)


def _equal_indices(homes: Sequence[Home]) -> Iterator[str]:
    """Homes that would have the same INDEX, and the lowest that none has."""
    numbers = indices(homes)
    free = next(number for number in count() if number not in numbers)
    first: dict[int, int] = {}
    for position, index in enumerate(numbers):
        other = first.setdefault(index, position)
        if other == position:
            continue
        # At least one of the two says it; that one is to be changed, if only one does.
        said, unsaid = (other, position) if homes[position].index is None else (position, other)
        if homes[unsaid].index is None:
            yield (
                f"homes[{said}].index: {index} is what homes[{unsaid}] has by its position; write"
                f" another, such as {free}, or give homes[{unsaid}] an index as well"
            )
        else:
            yield (
                f"homes[{said}].index: {index} is the index of homes[{unsaid}] already; write"
                f" another, such as {free}"
            )


# ---- What a VPS gets for it ------------------------------------------------------------------


def addresses_part(homes: Mapping[int, Home], check_interval: int, unresolved_after: int) -> Part:
    """The resolver, its timer, and a watcher for each home.

    homes: by INDEX. check_interval, unresolved_after: seconds.
    """
    return Part(
        packages=(PACKAGE,),
        files=(
            program_file("/usr/local/bin/home-address-update"),
            unit_file(UPDATER, look_ups=MAX_HOMES * len(FAMILIES)),
            unit_file("home-address-updater.timer", generic=False, check_interval=check_interval),
            unit_file("home-address-watcher@.path"),
            unit_file("home-address-watcher@.service"),
        ),
        links=tuple(
            Link(f"/etc/home-address-{family}", f"{STATE}/home-address-{family}")
            for family in FAMILIES
        ),
        enabled=(
            ("home-address-updater.timer", ("timers.target",)),
            *((f"home-address-watcher@{index}.path", ("paths.target",)) for index in homes),
        ),
        triggered=(UPDATER, *(f"home-address-watcher@{index}.service" for index in homes)),
        settings=(*_settings(homes), setting("UNRESOLVED_AFTER", unresolved_after, quoted=False)),
    )


def _settings(homes: Mapping[int, Home]) -> Iterator[str]:
    """An INDEX without a home is a gap, and has no line."""
    yield setting("HOME_ADDRESS_COUNT", max(homes, default=-1) + 1, quoted=False)
    for index, home in homes.items():
        yield setting(f"HOME_HOSTDESC_{index}", home.label)
        yield setting(f"HOME_HOSTNAME_{index}", home.hostname, quoted=False)
        if home.allow_private:
            yield setting(f"HOME_ALLOW_PRIVATE_{index}", 1, quoted=False)
