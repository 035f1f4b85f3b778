# SPDX-License-Identifier: GPL-3.0-or-later
"""packages.py, which installs what is missing, with tools of our own: what it makes of what they say.
The first boot does the same, but for waiting (installing.py).

apt is tried for real in tests/lab/test_packages.py. There is no system with dnf in the lab: what is
known of it here is from its manual.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from unit_remote import command
from unit_samples import RELAY, plan_of

from home_forwarder.plan import Package
from home_forwarder.planning import question
from home_forwarder.relay_programs import RELAY_PROGRAMS
from home_forwarder.remote import packages
from home_forwarder.render import module_of
from operations.packages import WITHOUT_PYTHON

SOCAT = Package("socat")
ALL = plan_of(
    forwards=[{"home": "nas", "protocol": "udp", "port": 1, "relay": "nginx"}],
    notify={"webhook": {"url": "https://a.test/x", "preset": "ntfy"}},
).packages
"""Every package that a plan can ask for."""


class System:
    """A directory with package managers in it. What is installed is in its file "installed"."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "sh").symlink_to("/bin/sh")
        (directory / "cat").symlink_to("/bin/cat")
        (directory / "grep").symlink_to("/bin/grep")
        (directory / "installed").touch()

    def tool(self, name: str, script: str) -> None:
        """A command of that name. Its arguments are written down."""
        path = self.directory / name
        text = f'#!/bin/sh\ncd {self.directory}\necho "{name} $*" >>calls\n{script}\n'
        path.write_text(text)
        path.chmod(0o755)

    def dnf(self, *, makecache: str = ":", install: str = "") -> None:
        """A system with RPMs. `install`: instead of an installation that works."""
        works = 'shift; for each; do case $each in -*) ;; *) echo "$each" >>installed; esac; done'
        self.tool("rpm", "cat installed")
        self.tool(
            "dnf", f"case $1 in makecache) {makecache} ;; install) {install or works} ;; esac"
        )

    def apt(self, *, update: str = ":", install: str = "") -> None:
        """A system with Debian's packages."""
        works = 'cat; for each; do echo "${each}installed" >>installed; done'
        self.tool("dpkg-query", "cat installed")
        self.tool("apt-get", f"case $1 in update) {update} ;; install) {install or works} ;; esac")

    @property
    def calls(self) -> list[str]:
        """What the package managers were told to do."""
        lines = (self.directory / "calls").read_text().splitlines()
        return [line for line in lines if line.startswith(("dnf", "apt-get", "services"))]

    def run(self, *packages: Package, patience: float = 0, **more: str) -> dict[str, Any]:
        """The answer of packages.py. more: keys of the job."""
        asked = {"packages": [each.job for each in packages], "patience": patience, **more}
        done = subprocess.run(
            command("packages.py"),
            input=json.dumps(asked),
            env={"PATH": str(self.directory)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        answer: dict[str, Any] = json.loads(done.stdout)
        assert done.stdout.count("\n") == 1
        return answer


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


# ---- dnf -------------------------------------------------------------------------------------


def test_dnf_installs_by_its_own_names(system: System) -> None:
    """At a deploy and at the first boot alike. What is there is not asked for, and once is enough."""
    system.dnf()
    (system.directory / "installed").write_text("python3\nsocat\n")
    wanted = [Package(each.name, each.rpm) for each in ALL]
    names = ["nginx", "nginx-mod-stream", "ca-certificates"]
    assert system.run(*wanted) == {"installed": names, "warnings": []}
    update, install = system.calls
    assert update.startswith("dnf makecache -q -y ")
    assert install.startswith("dnf install -q -y ")
    assert install.endswith(
        " --setopt=*.skip_if_unavailable=1 nginx nginx-mod-stream ca-certificates"
    )
    assert system.run(*wanted) == {"installed": [], "warnings": []}
    assert len(system.calls) == 2


def test_dnf_goes_on_without_a_repository(system: System) -> None:
    system.dnf(makecache="echo 'Error: Failed to download metadata for repo x' >&2; exit 1")
    answer = system.run(SOCAT)
    assert answer["installed"] == ["socat"]
    assert answer["warnings"] == [
        "dnf makecache ended with 1:\n    Error: Failed to download metadata for repo x"
    ]


def test_dnf_fails(system: System) -> None:
    """What both commands said, the installation's first."""
    system.dnf(makecache="echo gone; exit 1", install="echo; echo 'No match for: socat'; exit 1")
    assert system.run(SOCAT) == {
        "failed": "could not install socat\ndnf install ended with 1:\n    No match for: socat\n"
        "dnf makecache ended with 1:\n    gone"
    }


def test_dnf_is_busy(system: System) -> None:
    """It says so with 200 and exit_on_lock; that is waited for."""
    system.dnf(makecache="exit 200", install="exit 200")
    assert system.run(SOCAT) == {"waiting": "dnf is locked by another one"}
    assert "--setopt=exit_on_lock=1" in system.calls[0]
    free = '[ "$(cat n)" = xxx ] || exit 200; echo socat >>installed'
    system.dnf(makecache="printf x >>n", install=free)
    assert system.run(SOCAT, patience=20)["installed"] == ["socat"]


# ---- Both ------------------------------------------------------------------------------------


def test_apt_was_faster(system: System) -> None:
    """The lock was free when we looked, and taken when apt-get did. With older lists it may do."""
    line = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 5 (x)"
    locked = f"echo '{line}' >&2; exit 100"
    system.apt(install=locked)
    assert system.run(SOCAT) == {"waiting": line}
    system.apt(update=locked, install="echo 'E: no socat'; exit 100")
    assert system.run(SOCAT) == {"waiting": line}
    system.apt(update=locked)
    assert system.run(SOCAT)["warnings"] == [f"apt-get update ended with 100:\n    {line}"]


def test_what_counts_is_what_is_there(system: System) -> None:
    """Another package that fails does not matter; success without the package is none."""
    system.apt(install="echo socatinstalled >>installed; echo 'E: a bad postinst'; exit 100")
    answer = system.run(SOCAT)
    assert answer["installed"] == ["socat"]
    assert answer["warnings"] == ["apt-get install ended with 100:\n    E: a bad postinst"]
    (system.directory / "installed").write_text("")
    system.apt(install=":")
    assert system.run(SOCAT) == {"failed": "could not install socat"}
    (system.directory / "installed").write_text("socatconfig-files\n")
    assert system.run(SOCAT) == {"failed": "could not install socat"}


def test_what_does_as_well(system: System) -> None:
    """No package of that name is needed then."""
    system.apt()
    assert system.run(Package("socat", unless="true"))["installed"] == []
    assert system.run(Package("socat", unless="false"))["installed"] == ["socat"]


def test_a_service_is_held_while_its_package_comes(system: System) -> None:
    """Let go also when nothing is missing, for a run that was cut off. What fails there is said."""
    system.apt()
    calls = f"open('{system.directory}/calls', 'a').write"
    services = f"import sys; {calls}(' '.join(['services', *sys.argv[1:]]) + chr(10))"
    web = Package("nginx", service="nginx.service")
    assert system.run(SOCAT, web, services=services)["installed"] == ["socat", "nginx"]
    update, hold, install, release = system.calls
    assert update.startswith("apt-get update ")
    assert hold == "services hold nginx.service"
    assert install.startswith("apt-get install ")
    assert release == "services release"
    assert system.run(SOCAT, web, services=services)["installed"] == []
    assert system.calls[4:] == ["services release"]
    (system.directory / "installed").write_text("")
    assert system.run(web, services="raise SystemExit('no room')") == {
        "failed": "hold services ended with 1:\n    no room"
    }
    assert system.calls[-1].startswith("apt-get update ")


def test_no_package_manager(system: System) -> None:
    assert system.run(SOCAT) == {"failed": "neither of apt-get, dnf is here to install socat"}
    assert system.run() == {"installed": [], "warnings": []}


def test_who_has_a_lock(tmp_path: Path) -> None:
    """The kernel says it: name and pid; also after the holder has deleted what it wrote about itself."""
    path = tmp_path / "lock"
    assert packages.holder(str(path)) == ""
    path.touch()
    assert packages.holder(str(path)) == ""
    program = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", f"{program}; sys.stdout.flush(); sys.stdin.read()", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        process.stdout.readline()
        assert packages.holder(str(path)).startswith("python3")
        assert f"(pid {process.pid}" in packages.holder(str(path))
        process.communicate()
    assert packages.holder(str(path)) == ""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another kind of lock, which hinders nobody here
        assert packages.holder(str(path)) == ""


# ---- What does as well -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("built", "does"),
    [
        ("--with-http_v2_module --with-stream --with-stream_ssl_module", True),
        ("--with-http_v2_module --with-stream", True),
        ("--with-stream=dynamic --with-stream_ssl_module", False),
        ("--with-stream_ssl_module", False),
        ("", False),
    ],
)
def test_nginx_that_can_do_it(system: System, built: str, does: bool) -> None:
    """nginx -V says whether stream is built in, on standard error."""
    program = system.directory / "nginx"
    system.tool("nginx", f'[ "$1" = -V ] && echo "configure arguments: --prefix=/x {built}" >&2')
    for package, expected in zip(RELAY_PROGRAMS["nginx"].packages, (True, does), strict=True):
        unless = package.unless.replace("/usr/sbin/nginx", str(program))
        unless = unless.replace("/usr/lib*/nginx", f"{system.directory}/lib*/nginx")
        done = subprocess.run(["sh", "-c", unless], capture_output=True, check=False)
        assert (done.returncode == 0) is expected
    assert module_of(RELAY).NGINX[0] == "/usr/sbin/nginx"


def test_what_is_asked_for_is_what_is_installed() -> None:
    """What a deploy sees as missing and what it installs is said in the same words: otherwise it would be
    installed again and again."""
    plan = plan_of(forwards=[{"home": "nas", "protocol": "udp", "port": 1, "relay": "nginx"}])
    assert question(plan)["packages"] == [package.job for package in plan.packages]
    assert {key for package in ALL for key in package.job} == {"name", "rpm", "unless", "service"}
    assert Package("a").job == {"name": "a"}


# ---- Without Python --------------------------------------------------------------------------


def without_python(system: System) -> dict[str, Any]:
    for name in ("tr", "sed", "head"):
        if not (system.directory / name).exists():
            (system.directory / name).symlink_to(f"/usr/bin/{name}")
    system.tool("sleep", ":")
    done = subprocess.run(
        ["/bin/sh"],
        input=WITHOUT_PYTHON,
        env={"PATH": str(system.directory)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_python_is_installed_first(system: System) -> None:
    system.apt(update="echo 'E: dead'; exit 100", install="echo >python3; /bin/chmod 755 python3")
    assert without_python(system) == {"again": "installed python3"}


def test_python_cannot_be_installed(system: System) -> None:
    """What was said is passed on, whatever characters are in it."""
    system.apt(install="""printf 'E: a "quoted" \\\\ word\\tand\\033[1m\\nmore\\n'; exit 100""")
    answer = without_python(system)
    assert answer == {"failed": "could not install python3: E: a 'quoted' ' word and[1m more"}


def test_python_has_to_wait(system: System) -> None:
    line = "Could not get lock /var/lib/apt/lists/lock. It is held by process 5 (x)"
    system.apt(update=f"echo 'E: {line}'; echo 'E: more'; exit 100", install="exit 100")
    assert without_python(system) == {"waiting": line}
    (system.directory / "apt-get").unlink()
    system.dnf(install="exit 200")
    assert without_python(system) == {"waiting": "dnf is locked by another one"}
