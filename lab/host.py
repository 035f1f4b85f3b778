# SPDX-License-Identifier: GPL-3.0-or-later
"""What all hosts of a lab have in common, and the plain ones: clients and the operator."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lab.errors import CommandFailed, LabError
from lab.network import Network, inside
from lab.processes import KILLED_WITHIN, MARK, Ledger

Redirect = int | IO[Any] | None


class Site:
    """Where one lab keeps its things, and how it starts its processes.

    name: the lab's name
    directory: its state directory
    mark: what its processes carry in their environment
    """

    def __init__(self, name: str, directory: Path, mark: str) -> None:
        self.name = name
        self.directory = directory
        self.mark = mark
        self.network = Network(name)
        self.ledger = Ledger(directory / "processes")
        self._lock = threading.Lock()
        self._children: list[subprocess.Popen[Any]] = []

    def popen(self, command: Sequence[str], what: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a process of the lab, in a session of its own, and record it. Raises: LabError."""
        if not self.directory.is_dir():
            raise LabError(f"Lab {self.name} is not up.")
        environment = options.pop("env", None) or dict(os.environ)
        process = subprocess.Popen(
            list(command),
            env={**environment, MARK: self.mark},
            start_new_session=True,
            **options,
        )
        self.ledger.record(process.pid, what)
        with self._lock:
            self._children = [child for child in self._children if child.poll() is None]
            self._children.append(process)
        return process

    def reap(self) -> None:
        """Take note of the end of the processes that this one has started."""
        with self._lock:
            for child in self._children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(KILLED_WITHIN)
            self._children.clear()

    def log(self, name: str) -> Path:
        """The path of the log with this name."""
        return self.directory / "logs" / f"{name}.log"

    def save(self, host: str, facts: Mapping[str, Any]) -> None:
        """Write down what another process must know to use `host`, whole or not at all."""
        path = self.directory / "hosts" / f"{host}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(facts))
        new.rename(path)

    def load(self, host: str) -> dict[str, Any]:
        """What `save` wrote for `host`."""
        facts: dict[str, Any] = json.loads((self.directory / "hosts" / f"{host}.json").read_text())
        return facts


class Host:
    """A machine of the lab: a network namespace and the programs in it.

    name: its name in the lab
    addresses: its addresses, IPv4 first
    """

    def __init__(self, site: Site, name: str, addresses: Sequence[str]) -> None:
        self.site = site
        self.name = name
        self.addresses = list(addresses)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.addresses!r})"

    @property
    def namespace(self) -> str:
        """The name of its network namespace."""
        return self.site.network.namespace(self.name)

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """Put the calling thread into this host's network for the length of a `with` block."""
        return inside(self.namespace)

    def plug(self) -> None:
        """Connect the host to the internet again."""
        self.site.network.plug(self.name)

    def unplug(self) -> None:
        """Pull the host's cable: nothing gets in or out, and nobody is told."""
        self.site.network.plug(self.name, connected=False)


