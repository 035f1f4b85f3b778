# SPDX-License-Identifier: GPL-3.0-or-later
"""What changes a VPS, run for real as it is sent: files, units, and one deploy at a time."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from unit_remote import GROUP, USER, command, remote, script, snapshot, source_of, tools

from home_forwarder.plan import Plan
from home_forwarder.planning import UNFINISHED, question
from home_forwarder.remote import observe
from home_forwarder.remote.sockets import processes

Steps = list[list[object]]

ADDRESSES = r"(?m)^HOME_IPV6_ADDRESS_(\d+)=(\S+)$"
AS_IT_WAS: dict[str, Any] = {"basis": "as it was", "addresses": ["/nonexistent", ADDRESSES]}
ALL_WRITTEN = {"failed": [], "done": ["write"], "seen": AS_IT_WAS}


def job(steps: Steps, lock: Path, **more: object) -> dict[str, object]:
    """As home_forwarder/applying.py makes it, for a VPS that looks the same whatever is done."""
    return {
        "lock": str(lock),
        "patience": 0.3,
        "who": "me@laptop",
        "unfinished": UNFINISHED,
        "steps": steps,
        "observe": "import sys; print(sys.argv[1])",
        "question": AS_IT_WAS,
        "basis": AS_IT_WAS["basis"],
        **more,
    }


def apply(steps: Steps, more: dict[str, object] | None = None, **options: Any) -> dict[str, Any]:
    """What comes of these steps. more: keys of the job."""
    with tempfile.TemporaryDirectory() as directory:
        return remote("apply.py", job=job(steps, Path(directory) / "lock", **more or {}), **options)


def write(entries: list[dict[str, str]], **options: Any) -> dict[str, Any]:
    return apply([["write", entries]], **options)


def remove(paths: list[Path]) -> dict[str, Any]:
    return apply([["remove", [str(path) for path in paths]]])


def file(path: Path, content: str = "new\n", mode: str = "644") -> dict[str, str]:
    return {"path": str(path), "content": content, "mode": mode, "owner": USER, "group": GROUP}


def link(path: Path, target: str = "/dev/null") -> dict[str, str]:
    return {"path": str(path), "target": target}


# ---- Files -----------------------------------------------------------------------------------


def test_write(tmp_path: Path) -> None:
    text = 'ünïcode 🏠 and \\ "quotes" $HOME `id`\r\nlast line without an end'
    done = write(
        [
            file(tmp_path / "a", text),
            file(tmp_path / "deep" / "er" / "b", "#!/bin/sh\n", "755"),
            file(tmp_path / "c", "", "600"),
            link(tmp_path / "x.wants" / "unit", "/etc/unit"),
        ]
    )
    assert done == ALL_WRITTEN
    assert (tmp_path / "a").read_bytes() == text.encode()
    modes = {name: mode & 0o777 for name, (mode, _) in snapshot(tmp_path).items()}
    assert modes == {
        "a": 0o644,
        "c": 0o600,
        "deep": 0o755,
        "deep/er": 0o755,
        "deep/er/b": 0o755,
        "x.wants": 0o755,
        "x.wants/unit": 0o777,
    }
    assert (tmp_path / "x.wants" / "unit").readlink() == Path("/etc/unit")


def test_umask_does_not_matter(tmp_path: Path) -> None:
    """A hardened root has 077: the relays, which are nobody, must reach their program still."""
    assert write([file(tmp_path / "lib" / "relay", mode="755")], umask=0o077) == ALL_WRITTEN
    assert (tmp_path / "lib").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "lib" / "relay").stat().st_mode & 0o777 == 0o755


def test_replace(tmp_path: Path) -> None:
    """Whole, by a rename: who has the old file open reads on in it."""
    for name in ("file", "other"):
        (tmp_path / name).write_text("old\n")
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "dangling").symlink_to("nowhere")
    with (tmp_path / "file").open() as reader:
        done = write(
            [
                file(tmp_path / "file"),
                file(tmp_path / "link"),
                link(tmp_path / "other", "target"),
                link(tmp_path / "dangling", "target"),
            ]
        )
        assert done == ALL_WRITTEN
        assert reader.read() == "old\n"
    assert {name: text for name, (_, text) in snapshot(tmp_path).items()} == {
        "file": "new\n",
        "link": "new\n",
        "other": "target",
        "dangling": "target",
    }


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    """Promise 12; and it is not followed if it is a link."""
    victim = tmp_path / "victim"
    victim.write_text("old\n")
    (tmp_path / f"a{UNFINISHED}").symlink_to(victim)
    (tmp_path / f"b{UNFINISHED}").write_text("half")
    assert write([file(tmp_path / "a"), file(tmp_path / "b")]) == ALL_WRITTEN
    assert {name: text for name, (_, text) in snapshot(tmp_path).items()} == {
        "a": "new\n",
        "b": "new\n",
        "victim": "old\n",
    }


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("kind", ["directory", "full directory", "file as directory", "link loop"])
def test_a_write_that_fails_changes_nothing(kind: str, position: int, tmp_path: Path) -> None:
    """Promise 12: all or nothing, wherever in the list the one is that cannot be written."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("old\n")
    bad = tmp_path / "bad"
    if kind == "file as directory":
        bad.write_text("old\n")
        bad = bad / "x"
    elif kind == "link loop":
        bad.symlink_to("bad")
        bad = bad / "x"
    else:
        bad.mkdir()
        if kind == "full directory":
            (bad / "x").write_text("old\n")
    before = snapshot(tmp_path)
    entries = [file(tmp_path / "a"), link(tmp_path / "b")]
    entries.insert(position, file(bad))
    done = write(entries)
    (why,) = done["failed"]
    assert why.startswith("cannot write the files: ")
    assert "\n" not in why
    assert done["done"] == []
    assert snapshot(tmp_path) == before


