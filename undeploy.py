# SPDX-License-Identifier: GPL-3.0-or-later
"""Take everything of ours away again: pyinfra inventory.py undeploy.py [--data remove_state=yes]

Packages stay: others may use them by now.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # pyinfra may be run in any directory

from operations.deploys import take_away

take_away()
