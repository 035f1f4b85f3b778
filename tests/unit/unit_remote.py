# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that are sent to a VPS, run for real, as they are sent, with tools of ours in PATH."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from home_forwarder.render import sent_source_of

USER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name


def source_of(name: str, old: str = "", new: str = "") -> str:
    """The program as it is sent, with one of its settings changed."""
    source = sent_source_of(name)
    assert old in source
    return source.replace(old, new) if old else source


def command(name: str, *arguments: str, change: tuple[str, str] = ("", "")) -> list[str]:
    """How it is started on a VPS."""
    return [sys.executable, "-IS", "-c", source_of(name, *change), *arguments]


def remote(
    name: str,
    *arguments: str,
    job: object = None,
    change: tuple[str, str] = ("", ""),
    **options: Any,
) -> dict[str, Any]:
    """What a program answers. It says nothing else."""
    done = subprocess.run(
        command(name, *arguments, change=change),
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **options,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def tools(directory: Path, **outputs: str) -> dict[str, str]:
    """An environment in which some tools say what is given; nothing else is there."""
    for name, output in outputs.items():
        (directory / f"{name}.txt").write_text(output)
        text = shlex.quote(str(directory / f"{name}.txt"))
        script(directory, name, f'while IFS= read -r l; do printf "%s\\n" "$l"; done <{text}')
    return {"PATH": str(directory)}


def script(directory: Path, name: str, commands: str) -> dict[str, str]:
    """An environment in which a tool does what is given; as above."""
    path = directory / name.replace("_", "-")
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)
    return {"PATH": str(directory)}


def snapshot(root: Path) -> dict[str, tuple[int, str]]:
    """Every path below root, with its mode and its content or target."""
    found = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        text = path.readlink().as_posix() if path.is_symlink() else ""
        if stat.S_ISREG(mode):
            text = path.read_text()
        found[str(path.relative_to(root))] = (mode, text)
    return found
