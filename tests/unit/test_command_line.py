# SPDX-License-Identifier: GPL-3.0-or-later
"""What is checked of a run of pyinfra as a whole; tests/lab/test_commands.py tries the same on VPSes."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from pyinfra.api.inventory import Inventory
from unit_samples import REPO

from operations.command_line import (
    Answers,
    NobodyAnswers,
    answer_questions,
    check_checkout,
    check_patterns,
)
from operations.data import WrongData

INVENTORY = Inventory((["vps1", "vps2", "other"], {}), frankfurt=(["vps1"], {}), empty=([], {}))


@pytest.mark.parametrize("pattern", ["vps1", "vps*", "frankfurt", "*"])
def test_limits_that_fit(pattern: str) -> None:
    check_patterns(INVENTORY, {"limit": [pattern], "exclude": [pattern]})


@pytest.mark.parametrize("option", ["limit", "exclude"])
@pytest.mark.parametrize("pattern", ["nosuch", "VPS1", "frank*", "all", "empty", ""])
def test_limits_that_fit_nothing(option: str, pattern: str) -> None:
    """pyinfra would do nothing, and end well."""
    with pytest.raises(WrongData) as error:
        check_patterns(INVENTORY, {option: ["vps1", pattern]})
    assert error.value.mistakes == [
        f"--{option} {pattern}: the inventory has no such host; it has vps1, vps2, other"
    ]


def test_a_deploy_of_another_checkout(tmp_path: Path) -> None:
    """The data would be checked by one version, and deployed by another."""
    (tmp_path / "operations").mkdir()
    with pytest.raises(WrongData, match="of another checkout"):
        check_checkout([tmp_path / "deploy.py"])


def test_a_deploy_of_this_checkout(tmp_path: Path) -> None:
    """Also by a link, and a user's own deploy file."""
    (tmp_path / "operations").symlink_to(REPO / "operations")
    check_checkout([REPO / "deploy.py", tmp_path / "deploy.py", tmp_path / "own" / "deploy.py"])


def test_the_end_of_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is an answer; the end is a sentence for `input` and for `getpass` alike."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n\n"))
    answer_questions()
    assert [input(), input()] == ["yes", ""]
    with pytest.raises(NobodyAnswers, match="no terminal"):
        input()
    answers = sys.stdin
    answer_questions()
    assert sys.stdin is answers


def test_no_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `<&-`."""
    monkeypatch.setattr(sys, "stdin", None)
    answer_questions()
    assert isinstance(sys.stdin, Answers)
    with pytest.raises(NobodyAnswers):
        input()
