# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit ring: seconds, anywhere, without root and without a network."""

from __future__ import annotations

from hypothesis import settings

# No deadline: a busy machine is no bug. No database: a run leaves nothing in the checkout. The same
# examples each time: what a test says is of the change that is tested. `make fuzz` is for new ones.
COMMON = settings(deadline=None, database=None, print_blob=True)
settings.register_profile("unit", COMMON, derandomize=True)
settings.register_profile("fuzz", COMMON, max_examples=2000)
settings.load_profile("unit")
