# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a VPS from templates/ and vps/, whose trees mirror the VPS's file system."""

from __future__ import annotations

import ast
import json
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from jinja2 import Environment, FileSystemLoader, StrictUndefined

PROJECT = Path(__file__).resolve().parent.parent
TEMPLATES = PROJECT / "templates"
PROGRAMS = PROJECT / "vps"
REMOTE = Path(__file__).resolve().parent / "remote"


def shell_quote(value: str) -> str:
    """`value` in double quotes as sh, systemd's EnvironmentFile= and our own programs read it.

    Source: systemd.exec(5), EnvironmentFile=: in double quotes a backslash keeps the following
    one of " ` $ and backslash itself.
    """
    return '"' + "".join("\\" + char if char in '"`$\\' else char for char in value) + '"'


def _yaml_quote(value: str) -> str:
    """`value` as YAML reads it: a string of JSON is one of YAML (YAML 1.2, chapter 1.3)."""
    return json.dumps(value, ensure_ascii=False)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - units and shell-like settings, no HTML
    )
    environment.filters["shell_quote"] = shell_quote
    environment.filters["yaml"] = _yaml_quote
    return environment


def render(template: str, /, **values: object) -> str:
    """The text of `template` (its path below templates/).

    Raises: jinja2.UndefinedError for a name that the template uses and `values` lacks.
    """
    return _environment().get_template(template).render(values)


def source_of(path: str) -> str:
    """The source of the program that belongs at `path` on a VPS."""
    return (PROGRAMS / path.lstrip("/")).read_text(encoding="utf-8")


@cache
def sent_source_of(name: str) -> str:
    """The source of a program of home_forwarder/remote/, which is sent to a VPS and does not stay there.

    A program is sent in one piece: what it imports from beside it is put in its place, once.
    """
    there: set[str] = set()

    def put(found: re.Match[str]) -> str:
        if found[1] in there:
            return ""
        there.add(found[1])
        source = (REMOTE / f"{found[1]}.py").read_text(encoding="utf-8")
        return _IMPORT.sub(put, source.partition(_FUTURE)[2].lstrip("\n"))

    return _IMPORT.sub(put, (REMOTE / name).read_text(encoding="utf-8"))


_IMPORT = re.compile(r"^from home_forwarder\.remote\.(\w+) import (?:\([^)]*\)|.*)\n", re.MULTILINE)
_FUTURE = "from __future__ import annotations\n"
"""It must stand first in what is sent, and so once. What stands before it is said once too."""


@cache
def without_comments(source: str) -> str:
    """A program that does the same in fewer bytes: its comments, docstrings, annotations, what is for a
    type checker only, and empty lines are gone; it is indented by one space a level.

    The lines that say what it is and under which licence stay. What is left is as it was, letter by
    letter, whichever Python this runs on.
    """
    lines = source.splitlines()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            docstring = node.body[0]
            for number in range(docstring.lineno - 1, docstring.end_lineno or docstring.lineno):
                lines[number] = ""
            if len(node.body) == 1:
                lines[docstring.lineno - 1] = " " * docstring.col_offset + "pass"
    for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__):
        number, column = token.start
        if token.type == tokenize.COMMENT and number > 2:
            lines[number - 1] = lines[number - 1][:column].rstrip()
    for node in tree.body:
        if isinstance(node, ast.If | ast.Assign) and ast.unparse(node).startswith(
            ("if TYPE_CHECKING:", "TYPE_CHECKING = ")
        ):
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[number - 1] = ""
    for number, start, end in sorted(_annotations(tree, lines), reverse=True):
        line = lines[number - 1].encode()
        lines[number - 1] = (line[:start] + line[end:]).decode()
    inside = _inside_strings(tree)
    for number, text in enumerate(lines, start=1):
        if number not in inside:
            lines[number - 1] = " " * ((len(text) - len(text.lstrip(" "))) // 4) + text.lstrip(" ")
    return "\n".join(line for line in lines if line.strip()) + "\n"


def _inside_strings(tree: ast.Module) -> set[int]:
    """Numbers of the lines that may begin inside of a string."""
    return {
        number
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr)
        for number in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)
    }


def _annotations(tree: ast.Module, lines: list[str]) -> Iterator[tuple[int, int, int]]:
    """Where annotations of functions and variables are that take one line: its number, and the columns
    where each begins and ends, in bytes. Those in a class stay, since they may be what it is made of."""
    in_classes = {
        child for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation:
            found = node.annotation
            number, start = node.lineno, node.col_offset + len(node.arg.encode())
        elif isinstance(node, ast.FunctionDef) and node.returns:
            found = node.returns
            number = found.lineno
            start = lines[number - 1].encode().rfind(b" ->", 0, found.col_offset)
        elif isinstance(node, ast.AnnAssign) and node.value and node not in in_classes:
            found = node.annotation
            number, start = node.target.end_lineno or 0, node.target.end_col_offset or 0
        else:
            continue
        if number == found.lineno == found.end_lineno and start >= 0:
            yield number, start, found.end_col_offset or start


@cache
def module_of(path: str) -> ModuleType:
    """The program that belongs at `path` on a VPS, as a module: for what both sides must agree on."""
    name = Path(path).name.replace("-", "_")
    spec = spec_from_loader(name, SourceFileLoader(name, str(PROGRAMS / path.lstrip("/"))))
    if spec is None or spec.loader is None:
        raise ImportError(f"no program {path}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
