# SPDX-License-Identifier: GPL-3.0-or-later
"""tests/verify finds what is wrong with a VPS: each check is seen failing, and no other one.

A VPS is deployed once. Each round spoils it in several ways that have nothing to do with each
other, verifies it as an operator would, and mends it again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from lab_samples import verify

from lab import Lab
from lab.checkout import PROJECT, Checkout

HOMES = [
    {"name": "home0", "hostname": "home0.home.example", "description": "Erstes Häuschen"},
    {"name": "home1", "hostname": "home1.home.example"},
]
FORWARDS: list[dict[str, object]] = [
    {"home": "home0", "protocol": "tcp", "port": 44444},
    {"home": "home0", "protocol": "tcp", "port": 443, "listen": "4"},
    {"home": "home1", "protocol": "tcp", "port": 443, "listen": "6", "target_port": 8443},
    {"home": "home1", "protocol": "udp", "port": 33333, "relay": "socat"},
    {"home": "home0", "protocol": "udp", "port": 5000, "listen": "4", "relay": "socat"},
    {"home": "home1", "protocol": "udp", "port": 5001, "listen": "6", "relay": "socat"},
    {"home": "home0", "protocol": "tcp", "port": "8000-8002"},
]

UNITS = "/etc/systemd/system"
DEPLOY = "test_deploy_would_change_nothing[vps1]"
UNDECLARED = "test_nothing_undeclared[vps1]"
HINDERED = "test_nothing_hinders_a_deploy[vps1]"


def file(path: str) -> str:
    return f"test_file[vps1-{path}]"


def link(path: str) -> str:
    return f"test_link[vps1-{path}]"


def enabled(unit: str) -> str:
    return f"test_unit_enabled[vps1-{unit}]"


def active(unit: str) -> str:
    return f"test_unit_active[vps1-{unit}]"


def relay(name: str, *checks: str) -> tuple[str, ...]:
    """The checks of a relay: runs, listens, is_unprivileged; all three if none is named."""
    checks = checks or ("runs", "listens", "is_unprivileged")
    return tuple(f"test_relay_{check}[vps1-home-{name}.service]" for check in checks)


def answers(*names: str) -> tuple[str, ...]:
    """The checks of forwards to a home of which no address, or a wrong one, is known."""
    return tuple(f"test_home_answers[vps1-{name}]" for name in names)


@dataclass(frozen=True)
class Spoil:
    """A command that spoils a VPS, the checks that must fail, and what a deploy does not mend.

    says: words of a failing check.
    restarts: the unit that it takes to see the effect, of the command and of mending.
    """

    command: str
    fails: tuple[str, ...]
    mend: str = "true"
    says: str = ""
    restarts: str = ""


def override(
    name: str, *lines: str, fails: tuple[str, ...], says: str, suffix: str = "service"
) -> Spoil:
    """An admin's own drop-in of a unit: it is not ours, so no deploy takes it away."""
    unit = f"home-{name}.{suffix}"
    directory, content = f"{UNITS}/{unit}.d", "\\n".join(lines)
    return Spoil(
        f"mkdir -p {directory} && printf '{content}\\n' > {directory}/zz-admin.conf",
        fails,
        mend=f"rm {directory}/zz-admin.conf",
        says=says,
        restarts=unit,
    )


def runs_instead(name: str, command: str, seen: str, declared: str) -> Spoil:
    """A relay that listens for other families than declared."""
    return override(
        name,
        *("[Service]", "ExecStart=", f"ExecStart={command}"),
        fails=relay(name, "listens"),
        says=f"home-{name}.service listens for {seen}; declared is {declared}",
    )


