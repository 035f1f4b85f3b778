# SPDX-License-Identifier: GPL-3.0-or-later
"""Promises 22 and 23: whatever logs in for a deploy logs in for verification, no text at login and no
login shell changes what happens, and ssh's own settings are heeded.

One VPS with a user for each kind of login. Each deploys a change; then one verification looks at the
VPS through all of them.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from subprocess import CompletedProcess
from typing import Any

import pytest
from lab_samples import TCP, home_data

from lab import Lab
from lab.checkout import BIN, Checkout

SECRET = 'it\'s a "pass" word'  # noqa: S105
NOISE = r"""
echo '{"root": false, "systemd": false}'
echo home-forwarder
printf 'Gr\374\337e, \033[31m'
echo greetings >&2
trap "echo '{\"files\": {}}'; echo bye" EXIT
"""
BASHRC = f"printf %s {shlex.quote(NOISE)} > $home/.bashrc"
REFUSAL = "Please login as the user «admin» rather than the user «root»."


@dataclass(frozen=True)
class Login:
    """How a host of the inventory is logged in to; each has a user of its own name on the VPS."""

    data: dict[str, Any] = field(default_factory=dict)
    """Of the host in the inventory."""
    shell: str = "/bin/bash"
    sudoers: str = ""
    prepare: str = ""
    """More commands of root on the VPS; the user is $user, their directory $home."""
    forced: str = ""
    """The command that the user's key is for."""
    ssh: str = ""
    """Lines of the operator's ~/.ssh/config; the host is an alias then."""
    user: str = ""
    """Another user, who is there already."""


def sudo(**more: Any) -> dict[str, Any]:
    return {"_sudo": True, **more}


FREE, ASKED = "NOPASSWD:ALL", "ALL"
LOGINS = {
    "tcsh": Login(sudo(), "/bin/tcsh", FREE),
    "fish": Login(sudo(), "/usr/bin/fish", FREE),
    "zsh": Login(sudo(), "/bin/zsh", FREE),
    "noisy": Login(sudo(), sudoers=FREE, prepare=BASHRC),
    "password": Login(sudo(_sudo_password=SECRET), "/bin/tcsh", ASKED),
    "noisypassword": Login(sudo(_sudo_password=SECRET), sudoers=ASKED, prepare=BASHRC),
    "byssh": Login(
        sudo(ssh_password=SECRET, ssh_look_for_keys=False),
        "",
        FREE,
        "rm $home/.ssh/authorized_keys",
    ),
    "login": Login(sudo(_use_sudo_login=True), "/usr/bin/fish", FREE),
    "su": Login({"_su_user": "root"}, user="root"),
    "doas": Login({"_doas": True}, prepare='echo "permit nopass $user" >> /etc/doas.conf'),
    "alias": Login(
        sudo(), sudoers=FREE, ssh="RemoteCommand cat\n  RequestTTY yes\n  ProxyJump vps1"
    ),
}
"""By the host's name."""

REFUSED = {
    "refuses": (Login(forced=f"echo; echo '{REFUSAL}'; echo; exit 142"), REFUSAL),
    "silent": (Login(forced="true"), "the VPS answered nothing"),
    "asks": (
        Login(sudo(), sudoers=ASKED),
        "sudo wants a password, and there is no terminal to ask for it; set _sudo_password",
    ),
    "wrong": (Login(sudo(_sudo_password=SECRET[::-1]), sudoers=ASKED), "sudo: "),
    "strict": (
        Login(ssh="UserKnownHostsFile ~/.ssh/none\n  StrictHostKeyChecking yes", user="root"),
        "ssh is told not to connect then (StrictHostKeyChecking yes)",
    ),
    "changed": (Login(ssh="UserKnownHostsFile ~/.ssh/changed", user="root"), "does not match"),
}
"""Logins that do not work, and what is said of them."""

FIRST = "UserKnownHostsFile ~/.ssh/{0}\n  StrictHostKeyChecking ask"
HOST_KEYS = {
    "first": Login(ssh=FIRST.format("first"), user="root"),
    "second": Login(ssh=FIRST.format("second"), user="root"),
    "aliased": Login(
        ssh="HostKeyAlias my-vps\n  UserKnownHostsFile ~/.ssh/none\n  GlobalKnownHostsFile ~/.ssh/hashed"
        "\n  StrictHostKeyChecking yes",
        user="root",
    ),
}

ALL = LOGINS | {name: login for name, (login, _) in REFUSED.items()} | HOST_KEYS


