# SPDX-License-Identifier: GPL-3.0-or-later
"""An operator's copy of the project in a lab: its own inventory.py and group_data, the rest linked."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

from lab.lab import Lab

PROJECT = Path(__file__).resolve().parent.parent
LINKED = (
    "cloud_init.py",
    "config.py",
    "deploy.py",
    "undeploy.py",
    "home_forwarder",
    "operations",
    "pyproject.toml",
    "templates",
    "tests",
    "vps",
)
BIN = Path(sys.executable).parent
TIMEOUT = 300.0
"""Seconds for a deploy or a verification, which may wait two minutes for another apt."""


class Checkout:
    """A directory in which `pyinfra inventory.py deploy.py` deploys to the VPSes of a lab."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for name in LINKED:
            if not (directory / name).exists():
                (directory / name).symlink_to(PROJECT / name)

    def declare(
        self,
        homes: Sequence[Mapping[str, Any]],
        forwards: Sequence[Mapping[str, Any]],
        *,
        hosts: Mapping[str, Mapping[str, Any]] | None = None,
        **settings: object,
    ) -> None:
        """Write group_data/all.py, and inventory.py.

        hosts: by name, each with its own data; all VPSes of the lab if left out.
        settings: the other top-level keys.
        """
        data = {"homes": list(homes), "forwards": list(forwards), **settings}
        (self.directory / "group_data").mkdir(exist_ok=True)
        (self.directory / "group_data/all.py").write_text(
            "".join(f"{key} = {value!r}\n" for key, value in data.items()), encoding="utf-8"
        )
        named = {name: {} for name in self.lab.vps} if hosts is None else hosts
        inventory = [(name, {**self._login(name), **own}) for name, own in named.items()]
        (self.directory / "inventory.py").write_text(f"vps = {inventory!r}\n", encoding="utf-8")

    def _login(self, name: str) -> dict[str, object]:
        vps = self.lab.vps.get(name)
        return {"ssh_hostname": vps.ipv4, "ssh_user": "root"} if vps else {"ssh_user": "root"}

    def deploy(self, *arguments: str, check: bool = True) -> CompletedProcess[str]:
        """`pyinfra -y inventory.py deploy.py` at the operator."""
        return self.pyinfra("-y", "inventory.py", "deploy.py", *arguments, check=check)

    def pyinfra(self, *arguments: str, check: bool = True) -> CompletedProcess[str]:
        """pyinfra at the operator. Raises: CommandFailed if it fails and `check` is set."""
        return self.lab.operator.run(
            [str(BIN / "pyinfra"), *arguments], check=check, cwd=self.directory, timeout=TIMEOUT
        )

    def start_pyinfra(self, *arguments: str, **options: Any) -> Popen[str]:
        """pyinfra at the operator, without waiting for it."""
        return self.lab.operator.popen(
            [str(BIN / "pyinfra"), *arguments], cwd=self.directory, **options
        )

    def verify(self, *arguments: str, check: bool = True) -> CompletedProcess[str]:
        """The verification of tests/verify at the operator."""
        return self.lab.operator.run(
            [
                *(str(BIN / "pytest"), "tests/verify", "-p", "no:cacheprovider"),
                *("--inventory", "inventory.py", *arguments),
            ],
            check=check,
            cwd=self.directory,
            timeout=TIMEOUT,
        )
