# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory as pyinfra's command line would load it, for a look at the data before connecting."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State
from pyinfra.context import ctx_state
from pyinfra_cli.exceptions import CliError, UnexpectedExternalError
from pyinfra_cli.inventory import make_inventory

from operations.data import WrongData, check_logins

RIGHT = 'write vps = [("203.0.113.1", {"ssh_user": "root"})], or a host name'


def say(text: str) -> None:
    """A warning on standard error."""
    click.secho(text, fg="yellow", err=True)


def load_inventory(
    path: str,
    override: Mapping[str, Any] | None = None,
    group_data: tuple[str, ...] = (),
    warn: Callable[[str], None] = say,
) -> Inventory:
    """Load an inventory file with its group data.

    warn: is given a sentence about what is allowed but surely not meant.
    Raises: WrongData if a file cannot be read as Python, with the file and line; also if a host is to
    be logged in to in a way in which nothing can be deployed.
    """
    # Within pyinfra's command line there is a state already; elsewhere pyinfra wants one.
    context = nullcontext() if ctx_state.isset() else ctx_state.use(State())
    try:
        with context:
            inventory: Inventory = make_inventory(
                path,
                cwd=str(Path.cwd()),
                override_data=dict(override or {}),
                group_data_directories=group_data,
            )
    except SyntaxError as error:
        raise WrongData([f"{error.filename} line {error.lineno}: {error.msg}"]) from None
    except UnexpectedExternalError as error:
        cause = error.exception
        line = traceback.extract_tb(cause.__traceback__)[-1].lineno
        raise WrongData(
            [f"{error.filename} line {line}: {type(cause).__name__}: {cause}"]
        ) from None
    except UnicodeDecodeError as error:
        wrong = next((each for each in _files(path, group_data) if not _is_utf8(each)), path)
        raise WrongData([f"{wrong}: not in UTF-8 ({error.reason}); save it as UTF-8"]) from None
    except (CliError, TypeError, AttributeError, ValueError) as error:
        raise WrongData([f"{path}: not a list of VPSes ({error}); {RIGHT}"]) from None
    except PyinfraError as error:
        raise WrongData([f"{path}: {error}"]) from None
    if not len(inventory):
        raise WrongData([f"{path}: there is no VPS in it; {RIGHT}"])
    check_logins(inventory)
    for warning in stray_group_data(inventory, _group_files(path, group_data)):
        warn(warning)
    return inventory


def stray_group_data(inventory: Inventory, files: Iterable[Path]) -> Iterable[str]:
    """A sentence for each file of group data that is of no group, so that nobody reads it."""
    groups = {"all", *(name for name, hosts in inventory.groups.items() if hosts)}
    for file in files:
        if file.stem not in groups:
            close = difflib.get_close_matches(file.stem, groups, n=1)
            known = ", ".join(sorted(groups))
            right = f"did you mean {close[0]}.py?" if close else f"the groups are {known}"
            yield (
                f"{file}: no VPS of the inventory is in a group {file.stem!r}, so nobody reads this"
                f" file; {right}"
            )


def _group_files(path: str, group_data: tuple[str, ...]) -> list[Path]:
    """The files of group data that pyinfra looks at."""
    folders = [Path("group_data"), Path(path).parent / "group_data", *map(Path, group_data)]
    there = {file.resolve(): file for folder in folders for file in sorted(folder.glob("*.py"))}
    return [*there.values(), *(each for each in map(Path, group_data) if each.is_file())]


def _files(path: str, group_data: tuple[str, ...]) -> list[Path]:
    """The files that make up the data."""
    return [Path(path), *_group_files(path, group_data)]


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True
