# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory before anything is connected to: logins that cannot work, group data of no group."""

from __future__ import annotations

from pathlib import Path

import pytest

from operations.data import WrongData
from operations.inventory import load_inventory


def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inventory: str, *files: str) -> list[str]:
    """The warnings about an inventory with these files of group data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inventory.py").write_text(inventory)
    (tmp_path / "group_data").mkdir()
    for name in files:
        (tmp_path / "group_data" / name).write_text("forwards = []\n")
    told: list[str] = []
    load_inventory(str(tmp_path / "inventory.py"), warn=told.append)  # pyinfra caches by path
    return told


TWO = 'helsinki = ["192.0.2.1"]\nfrankfurt = ["192.0.2.2"]\n'


@pytest.mark.parametrize(
    ("files", "right"),
    [
        ((), None),
        (("all.py", "helsinki.py", "frankfurt.py", "inventory.py", "notes.txt"), None),
        (
            ("all.py", "helsink.py", "frankfurt.py"),
            "helsink.py: no VPS of the inventory is in a group",
        ),
        (("helsink.py",), "did you mean helsinki.py?"),
        (("x.py",), "the groups are all, frankfurt, helsinki, inventory"),
    ],
)
def test_group_data_of_no_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], right: str | None
) -> None:
    told = load(tmp_path, monkeypatch, TWO, *files)
    assert len(told) == (right is not None)
    assert right is None or right in told[0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            {"_su_user": "root", "_su_password": "x"},
            "one, two: _su_password: su would take the data",
        ),
        ({"_sudo": True, "_get_pty": True}, "one, two: _get_pty: a terminal changes the data"),
        ({"_su_user": "root"}, None),
        ({"_sudo": True, "_sudo_password": "x", "_get_pty": False}, None),
        ({"_doas": True}, None),
    ],
    ids=str,
)
def test_logins_that_lose_the_data_of_a_deploy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, object], says: str | None
) -> None:
    """Promise 22: one that cannot work is refused before connecting, whatever is to be done."""
    inventory = f"vps = [('one', {data!r}), ('two', {data!r}), 'three']\n"
    if says is None:
        assert load(tmp_path, monkeypatch, inventory) == []
        return
    with pytest.raises(WrongData) as error:
        load(tmp_path, monkeypatch, inventory)
    assert len(error.value.mistakes) == 1
    assert error.value.mistakes[0].startswith(says)
