# SPDX-License-Identifier: GPL-3.0-or-later
"""User-data of a new VPS: what it says is what a deploy would do, and it fits where it must."""

from __future__ import annotations

import ast
import base64
import fcntl
import gzip
import io
import json
import lzma
import os
import re
import runpy
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit_remote import GROUP, USER
from unit_samples import (
    ADDRESS,
    FRITZBOX,
    NAS,
    TCP,
    UDP,
    UPDATER,
    Data,
    data,
    is_ours,
    matching,
    plan_of,
)

from home_forwarder import user_data
from home_forwarder.applying import LOCK
from home_forwarder.compare import NO_CHANGES, compare
from home_forwarder.config import load_config
from home_forwarder.plan import CONF, File, Link, Package
from home_forwarder.planning import OWNED_UNITS, UNFINISHED, make_plan
from home_forwarder.render import sent_source_of, source_of, without_comments
from home_forwarder.user_data import DIRECTORY, LIMITS, UNIT, Pull, Refused, baked, pulled
from operations import new_vps

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@laptop"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
URL = "https://git.home.test/me/home-forwarder.git"
EXTRAS: Data = {
    "operator": "operator",
    "ssh_keys": [KEY],
    "security_updates": True,
    "hostname": "vps1.home.test",
    "timezone": "Europe/Berlin",
}
LARGE: Data = {
    "homes": [
        {"name": f"h{n}", "hostname": f"h{n}.dyn.test", "description": f"№ {n}"} for n in range(4)
    ],
    "forwards": [
        {"home": f"h{n % 4}", "protocol": ("tcp", "udp")[n % 2], "port": 8000 + n}
        for n in range(20)
    ],
}
"""20 forwards, 4 homes."""


def bake(**changes: object) -> str:
    """Baked user-data of data(**changes)."""
    return baked("vps1", load_config(data(**changes)))


def pull(**settings: Any) -> str:
    """User-data that pulls."""
    return pulled("vps1", load_config(data()), Pull(**{"url": URL, "commit": COMMIT, **settings}))


def files(text: str) -> dict[str, dict[str, str]]:
    """What cloud-init writes, by path."""
    return {entry["path"]: entry for entry in yaml.safe_load(text)["write_files"]}


def job_of(text: str) -> dict[str, Any]:
    """What the first boot has to do, unpacked as the VPS does it."""
    entry = files(text)[f"{DIRECTORY}/job"]
    assert entry["encoding"] == "b64"
    job: dict[str, Any] = json.loads(lzma.decompress(base64.b64decode(entry["content"])))
    return job


UPDATER_UNIT = "home-address-updater.service"
ALL = {
    "baked": bake(),
    "with extras": bake(first_boot=EXTRAS),
    "large": bake(**LARGE),
    "pull": pull(),
    "follow": pull(commit="", branch="main", minutes=60),
}


@pytest.mark.parametrize("text", ALL.values(), ids=ALL)
def test_form(text: str) -> None:
    """The first line is exactly that; modes are strings; nothing is under /tmp; it is a mapping."""
    assert text.startswith("#cloud-config\n")
    assert "\t" not in text
    loaded = yaml.safe_load(text)
    assert loaded["locale"] == "C.UTF-8"
    for entry in loaded["write_files"]:
        # Without these, it is root's, and 0644.
        assert entry.get("permissions", "0600") in ("0600", "0755")
        assert "owner" not in entry
        assert entry["path"].startswith(("/var/lib/", "/etc/", "/opt/"))
        assert "defer" not in entry
    assert loaded["runcmd"][-1] == ["systemctl", "start", "--wait", UNIT]


@pytest.mark.parametrize("changes", [{}, LARGE, {"forwards": []}], ids=["sample", "large", "none"])
def test_it_is_the_plan(changes: Data) -> None:
    """Files, links, packages and units: exactly those of a deploy; programs without their comments."""
    plan = make_plan(load_config(data(**changes)))
    job = job_of(bake(**changes))
    todo = job["apply"]
    entries = [(Link if "target" in entry else File)(**entry) for entry in todo["write"]]
    assert [entry_as_written(entry) for entry in plan.entries] == entries
    booted = replace(plan, files=tuple(each for each in entries if isinstance(each, File)))
    assert compare(plan, matching(booted)) == NO_CHANGES
    assert tuple(Package(**each) for each in job["install"]["packages"]) == plan.packages
    assert todo["systemctl"] == [
        ["daemon-reload"],
        ["start", UPDATER_UNIT],  # the homes are looked up before the relays start
        ["start", *plan.running],
    ]
    assert [relay["unit"] for relay in todo["relays"]] == [relay.unit for relay in plan.relays]
    assert (todo["lock"], todo["unfinished"]) == (LOCK, UNFINISHED)


