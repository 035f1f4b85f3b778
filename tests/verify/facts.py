# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of a VPS: what two remote commands say of it, gathered once, however much it forwards."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import testinfra
from pyinfra.api.host import Host
from pyinfra.connectors.local import LocalConnector
from pyinfra.connectors.ssh import SSHConnector

from home_forwarder.compare import Changes, Observed, compare, problems
from home_forwarder.config import Config
from home_forwarder.plan import OWNED_FILES, OWNED_UNITS, File, Plan, make_plan
from home_forwarder.render import sent_program
from operations.data import config_of
from operations.facts import WITHOUT_PYTHON

LOOK_CLOSER = Path(__file__).parent / "remote" / "look_closer.py"
CONNECT_SECONDS = 10
LOOK_SECONDS = 60
JOURNAL_LINES = 4


class NotReached(Exception):
    """Nothing can be said of a VPS; the text says why, without its name."""


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


@dataclass(frozen=True)
class Target:
    """One VPS of the inventory: what it must look like, and how it is reached."""

    name: str
    config: Config
    plan: Plan
    remote: Any = field(repr=False)
    """testinfra's host."""

    @classmethod
    def of(cls, host: Host, control_path: Path) -> Target:
        """From a host of pyinfra's inventory, whose data has been checked.

        Raises: ValueError for a host that is neither reached over ssh nor local.
        """
        config = config_of(host)
        sudo = {"sudo": bool(host.data.get("_sudo")), "sudo_user": host.data.get("_sudo_user")}
        if issubclass(host.connector_cls, LocalConnector):
            remote = testinfra.get_host("local://", **sudo)
            return cls(host.name, config, make_plan(config), remote)
        if not issubclass(host.connector_cls, SSHConnector):
            raise ValueError(
                f"{host.name}: only hosts reached over ssh, and @local, can be verified"
            )
        given = _ssh_arguments(host, control_path)
        remote = testinfra.get_host(_ssh_spec(host), timeout=CONNECT_SECONDS, **given, **sudo)
        return cls(host.name, config, make_plan(config), remote)

    def gather(self) -> Facts:
        """Look at the VPS. Raises: NotReached."""
        seen = Observed.from_json(
            self._python(
                sent_program("observe.py"), OWNED_FILES, OWNED_UNITS, otherwise=WITHOUT_PYTHON
            )
        )
        if not (seen.systemd and seen.root and seen.python):
            why = problems(self.plan, seen) or ["python3 is not installed; a deploy installs it"]
            raise NotReached(f"cannot be looked at: {'; '.join(why)}")
        more = self._python(LOOK_CLOSER.read_text(encoding="utf-8"))
        processes = {unit: Process(**each) for unit, each in more.pop("processes").items() if each}
        return Facts(seen=seen, processes=processes, **more)

    def _python(self, source: str, *arguments: str, otherwise: str = "false") -> dict[str, Any]:
        """Run a program of ours there, or else a shell command, and return the JSON it prints."""
        words = [source, *arguments]
        command = (
            f"if command -v python3 >/dev/null; then timeout {LOOK_SECONDS} python3 -IS -c"
            + " %s" * len(words)
            + f"; else {otherwise.replace('%', '%%')}; fi"
        )
        try:
            result = self.remote.run(command, *words)
        except RuntimeError as error:  # testinfra's way to say that ssh itself failed
            said = _last_line(error.args[0].stderr_bytes)
            raise NotReached(f"could not be reached: {said}") from None
        try:
            data: dict[str, Any] = json.loads(result.stdout_bytes)
        except ValueError:
            said = _last_line(result.stderr_bytes) or f"exit status {result.rc}, and no JSON"
            raise NotReached(f"cannot be looked at: {said}") from None
        return data

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
        except RuntimeError:
            return ""
        return str(result.stdout_bytes.decode(errors="replace"))


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

    def is_content_of(self, file: File) -> bool:
        """Has the file there the declared content?"""
        return file.has_content(self.seen.files[file.path]["sha256"])

    @cached_property
    def changes(self) -> Changes:
        """What a deploy would do."""
        return compare(self.target.plan, self.seen)

    @cached_property
    def problems(self) -> list[str]:
        """Why a deploy would refuse this VPS."""
        return problems(self.target.plan, self.seen)


def _ssh_spec(host: Host) -> str:
    address = str(host.data.get("ssh_hostname") or host.name)
    user, port = host.data.get("ssh_user"), host.data.get("ssh_port")
    return (
        "ssh://"
        + (f"{quote(user, safe='')}@" if user else "")
        + (f"[{address}]" if ":" in address else quote(address, safe=""))
        + (f":{port}" if port else "")
    )


def _ssh_arguments(host: Host, control_path: Path) -> dict[str, Any]:
    """What testinfra must know to reach a host as pyinfra does."""
    key, config_file = host.data.get("ssh_key"), host.data.get("ssh_config_file")
    known_hosts = host.data.get("ssh_known_hosts_file")
    default = SSHConnector.data_meta["ssh_strict_host_key_checking"].default
    options = {
        "BatchMode": "yes",  # ask nothing: nobody is there to answer
        "StrictHostKeyChecking": host.data.get("ssh_strict_host_key_checking", default),
        "ControlMaster": "auto",
        "ControlPersist": "60",
        "ControlPath": control_path,
        "ServerAliveInterval": "10",
    }
    if known_hosts:
        options["UserKnownHostsFile"] = Path(known_hosts).expanduser()
    if key:
        options["IdentitiesOnly"] = "yes"
    return {
        "ssh_config": str(Path(config_file).expanduser()) if config_file else None,
        "ssh_identity_file": str(Path(key).expanduser()) if key else None,
        "ssh_extra_args": shlex.join(
            word for name, value in options.items() for word in ("-o", f"{name}={value}")
        ),
    }


def _last_line(said: bytes) -> str:
    """What a failing command said at last; nothing if it said nothing."""
    return said.decode(errors="replace").strip().rpartition("\n")[2].strip()
