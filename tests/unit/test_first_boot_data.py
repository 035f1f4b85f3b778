# SPDX-License-Identifier: GPL-3.0-or-later
"""The first boot of a new VPS: what is wrong, and what only user-data gets."""

from __future__ import annotations

from typing import Any

import pytest
from unit_samples import Mistake, check_mistake, data, plan_of

from home_forwarder.config import load_config
from home_forwarder.parts.first_boot import FirstBoot, first_boot_part
from home_forwarder.plan import Part

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@laptop"


def wrong(key: str, value: Any, right: str, written: str = "") -> Mistake:
    """A mistake in first_boot."""
    changes = {"first_boot": {"ssh_keys": [KEY], key: value}}
    return Mistake(f"{key} {value}", changes, f"first_boot.{key}: ", written or repr(value), right)


MISTAKES = [
    wrong("operator", "root", "leave operator out"),
    wrong("operator", "Me", "such as 'operator'"),
    wrong("operator", "a b", "such as 'operator'"),
    wrong("operator", 7, "such as 'operator'"),
    wrong("ssh_keys", KEY, "is not a list"),
    wrong("ssh_keys", ["AAAA"], "the line of a .pub file", "'AAAA'"),
    wrong("ssh_keys", [f'command="x" {KEY}'], "the line of a .pub file", "command="),
    wrong("ssh_keys", [f"{KEY}\nx"], "the line of a .pub file", "me@laptop"),
    wrong("ssh_keys", ["-----BEGIN OPENSSH PRIVATE KEY-----"], "belongs on no server", "this is"),
    wrong("hostname", "my_vps", "such as 'vps1'"),
    wrong("hostname", "", "such as 'vps1'"),
    wrong("timezone", "Europe/Berlni", "did you mean 'Europe/Berlin'?"),
    wrong("timezone", "../etc/passwd", "such as 'Europe/Berlin' or 'UTC'"),
    wrong("security_updates", "maybe", "neither True nor False"),
    Mistake(
        "operator without a key",
        {"first_boot": {"operator": "me"}},
        "first_boot.ssh_keys: ",
        "is missing",
        "nobody could log in as 'me'",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.name for mistake in MISTAKES])
def test_mistake(mistake: Mistake) -> None:
    """Promise 11."""
    check_mistake(mistake)


def test_a_private_key_is_not_shown() -> None:
    """Promise 17."""
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXkt"
    with pytest.raises(Exception, match="this is a private key") as error:
        load_config(data(first_boot={"ssh_keys": [key]}))
    assert "b3BlbnNz" not in str(error.value)


def test_a_deploy_does_not_read_it() -> None:
    """What it brings belongs to the admin afterwards."""
    first_boot = {"operator": "me", "ssh_keys": [KEY], "security_updates": True, "hostname": "x"}
    assert plan_of(first_boot=first_boot) == plan_of()


def test_what_is_not_declared_adds_nothing() -> None:
    """Promise 29."""
    assert first_boot_part(FirstBoot()) == Part()
