# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: run a command of sh, and print what it said and how it ended, as JSON.

Standard library of Python 3.9. Argument: the command. Its output is in base64, since it may be
anything.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys


def main() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", sys.argv[1]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    print(
        json.dumps(
            {
                # As sh says it of a command that a signal has ended.
                "status": done.returncode if done.returncode >= 0 else 128 - done.returncode,
                "stdout": base64.b64encode(done.stdout).decode(),
                "stderr": base64.b64encode(done.stderr).decode(),
            }
        )
    )


if __name__ == "__main__":
    main()
