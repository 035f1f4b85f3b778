# SPDX-License-Identifier: GPL-3.0-or-later
"""Part of the user-data of a new VPS: do once what its job says, which this itself is in.

Run by home-forwarder-boot.service. Install the packages, trying until that works; write the files
and start the units, or run the pull; then delete the service, and this. What happens is printed,
and home-forwarder-boot.service keeps it in /var/log/home-forwarder-boot.log.
Standard library of Python 3.9.
"""

from __future__ import annotations

import base64
import glob
import json
import lzma
import os
import sys
import time
from collections.abc import Callable
from functools import partial

from home_forwarder.remote.steps import (
    Failed,
    Port,
    Relay,
    held,
    known_homes,
    run,
    wait,
    write,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # only for a type checker, which knows the name
    from typing import Any, TypedDict

    class Job(TypedDict, total=False):
        """What home_forwarder/user_data.py wants to be done; not all of it is in each mode."""

        host: str
        install: dict[str, Any]
        programs: dict[str, str]
        apply: dict[str, Any]
        pull: list[str]
        enable: list[str]


UNIT = "home-forwarder-boot.service"
DIRECTORY = "/var/lib/home-forwarder-boot"  # DIRECTORY in home_forwarder/user_data.py
JOB = f"{DIRECTORY}/job"
NOTE = f"{DIRECTORY}/note"  # "begun": writing files; "done": never again
CONF = "/etc/home-forwarder.conf"
LEFT = "this VPS has been deployed already; it is left as it is"
PYTHON = [sys.executable, "-IS", "-c"]
GIVE_UP = 1800  # seconds for one step; then again at the next boot
PAUSES = (5, 10, 20, 30)  # seconds between attempts, then the last one again and again
LOCKED = 60  # seconds to wait for a package manager that others use, before that is said


def say(text: str) -> None:
    for line in text.splitlines():
        print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)


def until_it_works(what: str, step: Callable[[], int | None]) -> int:
    """Raises: Failed when it has not worked for GIVE_UP."""
    give_up = time.monotonic() + GIVE_UP
    pauses = list(PAUSES)
    while True:
        try:
            return step() or 0
        except Failed as failure:
            pause = pauses.pop(0) if len(pauses) > 1 else pauses[0]
            if time.monotonic() + pause > give_up:
                raise
            say(f"could not {what}, will try again in {pause} s: {failure}")
            time.sleep(pause)


def install(job: Job) -> None:
    """Install what is missing."""
    what = json.dumps({**job["install"], "patience": LOCKED})
    program = [*PYTHON, job["programs"]["packages.py"]]
    said = json.loads(run(program, what, name="installing the packages").splitlines()[-1])
    for warning in said.get("warnings", ()):
        say(warning)
    if "installed" not in said:
        raise Failed(said.get("waiting") or said["failed"])
    if said["installed"]:
        say(f"installed {', '.join(said['installed'])}")


def say_host_keys() -> None:
    """What an operator compares with what ssh asks at the first contact."""
    for path in sorted(glob.glob("/etc/ssh/ssh_host_*_key.pub")):
        try:
            say("ssh host key: " + run(["ssh-keygen", "-lf", path]).strip())
        except Failed as failure:
            say(str(failure))


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
        troubles += tried(partial(run, ["systemctl", *command]))
    homes = known_homes(*todo["addresses"])
    troubles += tried(partial(wait, todo["relays"], homes, listening))
    wanted_homes = [relay["home"] for relay in todo["relays"]]
    ready = sum(home in homes for home in wanted_homes)
    say(f"{ready} of {len(wanted_homes)} forwards have an address to forward to")
    for number in sorted(set(wanted_homes) - homes):
        say(f"home {number} has no address yet; its forwards start as soon as it resolves")
    return troubles


def tried(step: Callable[[], object]) -> bool:
    """Did it fail? What failed has been said then."""
    try:
        step()
    except Failed as failure:
        say(str(failure))
        return True
    return False


def listening(relays: list[Relay]) -> set[Port]:
    """Who listens where. That it is the relays is beyond doubt: nobody else is here yet."""
    there = set()
    for protocol, state in ("tcp", "0A"), ("udp", "07"):
        for path in glob.glob(f"/proc/net/{protocol}*"):
            with open(path) as file:
                for line in file.readlines()[1:]:
                    fields = line.split()
                    if fields[3] == state:
                        there.add((protocol, int(fields[1].rpartition(":")[2], 16)))
    return {
        (relay["unit"], protocol, port)
        for relay in relays
        for protocol, port in there
        if protocol == relay["protocol"]
    }


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
    with open(JOB) as file:
        job: Job = json.loads(lzma.decompress(base64.b85decode(file.read().strip())))
    if read_note() == "done":  # the provider calls it a new instance
        say(LEFT)
        return True
    say(f"first boot as {job['host']}")
    say_host_keys()
    until_it_works("install the packages", lambda: install(job))
    troubles = 0
    if "pull" in job:
        until_it_works("deploy", lambda: say(run(job["pull"])))
    elif os.path.exists(CONF) and read_note() != "begun":  # somebody was faster than a late mirror
        say(LEFT)
    else:
        troubles = until_it_works("change this VPS", lambda: apply(job))
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
