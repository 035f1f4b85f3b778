# SPDX-License-Identifier: GPL-3.0-or-later
"""What pyinfra leaves out when it connects: host keys as the operator's own ssh treats them, and
passwords for sudo that reach any login shell.

pyinfra tells its client to accept any new host key, reads ~/.ssh/config only, and looks into one file
of known hosts. So ssh itself is asked (`ssh -G`), just before a host is connected to, and what it says is
handed to pyinfra as that host's connector data.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from getpass import getpass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pyinfra.connectors.util
from paramiko import Channel, PKey, SSHClient, SSHException
from paramiko.hostkeys import HostKeys
from pyinfra import logger
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.state import BaseStateCallback, State
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.sshuserclient.client import get_ssh_config
from pyinfra.context import ctx_host

from home_forwarder.render import PROJECT, sent_source_of
from operations.sending import Call, NotUnderstood, run

SECONDS = 10
"""For ssh to say how it would connect; it may run commands of its configuration (Match exec)."""
STRICT = ("true", "yes")
"""How ssh -G, and ssh_config(5), say that an unknown host key is refused."""

Tell = Callable[[Host, str], None]


class NoPassword(PyinfraError):
    """sudo wants a password, and there is neither one nor somebody to ask."""


def warn(host: Host, text: str) -> None:
    """The way to tell the operator something of a host, on pyinfra's command line."""
    host.log_styled(text, fg="yellow", log_func=logger.warning)


def heed(state: State, tell: Tell = warn, *, hints: bool = True) -> None:
    """From now on the hosts of `state` are connected to in our way.

    tell: is given a host and a sentence about it.
    hints: tell what to do about a connection that fails, too.
    """
    # What pyinfra calls when sudo wants a password.
    pyinfra.connectors.util.getpass = _password  # type: ignore[assignment]
    handler = OurWay(tell, hints=hints)
    if state.initialised:
        state.add_callback_handler(handler)
        return
    # pyinfra's command line reads config.py first; initialising forgets what was added before.
    init = state.init

    def init_and_add(*arguments: Any, **settings: Any) -> None:
        init(*arguments, **settings)
        state.add_callback_handler(handler)

    state.init = init_and_add  # type: ignore[method-assign]


def objection(state: State, host: Host) -> str | None:
    """Why nothing may be done on a host that was connected to in pyinfra's own way; None if it may.

    That is how it connects where config.py was not read: it would have taken any new host key.
    """
    if any(isinstance(handler, OurWay) for handler in state.callback_handlers):
        return None
    if not isinstance(host.connector, SSHConnector) or not is_strict(host):
        return None
    return (
        "ssh is told to connect to hosts with a known key only (StrictHostKeyChecking yes), and pyinfra"
        f" has not asked it, since it has not read {PROJECT / 'config.py'}; run it in {PROJECT}"
    )


class OurWay(BaseStateCallback):
    """What is done before and after pyinfra connects to a host."""

    def __init__(self, tell: Tell, *, hints: bool) -> None:
        self._tell = tell
        self._hints = hints
        self._directory = tempfile.TemporaryDirectory(prefix="home-forwarder-")
        self._numbers = count()
        self._said: dict[Host, tuple[Mapping[str, str], Path, str]] = {}

    def host_before_connect(self, state: State, host: Host) -> None:  # type: ignore[override]
        """Hand over what ssh knows of the host and its key."""
        if not isinstance(host.connector, SSHConnector):
            return
        said = ssh_settings(host)
        if said is None:
            return
        # A new name each time: pyinfra remembers what was in a file, and many hosts come at once.
        known = Path(self._directory.name, str(next(self._numbers)))
        known.write_text("".join(known_lines(host, said)), encoding="utf-8")
        self._said[host] = (said, known, known.read_text(encoding="utf-8"))
        host.connector.data["ssh_known_hosts_file"] = str(known)
        if host.data.get("ssh_strict_host_key_checking") is None:
            strict = said.get("stricthostkeychecking") in STRICT
            host.connector.data["ssh_strict_host_key_checking"] = "yes" if strict else "accept-new"

    def host_connect(self, state: State, host: Host) -> None:  # type: ignore[override]
        """Tell of a first contact, and prepare what sudo asks for a password."""
        if isinstance(host.connector, SSHConnector) and host.connector.client:
            _read_any_text(host.connector.client)
        if host in self._said and isinstance(host.connector, SSHConnector):
            said, known, before = self._said[host]
            key = _key_of(host.connector)
            if key and known.read_text(encoding="utf-8") != before:
                place = _remember(host, said, key)
                self._tell(
                    host,
                    f"first contact: its {key.get_name()} host key is {fingerprint(key)}{place};"
                    " compare it with what your provider's console shows",
                )
        password = host.data.get("_sudo_password") or state.config.SUDO_PASSWORD
        if password and password != HIDDEN and _hand_over(state, host, password):
            host.data._sudo_password = HIDDEN

    def host_connect_error(self, state: State, host: Host, error: Exception) -> None:  # type: ignore[override]
        """Say what to do about a host key that is not known."""
        hint = hint_of(host, error)
        if self._hints and hint:
            self._tell(host, hint)


