# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of cloud_init.py: from the inventory to user-data on standard output."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from home_forwarder.config import Config
from home_forwarder.mistakes import DataError
from home_forwarder.user_data import Pull, Refused, baked, packed, pulled, sizes
from operations.data import WrongData, config_of
from operations.inventory import load_inventory

EXAMPLES = """
examples:
  python cloud_init.py vps1                              look at it
  python cloud_init.py vps1 -o user-data.yml             give this file to the provider
  python cloud_init.py vps1 -o user-data.gz --gzip       compressed, for providers that take bytes
  python cloud_init.py vps1 --check                      with cloud-init's own checker
  python cloud_init.py vps1 --pull https://git.example.net/me/home-forwarder.git \\
      --commit "$(git rev-parse HEAD)"                   the VPS deploys itself, once
  ... --branch main --every 60                           and follows the branch

docs/cloud-init.md says how a VPS is made with it at several providers.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done. 1: wrong data, or refused; the message says what would be right. 2: wrong usage."""
    options = _parse(arguments)
    try:
        text = _text(options)
        if options.check:
            return _check(text)
        _give(packed(text) if options.gzip else text.encode(), options)
    except DataError as error:
        return _say(f"{options.host}: {mistake}" for mistake in error.mistakes)
    except WrongData as error:
        return _say(error.mistakes)
    except (Refused, OSError) as error:
        return _say([str(error)])
    print(*sizes(text), sep="\n", file=sys.stderr)
    return 0


def _say(lines: Iterable[str]) -> int:
    print(*lines, sep="\n", file=sys.stderr)
    return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cloud_init.py",
        description="Print the cloud-init user-data with which a new VPS forwards from its first boot"
        " as inventory.py and group_data/ declare it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("host", metavar="HOST", help="its name in the inventory")
    parser.add_argument("-o", "--output", metavar="FILE", help="write it to FILE (mode 0600)")
    parser.add_argument(
        "--gzip", action="store_true", help="compressed as a whole, for providers that take bytes"
    )
    parser.add_argument(
        "--check", action="store_true", help="print nothing; let cloud-init check it, if it is here"
    )
    parser.add_argument("--inventory", metavar="FILE", default="inventory.py")
    parser.add_argument(
        "--with-secret",
        metavar="NAME",
        action="append",
        default=[],
        help="let this secret into the user-data; the refusal says its name",
    )
    pull = parser.add_argument_group(
        "pull mode", "the VPS gets this project by git and deploys itself"
    )
    pull.add_argument("--pull", metavar="URL", help="your repository, with your data in it")
    pull.add_argument("--commit", default="", help="deploy this commit")
    pull.add_argument("--branch", default="", help="or whatever is on this branch")
    pull.add_argument(
        "--every", metavar="MINUTES", type=int, default=0, help="again and again, not just once"
    )
    options = parser.parse_args(arguments)
    if options.pull and bool(options.commit) == bool(options.branch):
        parser.error("--pull needs one of --commit and --branch")
    if not options.pull and (options.commit or options.branch or options.every):
        parser.error("--commit, --branch and --every belong to --pull")
    if options.every < 0:
        parser.error("--every: write the minutes between two pulls")
    return options


def _text(options: argparse.Namespace) -> str:
    config = _config(options.inventory, options.host)
    if not options.pull:
        return baked(options.host, config, options.with_secret)
    pull = Pull(options.pull, options.commit, options.branch, options.every)
    return pulled(options.host, config, pull, options.with_secret)


def _config(path: str, name: str) -> Config:
    """Raises: WrongData, DataError, Refused."""
    if not Path(path).is_file():
        raise Refused(f"there is no {path} here; run this where your inventory.py is")
    hosts = {host.name: host for host in load_inventory(path)}
    if not name.isprintable():
        raise Refused(f"{name!r} is no name for a host; write it without line breaks and the like")
    if name not in hosts:
        close = difflib.get_close_matches(name, hosts, n=1)
        there = f"did you mean {close[0]}? " if close else ""
        raise Refused(f"{path} has no host {name!r}; {there}it has {', '.join(hosts) or 'none'}")
    return config_of(hosts[name])


def _give(content: bytes, options: argparse.Namespace) -> None:
    """Write it where it is wanted; a file appears whole, and for its owner alone."""
    if not options.output:
        if options.gzip and sys.stdout.isatty():
            raise Refused("this would be gibberish on a terminal; write it to a file with -o FILE")
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    path = Path(options.output)
    descriptor, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(new).replace(path)
    except OSError:
        Path(new).unlink()
        raise


def _check(text: str) -> int:
    """Let cloud-init's own checker read it."""
    if not shutil.which("cloud-init"):
        raise Refused(
            "cloud-init is not installed here, so its checker cannot be asked. On any server that"
            " has it: cloud-init schema --config-file FILE"
        )
    with tempfile.NamedTemporaryFile("w", suffix=".yml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        result = subprocess.run(
            ["cloud-init", "schema", "--config-file", file.name],
            capture_output=True,
            text=True,
            check=False,
        )
    print((result.stdout + result.stderr).strip().replace(file.name, "the user-data"))
    return 1 if result.returncode else 0