@pytest.mark.parametrize("relay", ["socat", "nginx"])
def test_a_service_of_a_package_is_held(relay: str) -> None:
    """What does that is in it, where there is such a service, and only there."""
    job = job_of(bake(forwards=[{**TCP, "relay": relay}]))
    services = {each["service"] for each in job["install"]["packages"] if "service" in each}
    assert services == {"socat": set(), "nginx": {"nginx.service"}}[relay]
    assert ("services" in job["install"]) is bool(services)
    if services:
        assert bare(job["install"]["services"]) == bare(sent_source_of("services.py"))


def entry_as_written(entry: File | Link) -> File | Link:
    """Programs and units are without their comments; the rest is for us alone."""
    if isinstance(entry, Link):
        return entry
    content = entry.without_comments or entry.content
    return File(entry.path, content, entry.mode, entry.owner, entry.group)


def bare(source: str) -> str:
    """A program as Python understands it, docstrings and types of functions aside."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(BARE.visit(tree))


class Bare(ast.NodeTransformer):
    """Takes away what is for a type checker only."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        return ast.Assign([node.target], node.value) if node.value else node

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        return None if ast.unparse(node) == "TYPE_CHECKING = False" else node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


BARE = Bare()


PROGRAMS = [file.path for file in plan_of(notify={"mail_to": "root"}).files if file.mode == "755"]


@pytest.mark.parametrize("path", PROGRAMS)
def test_without_comments_it_is_the_same_program(path: str) -> None:
    source = source_of(path)
    short = without_comments(source)
    assert bare(short) == bare(source)
    assert len(short) < 0.85 * len(source)
    assert short.splitlines()[:2] == source.splitlines()[:2]


def test_what_is_kept_of_a_program() -> None:
    """Each kind of annotation, and what only looks like one."""
    source = '''\
#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What it is."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Job = dict[str, Any]
X: int = 1  # why
Y: dict[str, int]

class Made:
    """From its annotations."""

    a: int = 1
    b: str

def f(ä: str, b: "int | None" = None, *c: int, d: dict[str, int] = {}, **e: int) -> str:  # why: int
    """What it does."""
    if b:
        d = """
    # no comment
        not indented: int
    """ + f"""
    {ä}
        """
    found: list[str] = ["ß: str", ä]
    found[0]: str = "-> x"
    g = lambda x: x
    return found[1:b]

def g(
    a: dict[
        str, int
    ],
) -> dict[
    str, int
]:
    pass
'''
    assert without_comments(source).splitlines() == [
        "#!/usr/bin/python3",
        "# SPDX-License-Identifier: GPL-3.0-or-later",
        "X = 1",
        "Y: dict[str, int]",
        "class Made:",
        " a: int = 1",
        " b: str",
        "def f(ä, b = None, *c, d = {}, **e):",
        " if b:",
        '  d = """',
        "    # no comment",
        "        not indented: int",
        '    """ + f"""',
        "    {ä}",
        '        """',
        ' found = ["ß: str", ä]',
        ' found[0] = "-> x"',
        " g = lambda x: x",
        " return found[1:b]",
        "def g(",
        " a: dict[",
        "  str, int",
        " ],",
        ") -> dict[",
        " str, int",
        "]:",
        " pass",
    ]


def test_the_programs_are_ours() -> None:
    """What runs on the VPS is what is tested here, and it compiles."""
    job = job_of(bake())
    assert bare(job["program"]) == bare(sent_source_of("first_boot.py"))
    compile(job["program"], "first_boot.py", "exec")
    assert job["program"].count("class Failed(") == 1  # of two that import it
    assert files(pull())["/opt/home-forwarder/pull"]["content"] == sent_source_of("pull.py")
    assert f'DIRECTORY = "{DIRECTORY}"' in job["program"]
    assert f'UNIT = "{UNIT}"' in job["program"]


