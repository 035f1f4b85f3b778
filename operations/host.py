# SPDX-License-Identifier: GPL-3.0-or-later
"""One host of a deploy: its plan, and whether it can be deployed to."""

from __future__ import annotations

from pyinfra import host, logger, state
from pyinfra.context import ctx_host

from home_forwarder.compare import problems
from home_forwarder.config import Config, DataError
from home_forwarder.plan import Plan
from operations.data import WrongData, config_of
from operations.facts import before


def checked_config() -> Config:
    """The current host's data. Raises: WrongData."""
    try:
        return config_of(ctx_host.get())
    except DataError as error:
        raise WrongData(f"{host.name}: {mistake}" for mistake in error.mistakes) from None


def can_deploy(plan: Plan) -> bool:
    """Say what stands against deploying to the current host, if anything, and leave it out then.

    The other hosts are deployed all the same (promise 14).
    """
    found = problems(plan, before())
    for problem in found:
        host.log_styled(problem, fg="red", log_func=logger.error)
    if found:
        state.fail_hosts({ctx_host.get()})
    return not found


def switch_is_on(key: str) -> bool:
    """Is `key` of the current host's data switched on? Undeploying does not need the other keys."""
    return str(host.data.get(key, "no")).lower() in ("on", "yes", "true")
