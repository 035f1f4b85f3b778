# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands and the data that the documents, `--help` and messages print, as they stand there.

In a document these are commands: each line of a block that is indented, or fenced and marked `sh`;
what is between backticks if it begins like a command with arguments, or stands in a table's column
«command»; and there, an option with or without its value. Blocks of another mark are none.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lab.checkout import PROJECT

DOCUMENTS = (
    "README.md",
    "lab/README.md",
    *(f"docs/{f.name}" for f in (PROJECT / "docs").glob("*.md")),
)

NO_COMMANDS = {
    "ssh -R",  # a way to make tunnels, named among others
    "sysctl -w",  # what is refused
    "slow SECONDS BYTES",  # what the lab's home servers take
    "source BYTES",
    "tcp 44444, udp 33333",
}
"""What looks like a command between backticks, and is none."""

COMMAND = re.compile(r"[a-z][a-z0-9.-]* \S.*|home-address-update")
OPTION = re.compile(r"-[a-z]|--[a-z][a-z-]+( \S.*)?")
REMEDY = re.compile(r": ([a-z][a-z-]+(?:ctl|-get|mod|infra|test|init) [^;»\n]+)")
"""A command in a message to the user, as in «to mend it: systemctl restart UNIT; then …»."""


@dataclass(frozen=True)
class Printed:
    """A command, or an option of one, and where it stands."""

    text: str
    where: str

    @property
    def is_option(self) -> bool:
        return self.text.startswith("-")


def in_document(name: str) -> Iterator[Printed]:
    """All commands of a document of the project."""
    prose: list[str] = []
    fence: str | None = None
    block: list[str] = []
    for line in [*(PROJECT / name).read_text(encoding="utf-8").splitlines(), ""]:
        mark = re.match(r" *```(\w*)", line)
        if mark:
            fence = None if fence is not None else mark[1]
        elif fence == "sh" or (fence is None and _is_code(line, block, prose)):
            block.append(line)
        elif fence is None:
            yield from (Printed(command, name) for command in _lines(block))
            block = []
            prose.append(line)
    yield from (Printed(text, name) for text in _inline(prose))


def _is_code(line: str, block: list[str], prose: list[str]) -> bool:
    """Is a line outside of fences a part of an indented block? Of a list's item, that is deeper."""
    if block:
        return line.startswith("    ")
    item = next((each for each in reversed(prose) if each and not each.startswith(" ")), "")
    width = re.match(r"([0-9]+\. |- )?", item)
    deep = " " * (4 + len(width[0] if width else ""))
    return line.startswith(deep) and not (prose and prose[-1])


def _lines(block: list[str]) -> Iterator[str]:
    """Commands without comments; one that goes on after a backslash is one."""
    for line in re.sub(r" *\\\n *", " ", "\n".join(block)).splitlines():
        command = re.sub(r"(^|\s+)# .*", "", line).strip()
        if command:
            yield command


def _inline(prose: list[str]) -> Iterator[str]:
    text = "\n".join(prose)
    for span in re.findall(r"`([^`]+)`", text):
        command = " ".join(span.split())
        if (COMMAND.fullmatch(command) or OPTION.fullmatch(command)) and command not in NO_COMMANDS:
            yield command
    for table in re.findall(r"(?:^\|.*\n)+", text + "\n", flags=re.M):
        rows = [row.strip("|").split(" | ") for row in table.splitlines()]
        if rows[0][-1].strip() == "command":
            yield from (span for row in rows for span in re.findall(r"`([^`-][^`]*)`", row[-1]))


def in_help(text: str, where: str) -> Iterator[Printed]:
    """The examples of what `--help` says; what they are for stands beside, two spaces away."""
    _, _, examples = text.partition("\nexamples:\n")
    for line in _lines(examples.partition("\n\n")[0].splitlines()):
        yield Printed(" ".join(re.sub(r"(?<=\S)\s{2,}\S[^\\]*$", "", line).split()), where)


def in_messages(*folders: str) -> Iterator[Printed]:
    """What the strings of our programs tell the user to do; X stands for what is put in."""
    for folder in folders:
        for file in sorted((PROJECT / folder).rglob("*")):
            if file.is_file() and (
                file.suffix == ".py" or file.parent.name in ("bin", "home-forwarder")
            ):
                tree = ast.parse(file.read_text(encoding="utf-8"))
                for text in _strings(tree):
                    yield from (Printed(found[1], file.name) for found in REMEDY.finditer(text))


def _strings(tree: ast.AST) -> Iterator[str]:
    """All strings of a program but its docstrings."""
    inner: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner.add(node.value)
        if isinstance(node, ast.JoinedStr):
            inner.update(node.values)
            parts = [str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values]
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inner:
            yield node.value


def data_of(name: str) -> list[str]:
    """The blocks of a document that are marked `python`."""
    text = (PROJECT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^( *)```python\n(.*?)^ *```", text, flags=re.S | re.M)
    return [re.sub(rf"^{indent}", "", block, flags=re.M) for indent, block in blocks]
