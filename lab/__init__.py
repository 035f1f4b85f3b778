# SPDX-License-Identifier: GPL-3.0-or-later
"""Throw-away VPSes, homes, clients and DNS on one Linux machine.

    with Lab("demo", vpses={"vps1": "trixie"}, homes=["home0"]) as lab:
        lab.home["home0"].serve(tcp=[44444])
        lab.vps["vps1"].run("systemctl is-system-running")

See README.md beside this file.
"""

from __future__ import annotations

import sys

try:
    from lab.errors import CommandFailed, LabError
    from lab.home import Home
    from lab.host import Host, Operator, PlainHost
    from lab.image import RELEASES, Image
    from lab.lab import Lab, check_prerequisites
    from lab.nameserver import FAULTS, ZONE, NameServer, Query
    from lab.owner import names
    from lab.vps import Vps
except ModuleNotFoundError as error:
    if error.name != "dns" or sys.argv[0] != "-m":
        raise
    # «python -m lab»: a sentence, no traceback.
    sys.exit("lab: The lab needs dnspython: python -m pip install dnspython")

__all__ = [
    "FAULTS",
    "RELEASES",
    "ZONE",
    "CommandFailed",
    "Home",
    "Host",
    "Image",
    "Lab",
    "LabError",
    "NameServer",
    "Operator",
    "PlainHost",
    "Query",
    "Vps",
    "check_prerequisites",
    "names",
]