LAUNCHER = "/usr/local/lib/home-forwarder/relay"
RELAYS_OF_HOME0 = (
    "tcpforwarder-46-to-6@0:44444",
    "tcpforwarder-4-to-6@0:443",
    "udpforwarder-4-to-6@0:5000",
    *(f"tcpforwarder-46-to-6@0:{port}" for port in range(8000, 8003)),
)
RELAYS_OF_HOME1 = (
    "tcpforwarder-6-to-6@1:443",
    "udpforwarder-46-to-6@1:33333",
    "udpforwarder-6-to-6@1:5001",
)
DROP_IN = f"{UNITS}/home-tcpforwarder-46-to-6@0:8002.service.d/forward.conf"
WANTED = f"{UNITS}/multi-user.target.wants"

ROUNDS: dict[str, tuple[Spoil, ...]] = {
    "units and files": (
        Spoil(
            "systemctl disable home-notifier.path",
            (
                link(f"{UNITS}/paths.target.wants/home-notifier.path"),
                enabled("home-notifier.path"),
                DEPLOY,
            ),
            says="home-notifier.path is disabled, not enabled",
        ),
        Spoil(
            "systemctl stop home-notifier.timer",
            (active("home-notifier.timer"), DEPLOY),
            says="home-notifier.timer is inactive (dead), not active",
        ),
        override(
            "address-updater",
            *("[Timer]", "OnBootSec=", "OnUnitInactiveSec=", "OnActiveSec=1ms"),
            suffix="timer",
            fails=(active("home-address-updater.timer"),),
            says="has no next run",
        ),
        Spoil(
            "systemctl mask --now home-tcpforwarder-46-to-6@0:8000.service",
            (
                HINDERED,
                UNDECLARED,
                *relay("tcpforwarder-46-to-6@0:8000"),
                DEPLOY,
            ),
            mend="systemctl unmask home-tcpforwarder-46-to-6@0:8000.service",
            says="home-tcpforwarder-46-to-6@0:8000.service is masked here",
        ),
        Spoil(
            "systemctl stop home-tcpforwarder@0:8001.service",
            (
                active("home-tcpforwarder@0:8001.service"),
                *relay("tcpforwarder-46-to-6@0:8001"),
                DEPLOY,
            ),
            says="Stopped home-tcpforwarder@0:8001.service",
        ),
        Spoil(
            "systemctl stop home-udpforwarder-46-to-6@1:33333.service",
            (
                *relay("udpforwarder-46-to-6@1:33333"),
                DEPLOY,
            ),
            says="home-udpforwarder-46-to-6@1:33333.service does not run; it is inactive (dead)",
        ),
        Spoil(
            "systemctl enable --now home-tcpforwarder@1:8080;"
            " until ss -Hltn 'sport = :8080' | grep -q .; do sleep 0.1; done",
            (UNDECLARED, DEPLOY),
            says="home-tcpforwarder@1:8080.service",
        ),
        Spoil(
            "echo '# by hand' >> /etc/home-forwarder.conf",
            (file("/etc/home-forwarder.conf"), DEPLOY),
            says="\n    -# by hand",
        ),
        Spoil(
            "chmod 600 /usr/local/lib/home-forwarder/notify",
            (file("/usr/local/lib/home-forwarder/notify"), DEPLOY),
            says="its mode is 600, not 755",
        ),
        Spoil(
            "chown nobody /usr/local/bin/home-address-update",
            (file("/usr/local/bin/home-address-update"), DEPLOY),
            says="its owner is nobody, not root",
        ),
        Spoil(
            f"chgrp nogroup {LAUNCHER}",
            (file(LAUNCHER), DEPLOY),
            says="its group is nogroup, not root",
        ),
        Spoil(
            f"rm {UNITS}/home-notifier.service",
            (file(f"{UNITS}/home-notifier.service"), DEPLOY),
            says="home-notifier.service does not exist",
        ),
        Spoil(
            f"rm '{DROP_IN}'; mkdir '{DROP_IN}'",
            (file(DROP_IN), DEPLOY),
            mend=f"rmdir '{DROP_IN}'",
            says="is no regular file",
        ),
        Spoil(
            "rm /etc/home-address-ipv4",
            (link("/etc/home-address-ipv4"), DEPLOY),
            says="/etc/home-address-ipv4 does not exist",
        ),
        Spoil(
            f"ln -sf /nowhere {UNITS}/timers.target.wants/home-notifier.timer",
            (link(f"{UNITS}/timers.target.wants/home-notifier.timer"), DEPLOY),
            says=f"leads to /nowhere; it must lead to {UNITS}/home-notifier.timer",
        ),
        Spoil(
            f"cd {WANTED}; cp --remove-destination {UNITS}/home-udpforwarder@.service"
            " home-udpforwarder@1:33333.service",
            (link(f"{WANTED}/home-udpforwarder@1:33333.service"), DEPLOY),
            says="is no link",
        ),
        Spoil(
            "dpkg --remove socat",
            ("test_package[vps1-socat]", DEPLOY),
            says="socat is not installed",
        ),
        Spoil(
            "touch /usr/local/bin/home-address-update.sh",
            (UNDECLARED, DEPLOY),
            says="/usr/local/bin/home-address-update.sh",
        ),
        Spoil(
            "systemctl stop home-udpforwarder-4-to-6@0:5000.service;"
            " systemd-run --quiet --unit=foreign python3 -c 'import socket, time; s = socket.socket("
            'socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 5000)); time.sleep(3600)\'; sleep 0.5',
            (
                HINDERED,
                *relay("udpforwarder-4-to-6@0:5000"),
                DEPLOY,
            ),
            mend="systemctl stop foreign",
            says="udp port 5000 is taken by python3 (foreign.service)",
        ),
    ),
    "relays": (
        runs_instead(
            "tcpforwarder-46-to-6@0:44444", f"{LAUNCHER} tcp 6 %%i", "IPv6 only", "IPv4 and IPv6"
        ),
        runs_instead(
            "udpforwarder-46-to-6@1:33333", f"{LAUNCHER} udp 4 %%i", "IPv4 only", "IPv4 and IPv6"
        ),
        runs_instead(
            "udpforwarder-4-to-6@0:5000", f"{LAUNCHER} udp 46 %%i", "IPv4 and IPv6", "IPv4 only"
        ),
        runs_instead(
            "udpforwarder-6-to-6@1:5001", f"{LAUNCHER} udp 46 %%i", "IPv4 and IPv6", "IPv6 only"
        ),
        override(
            "tcpforwarder-4-to-6@0:443",
            *("[Service]", "ExecStart=", "ExecStart=/bin/sleep infinity"),
            fails=relay("tcpforwarder-4-to-6@0:443", "listens"),
            says="runs, but does not listen on tcp port 443; socat"
            " (home-tcpforwarder-6-to-6@1:443.service) does",
        ),
        override(
            "tcpforwarder-46-to-6@0:8000",
            "[Service]",
            *("DynamicUser=no", "User=root", "NoNewPrivileges=no", "CapabilityBoundingSet=~"),
            fails=relay("tcpforwarder-46-to-6@0:8000", "is_unprivileged"),
            says="it runs as root, it has more capabilities than CAP_NET_BIND_SERVICE",
        ),
        override(
            "tcpforwarder-46-to-6@0:8001",
            "[Service]",
            *("CapabilityBoundingSet=CAP_NET_RAW", "AmbientCapabilities=CAP_NET_RAW"),
            fails=relay("tcpforwarder-46-to-6@0:8001", "is_unprivileged"),
            says="CapEff 2400",
        ),
        override(
            "tcpforwarder-46-to-6@0:8002",
            *("[Service]", "Environment=FORWARD_REVISION=older"),
            fails=(*relay("tcpforwarder-46-to-6@0:8002", "runs"), DEPLOY),
            says="FORWARD_REVISION is older, not ",
        ),
    ),
    "addresses": (
        Spoil(
            # As if the home had moved unseen: the watcher did not run.
            "systemctl stop home-address-watcher@1.path;"
            " sed -i s/2001:db8:a001:.*/2001:db8:a001:ff::10/ /etc/home-address-ipv6 --follow-symlinks",
            (
                active("home-address-watcher@1.path"),
                *(check for name in RELAYS_OF_HOME1 for check in relay(name, "runs")),
                *answers("tcp 443 (IPv6)"),
                DEPLOY,
            ),
            says="leads to 2001:db8:a001:1::10, but the last good address of its home is"
            " 2001:db8:a001:ff::10",
        ),
        Spoil(
            # As if the home had never been found.
            "sed -i /ADDRESS_0/d /etc/home-address-ipv6 --follow-symlinks;"
            " systemctl restart 'home-*forwarder@0:*'; sleep 0.5",
            (
                "test_address[vps1-home0]",
                *(check for name in RELAYS_OF_HOME0 for check in relay(name)),
                *answers("tcp 44444", "tcp 443 (IPv4)", "tcp 8000-8002", "udp 5000 (IPv4)"),
            ),
            says="no address of Erstes Häuschen (home0.home.example) is known",
        ),
        Spoil(
            "echo rubbish >> /etc/home-forwarder.conf; systemctl start home-address-updater || true",
            ("test_last_look_up[vps1]", file("/etc/home-forwarder.conf"), DEPLOY),
            says="is not KEY=value",
            mend="sed -i /rubbish/d /etc/home-forwarder.conf; systemctl start home-address-updater",
        ),
        # The last: any other might make systemd read its units again.
        Spoil(
            f"touch {UNITS}/home-notifier.timer",
            (DEPLOY,),
            # At the end of what it would restart: the relays of home 1 lead to where it was.
            says=", home-notifier.timer\n    start home-address-watcher@1.path\n",
        ),
    ),
    "python": (
        Spoil(
            "mv /usr/bin/python3 /usr/bin/python3.away",
            ("test_reachable[vps1]",),
            says="python3 is not installed",
            mend="mv /usr/bin/python3.away /usr/bin/python3",
        ),
    ),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """One VPS, deployed."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    with Lab(f"verify-{worker}", vpses={"vps1": "trixie"}, homes=["home0", "home1"]) as lab:
        lab.home["home0"].serve(tcp=[443, 44444, 8000, 8002])
        lab.home["home1"].serve(tcp=[8443])
        checkout = Checkout(lab, tmp_path_factory.mktemp("checkout"))
        checkout.declare(
            HOMES, FORWARDS, check_interval=3600, preflight=False, notify={"mail_to": "root"}
        )
        checkout.deploy()
        # The timer's run after the boot, which would mend what a round is just spoiling.
        lab.vps["vps1"].run(
            'until [ -n "$(systemctl show -P LastTriggerUSec home-address-updater.timer)" ];'
            " do sleep 0.1; done; systemctl start home-address-updater"
        )
        yield checkout


def test_all_is_well(site: Checkout) -> None:
    result = verify(site)
    assert (result.status, result.failed, result.skipped) == (0, {}, {}), result.output
    assert result.passed > 100


@pytest.mark.parametrize("spoils", ROUNDS.values(), ids=ROUNDS)
def test_finds(site: Checkout, spoils: tuple[Spoil, ...]) -> None:
    """Exactly the checks that a round is about fail."""
    vps = site.lab.vps["vps1"]
    expected = {check for spoil in spoils for check in spoil.fails}
    restarts = " ".join(spoil.restarts for spoil in spoils).strip()
    restart = f"systemctl daemon-reload && systemctl restart {restarts}" if restarts else "true"
    try:
        vps.run("\n".join(f"({each}) || exit" for each in (*(s.command for s in spoils), restart)))
        result = verify(site)
    finally:
        vps.run("\n".join(f"({each}) || exit" for each in (*(s.mend for s in spoils), restart)))
        if DEPLOY in expected:
            site.deploy()
    assert (set(result.failed), result.skipped) == (expected, {}), result.output
    for spoil in spoils:
        assert spoil.says in "\n".join(result.failed[check] for check in spoil.fails)
    assert "Traceback" not in result.output


def test_all_is_well_again(site: Checkout) -> None:
    """Nothing that failed before still does."""
    result = verify(site)
    assert (result.status, result.failed, result.skipped) == (0, {}, {}), result.output


def test_all_is_well_right_after_a_boot(site: Checkout) -> None:
    """The first look-up after a boot is waited for; here it comes later, so that it is still to come."""
    vps = site.lab.vps["vps1"]
    later = f"{UNITS}/home-address-updater.timer.d/later.conf"
    vps.write(later, "[Timer]\nOnBootSec=\nOnBootSec=13s\nOnUnitInactiveSec=3600s\n")
    vps.reboot("ssh")
    try:
        result = verify(site)
    finally:
        vps.run(f"rm -r {later} && systemctl daemon-reload")
    assert (result.status, result.failed, result.skipped) == (0, {}, {}), result.output


def test_each_check_is_seen_failing() -> None:
    """A new check needs a spoil of its own."""
    source = (PROJECT / "tests/verify/test_vps.py").read_text()
    checks = {line.split("(")[0][4:] for line in source.splitlines() if line[:9] == "def test_"}
    spoiled = {check for spoils in ROUNDS.values() for spoil in spoils for check in spoil.fails}
    of_test_works = {check.partition("[")[0] for check in answers("")}  # test_reach.py has the rest
    assert checks == {check.partition("[")[0] for check in spoiled} - of_test_works


def test_other_hosts_are_checked_all_the_same(site: Checkout) -> None:
    """A host that does not answer, one that we may not see into, and one through sudo."""
    address = site.lab.vps["vps1"].ipv4
    hosts: dict[str, dict[str, object]] = {
        "sudo": {"ssh_user": "admin", "_sudo": True},
        "nobody": {"ssh_user": "admin"},
        "closed": {"ssh_port": 2222},
    }
    inventory = [(name, {"ssh_hostname": address, **data}) for name, data in hosts.items()]
    (site.directory / "others.py").write_text(f"vps = {inventory!r}\n")
    result = verify(site, "--inventory=others.py")
    assert set(result.failed) == {"test_reachable[nobody]", "test_reachable[closed]"}
    assert "not root" in result.failed["test_reachable[nobody]"]
    assert "Connection refused" in result.failed["test_reachable[closed]"]
    assert "2 failed, 150 passed" in result.output
    assert "skipped" not in result.output
    assert "Traceback" not in result.output

    without = verify(site, "--inventory=others.py", "--limit=closed", "-k", "test_package")
    assert list(without.failed) == ["test_package[closed-python3]"]
    limited = verify(site, "--inventory=others.py", "--limit=sudo", "-k", "test_package")
    assert (limited.status, limited.passed) == (0, 2)


@pytest.mark.parametrize(
    ("inventory", "arguments", "message"),
    [
        (None, (), "no such inventory"),
        ('vps = [("vps1", {"forwards": 1})]', (), "vps1: forwards: 1 is not a list"),
        ("vps = [", (), "line 1: '[' was never closed"),
        ('vps = ["vps1"]', ("--limit=vps2",), "has no host 'vps2'; it has vps1"),
        ('vps = ["vps1"]', ("-n2",), "leave -n out"),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    site: Checkout, inventory: str | None, arguments: tuple[str, ...], message: str
) -> None:
    path = site.directory / "wrong.py"
    path.unlink(missing_ok=True)
    if inventory is not None:
        path.write_text(inventory)
    result = verify(site, "--inventory=wrong.py", *arguments)
    assert result.status == pytest.ExitCode.USAGE_ERROR
    assert message in result.output
    assert "Traceback" not in result.output