@pytest.mark.parametrize("text", ALL.values(), ids=ALL)
def test_nothing_of_it_is_taken_for_the_plans(text: str) -> None:
    """A later deploy neither reports nor removes what the first boot needs, and what it leaves."""
    units = [path.rpartition("/")[2] for path in files(text)]
    assert [path for path in files(text) if is_ours(path)] == []
    assert [unit for unit in units if re.fullmatch(OWNED_UNITS, unit)] == []


# ---- The first boot --------------------------------------------------------------------------


class Boot:
    """home_forwarder/remote/first_boot.py on a VPS that is a directory, with its commands listed."""

    def __init__(self, directory: Path, text: str) -> None:
        self.commands: list[str] = []
        self.broken: set[str] = set()
        self.said: list[str] = []
        self.packages: tuple[list[str], list[str]] | str = ([], [])
        self.deaf: set[str] = set()
        self.names: dict[str, Any] = {"__name__": "first_boot"}
        job = job_of(text)
        exec(compile(job["program"], "first_boot.py", "exec"), self.names)  # noqa: S102
        self.root, self.note, self.lock = directory, directory / "note", directory / "lock"
        self.conf = directory / CONF.lstrip("/")
        self.homes(0, 1)
        if "apply" in job:
            job["apply"] |= {"lock": str(self.lock), "write": self.below(job["apply"]["write"])}
            job["apply"]["addresses"][0] = str(directory / "addresses")
        (directory / "job").write_bytes(lzma.compress(json.dumps(job).encode()))
        self.names |= {
            "JOB": str(directory / "job"),
            "NOTE": str(self.note),
            "CONF": str(self.conf),
            "PAUSE_AT_FIRST": 0,
            "GIVE_UP": -1,
            "LOCKED": 0,
            "SECONDS": 0.1,
            "say_host_key": lambda path: None,
            "install": self.install,
            "listening": self.listening,
            "run": self.run,
            "say": self.said.append,
        }

    def below(self, entries: list[dict[str, str]]) -> list[dict[str, str]]:
        """The same files in the directory, and ours to write."""
        owner = {"owner": USER, "group": GROUP}
        return [
            {**each, **({} if "target" in each else owner), "path": f"{self.root}{each['path']}"}
            for each in entries
        ]

    def homes(self, *known: int) -> None:
        """The homes whose addresses are known."""
        lines = [f"HOME_IPV6_ADDRESS_{number}={ADDRESS}\n" for number in known]
        (self.root / "addresses").write_text("".join(lines))

    def run(self, command: list[str], input: str | None = None, name: str = "") -> str:
        name = name or " ".join(command)
        self.commands.append(name)
        if any(name.startswith(each) for each in self.broken):
            raise self.names["Failed"](f"{name} failed")
        return "fine"

    def install(
        self, packages: list[dict[str, str]], services: str = ""
    ) -> tuple[list[str], list[str]]:
        """As installing.py does it, which test_packages.py is about."""
        self.commands.append(INSTALLING)
        if isinstance(self.packages, str):
            raise self.names["Failed"](self.packages)
        return self.packages

    def listening(self, relays: list[dict[str, Any]]) -> set[tuple[str, str, int]]:
        return {
            (each["unit"], each["protocol"], each["first"])
            for each in relays
            if each["unit"] not in self.deaf
        }

    def work(self) -> bool:
        return bool(self.names["work"]())

    @property
    def note_says(self) -> str:
        """Nothing if there is none yet."""
        return self.note.read_text() if self.note.exists() else ""


INSTALLING = "installing the packages"


def test_a_first_boot(tmp_path: Path) -> None:
    """Packages, files, units, in this order; nothing of it is repeated."""
    boot = Boot(tmp_path, ALL["baked"])
    boot.packages = (["socat"], ["apt-get update ended with 100:\n  x"])
    assert boot.work()
    plan = plan_of()
    assert boot.commands == [
        INSTALLING,
        "systemctl daemon-reload",
        f"systemctl start {UPDATER_UNIT}",
        f"systemctl start {' '.join(plan.running)}",
    ]
    assert boot.said == [
        "first boot as vps1",
        "apt-get update ended with 100:\n  x",
        "installed socat",
        f"wrote {len(plan.entries)} files and links",
        "2 of 2 forwards have an address to forward to",
    ]
    for entry in plan.entries:
        path = Path(f"{tmp_path}{entry.path}")
        if isinstance(entry, Link):
            assert str(path.readlink()) == entry.target
        else:
            assert path.read_text() == (entry.without_comments or entry.content)
            assert path.stat().st_mode & 0o777 == int(entry.mode, 8)
    assert list(tmp_path.rglob(f"*{UNFINISHED}")) == []
    assert boot.lock.read_text().startswith("the first boot since ")
    assert boot.note_says == "done"
    boot.commands.clear()
    assert boot.work()
    assert boot.commands == []


