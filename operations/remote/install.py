# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: write and delete files. Standard library of Python 3.9.

Standard input: {"write": [{path, mode, owner, group, content} or {path, target}], "remove": [path]}
as JSON. Each file is written whole beside its place, synced, and renamed into it, so that neither
systemd nor anyone else ever sees half a file; nothing is renamed before everything is written.
"""

import errno
import json
import os
import shutil
import sys

SUFFIX = ".home-forwarder-new"  # UNFINISHED in home_forwarder/plan.py


def prepare(entry):
    path = entry["path"]
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    new = path + SUFFIX
    if os.path.lexists(new):
        os.unlink(new)  # left by a run that was cut off
    if "target" in entry:
        os.symlink(entry["target"], new)
        return
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8", newline="") as file:
        file.write(entry["content"])
        shutil.chown(new, entry["owner"], entry["group"])
        os.fchmod(descriptor, int(entry["mode"], 8))
        file.flush()
        os.fsync(descriptor)


def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
    directory = os.path.dirname(path)
    if directory.endswith((".d", ".wants", "/home-forwarder")):
        try:
            os.rmdir(directory)
        except OSError:
            pass  # not empty


def main():
    job = json.load(sys.stdin)
    os.umask(0o022)
    try:
        for entry in job["write"]:
            prepare(entry)
        for entry in job["write"]:
            if os.path.isdir(entry["path"]) and not os.path.islink(entry["path"]):
                raise IsADirectoryError(errno.EISDIR, "a directory is in the way", entry["path"])
        for entry in job["write"]:
            os.rename(entry["path"] + SUFFIX, entry["path"])
        for path in job["remove"]:
            remove(path)
        os.sync()
    except OSError as error:
        for entry in job["write"]:
            if os.path.lexists(entry["path"] + SUFFIX):
                os.unlink(entry["path"] + SUFFIX)
        sys.exit(f"home-forwarder: cannot write the files: {error}")


main()