def users() -> str:
    """The script that makes them."""
    lines = ["set -e"]
    for user, login in ALL.items():
        if login.user:
            continue
        forced = 'command="{}" '.format(login.forced.replace('"', '\\"')) if login.forced else ""
        lines += [
            f"user={user} home=/home/{user}",
            f"useradd --create-home --shell {login.shell or '/bin/bash'} $user",
            f"printf '%s\\n' {shlex.quote(f'{user}:{SECRET}')} | chpasswd",
            "install -d -o $user -m 700 $home/.ssh",
            f"(printf %s {shlex.quote(forced)}; cat /root/.ssh/authorized_keys)"
            " > $home/.ssh/authorized_keys",
            f"echo '{user} ALL=(ALL) {login.sudoers}' > /etc/sudoers.d/$user"
            if login.sudoers
            else "",
            login.prepare,
        ]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A VPS with all users, deployed to by root, and the operator's settings of ssh."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    with Lab(f"logins-{worker}", vpses={}, homes=["home0"]) as lab:
        lab.home["home0"].serve(tcp=[TCP])
        vps = lab.add_vps("vps1", "trixie", packages=["socat", "tcsh", "fish", "zsh", "opendoas"])
        vps.run(
            "printf 'Match User byssh\\n  PasswordAuthentication yes\\n'"
            " > /etc/ssh/sshd_config.d/00-password.conf; systemctl reload ssh"
        )
        vps.run(["bash", "-c", users()])
        own = lab.operator.ssh_directory
        config = "".join(
            f"Host {name}\n  HostName {vps.ipv4}\n  {login.ssh}\n"
            for name, login in ALL.items()
            if login.ssh
        ).replace("~/.ssh", str(own))
        (own / "config").write_text(config + (own / "config").read_text())
        (own / "none").write_text("")
        other = lab.operator.public_key.split()[1]
        (own / "changed").write_text(f"{vps.ipv4} ssh-ed25519 {other}\n")
        (own / "hashed").write_text(f"my-vps {vps.host_key}\n")
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(own / "hashed")], check=True)
        checkout = Checkout(lab, tmp_path_factory.mktemp("checkout"))
        declare(checkout, "root", {"tcsh": LOGINS["tcsh"]})
        checkout.deploy()
        yield checkout


def declare(site: Checkout, by: str, logins: dict[str, Login]) -> None:
    """One forward, with a home that is described otherwise each time, and the same VPS by each login."""
    vps = site.lab.vps["vps1"]
    homes = [{**home, "description": f"as {by} wants it"} for home in home_data(site.lab, count=1)]
    site.declare(
        homes,
        [{"home": "home0", "protocol": "tcp", "port": TCP}],
        hosts={
            name: {
                "ssh_user": login.user or name,
                "ssh_hostname": name if login.ssh else vps.ipv4,
                **login.data,
            }
            for name, login in logins.items()
        },
        preflight=False,
        check_interval=3600,
    )


def is_deployed(site: Checkout, by: str) -> bool:
    return f"as {by} wants it" in site.lab.vps["vps1"].read("/etc/home-forwarder.conf")


def verify(site: Checkout, *arguments: str) -> tuple[CompletedProcess[str], dict[str, str]]:
    """A verification, and the message of each check that failed, by its id."""
    report = site.directory / "report.xml"
    report.unlink(missing_ok=True)
    done = site.verify(f"--junit-xml={report}", *arguments, check=False)
    assert report.exists(), done.stdout + done.stderr
    failed = {
        case.attrib["name"]: "\n".join(each.text or "" for each in case)
        for case in ElementTree.parse(report).iter("testcase")  # noqa: S314 - it is our own
        if len(case)
    }
    return done, failed


@pytest.mark.parametrize("name", LOGINS)
def test_deploys(site: Checkout, name: str) -> None:
    """A change is made through this login, whose data goes through standard input."""
    declare(site, name, LOGINS)
    done = site.deploy("--limit", name)
    assert is_deployed(site, name), done.stderr


# Prints the command lines and environments in which a text was seen, until its input ends.
WATCH = """
import glob, select, sys
text = sys.stdin.readline().strip().encode()
print("ready", flush=True)
seen = set()
while not select.select([sys.stdin], [], [], 0)[0]:
    for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError:
            continue
        if text in content:
            seen.add(content[:200])
print(*seen, sep="\\n")
"""


