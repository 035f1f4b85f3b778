# SPDX-License-Identifier: GPL-3.0-or-later
"""cloud-init user-data: a VPS that forwards from its first boot, out of the same plan as a deploy.

Two modes. Baked: everything of the plan is inside. Pull: the VPS gets this project from a git
repository and deploys itself.
"""

from __future__ import annotations

import base64
import gzip
import json
import lzma
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from home_forwarder.applying import first_job_of
from home_forwarder.config import Config
from home_forwarder.parts.first_boot import first_boot_part
from home_forwarder.parts.forwards import Forward
from home_forwarder.plan import CERTIFICATES, UNITS, File, Package
from home_forwarder.planning import make_plan
from home_forwarder.render import render, sent_source_of, without_comments

LOG = "/var/log/home-forwarder-boot.log"
"""Where a VPS says how its first boot went."""
DIRECTORY = "/var/lib/home-forwarder-boot"
"""On the VPS, until its first boot is over; not the state directory, and not a path of the plan."""
UNIT = "home-forwarder-boot.service"
PULL = "/opt/home-forwarder"
PULL_UNIT = "home-forwarder-pull"
PULL_PACKAGES = (CERTIFICATES, Package("git"), Package("python3-venv", rpm="python3"))
"""What it takes to pull."""


class Refused(Exception):
    """There is no user-data to be had in this way; the message says what to do instead."""


@dataclass(frozen=True)
class Limit:
    """What a provider allows: bytes of user-data, and whether they may be something else than text."""

    provider: str
    bytes: int
    binary: bool


