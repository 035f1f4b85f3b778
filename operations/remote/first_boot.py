# SPDX-License-Identifier: GPL-3.0-or-later
"""Part of the user-data of a new VPS: do once what job.json.xz says, which this itself is in.

Run by home-forwarder-boot.service. Install the packages, trying until that works; write the files
and start the units, or run the pull; then delete the service, and this. What happens is printed,
and home-forwarder-boot.service keeps it in /var/log/home-forwarder-boot.log.
Standard library of Python 3.9.
"""

import glob
import hashlib
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
PATIENCE = 1800  # seconds for one step; then again at the next boot
PAUSES = (5, 10, 20, 30)  # seconds between attempts, then the last one again and again
SHOWN = 4  # lines of a failed command

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


def run(command, input=None):
    """What the command prints. Raises: Failed with the last lines of it."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    result = subprocess.run(
        command,
        input=input,
        stdin=None if input else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        encoding="utf-8",
        errors="replace",
    )
    if result.returncode:
        last = "\n    ".join(result.stdout.strip().splitlines()[-SHOWN:])
        raise Failed(f"{' '.join(command)[:200]} ended with {result.returncode}:\n    {last}")
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


def install(packages):
    missing = [package for package in packages if not is_installed(package)]
    if not missing:
        return
    manager = next((each for each in INSTALL if shutil.which(each)), None)
    if manager is None:
        raise Failed(f"neither of {', '.join(INSTALL)} is here to install {', '.join(missing)}")
    *before, last = INSTALL[manager]
    for command in before:
        run(command)
    run([*last, *missing])
    say(f"installed {', '.join(missing)}")


def bake(job):
    """What a deploy does on an empty VPS, in its order."""
    programs = job["programs"]
    python = [sys.executable, "-IS", "-c"]
    run([*python, programs["install.py"]], json.dumps({"write": job["write"], "remove": []}))
    say(f"wrote {len(job['write'])} files and links")
    run(["systemctl", "daemon-reload"])
    try:
        run(["systemctl", "start", "home-address-updater.service"])
    except Failed as failure:
        say(f"the first look-up of the homes failed, the next follows: {failure}")
    run(["systemctl", "start", *job["start"]])
    known = known_homes()
    ready = [relay for relay in job["relays"] if relay["home"] in known]
    try:
        run([*python, programs["wait.py"]], json.dumps(ready))
    except Failed as failure:
        say(f"not all forwards are up: {failure}")
    say(f"{len(ready)} of {len(job['relays'])} forwards have an address to forward to")
    for number in sorted({relay["home"] for relay in job["relays"]} - known):
        say(f"home {number} has no address yet; its forwards start as soon as it resolves")


def known_homes():
    """The INDEX of each home whose address is known."""
    try:
        with open("/etc/home-address-ipv6") as file:
            return {
                int(found) for found in re.findall(r"(?m)^HOME_IPV6_ADDRESS_(\d+)=", file.read())
            }
    except OSError:
        return set()


def clean_up(directory, digest):
    """Leave nothing but the log, and a note of what has been done."""
    with open(f"{directory}/done", "w") as file:
        file.write(f"{digest}\n")
    run(["systemctl", "disable", UNIT])
    os.unlink(f"/etc/systemd/system/{UNIT}")
    for path in glob.glob(f"{directory}/*"):
        if not path.endswith("/done"):
            os.unlink(path)
    run(["systemctl", "daemon-reload"])


def main():
    with open(f"{DIRECTORY}/job.json.xz", "rb") as file:
        packed = file.read()
    digest = hashlib.sha256(packed).hexdigest()
    job = json.loads(lzma.decompress(packed))
    try:
        with open(f"{DIRECTORY}/done") as file:
            done = file.read().strip()
    except OSError:
        done = ""
    if done == digest:
        # The provider calls it a new instance, but it is the VPS that it was: a deploy since then
        # must not be undone.
        say("this has been done here before; everything is left as it is")
        clean_up(DIRECTORY, digest)
        return
    say(f"first boot as {job['host']}")
    try:
        until_it_works("install the packages", lambda: install(job["packages"]))
        if "pull" in job:
            until_it_works("deploy", lambda: say(run(job["pull"])))
        else:
            bake(job)
        for unit in job.get("enable", ()):
            run(["systemctl", "enable", "--now", unit])
        clean_up(DIRECTORY, digest)
    except Failed as failure:
        say(f"failed: {failure}")
        sys.exit(f"failed; again at the next boot, or now by: systemctl start {UNIT}")
    say("done")


main()
