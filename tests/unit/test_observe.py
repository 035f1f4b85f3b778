# SPDX-License-Identifier: GPL-3.0-or-later
"""The look at a VPS: what it is asked, and what it sees, run for real as it is sent."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from test_fuzz import valid_data
from unit_remote import GROUP, USER, remote, script, source_of, tools
from unit_samples import FULL, TCP, UDP, Data, data, plan_of
from unit_systemd import lay_out

from home_forwarder.compare import (
    ADDRESS,
    PER_CLIENT,
    PROGRAM,
    REVISION,
    Observed,
    SeenFile,
    SeenUnit,
)
from home_forwarder.config import load_config
from home_forwarder.plan import CONF, UNITS, Plan
from home_forwarder.planning import ADDRESSES, OWNED_FILES, UNFINISHED, make_plan, question
from home_forwarder.remote import observe

RELAY = "home-tcpforwarder-46-to-6@12:80.service"


def below(root: Path, plan: Plan) -> dict[str, Any]:
    """What a VPS is asked, for one whose file system begins at `root`."""
    asked = question(plan)
    where, expression = ADDRESSES
    return {
        **asked,
        "files": [[f"{root}{directory}", each] for directory, each in OWNED_FILES],
        "units_directory": f"{root}{UNITS}",
        "directories": [f"{root}{each}" for each in asked["directories"]],  # type: ignore[attr-defined]
        "readers": {f"{root}{path}": unit for path, unit in asked["readers"].items()},  # type: ignore[attr-defined]
        "addresses": [f"{root}{where}", expression],
        "texts": [f"{root}{CONF}"],
    }


def look(asked: dict[str, Any], **options: Any) -> Observed:
    """What is seen."""
    return Observed.from_json(remote("observe.py", json.dumps(asked), **options))


# ---- What is asked -----------------------------------------------------------------------------

MANY: dict[str, Data] = {
    "samples": data(),
    "no homes": {"homes": []},
    "every kind of forward": data(**FULL),
    "ranges, nginx": data(
        forwards=[{**TCP, "port": "8000-8100", "relay": "nginx"}, {**UDP, "relay": "nginx"}]
    ),
    "an index": data(homes=[{**data()["homes"][0], "index": 999}, data()["homes"][1]]),
    "every way to tell": data(
        notify={
            "mail_to": "me@address.test",
            "smtp": {"host": "mail.test"},
            "webhook": {"url": "https://ntfy.sh/x"},
            "program": "/usr/local/bin/tell-me",
        }
    ),
}


def check_question(plan: Plan) -> None:
    """Everything of a plan is asked for."""
    asked: Any = json.loads(json.dumps(question(plan)))
    units = re.compile(asked["units"])
    for unit in plan.units:
        assert units.fullmatch(unit), unit
        assert fnmatch(unit, asked["unit_glob"]), unit
    for relay in plan.relays:
        pattern, keys = asked["environment"]
        match = re.fullmatch(pattern, relay.unit)
        assert match, relay.unit
        assert keys == [REVISION, ADDRESS, PROGRAM, PER_CLIENT]
        assert ADDRESS.format(*match.groups()) == f"HOME_IPV6_ADDRESS_{relay.home}"
    for listen in plan.listens:
        assert [listen.protocol, listen.ports.first, listen.ports.last] in asked["ports"]
        assert listen.unit in plan.units
    assert {relay.unit for relay in plan.relays} == {listen.unit for listen in plan.listens}
    assert [each["name"] for each in asked["packages"]] == [each.name for each in plan.packages]
    readers = {file.path: file.reader for file in plan.files if file.reader}
    assert asked["readers"] == readers
    assert set(readers.values()) <= plan.units
    assert CONF in asked["texts"]


def check_places(plan: Plan, root: Path) -> None:
    """Every file and link of a plan is found in the places that are asked for, and nothing else; also
    what a deploy that was cut off has left of it."""
    lay_out(plan, root)
    paths = {f"{root}{entry.path}" for entry in plan.entries}
    places = below(root, plan)["files"]
    assert sorted(observe.paths(places, UNFINISHED)) == sorted(paths)
    for path in paths:
        Path(path).rename(path + UNFINISHED)
    assert sorted(observe.paths(places, UNFINISHED)) == sorted(path + UNFINISHED for path in paths)


@pytest.mark.parametrize("case", MANY)
def test_everything_of_a_plan_is_asked_for(case: str, tmp_path: Path) -> None:
    """Promise 9: what a deploy does not see it would write, or leave, for ever."""
    plan = make_plan(load_config(MANY[case]))
    check_question(plan)
    check_places(plan, tmp_path)


@given(valid_data())
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
def test_everything_of_any_plan_is_asked_for(
    tmp_path_factory: pytest.TempPathFactory, given_data: Data
) -> None:
    """Promise 9, as above."""
    plan = make_plan(load_config(given_data))
    check_question(plan)
    check_places(plan, tmp_path_factory.mktemp("vps"))


def test_an_empty_plan_is_asked_for_all_that_is_ours(tmp_path: Path) -> None:
    """Promise 9: so undeploying finds it."""
    plan = plan_of(**FULL)
    lay_out(plan, tmp_path)
    asked = below(tmp_path, Plan())
    assert set(look(asked).files) == {f"{tmp_path}{entry.path}" for entry in plan.entries}
    assert question(Plan())["units"] == question(plan)["units"]


def test_it_knows_no_name_of_ours() -> None:
    """It is told all that it looks for."""
    source = source_of("observe.py")
    for name in (
        "home-",
        "HOME_",
        "FORWARD",
        "socat",
        "nginx",
        "python3",
        "ca-certificates",
        "/etc",
    ):
        assert name not in source


def test_it_is_sent_in_one_piece() -> None:
    """What it imports from beside it is in its place, and it can be read by Python."""
    source = source_of("observe.py")
    tree = ast.parse(source)
    modules = {each.module for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)}
    assert modules == {"__future__", "collections.abc"}
    defined = [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]
    assert {"listeners", "processes", "main"} <= set(defined)
    assert len(defined) == len(set(defined)), "one replaces another"


# ---- What is seen ------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    """A question about a VPS below tmp_path."""
    return below(tmp_path, plan_of())


def test_a_vps_of_our_own(asked: dict[str, Any]) -> None:
    """On any machine."""
    seen = look(asked)
    assert seen.python == sys.version_info[:2]
    assert seen.root is (os.geteuid() == 0)
    assert seen.systemd is Path("/run/systemd/system").is_dir()
    assert "00000000000000000000000000000001" in seen.own_addresses
    assert (dict(seen.files), dict(seen.addresses)) == ({}, {})


def test_without_any_tool(asked: dict[str, Any]) -> None:
    """No systemctl, dpkg-query or rpm: what can be said is said, and a deploy says the rest."""
    asked["packages"] = [package("python3")]
    seen = look(asked, env={"PATH": "/nonexistent"})
    assert (dict(seen.units), seen.packages) == ({}, ())


def package(name: str, rpm: str = "", unless: str = "") -> dict[str, str]:
    return {"name": name, "rpm": rpm, "unless": unless, "service": ""}


APT = {"apt_get": ""}
PACKAGES = [package("python3"), package("curl"), package("libx-mod", rpm="x-mod")]


@pytest.mark.parametrize(
    ("said", "packages", "there"),
    [
        # A package that was removed, but not purged, is not installed.
        ({**APT, "dpkg_query": "python3installed\ncurlconfig-files\n"}, PACKAGES, ("python3",)),
        ({**APT, "dpkg_query": "", "rpm": "python3\ncurl\nx-mod\n"}, PACKAGES, ()),
        # On Fedora, dpkg may be installed as any program.
        ({"dpkg_query": "python3installed\n", "rpm": "curl\n"}, PACKAGES, ("curl",)),
        (
            {"rpm": "python3\npackage curl is not installed\nx-mod\n"},
            PACKAGES,
            ("python3", "libx-mod"),
        ),
        ({}, PACKAGES, ()),
        ({}, [], ()),
        # Another program can do the same.
        ({}, [package("a", unless="true"), package("b", unless="exit 3")], ("a",)),
        (
            {**APT, "dpkg_query": "binstalled\n"},
            [package("a"), package("b", unless="false")],
            ("b",),
        ),
        ({}, [package("a", unless="echo noise; echo noise >&2; [ -e / ]")], ("a",)),
    ],
)
def test_packages(
    said: dict[str, str],
    packages: list[dict[str, str]],
    there: tuple[str, ...],
    asked: dict[str, Any],
    tmp_path: Path,
) -> None:
    """By Debian's names, wherever they come from."""
    asked["packages"] = packages
    assert look(asked, env=tools(tmp_path, **said) or {"PATH": "/nonexistent"}).packages == there


