# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a VPS from templates/ and vps/, whose trees mirror the VPS's file system."""

from __future__ import annotations

import ast
import json
import tokenize
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from jinja2 import Environment, FileSystemLoader, StrictUndefined

PROJECT = Path(__file__).resolve().parent.parent
TEMPLATES = PROJECT / "templates"
PROGRAMS = PROJECT / "vps"
REMOTE = PROJECT / "operations" / "remote"


def _shell_quote(value: str) -> str:
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
    environment.filters["shell_quote"] = _shell_quote
    environment.filters["yaml"] = _yaml_quote
    return environment


def render(template: str, /, **values: object) -> str:
    """The text of `template` (its path below templates/).

    Raises: jinja2.UndefinedError for a name that the template uses and `values` lacks.
    """
    return _environment().get_template(template).render(values)


def program(path: str) -> str:
    """The source of the program that belongs at `path` on a VPS."""
    return (PROGRAMS / path.lstrip("/")).read_text(encoding="utf-8")


def sent_program(name: str) -> str:
    """The source of a program that is sent to a VPS and does not stay there."""
    return (REMOTE / name).read_text(encoding="utf-8")


@cache
def without_comments(source: str) -> str:
    """A program that does the same in fewer bytes: its comments, docstrings and empty lines are gone.

    The lines that say what it is and under which licence stay. What is left is as it was, letter by
    letter, whichever Python this runs on.
    """
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
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
    return "\n".join(line for line in lines if line.strip()) + "\n"


@cache
def load_program(path: str) -> ModuleType:
    """The program that belongs at `path` on a VPS, as a module: for what both sides must agree on."""
    name = Path(path).name.replace("-", "_")
    spec = spec_from_loader(name, SourceFileLoader(name, str(PROGRAMS / path.lstrip("/"))))
    if spec is None or spec.loader is None:
        raise ImportError(f"no program {path}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
