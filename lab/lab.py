# SPDX-License-Identifier: GPL-3.0-or-later
"""One whole lab: brought up, used, and taken down without a trace."""

import atexit
import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType

from lab.cgroups import ROOT as CGROUP_ROOT
from lab.cgroups import V1_HIERARCHIES, Cgroup
from lab.errors import LabError
from lab.home import Home, home_address
from lab.host import Host, Operator, PlainHost, Site
from lab.image import DNS_RELEASE, Image
from lab.mounts import unmount_below
from lab.nameserver import NameServer
from lab.network import INTERNET
from lab.processes import Process, end, marked
from lab.vps import Vps, forget_machine

STATE = Path("/run/home-forwarder-lab")
BOOTS_AT_ONCE = 2
"""Booting takes seconds of processor time; more at once only makes all of them late."""

COMMANDS = {
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "nft": "nftables",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
"""What the lab calls, and the Debian package that has it."""

DNS_ADDRESSES = ("192.0.2.53", "2001:db8::53", "192.0.2.54", "2001:db8::54")
OPERATOR_ADDRESSES = ("192.0.2.2", "2001:db8::2")
CLIENT_ADDRESSES = ("198.51.100.10",)
CLIENT6_ADDRESSES = ("198.51.100.16", "2001:db8:c::16")
RESERVED = (INTERNET, "bridge", "lo")

_name = re.compile(r"[a-z][a-z0-9-]{0,14}")


def check_prerequisites() -> None:
    """Raise LabError unless a lab can run here: Linux, root, and a few commands."""
    if sys.platform != "linux":
        raise LabError("The lab needs Linux: its hosts are network namespaces and containers.")
    if os.geteuid() != 0:
        raise LabError("The lab needs root: run it with sudo.")
    missing = [command for command in COMMANDS if not shutil.which(command)]
    if missing:
        packages = " ".join(sorted({COMMANDS[command] for command in missing}))
        raise LabError(f"The lab needs {', '.join(missing)}: sudo apt-get install --yes {packages}")


@dataclass(frozen=True)
class Owner:
    """The process that a lab ends with; None in its place if it is to stay."""

    pid: int
    start: int


class Lab:
    """A lab with VPSes, homes, two clients, an operator and DNS.

    Use it in a `with` block, or call `up` and `down`.

    + name: lower-case letters, digits and hyphens; labs with different names do not see each other
    + vpses: the release of each VPS by name
    + homes: names of the homes
    + stay: keep it up after the end of this process
    + say: called with one line of progress at a time; prints to stderr by default
    """

    def __init__(
        self,
        name: str = "lab",
        *,
        vpses: Mapping[str, str] | None = None,
        homes: Sequence[str] = ("home0",),
        stay: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        _check_name("lab", name)
        self.name = name
        self._wanted_vpses = dict(vpses or {})
        self._wanted_homes = list(homes)
        self._stay = stay
        self._say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self._lock = threading.RLock()
        self._build(mark=f"{name}-{secrets.token_hex(8)}")

    def _build(self, mark: str) -> None:
        """Make the objects; nothing happens on the machine."""
        self.site = Site(self.name, STATE / self.name, mark)
        self.operator = Operator(self.site, "operator", OPERATOR_ADDRESSES)
        self.dns = NameServer(self.site, "dns", DNS_ADDRESSES)
        self.client = PlainHost(self.site, "client", CLIENT_ADDRESSES)
        self.client6 = PlainHost(self.site, "client6", CLIENT6_ADDRESSES)
        self.vps: dict[str, Vps] = {}
        self.home: dict[str, Home] = {}

    @property
    def hosts(self) -> dict[str, Host]:
        """Every host by its name."""
        fixed = (self.dns, self.operator, self.client, self.client6)
        return {host.name: host for host in (*fixed, *self.vps.values(), *self.home.values())}

    def host(self, name: str) -> Host:
        """Return the host with this name; LabError says which there are."""
        try:
            return self.hosts[name]
        except KeyError:
            raise LabError(
                f"There is no host «{name}» in lab {self.name}; it has {', '.join(self.hosts)}."
            ) from None

    def inside(self, host: str) -> contextlib.AbstractContextManager[None]:
        """Put the calling thread into the network of `host` for the length of a `with` block."""
        return self.host(host).inside()

    # Up

    def __enter__(self) -> "Lab":
        return self.up()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    def up(self) -> "Lab":
        """Bring everything up and wait until it works; clean up after a killed run first."""
        check_prerequisites()
        for release in self._wanted_vpses.values():
            Image(release)  # complains about an unknown one before anything is done
        for name in (*self._wanted_vpses, *self._wanted_homes):
            _check_name("host", name)
        for release in {DNS_RELEASE, *self._wanted_vpses.values()}:
            Image(release, self._say).build()
        with _state_lock():
            _remove_orphans()
            if self.site.directory.exists():
                owner = _owner(self.site.directory)
                by = f", started by process {owner.pid}" if owner else ""
                raise LabError(
                    f"Lab {self.name} is up already{by}; "
                    f"«python -m lab down --name {self.name}» ends it."
                )
            remove(self.name)  # what is left if somebody has deleted the state directory
            for name in ("processes", "hosts", "logs", "ssh", "vps"):
                (self.site.directory / name).mkdir(parents=True)
            self._write_state(owned=True)
        _end_with_this_process(self)
        try:
            self._create_hosts()
        except BaseException:
            self.down()
            raise
        if self._stay:
            self._write_state(owned=False)
            _forget(self)
        return self

    def _write_state(self, owned: bool) -> None:
        """Write down whose lab it is; while it is being made it has an owner in any case."""
        owner = Process.of(os.getpid()) if owned else None
        facts = {
            "owner": asdict(Owner(owner.pid, owner.start)) if owner else None,
            "mark": self.site.mark,
        }
        new = self.site.directory / "lab.new"
        new.write_text(json.dumps(facts))
        new.rename(self.site.directory / "lab.json")

    def _create_hosts(self) -> None:
        self.site.network.create()
        self.operator.create()
        for host in (self.dns, self.operator, self.client, self.client6):
            self.site.network.attach(host.name, host.addresses)
            self._introduce(host)
        self.dns.start()
        for name in self._wanted_homes:
            self.add_home(name)
        if self._wanted_vpses:
            self.add_vpses(self._wanted_vpses)

    def _introduce(self, host: Host) -> None:
        """Give a plain host its resolv.conf and hosts file; `ip netns exec` puts them in place."""
        directory = Path("/etc/netns") / host.namespace
        directory.mkdir(parents=True, exist_ok=True)
        ipv6_only = not any("." in address for address in host.addresses)
        resolver = self.dns.resolver_addresses[1 if ipv6_only else 0]
        (directory / "resolv.conf").write_text(f"nameserver {resolver}\n")
        self._write_hosts(host, directory / "hosts")

    def _write_hosts(self, host: Host, file: Path) -> None:
        """Name the VPSes, with addresses of the families that `host` has."""
        lines = ["127.0.0.1 localhost", "::1 localhost"]
        for mark in ".:":
            if any(mark in address for address in host.addresses):
                for vps in self.vps.values():
                    lines += [f"{a} {vps.name}" for a in vps.addresses if mark in a]
        file.write_text("".join(f"{line}\n" for line in lines))

    def add_home(self, name: str) -> Home:
        """Add a home with an address and a name in DNS."""
        with self._lock:
            self._check_new(name)
            number = next(n for n in range(4096) if n not in {h.number for h in self.home.values()})
            home = Home(self.site, name, [home_address(number, 1)], self.dns, number)
            self.home[name] = home
            self.site.network.attach(name, home.addresses)
            self._introduce(home)
        home.save()
        home.publish()
        return home

    def add_vps(
        self,
        name: str,
        release: str = "trixie",
        *,
        prepare: Callable[[Path], None] | None = None,
        packages: Sequence[str] = (),
        memory: int | None = None,
        disk: int = 4096,
        wait: str = "boot",
    ) -> Vps:
        """Add a VPS and boot it.

        + release: "bookworm" or "trixie"
        + prepare: called with its root directory before it boots, to change what is to be there
        + packages: installed before it boots (once, then kept in a layer of the image)
        + memory: limit in bytes; + disk: size in MiB; see Vps
        + wait: "boot", "ssh", "no" as in Vps.start, or "off" to leave it switched off
        """
        vps = self._reserve(name, release, memory, disk)
        self._make(vps, prepare, packages, wait)
        return vps

    def add_vpses(self, releases: Mapping[str, str]) -> None:
        """Add several VPSes, two at a time; their addresses follow the order given."""
        vpses = [self._reserve(*item) for item in releases.items()]
        with ThreadPoolExecutor(BOOTS_AT_ONCE) as pool:
            futures = [pool.submit(self._make, vps) for vps in vpses]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _reserve(self, name: str, release: str, memory: int | None = None, disk: int = 4096) -> Vps:
        """Give a new VPS its name and addresses."""
        with self._lock:
            self._check_new(name)
            used = {vps.ipv4 for vps in self.vps.values()}
            number = next(n for n in range(10, 255) if f"203.0.113.{n}" not in used)
            addresses = [f"203.0.113.{number}", f"2001:db8:f::{number}"]
            vps = Vps(self.site, name, addresses, self.operator, release, memory, disk)
            vps.when_up = self._make_known  # it may have made new host keys, as cloud-init does
            self.vps[name] = vps
        facts = {"addresses": addresses, "release": release, "memory": memory, "disk": disk}
        self.site.save(name, {"kind": "vps", **facts})
        return vps

    def _make(
        self,
        vps: Vps,
        prepare: Callable[[Path], None] | None = None,
        packages: Sequence[str] = (),
        wait: str = "boot",
    ) -> None:
        """Make the disk of a VPS and boot it; remove it if that fails."""
        try:
            vps.create(self.dns.resolver_addresses[:1], prepare, packages)
            self._make_known()
            if wait != "off":
                vps.start(wait)
        except BaseException:
            self.remove_vps(vps.name)
            raise

    def remove_vps(self, name: str) -> None:
        """Remove a VPS with its disk; LabError if there is none of this name."""
        vps = self.vps.get(name)
        if vps is None:
            raise LabError(f"There is no VPS «{name}» in lab {self.name}.")
        vps.remove()
        unmount_below(vps.directory)
        shutil.rmtree(vps.directory, ignore_errors=True)
        (self.site.directory / "hosts" / f"{name}.json").unlink(missing_ok=True)
        with self._lock:
            self.vps.pop(name, None)
        self._make_known()

    def _make_known(self) -> None:
        """Tell ssh and the plain hosts which VPSes there are."""
        with self._lock:
            vpses = self.vps.items()
            self.operator.know({n: (v.addresses, v.host_key) for n, v in vpses if v.has_host_key})
            for host in self.hosts.values():
                file = Path("/etc/netns") / host.namespace / "hosts"
                if file.exists():  # written in place: it is mounted where programs run
                    self._write_hosts(host, file)

    def _check_new(self, name: str) -> None:
        _check_name("host", name)
        if name in self.hosts or name in RESERVED:
            raise LabError(f"Lab {self.name} has something called «{name}» already.")

    # From another process

    @classmethod
    def attach(cls, name: str = "lab") -> "Lab":
        """Return the lab that another process has brought up; LabError if it is not up."""
        check_prerequisites()
        lab = cls(name)
        try:
            lab._build(mark=json.loads((STATE / name / "lab.json").read_text())["mark"])
            for file in sorted((STATE / name / "hosts").glob("*.json")):
                lab._restore(file.stem)
        except (OSError, ValueError):
            raise LabError(
                f"Lab {name} is not up; «python -m lab up --name {name}» starts it."
            ) from None
        return lab

    def _restore(self, name: str) -> None:
        """Make the object of a VPS or home from what was saved."""
        facts = self.site.load(name)
        if facts.pop("kind") == "vps":
            vps = Vps(self.site, name, operator=self.operator, **facts)
            vps.when_up = self._make_known
            self.vps[name] = vps
        else:
            self.home[name] = Home(self.site, name, dns=self.dns, **facts)

    # Down

    def down(self) -> None:
        """Remove everything the lab has on this machine; nothing happens if it is not up."""
        with _state_lock():
            remove(self.name)
        self.site.reap()
        self.vps.clear()
        self.home.clear()
        _forget(self)


def remove_by_name(name: str) -> bool:
    """Remove a lab that another process has brought up; return whether there was one."""
    _check_name("lab", name)
    with _state_lock():
        existed = (STATE / name).is_dir()
        remove(name)
    return existed


def names() -> list[str]:
    """Return the names of the labs that are up, or left by a killed run."""
    if not STATE.is_dir():
        return []
    return sorted(path.name for path in STATE.iterdir() if path.is_dir())


def remove(name: str) -> None:
    """Remove what lab `name` has on this machine, whoever started it and however it ended."""
    directory = STATE / name
    site = Site(name, directory, _mark(directory))
    # The keepers first, so that nothing is started again; then all others.
    recorded = site.ledger.all() if directory.is_dir() else []
    end([process for process in recorded if process.what.endswith("keeper")], grace=0)
    for cgroup in _cgroups(site.network.prefix):
        cgroup.remove()
    end(recorded, grace=0)
    if site.mark:
        end(marked(site.mark), grace=0)
    site.network.remove()
    forget_machine(f"{site.network.prefix}*")
    for path in Path("/etc/netns").glob(f"{site.network.prefix}*"):
        shutil.rmtree(path)
    unmount_below(directory)
    if directory.is_dir():
        shutil.rmtree(directory)
    for parent in (STATE, Path("/etc/netns")):
        with contextlib.suppress(OSError):
            parent.rmdir()


def _cgroups(prefix: str) -> list[Cgroup]:
    tops = [CGROUP_ROOT, *(CGROUP_ROOT / name for name in V1_HIERARCHIES)]
    found = {path.name for top in tops if top.is_dir() for path in top.glob(f"{prefix}*")}
    return [Cgroup(name) for name in sorted(found)]


def _mark(directory: Path) -> str:
    try:
        return str(json.loads((directory / "lab.json").read_text())["mark"])
    except (OSError, ValueError, KeyError):
        return ""


def _owner(directory: Path) -> Owner | None:
    """Return the owner of the lab in `directory`; None if it is to stay."""
    try:
        owner = json.loads((directory / "lab.json").read_text())["owner"]
        return Owner(**owner) if owner else None
    except (OSError, ValueError, KeyError, TypeError):
        return Owner(0, 0)  # killed while it was being made


def is_orphan(name: str) -> bool:
    """Return whether the owner of lab `name` was killed; False if there is no such lab."""
    directory = STATE / name
    owner = _owner(directory)
    return directory.is_dir() and bool(owner and not Process(owner.pid, owner.start).alive)


def _remove_orphans() -> None:
    """Remove the labs whose owner was killed."""
    for name in names():
        if is_orphan(name):
            remove(name)


def _check_name(what: str, name: str) -> None:
    if not _name.fullmatch(name):
        raise LabError(
            f"«{name}» cannot be the name of a {what}: a lower-case letter, then at most 14 "
            "lower-case letters, digits and hyphens."
        )


@contextlib.contextmanager
def _state_lock() -> Iterator[None]:
    """Let one process at a time make or remove labs; leaves no file behind."""
    path = STATE.with_suffix(".lock")
    while True:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                # Whoever had it before has removed it: what we hold is no longer the lock.
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    try:
                        yield
                    finally:
                        path.unlink(missing_ok=True)
                    return


# Labs end with the process that owns them, also when it is told to terminate.

_owned: list[Lab] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP; as an interrupt it leaves `with` blocks and test fixtures properly."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def leave_in_order_when_terminated() -> None:
    """Raise Terminated in the main thread at SIGTERM and SIGHUP, unless somebody handles them."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _terminate)


def _end_with_this_process(lab: Lab) -> None:
    if not _owned:
        atexit.register(_down_all, os.getpid())
    leave_in_order_when_terminated()
    _owned.append(lab)


def _forget(lab: Lab) -> None:
    if lab in _owned:
        _owned.remove(lab)


def _down_all(pid: int) -> None:
    if os.getpid() != pid:
        return  # a fork that leaves by sys.exit() inherits our exit handlers, but owns no lab
    for lab in list(_owned):
        lab.down()
