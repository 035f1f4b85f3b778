#!/usr/bin/python3 -I
# SPDX-License-Identifier: GPL-3.0-or-later
"""Get home-forwarder at the commit of pull.json beside this file, and deploy it to this very VPS.

Run at the first boot, by home-forwarder-pull.timer, and by hand. Standard library of Python 3.9.
"""

import hashlib
import json
import os
import re
import subprocess
import sys

PLACE = os.path.dirname(os.path.abspath(__file__))
CHECKOUT = f"{PLACE}/checkout"
VENV = f"{PLACE}/venv"
INVENTORY = f"{PLACE}/inventory.py"

# This VPS alone, in the groups and with the data that it has in the repository's inventory.py;
# reached without ssh, as root already.
LOCAL = """
import runpy

def _here(hosts):
    found = [host for host in hosts if (host[0] if isinstance(host, tuple) else host) == {host!r}]
    data = dict(found[0][1]) if found and isinstance(found[0], tuple) else {{}}
    data = {{key: value for key, value in data.items() if not key.startswith(("_su", "_doas"))}}
    return [("@local", data)] if found else []

for _name, _group in runpy.run_path({inventory!r}).items():
    if _name.startswith("_"):
        continue
    if isinstance(_group, list) and _here(_group):
        globals()[_name] = _here(_group)
    elif isinstance(_group, tuple) and _group and isinstance(_group[0], list) and _here(_group[0]):
        globals()[_name] = (_here(_group[0]), *_group[1:])
"""


def run(*command, **options):
    subprocess.run(command, check=True, cwd=CHECKOUT, **options)


def git(*arguments, **options):
    run("git", *arguments, **options)


def fetch(url, commit, branch):
    """The commit that is checked out now. Raises: CalledProcessError; SystemExit if it is another."""
    os.makedirs(CHECKOUT, exist_ok=True)
    git("init", "--quiet")
    # The URL may hold a token, which must not be in an argument list.
    environment = {
        **os.environ,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "remote.source.url",
        "GIT_CONFIG_VALUE_0": url,
        "GIT_TERMINAL_PROMPT": "0",
    }
    wanted = commit or f"refs/heads/{branch}"
    fetching = ("fetch", "--quiet", "--no-tags")
    try:
        git(*fetching, "--depth=1", "source", wanted, env=environment)
        wanted = commit or "FETCH_HEAD"
    except subprocess.CalledProcessError:
        # Some servers give neither a single commit nor a part of the history.
        git(*fetching, "source", "+refs/heads/*:refs/remotes/source/*", env=environment)
        wanted = commit or f"refs/remotes/source/{branch}"
    git("checkout", "--quiet", "--force", "--detach", wanted)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, text=True).strip()
    if commit and head != commit:
        sys.exit(f"the repository gave {head} for the commit {commit}; nothing is deployed")
    return head


def install():
    """The Python packages of requirements.txt, with their hashes, if it has changed."""
    with open(f"{CHECKOUT}/requirements.txt", "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    note = f"{VENV}/installed"
    if os.path.exists(note):
        with open(note) as file:
            if file.read() == digest:
                return
    run("python3", "-m", "venv", "--clear", VENV)
    pip = [f"{VENV}/bin/pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "install", "--require-hashes", "-r", "requirements.txt")
    with open(note, "w") as file:
        file.write(digest)


def deploy(host):
    with open(INVENTORY, "w") as file:
        file.write(LOCAL.format(host=host, inventory=f"{CHECKOUT}/inventory.py"))
    run(f"{VENV}/bin/pyinfra", "-y", INVENTORY, "deploy.py")


def main():
    with open(f"{PLACE}/pull.json") as file:
        settings = json.load(file)
    try:
        head = fetch(settings["url"], settings["commit"], settings["branch"])
        install()
        deploy(settings["host"])
    except subprocess.CalledProcessError as error:
        command = re.sub(r"^.*/", "", error.cmd[0])
        sys.exit(f"home-forwarder: {command} {error.cmd[1]} ended with {error.returncode}")
    print(f"deployed {head}")


if __name__ == "__main__":
    main()
