# SPDX-License-Identifier: GPL-3.0-or-later
"""What is sent to a VPS passes any login shell, and an answer is found among whatever else is said."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.connectors.util import make_unix_command
from unit_samples import plan_of

from operations.facts import Commands, HostState, NotSeen, Question, contained
from operations.sending import Call, NotUnderstood, lines_of

NASTY = ("it's", 'a "b" \\n $HOME `id` !! #', "two\nlines", "ü€", "", "*", "-x")
ECHO = """
# It's \\ a "comment" with $HOME, `id` and !!
import json, sys

def main():
    print(json.dumps({"arguments": sys.argv[1:], "stdin": sys.stdin.read()}))

if __name__ == "__main__":
    main()
"""
SURROUNDINGS = {
    "nothing": ([], []),
    "welcome": (["Welcome!", ""], ["Bye"]),
    "JSON": (['{"root": true}', "[]"], ['{"root": false}']),
    "like a mark": (["home-forwarder-0123456789abcdef", "{}"], ["home-forwarder-0123456789abcdef"]),
    "terminal": (["\x1b[2J\x1b[31mred"], ["\x07"]),
    "between": (["Welcome!"], []),
}


def run(
    shell: str, sent: str, path: str = "/usr/bin:/bin", stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shell, "-c", sent],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": path},
    )


def answer(call: Call, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return call.answer(done.stdout.splitlines(), done.stderr.splitlines())


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_program_gets_its_arguments_and_its_data(shell: str) -> None:
    call = Call(ECHO, NASTY)
    line = make_unix_command(call.command()).get_raw_value()
    assert answer(call, run(shell, line, stdin="secret\n")) == {
        "arguments": list(NASTY),
        "stdin": "secret\n",
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"_sudo": True},
        {"_sudo": True, "_use_sudo_login": True},
        {"_su_user": "root"},
        {"_doas": True},
        {"_shell_executable": None},
    ],
    ids=str,
)
def test_no_character_means_something_else_to_another_shell(settings: dict[str, Any]) -> None:
    """csh reads ! and newlines even in single quotes, fish a backslash; sudo -i leaves $ bare
    (promise 22)."""
    call = Call(ECHO, NASTY, otherwise='printf "it\'s \\n %s" $HOME')
    line = make_unix_command(call.command(), **settings).get_raw_value()
    assert not set(line) & set("\n\\!$`")
    assert line.isascii()
    # Of quotes there are only those that pyinfra puts around it, and one pair of double ones.
    assert "'" not in call.command().get_raw_value()
    assert call.command().get_raw_value().count('"') == 2


def test_without_python(tmp_path: Path) -> None:
    """What can be said by sh is said, and found alike."""
    for name in ("sh", "base64"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    call = Call(ECHO, otherwise='x=it\\\'s; printf \'{"x": "%s"}\\n\' "$x"')
    assert answer(call, run("/bin/sh", call.command().get_raw_value(), str(tmp_path))) == {
        "x": "it's"
    }


@pytest.mark.parametrize(("before", "after"), SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_what_a_login_says_besides(before: list[str], after: list[str]) -> None:
    """Promise 22."""
    call = Call(ECHO, ("a",))
    done = run("sh", call.command().get_raw_value(), stdin="x")
    lines = [*before, *done.stdout.splitlines(), *after]
    assert call.answer(lines) == {"arguments": ["a"], "stdin": "x"}
    assert call.answer([f"{line}\r" for line in lines]) == {"arguments": ["a"], "stdin": "x"}


def test_a_greeting_without_an_end_of_line() -> None:
    call = Call(ECHO)
    sent = f"printf 'Welcome! '; {call.command().get_raw_value()}"
    assert answer(call, run("sh", sent))["arguments"] == []


REFUSAL = 'Please login as the user "admin" rather than the user "root".'
STRANGE: dict[str, tuple[list[str], list[str], str]] = {
    "nothing": ([], [], "the VPS answered nothing"),
    "a refusal": (["", REFUSAL, "", "Bye"], ["noise"], f"the VPS answered «{REFUSAL}»"),
    "a refusal on standard error": ([], [REFUSAL, "^~~~~~~"], f"the VPS answered «{REFUSAL}»"),
    "sudo's own words": (
        ["Welcome!"],
        ["We trust you have received the usual lecture", "sudo: a password is required"],
        "the VPS answered «sudo: a password is required»",
    ),
    "JSON, and not ours": (['{"root": true}'], [], 'the VPS answered «{"root": true}»'),
    "orders to the terminal": (["\x1b]0;owned\x07hello"], [], "the VPS answered «]0;ownedhello»"),
    "much": (["x" * 1000], [], f"the VPS answered «{'x' * 200}»"),
}


@pytest.mark.parametrize(("lines", "errors", "says"), STRANGE.values(), ids=STRANGE)
def test_what_was_said_instead_is_shown(lines: list[str], errors: list[str], says: str) -> None:
    with pytest.raises(NotUnderstood) as error:
        Call(ECHO).answer(lines, errors)
    assert str(error.value) == says


def test_a_program_that_fails_shows_its_own_words() -> None:
    call = Call("raise OSError('no space left')")
    done = run("sh", call.command().get_raw_value())
    with pytest.raises(NotUnderstood, match="«OSError: no space left»"):
        call.answer(["Welcome!", *done.stdout.splitlines()], done.stderr.splitlines())


def test_without_its_mark_nothing_is_an_answer() -> None:
    """pyinfra lets only a FactProcessError concern one host; all others end the run (promise 14)."""
    fact = HostState()
    fact.command(Question(plan_of()))
    with pytest.raises(FactProcessError):
        fact.process(['{"root": true}'])


def test_the_fact_finds_its_own_answer() -> None:
    fact = HostState()
    fact.command(Question(plan_of()))
    answered = json.dumps({"root": False, "python": [3, 13]})
    seen = fact.process(['{"root": true}', fact._call._mark, answered, "{}"])
    assert (seen.root, seen.python) == (False, (3, 13))


def test_a_host_that_stops_answering_fails_alone() -> None:
    """In the middle of a deploy, too: the operation ends there, without an exception (promise 14)."""

    @contained
    def operation() -> Commands:
        yield StringCommand("first")
        raise NotSeen("vps1")

    first, failed = operation()
    assert first == StringCommand("first")
    assert failed.execute(None, None, {}) is False  # type: ignore[arg-type]


def test_what_a_vps_said_does_nothing_to_a_terminal() -> None:
    said = "\x1b[2Jcannot start ä\r\nbecause\x07\x9b31m\n"
    assert lines_of(said) == ["[2Jcannot start ä", "because31m"]
    assert lines_of(None) == ["None"]
