# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's data, checked: homes, forwards, notify and the settings beside them.

`load_config` is the only way in. It finds every mistake before any host is touched (promise 11) and
says of each one where it is, what was written and what would be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from pydantic import BeforeValidator, ValidationError

from home_forwarder.mistakes import DataError, explain
from home_forwarder.parts.addresses import Home, indices, wrong_homes
from home_forwarder.parts.first_boot import FirstBoot
from home_forwarder.parts.forwards import Forward, wrong_forward
from home_forwarder.parts.notify import Notify
from home_forwarder.values import Model, PortRange, parse_switch, whole_number


class Config(Model):
    """All of one VPS's data, valid."""

    homes: tuple[Home, ...]
    forwards: tuple[Forward, ...] = ()
    notify: Notify | None = None
    first_boot: FirstBoot = FirstBoot()
    check_interval: Annotated[int, whole_number("an interval", 10, 86400, "of seconds")] = 60
    unresolved_after: Annotated[int, whole_number("a time", 60, 604800, "of seconds")] = 1800
    preflight: Annotated[bool, BeforeValidator(parse_switch)] = True
    reach: Annotated[bool, BeforeValidator(parse_switch)] = True
    remove_state: Annotated[bool, BeforeValidator(parse_switch)] = False
    ssh_port: Annotated[int, whole_number("a port", 1, 65535)] = 22

    @cached_property
    def numbered(self) -> dict[int, Home]:
        """The homes by INDEX, lowest first."""
        return dict(sorted(zip(indices(self.homes), self.homes, strict=True)))

    @cached_property
    def index_of(self) -> dict[str, int]:
        """The INDEX of each home by its name."""
        return {home.name: index for index, home in self.numbered.items()}


@dataclass(frozen=True)
class _Claim:
    """A port, or range of ports, of the VPS that something listens on."""

    protocol: str
    families: str
    ports: PortRange
    where: str
    """Where it is declared: forwards[0]."""
    taken: str = ""
    """What to say to another that wants it, if not the usual."""


_Taken = dict[tuple[str, int, str], _Claim]
"""By protocol, port and family, the first that claims it."""


def load_config(data: Mapping[str, object]) -> Config:
    """Check one VPS's data.

    Raises: DataError with a line for each mistake: the key, the value and what would be right.
    """
    try:
        config = Config.model_validate(dict(data))
    except ValidationError as error:
        raise DataError(explain(error, Config)) from None
    mistakes = list(_mistakes(config))
    if mistakes:
        raise DataError(mistakes)
    return config


def _mistakes(config: Config) -> Iterator[str]:
    """What is wrong with values that are right each for itself."""
    yield from wrong_homes(config.homes)
    names = [home.name for home in config.homes]
    taken: _Taken = {}
    list(_clashes(_ssh_claim(config.ssh_port), taken))
    for number, forward in enumerate(config.forwards):
        where = f"forwards[{number}]"
        yield from wrong_forward(where, forward, names)
        claim = _Claim(forward.protocol, forward.listen, forward.port, where)
        yield from _clashes(claim, taken)
    if config.notify:
        yield from config.notify.mistakes()
    yield from config.first_boot.mistakes()


def _ssh_claim(port: int) -> _Claim:
    return _Claim(
        "tcp",
        "46",
        PortRange(port, port),
        "ssh_port",
        f"{port} is the VPS's own ssh port; forward another one (or say in inventory.py which ssh_port"
        " sshd really uses)",
    )


def _clashes(claim: _Claim, taken: _Taken) -> Iterator[str]:
    """Ports that an earlier one has already: a line for each of those, with the first port.

    taken: whose each port is; what is free there becomes that of `claim`.
    """
    told = [claim]
    for port in claim.ports:
        for family in claim.families:
            other = taken.setdefault((claim.protocol, port, family), claim)
            if other in told:
                continue
            told.append(other)
            if other.taken:
                yield f"{claim.where}.port: {other.taken}"
                continue
            yield (
                f"{claim.where}.port: {claim.protocol} port {port} on IPv{family} is taken by"
                f" {other.where} already; use another port"
                + ("" if claim.families == family else ", or listen on one family each")
            )