@pytest.mark.parametrize(
    ("note", "conf", "acts"),
    [
        ("", False, True),
        ("begun", True, True),  # cut off while it was writing
        ("", True, False),  # somebody has deployed with pyinfra while a mirror was away
        ("done", True, False),  # the provider calls it a new instance
        ("done", False, False),  # and everything has been undeployed
    ],
)
def test_what_was_deployed_later_stays(tmp_path: Path, note: str, conf: bool, acts: bool) -> None:
    boot = Boot(tmp_path, ALL["baked"])
    if note:
        boot.note.write_text(note)
    if conf:
        boot.conf.parent.mkdir()
        boot.conf.touch()
    assert boot.work()
    assert ((tmp_path / "usr").exists(), "systemctl daemon-reload" in boot.commands) == (acts, acts)
    assert boot.conf.exists() is (conf or acts)
    if not acts:
        assert boot.said[-1].endswith("deployed already; it is left as it is")
    assert boot.note_says == "done"


def test_no_room_to_write(tmp_path: Path) -> None:
    """Promise 12: nothing has been changed, and the next boot tries again."""
    boot = Boot(tmp_path, ALL["baked"])
    (tmp_path / UPDATER.lstrip("/")).mkdir(parents=True)
    with pytest.raises(boot.names["Failed"], match=r"^cannot write the files: .* is in the way"):
        boot.work()
    assert boot.commands == [INSTALLING]
    there = {path for path in tmp_path.rglob("*") if not path.is_dir()}
    assert there == {tmp_path / name for name in ("addresses", "job", "lock", "note")}
    assert boot.note_says == "begun"


def test_without_its_packages_nothing_is_begun(tmp_path: Path) -> None:
    """It is tried again, then by the next boot."""
    boot = Boot(tmp_path, ALL["baked"])
    boot.packages = "could not install socat"
    with pytest.raises(boot.names["Failed"], match=f"^{boot.packages}$"):
        boot.work()
    assert set(boot.commands) == {INSTALLING}
    assert boot.note_says == ""


def test_a_dead_mirror_comes_back(tmp_path: Path) -> None:
    """Each time it is said why."""
    boot = Boot(tmp_path, ALL["baked"])
    boot.packages = "no mirror"

    def say(text: str) -> None:
        boot.said.append(text)
        if len(boot.said) == 4:
            boot.packages = ([], [])

    boot.names |= {"GIVE_UP": 60, "say": say}
    assert boot.work()
    again = "could not install the packages, will try again in 0 s: no mirror"
    assert boot.said[1:5] == [again, again, again, boot.said[4]]
    assert boot.said[4].startswith("wrote ")


def test_while_somebody_else_deploys(tmp_path: Path) -> None:
    """Promise 21: said, and tried again as long as for a mirror; then by the next boot."""
    boot = Boot(tmp_path, ALL["baked"])
    boot.lock.write_text("you@desk since 12:00:00 UTC\n")
    with boot.lock.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = "you@desk since 12:00:00 UTC is just changing this VPS"
        with pytest.raises(boot.names["Failed"], match=f"^{busy}$"):
            boot.work()
        assert (boot.note_says, boot.conf.exists()) == ("", False)

        def say(text: str) -> None:
            boot.said.append(text)
            if text == f"could not change this VPS, will try again in 0 s: {busy}":
                fcntl.flock(lock, fcntl.LOCK_UN)

        boot.names |= {"GIVE_UP": 60, "say": say}
        assert boot.work()
    assert boot.note_says == "done"


