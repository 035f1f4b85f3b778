# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit ring: seconds, anywhere, without root and without a network."""

from hypothesis import settings

# No deadline: a busy machine is no bug. No database: a run leaves nothing in the checkout.
settings.register_profile("unit", deadline=None, database=None, print_blob=True)
settings.load_profile("unit")
