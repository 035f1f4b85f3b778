# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m lab`."""

import sys

try:
    from lab.cli import main
except ModuleNotFoundError as error:
    if error.name != "dns":
        raise
    sys.exit("The lab needs dnspython: python -m pip install dnspython")

sys.exit(main())