def test_a_unit_that_does_not_start_is_told(tmp_path: Path) -> None:
    """The others start; nothing is written a second time at the next boot."""
    boot = Boot(tmp_path, ALL["baked"])
    first, second = plan_of().relays
    boot.broken |= {"systemctl daemon-reload", f"systemctl start {UPDATER_UNIT}"}
    boot.deaf.add(second.unit)
    assert not boot.work()
    assert "systemctl daemon-reload failed" in boot.said
    assert f"systemctl start {UPDATER_UNIT} failed" in boot.said
    assert f"systemctl start {' '.join(plan_of().running)}" in boot.commands
    assert f"{second.unit} does not listen: fine" in boot.said
    assert not any(first.unit in each for each in boot.said)
    assert boot.note_says == "done"


@pytest.mark.parametrize(
    ("homes", "said"),
    [
        ([0, 1], ["2 of 2 forwards have an address to forward to"]),
        (
            [1],
            [
                "1 of 2 forwards have an address to forward to",
                "home 0 has no address yet; its forwards start as soon as it resolves",
            ],
        ),
    ],
)
def test_homes_without_an_address_are_told(
    homes: list[int], said: list[str], tmp_path: Path
) -> None:
    """It is no failure: the next look-up may find them."""
    boot = Boot(tmp_path, ALL["baked"])
    boot.homes(*homes)
    boot.deaf |= {relay.unit for relay in plan_of().relays if relay.home not in homes}
    assert boot.work()
    assert boot.said[-len(said) :] == said


def test_a_pull_goes_before_its_timer(tmp_path: Path) -> None:
    boot = Boot(tmp_path, ALL["follow"])
    assert boot.work()
    assert boot.commands == [
        INSTALLING,
        "/opt/home-forwarder/pull",
        "systemctl enable --now home-forwarder-pull.timer",
    ]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_who_listens_is_asked_of_the_kernel(family: int) -> None:
    """A connection is none that listens, and each protocol is for itself."""
    names: dict[str, Any] = {"__name__": "first_boot"}
    exec(compile(sent_source_of("first_boot.py"), "first_boot.py", "exec"), names)  # noqa: S102
    here = ("127.0.0.1" if family == socket.AF_INET else "::1", 0)
    with (
        socket.create_server(here, family=family) as tcp,
        socket.socket(family, socket.SOCK_DGRAM) as udp,
        socket.create_connection(tcp.getsockname()[:2]) as client,
        socket.socket(family, socket.SOCK_DGRAM) as asking,
    ):
        udp.bind(here)
        asking.connect(udp.getsockname()[:2])
        ports = {each: each.getsockname()[1] for each in (tcp, udp, client, asking)}
        found = names["listening"](
            [{"unit": "a", "protocol": "tcp"}, {"unit": "b", "protocol": "udp"}]
        )
    assert ("a", "tcp", ports[tcp]) in found
    assert ("b", "udp", ports[udp]) in found
    assert ("a", "tcp", ports[client]) not in found
    assert ("b", "udp", ports[asking]) not in found
    assert not {("a", "tcp", ports[udp]), ("a", "udp", ports[tcp])} & found


# ---- Size ------------------------------------------------------------------------------------


def test_it_fits() -> None:
    """At AWS with --gzip: a forward of each protocol, 20 TCP forwards. At all others 20 forwards and 4
    homes as they are; in pull mode everywhere."""
    limits = {limit.provider: limit.bytes for limit in LIMITS}
    tcp = [{**forward, "protocol": "tcp"} for forward in LARGE["forwards"]]
    for text in (ALL["baked"], bake(**{**LARGE, "forwards": tcp})):
        assert len(user_data.packed(text)) < limits["AWS EC2"] == 16 * 1024
    assert len(ALL["large"].encode()) < 0.7 * limits["Hetzner Cloud"]
    assert len(ALL["follow"].encode()) < limits["AWS EC2"]


def test_sizes_are_told() -> None:
    lines = user_data.sizes("x" * 40000)
    assert lines[0].startswith("40000 bytes of user-data")
    answers = {line.split("  ")[1].strip(): line.rpartition("  ")[2] for line in lines[1:-1]}
    assert answers["AWS EC2"] == "with --gzip"
    assert answers["Hetzner Cloud"] == "no"
    assert answers["DigitalOcean"] == "yes"
    assert set(answers) == {limit.provider for limit in LIMITS}
    assert "--pull" in lines[-1]
    assert all(line.endswith("  yes") for line in user_data.sizes(ALL["pull"])[1:])


