# SPDX-License-Identifier: GPL-3.0-or-later
"""Promise 11: wrong data stops the run before any host is touched, and the error says where, what
was written and what would be right.

Every mistake goes through load_config, and through the real command line of pyinfra, with hosts at
addresses of TEST-NET-1 (RFC 5737) that must never be contacted.
"""

from __future__ import annotations

import copy
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from pydantic import BaseModel
from test_addresses_data import MISTAKES as OF_HOMES
from test_forwards_data import MISTAKES as OF_FORWARDS
from unit_samples import REPO, TCP, Mistake, check_mistake, complaint, data, top

from home_forwarder.config import Config, load_config
from home_forwarder.mistakes import REQUIRED, DataError

PARTS: tuple[str, ...] = ("config.py", "deploy.py", "undeploy.py")
PARTS += ("home_forwarder", "operations", "templates", "vps")


MISTAKES = [
    Mistake("misspelt top key", {"foward": []}, "foward: ", "foward", "did you mean 'forwards'?"),
    Mistake("unlike any key", {"x": 1}, "x: ", "x", "the keys are homes, forwards, notify"),
    Mistake(
        "interval misspelt",
        {"check_intervall": 60},
        "check_intervall: ",
        "",
        "did you mean 'check_interval'?",
    ),
    top("check_interval too small", "check_interval", 9, "of seconds from 10 to 86400"),
    top("check_interval is a bool", "check_interval", True, "of seconds from 10 to 86400"),
    top("check_interval is text", "check_interval", "60", "of seconds from 10 to 86400"),
    top("unresolved_after too small", "unresolved_after", 59, "of seconds from 60 to 604800"),
    top("preflight is a number", "preflight", 1, "neither True nor False"),
    top("remove_state is text", "remove_state", "perhaps", "neither True nor False"),
    top("ssh_port is text", "ssh_port", "22", "from 1 to 65535"),
    Mistake(
        "notify key misspelt",
        {"notify": {"mail_to": "root", "mailto": "root"}},
        "notify.mailto: ",
        "mailto",
        "did you mean 'mail_to'?",
    ),
    Mistake(
        "notify without mail_to",
        {"notify": {}},
        "notify.mail_to: ",
        "is missing",
        '"mail_to": "root"',
    ),
    top("notify is text", "notify", "root", 'write {"key": value'),
    Mistake(
        "mail_to with a space",
        {"notify": {"mail_to": "me and you"}},
        "notify.mail_to: ",
        "'me and you'",
        "a local user such as 'root'",
    ),
    Mistake(
        "mail_to is a list",
        {"notify": {"mail_to": ["root"]}},
        "notify.mail_to: ",
        "['root']",
        "with commas between",
    ),
    Mistake(
        "mail_to is an option",
        {"notify": {"mail_to": "-oQ/tmp"}},
        "notify.mail_to: ",
        "'-oQ/tmp'",
        "a local user such as 'root'",
    ),
    Mistake(
        "mail_to with a header",
        {"notify": {"mail_to": "root\nBcc: x@y.net"}},
        "notify.mail_to: ",
        repr("root\nBcc: x@y.net"),
        "a local user such as 'root'",
    ),
]
IDS = [mistake.name for mistake in MISTAKES]
ALL_MISTAKES = [*OF_HOMES, *OF_FORWARDS, *MISTAKES]
ALL_IDS = [mistake.name for mistake in ALL_MISTAKES]


@pytest.mark.parametrize("mistake", MISTAKES, ids=IDS)
def test_load_config_explains(mistake: Mistake) -> None:
    """Promise 11."""
    check_mistake(mistake)


def test_homes_missing_altogether() -> None:
    """Promise 11: a VPS without the key `homes`."""
    with pytest.raises(DataError) as error:
        load_config({})
    assert error.value.mistakes == [
        'homes: is missing; write homes = [{"name": "fritzbox", "hostname": "xxx.myfritz.net"}]'
    ]


