# SPDX-License-Identifier: GPL-3.0-or-later
"""pyinfra reads this file before the inventory, and so before it connects to any host.

That makes it the place to find what is wrong with the data (promise 11): the inventory and the group
data are loaded here once more, just to be checked.
"""

import sys
from pathlib import Path

import click
from pyinfra import config
from pyinfra.context import ctx_state

sys.path.insert(0, str(Path(__file__).resolve().parent))  # before what else is called operations

from operations.command_line import check_before_connecting
from operations.connecting import heed

config.REQUIRE_PYINFRA_VERSION = "~=3.10"

check_before_connecting(click.get_current_context().params)
heed(ctx_state.get())
