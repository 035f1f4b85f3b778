# SPDX-License-Identifier: GPL-3.0-or-later
"""Every command that the documents and `--help` print works, as it is printed, for somebody who has
nothing but a fresh clone and files of their own.

STEPS is the day of such a person: in its order the commands are run, each where the text says. What is
not run is in NOT_RUN with the reason. A command that is printed and is in neither fails the test.
"""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lab_samples import TCP
from printed import DOCUMENTS, Printed, data_of, in_document, in_help, in_messages

from home_forwarder.config import load_config
from lab import Lab
from lab.checkout import PROJECT
from lab.lab import remove_by_name
from lab.traffic import ask_tcp, ask_udp, ask_until
from lab.vps import Vps

SHOW_INVENTORY = """
import json
from operations.inventory import load_inventory
print(json.dumps({each.name: each.data.dict() for each in load_inventory("inventory.py")}))
"""
HELPS = (["cloud_init.py"], ["-m", "lab"], ["-m", "bench"], ["-m", "lab.soak"])
"""Programs of the operator whose --help may have examples."""

OWN_TESTS = "the tests of the project; this is one of them"
PROVIDER = "a provider's client, and an account there"
OWN_MACHINE = "a hypervisor"

NOT_RUN = {
    "make test": OWN_TESTS,
    "make unit": OWN_TESTS,
    "make fuzz": OWN_TESTS,
    "make soak": "minutes of traffic",
    "make bench": "minutes of measuring; test_bench.py sees that each benchmark runs",
    "python -m bench --only tuning": "minutes of measuring",
    "make lock": "asks the package index for newer versions, and writes them down",
    "make demo": "test_the_demonstration",
    "sudo apt-get install --yes mmdebstrap systemd-container iproute2 nftables openssh-client": (
        "changes this machine; `make demo` installs the same where they are missing"
    ),
    "ssh -G": "names what a deploy runs",
    "systemctl start home-forwarder-boot": "is there only until the first boot went well",
    "grep 'ssh host key' /var/log/home-forwarder-boot.log": "test_cloud_init.py has a first boot",
    "systemctl start home-forwarder-pull": "test_cloud_init.py::test_pull",
    "hcloud server create --name vps1 --type cx22 --location nbg1 --image debian-13 --ssh-key MY_KEY"
    " --user-data-from-file user-data": PROVIDER,
    "hcloud image list": PROVIDER,
    "aws ec2 run-instances --image-id AMI_OF_DEBIAN --instance-type t4g.nano --key-name MY_KEY"
    " --subnet-id SUBNET --associate-public-ip-address --ipv6-address-count 1"
    " --security-group-ids GROUP --user-data fileb://user-data": PROVIDER,
    "doctl compute droplet create vps1 --region fra1 --size s-1vcpu-512mb-10gb --image debian-13-x64"
    " --enable-ipv6 --ssh-keys FINGERPRINT --user-data-file user-data --wait": PROVIDER,
    "doctl compute image list --public": PROVIDER,
    "virt-install --name vps1 --memory 512 --vcpus 1 --import --osinfo debian12 --disk"
    " size=8,backing_store=/var/lib/libvirt/images/debian-13-generic-amd64.qcow2 --cloud-init"
    " user-data=user-data --noautoconsole": OWN_MACHINE,
    "cp user-data /var/lib/vz/snippets/vps1.yml": OWN_MACHINE,
    'qm set 9001 --cicustom "user=local:snippets/vps1.yml"': OWN_MACHINE,
    "qm start 9001": OWN_MACHINE,
}
"""Commands that are printed and not run here, and why."""


