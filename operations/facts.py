# SPDX-License-Identifier: GPL-3.0-or-later
"""One bulk fact: all that a deploy needs to know of a VPS, in one remote command (promise 13)."""

from __future__ import annotations

import json
from typing import Any
from weakref import WeakKeyDictionary

from pyinfra import host, state
from pyinfra.api import FactBase, QuoteString, StringCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.host import Host
from pyinfra.context import ctx_host

from home_forwarder.compare import Observed
from home_forwarder.plan import OWNED_FILES, OWNED_UNITS
from home_forwarder.render import sent_program

# What can be said without Python: enough to refuse the host, or to install Python there.
WITHOUT_PYTHON = (
    "systemd=false; [ -d /run/systemd/system ] && systemd=true; "
    'root=false; [ "$(id -u)" = 0 ] && root=true; '
    'manager=; for each in apt-get dnf; do command -v $each >/dev/null && manager="\\"$each\\""; done; '
    'printf \'{"systemd": %s, "root": %s, "manager": [%s]}\\n\' $systemd $root "$manager"'
)


class HostState(FactBase[Observed]):
    """A VPS as it is: our files and units, who listens where, what is installed."""

    def command(self) -> StringCommand:
        return StringCommand(
            "if command -v python3 >/dev/null; then python3 -IS -c",
            QuoteString(sent_program("observe.py")),
            QuoteString(OWNED_FILES),
            QuoteString(OWNED_UNITS),
            ";else",
            WITHOUT_PYTHON,
            ";fi",
        )

    @staticmethod
    def default() -> Observed:
        return Observed()

    def process(self, output: list[str]) -> Observed:
        try:
            data: dict[str, Any] = json.loads("\n".join(output))
        except ValueError as error:
            raise FactProcessError(f"the VPS answered something else than JSON: {error}") from error
        return Observed.from_json(data)


_prepared: WeakKeyDictionary[Host, Observed] = WeakKeyDictionary()


def observe() -> Observed:
    """The current host as it is now."""
    return host.get_fact(HostState) if state.is_executing else before()


def before() -> Observed:
    """The current host as it was before this deploy changed anything; read once."""
    this = ctx_host.get()
    if this not in _prepared:
        _prepared[this] = host.get_fact(HostState)
    return _prepared[this]
