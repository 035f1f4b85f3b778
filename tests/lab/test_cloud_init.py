# SPDX-License-Identifier: GPL-3.0-or-later
"""A new VPS, from nothing but its user-data."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_samples import STANDARD, TCP, UDP, home_data
from test_deploy import changed

from lab import Lab
from lab.checkout import BIN, LINKED, PROJECT, Checkout
from lab.image import cache_directory
from lab.traffic import ask_tcp, ask_udp, ask_until
from lab.vps import Vps

PATIENCE = 20
"""Seconds for what follows at once, also on a busy machine."""
LOG = "/var/log/home-forwarder-boot.log"
SEED = "var/lib/cloud/seed/nocloud"


def user_data(checkout: Checkout, *arguments: str) -> str:
    """What cloud_init.py prints for vps1."""
    command = [str(BIN / "python"), "cloud_init.py", "vps1", *arguments]
    return checkout.lab.operator.run(command, cwd=checkout.directory).stdout


@pytest.fixture
def new_vps(lab: Lab, release: str) -> Iterator[Callable[..., Vps]]:
    """A VPS like a provider's new one: cloud-init, our user-data, and switched on a moment ago."""

    def boot(text: str, prepare: Callable[[Path], None] = lambda root: None) -> Vps:
        def seed(root: Path) -> None:
            directory = root / SEED
            directory.mkdir(parents=True)
            (directory / "meta-data").write_text("instance-id: first\n")
            (directory / "user-data").write_text(text)
            prepare(root)

        vps = lab.add_vps("vps1", release, packages=["cloud-init"], prepare=seed, wait="off")
        vps.start("no")
        return vps

    yield boot
    if "vps1" in lab.vps:
        lab.remove_vps("vps1")


def is_done(vps: Vps) -> list[str]:
    """Wait for the end of cloud-init. Returns: the log of the first boot, which must end well."""
    vps.wait("boot")
    status = vps.run("cloud-init status --wait --long", check=False).stdout
    log = vps.read(LOG).splitlines()
    assert log[-1].endswith(" done"), log
    assert "status: done" in status
    assert "degraded" not in status, status
    return log


def check(checkout: Checkout, *arguments: str) -> None:
    """`cloud_init.py vps1 --check`, with the checker of cloud-init on vps1; it must find nothing."""
    checker = checkout.lab.operator.home_directory / "bin" / "cloud-init"
    checker.write_text(
        "#!/bin/sh\n# cloud-init schema --config-file FILE\n"
        'exec ssh vps1 "cat >/root/checked && cloud-init schema --config-file /root/checked" <"$3"\n'
    )
    checker.chmod(0o755)
    try:
        said = user_data(checkout, "--check", *arguments)
    finally:
        checker.unlink()
    assert said.startswith("Valid "), said


def everything_of_ours(vps: Vps) -> str:
    """Files with their dates, and when each unit was started."""
    return vps.run(
        "find /etc/home-* /etc/systemd/system /usr/local /var/lib/home-forwarder-boot -path '*home-*'"
        " -not -type d -printf '%p %l %T@\\n' | sort"
    ).stdout


