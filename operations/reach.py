# SPDX-License-Identifier: GPL-3.0-or-later
"""Is a VPS's way to the homes open? Asked after a deploy, and by a verification."""

from __future__ import annotations

import json

from pyinfra import host, logger, state
from pyinfra.api import operation
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.context import ctx_host, ctx_state

from home_forwarder.config import Config
from home_forwarder.reach import Reached, question, summary_of, warnings
from home_forwarder.render import sent_source_of
from operations.facts import Commands
from operations.sending import Call, lines_of, run
from operations.system import NOT_KNOWN

SECONDS = 30
"""For a VPS to answer; its own attempts end after 3."""


def look(state: State, host: Host, config: Config) -> Reached:
    """What one remote command says of a VPS that is connected to.

    Raises: TypeError and its like if that is not understood; what operations.sending.run() raises.
    """
    call = Call(sent_source_of("reach.py"), (json.dumps(question(config)),))
    return Reached.from_json(run(state, host, call, timeout=SECONDS))


@operation()
def warn_about_ways(config: Config) -> Commands:
    """
    Say whether the homes answer the VPS, and whether its own rules let clients in. Changes nothing.

    + config: the data of the VPS

    It is the last of a deploy: nothing stops it, since the VPS is as declared, and a home may be off.

    **Example:**

    .. code:: python

        warn_about_ways(name="See whether the homes answer", config=config)
    """
    if state.is_executing and config.forwards:
        try:
            reached = look(ctx_state.get(), ctx_host.get(), config)
            troubles = list(warnings(config, reached))
            well = summary_of(config, reached)
        except (*NOT_KNOWN, KeyError, TypeError, ValueError, AttributeError) as error:
            well, troubles = "", [f"could not be seen whether the homes answer: {error}"]
        if well:
            host.log(" ".join(lines_of(well)), logger.info)
        for text in troubles:
            host.log_styled(" ".join(lines_of(text)), fg="yellow", log_func=logger.warning)
    host.noop("nothing is changed by looking")
    yield from ()
