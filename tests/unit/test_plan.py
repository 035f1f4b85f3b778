# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VPS must look like: names, files and units, from the data alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from unit_samples import FULL, REPO, file_of, is_ours, keys, plan_of
from unit_systemd import lay_out, verify

from home_forwarder.config import load_config
from home_forwarder.plan import UNITS, Link, Plan
from home_forwarder.planning import OWNED_UNITS, make_plan

CONF = "/etc/home-forwarder.conf"
RELAYS = {
    "home-tcpforwarder-46-to-6@0:44444.service",
    "home-udpforwarder-46-to-6@1:33333.service",
    "home-udpforwarder-46-to-6@1:33334.service",
    "home-tcpforwarder-4-to-6@0:80.service",
    "home-tcpforwarder-6-to-6@1:80.service",
    "home-tcpforwarder-4-to-6@0:443.service",
    "home-tcpforwarder-6-to-6@0:443.service",
    "home-tcpforwarder-46-to-6@1:25.service",
}
FORWARDS = {
    "home-tcpforwarder@0:44444.service",
    "home-udpforwarder@1:33333.service",
    "home-udpforwarder@1:33334.service",
    "home-tcpforwarder@0:80.service",
    "home-tcpforwarder@1:80.service",
    "home-tcpforwarder@0:443.service",
    "home-tcpforwarder@1:25.service",
}


def full() -> Plan:
    return plan_of(**FULL)


def test_names_of_the_units() -> None:
    """design.md, «Names on the VPS»: people's habits and scripts depend on them."""
    plan = full()
    assert {relay.unit for relay in plan.relays} == RELAYS
    assert {relay.forward for relay in plan.relays} == FORWARDS
    assert set(plan.running) == FORWARDS | {
        "home-forwarders.service",
        "home-tcpforwarders.service",
        "home-udpforwarders.service",
        "home-address-updater.timer",
        "home-address-watcher@0.path",
        "home-address-watcher@1.path",
        "home-notifier.path",
        "home-notifier.timer",
    }
    assert len(plan.running) == len(set(plan.running))
    assert set(plan.triggered) == {
        "home-address-updater.service",
        "home-address-watcher@0.service",
        "home-address-watcher@1.service",
        "home-notifier.service",
    }


def test_names_of_the_files() -> None:
    """design.md, «Names on the VPS»."""
    plan = full()
    units = {
        path.rpartition("/")[2] for file in plan.files if (path := file.path).startswith(UNITS)
    } - {"forward.conf"}
    assert units == {
        "home-forwarders.service",
        "home-tcpforwarders.service",
        "home-udpforwarders.service",
        "home-tcpforwarder@.service",
        "home-udpforwarder@.service",
        "home-tcpforwarder-46-to-6@.service",
        "home-tcpforwarder-4-to-6@.service",
        "home-tcpforwarder-6-to-6@.service",
        "home-udpforwarder-46-to-6@.service",
        "home-udpforwarder-4-to-6@.service",
        "home-udpforwarder-6-to-6@.service",
        "home-tcpforwarder@0:80.service",
        "home-tcpforwarder@1:80.service",
        "home-tcpforwarder@0:443.service",
        "home-address-updater.service",
        "home-address-updater.timer",
        "home-address-watcher@.path",
        "home-address-watcher@.service",
        "home-notifier.path",
        "home-notifier.service",
        "home-notifier.timer",
    }
    others = {file.path: file.mode for file in plan.files if not file.path.startswith(UNITS)}
    assert others == {
        CONF: "644",
        "/usr/local/bin/home-address-update": "755",
        "/usr/local/lib/home-forwarder/notify": "755",
        "/usr/local/lib/home-forwarder/port-holder": "755",
        "/usr/local/lib/home-forwarder/relay": "755",
    }
    assert {(file.owner, file.group) for file in plan.files} == {("root", "root")}
    for family in ("ipv4", "ipv6"):
        link = Link(f"/etc/home-address-{family}", f"/var/lib/home-forwarder/home-address-{family}")
        assert link in plan.links


