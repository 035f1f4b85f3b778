# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure core: what the user wrote (config), what a VPS must look like (plan), how they differ.

Nothing in this package talks to a network or imports pyinfra.
"""
