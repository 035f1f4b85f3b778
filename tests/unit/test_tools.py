# SPDX-License-Identifier: GPL-3.0-or-later
"""What looks after the source sees all of it, and what is imported is required by name."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from mypy.main import process_options
from unit_samples import REPO

OF_THE_USER = ("inventory.py", "group_data")
"""Whoever has a copy of the project writes these; the ones here are examples."""
OWN = {"home_forwarder", "operations", "lab", "bench", "tests"}
RUN_ONLY = {"mypy", "pytest-xdist", "ruff", "uv"}
"""Required, and imported by nobody, or by this test alone."""


@cache
def python_files() -> tuple[str, ...]:
    """Paths of all Python below the project, by suffix or by what its first line says."""
    found = []
    for directory, names, files in os.walk(REPO):
        names[:] = [
            name for name in names if not name.startswith(".") and name not in ("build", "dist")
        ]
        for name in files:
            path = Path(directory, name)
            if path.suffix != ".py" and (path.suffix or path.is_symlink()):
                continue
            with path.open("rb") as file:
                first = file.readline()
            if path.suffix == ".py" or (first.startswith(b"#!") and b"python" in first):
                found.append(str(path.relative_to(REPO)))
    return tuple(sorted(found))


def lint() -> list[list[str]]:
    """The commands of `make lint`, each as a list of arguments."""
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "lint"],
        cwd=REPO,
        env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [
        shlex.split(line)
        for line in done.stdout.splitlines()
        if re.match(r"\S*/(ruff|mypy) ", line)
    ]


def test_what_is_python_is_found() -> None:
    files = python_files()
    assert {
        "deploy.py",
        "lab/lab.py",
        "tests/unit/test_tools.py",
        "vps/usr/local/bin/home-address-update",
        "vps/usr/local/lib/home-forwarder/port-holder",
    } <= set(files)
    assert len(files) > 90


def test_ruff_sees_every_file() -> None:
    """Style and format, of programs without a suffix as well."""
    assert [command[1:] for command in lint() if command[0].endswith("ruff")] == [
        ["check", "."],
        ["format", "--check", "."],
    ]
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run(
        [ruff, "check", "--show-files", "."],
        cwd=REPO,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seen = {os.path.relpath(path, REPO) for path in done.stdout.splitlines()}
    assert [path for path in python_files() if path not in seen] == []


def test_mypy_sees_every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types, strictly; the user's own data aside."""
    monkeypatch.chdir(REPO)
    seen = set()
    for _, *arguments in (command for command in lint() if command[0].endswith("mypy")):
        sources, options = process_options(arguments)
        assert options.disallow_untyped_defs
        seen |= {os.path.relpath(source.path, REPO) for source in sources if source.path}
    unseen = [path for path in python_files() if path not in seen]
    assert [path for path in unseen if Path(path).parts[0] not in OF_THE_USER] == []


# ---- Requirements ----------------------------------------------------------------------------


def normal(name: str) -> str:
    """The name of a distribution, as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required(name: str) -> set[str]:
    """The distributions that a requirements file asks for by name, and those of the files in it."""
    found = set()
    for line in (REPO / name).read_text().splitlines():
        if line.startswith("-r "):
            found |= required(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            found.add(normal(re.split(r"[~=<>\[; ]", line)[0]))
    return found


def modules(path: str) -> Iterator[str]:
    """What a file imports, by whole names."""
    for node in ast.walk(ast.parse(Path(REPO, path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_for(name: str) -> list[str]:
    """The files that have to do with what is in one of the requirements files."""
    others = () if name == "requirements-verify" else OF_VERIFICATION
    return [path for path in python_files() if path.startswith(PLACES[name]) and path not in others]


def imported(name: str) -> Iterator[tuple[str, str]]:
    """What files_for(name) import that is neither Python's nor ours: path and top-level name."""
    for path in files_for(name):
        ours = {other.stem for other in Path(REPO, path).parent.glob("*.py")} | OWN
        for module in (each.partition(".")[0] for each in modules(path)):
            if module not in sys.stdlib_module_names | ours:
                yield path, module


SCRIPTS = ("cloud_init.py", "config.py", "deploy.py", "undeploy.py", "inventory.py", "group_data/")
OF_VERIFICATION = ("operations/backend.py", "operations/target.py", "operations/verifying.py")
PLACES = {
    "requirements": (*SCRIPTS, "home_forwarder/", "operations/", "vps/"),
    "requirements-verify": (*OF_VERIFICATION, "tests/verify/", "lab/", "bench/"),
    "requirements-dev": ("tests/",),
}
"""A VPS that pulls gets the first, an operator the second as well, for `make demo` too."""


@pytest.mark.parametrize("name", PLACES)
def test_what_is_imported_is_required_by_name(name: str) -> None:
    """Nothing is there by the luck that something else needs it."""
    providers = packages_distributions()
    missing = {
        f"{path} imports {module}"
        for path, module in imported(name)
        if not required(f"{name}.in") & {normal(each) for each in providers.get(module, [])}
    }
    assert missing == set()


def test_a_deploy_does_without_what_verifies() -> None:
    """A VPS that pulls has nothing of that."""
    verifying = {path.removesuffix(".py").replace("/", ".") for path in OF_VERIFICATION}
    assert {path for path in files_for("requirements") if verifying & set(modules(path))} == set()


def test_what_is_required_is_imported() -> None:
    """Nothing is installed for nobody, and nothing for developers on a VPS."""
    providers = packages_distributions()
    used = set(RUN_ONLY)
    for name in PLACES:
        for _, module in imported(name):
            used |= {normal(each) for each in providers.get(module, [])}
        if name == "requirements":
            assert required("requirements.in") <= used - RUN_ONLY
    assert required("requirements-dev.in") <= used


def test_pinned_are_the_required_ones() -> None:
    """`make lock` was run: the same versions in all three, and no word of whence they come."""
    versions: dict[str, str] = {}
    for name in PLACES:
        text = (REPO / f"{name}.txt").read_text()
        pinned = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.M))
        assert required(f"{name}.in") <= {normal(each) for each in pinned}
        assert versions.items() <= pinned.items()
        versions = pinned
        assert "://" not in text
        assert "index" not in text


def test_nothing_but_wheels_is_installed() -> None:
    """What builds a package of another kind is pinned by nobody."""
    (pull,) = REPO.glob("*/remote/pull.py")
    for path in (REPO / "Makefile", pull):
        (line,) = re.findall(r".*--require-hashes.*", path.read_text())
        assert "--only-binary=:all:" in line
