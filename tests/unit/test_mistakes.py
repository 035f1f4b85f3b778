# SPDX-License-Identifier: GPL-3.0-or-later
"""Promise 11: wrong data stops the run before any host is touched, and the error says where, what
was written and what would be right.

Every mistake goes through load_config, and through the real command line of pyinfra, with hosts at
addresses of TEST-NET-1 (RFC 5737) that must never be contacted.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from unit_samples import FRITZBOX, NAS, REPO, TCP, Data, data

from home_forwarder.config import DataError, load_config

PARTS = ("config.py", "deploy.py", "undeploy.py")
PARTS += ("home_forwarder", "operations", "templates", "vps")


class Mistake(NamedTuple):
    """One mistake: how the message starts (the key path), what was written, what would be right."""

    name: str
    changes: Data
    where: str
    written: str
    right: str


def home(name: str, change: Data, key: str, right: str) -> Mistake:
    """A mistake in homes[0]; the value of its first key is what is wrong."""
    return Mistake(
        name,
        {"homes": [{**FRITZBOX, **change}, NAS]},
        f"homes[0].{key}: ",
        repr(next(iter(change.values()))),
        right,
    )


def forward(name: str, change: Data, key: str, right: str, written: str = "") -> Mistake:
    """A mistake in forwards[0]; the value of its first key is what is wrong if not said else."""
    return Mistake(
        name,
        {"forwards": [{**TCP, **change}]},
        f"forwards[0].{key}: ",
        written or repr(next(iter(change.values()))),
        right,
    )


def top(name: str, key: str, value: object, right: str) -> Mistake:
    """A wrong value of a top-level key."""
    return Mistake(name, {key: value}, f"{key}: ", repr(value), right)


def without(entry: Data, key: str) -> Data:
    return {each: value for each, value in entry.items() if each != key}


DNS_NAME = "write the DNS name of the home"
A_PORT = "write a number from 1 to 65535, or a range such as '8000-8010'"
GLOBAL = "write a global IPv6 address"

MISTAKES = [
    # Keys that nobody reads.
    Mistake("misspelt top key", {"foward": []}, "foward: ", "foward", "did you mean 'forwards'?"),
    Mistake("unlike any key", {"x": 1}, "x: ", "x", "the keys are homes, forwards, notify"),
    Mistake(
        "interval misspelt",
        {"check_intervall": 60},
        "check_intervall: ",
        "",
        "did you mean 'check_interval'?",
    ),
    Mistake(
        "home key misspelt",
        {"homes": [{**FRITZBOX, "desciption": "x"}]},
        "homes[0].desciption: ",
        "desciption",
        "did you mean 'description'?",
    ),
    Mistake(
        "forward key misspelt",
        {"forwards": [{**TCP, "traget_port": 80}]},
        "forwards[0].traget_port: ",
        "traget_port",
        "did you mean 'target_port'?",
    ),
    Mistake(
        "notify key misspelt",
        {"notify": {"mail_to": "root", "mailto": "root"}},
        "notify.mailto: ",
        "mailto",
        "did you mean 'mail_to'?",
    ),
    Mistake(
        "key with a line break",
        {"homes": [{**FRITZBOX, "na\nme": 1}, NAS]},
        "homes[0]",
        "na",
        "no such key",
    ),
    Mistake(
        "key that is no text",
        {"homes": [{**FRITZBOX, 1: "x"}, NAS]},
        "homes[0]",
        "1",
        "no such key",
    ),
    # What is missing.
    Mistake(
        "home without name", {"homes": [without(FRITZBOX, "name")]}, "homes[0].name: ", "", "fritz"
    ),
    Mistake(
        "home without hostname",
        {"homes": [without(FRITZBOX, "hostname")]},
        "homes[0].hostname: ",
        "is missing",
        "the DNS name of the home",
    ),
    Mistake(
        "forward without home",
        {"forwards": [without(TCP, "home")]},
        "forwards[0].home: ",
        "is missing",
        "the name of the home",
    ),
    Mistake(
        "forward without protocol",
        {"forwards": [without(TCP, "protocol")]},
        "forwards[0].protocol: ",
        "is missing",
        '"tcp" or "udp"',
    ),
    Mistake(
        "forward without port",
        {"forwards": [TCP, without(TCP, "port")]},
        "forwards[1].port: ",
        "is missing",
        '"port": 44444',
    ),
    Mistake(
        "notify without mail_to",
        {"notify": {}},
        "notify.mail_to: ",
        "is missing",
        '"mail_to": "root"',
    ),
    # Lists and dicts that are none.
    top("homes is a dict", "homes", {"fritzbox": "xxx.myfritz.net"}, "write homes = [{"),
    top("homes is text", "homes", "xxx.myfritz.net", "write homes = [{"),
    top("homes is nothing", "homes", None, "write homes = [{"),
    Mistake(
        "home is text", {"homes": ["fritzbox"]}, "homes[0]: ", "'fritzbox'", 'write {"key": value'
    ),
    top("forwards is a number", "forwards", 44444, "write forwards = [{"),
    Mistake(
        "forward is a number",
        {"forwards": [44444]},
        "forwards[0]: ",
        "44444",
        'write {"key": value',
    ),
    top("notify is text", "notify", "root", 'write {"key": value'),
    # Homes.
    home("name with a space", {"name": "fritz box"}, "name", "such as 'fritzbox'"),
    home("name with a capital", {"name": "Fritzbox"}, "name", "a-z, 0-9"),
    home("name too long", {"name": "f" * 33}, "name", "up to 32"),
    home("name is a number", {"name": 7}, "name", "such as 'fritzbox'"),
    home("hostname is a number", {"hostname": 7}, "hostname", DNS_NAME),
    home("hostname empty", {"hostname": ""}, "hostname", DNS_NAME),
    home("hostname without a dot", {"hostname": "fritzbox"}, "hostname", DNS_NAME),
    home("hostname with a space", {"hostname": "my fritz.net"}, "hostname", DNS_NAME),
    home("hostname with a port", {"hostname": "xxx.myfritz.net:80"}, "hostname", DNS_NAME),
    home("hostname is a URL", {"hostname": "http://xxx.myfritz.net/"}, "hostname", DNS_NAME),
    home("hostname with shell code", {"hostname": "$(reboot).net"}, "hostname", DNS_NAME),
    home("hostname with a line break", {"hostname": "xxx.myfritz.net\n"}, "hostname", DNS_NAME),
    home("hostname with an empty label", {"hostname": "xxx..net"}, "hostname", DNS_NAME),
    home("hostname begins with a hyphen", {"hostname": "-xxx.net"}, "hostname", DNS_NAME),
    home("label too long", {"hostname": "x" * 64 + ".net"}, "hostname", DNS_NAME),
    home("hostname too long", {"hostname": "xxx." * 64 + "net"}, "hostname", DNS_NAME),
    home("bad IDNA", {"hostname": "höme\u200d.net"}, "hostname", DNS_NAME),
    home("bad IDNA, empty label", {"hostname": "höme..net"}, "hostname", DNS_NAME),
    home("IPv4 literal", {"hostname": "192.0.2.7"}, "hostname", "reached over IPv6"),
    home("looks like IPv4", {"hostname": "192.0.2.300"}, "hostname", "looks like an IPv4 address"),
    home("short IPv4", {"hostname": "127.1"}, "hostname", "looks like an IPv4 address"),
    home("wide IPv4 digits", {"hostname": "１９２.0.2.7"}, "hostname", DNS_NAME),
    home("IPv6 loopback", {"hostname": "::1"}, "hostname", GLOBAL),
    home("IPv6 unspecified", {"hostname": "::"}, "hostname", GLOBAL),
    home("IPv6 link-local", {"hostname": "fe80::1"}, "hostname", GLOBAL),
    home("IPv6 multicast", {"hostname": "ff02::1"}, "hostname", GLOBAL),
    home("IPv4-mapped", {"hostname": "::ffff:192.0.2.7"}, "hostname", GLOBAL),
    home("IPv6 with a scope", {"hostname": "2001:db8::1%eth0"}, "hostname", GLOBAL),
    home("IPv6 broken", {"hostname": "2001:db8:::1"}, "hostname", DNS_NAME),
    home("placeholder home", {"hostname": "fritzbox.example.net"}, "hostname", "placeholder"),
    home(
        "description of two lines", {"description": "Fritz\nBox"}, "description", "write one line"
    ),
    home("description empty", {"description": " "}, "description", "write one line"),
    home("description too long", {"description": "x" * 201}, "description", "200 characters"),
    home("description with a terminal code", {"description": "\x1b[2J"}, "description", "one line"),
    home("description is a number", {"description": 7}, "description", "write one line"),
    home("allow_private is text", {"allow_private": "maybe"}, "allow_private", "True nor False"),
    Mistake(
        "home name twice",
        {"homes": [FRITZBOX, NAS, {**NAS, "name": "fritzbox"}]},
        "homes[2].name: ",
        "'fritzbox' is the name of homes[0] already",
        "give each home a name of its own",
    ),
    Mistake(
        "too many homes",
        {
            "homes": [*[{**NAS, "name": f"home{number}"} for number in range(64)], FRITZBOX],
            "forwards": [],
        },
        "homes: ",
        "there are 65",
        "at most 64",
    ),
    # Forwards.
    forward("unknown home", {"home": "fritzbx"}, "home", "did you mean 'fritzbox'?"),
    forward("home like no other", {"home": "cellar"}, "home", "the homes are fritzbox, nas"),
    forward("home by its INDEX", {"home": 0}, "home", "such as 'fritzbox'"),
    forward("protocol in capitals", {"protocol": "TCP"}, "protocol", "'tcp', 'udp'"),
    forward("protocol unknown", {"protocol": "sctp"}, "protocol", "'tcp', 'udp'"),
    forward("protocol is a list", {"protocol": ["tcp", "udp"]}, "protocol", "'tcp', 'udp'"),
    forward("port is the ssh port", {"port": 22}, "port", "the VPS's own ssh port", "22"),
    forward("range with the ssh port", {"port": "20-23"}, "port", "the VPS's own ssh port", "22"),
    Mistake(
        "port is the ssh_port declared",
        {"ssh_port": 44444, "forwards": [TCP]},
        "forwards[0].port: ",
        "44444",
        "which ssh_port sshd really uses",
    ),
    forward("port 0", {"port": 0}, "port", A_PORT),
    forward("port too high", {"port": 65536}, "port", A_PORT),
    forward("port negative", {"port": -1}, "port", A_PORT),
    forward("port is a bool", {"port": True}, "port", A_PORT),
    forward("port is a float", {"port": 80.0}, "port", A_PORT),
    forward("port with a letter", {"port": "80x"}, "port", A_PORT),
    forward("port with a space", {"port": "80 - 90"}, "port", A_PORT),
    forward("port with a line break", {"port": "80\n"}, "port", A_PORT),
    forward("port of other digits", {"port": "８０"}, "port", A_PORT),
    forward("range open", {"port": "80-"}, "port", A_PORT),
    forward("range of three", {"port": "80-90-100"}, "port", A_PORT),
    forward("range ends too high", {"port": "65535-65536"}, "port", A_PORT),
    forward("range backwards", {"port": "8010-8000"}, "port", "'8000-8010'"),
    forward("range too long", {"port": "8000-8256"}, "port", "at most 256"),
    Mistake(
        "one port twice",
        {"forwards": [TCP, {**TCP, "home": "nas"}]},
        "forwards[1].port: ",
        "tcp port 44444 on IPv4 is taken by forwards[0]",
        "use another port",
    ),
    Mistake(
        "port twice on one family",
        {"forwards": [{**TCP, "listen": "6"}, {**TCP, "home": "nas"}]},
        "forwards[1].port: ",
        "tcp port 44444 on IPv6 is taken by forwards[0]",
        "or listen on one family each",
    ),
    Mistake(
        "ranges overlap",
        {"forwards": [{**TCP, "port": "8000-8010"}, {**TCP, "port": "8010-8020"}]},
        "forwards[1].port: ",
        "tcp port 8010 on IPv4 is taken by forwards[0]",
        "use another port",
    ),
    forward("target_port is text", {"target_port": "80x"}, "target_port", "from 1 to 65535"),
    forward("target_port 0", {"target_port": 0}, "target_port", "from 1 to 65535"),
    forward(
        "target_port overflows",
        {"port": "8000-8010", "target_port": 65530},
        "target_port",
        "the last would be 65540",
        "65530",
    ),
    forward("listen is a number", {"listen": 46}, "listen", "'46', '4', '6'"),
    forward("listen the other way round", {"listen": "64"}, "listen", "'46', '4', '6'"),
    forward("idle_timeout 0", {"idle_timeout": 0}, "idle_timeout", "of seconds from 1 to"),
    forward(
        "idle_timeout with a unit", {"idle_timeout": "2h"}, "idle_timeout", "of seconds from 1"
    ),
    forward("max_connections 0", {"max_connections": 0}, "max_connections", "from 1 to 16384"),
    forward("max_connections bool", {"max_connections": True}, "max_connections", "from 1 to"),
    forward("max_connections high", {"max_connections": 16385}, "max_connections", "to 16384"),
    # The rest.
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
    top("check_interval too small", "check_interval", 9, "of seconds from 10 to 86400"),
    top("check_interval is a bool", "check_interval", True, "of seconds from 10 to 86400"),
    top("check_interval is text", "check_interval", "60", "of seconds from 10 to 86400"),
    top("unresolved_after too small", "unresolved_after", 59, "of seconds from 60 to 604800"),
    top("preflight is a number", "preflight", 1, "neither True nor False"),
    top("remove_state is text", "remove_state", "perhaps", "neither True nor False"),
    top("ssh_port is text", "ssh_port", "22", "from 1 to 65535"),
]
IDS = [mistake.name for mistake in MISTAKES]


def complaint(mistake: Mistake, line: str) -> bool:
    """Does the line say where, what was written and what would be right?"""
    return line.startswith(mistake.where) and mistake.written in line and mistake.right in line


@pytest.mark.parametrize("mistake", MISTAKES, ids=IDS)
def test_load_config_explains(mistake: Mistake) -> None:
    """Promise 11: exactly one line, which begins with the key."""
    with pytest.raises(DataError) as error:
        load_config(data(**mistake.changes))
    assert len(error.value.mistakes) == 1, error.value.mistakes
    (line,) = error.value.mistakes
    assert complaint(mistake, line), line
    assert line.isprintable()


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
        (f"192.0.2.{number}", data(**mistake.changes)) for number, mistake in enumerate(MISTAKES, 1)
    ]
    house(directory, f"vps = {hosts!r}\n", None)
    return pyinfra(directory)


def test_command_line_refuses_every_mistake(every_mistake: Run) -> None:
    """Promise 11: no host is touched, those without a mistake of their own neither."""
    assert_refused(every_mistake)


@pytest.mark.parametrize(("number", "mistake"), list(enumerate(MISTAKES, 1)), ids=IDS)
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
    """What the tests above wait for in vain does come when the data is right."""
    house(tmp_path, 'vps = ["@fake/one"]\n', GOOD)
    run = pyinfra(tmp_path, "--dry")
    assert run.status == 0, run.output
    assert "Connecting" in run.output
    assert "Wrong data" not in run.output


def test_undeploy_does_not_need_right_data(tmp_path: Path) -> None:
    """Whoever wants to get rid of us can."""
    house(tmp_path, 'vps = ["@fake/one"]\n', "homes = 1\n")
    run = pyinfra(tmp_path, "--dry", deploy="undeploy.py")
    assert run.status == 0, run.output
    assert "Connecting" in run.output