def test_boots_forwarding(
    lab: Lab,
    release: str,
    checkout: Checkout,
    new_vps: Callable[..., Vps],
    record_property: Callable[[str, object], None],
) -> None:
    """From user-data alone to a client's answer; then nothing to deploy; then nothing is undone."""
    extras: dict[str, Any] = {
        "operator": "op",
        "ssh_keys": [lab.operator.public_key.strip()],
        "security_updates": True,
        "hostname": "relay1.forwarder.test",
    }
    if release == "trixie":  # the image of bookworm has no time zones; those of providers have
        extras["timezone"] = "Europe/Berlin"
    settings: dict[str, Any] = {"check_interval": 3600, "first_boot": extras}
    login = {"ssh_user": "op", "_sudo": True}
    checkout.declare(home_data(lab), STANDARD, hosts={"vps1": login}, **settings)
    text = user_data(checkout)
    started = time.monotonic()
    vps = new_vps(text)
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, f"home0 {lab.home['home0'].address}", seconds=90)
        seconds = time.monotonic() - started
        ask_until(ask_udp, vps.ipv4, UDP, f"home0 {lab.home['home0'].address}", seconds=PATIENCE)
        ask_until(ask_tcp, vps.ipv4, 8001, "home1 ", seconds=PATIENCE)
    record_property(
        "figure",
        f"{vps.release}: {seconds:.1f} s from power-on to the first forwarded byte, from"
        f" {len(text.encode())} bytes of user-data",
    )
    log = is_done(vps)
    check(checkout)
    assert "installed socat, unattended-upgrades" in "\n".join(log)
    key = hashlib.sha256(base64.b64decode(vps.host_key.split()[1])).digest()
    fingerprint = base64.b64encode(key).decode().rstrip("=")
    assert [line for line in log if f"ssh host key: 256 SHA256:{fingerprint} " in line]
    assert vps.run("hostname -f").stdout == "relay1.forwarder.test\n"
    assert vps.run("date +%Z").stdout in (("CET\n", "CEST\n") if "timezone" in extras else "UTC\n")
    assert vps.run("systemctl is-system-running").stdout == "running\n"
    assert "Unattended-Upgrade" in vps.run("apt-config dump APT::Periodic").stdout
    left = vps.run("find / -xdev -path '*home-forwarder-boot*' -not -type d | sort").stdout
    assert left.split() == ["/var/lib/home-forwarder-boot/note", LOG]

    checkout.declare(home_data(lab), STANDARD, hosts={"vps1": login}, **settings)
    assert changed(checkout.deploy().stderr) == []
    checkout.verify()

    before = everything_of_ours(vps)
    vps.reboot()
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, "home0 ", seconds=PATIENCE)
        ask_until(ask_udp, vps.ipv4, UDP, "home0 ", seconds=PATIENCE)
    assert is_done(vps) == log
    assert everything_of_ours(vps) == before

    # What pyinfra deploys later stays, also where the provider calls it a new instance.
    checkout.declare(home_data(lab), STANDARD[:2], hosts={"vps1": login}, **settings)
    checkout.deploy()
    before = everything_of_ours(vps)
    vps.write(f"/{SEED}/meta-data", "instance-id: second\n")
    vps.reboot()
    assert "it is left as it is" in is_done(vps)[-2]
    assert everything_of_ours(vps) == before
    assert changed(checkout.deploy().stderr) == []


def seen_in_log(vps: Vps, text: str, seconds: int = 60) -> None:
    """Wait until the log of the first boot says `text`."""
    vps.run(f"timeout {seconds} tail -n +1 -F {LOG} | grep -q -m 1 '{text}'")


