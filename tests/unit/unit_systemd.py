# SPDX-License-Identifier: GPL-3.0-or-later
"""Units as systemd sees them: laid out below a directory, and read by systemd-analyze."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from home_forwarder.plan import UNITS, File, Plan

STUBS = (
    *("sysinit", "basic", "shutdown", "multi-user", "timers", "paths"),
    *("network", "network-online", "nss-lookup"),
)


def verify(root: Path) -> str:
    """What systemd says against the units below `root`; the groups bring all of theirs along."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        if os.environ.get("CI"):
            pytest.fail("systemd-analyze is missing: the units were not checked by systemd")
        pytest.skip("systemd-analyze is missing: THE UNITS WERE NOT CHECKED BY SYSTEMD")
    units = root / UNITS.lstrip("/")
    names = [path for path in units.glob("home-*.*") if "@" not in path.name and path.is_file()]
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=yes", f"--root={root}"]
        + [str(path) for path in [*names, root / "usr/lib/systemd/system/paths.target"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout + (f"exit status {done.returncode}" if done.returncode else "")


def lay_out(plan: Plan, root: Path) -> None:
    """The plan's files below `root`, with stubs for what a VPS has besides."""
    for entry in plan.entries:
        path = root / entry.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(entry, File):
            path.write_text(entry.content)
            path.chmod(int(entry.mode, 8))
        else:
            path.symlink_to(entry.target)
    for name in STUBS:
        path = root / "usr/lib/systemd/system" / f"{name}.target"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"[Unit]\nDescription={name}\n")
    for name in ("true", "systemctl"):
        path = root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