def test_files(asked: dict[str, Any], tmp_path: Path) -> None:
    """Files, links and what is neither; what is not ours is not looked at."""
    units = tmp_path / UNITS.lstrip("/")
    (units / "x.target.wants").mkdir(parents=True)
    (units / "home-tcpforwarder@.service").write_text("text")
    (units / "home-tcpforwarder@.service").chmod(0o640)
    (units / "home-assistant.service").write_text("not ours")
    (units / "home-assistant.service.d").mkdir()
    (units / "home-assistant.service.d" / "forward.conf").write_text("not ours")
    (units / "x.target.wants" / "home-notifier.path").symlink_to("/x")
    (units / "home-forwarders.service").mkdir()
    (units / f"home-forwarders.timer{UNFINISHED}").write_text("half")
    seen = look(asked).files
    # As far as systemctl can be asked.
    seen_file = partial(SeenFile, owner=USER, group=GROUP, unread=True)
    digest = {text: hashlib.sha256(text.encode()).hexdigest() for text in ("text", "half")}
    assert {path.removeprefix(f"{units}/"): file for path, file in seen.items()} == {
        "home-tcpforwarder@.service": seen_file("640", sha256=digest["text"]),
        "x.target.wants/home-notifier.path": seen_file("777", target="/x"),
        "home-forwarders.service": seen_file("755"),
        f"home-forwarders.timer{UNFINISHED}": seen_file("644", sha256=digest["half"]),
    }


