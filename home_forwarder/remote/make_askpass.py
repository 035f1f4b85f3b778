# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: make the program that tells sudo a password, and print its path, as JSON.

Standard library of Python 3.9. Argument: the directory, if the one that ends with the login does not do.
Standard input: {"password": text}. The program is for this user alone; who made it deletes it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile


def make(directory: str, text: str) -> str | None:
    """The path of a program in a directory; None if it could not be run there."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="home-forwarder-askpass-", dir=directory)
    except OSError:
        return None
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o700)
        file.write(text)
    try:
        works = subprocess.run([path], stdout=subprocess.DEVNULL).returncode == 0
    except OSError:  # the directory's file system is mounted noexec
        works = False
    if not works:
        os.unlink(path)
    return path if works else None


def main() -> None:
    password = shlex.quote(json.load(sys.stdin)["password"])
    text = f"#!/bin/sh\nprintf '%s\\n' {password}\n"
    directories = (os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"), sys.argv[1])
    for directory in filter(None, directories):
        path = make(directory, text)
        if path:
            print(json.dumps({"path": path}))
            return
    sys.exit(f"no program can be run in {sys.argv[1]}; set _temp_dir to a directory where one can")


if __name__ == "__main__":
    main()