def test_all_mistakes_at_once() -> None:
    """Promise 11: one run says all of them, in the order of the data."""
    wrong = data(
        homes=[{"name": "A b", "hostname": "x", "desc": "y"}], forwards=[{**TCP, "port": 0}], z=1
    )
    with pytest.raises(DataError) as error:
        load_config(wrong)
    keys = [line.partition(":")[0] for line in error.value.mistakes]
    assert keys == [
        "homes[0].name",
        "homes[0].hostname",
        "homes[0].desc",
        "forwards[0].port",
        "z",
    ]


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and those that its values are made of."""
    yield model
    for field in model.model_fields.values():
        inner = model_in(field.annotation)
        if inner:
            yield from models(inner)


def model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)


ALL_MODELS = list(models(Config))


def test_all_models_are_known() -> None:
    """The two tests below look at each of them."""
    assert {model.__name__ for model in ALL_MODELS} == {
        "Config", "FirstBoot", "Forward", "Home", "Notify", "Smtp", "Webhook",
    }  # fmt: skip


def test_each_required_key_has_its_words() -> None:
    """Promise 11: whoever leaves one out is told what to write."""
    required = {
        name
        for model in ALL_MODELS
        for name, field in model.model_fields.items()
        if field.is_required()
    }
    assert required == set(REQUIRED)


@pytest.mark.parametrize("model", ALL_MODELS, ids=lambda model: model.__name__)
def test_a_typo_in_any_key_is_explained(model: type[BaseModel]) -> None:
    """Promise 11: with the key that was meant, however deep it is; and an unlike one with all there are."""
    keys = [*PLACES[model.__name__]]
    for name in model.model_fields:
        line = mistake_at(keys, f"{name}x")
        assert line.endswith(f"{name}x: no such key; did you mean {name!r}?"), line
    assert f"; the keys are {', '.join(model.model_fields)}" in mistake_at(keys, "qqqqq")


PLACES: dict[str, list[str | int]] = {
    "Config": [],
    "Home": ["homes", 0],
    "Forward": ["forwards", 0],
    "FirstBoot": ["first_boot"],
    "Notify": ["notify"],
    "Smtp": ["notify", "smtp"],
    "Webhook": ["notify", "webhook"],
}
"""Where a dict of each model stands in the data."""


def mistake_at(keys: list[str | int], wrong: str) -> str:
    """What is said of a key that does not exist, in the dict at `keys`."""
    whole = data(
        first_boot={},
        notify={"mail_to": "root", "smtp": {}, "webhook": {"url": "https://address.test/x"}},
    )
    whole = copy.deepcopy(whole)
    place: Any = whole
    for key in keys:
        place = place[key]
    place[wrong] = 1
    with pytest.raises(DataError) as error:
        load_config(whole)
    (line,) = error.value.mistakes
    return line


@pytest.mark.parametrize("part", ["homes", "forwards"])
def test_a_list_in_the_place_of_a_list(part: str) -> None:
    """Promise 11: of an entry that is wrong, its place is said, not that of the first."""
    whole = copy.deepcopy(data())
    whole[part][1]["nmae"] = 1
    with pytest.raises(DataError, match=rf"^{part}\[1\]\.nmae: no such key"):
        load_config(whole)


# ---- The real command line -------------------------------------------------------------------


class Run(NamedTuple):
    """What pyinfra said."""

    status: int
    output: str


def house(directory: Path, inventory: str, group_data: str | None) -> None:
    """A project like ours in `directory`, with data of its own."""
    for part in PARTS:
        (directory / part).symlink_to(REPO / part)
    (directory / "inventory.py").write_text(inventory)
    if group_data is not None:
        (directory / "group_data").mkdir()
        (directory / "group_data" / "all.py").write_text(group_data)


def pyinfra(directory: Path, *arguments: str, deploy: str = "deploy.py") -> Run:
    """`pyinfra inventory.py deploy.py`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", "from pyinfra_cli.main import main; main()"]
        + ["-y", *arguments, "inventory.py", deploy],
        cwd=directory,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return Run(done.returncode, done.stdout)