def test_gzip_is_the_same_text() -> None:
    """cloud-init unpacks it; the same data gives the same bytes."""
    packed = user_data.packed(ALL["baked"])
    assert gzip.decompress(packed).decode() == ALL["baked"]
    assert packed == user_data.packed(ALL["baked"])


# ---- Extras ----------------------------------------------------------------------------------


def test_extras_are_off_by_default() -> None:
    loaded = yaml.safe_load(ALL["baked"])
    assert set(loaded) == {"locale", "write_files", "runcmd"}
    assert set(files(ALL["baked"])) == {f"{DIRECTORY}/job", f"/etc/systemd/system/{UNIT}"}


def test_extras() -> None:
    loaded = yaml.safe_load(ALL["with extras"])
    assert loaded["users"] == [
        "default",
        {
            "name": "operator",
            "shell": "/bin/bash",
            "sudo": "ALL=(ALL:ALL) NOPASSWD:ALL",
            "lock_passwd": True,
            "ssh_authorized_keys": [KEY],
        },
    ]
    assert (loaded["hostname"], loaded["fqdn"]) == ("vps1", "vps1.home.test")
    assert loaded["timezone"] == "Europe/Berlin"
    extra = job_of(ALL["with extras"])["install"]["packages"][-2:]
    assert extra == [{"name": "sudo"}, {"name": "unattended-upgrades"}]
    assert (
        'Unattended-Upgrade "1"'
        in files(ALL["with extras"])["/etc/apt/apt.conf.d/20auto-upgrades"]["content"]
    )


def test_keys_without_an_operator_are_for_root() -> None:
    loaded = yaml.safe_load(bake(first_boot={"ssh_keys": [KEY]}))
    assert loaded["ssh_authorized_keys"] == [KEY]
    assert loaded["disable_root"] is False
    assert "users" not in loaded


def test_nothing_that_a_user_writes_leaves_its_place() -> None:
    """Descriptions and comments of keys are text, whatever they look like."""
    evil = "x\": {#} & *a !!b | %c '"
    text = bake(
        homes=[{**FRITZBOX, "description": evil}, NAS],
        first_boot={"ssh_keys": [f"{KEY} {evil}"]},
    )
    loaded = yaml.safe_load(text)
    assert set(loaded) == {"locale", "disable_root", "ssh_authorized_keys", "write_files", "runcmd"}
    assert loaded["ssh_authorized_keys"] == [f"{KEY} {evil}"]


# ---- Secrets ---------------------------------------------------------------------------------


PASSWORD_FILE = "/etc/home-forwarder/smtp-password"  # noqa: S105 - its path on the VPS


@pytest.fixture
def with_secret(tmp_path: Path) -> Data:
    """Data with a mail server that wants a password."""
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    file.chmod(0o600)
    smtp = {"host": "smtp.home.test", "user": "me", "password_file": str(file)}
    return data(notify={"mail_to": "me@home.test", "smtp": smtp})


def test_a_secret_is_refused(with_secret: Data) -> None:
    """The message has its name, what is better, and how to have it all the same."""
    config = load_config(with_secret)
    with pytest.raises(Refused, match=r"deploy it with pyinfra") as refused:
        baked("vps1", config)
    assert f"--with-secret {PASSWORD_FILE}" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_secret_that_was_asked_for(with_secret: Data) -> None:
    text = baked("vps1", load_config(with_secret), [PASSWORD_FILE])
    assert [
        each["mode"] for each in job_of(text)["apply"]["write"] if each["path"] == PASSWORD_FILE
    ] == ["600"]
    assert files(text)[f"{DIRECTORY}/job"]["permissions"] == "0600"


def test_a_secret_that_is_none_is_a_mistake(with_secret: Data) -> None:
    for config, names in ((data(), PASSWORD_FILE), (with_secret, "smtp-password")):
        with pytest.raises(Refused, match="smtp-password' is no secret of this host"):
            baked("vps1", load_config(config), [names])
    with pytest.raises(Refused, match="is no secret"):
        pulled("vps1", load_config(data()), Pull(URL, COMMIT), ["url"])


def test_a_token_in_the_url_is_refused() -> None:
    url = "https://me:token@git.home.test/x.git"
    with pytest.raises(Refused, match="--with-secret url") as refused:
        pull(url=url)
    assert "token@" not in str(refused.value)
    text = pulled("vps1", load_config(data()), Pull(url, COMMIT), ["url"])
    assert url in files(text)["/opt/home-forwarder/pull.json"]["content"]
    assert files(text)["/opt/home-forwarder/pull.json"]["permissions"] == "0600"


