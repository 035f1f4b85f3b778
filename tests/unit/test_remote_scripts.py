# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs that a deploy sends to a VPS, run for real, in a directory of their own."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from unit_samples import REPO

from home_forwarder.compare import Observed
from home_forwarder.plan import OWNED_FILES, OWNED_UNITS, UNFINISHED

REMOTE = REPO / "operations" / "remote"
USER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name


def source_of(name: str, old: str = "", new: str = "") -> str:
    """The program, with one of its settings changed."""
    source = (REMOTE / name).read_text(encoding="utf-8")
    assert old in source
    return source.replace(old, new) if old else source


def remote(
    name: str,
    *arguments: str,
    job: object = None,
    change: tuple[str, str] = ("", ""),
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """As operations/system.py and operations/facts.py start it."""
    return subprocess.run(
        [sys.executable, "-IS", "-c", source_of(name, *change), *arguments],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **options,
    )


def install(
    write: list[dict[str, str]] | None = None, remove: list[Path] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    job = {"write": write or [], "remove": [str(path) for path in remove or []]}
    return remote("install.py", job=job, **options)


def file(path: Path, content: str = "new\n", mode: str = "644") -> dict[str, str]:
    return {"path": str(path), "content": content, "mode": mode, "owner": USER, "group": GROUP}


def link(path: Path, target: str = "/dev/null") -> dict[str, str]:
    return {"path": str(path), "target": target}


def snapshot(root: Path) -> dict[str, tuple[int, str]]:
    """Every path below root, with its mode and its content or target."""
    found = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        text = path.readlink().as_posix() if path.is_symlink() else ""
        if stat.S_ISREG(mode):
            text = path.read_text()
        found[str(path.relative_to(root))] = (mode, text)
    return found


def test_suffix_is_known_to_the_plan() -> None:
    """Promise 12: what a deploy that was cut off left is found, and deleted, by the next one."""
    assert f'SUFFIX = "{UNFINISHED}"' in source_of("install.py")


def test_write(tmp_path: Path) -> None:
    text = 'ünïcode 🏠 and \\ "quotes" $HOME `id`\r\nlast line without an end'
    done = install(
        [
            file(tmp_path / "a", text),
            file(tmp_path / "deep" / "er" / "b", "#!/bin/sh\n", "755"),
            file(tmp_path / "c", "", "600"),
            link(tmp_path / "x.wants" / "unit", "/etc/unit"),
        ]
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
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
    assert install([file(tmp_path / "lib" / "relay", mode="755")], umask=0o077).returncode == 0
    assert (tmp_path / "lib").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "lib" / "relay").stat().st_mode & 0o777 == 0o755


def test_replace(tmp_path: Path) -> None:
    """Whole, by a rename: who has the old file open reads on in it."""
    for name in ("file", "other"):
        (tmp_path / name).write_text("old\n")
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "dangling").symlink_to("nowhere")
    with (tmp_path / "file").open() as reader:
        done = install(
            [
                file(tmp_path / "file"),
                file(tmp_path / "link"),
                link(tmp_path / "other", "target"),
                link(tmp_path / "dangling", "target"),
            ]
        )
        assert done.returncode == 0
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
    assert install([file(tmp_path / "a"), file(tmp_path / "b")]).returncode == 0
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
    write = [file(tmp_path / "a"), link(tmp_path / "b")]
    write.insert(position, file(bad))
    done = install(write)
    assert done.returncode != 0
    assert done.stderr.startswith("home-forwarder: cannot write the files: ")
    assert done.stderr.count("\n") == 1
    assert snapshot(tmp_path) == before


def test_full_disk(tmp_path: Path) -> None:
    """Promise 12: as above, in the middle of a file."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("old\n")
    before = snapshot(tmp_path)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    source = source_of("install.py")
    job = {"write": [file(tmp_path / "a"), file(tmp_path / "b", "x" * 5000)], "remove": []}
    done = subprocess.run(
        [sys.executable, "-IS", "-c", limit + source],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "cannot write the files" in done.stderr
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
    done = install(remove=[*gone, tmp_path / "never" / "there"])
    assert (done.returncode, done.stderr) == (0, "")
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
    assert install(remove=[tmp_path / "link"]).returncode == 0
    assert set(snapshot(tmp_path)) == {"outside", "outside/x"}


# ---- observe.py --------------------------------------------------------------------------------


def test_observe() -> None:
    """JSON that Observed takes, on any machine."""
    done = remote("observe.py", OWNED_FILES, OWNED_UNITS)
    assert (done.returncode, done.stderr) == (0, "")
    seen = Observed.from_json(json.loads(done.stdout))
    assert seen.python == sys.version_info[:2]
    assert seen.root is (os.geteuid() == 0)


def test_observe_without_any_tool() -> None:
    """No systemctl, ss, dpkg-query or rpm: what can be said is said, and a deploy says the rest."""
    done = remote("observe.py", OWNED_FILES, OWNED_UNITS, env={"PATH": "/nonexistent"})
    assert (done.returncode, done.stderr) == (0, "")
    seen = Observed.from_json(json.loads(done.stdout))
    assert (dict(seen.units), seen.listeners, seen.packages) == ({}, (), ())


def tools(directory: Path, **outputs: str) -> dict[str, str]:
    """An environment in which some tools say what is given; nothing else is there."""
    for name, output in outputs.items():
        path = directory / name.replace("_", "-")
        (directory / f"{name}.txt").write_text(output)
        path.write_text(
            f'#!/bin/sh\nwhile IFS= read -r l; do printf "%s\\n" "$l"; done <{name}.txt\n'
        )
        path.chmod(0o755)
    return {"PATH": str(directory)}


def test_observe_units_and_listeners(tmp_path: Path) -> None:
    """What systemctl and ss print, as Debian 12 and 13 have them."""
    states = {
        "home-tcpforwarder@0:80.service": ("loaded", "active", "exited"),
        "home-tcpforwarders.service": ("not-found", "failed", "failed"),
        "home-assistant.service": ("loaded", "active", "running"),
    }
    listed = [
        {"unit": name, "load": load, "active": active, "sub": sub, "description": "home"}
        for name, (load, active, sub) in states.items()
    ]
    sockets = (
        'tcp LISTEN 0 512        *:80     *:* users:(("socat",pid=999999999,fd=5))\n'
        "tcp LISTEN 0 4096 127.0.0.53%lo:53 0.0.0.0:*\n"
        'udp UNCONN 0 0  [fe80::1]%eth0:546 [::]:* users:(("a b",pid=999999999,fd=1))\n'
    )
    list_units = f"{json.dumps(listed)}\n"
    environment = tools(tmp_path, systemctl=list_units, ss=sockets, rpm="python3\nsocat\n")
    done = remote("observe.py", OWNED_FILES, OWNED_UNITS, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    seen = Observed.from_json(json.loads(done.stdout))
    assert seen.units.keys() == {"home-tcpforwarder@0:80.service", "home-tcpforwarders.service"}
    group = seen.units["home-tcpforwarders.service"]
    assert group == {
        "LoadState": "not-found",
        "ActiveState": "failed",
        "SubState": "failed",
        "Runs": False,
        "Revision": "",
        "HomeAddress": "",
    }
    assert [
        (each["protocol"], each["address"], each["port"], each["program"])
        for each in seen.listeners
    ] == [
        ("tcp", "*", 80, "socat"),
        ("tcp", "127.0.0.53%lo", 53, ""),
        ("udp", "[fe80::1]%eth0", 546, "a b"),
    ]
    assert seen.packages == ("python3", "socat")


def test_observe_packages_of_debian(tmp_path: Path) -> None:
    """A package that was removed, but not purged, is not installed."""
    environment = tools(tmp_path, dpkg_query="installed python3\nconfig-files socat\n")
    done = remote("observe.py", OWNED_FILES, OWNED_UNITS, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["packages"] == ["python3"]


def test_observe_files(tmp_path: Path) -> None:
    """Files, links and what is neither; what is not ours is not looked at."""
    units = tmp_path / "units"
    (units / "x.target.wants").mkdir(parents=True)
    (units / "home-tcpforwarder@.service").write_text("text")
    (units / "home-tcpforwarder@.service").chmod(0o640)
    (units / "home-assistant.service").write_text("not ours")
    (units / "x.target.wants" / "home-notifier.path").symlink_to("/x")
    (units / "home-forwarders.service").mkdir()
    ours = OWNED_FILES.replace("/etc/systemd/system", str(units))
    done = remote("observe.py", ours, OWNED_UNITS, change=("/etc/systemd/system", str(units)))
    assert done.returncode == 0, done.stderr
    files = {
        path.removeprefix(f"{units}/"): entry
        for path, entry in json.loads(done.stdout)["files"].items()
        if path.startswith(str(units))
    }
    owned = {"owner": USER, "group": GROUP}
    assert files.keys() == {
        "home-tcpforwarder@.service",
        "x.target.wants/home-notifier.path",
        "home-forwarders.service",
    }
    assert files["home-tcpforwarder@.service"] == {
        **owned,
        "unread": True,  # as far as can be said without systemctl
        "mode": "640",
        "sha256": hashlib.sha256(b"text").hexdigest(),
    }
    assert files["x.target.wants/home-notifier.path"]["target"] == "/x"
    assert "sha256" not in files["home-forwarders.service"]


# ---- wait.py -----------------------------------------------------------------------------------


def test_wait_ends_as_soon_as_all_listen() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        relays = [
            {"unit": "t.service", "protocol": "tcp", "port": tcp.getsockname()[1]},
            {"unit": "u.service", "protocol": "udp", "port": udp.getsockname()[1]},
        ]
        started = time.monotonic()
        done = remote("wait.py", job=relays)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started < 3


def test_wait_is_patient_while_more_come_up() -> None:
    """Hundreds of relays on a small VPS take longer than SECONDS, each of them not."""
    short = ("SECONDS = 5.0", "SECONDS = 1.5")
    sockets = [socket.socket() for _ in range(4)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))

    def start_one_by_one() -> None:
        for each in sockets:
            time.sleep(0.7)
            each.listen()

    relays = [
        {"unit": "t.service", "protocol": "tcp", "port": each.getsockname()[1]} for each in sockets
    ]
    starting = threading.Thread(target=start_one_by_one)
    starting.start()
    done = remote("wait.py", job=relays, change=short)
    starting.join()
    for each in sockets:
        each.close()
    assert (done.returncode, done.stderr) == (0, "")


def test_wait_without_relays() -> None:
    assert remote("wait.py", job=[]).returncode == 0


def test_wait_says_who_does_not_listen(tmp_path: Path) -> None:
    """A socket that is bound and does not listen is none; the journal's last line is the reason."""
    short = ("SECONDS = 5.0", "SECONDS = 0.3")
    with socket.socket() as bound, socket.create_server(("127.0.0.1", 0)) as tcp:
        bound.bind(("127.0.0.1", 0))
        relays = [
            {"unit": "deaf.service", "protocol": "tcp", "port": bound.getsockname()[1]},
            {"unit": "fine.service", "protocol": "tcp", "port": tcp.getsockname()[1]},
        ]
        environment = tools(tmp_path, journalctl="Address already in use\n")
        done = remote("wait.py", job=relays, change=short, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "deaf.service does not listen: Address already in use\n"