LIMITS = (
    Limit("AWS EC2", 16 * 1024, binary=True),
    Limit("Hetzner Cloud", 32 * 1024, binary=False),
    Limit("OpenStack (OVHcloud and others)", 65535 * 3 // 4, binary=True),
    Limit("DigitalOcean", 64 * 1024, binary=False),
    Limit("Azure", 64 * 1024 - 1, binary=True),
    Limit("Google Cloud", 256 * 1024, binary=False),
)
"""From the providers' documentation, smallest first; docs/cloud-init.md has the sources."""


@dataclass(frozen=True)
class Pull:
    """Where a VPS gets the project from. One of commit (all of its digits) and branch is given."""

    url: str
    commit: str = ""
    branch: str = ""
    minutes: int = 0
    """Between two pulls; 0 for once."""


def baked(host: str, config: Config, secrets: Collection[str] = ()) -> str:
    """User-data with everything inside.

    host: the VPS's name in the inventory.
    secrets: names of the secrets that may be in it.
    Raises: Refused.
    """
    plan = make_plan(config)
    better = "leave it out of this host's data now, and deploy it with pyinfra when the VPS is up"
    _check_secrets({file.path: better for file in plan.files if file.secret}, secrets)
    job: dict[str, object] = {
        "host": host,
        "install": _install_job((*plan.packages, *first_boot_part(config.first_boot).packages)),
        "apply": first_job_of(plan),
    }
    return _user_data(host, config, job, "The packages, files and units of this VPS")


def pulled(host: str, config: Config, pull: Pull, secrets: Collection[str] = ()) -> str:
    """User-data with which the VPS gets the project by git and deploys itself.

    Raises: Refused.
    """
    _check_pull(pull, secrets)
    settings = {"host": host, "url": pull.url, "commit": pull.commit, "branch": pull.branch}
    service, timer = f"{PULL_UNIT}.service", f"{PULL_UNIT}.timer"
    job: dict[str, object] = {
        "host": host,
        "install": _install_job((*PULL_PACKAGES, *first_boot_part(config.first_boot).packages)),
        "pull": [f"{PULL}/pull"],
    }
    files = [
        File(f"{PULL}/pull.json", json.dumps(settings, indent=1) + "\n", mode="600"),
        File(f"{PULL}/pull", sent_source_of("pull.py"), mode="755"),
        File(f"{UNITS}/{service}", render(f"cloud-init/{service}.j2", place=PULL)),
    ]
    if pull.minutes:
        job["enable"] = [timer]
        files.append(
            File(f"{UNITS}/{timer}", render(f"cloud-init/{timer}.j2", minutes=pull.minutes))
        )
    return _user_data(host, config, job, "What to do first on this VPS", files)


def _user_data(
    host: str, config: Config, job: dict[str, object], inside: str, files: Iterable[File] = ()
) -> str:
    """The text. files: what it writes besides, readably; inside: what the packed job is."""
    packed = lzma.compress(
        json.dumps(
            {"program": _remote("first_boot.py"), **job}, ensure_ascii=False, separators=(",", ":")
        ).encode(),
        format=lzma.FORMAT_ALONE,
        filters=[{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "pb": 0}],
    )
    service = render(f"cloud-init/{UNIT}.j2", directory=DIRECTORY, log=LOG)
    return render(
        "cloud-init/user-data.j2",
        host=host,
        first_boot=config.first_boot,
        summary=[_line(forward, config) for forward in config.forwards],
        files=[
            *first_boot_part(config.first_boot).files,
            *files,
            File(f"{UNITS}/{UNIT}", service),
        ],
        inside=inside,
        job=base64.b64encode(packed).decode(),
        directory=DIRECTORY,
        log=LOG,
        unit=UNIT,
    )


def _install_job(packages: Iterable[Package]) -> dict[str, object]:
    """What install() of home_forwarder/remote/installing.py takes."""
    job: dict[str, object] = {"packages": [each.job for each in packages]}
    if any(each.service for each in packages):
        job["services"] = _remote("services.py")
    return job


def _remote(name: str) -> str:
    """The text of a program that is sent to a VPS, as short as it can be."""
    return without_comments(sent_source_of(name))


def _line(forward: Forward, config: Config) -> str:
    """One forward, for people."""
    home = config.numbered[config.index_of[forward.home]]
    return f"{forward.protocol} {forward.port} to {home.hostname}"


# ---- What must not be in it ------------------------------------------------------------------


def _check_secrets(secrets: Mapping[str, str], allowed: Collection[str]) -> None:
    """secrets: the name of each that would be inside, and what is better."""
    for name in allowed:
        if name not in secrets:
            there = ", ".join(secrets) or "it has none"
            raise Refused(f"--with-secret: {name!r} is no secret of this host ({there})")
    for name, better in secrets.items():
        if name not in allowed:
            raise Refused(
                f"{name} holds a secret, and on many clouds every process of a server can read its"
                f" user-data. Better: {better}. If you want it inside all the same:"
                f" --with-secret {name}"
            )


def _check_pull(pull: Pull, allowed: Collection[str]) -> None:
    url = urlsplit(pull.url)
    shown = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
    if url.scheme not in ("https", "http", "git", "file") or not (url.netloc or url.path):
        raise Refused(
            f"{shown!r} is not the URL of a repository that a new VPS can read; write one such as"
            " https://git.example.net/me/home-forwarder.git (with ssh it would need a key)"
        )
    if shown != pull.url and url.scheme != "https":
        raise Refused(
            f"{shown!r}: over {url.scheme} anybody in between could read the password or token; use"
            " https"
        )
    if pull.branch and url.scheme not in ("https", "file"):
        raise Refused(
            f"{shown!r}: over {url.scheme} anybody in between can put commits on a branch; use"
            " https, or name a commit with --commit"
        )
    if pull.commit and not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", pull.commit):
        raise Refused(
            f"{pull.commit!r} is not a whole commit; write all of its digits, as «git rev-parse HEAD»"
            " prints them"
        )
    if pull.branch and not re.fullmatch(r"(?!-)[A-Za-z0-9._/-]{1,200}", pull.branch):
        raise Refused(f"{pull.branch!r} is not the name of a branch")
    better = "a repository that can be read without a password or token, or no --pull"
    _check_secrets({"url": better} if url.username or url.password else {}, allowed)


# ---- How large it is -------------------------------------------------------------------------


def packed(text: str) -> bytes:
    """User-data in the other form that cloud-init takes: compressed as a whole."""
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


def sizes(text: str) -> list[str]:
    """Lines that say how large it is, and where it fits."""
    plain, small = len(text.encode()), len(packed(text))
    lines = [f"{plain} bytes of user-data, {small} with --gzip. Does it fit?"]
    for limit in LIMITS:
        if plain <= limit.bytes:
            fits = "yes"
        elif limit.binary and small <= limit.bytes:
            fits = "with --gzip"
        else:
            fits = "no"
        lines.append(f"  {limit.provider:32} {limit.bytes:7} bytes  {fits}")
    if plain > LIMITS[0].bytes:
        lines.append("Where it does not fit, pull mode (--pull) does.")
    return lines