def assert_refused(run: Run) -> None:
    """It failed before it connected anywhere, and as a user can read it."""
    assert run.status != 0, run.output
    assert "Traceback" not in run.output
    assert "Connecting" not in run.output, "a host was touched"
    assert "Wrong data; no host was touched" in run.output


def python(names: dict[str, Any]) -> str:
    """A group data file that says so."""
    return "".join(f"{name} = {value!r}\n" for name, value in names.items())


ONE = 'vps = [("192.0.2.1", {"ssh_user": "root"})]\n'
GOOD = python({**data(), "preflight": False})


@pytest.fixture(scope="module")
def every_mistake(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run with a host for each mistake, which are data of that host."""
    directory = tmp_path_factory.mktemp("house")
    hosts = [
        (f"192.0.2.{number}", data(**mistake.changes))
        for number, mistake in enumerate(ALL_MISTAKES, 1)
    ]
    house(directory, f"vps = {hosts!r}\n", None)
    return pyinfra(directory)


def test_command_line_refuses_every_mistake(every_mistake: Run) -> None:
    """Promise 11: no host is touched, those without a mistake of their own neither."""
    assert_refused(every_mistake)


@pytest.mark.parametrize(("number", "mistake"), list(enumerate(ALL_MISTAKES, 1)), ids=ALL_IDS)
def test_command_line_explains(number: int, mistake: Mistake, every_mistake: Run) -> None:
    """Promise 11: one line that names the host as well."""
    host = f"192.0.2.{number}"
    lines = []
    for line in every_mistake.output.splitlines():
        found = re.match(r"    (192\.0\.2\.[0-9., ]+): (.*)", line)
        if found and host in found[1].split(", "):
            lines.append(found[2])
    assert len(lines) == 1, lines
    assert complaint(mistake, lines[0]), lines[0]


FILES: dict[str, tuple[str, str | None, tuple[str, ...], tuple[str, ...]]] = {
    # name: inventory.py, group_data/all.py, more arguments, what the output says
    "group data is no Python": (
        ONE,
        'homes = [\n    {"name": "fritzbox" "hostname": "x"},\n]\n',
        (),
        ("group_data/all.py line 2: invalid syntax",),
    ),
    "group data badly indented": (ONE, "homes = []\n  forwards = []\n", (), ("all.py line 2: ",)),
    "unknown name in group data": (
        ONE,
        "x = 1\nhomes = [fritzbox]\n",
        (),
        ("group_data/all.py line 2: ", "name 'fritzbox' is not defined"),
    ),
    "import that fails in group data": (ONE, "import nosuch\n", (), ("all.py line 1: ", "nosuch")),
    "function in group data": (ONE, f"{GOOD}def helper(): pass\n", (), ("192.0.2.1: helper: ",)),
    "no group data": (ONE, None, (), ("192.0.2.1: homes: is missing",)),
    "inventory is no Python": ("vps = [(\n", GOOD, (), ("inventory.py line 1: ",)),
    "unknown name in the inventory": (
        "vps = [me]\n",
        GOOD,
        (),
        ("inventory.py line 1: ", "name 'me' is not defined"),
    ),
    "host data is no dict": ('vps = [("192.0.2.1", "root")]\n', GOOD, (), ("inventory.py", "{")),
    "inventory is empty": ("", GOOD, (), ("inventory.py",)),
    "list of hosts is empty": ("vps = []\n", GOOD, (), ("inventory.py",)),
    "host is a number": ("vps = [5]\n", GOOD, (), ("inventory.py",)),
    "hosts are no list": ('vps = "192.0.2.1"\n', GOOD, (), ("inventory.py",)),
    "placeholder as a host": (
        'vps = ["192.0.2.1", "vps.example.net"]\n',
        GOOD,
        (),
        ("vps.example.net: inventory.py: 'vps.example.net' is the placeholder", "write your VPS's"),
    ),
    "placeholder as ssh_hostname": (
        'vps = [("mine", {"ssh_hostname": "vps.example.org"})]\n',
        GOOD,
        (),
        ("mine: inventory.py: 'vps.example.org' is the placeholder",),
    ),
    "wrong value by --data": (
        ONE,
        GOOD,
        ("--data", "check_interval=5"),
        ("192.0.2.1: check_interval: 5 is not an interval",),
    ),
    "wrong key by --data": (
        ONE,
        GOOD,
        ("--data", "check_intervall=60"),
        ("192.0.2.1: check_intervall: no such key; did you mean 'check_interval'?",),
    ),
    "ssh port by --ssh-port": (
        ONE,
        GOOD,
        ("--ssh-port", "44444"),
        ("192.0.2.1: forwards[0].port: 44444 is the VPS's own ssh port",),
    ),
    "several mistakes, several hosts": (
        'vps = ["192.0.2.1", ("192.0.2.2", {"check_interval": 5}), ("192.0.2.3", {"homes": 1})]\n',
        python(data(foward=[], forwards=[{**TCP, "protocol": "TCP"}])),
        (),
        (
            "192.0.2.1, 192.0.2.2, 192.0.2.3: foward: no such key; did you mean 'forwards'?",
            "192.0.2.1, 192.0.2.2, 192.0.2.3: forwards[0].protocol: 'TCP' is not one of",
            "192.0.2.2: check_interval: 5 is not an interval",
            "192.0.2.3: homes: 1 is not a list",
        ),
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_command_line_with_wrong_files(case: str, tmp_path: Path) -> None:
    """Promise 11: also for what is not data at all, and for data from the command line."""
    inventory, group_data, arguments, said = FILES[case]
    house(tmp_path, inventory, group_data)
    run = pyinfra(tmp_path, *arguments)
    assert_refused(run)
    for text in said:
        assert text in run.output
    lines = run.output.partition("no host was touched:\n")[2].splitlines()
    assert len(set(lines)) == len(lines), "said twice"


def test_group_data_in_another_encoding(tmp_path: Path) -> None:
    """Promise 11: the message names the file that cannot be read, and not another one."""
    house(tmp_path, ONE, "")
    (tmp_path / "group_data" / "all.py").write_bytes('homes = "Küche"\n'.encode("latin-1"))
    run = pyinfra(tmp_path)
    assert_refused(run)
    assert "all.py" in run.output


def test_inventory_as_shipped(tmp_path: Path) -> None:
    """Promise 11: who deploys the example is told what to edit."""
    house(
        tmp_path,
        (REPO / "inventory.py").read_text(),
        (REPO / "group_data" / "all.py").read_text(),
    )
    run = pyinfra(tmp_path)
    assert_refused(run)
    for text in (
        "inventory.py: 'vps.example.net' is the placeholder",
        "write your VPS's host name",
    ):
        assert text in run.output
    for index in (0, 1):
        assert f"homes[{index}].hostname: " in run.output


def test_group_data_as_shipped_is_right_but_for_the_placeholders() -> None:
    """The example teaches nothing wrong."""
    names = runpy.run_path(str(REPO / "group_data" / "all.py"))
    given = {key: value for key, value in names.items() if not key.startswith("_")}
    given["homes"] = [
        {**each, "hostname": each["hostname"].replace("example", "address")}
        for each in given["homes"]
    ]
    assert [each.name for each in load_config(given).homes] == ["fritzbox", "nas"]


def test_right_data_does_connect(tmp_path: Path) -> None:
    """What the tests above wait for in vain does come when the data is right; a VPS that answers
    nothing at all is not taken for an empty one."""
    house(tmp_path, 'vps = ["@fake/one"]\n', GOOD)
    run = pyinfra(tmp_path, "--dry")
    assert "Connecting" in run.output
    assert "Wrong data" not in run.output
    assert "[@fake/one] the VPS answered nothing" in run.output
    assert run.status == 1, run.output


def test_undeploy_does_not_need_right_data(tmp_path: Path) -> None:
    """Whoever wants to get rid of us can."""
    house(tmp_path, 'vps = ["@fake/one"]\n', "homes = 1\n")
    run = pyinfra(tmp_path, "--dry", deploy="undeploy.py")
    assert "Connecting" in run.output
    assert "Wrong data" not in run.output
