# SPDX-License-Identifier: GPL-3.0-or-later
"""The deploys: to make a VPS forward as declared, and to take all of it away again."""

from __future__ import annotations

from pyinfra import host, logger, state
from pyinfra.context import ctx_host

from home_forwarder.compare import NO_CHANGES, compare, problems
from home_forwarder.config import Config
from home_forwarder.mistakes import DataError
from home_forwarder.outlook import losses, new_limits, other_programs
from home_forwarder.plan import Plan
from home_forwarder.planning import make_plan
from home_forwarder.values import parse_switch
from operations.command_line import answer_questions, check_in_deploy
from operations.data import WrongData, config_of
from operations.facts import NotSeen, seen_first
from operations.packages import install_packages
from operations.preflight import warn_about_names
from operations.reach import warn_about_ways
from operations.sending import lines_of
from operations.system import match_plan, remove_state


def deploy() -> None:
    """Make the current host forward as declared."""
    check_in_deploy()
    config = _checked_config()
    plan = make_plan(config)
    if not _can_deploy(plan):
        return
    seen = seen_first(plan)
    if config.preflight:
        warn_about_names(config, seen)
    if compare(plan, seen) != NO_CHANGES:
        _say_what_goes(plan)
    install_packages(name="Install the packages", packages=plan.packages, seen=seen)
    match_plan(name="Make this VPS as declared", plan=plan)
    if config.reach:
        warn_about_ways(name="See whether the homes answer", config=config)


def take_away() -> None:
    """Take everything of ours away from the current host. Packages stay: others may use them by now."""
    answer_questions()
    nothing = Plan()
    remove = _switch("remove_state")
    if not _can_deploy(nothing):
        return
    if not seen_first(nothing).python:
        _refuse("there is no python3 here to see with what is ours; install it, and undeploy again")
        return
    install_packages(
        name="Let the distribution's services go", packages=(), seen=seen_first(nothing)
    )
    match_plan(name="Stop and delete everything", plan=nothing)
    if remove:
        remove_state(name="Delete the known addresses and waiting messages")


def _checked_config() -> Config:
    """The current host's data. Raises: WrongData."""
    try:
        return config_of(ctx_host.get())
    except DataError as error:
        raise WrongData(f"{host.name}: {mistake}" for mistake in error.mistakes) from None


def _can_deploy(plan: Plan) -> bool:
    """Say what stands against deploying to the current host, if anything, and leave it out then.

    The other hosts are deployed all the same (promise 14).
    """
    try:
        found = problems(plan, seen_first(plan))
    except NotSeen:
        return False
    if found:
        _refuse(*found)
    return not found


def _refuse(*why: str) -> None:
    """Leave the current host out, and say why."""
    for line in why:
        host.log_styled(line, fg="red", log_func=logger.error)
    state.fail_hosts({ctx_host.get()})


def _say_what_goes(plan: Plan) -> None:
    seen = seen_first(plan)
    for text in (*losses(plan, seen), *other_programs(plan, seen), *new_limits(plan, seen)):
        host.log_styled(" ".join(lines_of(text)), fg="yellow", log_func=logger.warning)


def _switch(key: str) -> bool:
    """One key of the current host's data; undeploying does not need the others. Raises: WrongData."""
    try:
        return parse_switch(host.data.get(key, False))
    except ValueError as error:
        raise WrongData([f"{host.name}: {key}: {error}"]) from None
