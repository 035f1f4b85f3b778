# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages: the operation that installs what is missing, whatever else is going on on a new VPS."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from paramiko import SSHException
from pyinfra import host, logger
from pyinfra.api import FunctionCommand, operation
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.state import State

from home_forwarder.compare import Observed
from home_forwarder.plan import Package
from home_forwarder.render import sent_source_of
from operations.facts import Commands
from operations.sending import Call, NotUnderstood, lines_of, run

HELD = ".service.d/home-forwarder.conf"
"""Ends the path of what home_forwarder/remote/services.py leaves until a package is installed."""
PATIENCE = 120
"""Seconds to wait, in all, for others who use the package manager: a new server is often busy with its
own upgrades."""
INSTALL_SECONDS = 1800
"""A download over a slow line; one that hangs is given up."""
ROUND = 10
"""Seconds of it between two lines that say so."""

WITHOUT_PYTHON = r"""
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
answer() {
    printf '{"%s": "%s"}\n' "$1" "$(printf %s "$2" | tr '\n\t"\\' "  ''" | tr -d '\000-\037')"
    exit
}
if command -v apt-get >/dev/null; then
    said=$(exec 2>&1 </dev/null
        apt-get update -qq
        apt-get install -qq -y --no-install-recommends python3)
else
    said=$(dnf install -q -y --setopt=exit_on_lock=1 --setopt='*.skip_if_unavailable=1' python3 \
        2>&1 </dev/null)
    [ $? = 200 ] && { sleep 9; answer waiting 'dnf is locked by another one'; }
fi
command -v python3 >/dev/null && answer again 'installed python3'
locked=$(printf %s "$said" | sed -n 's/^E: \(Could not get lock .*\)/\1/p' | head -n 1)
[ -n "$locked" ] && { sleep 9; answer waiting "$locked"; }
answer failed "could not install python3: $said"
"""
"""Shell, for a VPS that has no Python yet: install it, and answer as packages.py does, or "again".

It may come to sh through standard input, so nothing in it reads from there."""


@operation()
def install_packages(packages: Sequence[Package], seen: Observed) -> Commands:
    """
    Install what is missing with the distribution's package manager.

    + packages: what the VPS needs; with none, only what a run that was cut off left is mended
    + seen: the VPS before anything was changed

    A service that a package brings, and would start, stays off unless it was there before.

    **Example:**

    .. code:: python

        install_packages(name="Install the packages", packages=plan.packages, seen=seen)
    """
    missing = [package.name for package in packages if package.name not in seen.packages]
    if not missing and not any(path.endswith(HELD) for path in seen.files):
        host.noop("all packages are installed")
        return
    yield FunctionCommand(_install, (packages,), {})


def _install(state: State, host: Host, packages: Sequence[Package]) -> bool:
    """False if it could not be done; that has been said then."""
    job = json.dumps(
        {
            "packages": [package.job for package in packages],
            "patience": ROUND,
            "services": sent_source_of("services.py"),
        }
    )
    call = Call(sent_source_of("packages.py"), otherwise=WITHOUT_PYTHON)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            answer = run(state, host, call, stdin=job, timeout=INSTALL_SECONDS)
        except (NotUnderstood, TimeoutError, OSError, SSHException, PyinfraError) as error:
            answer = {"failed": str(error)}
        for warning in answer.get("warnings", ()):
            _say(host, warning, "yellow")
        if "installed" in answer:
            if answer["installed"]:
                host.log(f"Installed {', '.join(answer['installed'])}", logger.info)
            return True
        if "failed" in answer:
            _say(host, answer["failed"], "red")
            return False
        news = answer.get("again") or f"Waiting: {answer.get('waiting')}"
        if time.monotonic() > deadline:
            _say(host, f"{news}, for {PATIENCE} s now; deploy again when that is done", "red")
            return False
        host.log(" ".join(lines_of(news)), logger.info)


def _say(host: Host, text: str, colour: str) -> None:
    for line in lines_of(text):
        host.log_styled(line, fg=colour, log_func=logger.warning)
