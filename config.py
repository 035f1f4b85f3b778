# SPDX-License-Identifier: GPL-3.0-or-later
"""pyinfra reads this file before the inventory, and so before it connects to any host.

That makes it the place to find what is wrong with the data (promise 11): the inventory and the group
data are loaded here once more, just to be checked.
"""

import click
from pyinfra import config

from operations.inventory import check_before_connecting

config.REQUIRE_PYINFRA_VERSION = "~=3.10"

check_before_connecting(click.get_current_context().params)
