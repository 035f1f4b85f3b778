# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of pyinfra as a whole: what is checked before it connects, and who answers its questions.

pyinfra reads config.py of the working directory only. A deploy that is run from another one has not
been checked when it connects, so the deploy's own first statement checks once more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TextIO
from weakref import WeakSet

import click
from pyinfra.api.exceptions import NoGroupError, PyinfraError
from pyinfra.api.inventory import Inventory
from pyinfra.context import ctx_inventory
from pyinfra_cli.exceptions import CliError
from pyinfra_cli.util import parse_cli_arg

from operations.data import WrongData, check_all
from operations.inventory import load_inventory

PROJECT = Path(__file__).resolve().parent.parent
DEPLOYS = ("deploy.py",)
"""Deploy files that need good data; undeploying does not."""
OURS = (*DEPLOYS, "undeploy.py")

_checked: WeakSet[Inventory] = WeakSet()


class SeenLate(WrongData):
    """Wrong data that was seen after connecting, since pyinfra has read no config.py."""

    outcome = (
        "no host was changed (they were connected to, since pyinfra finds config.py only in the"
        " directory in which it is run)"
    )


class NobodyAnswers(PyinfraError, CliError):  # type: ignore[misc]
    """pyinfra has a question, and standard input has no answer; shown as one sentence."""

    def __init__(self) -> None:
        super().__init__(
            "pyinfra needs an answer to this, and there is no terminal to answer from; nothing more"
            " was done. A deploy asks nothing with -y; a password for sudo can be in inventory.py as"
            " _sudo_password"
        )

    def show(self, file: Any = None) -> None:
        click.echo(err=True, file=file)  # the question has no end of line
        click.secho(f"--> {self.message}", fg="red", bold=True, err=True, file=file)


class Answers:
    """Standard input that is no terminal: its end is a sentence for the user, not an EOFError."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def readline(self, size: int = -1) -> str:
        """The next line. Raises: NobodyAnswers at the end of the input."""
        line = self._stream.readline(size) if self._stream else ""
        if not line:
            raise NobodyAnswers
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def check_before_connecting(parameters: Mapping[str, Any]) -> None:
    """Check all that can be checked if one of our deploys is about to run. For config.py.

    parameters: those of pyinfra's command line, by their click names.
    Raises: WrongData.
    """
    answer_questions()
    files = [Path(name) for name in parameters["operations"] if Path(name).name in OURS]
    if not files:
        return
    check_checkout(files)
    data = dict(item.partition("=")[::2] for item in parameters["data"])
    if parameters.get("ssh_port"):
        data["ssh_port"] = str(parameters["ssh_port"])
    inventory = load_inventory(
        parameters["inventory"],
        {key: parse_cli_arg(value) for key, value in data.items()},
        parameters["group_data"],
    )
    check_patterns(inventory, {key: parameters[key] for key in ("limit", "exclude")})
    if any(file.name in DEPLOYS for file in files):
        check_all(inventory)


def check_in_deploy() -> None:
    """The first statement of a deploy: all data of all hosts is good, also where config.py was not
    read. Raises: SeenLate.
    """
    answer_questions()
    inventory = ctx_inventory.get()
    if inventory in _checked:
        return
    try:
        check_all(inventory)
    except WrongData as error:
        raise SeenLate(error.mistakes) from None
    _checked.add(inventory)


def check_checkout(files: Iterable[Path]) -> None:
    """The deploy files are of the checkout whose config.py was read. Raises: WrongData."""
    for file in files:
        there = file.resolve().parent
        if (there / "operations").is_dir() and not (there / "operations").samefile(
            PROJECT / "operations"
        ):
            raise WrongData(
                [f"{file} is of another checkout than {PROJECT / 'config.py'}; run it in {there}"]
            )


def check_patterns(inventory: Inventory, patterns: Mapping[str, Iterable[str]]) -> None:
    """Each value of --limit and --exclude is a group of the inventory or fits a host.

    pyinfra itself warns, does nothing, and ends well. Raises: WrongData.
    """
    mistakes = []
    for option, values in patterns.items():
        for value in values:
            try:
                found = bool(inventory.get_group(value))
            except NoGroupError:
                found = any(fnmatch(host.name, value) for host in inventory)
            if not found:
                names = ", ".join(host.name for host in inventory)
                mistakes.append(
                    f"--{option} {value}: the inventory has no such host; it has {names}"
                )
    if mistakes:
        raise WrongData(mistakes)


def answer_questions() -> None:
    """Where nobody can answer pyinfra's questions, say so in a sentence."""
    if sys.stdin is None or not (isinstance(sys.stdin, Answers) or sys.stdin.isatty()):
        sys.stdin = Answers(sys.stdin)
