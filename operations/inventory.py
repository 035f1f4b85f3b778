# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory as pyinfra's command line would load it, for a look at the data before connecting."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State
from pyinfra.context import ctx_state
from pyinfra_cli.exceptions import CliError, UnexpectedExternalError
from pyinfra_cli.inventory import make_inventory
from pyinfra_cli.util import parse_cli_arg

from operations.data import WrongData, check_all

DEPLOYS = ("deploy.py",)
"""Deploy files that need good data; undeploying does not."""
RIGHT = 'write vps = [("203.0.113.1", {"ssh_user": "root"})], or a host name'


def check_before_connecting(parameters: Mapping[str, Any]) -> None:
    """Check all data if one of our deploys is about to run.

    parameters: those of pyinfra's command line, by their click names.
    Raises: WrongData.
    """
    if not any(Path(name).name in DEPLOYS for name in parameters["operations"]):
        return
    data = dict(item.partition("=")[::2] for item in parameters["data"])
    if parameters.get("ssh_port"):
        data["ssh_port"] = str(parameters["ssh_port"])
    check_all(
        load_inventory(
            parameters["inventory"],
            {key: parse_cli_arg(value) for key, value in data.items()},
            parameters["group_data"],
        )
    )


def load_inventory(
    path: str, override: Mapping[str, Any] | None = None, group_data: tuple[str, ...] = ()
) -> Inventory:
    """Load an inventory file with its group data.

    Raises: WrongData if a file cannot be read as Python, with the file and line.
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
    return inventory


def _files(path: str, group_data: tuple[str, ...]) -> list[Path]:
    """The files that make up the data."""
    folders = [Path("group_data"), Path(path).parent / "group_data", *map(Path, group_data)]
    return [Path(path), *(file for folder in folders for file in sorted(folder.glob("*.py")))]


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True
