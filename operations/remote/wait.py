# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: wait until relays listen. Standard library of Python 3.9.

Standard input: [{unit, protocol, port}] as JSON. Ends with 0 as soon as all of them listen. When for
SECONDS no further one has come up, it says which ones do not listen, with the last line of their
journal, and ends with 1: hundreds take their time on a small VPS.
"""

import glob
import json
import subprocess
import sys
import time

SECONDS = 5.0
LISTENS = {"tcp": "0A", "udp": "07"}  # the state of a socket in /proc/net


def listening():
    """(protocol, port) of all sockets that wait for clients."""
    found = set()
    for protocol, state in LISTENS.items():
        for path in glob.glob(f"/proc/net/{protocol}*"):
            with open(path) as file:
                for line in file.readlines()[1:]:
                    fields = line.split()
                    if fields[3] == state:
                        found.add((protocol, int(fields[1].rpartition(":")[2], 16)))
    return found


def main():
    relays = json.load(sys.stdin)
    missing, deadline = relays, time.monotonic() + SECONDS
    while missing and time.monotonic() < deadline:
        there = listening()
        before = len(missing)
        missing = [relay for relay in missing if (relay["protocol"], relay["port"]) not in there]
        if len(missing) < before:
            deadline = time.monotonic() + SECONDS
        time.sleep(0.05 if missing else 0)
    for relay in missing:
        journal = ["journalctl", "-q", "-o", "cat", "-n", "1", "-u", relay["unit"]]
        said = subprocess.run(journal, stdout=subprocess.PIPE).stdout.decode(errors="replace")
        print(f"{relay['unit']} does not listen: {said.strip()}", file=sys.stderr)
    sys.exit(bool(missing))


main()
