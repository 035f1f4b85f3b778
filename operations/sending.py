# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs of ours that are sent to a VPS and run there, whoever logs in and whatever the login says.

Between us and a program are a login shell that need not be a Bourne shell (csh, tcsh, fish), sudo or
su, and texts that are printed at login. So a program travels as one line in which the only characters
with a meaning to any shell are some that all of them read alike, and what it answers comes after a
mark that nobody can have printed before.
"""

from __future__ import annotations

import json
import secrets
import zlib
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api import StringCommand
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS, pop_global_arguments
from pyinfra.api.host import Host
from pyinfra.api.state import State

SHOWN = 200
"""Characters of a strange answer that are shown."""
COMPLAINTS = ("sudo: ", "sudo-rs: ", "su: ", "doas: ", "dzdo: ")
"""Lines that say more than any before them, such as sudo's lecture."""

# It stands between double quotes, and those in single quotes: so there is no newline, backslash,
# quote, ! (history of csh), $ or ` in it. A program's source may hold all of them.
_BOOTSTRAP = (
    "import base64,json,sys,zlib;"
    "print();print(sys.argv.pop(),flush=True);"
    "_,p,a=sys.argv[:3];"
    "sys.argv[1:]=json.loads(base64.b64decode(a));"
    "exec(zlib.decompress(base64.b64decode(p)),dict(__name__=__name__))"
)
_NO_PYTHON = "echo there is no python3 here >&2; exit 127"


class NotUnderstood(Exception):
    """What a VPS said is no answer of ours; the text quotes it, without the VPS's name."""


@dataclass(frozen=True)
class Call:
    """A program that answers with an object in JSON, on standard output."""

    source: str
    arguments: tuple[str, ...] = ()
    otherwise: str = ""
    _mark: str = field(default_factory=lambda: f"home-forwarder-{secrets.token_hex(8)}")

    def command(self) -> StringCommand:
        """The line that runs it: the mark, then the answer. Anyone on the VPS can see the arguments; what
        is for the program's eyes only goes through standard input."""
        words = [
            "python3 -IS -c",
            f'"{_BOOTSTRAP}"',
            _base64(zlib.compress(self.source.encode(), 9)),
            _base64(json.dumps(list(self.arguments)).encode()),
            self._mark,
        ]
        instead = _NO_PYTHON
        if self.otherwise:
            script = _base64(self.otherwise.encode())
            instead = f"echo; echo {self._mark}; echo {script} | base64 -d | sh"
        return StringCommand(
            f"if command -v python3 >/dev/null; then exec {' '.join(words)}; else {instead}; fi"
        )

    def answer(self, lines: Iterable[str], errors: Iterable[str] = ()) -> dict[str, Any]:
        """What the program answered, whatever was said before or after it.

        lines: of standard output, without their ends; errors: of standard error.
        Raises: NotUnderstood, if it did not answer.
        """
        said = [line.rstrip("\r") for line in lines]
        errors = list(errors)
        if self._mark not in said:
            raise NotUnderstood(_quoted(said, errors))
        after = said[said.index(self._mark) + 1 :]
        for number, line in enumerate(after):
            if line.startswith("{"):
                try:
                    found = json.JSONDecoder().raw_decode("\n".join(after[number:]))[0]
                except ValueError:
                    continue
                return dict(found)
        # It ran: of a traceback the last line is the one that tells.
        raise NotUnderstood(_quoted(after, errors[::-1]))


def run(
    state: State,
    host: Host,
    call: Call,
    stdin: str | None = None,
    *,
    timeout: int | None = None,
    as_login: bool = False,
) -> dict[str, Any]:
    """Run a program on a connected host as a deploy would run it, and return its answer.

    timeout: seconds. as_login: as the user who logs in, without sudo and its like.
    Raises: NotUnderstood; OSError (TimeoutError), paramiko's SSHException or pyinfra's PyinfraError if
    it could not be run.
    """
    settings, _ = pop_global_arguments(state, host, {})
    keys = ("_shell_executable",) if as_login else CONNECTOR_ARGUMENT_KEYS
    arguments: dict[str, Any] = {key: settings[key] for key in keys if key in settings}  # type: ignore[literal-required]
    if stdin is not None:
        arguments["_stdin"] = stdin
    if timeout is not None:
        arguments["_timeout"] = timeout
    _, output = host.run_shell_command(
        call.command(),
        print_output=state.print_fact_output,
        print_input=state.print_fact_input,
        **arguments,
    )
    return call.answer(output.stdout_lines, output.stderr_lines)


def lines_of(said: object) -> list[str]:
    """What a VPS said, for the operator's terminal: lines in which nothing but text is left."""
    return ["".join(filter(str.isprintable, line)) for line in str(said).splitlines()]


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def _quoted(lines: Iterable[str], errors: Iterable[str]) -> str:
    """A sentence with the line that tells most."""
    both = [*filter(str.strip, lines), *filter(str.strip, errors)]
    telling = next((line for line in both if line.startswith(COMPLAINTS)), None)
    if telling is None and not both:
        return "the VPS answered nothing"
    text = "".join(filter(str.isprintable, (telling or both[0]).strip()))
    return f"the VPS answered «{text[:SHOWN]}»"
