# SPDX-License-Identifier: GPL-3.0-or-later
"""What ssh says of a host and its key, from real settings of ssh; nothing is connected to."""

from __future__ import annotations

import subprocess
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from paramiko import Ed25519Key
from pyinfra.api.config import Config
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State

from operations.connecting import fingerprint, heed, hint_of, known_lines, ssh_name, ssh_settings


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Public host keys by name."""
    directory = tmp_path_factory.mktemp("keys")
    for name in ("a", "b", "c"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(command, check=True)
    return {
        name: " ".join((directory / f"{name}.pub").read_text().split()[:2])
        for name in ("a", "b", "c")
    }


def host(tmp_path: Path, ssh: str, name: str = "vps1", **data: Any) -> Host:
    """A host of an inventory, with this text as the operator's settings of ssh."""
    config = tmp_path / "config"
    config.write_text(ssh.replace("~", str(tmp_path)))
    inventory = Inventory(([(name, {"ssh_config_file": str(config), **data})], {}))
    State(inventory, Config())
    return next(iter(inventory))


def settings(one: Host) -> Any:
    said = ssh_settings(one)
    assert said is not None
    return said


NAMES: list[tuple[str, dict[str, Any], str]] = [
    ("", {}, "vps1"),
    ("", {"ssh_hostname": "203.0.113.1"}, "203.0.113.1"),
    ("", {"ssh_hostname": "2001:db8::1", "ssh_port": 2222}, "[2001:db8::1]:2222"),
    ("Host vps1\n HostName 203.0.113.7\n Port 2200", {}, "[203.0.113.7]:2200"),
    ("Host vps1\n HostName 203.0.113.7\n HostKeyAlias its-name\n Port 2200", {}, "its-name"),
    ("Match user root\n HostKeyAlias of-root", {"ssh_user": "root"}, "of-root"),
    ("Match user root\n HostKeyAlias of-root", {"ssh_user": "other"}, "vps1"),
]


@pytest.mark.parametrize(("ssh", "data", "name"), NAMES)
def test_the_name_of_a_key(tmp_path: Path, ssh: str, data: dict[str, Any], name: str) -> None:
    one = host(tmp_path, ssh, **data)
    assert ssh_name(one, settings(one)) == name


def test_known_keys_of_all_files(tmp_path: Path, keys: dict[str, str]) -> None:
    """Hashed, by a pattern, in any file; neither an authority's nor a revoked one."""
    ssh = "HostName 203.0.113.7\nUserKnownHostsFile ~/none ~/own\nGlobalKnownHostsFile ~/global"
    (tmp_path / "own").write_text(f"203.0.113.7 {keys['a']} a comment\n203.0.113.8 {keys['c']}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(tmp_path / "own")], check=True)
    (tmp_path / "global").write_text(
        f"203.0.113.* {keys['b']}\n@cert-authority * {keys['c']}\n@revoked 203.0.113.7 {keys['c']}\n"
    )
    one = host(tmp_path, ssh)
    assert list(known_lines(one, settings(one))) == [
        f"203.0.113.7 {keys['a']}\n",
        f"203.0.113.7 {keys['b']}\n",
    ]


def test_the_inventorys_own_file_of_known_hosts(tmp_path: Path, keys: dict[str, str]) -> None:
    (tmp_path / "own").write_text(f"vps1 {keys['a']}\n")
    (tmp_path / "other").write_text(f"vps1 {keys['b']}\n")
    one = host(tmp_path, "UserKnownHostsFile ~/own", ssh_known_hosts_file=str(tmp_path / "other"))
    assert list(known_lines(one, settings(one))) == [f"vps1 {keys['b']}\n"]


@pytest.mark.parametrize(
    ("ssh", "data", "policy"),
    [
        ("", {}, "accept-new"),
        ("StrictHostKeyChecking ask", {}, "accept-new"),
        ("StrictHostKeyChecking no", {}, "accept-new"),
        ("StrictHostKeyChecking yes", {}, "yes"),
        ("StrictHostKeyChecking yes", {"ssh_strict_host_key_checking": "accept-new"}, "accept-new"),
        ("StrictHostKeyChecking ask", {"ssh_strict_host_key_checking": "yes"}, "yes"),
        ("NoSuchSetting yes", {}, "yes"),
    ],
)
def test_an_unknown_key(tmp_path: Path, ssh: str, data: dict[str, Any], policy: str) -> None:
    """Promise 23. Settings that ssh itself refuses to read let nobody in."""
    one = host(tmp_path, ssh, **data)
    heed(one.state)
    one.state.trigger_callbacks("host_before_connect", one)
    assert one.connector.data["ssh_strict_host_key_checking"] == policy


def test_what_to_do_about_an_unknown_key(tmp_path: Path) -> None:
    one = host(tmp_path, "Host vps1\n HostName 203.0.113.7\n Port 2200")
    error = ConnectError("SSH error (StrictPolicy: No host key for x found in known_hosts)")
    assert "ssh-keyscan -p 2200 203.0.113.7;" in (hint_of(one, error) or "")
    assert hint_of(one, ConnectError("Could not connect")) is None


def test_fingerprint(tmp_path: Path, keys: dict[str, str]) -> None:
    shown = subprocess.run(
        ["ssh-keygen", "-lf", "-"], input=keys["a"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert fingerprint(Ed25519Key(data=b64decode(keys["a"].split()[1]))) == shown[1]
