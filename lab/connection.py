# SPDX-License-Identifier: GPL-3.0-or-later
"""What one does with a VPS over ssh, from the operator: run commands, read and write files."""

from __future__ import annotations

import os
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError
from lab.host import Operator, Site, finish
from lab.processes import Process, end

CONNECT_TIMEOUT = 20.0
"""Seconds; twice as long as ssh itself tries (ConnectTimeout of the operator), so that it can say why
it failed."""


class Connection:
    """The way to one VPS over ssh; all commands of a user share one connection, opened when needed.

    name: the VPS's
    """

    def __init__(self, site: Site, name: str, operator: Operator) -> None:
        self.site = site
        self.name = name
        self.operator = operator
        self._lock = threading.Lock()
        self._masters: dict[str, Process] = {}

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,
        timeout: float | None = 120,
        user: str = "root",
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command, or a list of arguments, over ssh to its end.

        user: "root", or "admin" who may use sudo without a password
        timeout: seconds; what runs on the VPS may go on afterwards
        check: whether it must end well

        Returns: its output as text.
        Raises: CommandFailed with its output; subprocess.TimeoutExpired; LabError if ssh fails.
        """
        line = command if isinstance(command, str) else shlex.join(command)
        self._connect(user)
        process = self.site.popen(
            [*self._ssh(user), "--", line],
            f"{self.name}: ssh",
            env=self.operator.environment(),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        return finish(self.site, process, [line], input, timeout, check, self.name)

    def popen(
        self,
        command: str | Sequence[str],
        *,
        user: str = "root",
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
        text: bool = True,
    ) -> subprocess.Popen[str]:
        """Start a shell command, or a list of arguments, over ssh. Raises: LabError if ssh fails."""
        line = command if isinstance(command, str) else shlex.join(command)
        self._connect(user)
        return self.site.popen(
            [*self._ssh(user), "--", line],
            f"{self.name}: ssh",
            env=self.operator.environment(),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=text,
        )

    def read(self, path: str) -> str:
        """The content of a file. Raises: CommandFailed if it cannot be read."""
        return self.run(["cat", "--", path]).stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file as root, by renaming; missing directories are made. Raises: CommandFailed."""
        script = (
            'umask 077; mkdir -p -m 755 -- "$(dirname -- "$1")" && cat > "$1.lab-new" && '
            'chmod -- "$2" "$1.lab-new" && mv -T -- "$1.lab-new" "$1"'
        )
        self.run(["sh", "-c", script, "write", path, f"{mode:o}"], input=text)

    def close(self) -> None:
        """Close the ssh connections that `run` keeps open; the next command opens another."""
        with self._lock:
            end(self._masters.values(), grace=0)
            for user in self._masters:
                self._control_path(user).unlink(missing_ok=True)
            self._masters.clear()

    def _control_path(self, user: str) -> Path:
        # One for each process that uses the lab, so that nobody waits for another's connection.
        return self.site.directory / "ssh" / f"{self.name}-{user}-{os.getpid()}"

    def _ssh(self, user: str) -> list[str]:
        return [
            *("ip", "netns", "exec", self.operator.namespace),
            *("ssh", "-S", str(self._control_path(user)), "-l", user, self.name),
        ]

    def _connect(self, user: str) -> None:
        """Open the connection that the commands of `user` share, unless it is open. Raises: LabError."""
        with self._lock:
            master = self._masters.get(user)
            path = self._control_path(user)
            if master and master.alive and path.exists():
                return
            path.unlink(missing_ok=True)
            process = self.site.popen(
                [*self._ssh(user), "-M", "-N", "-o", "ServerAliveInterval=15"],
                f"{self.name}: ssh connection of {user}",
                env=self.operator.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            deadline = time.monotonic() + CONNECT_TIMEOUT
            while not path.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    said = process.communicate()[1].strip()
                    raise LabError(f"ssh to {user}@{self.name} failed: {said or 'no answer'}")
                time.sleep(0.01)
            if recorded := Process.of(process.pid):
                self._masters[user] = recorded
