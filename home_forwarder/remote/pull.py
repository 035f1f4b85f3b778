#!/usr/bin/python3 -I
# SPDX-License-Identifier: GPL-3.0-or-later
"""Get home-forwarder at the commit of pull.json beside this file, and deploy it to this very VPS.

Run at the first boot, by home-forwarder-pull.timer, and by hand. As `pull credential get` it is git's
credential helper. Standard library of Python 3.9.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from urllib.parse import unquote, urlsplit

PROGRAM = os.path.abspath(__file__)
PLACE = os.path.dirname(PROGRAM)
SETTINGS = f"{PLACE}/pull.json"
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


def read_settings() -> dict[str, str]:
    with open(SETTINGS) as file:
        settings: dict[str, str] = json.load(file)
    return settings


def run(*command: str, environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, cwd=CHECKOUT, env=environment)


def git(*arguments: str, **variables: str) -> None:
    run("git", *arguments, environment={**os.environ, **variables})


def print_credential() -> None:
    """The user and the password or token of the URL, as git reads them: gitcredentials(7)."""
    parts = urlsplit(read_settings()["url"])
    print(f"username={unquote(parts.username or '')}")
    print(f"password={unquote(parts.password or '')}")


def git_settings(url: str) -> dict[str, str]:
    """As variables, which nothing writes down: where to fetch from, and who knows the password.

    git starts other programs with the URL in their arguments, which every user of a system can read.
    So it gets one without a password, and a helper that it may ask for that of this server alone.
    """
    parts = urlsplit(url)
    server = parts.netloc.rpartition("@")[2]
    settings = [("remote.source.url", parts._replace(netloc=server).geturl())]
    if server != parts.netloc:
        helper = f"!{shlex.quote(PROGRAM)} credential"
        # The first line: whatever helper is configured besides would be told the password.
        settings.append(("credential.helper", ""))
        settings.append((f"credential.{parts.scheme}://{server}.helper", helper))
    variables = {"GIT_CONFIG_COUNT": str(len(settings)), "GIT_TERMINAL_PROMPT": "0"}
    for number, (key, value) in enumerate(settings):
        variables.update({f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value})
    return variables


def fetch(url: str, commit: str, branch: str) -> str:
    """The commit that is checked out now. Raises: CalledProcessError; SystemExit if it is another."""
    os.makedirs(CHECKOUT, exist_ok=True)
    git("init", "--quiet")
    variables = git_settings(url)
    wanted = commit or f"refs/heads/{branch}"
    fetching = ("fetch", "--quiet", "--no-tags")
    try:
        git(*fetching, "--depth=1", "source", wanted, **variables)
        wanted = commit or "FETCH_HEAD"
    except subprocess.CalledProcessError:
        # Some servers give neither a single commit nor a part of the history.
        git(*fetching, "source", "+refs/heads/*:refs/remotes/source/*", **variables)
        wanted = commit or f"refs/remotes/source/{branch}"
    git("checkout", "--quiet", "--force", "--detach", wanted)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, text=True).strip()
    if commit and head != commit:
        sys.exit(f"the repository gave {head} for the commit {commit}; nothing is deployed")
    return head


def install() -> None:
    """The Python packages of requirements.txt, with their hashes, if it has changed.

    Nothing but wheels: what builds a package of another kind is pinned by nobody, and runs as root.
    """
    with open(f"{CHECKOUT}/requirements.txt", "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    note = f"{VENV}/installed"
    if os.path.exists(note):
        with open(note) as file:
            if file.read() == digest:
                return
    run("python3", "-m", "venv", "--clear", VENV)
    pip = [f"{VENV}/bin/pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "install", "--require-hashes", "--only-binary=:all:", "-r", "requirements.txt")
    with open(note, "w") as file:
        file.write(digest)


def deploy(host: str) -> None:
    with open(INVENTORY, "w") as file:
        file.write(LOCAL.format(host=host, inventory=f"{CHECKOUT}/inventory.py"))
    run(f"{VENV}/bin/pyinfra", "-y", INVENTORY, "deploy.py")


def main() -> None:
    settings = read_settings()
    try:
        head = fetch(settings["url"], settings["commit"], settings["branch"])
        install()
        deploy(settings["host"])
    except subprocess.CalledProcessError as error:
        command = re.sub(r"^.*/", "", error.cmd[0])
        sys.exit(f"home-forwarder: {command} {error.cmd[1]} ended with {error.returncode}")
    print(f"deployed {head}")


if __name__ == "__main__":
    if sys.argv[1:2] != ["credential"]:
        main()
    elif sys.argv[2:] == ["get"]:  # git also says what to store and what to erase
        print_credential()