@dataclass
class Site:
    """Where the commands are run.

    folder: of the user; the project's source is beside, as a git repository to clone from
    failures: what was wrong, a text for each step
    """

    lab: Lab
    vps: Vps
    folder: Path
    clone: Path = field(init=False)
    source: Path = field(init=False)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clone = self.folder / "home-forwarder"
        self.source = self.folder.with_name("the source")

    def words(self) -> Mapping[str, str]:
        """What stands in the documents for a value that only the reader knows, and the value."""
        return {
            "URL-OF-THIS-REPOSITORY": shlex.quote(str(self.source)),
            "--chdir DIRECTORY": f"--chdir {shlex.quote(str(self.clone))}",
            "CLONE": shlex.quote(str(self.clone)),
            "[ADDRESS]:PORT": f"[{self.lab.home['home0'].address}]:{TCP}",
            "python -m lab ": f"python -m lab --name {OWN_LAB} ",
        }


OWN_LAB = f"own{os.environ.get('PYTEST_XDIST_WORKER', '')}"

Where = Callable[[Site, str, "Step"], "subprocess.CompletedProcess[str]"]

AUTHOR = {
    f"GIT_{who}_{what}": "me@home.test"
    for who in ("AUTHOR", "COMMITTER")
    for what in ("NAME", "EMAIL")
}