# ---- Pull ------------------------------------------------------------------------------------


def test_pull_has_no_plan_in_it() -> None:
    assert set(job_of(ALL["pull"])) == {"program", "host", "install", "pull"}
    settings = json.loads(files(ALL["pull"])["/opt/home-forwarder/pull.json"]["content"])
    assert settings == {"host": "vps1", "url": URL, "commit": COMMIT, "branch": ""}


def test_only_following_has_a_timer() -> None:
    timer = "/etc/systemd/system/home-forwarder-pull.timer"
    assert timer not in files(ALL["pull"])
    assert "OnUnitInactiveSec=60min" in files(ALL["follow"])[timer]["content"]
    assert job_of(ALL["follow"])["enable"] == ["home-forwarder-pull.timer"]


@pytest.mark.parametrize(
    ("settings", "right"),
    [
        ({"url": "git@git.home.test:me/x.git"}, "write one such as https://"),
        ({"url": "ssh://git.home.test/x.git"}, "with ssh it would need a key"),
        ({"url": "--upload-pack=x"}, "write one such as https://"),
        ({"commit": "abc123"}, "git rev-parse HEAD"),
        ({"commit": "main"}, "git rev-parse HEAD"),
        ({"commit": "", "branch": "--x"}, "not the name of a branch"),
        ({"commit": "", "branch": "main", "url": "git://git.home.test/x"}, "name a commit"),
        ({"commit": "", "branch": "main", "url": "http://git.home.test/x"}, "use https"),
        *(
            ({"url": f"{scheme}://{token}@git.home.test/x.git"}, right)
            for token in ("me:s3cret", "s3cret", ":s3cret")
            for scheme, right in (
                ("http", "could read the password or token; use https"),
                ("git", "could read the password or token; use https"),
                ("ssh", "with ssh it would need a key"),
            )
        ),
    ],
)
def test_pull_refuses(settings: Data, right: str) -> None:
    """Promise 17: without a word of what is secret."""
    with pytest.raises(Refused) as refused:
        pull(**settings)
    assert right in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "bare", "scope", "credential"),
    [
        (URL, URL, None, None),
        ("git://git.home.test/x.git", "git://git.home.test/x.git", None, None),
        ("file:///srv/x.git", "file:///srv/x.git", None, None),
        (
            "https://me:s3cret@git.home.test/x.git",
            "https://git.home.test/x.git",
            "https://git.home.test",
            ["username=me", "password=s3cret"],
        ),
        (
            "https://s3cret@git.home.test:8443/x.git",
            "https://git.home.test:8443/x.git",
            "https://git.home.test:8443",
            ["username=s3cret", "password="],
        ),
        (
            "https://m%40e:s3cret%2F%3A%25@[2001:db8::1]:8443/x.git",
            "https://[2001:db8::1]:8443/x.git",
            "https://[2001:db8::1]:8443",
            ["username=m@e", "password=s3cret/:%"],
        ),
    ],
)
def test_what_git_is_told(
    tmp_path: Path, url: str, bare: str, scope: str | None, credential: list[str] | None
) -> None:
    """Promise 17: a password or token is neither in its URL nor in its environment, and is told to the
    right server only. With git itself, which reads our settings."""
    place = tmp_path / "a place"
    place.mkdir()
    (place / "pull").write_text(sent_source_of("pull.py"))
    (place / "pull").chmod(0o755)
    (place / "pull.json").write_text(json.dumps({"url": url}))
    variables = runpy.run_path(str(place / "pull"))["git_settings"](url)
    assert "s3cret" not in str(variables)

    def git(*arguments: str, **options: Any) -> list[str]:
        done = subprocess.run(
            ["git", *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **variables},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            **options,
        )
        return str(done.stdout).splitlines()

    (tmp_path / ".gitconfig").write_text('[credential]\n\thelper = "!touch told; cat >>told; :"\n')
    assert git("config", "remote.source.url") == [bare]
    if scope:
        asked = f"url={scope}/x.git\n\n"
        found = git("credential", "fill", input=asked, cwd=place)
        assert found[-2:] == credential
        approved = "\n".join([*found, "", ""])
        git("credential", "approve", input=approved, cwd=place)
        git("credential", "reject", input=approved, cwd=place)
        assert not (place / "told").exists()
        for other in (scope.replace("https", "http"), "https://other.test", f"{scope}1"):
            answer = git("credential", "fill", input=f"url={other}/x.git\n\n", cwd=place)
            assert not any("s3cret" in line for line in answer), other