def test_a_password_is_in_no_argument(site: Checkout) -> None:
    """Promise 17: neither on a command line nor in an environment of the VPS; and nothing is left."""
    vps = site.lab.vps["vps1"]
    declare(site, "the secretive", {"password": LOGINS["password"]})
    watcher = vps.popen(["python3", "-c", WATCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert watcher.stdin
    assert watcher.stdout
    watcher.stdin.write(f"{SECRET}\n")
    watcher.stdin.flush()
    assert watcher.stdout.readline() == "ready\n"
    done = site.deploy("-vvv")
    assert watcher.communicate("\n", timeout=30)[0].strip() == ""
    assert is_deployed(site, "the secretive")
    assert SECRET not in done.stdout + done.stderr
    assert vps.run("find /tmp /run /home -name '*askpass-*'").stdout == ""


MINE = """
import pytest

@pytest.fixture(scope="module")
def hostname(host):
    return host.check_output("hostname")

@pytest.fixture
def file():
    return "not a file of ours"

def test_of_my_own(host, hostname, file):
    assert file == "not a file of ours"
    assert hostname == "vps1"
    assert host.user().name == "root"
    assert host.service("home-forwarders").is_running
    assert host.file("/etc/home-forwarder.conf").mode == 0o644
    done = host.run(r"printf 'a\\374\\n'; echo no >&2; exit 7")
    assert (done.rc, done.stdout_bytes, done.stderr) == (7, b"a\\xfc\\n", "no\\n")
    assert host.check_output("echo %s", "it's") == "it's"

def test_without_a_host(file):
    pass

def test_that_fails(host):
    assert not host.socket("tcp://:::44444").is_listening, "my own words"
"""


def test_verifies(site: Checkout) -> None:
    """Each login shows a verification all that it checks, and a file of the user's own whatever that
    file asks testinfra for; as `pytest` alone, with the project's own pyproject.toml."""
    declare(site, "the last", LOGINS)
    site.deploy("--limit", "tcsh")
    (site.directory / "mine").mkdir(exist_ok=True)
    (site.directory / "mine/test_mine.py").write_text(MINE)
    done, failed = verify(site, "mine/test_mine.py")
    assert set(failed) == {f"test_that_fails[{name}]" for name in LOGINS}, done.stdout
    assert "my own words" in failed["test_that_fails[tcsh]"]
    assert "Traceback" not in done.stdout + done.stderr
    found = re.search(r"(\d+) passed", done.stdout)
    assert found
    assert int(found[1]) % len(LOGINS) == 1  # and one that is about no host
    assert int(found[1]) // len(LOGINS) > 40


def test_what_is_refused_is_told(site: Checkout) -> None:
    """In a sentence for each host; the others are deployed to and verified all the same."""
    declare(
        site, "others", {name: login for name, (login, _) in REFUSED.items()} | {"zsh": ALL["zsh"]}
    )
    own = site.lab.operator.ssh_directory
    before = {path: path.read_text() for path in own.iterdir() if path.is_file()}

    done = site.deploy(check=False)
    said = done.stdout + done.stderr
    for name, (_, sentence) in REFUSED.items():
        assert re.search(rf"\[{name}\].*{re.escape(sentence)}", said), said
    assert is_deployed(site, "others"), said
    assert done.returncode == 1
    assert "Traceback" not in said
    assert "EOFError" not in said

    done, failed = verify(site)
    assert set(failed) == {f"test_reachable[{name}]" for name in REFUSED}, done.stdout
    for name, (_, sentence) in REFUSED.items():
        assert sentence in failed[f"test_reachable[{name}]"]
    assert f"the VPS answered «{REFUSAL}»" in failed["test_reachable[refuses]"]
    assert "Traceback" not in done.stdout + done.stderr
    assert {path: path.read_text() for path in before} == before

    # config.py, which makes pyinfra ask ssh, is not read where pyinfra runs in another directory.
    elsewhere = site.pyinfra(
        *("-y", "--config", "none.py", "inventory.py", "deploy.py", "--limit", "zsh"), check=False
    )
    assert "run it in" in elsewhere.stderr
    assert elsewhere.returncode == 1

    undeployed = site.pyinfra("-y", "inventory.py", "undeploy.py", "--limit", "strict", check=False)
    assert "StrictHostKeyChecking yes" in undeployed.stderr
    assert undeployed.returncode == 1


def test_first_contact_is_told(site: Checkout) -> None:
    """With the fingerprint, and once; a key that ssh knows under another name, hashed, in another
    file, is known."""
    vps, own = site.lab.vps["vps1"], site.lab.operator.ssh_directory
    shown = subprocess.run(
        ["ssh-keygen", "-lf", "-"], input=vps.host_key, capture_output=True, text=True, check=True
    )
    fingerprint = shown.stdout.split()[1]
    declare(site, "the first", HOST_KEYS)
    done = site.deploy("--limit", "first")
    told = f"its ssh-ed25519 host key is {fingerprint}, which is now in {own}/first"
    assert re.search(rf"\[first\] +first contact: {re.escape(told)}", done.stderr), done.stderr
    assert (own / "first").read_text() == f"{vps.ipv4} {vps.host_key}\n"

    done, failed = verify(site)
    assert failed == {}, done.stdout
    assert f"second: first contact: its ssh-ed25519 host key is {fingerprint}" in done.stdout
    assert done.stdout.count("first contact") == 1
    done = site.pyinfra("inventory.py", "deploy.py", "--dry")
    assert "first contact" not in done.stdout + done.stderr
    assert (own / "second").read_text() == f"{vps.ipv4} {vps.host_key}\n"


def test_a_password_is_asked_for(site: Checkout) -> None:
    """Where there is a terminal, whatever else the login says."""
    declare(site, "who was asked", {"noisypassword": Login(sudo())})
    command = shlex.join([str(BIN / "pyinfra"), "-y", "inventory.py", "deploy.py"])
    process = site.lab.operator.popen(
        ["script", "-qefc", command, "/dev/null"],
        cwd=site.directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=False,
    )
    assert process.stdout
    said = b""
    deadline = time.monotonic() + 30
    while b"sudo password: " not in said and time.monotonic() < deadline:
        said += os.read(process.stdout.fileno(), 4096)
    said += process.communicate(f"{SECRET}\n".encode(), timeout=60)[0]
    assert process.returncode == 0, said.decode(errors="replace")
    assert is_deployed(site, "who was asked")
    assert SECRET.encode() not in said
