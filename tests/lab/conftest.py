# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests on real VPSes: one lab for each release, a fresh VPS for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lab_samples import STANDARD, TCP, UDP, apply_now, disable_nginx_service, home_data, write_plan

from home_forwarder.applying import steps_of
from home_forwarder.compare import Changes
from home_forwarder.config import load_config
from home_forwarder.plan import Plan
from home_forwarder.planning import make_plan
from home_forwarder.relay_programs import package_names
from lab import Lab, LabError, check_prerequisites
from lab.checkout import Checkout
from lab.vps import Vps

RELEASES = ("bookworm", "trixie")
RELAYS = ("socat", "nginx")


def is_wanted(item: pytest.Item) -> bool:
    """Does a test run with this pair of release and relay?

    With nginx on the newest release only, since that takes minutes and what differs between releases
    is mostly systemd; `@pytest.mark.relays(everywhere=True)` is for what may differ in nginx itself.
    """
    chosen = getattr(item, "callspec", None)
    if chosen is None or "relay" not in chosen.params:
        return True
    relay = chosen.params["relay"]
    marker = item.get_closest_marker("relays")
    if marker and marker.args:
        return relay in marker.args
    everywhere = marker and marker.kwargs.get("everywhere")
    return bool(everywhere) or (chosen.params.get("release"), relay) != (RELEASES[0], "nginx")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is not wanted. Where no lab can run, say so once for each test; in CI that is
    a failure."""
    items[:] = filter(is_wanted, items)
    try:
        check_prerequisites()
    except LabError as error:
        if os.environ.get("CI"):
            pytest.exit(f"the lab tests cannot run, and in CI they must: {error}", returncode=1)
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=f"NOT TESTED: {error}"))


@pytest.fixture(scope="session", params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    """The Debian release of the VPSes."""
    return str(request.param)


@pytest.fixture(scope="session", params=RELAYS)
def relay(request: pytest.FixtureRequest) -> str:
    """What the forwards of `standard` are made of."""
    return str(request.param)


@pytest.fixture
def standard(relay: str) -> list[dict[str, Any]]:
    """The forwards of STANDARD, with this test's relay."""
    return [{**forward, "relay": relay} for forward in STANDARD]


@pytest.fixture(scope="session")
def lab(release: str) -> Iterator[Lab]:
    """Three homes that serve, a client, an operator, DNS; no VPS yet."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    with Lab(f"t{worker}-{release[:4]}", vpses={}, homes=["home0", "home1", "home2"]) as lab:
        for home in lab.home.values():
            home.serve(tcp=[TCP, *range(8000, 8010)], udp=[UDP, *range(8000, 8010)])
        yield lab


@pytest.fixture(autouse=True)
def true_dns(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test did to DNS is over with the test."""
    yield
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").dns.clear_faults()


@pytest.fixture
def vps(lab: Lab, release: str, request: pytest.FixtureRequest) -> Iterator[Vps]:
    """A fresh VPS with its relay's packages in place, so that a deploy takes a second.

    The marker `vps(...)` gives other arguments to Lab.add_vps.
    """
    options: dict[str, Any] = {"packages": ["socat"]}
    if "relay" in request.fixturenames and request.getfixturevalue("relay") == "nginx":
        options = {"packages": ["socat", *package_names("nginx")], "prepare": disable_nginx_service}
    if "booted" in request.fixturenames:
        options["prepare"] = partial(
            write_plan, request.getfixturevalue("plan"), options.get("prepare")
        )
    marker = request.node.get_closest_marker("vps")
    options.update(marker.kwargs if marker else {})
    vps = lab.add_vps("vps1", release, **options)
    yield vps
    lab.remove_vps("vps1")


@pytest.fixture
def checkout(lab: Lab, tmp_path: Path) -> Checkout:
    """The operator's checkout, nothing declared yet."""
    return Checkout(lab, tmp_path / "checkout")


@pytest.fixture
def declared(lab: Lab, standard: list[dict[str, Any]]) -> dict[str, Any]:
    """TCP and UDP to home0, and TCP to home1."""
    return {
        "homes": home_data(lab),
        "forwards": standard,
        "check_interval": 3600,
        "notify": {"mail_to": "root"},
    }


@pytest.fixture
def plan(declared: dict[str, Any]) -> Plan:
    """The plan for what is declared."""
    return make_plan(load_config(declared))


@pytest.fixture
def deployed(vps: Vps, checkout: Checkout, declared: dict[str, Any]) -> Checkout:
    """A VPS to which a deploy has brought what is declared."""
    checkout.declare(**declared)
    checkout.deploy()
    return checkout


@pytest.fixture
def booted(vps: Vps, checkout: Checkout, declared: dict[str, Any], plan: Plan) -> Checkout:
    """A VPS that had what is declared on its disk when it booted: `deployed` in half the time."""
    checkout.declare(**declared)
    vps.run("systemctl start home-address-updater.service")
    steps = steps_of(plan, Changes(start=plan.running))
    apply_now(vps, plan, [step for step in steps if step[0] == "wait"])
    return checkout


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have measured, a line each, and the table of faults: what was tried, what was
    dropped, how soon all was well again."""
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get(
        "failed", []
    ):
        for name, rows in getattr(report, "user_properties", []):
            if name == "figure":
                terminalreporter.line(f"{report.nodeid.rpartition('::')[2]}: {rows}")
            if name == "faults":
                terminalreporter.section(f"faults: {report.nodeid}")
                terminalreporter.line(f"{'fault':32} {'dropped':>8} {'recovered after':>16}")
                for fault, dropped, seconds in rows:
                    terminalreporter.line(f"{fault:32} {dropped:8} {seconds:14.2f} s")
