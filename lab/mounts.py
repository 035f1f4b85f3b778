# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounting, and unmounting what is below a directory of ours."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError

TRIES = 20
"""To unmount, a little later each time, 3.8 s in all: a killed process lets go of its files by then."""


def mount(kind: str, target: Path, options: str) -> None:
    """Mount a file system of this kind. Raises: LabError with mount's own message."""
    result = subprocess.run(
        ["mount", "-t", kind, "-o", options, kind, str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise LabError(f"Mounting {target} failed: {result.stderr.strip()}")


def overlay_options(layers: Sequence[Path], disk: Path) -> str:
    """The options of an overlay of `layers`, topmost first, that writes below `disk`."""
    return f"lowerdir={':'.join(map(str, layers))},upperdir={disk}/upper,workdir={disk}/work"


def used_layers() -> str:
    """The mount table; an image that it does not name is used by nobody."""
    return Path("/proc/self/mounts").read_text()


def unmount_below(directory: Path) -> None:
    """Unmount everything mounted below `directory`, deepest first."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in sorted((p for p in points if p.startswith(f"{directory}/")), reverse=True):
        for attempt in range(TRIES):
            if subprocess.run(["umount", point], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.02 * attempt)
        else:
            # Somebody sits in it; it goes away with them.
            subprocess.run(["umount", "--lazy", point], capture_output=True, check=True)
