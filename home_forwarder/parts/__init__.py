# SPDX-License-Identifier: GPL-3.0-or-later
"""One file for each thing that can be declared: what may be declared, what is wrong with it, what a
VPS gets for it, and what on a VPS is its. docs/development.md says how a new one is made.

A part imports no other part, and neither config nor planning, which are made of the parts.
"""