def test_everything_of_the_plan_is_ours() -> None:
    """Promise 9: what is no longer declared is found by these two expressions."""
    plan = full()
    assert [entry.path for entry in plan.entries if not is_ours(entry.path)] == []
    assert [unit for unit in plan.units if not re.fullmatch(OWNED_UNITS, unit)] == []
    paths = [entry.path for entry in plan.entries]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        # An admin's own drop-ins and units.
        (f"{UNITS}/home-tcpforwarder@0:80.service.d/override.conf", False),
        (f"{UNITS}/home-tcpforwarders.service.d/mine.conf", False),
        (f"{UNITS}/home-assistant.service", False),
        (f"{UNITS}/home-backup.timer", False),
        (f"{UNITS}/home-tcpforwarder.service.bak", False),
        (f"{UNITS}/multi-user.target.wants/home-assistant.service", False),
        ("/etc/home-forwarder.conf.bak", False),
        ("/etc/home-assistant.conf", False),
        ("/usr/local/bin/home-backup", False),
        ("/usr/local/lib/other/relay", False),
        ("/var/lib/home-forwarder/state.json", False),
        (f"{UNITS}/nginx.service.d/override.conf", False),
        (f"{UNITS}/nginx.service", False),
        (f"{UNITS}/multi-user.target.wants/x/home-forwarders.service", False),
        (f"{UNITS}/home-tcpforwarder@0:80.service\n", False),
        (f"{UNITS}/x\nhome-tcpforwarder@0:80.service", False),
        ("/etc/home-forwarder/mine", False),
        ("/etc/home-forwarder/smtp-password.bak", False),
        ("/etc/home-forwarder.conf\n", False),
        ("/etc/home-address-ipv64", False),
        ("/usr/local/lib/home-forwarder/a/b", False),
        ("/usr/local/lib/home-forwarder", False),
        # What we, and an admin who follows the seed's README, leave.
        (f"{UNITS}/home-tcpforwarder-46-to-6@0:80.service.d/forward.conf", True),
        (f"{UNITS}/home-udpforwarder@7:9.service", True),
        (f"{UNITS}/multi-user.target.wants/home-tcpforwarder@1:8080.service", True),
        (f"{UNITS}/paths.target.wants/home-address-watcher@2.path", True),
        (f"{UNITS}/nginx.service.d/home-forwarder.conf", True),
        (f"{UNITS}/home-notifier-webhook.timer", True),
        ("/etc/home-forwarder/webhook-token", True),
        ("/etc/home-address-ipv4", True),
        ("/usr/local/bin/home-address-update.sh", True),
        ("/usr/local/lib/home-forwarder/__pycache__", True),
    ],
)
def test_which_files_are_ours(path: str, ours: bool) -> None:
    """Promise 9, and what it must not reach."""
    assert is_ours(path) is ours


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("home-tcpforwarder@1:8080.service", True),
        ("home-udpforwarder-6-to-6@1:8080.service", True),
        ("home-tcpforwarder-64-to-6@1:8080.service", False),
        ("home-address-watcher@9.path", True),
        ("home-notifier-program.path", True),
        ("home-tcpforwarder@1:8080.service\n", False),
        ("home-assistant.service", False),
        ("home-forwarders.service.d", False),
        ("my-home-forwarders.service", False),
        ("home-tcpforwarders.target", False),
    ],
)
def test_which_units_are_ours(name: str, ours: bool) -> None:
    """Promise 9, and what it must not reach."""
    assert bool(re.fullmatch(OWNED_UNITS, name)) is ours


def test_links_enable_what_runs() -> None:
    """Each running unit is enabled as its [Install] section says, and by nothing else."""
    plan = full()
    files = {file.path: file.content for file in plan.files}
    for unit in plan.running:
        wanting = {
            link.path.split("/")[-2].removesuffix(".wants"): link.target
            for link in plan.links
            if link.path.endswith(f"/{unit}")
        }
        for target in wanting.values():
            assert target in files, unit
        (target,) = set(wanting.values())
        (wanted_by,) = keys(files[target])["WantedBy"]
        assert wanting.keys() == set(wanted_by.split()), unit
    enabled = {link.path.rpartition("/")[2] for link in plan.links if link.path.startswith(UNITS)}
    assert enabled == set(plan.running)


