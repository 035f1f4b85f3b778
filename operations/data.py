# SPDX-License-Identifier: GPL-3.0-or-later
"""From pyinfra's inventory to checked data: every mistake of every host, before any is touched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

import click
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.connectors.ssh import connector_data_meta
from pyinfra_cli.exceptions import CliError

from home_forwarder.config import Config, load_config
from home_forwarder.mistakes import DataError
from home_forwarder.values import is_placeholder


class WrongData(PyinfraError, CliError):  # type: ignore[misc]
    """The user's data is wrong; the message has a line for each mistake.

    As a PyinfraError it may leave a file that pyinfra executes; as a CliError it is shown as it is,
    without the line of our code that found it.
    """

    outcome = "no host was touched"

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("\n".join(self.mistakes))

    def show(self, file: IO[Any] | None = None) -> None:
        click.secho(f"--> Wrong data; {self.outcome}:", fg="red", bold=True, err=True, file=file)
        for mistake in self.mistakes:
            click.echo(f"    {mistake}", err=True, file=file)


def config_of(host: Host) -> Config:
    """The checked data of one host. Raises: DataError."""
    given = host.data.dict()
    address = given.get("ssh_hostname", host.name)
    mistakes = []
    if isinstance(address, str) and is_placeholder(address):
        mistakes.append(
            f"inventory.py: {address!r} is the placeholder of the example; write your VPS's host"
            " name or address in its place"
        )
    data = {
        key: value
        for key, value in given.items()
        if key == "ssh_port" or not (key.startswith("_") or key in connector_data_meta)
    }
    try:
        config = load_config(data)
    except DataError as error:
        raise DataError(mistakes + error.mistakes) from None
    if mistakes:
        raise DataError(mistakes)
    return config


def check_all(hosts: Iterable[Host]) -> None:
    """Check every host's data; a mistake that several hosts share is said once.

    Raises: WrongData.
    """
    found: dict[str, list[str]] = {}
    for host in hosts:
        try:
            config_of(host)
        except DataError as error:
            for mistake in error.mistakes:
                found.setdefault(mistake, []).append(host.name)
    if found:
        raise WrongData(f"{', '.join(names)}: {mistake}" for mistake, names in found.items())


NO_DATA_GOES_THROUGH = {
    "_su_password": "su would take the data of a deploy for the password; log in as root with a key,"
    ' or as a user who may use sudo, with "_sudo": True and, if it asks, "_sudo_password"',
    "_get_pty": "a terminal changes the data of a deploy, and waits for more; take it out (where"
    " sudoers has requiretty, let an admin write: Defaults:USER !requiretty)",
}
"""Ways to run commands in which standard input does not reach a program, and what would be right."""


def check_logins(hosts: Iterable[Host]) -> None:
    """Check how each host is to be logged in to. Raises: WrongData."""
    found: dict[str, list[str]] = {}
    for host in hosts:
        for key, reason in NO_DATA_GOES_THROUGH.items():
            if host.data.get(key):
                found.setdefault(f"{key}: {reason}", []).append(host.name)
    if found:
        raise WrongData(f"{', '.join(names)}: {mistake}" for mistake, names in found.items())