def test_what_the_files_say(asked: dict[str, Any], tmp_path: Path) -> None:
    """The homes' addresses, and the conf as it is, whatever is in it."""
    (tmp_path / "etc").mkdir()
    (tmp_path / ADDRESSES[0].lstrip("/")).write_text(
        "# HOME_IPV6_ADDRESS_9=x\nHOME_IPV6_ADDRESS_0=2001:db8::1\nHOME_IPV6_ADDRESS_12=2001:db8::2\n"
        "HOME_IPV6_ADDRESS_3=\nXHOME_IPV6_ADDRESS_4=x\n"
    )
    (tmp_path / CONF.lstrip("/")).write_bytes(b"K\xfcche=\x00\n")
    seen = look(asked)
    assert seen.addresses == {"0": "2001:db8::1", "12": "2001:db8::2"}
    assert seen.texts == {f"{tmp_path}{CONF}": "K\ufffdche=\0\n"}


EARLY, LATE = "Sat 2000-01-01 00:00:00.000001 UTC", "Fri 2100-01-01 00:00:00.000001 UTC"


def systemctl(directory: Path, loaded: str, booted: str, started: str) -> dict[str, str]:
    """An environment with a systemctl that says these times."""
    return script(
        directory,
        "systemctl",
        f"""case "$*" in
*--property=ExecMainStartTimestamp*home-address-updater.service) echo '{started}';;
*--property=UnitsLoad*) echo 'UnitsLoadTimestamp={loaded}'; echo 'UnitsLoadStartTimestamp=';
    echo 'UserspaceTimestamp={booted}';;
*list-units*) echo '[]';;
*) exit 1;;
esac""",
    )


@pytest.mark.parametrize(
    ("loaded", "booted", "started", "unread"),
    [
        (LATE, EARLY, LATE, []),
        (LATE, EARLY, EARLY, [CONF]),
        (LATE, EARLY, "", [CONF]),
        (LATE, EARLY, "n/a", [CONF]),
        (LATE, LATE, "", []),  # not since the boot, which came after the change
        (EARLY, EARLY, LATE, [f"{UNITS}/home-forwarders.service"]),
        (EARLY, EARLY, EARLY, [CONF, f"{UNITS}/home-forwarders.service"]),
    ],
)
def test_what_has_not_been_read(
    loaded: str, booted: str, started: str, unread: list[str], asked: dict[str, Any], tmp_path: Path
) -> None:
    """Promise 12: seen from times, of systemd for units and of its reader for the conf; of a program,
    which has none, nothing is said."""
    for path in (CONF, f"{UNITS}/home-forwarders.service", "/usr/local/bin/home-address-update"):
        (tmp_path / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.lstrip("/")).touch()
    seen = look(asked, env=systemctl(tmp_path, loaded, booted, started))
    assert len(seen.files) == 3
    assert [path for path, file in seen.files.items() if file.unread] == [
        f"{tmp_path}{path}" for path in sorted(unread, reverse=True)
    ]
    assert seen.deleted_since_load is (loaded == EARLY)


