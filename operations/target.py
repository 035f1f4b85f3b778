# SPDX-License-Identifier: GPL-3.0-or-later
"""One VPS of the inventory: what it must look like, and what a few remote commands say of it, however
much it forwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from paramiko import SSHException
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.state import State
from testinfra.host import Host as TestinfraHost

from home_forwarder.compare import Changes, Observed, compare, problems
from home_forwarder.config import Config
from home_forwarder.plan import File, Plan
from home_forwarder.planning import make_plan
from home_forwarder.reach import Reached
from home_forwarder.render import sent_source_of
from operations.backend import testinfra_host
from operations.data import config_of
from operations.facts import Question, state_call
from operations.from_here import Tries, try_from_here
from operations.reach import look
from operations.sending import Call, NotUnderstood, run
from operations.visit import NotReached

LOOK_SECONDS = 60
JOURNAL_LINES = 4


@dataclass(frozen=True)
class Process:
    """The main process of a unit."""

    uids: list[int]
    """Real, effective, saved, file system."""
    capabilities: Mapping[str, int]
    """CapEff and its like of /proc/PID/status, a bit for each capability."""
    no_new_privileges: bool
    environment: Mapping[str, str]
    """What begins with HOME_ or FORWARD_."""


@dataclass(frozen=True)
class Facts:
    """One VPS as it is."""

    seen: Observed
    enabled: Mapping[str, str]
    """What `systemctl is-enabled` says, by unit."""
    updater: Mapping[str, str]
    """Properties of home-address-updater.service."""
    processes: Mapping[str, Process]
    """By unit."""
    remote: TestinfraHost = field(repr=False)
    """For what else is to be asked."""
    reached: Reached | None = None
    """The way to the homes, and in; None if nobody wanted to know."""
    from_here: Tries = field(default_factory=dict)
    """What came of trying the forwards from this machine."""

    def journal(self, unit: str) -> list[str]:
        """The last lines of a unit's journal, for a message."""
        command = f"journalctl --unit=%s --lines={JOURNAL_LINES} --no-pager --output=cat"
        return [f"    {line}" for line in self._text(command, unit).splitlines()]

    def read(self, path: str) -> str:
        """A file's text, for a message."""
        return self._text("cat -- %s", path)

    def _text(self, command: str, argument: str) -> str:
        try:
            result = self.remote.run(command, argument)
        except (NotUnderstood, PyinfraError, OSError, SSHException):
            return ""
        return str(result.stdout_bytes.decode(errors="replace"))


@dataclass(frozen=True)
class Target:
    """What a VPS must look like."""

    name: str
    config: Config
    plan: Plan

    @classmethod
    def of(cls, host: Host) -> Target:
        """From a host of pyinfra's inventory, whose data has been checked."""
        config = config_of(host)
        return cls(host.name, config, make_plan(config))

    def gather(
        self, state: State, host: Host, *, reach: bool = True, from_here: bool = False
    ) -> Facts:
        """Look at the VPS, which is connected to.

        reach: see whether the homes answer it, too. from_here: try its forwards as a client does.
        Raises: NotReached, NotUnderstood; what else operations.sending.run() raises.
        """
        seen = self._observe(state, host)
        if not (seen.systemd and seen.root and seen.python):
            why = problems(self.plan, seen) or ["python3 is not installed; a deploy installs it"]
            raise NotReached(f"cannot be looked at: {'; '.join(why)}")
        more = run(state, host, Call(sent_source_of("look_closer.py")), timeout=LOOK_SECONDS)
        if more.pop("waited"):
            seen = self._observe(state, host)
        processes = {unit: Process(**each) for unit, each in more.pop("processes").items() if each}
        reached, tries = None, {}
        if self.config.forwards and (reach or from_here):
            reached = look(state, host, self.config)
        if reached and from_here:
            tries = try_from_here(state, host, self.config, self.plan, reached)
        return Facts(
            seen=seen,
            processes=processes,
            remote=testinfra_host(state, host),
            reached=reached,
            from_here=tries,
            **more,
        )

    def _observe(self, state: State, host: Host) -> Observed:
        call = state_call(Question(self.plan))
        return Observed.from_json(run(state, host, call, timeout=LOOK_SECONDS))


@dataclass(frozen=True)
class Vps:
    """A VPS that was reached: what it must look like, and what it looks like."""

    target: Target
    facts: Facts

    @property
    def name(self) -> str:
        """As the inventory has it."""
        return self.target.name

    @property
    def seen(self) -> Observed:
        """What a deploy would see."""
        return self.facts.seen

    @property
    def remote(self) -> Any:
        """testinfra's host."""
        return self.facts.remote

    def is_content_of(self, file: File) -> bool:
        """Has the file there the declared content?"""
        digest = self.seen.files[file.path].sha256
        return digest is not None and file.accepts(digest)

    @cached_property
    def changes(self) -> Changes:
        """What a deploy would do."""
        return compare(self.target.plan, self.seen)

    @cached_property
    def problems(self) -> list[str]:
        """Why a deploy would refuse this VPS."""
        return problems(self.target.plan, self.seen)
