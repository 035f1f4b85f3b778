# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a VPS match its plan: pyinfra facts and operations, thin around home_forwarder.compare."""