def hint_of(host: Host, error: Exception) -> str | None:
    """What to do about a host that ssh is told not to trust, in a sentence."""
    if "StrictPolicy" not in str(error):
        return None
    address, port = _reached_at(host)
    scan = f"ssh-keyscan {address}" if port == 22 else f"ssh-keyscan -p {port} {address}"
    return (
        "no host key of it is known, and ssh is told not to connect then (StrictHostKeyChecking yes);"
        f" to see its keys: {scan}; once compared, add one to ssh's known_hosts"
    )


def is_strict(host: Host) -> bool:
    """Does ssh refuse to connect to it while its key is unknown, and the inventory not overrule it?"""
    if host.data.get("ssh_strict_host_key_checking") is not None:
        return False
    return (ssh_settings(host) or {}).get("stricthostkeychecking") in STRICT


def ssh_settings(host: Host) -> Mapping[str, str] | None:
    """What ssh would do with a host, by the names of ssh_config(5) in small letters.

    None if there is no ssh here. One that does not answer counts as one that is strict.
    """
    if not shutil.which("ssh"):
        return None
    data = host.data
    options = [
        *(
            ("-F", str(Path(data.ssh_config_file).expanduser()))
            if data.get("ssh_config_file")
            else ()
        ),
        *(("-p", str(data.ssh_port)) if data.get("ssh_port") else ()),
        *(("-l", str(data.ssh_user)) if data.get("ssh_user") else ()),
    ]
    try:
        lines = subprocess.run(
            ["ssh", *options, "-G", "--", _address(host)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=True,
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {"stricthostkeychecking": "yes"}
    return dict(line.partition(" ")[::2] for line in lines)


def known_lines(host: Host, said: Mapping[str, str]) -> Iterable[str]:
    """The host keys that ssh knows of a host, under the names that pyinfra's client looks for."""
    name = ssh_name(host, said)
    for file in _files(host, said, "user", "global"):
        path = Path(file).expanduser()
        if not path.is_file():
            continue
        # ssh-keygen knows hashed names and patterns. A line begins with a mark if its key is no host's
        # own: an authority's, which pyinfra's client cannot use, or a revoked one.
        found = subprocess.run(
            ["ssh-keygen", "-F", name, "-f", str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        ).stdout.splitlines()
        for line in found:
            words = line.split()
            if len(words) >= 3 and not words[0].startswith(("#", "@")):
                for each in dict.fromkeys((_with_port(*_reached_at(host)), name)):
                    yield f"{each} {words[1]} {words[2]}\n"


def ssh_name(host: Host, said: Mapping[str, str]) -> str:
    """Under what name ssh keeps the key of a host; see HostKeyAlias in ssh_config(5)."""
    if "hostkeyalias" in said:
        return said["hostkeyalias"]
    return _with_port(said.get("hostname", _address(host)).lower(), int(said.get("port", 22)))


def fingerprint(key: PKey) -> str:
    """As ssh-keygen -l prints it."""
    return f"SHA256:{b64encode(sha256(key.asbytes()).digest()).decode().rstrip('=')}"


def _remember(host: Host, said: Mapping[str, str], key: PKey) -> str:
    """Write a new key where ssh will find it; end of a sentence that says where."""
    files = _files(host, said, "user")
    if not files or files[0] in ("none", "/dev/null"):
        return ""
    path = Path(files[0]).expanduser()
    name = ssh_name(host, said)
    if said.get("hashknownhosts") == "yes":
        name = HostKeys.hash_host(name)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a+", encoding="utf-8") as file:
            size = file.tell()
            if size:
                file.seek(size - 1)
            start = "" if not size or file.read(1) == "\n" else "\n"
            file.write(f"{start}{name} {key.get_name()} {key.get_base64()}\n")
    except OSError as error:
        return f" (it could not be written to {path}: {error.strerror})"
    return f", which is now in {path}"


def _files(host: Host, said: Mapping[str, str], *kinds: str) -> list[str]:
    """Files of known hosts: what the inventory says, or else ssh."""
    if host.data.get("ssh_known_hosts_file"):
        return [str(host.data.ssh_known_hosts_file)]
    return [file for kind in kinds for file in said.get(f"{kind}knownhostsfile", "").split()]


def _key_of(connector: SSHConnector) -> PKey | None:
    transport = connector.client.get_transport() if connector.client else None
    return transport.get_remote_server_key() if transport else None


def _address(host: Host) -> str:
    return str(host.data.get("ssh_hostname") or host.name)


def _reached_at(host: Host) -> tuple[str, int]:
    """The address and port that pyinfra's client connects to."""
    config = get_ssh_config(host.data.get("ssh_config_file"))
    found = config.lookup(_address(host)) if config else {}
    port = host.data.get("ssh_port") or found.get("port") or 22
    return str(found.get("hostname") or _address(host)), int(port)


def _with_port(name: str, port: int) -> str:
    return name if port == 22 else f"[{name}]:{port}"


# ---- What a host says ----------------------------------------------------------------------------


class _Lines:
    """Output of a command on a host, line by line, whatever its bytes are."""

    def __init__(self, file: Iterable[bytes], channel: Channel) -> None:
        self._file = file
        self.channel = channel

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            yield line.decode("utf-8", errors="replace")


def _read_any_text(client: SSHClient) -> None:
    """Let a greeting in Latin-1 be only that: paramiko would stop reading at its first umlaut."""
    execute = client.exec_command

    def exec_command(*arguments: Any, **settings: Any) -> tuple[Any, _Lines, _Lines]:
        stdin, stdout, _ = execute(*arguments, **settings)
        channel = stdout.channel
        return (
            stdin,
            _Lines(channel.makefile("rb"), channel),
            _Lines(channel.makefile_stderr("rb"), channel),
        )

    client.exec_command = exec_command  # type: ignore[method-assign, assignment]


# ---- Passwords of sudo ---------------------------------------------------------------------------


HIDDEN = "-"
"""What pyinfra takes for the password of a host whose askpass program knows the true one."""

_one_question = threading.Lock()
"""Many hosts are looked at at once."""


def _password(prompt: str) -> str:
    """Ask for the password of sudo on the current host. Raises: NoPassword."""
    host = ctx_host.get() if ctx_host.isset() else None
    if not has_terminal():
        raise NoPassword(
            "sudo wants a password, and there is no terminal to ask for it; set _sudo_password for"
            " this host in inventory.py, or let its user sudo without one (NOPASSWD)"
        )
    with _one_question:
        password = getpass(prompt)
    if host is not None and _hand_over(host.state, host, password):
        return HIDDEN
    return password


def has_terminal() -> bool:
    """Is there one that a password can be read from?"""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _hand_over(state: State, host: Host, password: str) -> bool:
    """Put the program that tells sudo the password onto a host; pyinfra deletes it in the end.

    pyinfra would make one by a command of many lines, and take for its path whatever line comes first:
    csh does not understand the one, a greeting spoils the other. And it would write the password on
    the command line of each command, where other users of the host can see it (promise 17).
    If it fails here, pyinfra tries.
    """
    directory = host.data.get("_temp_dir") or host.get_temp_dir_config()
    call = Call(sent_source_of("make_askpass.py"), (directory,))
    try:
        answer = run(state, host, call, json.dumps({"password": password}), as_login=True)
    except (NotUnderstood, OSError, SSHException):
        return False
    host.connector_data[f"sudo_askpass_path__{directory}"] = answer.get("path")
    return True
