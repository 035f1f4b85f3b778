# SPDX-License-Identifier: GPL-3.0-or-later
"""Part of the user-data of a new VPS: do once what its job says, which this itself is in.

Run by home-forwarder-boot.service. Install the packages, trying until that works; write the files
and start the units, or run the pull; then delete the service, and this. What happens is printed,
and home-forwarder-boot.service keeps it in /var/log/home-forwarder-boot.log.
Standard library of Python 3.9.
"""

import base64
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import time

UNIT = "home-forwarder-boot.service"
DIRECTORY = "/var/lib/home-forwarder-boot"  # DIRECTORY in home_forwarder/user_data.py
JOB = f"{DIRECTORY}/job"
NOTE = f"{DIRECTORY}/note"  # "begun": writing files; "done": never again
CONF = "/etc/home-forwarder.conf"
LEFT = "this VPS has been deployed already; it is left as it is"
PYTHON = [sys.executable, "-IS", "-c"]
PATIENCE = 1800  # seconds for one step; then again at the next boot
PAUSES = (5, 10, 20, 30)  # seconds between attempts, then the last one again and again
SHOWN = 12  # lines of a failed command

APT = ["apt-get", "-qq", "-y", "-o", "DPkg::Lock::Timeout=120"]
INSTALL = {
    "apt-get": [[*APT, "update"], [*APT, "--no-install-recommends", "install"]],
    "dnf": [["dnf", "-q", "-y", "install"]],
}


class Failed(Exception):
    pass


def say(text):
    for line in text.splitlines():
        print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)


def run(command, input=None, name=None):
    """What the command prints. Raises: Failed with its name, if it has one, and its last lines."""
    name = name or " ".join(command)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        result = subprocess.run(
            command,
            input=input,
            stdin=None if input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{name}: {str(error)[:200]}") from None
    if result.returncode:
        last = "\n    ".join(result.stdout.strip().splitlines()[-SHOWN:])
        raise Failed(f"{name} ended with {result.returncode}:\n    {last}")
    return result.stdout


def until_it_works(what, step):
    """Raises: Failed when it has not worked for PATIENCE."""
    give_up = time.monotonic() + PATIENCE
    pauses = list(PAUSES)
    while True:
        try:
            return step()
        except Failed as failure:
            pause = pauses.pop(0) if len(pauses) > 1 else pauses[0]
            if time.monotonic() + pause > give_up:
                raise
            say(f"could not {what}, will try again in {pause} s: {failure}")
            time.sleep(pause)


def is_installed(package):
    try:
        if shutil.which("dpkg-query"):
            return run(["dpkg-query", "-W", "-f", "${db:Status-Status}", package]) == "installed"
        return bool(run(["rpm", "-q", package]))
    except Failed:
        return False


def install(job):
    """Install what is missing, with the job's shell commands before and after it."""
    missing = [package for package in job["packages"] if not is_installed(package)]
    if missing:
        for command in job.get("before", ()):
            run(["sh", "-c", command])
        install_missing(missing)
    for command in job.get("after", ()):  # also if an earlier attempt was cut off just before them
        run(["sh", "-c", command])


def install_missing(missing):
    manager = next((each for each in INSTALL if shutil.which(each)), None)
    if manager is None:
        raise Failed(f"neither of {', '.join(INSTALL)} is here to install {', '.join(missing)}")
    *first, last = INSTALL[manager]
    for command in first:
        run(command)
    run([*last, *missing])
    say(f"installed {', '.join(missing)}")


def write_files(job):
    """What a deploy writes. Nothing of it is repeated, since the next boot starts it anyway."""
    write_note("begun")
    what = json.dumps({"write": job["write"], "remove": []})
    run([*PYTHON, job["programs"]["install.py"]], what, name="writing the files")
    write_note("done")
    say(f"wrote {len(job['write'])} files and links")


def start(job):
    """Look the homes up and start the units, as a deploy does. Returns: how much went wrong."""
    ready, troubles = [], 0
    for step in (
        lambda: run(["systemctl", "daemon-reload"]),
        lambda: run(["systemctl", "start", "home-address-updater.service"]),
        lambda: run(["systemctl", "start", *job["start"]], name="starting the units"),
        lambda: ready.extend(relay for relay in job["relays"] if relay["home"] in known_homes()),
        lambda: run([*PYTHON, job["programs"]["wait.py"]], json.dumps(ready), name="all forwards"),
    ):
        try:
            step()
        except Failed as failure:
            troubles += 1
            say(str(failure))
    say(f"{len(ready)} of {len(job['relays'])} forwards have an address to forward to")
    for number in sorted({relay["home"] for relay in job["relays"]} - known_homes()):
        say(f"home {number} has no address yet; its forwards start as soon as it resolves")
    return troubles


def known_homes():
    """The INDEX of each home whose address is known."""
    try:
        with open("/etc/home-address-ipv6") as file:
            return {
                int(found) for found in re.findall(r"(?m)^HOME_IPV6_ADDRESS_(\d+)=", file.read())
            }
    except OSError:
        return set()


def read_note():
    try:
        with open(NOTE) as file:
            return file.read()
    except OSError:
        return ""


def write_note(text):
    with open(NOTE, "w") as file:
        file.write(text)


def clean_up():
    """Leave nothing but the log and the note."""
    run(["systemctl", "disable", UNIT])
    os.unlink(f"/etc/systemd/system/{UNIT}")
    os.unlink(JOB)
    run(["systemctl", "daemon-reload"])


def work():
    """True if all is well now. Raises: Failed if there is more to do."""
    with open(JOB) as file:
        job = json.loads(lzma.decompress(base64.b85decode(file.read().strip())))
    if read_note() == "done":  # the provider calls it a new instance
        say(LEFT)
        return True
    say(f"first boot as {job['host']}")
    until_it_works("install the packages", lambda: install(job))
    troubles = 0
    if "pull" in job:
        until_it_works("deploy", lambda: say(run(job["pull"])))
    elif os.path.exists(CONF) and read_note() != "begun":  # somebody was faster than a late mirror
        say(LEFT)
    else:
        write_files(job)
        troubles = start(job)
    for unit in job.get("enable", ()):
        run(["systemctl", "enable", "--now", unit])
    write_note("done")
    return not troubles


def main():
    try:
        well = work()
        clean_up()
    except (Failed, OSError) as failure:
        say(f"failed: {failure}")
        say(f"failed; again at the next boot, or now by: systemctl start {UNIT}")
        sys.exit(1)
    say("done" if well else "done, but not all is well: see above")


main()
