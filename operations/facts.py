# SPDX-License-Identifier: GPL-3.0-or-later
"""One bulk fact: all that a deploy needs to know of a VPS, in one remote command (promise 13)."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from functools import wraps
from typing import ParamSpec
from weakref import WeakKeyDictionary

from pyinfra import logger, state
from pyinfra.api import FactBase, StringCommand
from pyinfra.api.arguments import ConnectorArguments
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.context import ctx_host

from home_forwarder.compare import Observed
from home_forwarder.plan import Plan
from home_forwarder.planning import question
from home_forwarder.render import sent_source_of
from operations.connecting import NoPassword, objection
from operations.sending import Call, NotUnderstood

# What can be said without Python: enough to refuse the host, or to install Python there.
WITHOUT_PYTHON = (
    "systemd=false; [ -d /run/systemd/system ] && systemd=true; "
    'root=false; [ "$(id -u)" = 0 ] && root=true; '
    'manager=; for each in apt-get dnf; do command -v $each >/dev/null && manager="\\"$each\\""; done; '
    'printf \'{"systemd": %s, "root": %s, "manager": [%s]}\\n\' $systemd $root "$manager"'
)


LOOK_SECONDS = 120
"""A VPS that does not answer for so long must not keep the others waiting (promise 14)."""
NOTHING = Observed()
"""What pyinfra makes of a look that failed, or of an answer without a line."""

P = ParamSpec("P")
Commands = Generator[PyinfraCommand, None, None]


class NotSeen(Exception):
    """The current host could not be looked at; it was said why, and the host has failed."""


class Question:
    """What a VPS is asked. It stands in messages of pyinfra, where all of it would be a page."""

    def __init__(self, plan: Plan) -> None:
        self.text = json.dumps(question(plan))

    def __repr__(self) -> str:
        return "what is ours"


def state_call(asked: Question) -> Call:
    """What shows a VPS as a deploy sees it: an Observed in JSON."""
    return Call(sent_source_of("observe.py"), (asked.text,), otherwise=WITHOUT_PYTHON)


class HostState(FactBase[Observed]):
    """A VPS as it is: our files and units, who listens where, what is installed."""

    def command(self, asked: Question) -> StringCommand:
        self._call = state_call(asked)
        return self._call.command()

    @staticmethod
    def default() -> Observed:
        return NOTHING

    def process(self, output: list[str]) -> Observed:
        try:
            return Observed.from_json(self._call.answer(output))
        except NotUnderstood as error:
            raise FactProcessError(str(error)) from None
        except Exception as error:  # whatever a VPS says concerns that VPS alone (promise 14)
            raise FactProcessError(
                f"what the VPS answered is not understood: {type(error).__name__}: {error}"
            ) from error


_first: WeakKeyDictionary[Host, Observed] = WeakKeyDictionary()


def seen_now(plan: Plan) -> Observed:
    """The current host as it is now. Raises: NotSeen; the host has failed then, and it was said why."""
    this = ctx_host.get()
    try:
        seen: Observed = this.get_fact(HostState, asked=Question(plan), _timeout=LOOK_SECONDS)
    except NoPassword as error:
        raise _failed(this, str(error)) from None
    if seen is not NOTHING:
        return seen
    if this in state.active_hosts:  # pyinfra takes no output at all for a good answer
        raise _failed(this, "the VPS answered nothing")
    raise NotSeen(this.name)


def seen_first(plan: Plan) -> Observed:
    """The current host as it was before this deploy changed anything; read once. Raises: NotSeen."""
    this = ctx_host.get()
    if this not in _first:
        against = objection(state, this)
        if against:
            raise _failed(this, against)
        _first[this] = seen_now(plan)
    return _first[this]


def _failed(this: Host, why: str) -> NotSeen:
    """Let a host fail, and say why."""
    this.log_styled(why, fg="red", log_func=logger.error)
    state.fail_hosts({this})
    return NotSeen(this.name)


def contained(commands: Callable[P, Commands]) -> Callable[P, Commands]:
    """Of an operation: fail on this host alone if the host cannot be looked at (promise 14)."""

    @wraps(commands)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Commands:
        try:
            yield from commands(*args, **kwargs)
        except NotSeen:
            yield _Failed()

    return wrapper


class _Failed(PyinfraCommand):
    """A command that has failed already."""

    def execute(self, state: State, host: Host, connector_arguments: ConnectorArguments) -> bool:
        return False
