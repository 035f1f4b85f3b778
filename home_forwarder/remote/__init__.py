# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that are sent to a VPS and do not stay there. Standard library of Python 3.9.

They are told all that they need to know: no path, package or unit of ours is known to them by itself.
"""
