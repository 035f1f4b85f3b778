# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VPS must look like: names, files and units, from the data alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit_samples import FRITZBOX, NAS, REPO, TCP, UDP, UPDATER, Data, file_of, plan_of

from home_forwarder.config import load_config
from home_forwarder.plan import OWNED_FILES, OWNED_UNITS, UNITS, File, Link, Plan, make_plan
from home_forwarder.render import load_program

CONF = "/etc/home-forwarder.conf"
FULL: Data = {
    "homes": [FRITZBOX, {**NAS, "allow_private": True}],
    "forwards": [
        TCP,
        {**UDP, "port": "33333-33334", "target_port": 51820, "idle_timeout": 60},
        {**TCP, "port": 80, "listen": "4"},
        {**TCP, "port": 80, "listen": "6", "home": "nas"},
        {**TCP, "port": 443, "listen": "4"},
        {**TCP, "port": 443, "listen": "6", "target_port": 8443},
        {**TCP, "port": 25, "home": "nas", "max_connections": 10},
    ],
    "notify": {"mail_to": "root"},
}
"""Every kind of forward that there is."""
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


def keys(text: str) -> dict[str, list[str]]:
    """The settings of a unit file, without comments."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


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
    assert [entry.path for entry in plan.entries if not re.match(OWNED_FILES, entry.path)] == []
    assert [unit for unit in plan.units if not re.match(OWNED_UNITS, unit)] == []
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
        # What we, and an admin who follows the seed's README, leave.
        (f"{UNITS}/home-tcpforwarder-46-to-6@0:80.service.d/forward.conf", True),
        (f"{UNITS}/home-udpforwarder@7:9.service", True),
        (f"{UNITS}/multi-user.target.wants/home-tcpforwarder@1:8080.service", True),
        (f"{UNITS}/paths.target.wants/home-address-watcher@2.path", True),
        ("/usr/local/bin/home-address-update.sh", True),
        ("/usr/local/lib/home-forwarder/__pycache__", True),
    ],
)
def test_which_files_are_ours(path: str, ours: bool) -> None:
    """Promise 9, and what it must not reach."""
    assert bool(re.match(OWNED_FILES, path)) is ours


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("home-tcpforwarder@1:8080.service", True),
        ("home-udpforwarder-6-to-6@1:8080.service", True),
        ("home-tcpforwarder-64-to-6@1:8080.service", False),
        ("home-address-watcher@9.path", True),
        ("home-assistant.service", False),
        ("home-forwarders.service.d", False),
        ("my-home-forwarders.service", False),
        ("home-tcpforwarders.target", False),
    ],
)
def test_which_units_are_ours(name: str, ours: bool) -> None:
    """Promise 9, and what it must not reach."""
    assert bool(re.match(OWNED_UNITS, name)) is ours


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


@pytest.mark.parametrize(
    ("relay", "settings"),
    [
        ("home-tcpforwarder-46-to-6@0:44444", (44444, 7440, 1024)),
        ("home-udpforwarder-46-to-6@1:33333", (51820, 60, 1024)),
        ("home-udpforwarder-46-to-6@1:33334", (51821, 60, 1024)),
        ("home-tcpforwarder-6-to-6@0:443", (8443, 7440, 1024)),
        ("home-tcpforwarder-46-to-6@1:25", (25, 7440, 10)),
    ],
)
def test_settings_in_the_drop_in(relay: str, settings: tuple[int, int, int]) -> None:
    """A forward's settings stand whole in its drop-in, with room for all of its processes."""
    plan = full()
    revision = next(each.revision for each in plan.relays if each.unit == f"{relay}.service")
    found = keys(file_of(plan, f"{relay}.service.d/forward.conf"))
    assert found.keys() == {"Environment", "TasksMax"}
    assert sorted(found["Environment"]) == [
        f"FORWARD_IDLE_TIMEOUT={settings[1]}",
        f"FORWARD_MAX_CONNECTIONS={settings[2]}",
        f"FORWARD_REVISION={revision}",
        f"FORWARD_TARGET_PORT={settings[0]}",
    ]
    assert int(found["TasksMax"][0]) > settings[2]


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        ({"forwards": [{**TCP, "target_port": 80}]}, True),
        ({"forwards": [{**TCP, "idle_timeout": 60}]}, True),
        ({"forwards": [{**TCP, "max_connections": 1}]}, True),
        ({"homes": [{**FRITZBOX, "description": "Another"}, NAS]}, False),
        ({"homes": [{**FRITZBOX, "hostname": "yyy.myfritz.net"}, NAS]}, False),
        ({"homes": [{**FRITZBOX, "allow_private": True}, NAS]}, False),
        ({"homes": [FRITZBOX]}, False),
        ({"forwards": [TCP, {**TCP, "port": 80}]}, False),
        ({"forwards": [{**TCP, "target_port": 44444, "idle_timeout": 7440}]}, False),
        ({"check_interval": 3600, "notify": {"mail_to": "me"}}, False),
    ],
)
def test_revision_follows_the_settings(change: dict[str, Any], changes: bool) -> None:
    """Promise 10: the revision, and the drop-in, change if and only if the settings do."""
    before = plan_of(forwards=[TCP])
    after = plan_of(**{"forwards": [TCP], **change})
    drop_in = f"{before.relays[0].unit}.d/forward.conf"
    assert (after.relays[0].revision != before.relays[0].revision) is changes
    assert (file_of(after, drop_in) != file_of(before, drop_in)) is changes


