# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark of deploys: ours, a plain Ansible playbook, and the floor, one ssh that untars."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.results import Figure
from bench.setting import Bench
from home_forwarder.config import load_config
from home_forwarder.plan import STATE, UNITS, Plan
from home_forwarder.planning import make_plan
from lab import LabError
from lab.checkout import Checkout
from lab.network import INTERNET, ip
from lab.vps import Vps

SECONDS = Figure("a deploy", "s", False)
COMMANDS = Figure("remote commands on one VPS", "commands", False)

FIRST, AGAIN = "first", "no change"
FLOOR_TIMEOUT = 120.0  # s; apt installs packages in it
ANSIBLE_TIMEOUT = 900.0  # s; 100 forwards take minutes
ROUND_TRIP = 40  # ms, of a VPS on another continent's near side
DELAY = Path(__file__).with_name("delay.py")
ANSIBLE = Path(__file__).with_name("ansible")
OURS, PLAYBOOK, FLOOR = "ours", "Ansible", "floor (ssh, tar)"

Deploy = Callable[[list[Vps]], None]


def deploying(bench: Bench) -> None:
    """First deploys and those that change nothing."""
    if "relays" in bench.lab.vps:
        bench.lab.remove_vps("relays")  # gives its share of the machine back
    quick = bench.scale.quick
    ansible = None if quick else _install_ansible(bench)
    rounds = 1 if quick else min(2, bench.scale.rounds)
    for number in range(rounds):
        for forwards in (2,) if quick else (2, 100):
            tools = _tools(bench, forwards, ansible if forwards == 2 else None)
            for tool, deploy in tools.items():
                for milliseconds in (0, ROUND_TRIP):
                    if tool == PLAYBOOK and (number or not milliseconds):
                        continue  # it takes minutes
                    _measure(bench, number, 1, forwards, milliseconds, tool, deploy)
    if quick:
        return
    thorough = bench.scale.thorough
    for tool, deploy in _tools(bench, 2, ansible if thorough else None).items():
        _measure(bench, 0, 10, 2, ROUND_TRIP, tool, deploy)
    if ansible and thorough:
        _measure_many_forwards(bench, ansible)


def _measure(
    bench: Bench,
    number: int,
    vpses: int,
    forwards: int,
    milliseconds: int,
    tool: str,
    deploy: Deploy,
) -> None:
    """A fresh VPS or more, a first deploy, and some that change nothing."""
    case = _case(vpses, forwards, milliseconds)
    bench.say(f"deploy, {case}, {tool} ...")
    with _fresh(bench, vpses) as fresh, _line(bench, milliseconds):
        _timed(bench, number, f"{FIRST}, {case}", tool, lambda: deploy(fresh), fresh[0])
        for _ in range(1 if tool == PLAYBOOK or bench.scale.quick else 2):
            _timed(bench, number, f"{AGAIN}, {case}", tool, lambda: deploy(fresh), fresh[0])


def _measure_many_forwards(bench: Bench, ansible: Path) -> None:
    """Ansible over 100 forwards which are there already: making them would take minutes more."""
    case = _case(1, 100, 0)
    bench.say(f"deploy, {case}, {PLAYBOOK} ...")
    tools = _tools(bench, 100, ansible)
    with _fresh(bench, 1) as fresh:
        tools[FLOOR](fresh)
        _timed(bench, 0, f"{AGAIN}, {case}", PLAYBOOK, lambda: tools[PLAYBOOK](fresh), fresh[0])


def _case(vpses: int, forwards: int, milliseconds: int) -> str:
    return f"{vpses} VPS{'es' if vpses > 1 else ''}, {forwards} forwards, {milliseconds} ms"


def _timed(
    bench: Bench, number: int, case: str, tool: str, run: Callable[[], None], vps: Vps
) -> None:
    before = _sessions(vps)
    started = time.monotonic()
    run()
    bench.record("deploy", case, SECONDS, tool, number, time.monotonic() - started)
    bench.record("deploy", case, COMMANDS, tool, number, _sessions(vps) - before - 1)


def _sessions(vps: Vps) -> int:
    """Remote commands so far, as sshd has counted them, this one included."""
    return int(vps.run("journalctl -q -o cat -u ssh | grep -c 'Starting session'").stdout)


# ---- VPSes, and the line to them -------------------------------------------------------------


def _log_sessions(root: Path) -> None:
    (root / "etc/ssh/sshd_config.d/bench.conf").write_text("LogLevel VERBOSE\n")


@contextlib.contextmanager
def _fresh(bench: Bench, count: int) -> Iterator[list[Vps]]:
    """New VPSes, without any package that a deploy would install."""
    names = [f"d{number}" for number in range(count)]
    try:
        for name in names:
            bench.lab.add_vps(name, bench.release, prepare=_log_sessions)
        yield [bench.lab.vps[name] for name in names]
    finally:
        for name in names:
            if name in bench.lab.vps:
                bench.lab.remove_vps(name)


