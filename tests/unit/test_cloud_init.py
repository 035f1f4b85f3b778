# SPDX-License-Identifier: GPL-3.0-or-later
"""User-data of a new VPS: what it says is what a deploy would do, and it fits where it must."""

from __future__ import annotations

import ast
import base64
import gzip
import io
import json
import lzma
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit_samples import FRITZBOX, NAS, NOTIFY, REPO, TCP, UDP, Data, data, matching

from home_forwarder import user_data
from home_forwarder.compare import NO_CHANGES, compare
from home_forwarder.config import load_config
from home_forwarder.plan import OWNED_FILES, OWNED_UNITS, PROGRAMS, File, Link, make_plan
from home_forwarder.render import program, without_comments
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
    packed = files(text)[f"{DIRECTORY}/job"]["content"].strip()
    job: dict[str, Any] = json.loads(lzma.decompress(base64.b85decode(packed)))
    return job


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
        assert entry["permissions"] in ("0600", "0644", "0755")
        assert entry["owner"] == "root:root"
        assert entry["path"].startswith(("/var/lib/", "/etc/", "/opt/"))
        assert "defer" not in entry
    assert loaded["runcmd"][-1] == ["systemctl", "start", "--wait", UNIT]


@pytest.mark.parametrize("changes", [{}, LARGE, {"forwards": []}], ids=["sample", "large", "none"])
def test_it_is_the_plan(changes: Data) -> None:
    """Files, links, packages and units: exactly those of a deploy; programs without their comments."""
    plan = make_plan(load_config(data(**changes)))
    job = job_of(bake(**changes))
    entries = [(Link if "target" in entry else File)(**entry) for entry in job["write"]]
    assert entries == [
        replace(entry, content=entry.compact or entry.content, compact="", secret=False)
        if isinstance(entry, File)
        else entry
        for entry in plan.entries
    ]
    booted = replace(plan, files=tuple(each for each in entries if isinstance(each, File)))
    assert compare(plan, matching(booted)) == NO_CHANGES
    assert tuple(job["packages"]) == plan.packages
    assert tuple(job["start"]) == plan.running
    assert [relay["unit"] for relay in job["relays"]] == [relay.unit for relay in plan.relays]


def bare(source: str) -> str:
    """A program as Python understands it, docstrings aside."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


@pytest.mark.parametrize("path", [*PROGRAMS, NOTIFY])
def test_without_comments_it_is_the_same_program(path: str) -> None:
    source = program(path)
    short = without_comments(source)
    assert bare(short) == bare(source)
    assert len(short) < 0.85 * len(source)
    assert short.splitlines()[:2] == source.splitlines()[:2]


def test_the_programs_are_ours() -> None:
    """What runs on the VPS is what is tested here, and it compiles."""
    remote = REPO / "operations/remote"
    job = job_of(bake())
    for name, text in {"first_boot.py": job["program"], **job["programs"]}.items():
        assert bare(text) == bare((remote / name).read_text())
    assert files(pull())["/opt/home-forwarder/pull"]["content"] == (remote / "pull.py").read_text()
    assert f'DIRECTORY = "{DIRECTORY}"' in job["program"]
    assert f'UNIT = "{UNIT}"' in job["program"]


@pytest.mark.parametrize("text", ALL.values(), ids=ALL)
def test_nothing_of_it_is_taken_for_the_plans(text: str) -> None:
    """A later deploy neither reports nor removes what the first boot needs, and what it leaves."""
    units = [path.rpartition("/")[2] for path in files(text)]
    assert [path for path in files(text) if re.match(OWNED_FILES, path)] == []
    assert [unit for unit in units if re.match(OWNED_UNITS, unit)] == []


# ---- The first boot --------------------------------------------------------------------------


class Boot:
    """operations/remote/first_boot.py with its files in a directory, and its commands listed."""

    def __init__(self, directory: Path, text: str) -> None:
        self.commands: list[str] = []
        self.broken: set[str] = set()
        self.said: list[str] = []
        source = (REPO / "operations/remote/first_boot.py").read_text()
        assert source.endswith("\nmain()\n")
        self.names: dict[str, Any] = {}
        exec(compile(source[: -len("main()\n")], "first_boot.py", "exec"), self.names)  # noqa: S102
        self.note, self.conf = directory / "note", directory / "conf"
        (directory / "job").write_text(files(text)[f"{DIRECTORY}/job"]["content"])
        self.names |= {
            "JOB": str(directory / "job"),
            "NOTE": str(self.note),
            "CONF": str(self.conf),
            "PAUSES": (0,),
            "is_installed": lambda package: True,
            "run": self.run,
            "say": self.said.append,
        }

    def run(self, command: list[str], input: str | None = None, name: str = "") -> str:
        name = name or " ".join(command)
        self.commands.append(name)
        if name in self.broken:
            raise self.names["Failed"](f"{name} failed")
        return "fine"

    def work(self) -> bool:
        return bool(self.names["work"]())


WRITING, STARTING = "writing the files", "starting the units"


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
        boot.conf.touch()
    assert boot.work()
    assert (WRITING in boot.commands) == acts
    assert boot.note.read_text() == "done"


def test_no_room_to_write(tmp_path: Path) -> None:
    """Not done, so the next boot tries again."""
    boot = Boot(tmp_path, ALL["baked"])
    boot.broken.add(WRITING)
    with pytest.raises(boot.names["Failed"]):
        boot.work()
    assert STARTING not in boot.commands
    assert boot.note.read_text() == "begun"


def test_a_unit_that_does_not_start_is_told(tmp_path: Path) -> None:
    """The others start; nothing is written a second time at the next boot."""
    boot = Boot(tmp_path, ALL["baked"])
    boot.broken.add(STARTING)
    assert not boot.work()
    assert f"{STARTING} failed" in boot.said
    assert boot.commands[-1] == "all forwards"
    assert boot.note.read_text() == "done"


def test_a_pull_goes_before_its_timer(tmp_path: Path) -> None:
    boot = Boot(tmp_path, ALL["follow"])
    assert boot.work()
    assert boot.commands == [
        "/opt/home-forwarder/pull",
        "systemctl enable --now home-forwarder-pull.timer",
    ]


# ---- Size ------------------------------------------------------------------------------------


def test_it_fits() -> None:
    """20 forwards and 4 homes: at AWS with --gzip, at all others as it is; in pull mode everywhere."""
    limits = {limit.provider: limit.bytes for limit in LIMITS}
    assert len(user_data.packed(ALL["large"])) < limits["AWS EC2"] == 16 * 1024
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
    assert job_of(ALL["with extras"])["packages"][-2:] == ["sudo", "unattended-upgrades"]
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
    assert [each["mode"] for each in job_of(text)["write"] if each["path"] == PASSWORD_FILE] == [
        "600"
    ]
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
    assert set(job_of(ALL["pull"])) == {"program", "host", "packages", "pull"}
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
    ],
)
def test_pull_refuses(settings: Data, right: str) -> None:
    with pytest.raises(Refused) as refused:
        pull(**settings)
    assert right in str(refused.value)


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
    source = (REPO / "operations/remote/pull.py").read_text()
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