def test_masked(asked: dict[str, Any], tmp_path: Path) -> None:
    units = tmp_path / UNITS.lstrip("/")
    units.mkdir(parents=True)
    (units / "home-tcpforwarder@.service").symlink_to("/dev/null")
    (units / "home-assistant.service").symlink_to("/dev/null")
    (units / "home-forwarders.service").symlink_to("/dev/zero")
    (units / "ssh.service").symlink_to("/dev/null")
    assert look(asked).masked == ("home-assistant.service", "home-tcpforwarder@.service")


def test_units(asked: dict[str, Any], tmp_path: Path) -> None:
    """What systemctl prints, as Debian 12 and 13 have it."""
    states = {
        "home-tcpforwarder@0:80.service": ("loaded", "active", "exited"),
        "home-tcpforwarders.service": ("not-found", "failed", "failed"),
        "home-assistant.service": ("loaded", "active", "running"),
    }
    listed = [
        {"unit": name, "load": load, "active": active, "sub": sub, "description": "home"}
        for name, (load, active, sub) in states.items()
    ]
    environment = tools(tmp_path, systemctl=f"{json.dumps(listed)}\n")
    assert look(asked, env=environment).units == {
        name: SeenUnit(*states[name])
        for name in ("home-tcpforwarder@0:80.service", "home-tcpforwarders.service")
    }


@pytest.fixture
def process() -> Iterator[str]:
    """The pid of a process with the settings of a relay."""
    environment = {
        REVISION: "0123",
        "HOME_IPV6_ADDRESS_12": "2001:db8::c",
        "HOME_IPV6_ADDRESS_1": "2001:db8::1",
        "SECRET": "x",
    }
    running = subprocess.Popen(["/bin/sleep", "60"], env=environment)
    yield str(running.pid)
    running.kill()
    running.wait()


@pytest.mark.parametrize(
    ("unit", "settings"),
    [
        (RELAY, {REVISION: "0123", ADDRESS: "2001:db8::c"}),
        ("home-udpforwarder-4-to-6@1:9.service", {REVISION: "0123", ADDRESS: "2001:db8::1"}),
        ("home-udpforwarder-4-to-6@7:9.service", {REVISION: "0123"}),
        ("home-tcpforwarder@12:80.service", {}),
        ("home-address-updater.service", {}),
    ],
)
def test_what_a_relay_runs_with(
    unit: str, settings: dict[str, str], process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 10: of its own home, and nothing else of its environment."""
    listed = [{"unit": unit, "load": "loaded", "active": "active", "sub": "running"}]
    monkeypatch.setattr(observe, "output", lambda *command: json.dumps(listed))
    owners = {"999999999": unit, process: unit, str(os.getpid()): "ssh.service"}
    seen = observe.units(json.loads(json.dumps(question(plan_of()))), owners)
    assert seen[unit]["runs"] is True
    assert seen[unit]["environment"] == settings


def test_a_unit_whose_processes_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [{"unit": RELAY, "load": "loaded", "active": "active", "sub": "running"}]
    monkeypatch.setattr(observe, "output", lambda *command: json.dumps(listed))
    seen = observe.units(json.loads(json.dumps(question(plan_of()))), {"999999999": RELAY})
    assert (seen[RELAY]["runs"], seen[RELAY]["environment"]) == (False, {})


def test_basis(asked: dict[str, Any], tmp_path: Path) -> None:
    """Promise 21: it is another as soon as a file or unit is; and only then."""
    bases = []
    for step in (
        lambda: None,
        lambda: None,
        lambda: (tmp_path / "etc").mkdir(),
        lambda: (tmp_path / CONF.lstrip("/")).write_text("x"),
        lambda: (tmp_path / CONF.lstrip("/")).write_text("y"),
        lambda: (tmp_path / CONF.lstrip("/")).chmod(0o600),
        lambda: tools(tmp_path, systemctl=json.dumps([UNIT]) + "\n"),
        lambda: tools(tmp_path, systemctl=json.dumps([{**UNIT, "active": "failed"}]) + "\n"),
    ):
        step()
        bases.append(look(asked, env={"PATH": str(tmp_path)}).basis)
    assert bases[0] == bases[1] == bases[2]
    assert len(set(bases)) == len(bases) - 2
    assert len({each.partition(" ")[0] for each in bases[-3:]}) == 1, "the files are the same"


UNIT = {"unit": RELAY, "load": "loaded", "active": "active", "sub": "running"}