@pytest.mark.parametrize(
    ("front", "variants"),
    [
        ("home-tcpforwarder@.service", ["46"]),
        ("home-udpforwarder@.service", ["46"]),
        ("home-tcpforwarder@0:80.service", ["4"]),
        ("home-tcpforwarder@1:80.service", ["6"]),
        ("home-tcpforwarder@0:443.service", ["4", "6"]),
    ],
)
def test_a_forward_wants_its_relays_only(front: str, variants: list[str]) -> None:
    """Dependencies cannot be taken away by a drop-in: other families have a file of their own."""
    protocol = front[5:8]
    found = keys(file_of(full(), front))
    assert found["Wants"] == [
        f"home-{protocol}forwarder-{each}-to-6@%i.service" for each in variants
    ]
    assert "Requires" not in found, "a relay that dies would take the forward with it"


def test_groups() -> None:
    """Stop and restart of a group reach all of its forwards, and their relays."""
    plan = full()
    for protocol in ("tcp", "udp"):
        group = f"home-{protocol}forwarders.service"
        assert keys(file_of(plan, group))["PartOf"] == ["home-forwarders.service"]
        assert keys(file_of(plan, f"home-{protocol}forwarder@.service"))["PartOf"] == [group]
        for variant in ("46", "4", "6"):
            unit = keys(file_of(plan, f"home-{protocol}forwarder-{variant}-to-6@.service"))
            assert unit["PartOf"] == [f"home-{protocol}forwarder@%i.service {group}"]
            assert unit["ExecStart"] == [
                f"/usr/local/lib/home-forwarder/relay {protocol} {variant} %i"
            ]


def test_check_interval() -> None:
    timer = keys(file_of(plan_of(check_interval=3600), "home-address-updater.timer"))
    assert timer["OnUnitInactiveSec"] == ["3600s"]


def test_a_look_up_may_take_as_long_as_it_promises() -> None:
    """Promise 8: systemd does not cut off what the program would still end in time."""
    (limit,) = keys(file_of(full(), "home-address-updater.service"))["TimeoutStartSec"]
    assert int(limit.removesuffix("s")) > load_program(UPDATER).RUN_SECONDS


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
        "import sys; from home_forwarder import compare, config, plan, render;"
        "plan.make_plan(config.load_config({'homes': []}));"
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


# ---- /etc/home-forwarder.conf ----------------------------------------------------------------


def test_conf_in_the_format_of_the_seed() -> None:
    plan = plan_of(**FULL, unresolved_after=600)
    assert file_of(plan, CONF).splitlines()[1:] == [
        "HOME_ADDRESS_COUNT=2",
        'HOME_HOSTDESC_0="Fritz!Box at home"',
        "HOME_HOSTNAME_0=xxx.myfritz.net",
        'HOME_HOSTDESC_1="Home server"',
        "HOME_HOSTNAME_1=somedyndns.address.test",
        "HOME_ALLOW_PRIVATE_1=1",
        "UNRESOLVED_AFTER=600",
        'SEND_MAILS_TO="root"',
    ]
    assert "SEND_MAILS_TO" not in file_of(plan_of(), CONF)


