# SPDX-License-Identifier: GPL-3.0-or-later
"""A plugin of pytest: tests about each VPS of an inventory, which is looked at first.

Nothing is changed on a VPS. Each is looked at once, all at the same time, before the first check.
Of a VPS that cannot be reached only the first check remains, which fails and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State
from pyinfra.context import ctx_state
from testinfra.host import Host as TestinfraHost

from home_forwarder.plan import Plan
from home_forwarder.reach import name_of
from operations.data import WrongData, check_all
from operations.from_here import of_families
from operations.inventory import load_inventory
from operations.results import Results
from operations.target import Facts, Target, Vps
from operations.visit import NotReached, Visit, visit

ITEMS: dict[str, Callable[[Target], Mapping[str, Any]]] = {
    "package": lambda target: {each.name: each.name for each in target.plan.packages},
    "file": lambda target: {file.path: file for file in target.plan.files},
    "link": lambda target: {link.path: link for link in target.plan.links},
    "unit": lambda target: {unit: unit for unit in target.plan.running},
    "relay": lambda target: {relay.unit: relay for relay in target.plan.relays},
    "forward": lambda target: {name_of(each): each for each in target.config.forwards},
    "way_in": lambda target: {name_of(each): each for each in target.config.forwards},
    "entry": lambda target: {
        f"{name_of(each)} over IPv{family}": (each, family)
        for each, family in of_families(target.config)
    },
    "home": lambda target: {target.config.numbered[n].name: n for n in _used_homes(target.plan)},
}
"""What a check can be about, besides a whole VPS: by the argument's name, its id and its value."""

REACH, WAY_IN, FROM_HERE = "forward", "way_in", "entry"
"""What the checks are about that see whether it works; all others compare."""
GROUPS = {
    "": "as declared",
    REACH: "its homes answer",
    WAY_IN: "its rules let clients in",
    FROM_HERE: "reached from here",
}
"""What the line at the end tells apart."""

_inventory = pytest.StashKey[Inventory]()
_targets = pytest.StashKey[dict[str, Target]]()
_visit = pytest.StashKey[Visit[Facts]]()
_results = pytest.StashKey[Results]()


def _used_homes(plan: Plan) -> list[int]:
    return sorted({relay.home for relay in plan.relays})


