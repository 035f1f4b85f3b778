# SPDX-License-Identifier: GPL-3.0-or-later
"""Does every VPS look as declared? pytest tests/verify [--inventory inventory.py] [--limit HOST]

Nothing is changed on a VPS. Each is looked at once, all at the same time, before the first check.
Of a VPS that cannot be reached only the first check remains, which fails and says why.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from facts import Facts, NotReached, Target, Vps
from pyinfra.api.state import State
from pyinfra.context import ctx_state

from home_forwarder.plan import Plan
from operations.data import WrongData, check_all
from operations.inventory import load_inventory

AT_ONCE = 16
"""VPSes looked at at the same time."""

ITEMS: dict[str, Callable[[Target], Mapping[str, Any]]] = {
    "package": lambda target: {name: name for name in target.plan.packages},
    "file": lambda target: {file.path: file for file in target.plan.files},
    "link": lambda target: {link.path: link for link in target.plan.links},
    "unit": lambda target: {unit: unit for unit in target.plan.running},
    "relay": lambda target: {relay.unit: relay for relay in target.plan.relays},
    "home": lambda target: {target.config.homes[n].name: n for n in _used_homes(target.plan)},
}
"""What a check can be about, besides a whole VPS: by the argument's name, its id and its value."""

_targets = pytest.StashKey[dict[str, Target]]()
_visits = pytest.StashKey[dict[str, Facts | NotReached]]()
_connections = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def _used_homes(plan: Plan) -> list[int]:
    return sorted({relay.home for relay in plan.relays})


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


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Verify only if asked for by name: `pytest tests` does not log in anywhere."""
    return None if _targets in config.stash else True


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
            hosts = {host.name: host for host in load_inventory(path)}
        unknown = [name for name in limit if name not in hosts]
        if unknown:
            known = ", ".join(hosts)
            raise pytest.UsageError(f"--limit: {path} has no host {unknown[0]!r}; it has {known}")
        chosen = [hosts[name] for name in dict.fromkeys(limit or hosts)]
        check_all(chosen)
    except WrongData as error:
        lines = "".join(f"\n    {mistake}" for mistake in error.mistakes)
        raise pytest.UsageError(f"wrong data; no host was contacted:{lines}") from None
    if not chosen:
        raise pytest.UsageError(f"{path}: has no hosts")
    connections = tempfile.TemporaryDirectory(prefix="verify-")
    config.stash[_connections] = connections
    try:
        config.stash[_targets] = {
            host.name: Target.of(host, Path(connections.name, str(number)))
            for number, host in enumerate(chosen)
        }
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the ssh connections; each would end by itself a minute after its last use."""
    connections = config.stash.get(_connections, None)
    if connections is None:
        return
    for path in Path(connections.name).iterdir():
        subprocess.run(
            ["ssh", "-o", f"ControlPath={path}", "-O", "exit", "vps"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    connections.cleanup()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A check runs for each VPS and each item, with an id such as vps1-/etc/home-forwarder.conf."""
    targets = metafunc.config.stash[_targets].values()
    if "target" in metafunc.fixturenames and "vps" not in metafunc.fixturenames:
        metafunc.parametrize("target", targets, ids=[target.name for target in targets])
        return
    kind = next((kind for kind in ITEMS if kind in metafunc.fixturenames), None)
    if kind is None:
        metafunc.parametrize("vps", targets, ids=[t.name for t in targets], indirect=True)
        return
    cases = [
        pytest.param(target, value, id=f"{target.name}-{name}")
        for target in targets
        for name, value in ITEMS[kind](target).items()
    ]
    metafunc.parametrize(("vps", kind), cases, indirect=["vps"])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Look at the VPSes; of one that cannot be reached only the first check remains."""
    if config.getoption("collectonly"):
        return
    chosen = {target.name: target for target in map(_target_of, items) if target}
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        visits = dict(zip(chosen, pool.map(_visit, chosen.values()), strict=True))
    config.stash[_visits] = visits
    told: set[str] = set()
    hopeless: set[pytest.Item] = set()
    for item in items:
        target = _target_of(item)
        if target and isinstance(visits[target.name], NotReached):
            if target.name in told:
                hopeless.add(item)
            told.add(target.name)
    if hopeless:
        config.hook.pytest_deselected(items=list(hopeless))
        items[:] = [item for item in items if item not in hopeless]


def _target_of(item: pytest.Item) -> Target | None:
    """The VPS that a check is about; None for a test of another kind."""
    callspec = getattr(item, "callspec", None)
    target = callspec and (callspec.params.get("vps") or callspec.params.get("target"))
    return target if isinstance(target, Target) else None


def _visit(target: Target) -> Facts | NotReached:
    try:
        return target.gather()
    except NotReached as error:
        return error


@pytest.fixture
def visit(request: pytest.FixtureRequest, target: Target) -> Facts | NotReached:
    """What was found at a VPS, or why nothing was."""
    return request.config.stash[_visits][target.name]


@pytest.fixture
def vps(request: pytest.FixtureRequest) -> Vps:
    """The VPS of this check."""
    target: Target = request.param
    found = request.config.stash[_visits][target.name]
    if isinstance(found, NotReached):
        pytest.fail(f"{target.name} {found}", pytrace=False)
    return Vps(target, found)
