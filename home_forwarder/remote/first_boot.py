# SPDX-License-Identifier: GPL-3.0-or-later
"""Part of the user-data of a new VPS: do once what its job says, which this itself is in.

Run by home-forwarder-boot.service. Install the packages, trying until that works; write the files
and start the units, or run the pull; then delete the service, and this. What happens is printed,
and home-forwarder-boot.service keeps it in /var/log/home-forwarder-boot.log.
Standard library of Python 3.9.
"""

from __future__ import annotations

import glob
import json
import lzma
import os
import re
import sys
import time

from home_forwarder.remote.installing import install
from home_forwarder.remote.running import Failed, run
from home_forwarder.remote.steps import held, known_homes, wait, write

TYPE_CHECKING = False
if TYPE_CHECKING:  # only for a type checker, which knows the name
    from collections.abc import Callable
    from typing import Any, TypedDict

    from home_forwarder.remote.steps import Port, Relay

    class Job(TypedDict, total=False):
        """What home_forwarder/user_data.py wants to be done; not all of it is in each mode."""

        host: str
        install: dict[str, Any]
        apply: dict[str, Any]
        pull: list[str]
        enable: list[str]


UNIT = "home-forwarder-boot.service"
DIRECTORY = "/var/lib/home-forwarder-boot"  # DIRECTORY in home_forwarder/user_data.py
JOB = f"{DIRECTORY}/job"  # packed by lzma
NOTE = f"{DIRECTORY}/note"  # "begun": writing files; "done": never again
CONF = "/etc/home-forwarder.conf"
LEFT = "this VPS has been deployed already; it is left as it is"
GIVE_UP = 1800  # seconds for one step; then again at the next boot
PAUSE_AT_FIRST = 5  # seconds between attempts; then twice as long each time, up to
PAUSE_AT_LAST = 30
LOCKED = 60  # seconds to wait for who deploys, before that is said


def say(text: str) -> None:
    for line in text.splitlines():
        print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)


def until_it_works(what: str, step: Callable[[Job], int | None], job: Job) -> int:
    """Raises: Failed when it has not worked for GIVE_UP."""
    give_up = time.monotonic() + GIVE_UP
    pause = PAUSE_AT_FIRST
    while True:
        try:
            return step(job) or 0
        except Failed as failure:
            if time.monotonic() + pause > give_up:
                raise
            say(f"could not {what}, will try again in {pause} s: {failure}")
            time.sleep(pause)
            pause = min(pause * 2, PAUSE_AT_LAST)


def install_packages(job: Job) -> None:
    """Install what is missing."""
    installed, warnings = install(**job["install"])
    for warning in warnings:
        say(warning)
    if installed:
        say(f"installed {', '.join(installed)}")


def say_host_key(path: str) -> None:
    """What an operator compares with what ssh asks at the first contact."""
    say("ssh host key: " + run(["ssh-keygen", "-lf", path]).strip())


def pull(job: Job) -> None:
    say(run(job["pull"]))


def apply(job: Job) -> int:
    """Write the files and start the units, as a deploy does. Returns: how much went wrong."""
    todo = job["apply"]
    busy = held(todo["lock"], todo["who"], LOCKED)
    if busy:
        raise Failed(f"{busy} is just changing this VPS")
    write_note("begun")
    write(todo["write"], todo["unfinished"])
    write_note("done")  # nothing of it is repeated, since the next boot starts it anyway
    say(f"wrote {len(todo['write'])} files and links")
    troubles = 0
    for command in todo["systemctl"]:
        troubles += tried(run, ["systemctl", *command])
    homes = known_homes(*todo["addresses"])
    troubles += tried(wait, todo["relays"], homes, listening)
    wanted_homes = [relay["home"] for relay in todo["relays"]]
    ready = sum(home in homes for home in wanted_homes)
    say(f"{ready} of {len(wanted_homes)} forwards have an address to forward to")
    for number in sorted(set(wanted_homes) - homes):
        say(f"home {number} has no address yet; its forwards start as soon as it resolves")
    return troubles


def tried(step: Callable[..., object], *arguments: object) -> bool:
    """Did it fail? What failed has been said then."""
    try:
        step(*arguments)
    except Failed as failure:
        say(str(failure))
        return True
    return False


def listening(relays: list[Relay]) -> set[Port]:
    """Who listens where. That it is the relays is beyond doubt: nobody else is here yet."""
    there: set[tuple[str, int]] = set()
    for protocol, state in ("tcp", "0A"), ("udp", "07"):
        for path in glob.glob(f"/proc/net/{protocol}*"):
            with open(path) as file:
                ports = re.findall(rf":(\w+) \w+:\w+ {state} ", file.read())
            there |= {(protocol, int(port, 16)) for port in ports}
    return {(relay["unit"], *each) for relay in relays for each in there}


def read_note() -> str:
    try:
        with open(NOTE) as file:
            return file.read()
    except OSError:
        return ""


def write_note(text: str) -> None:
    with open(NOTE, "w") as file:
        file.write(text)


def clean_up() -> None:
    """Leave nothing but the log and the note."""
    run(["systemctl", "disable", UNIT])
    os.unlink(f"/etc/systemd/system/{UNIT}")
    os.unlink(JOB)
    run(["systemctl", "daemon-reload"])


def work() -> bool:
    """True if all is well now. Raises: Failed if there is more to do."""
    with lzma.open(JOB) as file:
        job: Job = json.load(file)
    if read_note() == "done":  # the provider calls it a new instance
        say(LEFT)
        return True
    say(f"first boot as {job['host']}")
    for path in sorted(glob.glob("/etc/ssh/ssh_host_*_key.pub")):
        tried(say_host_key, path)
    until_it_works("install the packages", install_packages, job)
    troubles = 0
    if "pull" in job:
        until_it_works("deploy", pull, job)
    elif os.path.exists(CONF) and read_note() != "begun":  # somebody was faster than a late mirror
        say(LEFT)
    else:
        troubles = until_it_works("change this VPS", apply, job)
    for unit in job.get("enable", ()):
        run(["systemctl", "enable", "--now", unit])
    write_note("done")
    return not troubles


def main() -> None:
    try:
        well = work()
        clean_up()
    except (Failed, OSError) as failure:
        say(f"failed: {failure}")
        say(f"failed; again at the next boot, or now by: systemctl start {UNIT}")
        sys.exit(1)
    say("done" if well else "done, but not all is well: see above")


if __name__ == "__main__":
    main()