@pytest.mark.parametrize("release", ["bookworm"], indirect=True)
def test_all_that_can_be_missing(lab: Lab, checkout: Checkout, new_vps: Callable[..., Vps]) -> None:
    """No mirror, no DNS, a power cut, a home without an address: each is waited for and logged."""

    def no_mirror(root: Path) -> None:
        sources = root / "etc/apt/sources.list"
        sources.write_text(sources.read_text().replace("/srv/apt", "/srv/mirror"))
        shutil.rmtree(root / "var/lib/apt/lists")

    home1 = lab.home["home1"]
    lab.dns.fault(home1.hostname, "nxdomain")
    checkout.declare(home_data(lab), STANDARD, hosts={"vps1": {}}, check_interval=10)
    text = user_data(checkout)
    lab.dns.unplug()
    try:
        vps = new_vps(text, no_mirror)
        vps.wait("ssh")
        seen_in_log(vps, "could not install the packages, will try again in")
        vps.power_cut()
        vps.start("ssh")
        seen_in_log(vps, "could not install the packages, will try again in 10 s")
        vps.run("ln -s apt /srv/mirror")
        seen_in_log(vps, "home 0 has no address yet")
    finally:
        lab.dns.plug()
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, "home0 ", seconds=40)
        ask_until(ask_udp, vps.ipv4, UDP, "home0 ", seconds=PATIENCE)
        with pytest.raises(OSError):
            ask_tcp(vps.ipv4, 8001)
        lab.dns.clear_faults(home1.hostname)
        ask_until(ask_tcp, vps.ipv4, 8001, f"home1 {home1.address}", seconds=40)
    log = "\n".join(is_done(vps))
    assert log.count("first boot as vps1") == 2
    assert "apt-get update ended with 100" in log
    assert "0 of 3 forwards have an address" in log
    checkout.declare(home_data(lab), STANDARD, check_interval=10)
    assert changed(checkout.deploy().stderr) == []


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The packages of requirements.txt for a VPS's Python; kept beside the lab's images."""
    requirements = PROJECT / "requirements.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    directory = cache_directory() / f"wheels-{digest}"
    if not directory.is_dir():
        new = directory.with_name(f"building-wheels-{digest}")
        shutil.rmtree(new, ignore_errors=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--require-hashes",
            "--no-deps",
        ]
        for_the_vps = ["--python-version=3.13", "--only-binary=:all:", f"--dest={new}"]
        subprocess.run([*command, *for_the_vps, "-r", requirements], check=True)
        new.rename(directory)
    return directory


class Repository:
    """The operator's checkout as a git repository that the lab serves."""

    def __init__(self, checkout: Checkout) -> None:
        self.operator = checkout.lab.operator
        self.directory = checkout.directory.with_name("repository")
        self.checkout = checkout
        self.url = f"git://{self.operator.addresses[0]}/{self.directory.name}"

    def __enter__(self) -> Repository:
        self.directory.mkdir()
        for name in (*LINKED, "requirements.txt"):
            path = PROJECT / name
            if path.is_dir():
                shutil.copytree(
                    path, self.directory / name, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copy(path, self.directory / name)
        self.git("init", "--quiet", "--initial-branch=main")
        parent = str(self.directory.parent)
        self.server = self.operator.popen(
            ["git", "daemon", "--export-all", f"--base-path={parent}", parent]
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.server.terminate()
        self.server.wait()

    def git(self, *arguments: str) -> str:
        author = ("-c", "user.name=me", "-c", "user.email=me@home.test")
        return self.operator.run(["git", *author, *arguments], cwd=self.directory).stdout.strip()

    def commit(self) -> str:
        """What is declared now. Returns: the commit."""
        for name in ("inventory.py", "group_data"):
            self.git("add", "--force", ".")
            source = self.checkout.directory / name
            if source.is_dir():
                shutil.copytree(source, self.directory / name, dirs_exist_ok=True)
            else:
                shutil.copy(source, self.directory / name)
        self.git("add", ".")
        self.git("commit", "--quiet", "--message=declare")
        return self.git("rev-parse", "HEAD")


GIT_BY_HTTP = """\
import base64, glob, http.server, json, os, subprocess, threading, time

USER = "Basic " + base64.b64encode(b"me:SECRET/%").decode()
answers, programs, leaks, over = [], set(), [], threading.Event()

class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answers.append(200 if self.headers["Authorization"] == USER else 401)
        time.sleep(0.3)  # so that whoever asks is seen
        if answers[-1] == 401:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        length = int(self.headers["Content-Length"] or 0)
        made = subprocess.run(
            ["git", "http-backend"],
            input=self.rfile.read(length),
            stdout=subprocess.PIPE,
            env={
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": "/srv",
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": self.headers["Git-Protocol"] or "",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers["Content-Type"] or "",
                "CONTENT_LENGTH": str(length),
                "HTTP_CONTENT_ENCODING": self.headers["Content-Encoding"] or "",
            },
        ).stdout
        headers, _, body = made.partition(b"\\r\\n\\r\\n")
        self.send_response(200)
        for line in headers.decode().splitlines():
            self.send_header(*line.split(": ", 1))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass

def look():
    while not over.is_set():
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                with open(path, errors="replace") as file:
                    arguments = file.read().split("\\0")
            except OSError:
                continue
            programs.add(" ".join(arguments[:2]))
            if "SECRET" in " ".join(arguments):
                leaks.append(arguments)

server = http.server.ThreadingHTTPServer(("127.0.0.1", 8180), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
looking = threading.Thread(target=look)
looking.start()
status = subprocess.run(["systemctl", "start", "home-forwarder-pull"]).returncode
over.set()
looking.join()
print(json.dumps([status, answers, sorted(programs), leaks]))
"""
"""A git server on the VPS that wants a password, SECRET/%, while the VPS pulls and every process is
looked at. Prints how the pull ended, the server's answers, who ran, and who had SECRET in its arguments."""


def check_that_nobody_sees_a_token(vps: Vps) -> None:
    """Promise 17: the token of a repository is in no argument list and in no log while it is used.

    The VPS pulls from a git server of its own.
    """
    place, secret = "/opt/home-forwarder", secrets.token_hex(8)
    vps.run(
        f"cp -r {place}/checkout/.git /srv/own.git && git -C /srv/own.git config core.bare true"
    )
    head = vps.run(f"git -C {place}/checkout rev-parse HEAD").stdout.strip()
    url = f"http://me:{secret}%2F%25@127.0.0.1:8180/own.git"
    settings = {"host": "vps1", "url": url, "commit": head, "branch": ""}
    vps.write(f"{place}/pull.json", json.dumps(settings), mode=0o600)
    vps.run(f"rm -r {place}/checkout")
    seen = vps.run("python3 -", input=GIT_BY_HTTP.replace("SECRET", secret)).stdout
    status, answers, programs, leaks = json.loads(seen)
    journal = vps.run("journalctl --quiet --output cat --since -2min").stdout
    assert status == 0, journal
    assert f"deployed {head}" in journal
    assert {200, 401} <= set(answers), "it was asked, and then told"
    assert any("git-remote-http" in each for each in programs), programs
    assert leaks == []
    assert secret not in journal
    found = vps.run(f"grep -rl {secret} {place} /root /tmp /var/log /run/log", check=False).stdout
    assert found.split() == [f"{place}/pull.json"]


@pytest.mark.parametrize("release", ["trixie"], indirect=True)
def test_pull(
    lab: Lab,
    checkout: Checkout,
    new_vps: Callable[..., Vps],
    wheels: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """The VPS gets the project at a commit and deploys itself; later it follows a branch."""

    def packages(root: Path) -> None:
        shutil.copytree(wheels, root / "srv/wheels")
        (root / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /srv/wheels\n")

    own = {"vps1": {"check_interval": 1234, "_sudo": True}}
    checkout.declare(home_data(lab), STANDARD, hosts=own, preflight=False)
    with Repository(checkout) as repository:
        commit = repository.commit()
        checkout.declare(home_data(lab), STANDARD[:2], hosts=own, preflight=False)
        repository.commit()  # not to be deployed now
        text = user_data(checkout, "--pull", repository.url, "--commit", commit, "--every", "60")
        started = time.monotonic()
        vps = new_vps(text, packages)
        with lab.inside("client"):
            ask_until(ask_tcp, vps.ipv4, TCP, "home0 ", seconds=120)
            ask_until(ask_tcp, vps.ipv4, 8001, "home1 ", seconds=PATIENCE)
        record_property(
            "figure",
            f"{vps.release}, pull: {time.monotonic() - started:.1f} s from power-on to the first"
            f" forwarded byte, from {len(text.encode())} bytes of user-data",
        )
        assert f"deployed {commit}" in "\n".join(is_done(vps))
        check(checkout, "--pull", repository.url, "--commit", commit)
        assert "OnUnitInactiveSec=1234s" in vps.read(
            "/etc/systemd/system/home-address-updater.timer"
        )
        checkout.declare(home_data(lab), STANDARD, check_interval=1234)
        assert changed(checkout.deploy().stderr) == []

        # The timer's next run, when it is told to follow the branch, which has another commit.
        assert vps.run("systemctl is-active home-forwarder-pull.timer").stdout == "active\n"
        settings = "/opt/home-forwarder/pull.json"
        vps.write(
            settings,
            vps.read(settings).replace(commit, "").replace('"branch": ""', '"branch": "main"'),
        )
        vps.run("systemctl start home-forwarder-pull")
        assert vps.run("ss -Hltn | grep :8001 ", check=False).stdout == ""
        with lab.inside("client"):
            ask_tcp(vps.ipv4, TCP)

        # A commit that the repository does not have: nothing is deployed.
        vps.write(settings, vps.read(settings).replace('"commit": ""', f'"commit": "{"0" * 40}"'))
        result = vps.run("/opt/home-forwarder/pull", check=False)
        assert result.returncode != 0
        assert "Traceback" not in result.stderr

        check_that_nobody_sees_a_token(vps)


@pytest.mark.parametrize("release", ["trixie"], indirect=True)
def test_nginx_at_the_first_boot(lab: Lab, checkout: Checkout, new_vps: Callable[..., Vps]) -> None:
    """As with a deploy: its relays run, and the web server that comes with it does not. A repository
    that is gone, and one that is not signed, do not stop it."""

    def broken_repositories(root: Path) -> None:
        (root / "srv/unsigned").mkdir()
        for name in ("Packages", "Release"):
            shutil.copy(root / "srv/apt" / name, root / "srv/unsigned")
        (root / "etc/apt/sources.list.d/broken.list").write_text(
            "deb file:/srv/gone stable main\ndeb file:/srv/unsigned ./\n"
        )
        shutil.rmtree(root / "var/lib/apt/lists")

    forwards = [{**forward, "relay": "nginx"} for forward in STANDARD]
    checkout.declare(home_data(lab), forwards, hosts={"vps1": {}}, check_interval=3600)
    vps = new_vps(user_data(checkout), broken_repositories)
    log = "\n".join(is_done(vps))
    assert "'file:/srv/gone stable Release' does not have a Release file" in log
    assert "'file:/srv/unsigned ./ Release' is not signed" in log
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, "home0 ", seconds=PATIENCE)
        ask_until(ask_udp, vps.ipv4, UDP, "home0 ", seconds=PATIENCE)
    nginx = vps.run("systemctl is-active nginx; systemctl is-enabled nginx", check=False).stdout
    assert nginx.split() == ["inactive", "disabled"]
    checkout.declare(home_data(lab), forwards, check_interval=3600)
    assert changed(checkout.deploy().stderr) == []