def here(site: Site, command: str, step: Step) -> subprocess.CompletedProcess[str]:
    """On the user's machine, which has a network to install packages from."""
    activated = f"[ ! -e .venv ] || . .venv/bin/activate; {command}"
    return subprocess.run(
        ["bash", "-c", activated],
        cwd=site.clone if site.clone.exists() else site.folder,
        env={**os.environ, **AUTHOR, "MAKEFLAGS": ""},
        input=step.input,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def operator(site: Site, command: str, step: Step) -> subprocess.CompletedProcess[str]:
    """On the user's machine, in the lab: in the clone, with its virtual environment."""
    activated = f". {shlex.quote(str(site.clone))}/.venv/bin/activate && {command}"
    return site.lab.operator.run(
        ["bash", "-c", activated],
        cwd=step.directory or site.clone,
        input=step.input,
        check=False,
        timeout=300,
    )


def on_vps(site: Site, command: str, step: Step) -> subprocess.CompletedProcess[str]:
    """On the VPS, as root."""
    return site.vps.run(command, check=False)


@dataclass(frozen=True)
class Step:
    """One command of the user.

    printed: as it stands in a document; empty if no document has it
    instead: what is run in its place, where the printed one needs a person, or is a part
    says: words of what it prints
    never: words that must not be in it
    input: what is typed; nothing and no terminal if left out
    prepare: called before
    after: called afterwards, if all was well
    directory: where, if not in the clone
    """

    where: Where
    printed: str = ""
    instead: str = ""
    says: str = ""
    never: str = "Traceback"
    input: str | None = None
    status: int = 0
    prepare: Callable[[Site], None] | None = None
    after: Callable[[Site], None] | None = None
    directory: str = ""

    def run(self, site: Site) -> None:
        """Do it; write down what is wrong with it."""
        if self.prepare:
            self.prepare(site)
        command = self.instead or self.printed
        for word, value in site.words().items():
            command = command.replace(word, value)
        result = self.where(site, command, self)
        said = result.stdout + result.stderr
        if (
            result.returncode != self.status
            or self.says not in said
            or (self.never and self.never in said)
        ):
            site.failures.append(
                f"{self.printed or command}\n  run as: {command}\n  status {result.returncode},"
                f" expected {self.status}, «{self.says}» and no «{self.never}» in:\n{said}"
            )
        elif self.after:
            try:
                self.after(site)
            except (AssertionError, OSError) as error:
                site.failures.append(f"after {self.printed or command}: {error}")


# ---- What the user writes --------------------------------------------------------------------


def git(site: Site, *arguments: str) -> None:
    """git in the repository that the user cloned."""
    subprocess.run(
        ["git", *arguments],
        cwd=site.source,
        env={**os.environ, **AUTHOR},
        check=True,
        capture_output=True,
    )


def publish(directory: Path) -> None:
    """The project as it is in the working tree, committed or not, as a repository to clone from."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, files.stdout.split("\0")):
        if (PROJECT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, directory / name)


def new_version(site: Site, name: str) -> None:
    """A change of the project's own, to the file `name`."""
    with (site.source / name).open("a", encoding="utf-8") as file:
        file.write("# a new version\n")
    git(site, "commit", "--quiet", "--all", "--message=a new version")


def write_data(site: Site) -> None:
    """The first two blocks of data of the README, which are for inventory.py and group_data/all.py."""
    inventory, data = data_of("README.md")[:2]
    (site.clone / "inventory.py").write_text(inventory, encoding="utf-8")
    with (site.clone / "group_data/all.py").open("a", encoding="utf-8") as file:
        file.write(data)


def write_new_vps(site: Site) -> None:
    """What docs/cloud-init.md says of inventory.py before there is a server."""
    write_data(site)
    (site.clone / "inventory.py").write_text('vps = [("vps1", {})]\n', encoding="utf-8")


def write_wrong_data(site: Site) -> None:
    """A second inventory beside the first, of the same VPS."""
    wrong = site.folder / "wrong"
    wrong.mkdir()
    shutil.copy(site.clone / "inventory.py", wrong)
    (wrong / "group_data").mkdir()
    (wrong / "group_data/all.py").write_text("check_interval = 0\n", encoding="utf-8")


def write_admins(site: Site) -> None:
    """Inventories of a user for whom sudo wants a password; one of them has it."""
    for name, password in (("asked", {}), ("told", {"_sudo_password": "two words"})):
        shutil.copytree(site.clone / "group_data", site.folder / name / "group_data")
        login = {"ssh_user": "ops", "_sudo": True, **password}
        (site.folder / name / "inventory.py").write_text(f"vps = [({site.vps.ipv4!r}, {login})]\n")


def write_own_check(site: Site) -> None:
    """A check as docs/verification.md has it, of something that is there."""
    (site.clone / "my/test_backup.py").write_text(
        "def test_backup(host):\n"
        '    assert host.service("home-address-updater.timer").is_enabled\n'
        '    assert host.file("/etc/home-forwarder.conf").mode == 0o644\n'
    )


def write_password(site: Site) -> None:
    (site.clone / "smtp-password").write_text("secret\n")
    (site.clone / "smtp-password").chmod(0o644)


def write_ways_to_tell(site: Site) -> None:
    """One of each kind that docs/notifications.md has."""
    ways: dict[str, Any] = {}
    for block in data_of("docs/notifications.md"):
        names: dict[str, Any] = {}
        exec(block, names)  # noqa: S102 - as pyinfra would
        ways |= names["notify"]
    for name in ("webhook-url", "ntfy-token", "gotify-token"):
        (site.clone / name).write_text("https://hooks.provider.net/secret\n")
        (site.clone / name).chmod(0o600)
    ways.pop("sendmail", None)
    with (site.clone / "my/group_data/all.py").open("a", encoding="utf-8") as file:
        file.write(f"notify = {ways!r}\n")


def no_secret_is_committed(site: Site) -> None:
    """git sees nothing of what the documents tell to write beside the data."""
    (site.clone / "user-data").touch()
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    seen = subprocess.run(status, cwd=site.clone, capture_output=True, text=True, check=True).stdout
    assert seen == "", f"git would commit: {seen}"


def reachable(*ports: int) -> Callable[[Site], None]:
    """The home answers an IPv4 client through the VPS."""

    def ask(site: Site) -> None:
        with site.lab.inside("client"):
            for port in ports:
                ask_until(
                    ask_udp if port == 51820 else ask_tcp, site.vps.ipv4, port, "home", seconds=10
                )

    return ask


EDITED = "printf 'HOME_HOSTNAME_1=home1.home.example\\nHOME_ADDRESS_COUNT=2\\n' >>/etc/home-forwarder.conf"
ENTER, YES = "\n", "y\n"
NO_TERMINAL = "there is no terminal to answer from"
NEW_ADMIN = (
    "useradd --create-home ops && cp -r .ssh /home/ops && chown -R ops /home/ops/.ssh"
    " && echo 'ops:two words' | chpasswd && echo 'ops ALL=(ALL) ALL' >/etc/sudoers.d/ops"
)

STEPS = (
    # README.md: your own VPS
    Step(here, "git clone URL-OF-THIS-REPOSITORY home-forwarder && cd home-forwarder"),
    Step(here, "make setup && . .venv/bin/activate"),
    Step(here, "make help", says="a VPS, a home, a client, a deploy"),
    Step(
        operator,
        instead="pyinfra -y inventory.py deploy.py",
        says="is the placeholder of the example",
        status=1,
    ),
    Step(
        operator,
        "pyinfra inventory.py deploy.py --dry --diff",
        prepare=write_data,
        says="home-tcpforwarder@0:44444.service",
        never="socat serves one UDP client",  # no warning for what the README itself declares
    ),
    Step(
        operator,
        instead="pyinfra inventory.py deploy.py",
        says=NO_TERMINAL,
        never="EOFError",
        status=1,
    ),
    Step(
        operator,
        instead="pyinfra inventory.py deploy.py",
        input=YES,
        says="Unexpected user input: y",
    ),
    Step(
        operator,
        "pyinfra inventory.py deploy.py",
        input=ENTER,
        says="Grand total",
        after=reachable(44444, 51820),
    ),
    Step(operator, "pytest tests/verify --inventory inventory.py", says=" passed"),
    Step(operator, "pytest tests/verify", instead="pytest tests/verify --limit 203.0.113.10"),
    # docs/verification.md
    Step(
        operator,
        "pytest tests/verify --inventory other.py --limit vps1",
        instead="pytest tests/verify --inventory inventory.py --limit 203.0.113.10",
        says=" passed",
    ),
    Step(operator, "pytest tests/verify -k relay", says=" passed"),
    Step(operator, "pytest tests/verify --from-here", says="reached from here: yes ("),
    Step(operator, "pytest tests/verify --no-reach", says="its homes answer: not tried"),
    # docs/security.md
    Step(on_vps, "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub", says="SHA256:"),
    # From another directory: all data is checked, and the same is deployed.
    Step(
        operator,
        "pyinfra --chdir DIRECTORY inventory.py deploy.py",
        input=ENTER,
        directory="/",
        says="Grand total",
    ),
    Step(
        operator,
        instead="pyinfra -y CLONE/inventory.py CLONE/deploy.py",
        directory="/",
        says="since it has not read",  # the lab's ssh connects to known hosts only
        status=1,
    ),
    Step(
        operator,
        instead="pyinfra -y CLONE/inventory.py CLONE/deploy.py"
        " --data ssh_strict_host_key_checking=accept-new",
        directory="/",
        says="Grand total",
    ),
    Step(
        operator,
        instead="pyinfra -y CLONE/../wrong/inventory.py CLONE/deploy.py",
        directory="/",
        prepare=write_wrong_data,
        says="no host was changed",
        status=1,
    ),
    Step(
        operator,
        instead="pyinfra -y inventory.py deploy.py --limit nosuch",
        says="--limit nosuch: the inventory has no such host; it has 203.0.113.10",
        never="Connecting",
        status=1,
    ),
    # README.md: several VPSes, on sudo's password
    Step(on_vps, instead=NEW_ADMIN, after=write_admins),
    Step(
        operator,
        instead="pyinfra -y ../asked/inventory.py deploy.py",
        says="sudo wants a password, and there is no terminal to ask for it",
        never="EOFError",
        status=1,
    ),
    Step(
        operator,
        instead="pyinfra ../told/inventory.py deploy.py",
        input=ENTER,
        says="Grand total",
        never=NO_TERMINAL,
    ),
    # README.md: looking for a fault
    Step(on_vps, "ss -tulnp", says=":44444"),
    Step(on_vps, "systemctl list-timers 'home-*'", says="home-address-updater.timer"),
    Step(on_vps, "home-address-update", says="1 home: 0 changed, 0 unresolved"),
    Step(on_vps, instead="home-address-update --json", says='"homes"'),
    Step(
        on_vps, "journalctl -u 'home-tcpforwarder*@0:44444.service'", says="Forwarding to Fritz!Box"
    ),
    Step(on_vps, "journalctl -u home-address-updater", says="Fritz!Box at home: found at"),
    Step(
        on_vps,
        "journalctl -u home-notifier -u home-notifier-webhook -u home-notifier-program",
        says="No entries",
    ),
    Step(on_vps, "systemctl cat home-tcpforwarder-46-to-6@0:44444", says="FORWARD_"),
    Step(on_vps, "socat /dev/null TCP6:[ADDRESS]:PORT"),
    # README.md: on the VPS, without pyinfra
    Step(on_vps, "editor /etc/home-forwarder.conf", instead=EDITED),
    Step(on_vps, instead="home-address-update", says="2 homes"),
    Step(on_vps, "systemctl enable --now home-address-watcher@1.path"),
    Step(on_vps, "systemctl enable --now home-tcpforwarder@1:8080", after=reachable(8080)),
    Step(on_vps, "systemctl restart home-forwarders", after=reachable(44444, 51820)),
    # README.md: updating
    Step(
        here,
        "git pull && make setup",
        instead="git stash --quiet && git pull && make setup && git stash pop",
        prepare=lambda site: new_version(site, "CHANGELOG.md"),
        says="CHANGELOG.md",
    ),
    Step(
        here,
        "mkdir my && mv inventory.py group_data my",
    ),
    Step(here, "git checkout inventory.py group_data", after=no_secret_is_committed),
    Step(
        here,
        "git pull",
        prepare=lambda site: new_version(site, "group_data/all.py"),
        says="group_data/all.py",
    ),
    Step(
        operator,
        "pyinfra my/inventory.py deploy.py",
        input=ENTER,
        says="home-tcpforwarder@1:8080",  # what was done by hand is taken back
        after=reachable(44444, 51820),
    ),
    Step(operator, "pytest tests/verify --inventory my/inventory.py", says=" passed"),
    # docs/notifications.md
    Step(
        operator,
        "pytest tests/verify my/test_backup.py",
        instead="pytest tests/verify my/test_backup.py --inventory my/inventory.py",
        prepare=write_own_check,
        says=" passed",
    ),
    Step(
        operator,
        "pytest tests/verify my/test_backup.py -k backup",
        instead="pytest tests/verify my/test_backup.py -k backup --inventory my/inventory.py",
        says="1 passed",
    ),
    Step(here, "chmod 600 smtp-password", prepare=write_password),
    Step(
        operator,
        instead="pyinfra -y my/inventory.py deploy.py",
        prepare=write_ways_to_tell,
        says="Grand total",
        after=no_secret_is_committed,
    ),
    Step(on_vps, "ls /var/lib/home-forwarder/spool"),
    Step(on_vps, "systemctl start home-notifier"),
    Step(on_vps, instead="systemctl start home-notifier-webhook home-notifier-program"),
    Step(
        on_vps,
        "systemctl edit home-notifier-program",
        instead="SYSTEMD_EDITOR=true script -qec 'systemctl edit home-notifier-program' /dev/null",
    ),
    # docs/cloud-init.md, and what cloud_init.py --help says
    Step(
        here,
        'git switch --create mine && git commit --message "My VPSes" inventory.py group_data',
        prepare=write_new_vps,
        says="My VPSes",
    ),
    Step(
        here,
        "git fetch && git merge origin/HEAD",
        prepare=lambda site: new_version(site, "README.md"),
        says="README.md",
    ),
    Step(operator, "python cloud_init.py vps1", says="#cloud-config"),
    Step(operator, "python cloud_init.py vps1 -o user-data", says="bytes"),
    Step(operator, "python cloud_init.py vps1 -o user-data.yml", says="bytes"),
    Step(operator, "python cloud_init.py vps1 --gzip -o user-data", says="bytes"),
    Step(operator, "python cloud_init.py vps1 -o user-data.gz --gzip", says="bytes"),
    Step(
        operator,
        "python cloud_init.py vps1 --check",
        status=0 if shutil.which("cloud-init") else 1,
        says="Valid" if shutil.which("cloud-init") else "cloud-init is not installed here",
    ),
    Step(
        operator,
        "python cloud_init.py vps1 --pull https://git.example.net/me/home-forwarder.git"
        ' --commit "$(git rev-parse HEAD)"',
        says="#cloud-config",
        after=no_secret_is_committed,
    ),
    Step(
        operator,
        "... --branch main --every 60",
        instead="python cloud_init.py vps1 --pull https://git.example.net/me/home-forwarder.git"
        " --branch main --every 60",
        says="#cloud-config",
    ),
    Step(
        operator,
        instead="python cloud_init.py 203.0.113.10 --inventory my/inventory.py"
        " --with-secret /etc/home-forwarder/smtp-password"
        " --with-secret /etc/home-forwarder/webhook-token",
        says="#cloud-config",
    ),
    Step(on_vps, "cloud-init status --wait", says="status: done"),
    Step(on_vps, "cloud-init status --long", says="status: done"),
    Step(on_vps, "cloud-init query userdata | head -1", says="#cloud-config"),
    Step(on_vps, "journalctl -u home-forwarder-pull"),
    Step(on_vps, "systemctl list-units 'home-*'", says="home-tcpforwarder@0:44444.service"),
    Step(on_vps, "ip -6 route", says="2001:db8:"),
    # docs/security.md, docs/performance.md
    Step(on_vps, "systemd-analyze security", says="home-tcpforwarder-46-to-6@0:44444"),
    Step(operator, "python -m bench --help", says="--only"),
    # README.md: everything goes
    Step(
        operator,
        "pyinfra inventory.py undeploy.py",
        instead="pyinfra -y my/inventory.py undeploy.py --data remove_state=yes",
        says="Grand total",
    ),
    # lab/README.md
    Step(operator, "ssh vps1", instead="ssh vps1 hostname", says="vps1"),
    Step(here, "python -m lab up", says="203.0.113.10"),
    Step(here, "python -m lab status", says="home0.home.example"),
    Step(here, "python -m lab shell vps1", input="hostname\n", says="vps1"),
    Step(here, "python -m lab shell client -- 'getent hosts vps1'", says="203.0.113.10"),
    Step(here, "python -m lab move home0", says="->"),
    Step(here, "python -m lab fault home0.home.example servfail"),
    Step(here, "python -m lab power vps1 cut", says="off"),
    Step(here, "python -m lab down", says="is down"),
)


def printed() -> list[Printed]:
    """All that is printed."""
    found = [each for name in DOCUMENTS for each in in_document(name)]
    for program in HELPS:
        said = subprocess.run(
            [sys.executable, *program, "--help"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        found += in_help(said.stdout, f"{program[-1]} --help")
    return found


def test_every_printed_command_is_run() -> None:
    """None is forgotten, in STEPS or in NOT_RUN, and nothing is there that is printed no more."""
    commands = {each for each in printed() if not each.is_option}
    known = {step.printed for step in STEPS if step.printed} | NOT_RUN.keys()
    forgotten = sorted(f"{each.where}: {each.text}" for each in commands if each.text not in known)
    assert forgotten == []
    assert known - {each.text for each in commands} == set()
    run = " ".join(step.instead or step.printed for step in STEPS).split()
    options = {each for each in printed() if each.is_option}
    assert [
        each for each in options if each.text.split()[0] not in {*run, "--help", "--name"}
    ] == []


def seed(root: Path) -> None:
    """The VPS of a provider that was given no data of ours."""
    directory = root / "var/lib/cloud/seed/nocloud"
    directory.mkdir(parents=True)
    (directory / "meta-data").write_text("instance-id: first\n")
    (directory / "user-data").write_text("#cloud-config\nssh_deletekeys: false\n")


@pytest.mark.parametrize("release", ["trixie"], indirect=True)
@pytest.mark.vps(packages=["cloud-init"], prepare=seed)
def test_the_printed_commands(lab: Lab, vps: Vps, tmp_path: Path) -> None:
    """From the clone to the end, with what the README and docs/ tell to write."""
    site = Site(lab, vps, tmp_path / "the user's own")
    site.folder.mkdir()
    publish(site.source)
    git(site, "init", "--quiet", "--initial-branch=main")
    git(site, "add", "--all", "--force")
    git(site, "commit", "--quiet", "--message=the project")
    lab.dns.set("xxx.myfritz.net", aaaa=[lab.home["home0"].address])
    lab.home["home0"].serve(udp=[51820])
    lab.home["home1"].serve(tcp=[8080])
    try:
        for step in STEPS:
            step.run(site)
            if not site.clone.exists():
                break
    finally:
        remove_by_name(OWN_LAB)
    assert not site.failures, "\n\n".join(site.failures)


@pytest.mark.parametrize("release", ["trixie"], indirect=True)
def test_remedies(vps: Vps) -> None:
    """What messages tell to do exists: the program, the verb of systemctl, the files."""
    verbs = vps.run("systemctl --help").stdout.split()
    found = list(in_messages("home_forwarder", "operations", "tests/verify", "vps"))
    assert len(found) > 8
    for each in found:
        for command in each.text.split(" && "):
            program, *arguments = command.split()
            if program == "systemctl":
                assert arguments[0] in verbs, each
            elif program in ("pyinfra", "pytest"):
                assert all((PROJECT / file).exists() for file in arguments), each
            elif program != "cloud-init":
                vps.run(["sh", "-c", f"command -v {program}"])


def test_the_groups_of_the_readme(tmp_path: Path) -> None:
    """A key of the host goes before its group's, and that before the one of all."""
    _, everybody, groups, of_one, *_ = data_of("README.md")
    (tmp_path / "group_data").mkdir()
    (tmp_path / "inventory.py").write_text(groups, encoding="utf-8")
    (tmp_path / "group_data/all.py").write_text(
        f"{everybody}check_interval = 90\n", encoding="utf-8"
    )
    (tmp_path / of_one.splitlines()[0].removeprefix("# ")).write_text(of_one, encoding="utf-8")
    # In a process of its own: pyinfra patches what the workers of pytest are made of.
    shown = subprocess.run(
        [sys.executable, "-c", SHOW_INVENTORY],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        check=True,
        capture_output=True,
    ).stdout
    hosts = json.loads(shown)
    ports = {name: [each["port"] for each in data["forwards"]] for name, data in hosts.items()}
    assert ports == {
        "203.0.113.10": [443],
        "vps2.example.net": [443],
        "vps3.example.net": [44444, 51820],
    }
    assert [data["check_interval"] for data in hosts.values()] == [90, 90, 30]
    load_config({key: hosts["203.0.113.10"][key] for key in ("homes", "forwards")})


# make demo


def test_the_demonstration(tmp_path: Path) -> None:
    """`make demo` in a clone whose path has blanks; no colours where nobody sees them."""
    clone = tmp_path / "a clone"
    publish(clone)
    (clone / ".venv").symlink_to(Path(sys.prefix))
    for name in ("requirements.txt", "requirements-verify.txt", "requirements-dev.txt"):
        os.utime(clone / name, (0, 0))  # what they ask for is there
    result = subprocess.run(
        ["make", "demo"],
        cwd=clone,
        env={**os.environ, "MAKEFLAGS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    assert "Traffic follows" in said
    assert " passed" in said
    assert "\033" not in said


@pytest.mark.parametrize(("value", "coloured"), [("", True), ("1", False)])
def test_no_color(value: str, coloured: bool) -> None:
    """NO_COLOR is heeded on a terminal; see no-color.org."""
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", "from lab.demo import say; say('hello')"],
        cwd=PROJECT,
        env={**os.environ, "NO_COLOR": value},
        stdout=theirs,
        check=True,
    )
    os.close(theirs)
    said = os.read(ours, 1000)
    os.close(ours)
    assert b"hello" in said
    assert (b"\033" in said) is coloured