@contextlib.contextmanager
def _line(bench: Bench, milliseconds: float) -> Iterator[None]:
    """Put a long line between the operator and the internet; milliseconds there and back."""
    if not milliseconds:
        yield
        return
    internet = bench.lab.site.network.namespace(INTERNET)
    ip(
        netns=internet,
        batch=[
            "link add name line0 type veth peer name line1",
            "link set dev operator nomaster",
            "link set dev line1 master bridge",
            "link set dev line0 up",
            "link set dev line1 up",
        ],
    )
    command = ["ip", "netns", "exec", internet, sys.executable, "-I", "-S", str(DELAY)]
    command += ["operator", "line0", "--milliseconds", str(milliseconds / 2)]
    line = bench.lab.site.popen(command, "bench: line", stdout=subprocess.PIPE, text=True)
    try:
        assert line.stdout
        line.stdout.readline()
        yield
    finally:
        line.terminate()
        line.wait()
        ip(netns=internet, batch=["link del dev line0", "link set dev operator master bridge"])


# ---- The tools -------------------------------------------------------------------------------


def _tools(bench: Bench, forwards: int, ansible: Path | None) -> dict[str, Deploy]:
    """Each of them does the same: `forwards` forwards to home0."""
    home = bench.lab.home["home0"]
    data: dict[str, Any] = {
        "homes": [{"name": "home0", "hostname": home.hostname}],
        "forwards": [
            {"home": "home0", "protocol": "tcp", "port": 10000 + number}
            for number in range(forwards)
        ],
    }
    plan = make_plan(load_config(data))
    tools: dict[str, Deploy] = {
        OURS: lambda fresh: _deploy_ours(bench, data, fresh),
        FLOOR: lambda fresh: _deploy_floor(bench, plan, fresh),
    }
    if ansible:
        tools[PLAYBOOK] = lambda fresh: _deploy_with_ansible(bench, plan, fresh, ansible)
    return tools


def _deploy_ours(bench: Bench, data: dict[str, Any], fresh: list[Vps]) -> None:
    checkout = Checkout(bench.lab, bench.work / "deploying")
    checkout.declare(**data, hosts={vps.name: {} for vps in fresh})
    checkout.deploy()


def _archive(plan: Plan) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file in plan.files:
            entry = tarfile.TarInfo(file.path.lstrip("/"))
            content = file.content.encode()
            entry.size, entry.mode = len(content), int(file.mode, 8)
            archive.addfile(entry, io.BytesIO(content))
        for link in plan.links:
            entry = tarfile.TarInfo(link.path.lstrip("/"))
            entry.type, entry.linkname = tarfile.SYMTYPE, link.target
            archive.addfile(entry)
    return buffer.getvalue()


def _deploy_floor(bench: Bench, plan: Plan, fresh: list[Vps]) -> None:
    """What no tool can be faster than: one command, everything in it, nothing looked at."""
    script = (
        f"tar xzf - -C / && {{ dpkg -s {' '.join(package.name for package in plan.packages)} >/dev/null 2>&1 ||"
        " { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq"
        f" --no-install-recommends {' '.join(package.name for package in plan.packages)}; }} >/dev/null; }} && mkdir -p {STATE}"
        f" && systemctl daemon-reload && /usr/local/bin/home-address-update >/dev/null 2>&1"
        f" && systemctl start {shlex.join(plan.running)}"
    )
    archive = bench.work / "floor.tar.gz"
    archive.write_bytes(_archive(plan))
    running = []
    for vps in fresh:
        with archive.open("rb") as file:
            running.append(
                bench.lab.operator.popen(["ssh", f"root@{vps.name}", script], stdin=file)
            )
    statuses = [process.wait(FLOOR_TIMEOUT) for process in running]
    if any(statuses):
        raise LabError("the floor of the benchmark of deploys failed")


def _install_ansible(bench: Bench) -> Path | None:
    """Into an environment of its own. None where that does not work: then it is left out."""
    place = Path("build/bench/ansible").absolute()
    program = place / "bin/ansible-playbook"
    if not program.exists():
        bench.say("Installing Ansible for comparison ...")
        try:
            venv.create(place, with_pip=True, clear=True)
            pip = [str(place / "bin/python"), "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, "-r", str(ANSIBLE / "requirements.txt")], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            shutil.rmtree(place, ignore_errors=True)
            bench.say(f"NOT MEASURED: Ansible, which could not be installed: {error}")
            return None
    return program


def _deploy_with_ansible(bench: Bench, plan: Plan, fresh: list[Vps], program: Path) -> None:
    work = bench.work / "ansible"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / "inventory").write_text("".join(f"{vps.name} ansible_user=root\n" for vps in fresh))
    values = {
        "packages": [package.name for package in plan.packages],
        "directories": sorted(
            {STATE, *(str(Path(file.path).parent) for file in plan.files)} - {"/etc", UNITS}
        ),
        "files": [{"path": file.path, "mode": file.mode} for file in plan.files],
        "links": [
            {"path": link.path, "target": link.target}
            for link in plan.links
            if not link.path.startswith(UNITS)
        ],
        "units": list(plan.running),
    }
    (work / "values.json").write_text(json.dumps(values))
    shutil.copy(ANSIBLE / "playbook.yml", work)
    for file in plan.files:
        copy = work / "files" / file.path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.content)
    bench.lab.operator.run(
        [str(program), "-i", "inventory", "-e", "@values.json", "playbook.yml"],
        cwd=work,
        timeout=ANSIBLE_TIMEOUT,
        env={
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_FORKS": "10",
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=60s",
            # A connection of an earlier run is not to be had minutes later.
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(work / "ssh"),
            "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
            "ANSIBLE_HOME": str(work / "home"),
            "ANSIBLE_LOCAL_TEMP": str(work / "tmp"),
            "LC_ALL": "C.UTF-8",
        },
    )
