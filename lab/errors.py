# SPDX-License-Identifier: GPL-3.0-or-later
"""The exceptions of the lab that are meant for people."""

from __future__ import annotations

import subprocess


class LabError(Exception):
    """The lab cannot do what was asked; the text is one sentence that says what would be right."""


class CommandFailed(LabError):
    """A command on a host ended with another status than 0; `result` has all it said."""

    def __init__(self, message: str, result: subprocess.CompletedProcess[str]) -> None:
        super().__init__(message)
        self.result = result