def test_full_disk(tmp_path: Path) -> None:
    """Promise 12: as above, in the middle of a file."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("old\n")
    before = snapshot(tmp_path)
    entries = [file(tmp_path / "a"), file(tmp_path / "b", "x" * 5000)]
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    done = write(entries, change=("import errno\n", f"import errno\nimport resource\n{limit}\n"))
    assert done["done"] == []
    assert done["failed"] == ["cannot write the files: [Errno 27] File too large"]
    assert snapshot(tmp_path) == before


def test_remove(tmp_path: Path) -> None:
    """Promise 9: with the directories of ours that are empty then, and no others."""
    gone = [
        tmp_path / "unit.service",
        tmp_path / "unit.service.d" / "forward.conf",
        tmp_path / "group.wants" / "unit",
        tmp_path / "home-forwarder" / "relay",
        tmp_path / "home-forwarder" / "__pycache__",
        tmp_path / "full.wants" / "unit",
        tmp_path / "own.d" / "forward.conf",
        tmp_path / "etc" / "conf",
        tmp_path / "dangling",
    ]
    kept = [tmp_path / "full.wants" / "other", tmp_path / "own.d" / "mine.conf"]
    for path in (*gone, *kept):
        path.parent.mkdir(exist_ok=True)
        if path.name == "__pycache__":
            path.mkdir()
            (path / "x.pyc").touch()
        elif path.name == "dangling":
            path.symlink_to("nowhere")
        else:
            path.touch()
    done = remove([*gone, tmp_path / "never" / "there"])
    assert (done["failed"], done["done"]) == ([], ["remove"])
    assert set(snapshot(tmp_path)) == {
        "etc",
        "full.wants",
        "full.wants/other",
        "own.d",
        "own.d/mine.conf",
    }


def test_remove_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").touch()
    (tmp_path / "link").symlink_to(outside)
    assert remove([tmp_path / "link"])["done"] == ["remove"]
    assert set(snapshot(tmp_path)) == {"outside", "outside/x"}


# ---- Units -----------------------------------------------------------------------------------

LOGGING = """echo "$*" >>"${0%/*}/log"
case " $FAIL " in *" $1 "*) echo "$1: no"; exit 1;; esac
[ "$1" != is-failed ] || [ "$3" = failed.service ]"""
"""A systemctl that lists what it is told, fails as $FAIL says, and knows one failed unit."""
EVERY_STEP: Steps = [
    ["stop", ["a.service", "failed.service"]],
    ["reload", True],
    ["read", ["reader.service"]],
    ["restart", ["b.service", "c.timer"]],
    ["start", ["d.service"]],
]


@pytest.fixture
def systemctl(tmp_path: Path) -> dict[str, str]:
    """An environment with such a systemctl."""
    return script(tmp_path, "systemctl", LOGGING)


def told(directory: Path) -> list[str]:
    """What systemctl was told."""
    return (directory / "log").read_text().splitlines()


def test_units(systemctl: dict[str, str], tmp_path: Path) -> None:
    """One command a step, in the order of the steps; what failed is forgotten with what is stopped."""
    done = apply(EVERY_STEP, env=systemctl)
    assert done["failed"] == []
    assert done["done"] == ["stop", "reload", "read", "restart", "start"]
    assert told(tmp_path) == [
        "stop a.service failed.service",
        "is-failed -q a.service",
        "is-failed -q failed.service",
        "reset-failed failed.service",
        "daemon-reload",
        "reload-or-restart reader.service",
        "restart b.service c.timer",
        "start d.service",
    ]


def test_a_step_that_fails_ends_a_deploy(systemctl: dict[str, str], tmp_path: Path) -> None:
    """What comes after it has not been done, and its reason is said."""
    done = apply(EVERY_STEP, env={**systemctl, "FAIL": "reload-or-restart"})
    assert done["done"] == ["stop", "reload"]
    why = "systemctl reload-or-restart reader.service ended with 1:\n    reload-or-restart: no"
    assert done["failed"] == [why]
    assert told(tmp_path)[-1] == "reload-or-restart reader.service"


def test_nothing_goes_on_without_its_files(systemctl: dict[str, str], tmp_path: Path) -> None:
    """Promise 12: when they cannot be written, nothing has been stopped."""
    (tmp_path / "full").mkdir()
    done = apply([["write", [file(tmp_path / "full")]], *EVERY_STEP], env=systemctl)
    assert done["done"] == []
    assert len(done["failed"]) == 1
    assert not (tmp_path / "log").exists()


def test_a_stop_that_systemd_called_off_is_made_again(tmp_path: Path) -> None:
    """A home that moved just now restarts its forwards, which cancels a job to stop them."""
    environment = script(
        tmp_path, "systemctl", f'[ -e "${{0%/*}}/log" ]; r=$?; {LOGGING} && exit $r'
    )
    done = apply([["stop", ["failed.service"]]], env=environment)
    assert (done["failed"], done["done"]) == ([], ["stop"])
    assert told(tmp_path)[:2] == ["stop failed.service"] * 2


def test_of_what_a_command_says_the_last_lines_are_shown(tmp_path: Path) -> None:
    lines = " ".join(map(str, range(100)))
    environment = script(tmp_path, "systemctl", f"printf '%s\\n' {lines}; exit 1")
    (why,) = apply([["start", ["a.service"]]], env=environment)["failed"]
    assert why.splitlines()[0] == "systemctl start a.service ended with 1:"
    assert why.splitlines()[1:] == [f"    {number}" for number in range(88, 100)]


def test_no_systemctl() -> None:
    """Said as any other failure."""
    done = apply([["reload", True]], env={"PATH": "/nonexistent"})
    assert done["done"] == []
    (why,) = done["failed"]
    assert why.startswith("systemctl daemon-reload: ")


# ---- Relays that have to listen ---------------------------------------------------------------

OURS = processes()[str(os.getpid())]
"""The service that these tests run in; mostly none."""


@pytest.fixture
def known(tmp_path: Path) -> dict[str, object]:
    """A VPS that knows the address of home 7; observe.py looks at it."""
    (tmp_path / "addresses").write_text("# x\nHOME_IPV6_ADDRESS_7=2001:db8::1\n")
    addresses = [str(tmp_path / "addresses"), ADDRESSES]
    asked = {**json.loads(json.dumps(question(Plan()))), "addresses": addresses, "files": []}
    asked |= {"unit_glob": "no-such-unit", "directories": []}
    observed = {"observe": source_of("observe.py"), "question": asked}
    return {**observed, "basis": observe.basis_of({}, {})}


def relay(port: int, protocol: str = "tcp", unit: str = OURS, **more: object) -> dict[str, object]:
    return {"unit": unit, "protocol": protocol, "first": port, "last": port, "home": 7, **more}


def port_of(listening: socket.socket) -> int:
    port: int = listening.getsockname()[1]
    return port


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_wait_ends_as_soon_as_all_listen(tcp: socket.socket, known: dict[str, object]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        relays = [relay(port_of(tcp)), relay(port_of(udp), "udp")]
        started = time.monotonic()
        done = apply([["wait", relays]], known)
    assert (done["failed"], done["done"]) == ([], ["wait"])
    assert done["seen"]["addresses"] == {"7": "2001:db8::1"}
    assert time.monotonic() - started < 3


def test_wait_is_patient_while_more_come_up(known: dict[str, object]) -> None:
    """Hundreds of relays on a small VPS take longer than SECONDS, each of them not."""
    short = ("SECONDS = 5.0", "SECONDS = 1.5")
    sockets = [socket.socket() for _ in range(4)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))

    def start_one_by_one() -> None:
        for each in sockets:
            time.sleep(0.7)
            each.listen()

    starting = threading.Thread(target=start_one_by_one)
    starting.start()
    done = apply([["wait", [relay(port_of(each)) for each in sockets]]], known, change=short)
    starting.join()
    for each in sockets:
        each.close()
    assert (done["failed"], done["done"]) == ([], ["wait"])


def test_wait_without_relays() -> None:
    assert apply([["wait", []]])["done"] == ["wait"]


SHORT = ("SECONDS = 5.0", "SECONDS = 0.3")


def test_wait_says_who_does_not_listen(
    tcp: socket.socket, known: dict[str, object], tmp_path: Path
) -> None:
    """A socket that is bound and does not listen is none; the journal's last lines are the reason."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        relays = [relay(port_of(bound), unit="deaf.service"), relay(port_of(tcp))]
        environment = tools(tmp_path, journalctl="Address already in use\n")
        done = apply([["wait", relays]], known, change=SHORT, env=environment)
    assert done["failed"] == ["deaf.service does not listen: Address already in use"]
    assert done["done"] == []


