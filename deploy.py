# SPDX-License-Identifier: GPL-3.0-or-later
"""Make every VPS forward as declared: pyinfra inventory.py deploy.py"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # pyinfra may be run in any directory

from operations.deploys import deploy

deploy()
