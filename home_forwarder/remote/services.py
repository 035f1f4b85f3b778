# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: keep a distribution's service off while its package is installed.

Arguments: "hold SERVICE...", before the package is installed, or "release", after that, also of what an
earlier run has held. Standard library of Python 3.9.

A relay that is nginx needs the package nginx, which brings a web server: nginx.service. If that was there
before us, it goes on untouched, and so it stays if it was off. If it was not, its package would start it on
port 80, at once and at each boot: while the package is being installed, a drop-in keeps it from
starting; afterwards it is disabled, once, and the drop-in taken away. The drop-in tells a later run that
this one was cut off in between. An admin may enable the service any time after; no deploy touches it.
"""

from __future__ import annotations

import glob
import os
import subprocess
import sys

DROP_IN = "/etc/systemd/system/{}.d/home-forwarder.conf"
CONDITION = "ConditionPathExists=!/"
HELD = f"# Until home-forwarder has installed the package.\n[Unit]\n{CONDITION}\n"
# Where units are, but for those that systemd makes up: it does so out of the script in /etc/init.d
# that a removed package leaves.
PLACES = ("/etc", "/usr/local/lib", "/usr/lib", "/lib")


def is_there(service: str) -> bool:
    """Is there a file of that unit? A mask is none."""
    return any(os.path.isfile(f"{place}/systemd/system/{service}") for place in PLACES)


def systemctl(*arguments: str) -> None:
    subprocess.run(["systemctl", "-q", *arguments], check=True)


def hold(service: str) -> None:
    """Keep it from starting, unless it is there already."""
    path = DROP_IN.format(service)
    if not is_there(service):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(HELD)
        systemctl("daemon-reload")


def release() -> None:
    """Disable each that was kept from starting, and let it go."""
    for path in glob.glob(DROP_IN.format("*.service")):
        with open(path) as file:
            if CONDITION not in file.read():
                continue
        directory = os.path.dirname(path)
        service = os.path.basename(directory)[: -len(".d")]
        if is_there(service):
            systemctl("disable", service)
        os.unlink(path)
        if not os.listdir(directory):
            os.rmdir(directory)
        systemctl("daemon-reload")


def main() -> None:
    verb, *services = sys.argv[1:]
    os.umask(0o022)
    try:
        for service in services if verb == "hold" else ():
            hold(service)
        if verb == "release":
            release()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"home-forwarder: cannot {verb} the distribution's service: {error}")


if __name__ == "__main__":
    main()