def test_wait_takes_nobody_else_for_the_relay(
    tcp: socket.socket, known: dict[str, object], tmp_path: Path
) -> None:
    """Promise 18: a port that another program listens on is no forward."""
    environment = tools(tmp_path, journalctl="Address already in use\n")
    relays = [relay(port_of(tcp), unit="home-tcpforwarder-46-to-6@7:1.service")]
    done = apply([["wait", relays]], known, change=SHORT, env=environment)
    assert len(done["failed"]) == 1


def test_wait_wants_each_port_of_a_range(
    tcp: socket.socket, known: dict[str, object], tmp_path: Path
) -> None:
    environment = tools(tmp_path, journalctl="")
    first = port_of(tcp)
    relays = [relay(first, first=first - 1, last=first)]
    done = apply([["wait", relays]], known, change=SHORT, env=environment)
    assert done["failed"] == [f"{OURS} does not listen: "]


def test_wait_is_for_homes_with_an_address(known: dict[str, object]) -> None:
    """The others start as soon as theirs is known."""
    started = time.monotonic()
    done = apply([["wait", [relay(1, home=8)]]], known, env={"PATH": "/nonexistent"})
    assert (done["failed"], done["done"]) == ([], ["wait"])
    assert time.monotonic() - started < 3


def test_wait_while_no_address_is_known(tmp_path: Path) -> None:
    """Not even the file of them is there yet, or something else is in it."""
    for text in (None, "", "HOME_IPV6_ADDRESS_7=\n#HOME_IPV6_ADDRESS_7=x\n", "\udcff"):
        if text is not None:
            (tmp_path / "addresses").write_bytes(text.encode(errors="surrogateescape"))
        addresses = [str(tmp_path / "addresses"), ADDRESSES]
        done = apply([["wait", [relay(1)]]], {"question": {**AS_IT_WAS, "addresses": addresses}})
        assert (done["failed"], done["done"]) == ([], ["wait"])