class PlainHost(Host):
    """A host without an operating system of its own: programs of this machine run in it."""

    def environment(self) -> dict[str, str]:
        """The environment that programs are started with."""
        return dict(os.environ)

    def popen(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdin: Redirect = subprocess.DEVNULL,
        stdout: Redirect = None,
        stderr: Redirect = None,
        text: bool = True,
    ) -> subprocess.Popen[Any]:
        """Start a program of this machine on the host; it is ended with the lab at the latest.

        env: added to the host's environment
        """
        return self.site.popen(
            ["ip", "netns", "exec", self.namespace, *command],
            f"{self.name}: {command[0]}",
            env={**self.environment(), **(env or {})},
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=text,
        )

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,
        timeout: float | None = 120,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the host to its end.

        timeout: seconds, then it is killed
        check: whether it must end well

        Returns: its output as text.
        Raises: CommandFailed with its output; subprocess.TimeoutExpired.
        """
        process = self.popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return finish(self.site, process, command, input, timeout, check, self.name)


def finish(
    site: Site,
    process: subprocess.Popen[Any],
    command: Sequence[str],
    input: str | None,
    timeout: float | None,
    check: bool,
    where: str,
) -> subprocess.CompletedProcess[str]:
    """Wait for a program, and strike it from the ledger. Returns: what it said; see PlainHost.run."""
    try:
        output, errors = process.communicate(input, timeout)
    except BaseException:
        # Its session is its own, so this reaches what it has started as well. Its pipes are not read
        # to their end: ssh has passed them on to the process that keeps the connection, which holds
        # them as long as the command runs on the VPS.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILLED_WITHIN)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                with contextlib.suppress(OSError):  # what was to be written has no reader any more
                    pipe.close()
        raise
    finally:
        site.ledger.forget(process.pid)
    result = subprocess.CompletedProcess(list(command), process.returncode, output, errors)
    if check and result.returncode != 0:
        said = (errors.strip() or output.strip())[-2000:]
        raise CommandFailed(
            f"«{' '.join(command)}» on {where} ended with status {result.returncode}: {said}",
            result,
        )
    return result


class Operator(PlainHost):
    """Where a person administers the VPSes from: with the lab's key, never with the user's.

    HOME is a directory of the lab. `ssh`, `scp` and `sftp` found first in PATH read the
    configuration there (they do not go by HOME by themselves), as paramiko and pyinfra do.
    """

    @property
    def home_directory(self) -> Path:
        """HOME of programs that run here."""
        return self.site.directory / "operator"

    @property
    def ssh_directory(self) -> Path:
        """Keys, known_hosts and configuration of ssh."""
        return self.home_directory / ".ssh"

    def create(self) -> None:
        """Make the home directory and the key pair."""
        self.ssh_directory.mkdir(parents=True, mode=0o700)
        generate_key(self.ssh_directory / "id_ed25519", "operator")
        tools = self.home_directory / "bin"
        tools.mkdir()
        for name in ("ssh", "scp", "sftp"):
            wrapper = tools / name
            config = self.ssh_directory / "config"
            wrapper.write_text(f"#!/bin/sh\nPATH=${{PATH#*:}}\nexec {name} -F '{config}' \"$@\"\n")
            wrapper.chmod(0o755)
        self.introduce({})

    def introduce(self, vpses: Mapping[str, tuple[Sequence[str], str]]) -> None:
        """Introduce these VPSes to ssh: write its configuration and known_hosts.

        vpses: for each name its addresses and the public half of its host key
        """
        directory = self.ssh_directory
        config = [
            "Host *",
            "  User root",
            f"  IdentityFile {directory}/id_ed25519",
            "  IdentitiesOnly yes",
            f"  UserKnownHostsFile {directory}/known_hosts",
            "  GlobalKnownHostsFile /dev/null",
            "  StrictHostKeyChecking yes",
            "  PasswordAuthentication no",
            "  ConnectTimeout 10",
            "  LogLevel ERROR",
        ]
        known = []
        for name, (addresses, key) in vpses.items():
            config += [f"Host {name}", f"  HostName {addresses[0]}"]
            known.append(f"{','.join([name, *addresses])} {key}")
        for file, lines in (("config", config), ("known_hosts", known)):
            new = directory / f"{file}.new"
            new.write_text("".join(f"{line}\n" for line in lines))
            new.rename(directory / file)

    @property
    def public_key(self) -> str:
        """The line for authorized_keys."""
        return (self.ssh_directory / "id_ed25519.pub").read_text()

    def environment(self) -> dict[str, str]:
        """The user's environment without what leads to the user's own files and agents."""
        private = ("SSH_", "XDG_", "GNUPG")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(private)}
        kept["HOME"] = str(self.home_directory)
        kept["PATH"] = f"{self.home_directory}/bin:{kept.get('PATH', os.defpath)}"
        return kept


def generate_key(path: Path, comment: str) -> None:
    """Make an ssh key pair at `path` and `path`.pub; the public half appears last, and whole."""
    new = path.with_name("new-key")
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(new)],
        check=True,
    )
    new.rename(path)
    new.with_suffix(".pub").rename(f"{path}.pub")
