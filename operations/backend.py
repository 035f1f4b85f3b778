# SPDX-License-Identifier: GPL-3.0-or-later
"""testinfra over pyinfra's connections: `host.service(...)` and its like on any host that a deploy
reaches, however it logs in and becomes root."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.context import ctx_host, ctx_state
from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host as TestinfraHost

from home_forwarder.render import sent_source_of
from operations.sending import Call, run


class PyinfraBackend(BaseBackend):  # type: ignore[misc]
    """Commands of testinfra, run as pyinfra runs its own: with the inventory's _sudo and its like."""

    NAME = "pyinfra"

    def __init__(self, state: State, host: Host) -> None:
        super().__init__(host.name)
        self._at = (state, host)

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        """Run a command of sh; of `args` each replaces a %s, quoted.

        Raises: NotUnderstood and what else operations.sending.run() raises, if the host fails.
        """
        line = self.get_command(command, *args)
        state, host = self._at
        with ctx_state.use(state), ctx_host.use(host):
            done = run(state, host, Call(sent_source_of("run_command.py"), (line,)))
        return self.result(
            done["status"], line.encode(), b64decode(done["stdout"]), b64decode(done["stderr"])
        )


def testinfra_host(state: State, host: Host) -> TestinfraHost:
    """testinfra's view of a connected host of pyinfra."""
    backend = PyinfraBackend(state, host)
    result = TestinfraHost(backend)
    backend.set_host(result)
    return result