@pytest.mark.parametrize("unit", sorted(RELAYS | {"home-address-updater", "home-notifier"}))
def test_services_have_no_privileges(unit: str) -> None:
    """Promise 16, as far as a text can say it; the lab tests try it."""
    name = re.sub(r"@.*", "@", unit).removesuffix(".service") + ".service"
    found = keys(file_of(full(), name))
    needed = ["CAP_NET_BIND_SERVICE"] if unit in RELAYS else [""]
    assert found["DynamicUser"] == ["yes"]
    assert found["CapabilityBoundingSet"] == needed
    assert found.get("AmbientCapabilities", needed) == needed
    assert found["NoNewPrivileges"] == ["yes"]
    assert found["ProtectSystem"] == ["strict"]


def test_nothing_is_left_to_expand() -> None:
    """No template syntax, and none of the capital words of the templates' file names."""
    for entry in full().entries:
        assert not re.search(r"PROTOCOL|LISTEN|INDEX|PORT|\.j2|[{}]", entry.path), entry.path
        if isinstance(entry, Link) or entry.path.startswith("/usr/"):
            continue
        assert not re.search(r"\{\{|\}\}|\{%|%\}|\{#", entry.content), entry.path
        settings = "\n".join(
            line for line in entry.content.splitlines() if not line.startswith("#")
        )
        assert not re.search(r"\b(PROTOCOL|LISTEN|INDEX|PORT)\b|None|True|False", settings)
        assert entry.content.endswith("\n")
        assert "\n\n\n" not in entry.content


def test_every_program_that_a_unit_starts_exists() -> None:
    """systemd-analyze does not look at what instances of templates start."""
    plan = full()
    ours = {file.path for file in plan.files if file.mode == "755"}
    started = {
        command.lstrip("-+!@:").split()[0]
        for file in plan.files
        for key, values in keys(file.content).items()
        if key.startswith("Exec")
        for command in values
    }
    assert started == ours | {"/bin/true", "/bin/systemctl"}


def test_empty_data_is_a_plan_too() -> None:
    """A VPS that forwards nothing yet."""
    plan = make_plan(load_config({"homes": []}))
    assert plan.relays == ()
    assert "home-address-updater.timer" in plan.running
    assert "HOME_ADDRESS_COUNT=0\n" in file_of(plan, CONF)


def test_plan_is_pure() -> None:
    """The same data is the same plan, and none of its parts needs pyinfra or a network."""
    assert full() == full()
    code = (
        "import sys; from home_forwarder import applying, compare, config, outlook, planning, user_data;"
        "planning.make_plan(config.load_config({'homes': []}));"
        "print([name for name in ('pyinfra', 'dns', 'asyncio', 'gevent') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


# ---- systemd ---------------------------------------------------------------------------------


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Not one word of complaint, about instances and their drop-ins neither."""
    lay_out(full(), tmp_path)
    assert verify(tmp_path) == ""


@pytest.mark.parametrize(
    "path",
    [
        "home-forwarders.service",
        "home-tcpforwarder-4-to-6@.service",
        "home-udpforwarder-46-to-6@.service",
        "home-tcpforwarder-46-to-6@0:44444.service.d/forward.conf",
        "home-tcpforwarder@0:80.service",
        "home-address-watcher@.path",
        "home-address-watcher@.service",
        "home-notifier.timer",
    ],
)
def test_systemd_looks_at_every_unit(path: str, tmp_path: Path) -> None:
    """The test above would notice: a mistake in any kind of unit is found."""
    lay_out(full(), tmp_path)
    with (tmp_path / UNITS.lstrip("/") / path).open("a") as file:
        file.write("\nMisspelt=yes\n")
    assert "Misspelt" in verify(tmp_path)