# ---- One at a time ---------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A deploy that holds the lock, in the midst of a step that takes long."""
    environment = script(tmp_path, "systemctl", 'echo $$ >"${0%/*}/pid"; exec /bin/sleep 60')
    holding = subprocess.Popen(
        command("apply.py"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        umask=0,
    )
    assert holding.stdin
    holding.stdin.write(json.dumps(job([["reload", True]], tmp_path / "lock", who="you@desk")))
    holding.stdin.close()
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 20
    while not (pid.exists() and pid.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.02)
    yield holding
    os.kill(int(pid.read_text()), signal.SIGKILL)  # what it was waiting for
    holding.kill()
    holding.wait()
    if holding.stdout:
        holding.stdout.close()


def test_a_second_deploy_is_refused(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """Promise 21: it is told who deploys and since when, and has done nothing."""
    steps: Steps = [["write", [file(tmp_path / "new")]]]
    done = remote("apply.py", job=job(steps, tmp_path / "lock"))
    assert done.keys() == {"busy"}
    assert re.fullmatch(r"you@desk since \d\d:\d\d:\d\d \S+", done["busy"])
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_the_lock_ends_with_its_holder(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """Promises 12 and 21: however it ends, and though what it had started goes on."""
    holder.kill()
    holder.wait()
    os.kill(int((tmp_path / "pid").read_text()), 0)
    steps: Steps = [["write", [file(tmp_path / "new")]]]
    assert remote("apply.py", job=job(steps, tmp_path / "lock")) == ALL_WRITTEN
    assert (tmp_path / "new").exists()


def test_a_second_deploy_waits(tmp_path: Path) -> None:
    """Promise 21: for as long as it was told. Who holds the lock without a word is somebody."""
    steps: Steps = [["write", [file(tmp_path / "new")]]]
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert remote("apply.py", job=job(steps, tmp_path / "lock")) == {"busy": "somebody"}
        release = threading.Timer(0.7, lambda: fcntl.flock(lock, fcntl.LOCK_UN))
        release.start()
        done = remote("apply.py", job=job(steps, tmp_path / "lock", patience=20))
        release.join()
    assert done == ALL_WRITTEN


@pytest.mark.parametrize("place", ["directory", "fifo", "link", "dangling"])
def test_something_else_than_a_lock(tmp_path: Path, place: str) -> None:
    """It is said, nothing is done, and what a link leads to stays as it was."""
    lock, other = tmp_path / "lock", tmp_path / "other"
    other.write_text("as it was")
    other.chmod(0o644)
    make: dict[str, Callable[[], object]] = {
        "directory": lock.mkdir,
        "fifo": lambda: os.mkfifo(lock),
        "link": lambda: lock.symlink_to(other),
        "dangling": lambda: lock.symlink_to(tmp_path / "nowhere"),
    }
    make[place]()
    steps: Steps = [["write", [file(tmp_path / "new")]]]
    done = remote("apply.py", job=job(steps, lock))
    assert done["failed"][0].startswith(f"cannot lock {lock}: ")
    assert not (tmp_path / "new").exists()
    assert (other.read_text(), other.stat().st_mode & 0o777) == ("as it was", 0o644)


def test_who_held_it_before_is_forgotten(tmp_path: Path) -> None:
    """Promise 21: a longer name leaves nothing behind."""
    (tmp_path / "lock").write_text("x" * 200)
    remote("apply.py", job=job([], tmp_path / "lock"))
    assert re.fullmatch(r"me@laptop since [^x]+\n", (tmp_path / "lock").read_text())


LOOK = "import json, sys; print(json.dumps({'basis': open(json.loads(sys.argv[1])).read()}))"
"""A look at a VPS that consists of one file."""


def looking(tmp_path: Path, basis: str) -> dict[str, object]:
    return {"observe": LOOK, "question": str(tmp_path / "vps"), "basis": basis}


def test_another_vps_than_was_looked_at(tmp_path: Path) -> None:
    """Promise 21: nothing is done, and what is seen instead is the answer."""
    (tmp_path / "vps").write_text("other")
    steps: Steps = [["write", [file(tmp_path / "new")]], ["reload", True]]
    assert apply(steps, looking(tmp_path, "as it was")) == {"other": {"basis": "other"}}
    assert not (tmp_path / "new").exists()


def test_units_that_never_stay_as_they_are(tmp_path: Path) -> None:
    """Promise 21: where relays end and start all the time, the files alone can be asked for."""
    (tmp_path / "vps").write_text("files units")
    steps: Steps = [["write", [file(tmp_path / "new")]]]
    assert "done" in apply(steps, looking(tmp_path, "files"))
    assert "other" in apply(steps, looking(tmp_path, "files otherwise"))


def test_the_vps_that_was_looked_at(tmp_path: Path) -> None:
    """Promise 21: it is done, and what is seen at the end is of the same run."""
    (tmp_path / "vps").write_text("as it was")
    steps: Steps = [["write", [file(tmp_path / "vps", "as declared")]]]
    done = apply(steps, looking(tmp_path, "as it was"))
    assert done == {**ALL_WRITTEN, "seen": {"basis": "as declared"}}


def test_a_look_is_made_after_a_failure_too(tmp_path: Path) -> None:
    """It is known what came of a deploy that was cut off by a failure."""
    (tmp_path / "vps").write_text("as it was")
    done = apply([["reload", True]], looking(tmp_path, "as it was"), env={"PATH": "/nonexistent"})
    assert done["seen"] == {"basis": "as it was"}
    assert done["failed"]


def test_it_knows_no_name_of_ours() -> None:
    """It is told all it does; but for the directories that are made for our files."""
    source = source_of("apply.py").replace('"/home-forwarder")', "")
    for name in ("home-", "socat", "nginx", "/etc/", "/usr/"):
        assert name not in source
