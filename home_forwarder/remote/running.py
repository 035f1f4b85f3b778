# SPDX-License-Identifier: GPL-3.0-or-later
"""Part of programs that are sent to a VPS: run a command. Standard library of Python 3.9.

It is part of user-data, where every byte counts.
"""

from __future__ import annotations

import subprocess

PATIENCE = 1800  # seconds for one command
SHOWN = 12  # lines of a failed command


class Failed(Exception):
    """A step failed; the text says why."""


def run(command: list[str], input: str | None = None, name: str = "") -> str:
    """What a command prints. Raises: Failed with its name, if it has one, and its last lines."""
    name = name or " ".join(command[:3])
    try:
        result = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            input=input,
            stdin=None if input else subprocess.DEVNULL,
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{name}: {str(error)[:200]}") from None
    if result.returncode:
        last = "\n    ".join(result.stdout.strip().splitlines()[-SHOWN:])
        raise Failed(f"{name} ended with {result.returncode}:\n    {last}")
    return result.stdout