def as_sh_reads_it(text: str, names: list[str], directory: Path) -> list[str]:
    """The values that a POSIX shell has after sourcing the file."""
    path = directory / "conf"
    path.write_text(text, encoding="utf-8")
    script = '. "$0"; ' + "; ".join(f"printf '%s\\0' \"${name}\"" for name in names)
    done = subprocess.run(
        ["/bin/sh", "-euc", script, str(path)],
        env={"LC_ALL": "C.UTF-8", "PATH": "/nonexistent"},
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    return done.stdout.decode().split("\0")[:-1]


letters = st.one_of(
    st.sampled_from("\"'$`\\%!#;= &|<>(){}[]*?~"),
    st.characters(codec="utf-8", exclude_categories=("C", "Z")).filter(str.isprintable),
)
descriptions = st.lists(letters, min_size=1, max_size=20).map("".join).filter(str.strip)
AWKWARD = [
    "\\",
    "x\\",
    "\\\\",
    '\\"',
    "\\$HOME",
    "$(id)",
    "`id`",
    "'",
    '"',
    " x ",
    "%h %%",
    "\\n",
    "#",
]


@settings(max_examples=60)
@given(st.lists(descriptions, min_size=1, max_size=20))
@example(AWKWARD)
def test_conf_is_read_alike_by_all(tmp_path_factory: Any, texts: list[str]) -> None:
    """Promise 15: a description is text for sh and for our programs, whatever is in it."""
    homes = [{**NAS, "name": f"home{n}", "description": text} for n, text in enumerate(texts)]
    content = file_of(make_plan(load_config({"homes": homes})), CONF)
    names = [f"HOME_HOSTDESC_{n}" for n in range(len(texts))]
    settings = load_program(UPDATER).parse_settings(content)
    assert [settings[name] for name in names] == texts
    assert as_sh_reads_it(content, names, tmp_path_factory.getbasetemp()) == texts


@pytest.mark.parametrize("mail_to", ["root", "a`id`@address.test", "$HOME@address.test", "o'neil"])
def test_mail_address_is_read_alike_by_all(mail_to: str, tmp_path: Path) -> None:
    """Promise 15: so is a mail address."""
    content = file_of(plan_of(notify={"mail_to": mail_to}), CONF)
    assert load_program(UPDATER).parse_settings(content)["SEND_MAILS_TO"] == mail_to
    assert as_sh_reads_it(content, ["SEND_MAILS_TO"], tmp_path) == [mail_to]


def test_homes_of_the_conf_are_those_of_the_data() -> None:
    """What the resolver on the VPS makes of the file."""
    updater = load_program(UPDATER)
    homes = updater.homes_of(updater.parse_settings(file_of(full(), CONF)))
    assert [(home.hostname, home.label, home.allow_private) for home in homes] == [
        ("xxx.myfritz.net", "Fritz!Box at home", False),
        ("somedyndns.address.test", "Home server", True),
    ]


# ---- systemd ---------------------------------------------------------------------------------


STUBS = ("sysinit", "basic", "shutdown", "multi-user", "timers", "paths")
STUBS += ("network", "network-online", "nss-lookup")


def verify(root: Path) -> str:
    """What systemd says against the units below `root`; the groups bring all of theirs along."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        if os.environ.get("CI"):
            pytest.fail("systemd-analyze is missing: the units were not checked by systemd")
        pytest.skip("systemd-analyze is missing: THE UNITS WERE NOT CHECKED BY SYSTEMD")
    units = root / UNITS.lstrip("/")
    names = [path for path in units.glob("home-*.*") if "@" not in path.name and path.is_file()]
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=yes", f"--root={root}"]
        + [str(path) for path in [*names, root / "usr/lib/systemd/system/paths.target"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout + (f"exit status {done.returncode}" if done.returncode else "")


def lay_out(plan: Plan, root: Path) -> None:
    """The plan's files below `root`, with stubs for what a VPS has besides."""
    for entry in plan.entries:
        path = root / entry.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(entry, File):
            path.write_text(entry.content)
            path.chmod(int(entry.mode, 8))
        else:
            path.symlink_to(entry.target)
    for name in STUBS:
        path = root / "usr/lib/systemd/system" / f"{name}.target"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"[Unit]\nDescription={name}\n")
    for name in ("true", "systemctl"):
        path = root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)


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