@pytest.mark.parametrize(
    ("data_of_host", "seen"),
    [
        ('("vps1", {"_sudo": True, "check_interval": 99})', {"check_interval": 99}),
        ('"vps1"', {}),
    ],
)
def test_a_vps_that_pulls_finds_itself(tmp_path: Path, data_of_host: str, seen: Data) -> None:
    """Its own entry, in the same groups, reached without ssh; nobody else's."""
    (tmp_path / "inventory.py").write_text(
        f'_note = ["x"]\nvps = [{data_of_host}, "vps2"]\nothers = ["vps2"]\n'
        f'more = (["vps1"], {{"x": 1}})\n'
    )
    source = sent_source_of("pull.py")
    names: dict[str, Any] = {"__name__": "pull", "__file__": str(tmp_path / "pull")}
    exec(compile(source, "pull.py", "exec"), names)  # noqa: S102 - it has no .py on the VPS
    text = names["LOCAL"].format(host="vps1", inventory=str(tmp_path / "inventory.py"))
    (tmp_path / "local.py").write_text(text)
    found = runpy.run_path(str(tmp_path / "local.py"))
    groups = {name: found[name] for name in ("vps", "others", "more") if name in found}
    assert groups == {"vps": [("@local", seen)], "more": ([("@local", {})], {"x": 1})}


# ---- The command -----------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An operator's directory with two hosts."""
    (tmp_path / "inventory.py").write_text('vps = [("vps1", {}), ("vps2", {"forwards": [1]})]\n')
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data/all.py").write_text(
        f"homes = {[FRITZBOX, NAS]!r}\nforwards = {[TCP, UDP]!r}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_prints_the_user_data(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Only that on standard output; the sizes beside it."""
    assert new_vps.main(["vps1"]) == 0
    said = capfd.readouterr()
    assert said.out == bake()
    assert said.err.startswith(f"{len(said.out.encode())} bytes of user-data")


def test_it_writes_a_file_for_its_owner_alone(project: Path) -> None:
    (project / "out").write_text("before")
    (project / "out").chmod(0o644)
    assert new_vps.main(["vps1", "-o", "out", "--gzip"]) == 0
    assert (project / "out").stat().st_mode & 0o777 == 0o600
    assert gzip.decompress((project / "out").read_bytes()).decode() == bake()
    assert sorted(path.name for path in project.iterdir()) == ["group_data", "inventory.py", "out"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vsp1"], "inventory.py has no host 'vsp1'; did you mean vps1? it has vps1, vps2"),
        (["vps1\nruncmd: [reboot]"], r"'vps1\nruncmd: [reboot]' is no name for a host"),
        (["vps2"], "vps2: forwards[0]: 1 is not a dict"),
        (["vps1", "--inventory", "x.py"], "there is no x.py here"),
        (["vps1", "-o", "missing/file"], "No such file or directory"),
        (["vps1", "--pull", URL, "--commit", "abc"], "git rev-parse HEAD"),
    ],
)
def test_mistakes_of_its_user(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """A sentence, status 1."""
    assert new_vps.main(arguments) == 1
    output = capsys.readouterr()
    assert said in output.err
    assert output.out == ""


def test_other_files_of_the_operator_may_be_wrong(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "group_data/all.py").write_text("homes = [\n")
    assert new_vps.main(["vps1"]) == 1
    assert "group_data/all.py line 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["vps1", "--commit", COMMIT], ["vps1", "--pull", URL], ["vps1", "--every", "5"]],
)
def test_wrong_usage(project: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        new_vps.main(arguments)
    assert ended.value.code == 2


def test_no_gibberish_on_a_terminal(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert new_vps.main(["vps1", "--gzip"]) == 1
    assert "-o FILE" in capsys.readouterr().err


def test_check_needs_cloud_init(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert new_vps.main(["vps1", "--check"]) == 1
    assert "cloud-init schema --config-file" in capsys.readouterr().err