def is_asked_for(config: pytest.Config) -> bool:
    """Has this run of pytest begun as a verification?"""
    return _targets in config.stash


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("home-forwarder")
    group.addoption(
        "--inventory",
        metavar="PATH",
        default="inventory.py",
        help="pyinfra inventory of the VPSes to verify (default: %(default)s)",
    )
    group.addoption(
        "--limit",
        metavar="HOST",
        action="append",
        default=[],
        help="verify only this host of the inventory; may be repeated",
    )
    group.addoption(
        "--no-reach",
        action="store_true",
        help="do not try from the VPSes whether their homes answer",
    )
    group.addoption(
        "--from-here",
        action="store_true",
        help="try each forward from this machine as well, as a client would; UDP gets a few datagrams",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Load the inventory and check its data. Raises: pytest.UsageError."""
    config = session.config
    if config.getoption("numprocesses", None):
        raise pytest.UsageError("the VPSes are looked at at the same time anyway; leave -n out")
    path, limit = config.getoption("inventory"), config.getoption("limit")
    if not Path(path).is_file():
        raise pytest.UsageError(f"{path}: no such inventory; say which: --inventory PATH")
    try:
        with ctx_state.use(State()):  # pyinfra's own command line has one when it loads files
            inventory = load_inventory(path, warn=lambda text: _tell(config, text))
        hosts = {host.name: host for host in inventory}
        unknown = [name for name in limit if name not in hosts]
        if unknown:
            known = ", ".join(hosts)
            raise pytest.UsageError(f"--limit: {path} has no host {unknown[0]!r}; it has {known}")
        chosen = [hosts[name] for name in dict.fromkeys(limit or hosts)]
        check_all(chosen)
    except WrongData as error:
        lines = "".join(f"\n    {mistake}" for mistake in error.mistakes)
        raise pytest.UsageError(f"wrong data; no host was contacted:{lines}") from None
    config.stash[_inventory] = inventory
    config.stash[_targets] = {host.name: Target.of(host) for host in chosen}
    config.stash[_results] = Results(host.name for host in chosen)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close the connections."""
    if _visit in config.stash:
        config.stash[_visit].end()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A check runs for each VPS and each item, with an id such as vps1-/etc/home-forwarder.conf."""
    names = metafunc.fixturenames
    if not is_asked_for(metafunc.config) or not {"vps", "target"} & {*names}:
        return
    targets = metafunc.config.stash[_targets].values()
    ids = [target.name for target in targets]
    kind = next((kind for kind in ITEMS if kind in names), None)
    if "vps" not in names:
        metafunc.parametrize("target", targets, ids=ids)
    elif kind is None or "host" in names:  # a check with a host is the user's, and so are its names
        metafunc.parametrize("vps", targets, ids=ids, indirect=True)
    else:
        cases = [
            pytest.param(target, value, id=f"{target.name}-{name}")
            for target in targets
            for name, value in ITEMS[kind](target).items()
        ]
        metafunc.parametrize(("vps", kind), cases, indirect=["vps"])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Look at the VPSes; of one that cannot be reached only the first check remains."""
    if config.getoption("collectonly") or not is_asked_for(config):
        return
    reach, from_here = not config.getoption("no_reach"), config.getoption("from_here")
    wanted = {REACH: reach, WAY_IN: reach, FROM_HERE: from_here}
    items[:] = [item for item in items if wanted.get(_kind_of(item), True)]
    kinds = {_kind_of(item) for item in items}
    chosen = {target.name: target for target in map(_target_of, items) if target}
    found = visit(
        config.stash[_inventory],
        chosen,
        lambda state, host: chosen[host.name].gather(
            state, host, reach=bool(kinds & {REACH, WAY_IN}), from_here=FROM_HERE in kinds
        ),
    )
    config.stash[_visit] = found
    for sentence in found.told:
        _tell(config, sentence)
    told: set[str] = set()
    hopeless: set[pytest.Item] = set()
    for item in items:
        target = _target_of(item)
        if target and isinstance(found.found[target.name], NotReached):
            if target.name in told:
                hopeless.add(item)
            told.add(target.name)
    if hopeless:
        config.hook.pytest_deselected(items=list(hopeless))
        items[:] = [item for item in items if item not in hopeless]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember how a check of ours ended, for the end."""
    report = yield
    target = _target_of(item)
    ours = "host" not in getattr(item, "fixturenames", ())
    if target and ours and (report.when == "call" or report.outcome != "passed"):
        kind = _kind_of(item)
        group = kind if kind in GROUPS else ""
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        reason = why.removeprefix("Skipped: ")
        item.config.stash[_results].add(target.name, group, report.outcome, reason)
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A line for each VPS: as declared, reaching its homes, reached from here (promise 18)."""
    if not is_asked_for(config) or config.getoption("collectonly"):
        return
    left_out = "--no-reach" if config.getoption("no_reach") else ""
    reasons = {
        REACH: left_out,
        WAY_IN: left_out,
        FROM_HERE: "" if config.getoption("from_here") else "--from-here would",
    }
    terminalreporter.ensure_newline()
    for text, is_well in config.stash[_results].lines(GROUPS, reasons):
        terminalreporter.write_line(text, green=is_well, yellow=not is_well)


def _kind_of(item: pytest.Item) -> str:
    """What a check is about, besides a VPS: a key of ITEMS, or nothing."""
    names = getattr(item, "fixturenames", ())
    return next((kind for kind in ITEMS if kind in names), "")


def _tell(config: pytest.Config, sentence: str) -> None:
    """Show a line before the tests."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter:
        reporter.ensure_newline()
        reporter.write_line(sentence, yellow=True)


def _target_of(item: pytest.Item) -> Target | None:
    """The VPS that a check is about; None for a test of another kind."""
    callspec = getattr(item, "callspec", None)
    target = callspec and (callspec.params.get("vps") or callspec.params.get("target"))
    return target if isinstance(target, Target) else None


@pytest.fixture(name="visit")
def visit_of_target(request: pytest.FixtureRequest, target: Target) -> Facts | NotReached:
    """What was found at a VPS, or why nothing was."""
    return request.config.stash[_visit].found[target.name]


@pytest.fixture(scope="module")
def vps(request: pytest.FixtureRequest) -> Vps:
    """The VPS of this check."""
    target: Target = request.param
    found = request.config.stash[_visit].found[target.name]
    if isinstance(found, NotReached):
        pytest.fail(f"{target.name} {found}", pytrace=False)
    return Vps(target, found)


@pytest.fixture(scope="module")
def host(vps: Vps) -> TestinfraHost:
    """testinfra's host of each VPS, over pyinfra's connection, in place of testinfra's own fixture."""
    return vps.remote
