# SPDX-License-Identifier: GPL-3.0-or-later
"""Measurements of the relays, the resolver and deploys, beside other programs for the same."""
