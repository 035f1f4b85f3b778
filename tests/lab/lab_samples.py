# SPDX-License-Identifier: GPL-3.0-or-later
"""What lab tests declare, and what they begin with."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from home_forwarder.applying import job_of
from home_forwarder.compare import Observed, compare
from home_forwarder.plan import File, Plan
from home_forwarder.planning import question
from home_forwarder.relay_programs import package_names
from home_forwarder.render import sent_source_of
from lab import Lab
from lab.checkout import Checkout
from lab.vps import Vps

TCP, UDP = 44444, 33333
"""Ports that every home serves, beside 8000 to 8009 for both protocols."""

NGINX_PACKAGES = package_names("nginx")
"""As Debian calls them."""

STANDARD = [
    {"home": "home0", "protocol": "tcp", "port": TCP},
    {"home": "home0", "protocol": "udp", "port": UDP, "relay": "socat"},
    {"home": "home1", "protocol": "tcp", "port": 8001},
]


def home_data(lab: Lab, *, count: int = 2) -> list[dict[str, Any]]:
    """The first homes of the lab as data: a home named like it, with a description."""
    return [
        {"name": name, "hostname": home.hostname, "description": f"The home {name}"}
        for name, home in list(lab.home.items())[:count]
    ]


def disable_nginx_service(root: Path) -> None:
    """As it is where a deploy has installed nginx."""
    (root / "etc/systemd/system/multi-user.target.wants/nginx.service").unlink()


def write_plan(plan: Plan, before: Callable[[Path], None] | None, root: Path) -> None:
    """Put all files and links of a plan below the root directory of a VPS that is switched off.

    before: what else is to be done there, first
    """
    if before:
        before(root)
    for entry in plan.entries:
        path = root / entry.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(entry, File):
            path.write_text(entry.content, encoding="utf-8")
            path.chmod(int(entry.mode, 8))
        else:
            path.symlink_to(entry.target)


def look(vps: Vps, plan: Plan) -> Observed:
    """The VPS as a deploy of this plan would see it."""
    asked = json.dumps(question(plan))
    source = sent_source_of("observe.py")
    return Observed.from_json(json.loads(vps.run(["python3", "-IS", "-c", source, asked]).stdout))


def apply_now(vps: Vps, plan: Plan, steps: list[list[Any]] | None = None) -> None:
    """What a deploy does, or these steps of it."""
    command = ["python3", "-IS", "-c", sent_source_of("apply.py")]
    result: dict[str, Any] = {"other": {}}
    while "other" in result:  # the restarts of a moved home are not over
        seen = look(vps, plan)
        job = job_of(plan, compare(plan, seen), "a test", seen.basis)
        job = job if steps is None else {**job, "steps": steps}
        result = json.loads(vps.run(command, input=json.dumps(job)).stdout)
    assert not result["failed"], result["failed"]


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What a process has printed when it has printed this."""
    said = ""
    while text not in said:
        assert process.stdout
        line = process.stdout.readline()
        assert line, said
        said += line
    return said


@dataclass(frozen=True)
class Result:
    """What a verification said."""

    status: int
    failed: dict[str, str]
    """Messages by id."""
    skipped: dict[str, str]
    """Reasons by id."""
    passed: int
    output: str


def verify(checkout: Checkout, *arguments: str) -> Result:
    """Run the verification as a person would."""
    report = checkout.directory / "report.xml"
    report.unlink(missing_ok=True)
    done = checkout.verify(f"--junit-xml={report}", *arguments, check=False)
    output = done.stdout + done.stderr
    if not report.exists():
        return Result(done.returncode, {}, {}, 0, output)
    cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - it is our own
    failed: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for case in cases:
        for each in case:
            if each.tag == "skipped":
                skipped[case.attrib["name"]] = each.text or ""
            elif each.tag in ("failure", "error"):
                name = case.attrib["name"]
                failed[name] = "\n".join(filter(None, (failed.get(name), each.text)))
    passed = len(cases) - len(failed) - len(skipped)
    return Result(done.returncode, failed, skipped, passed, output)
