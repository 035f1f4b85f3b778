# SPDX-License-Identifier: GPL-3.0-or-later
"""One whole lab: brought up, used, and taken down without a trace."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from lab.cgroups import ROOT as CGROUP_ROOT
from lab.cgroups import V1_HIERARCHIES, Cgroup
from lab.errors import LabError
from lab.home import Home, home_address
from lab.host import Host, Operator, PlainHost, Site
from lab.image import DNS_RELEASE, Image
from lab.mounts import unmount_below
from lab.nameserver import NameServer
from lab.network import INTERNET
from lab.owner import (
    STATE,
    end_with_this_process,
    forget,
    is_orphan,
    mark_of,
    names,
    owner_of,
    state_lock,
    write_owner,
)
from lab.processes import end, marked
from lab.vps import DISK, Vps, forget_machine

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

_name = re.compile(r"[a-z](?:[a-z0-9-]{0,13}[a-z0-9])?")


def check_prerequisites() -> None:
    """A lab can run here: Linux, root, and a few commands. Raises: LabError if not."""
    if sys.platform != "linux":
        raise LabError("The lab needs Linux: its hosts are network namespaces and containers.")
    if os.geteuid() != 0:
        raise LabError("The lab needs root: run it with sudo.")
    missing = [command for command in COMMANDS if not shutil.which(command)]
    if missing:
        packages = " ".join(sorted({COMMANDS[command] for command in missing}))
        raise LabError(f"The lab needs {', '.join(missing)}: sudo apt-get install --yes {packages}")


class Lab:
    """A lab with VPSes, homes, two clients, an operator and DNS.

    Use it in a `with` block, or call `up` and `down`.

    name: lower-case letters, digits and hyphens; labs with different names do not see each other
    vpses: the release of each VPS by name
    homes: names of the homes
    stay: keep it up after the end of this process
    say: called with one line of progress at a time; prints to stderr by default
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
        """The host with this name. Raises: LabError, which says which there are."""
        try:
            return self.hosts[name]
        except KeyError:
            raise LabError(
                f"There is no host «{name}» in lab {self.name}; it has {', '.join(self.hosts)}."
            ) from None

    def inside(self, host: str) -> contextlib.AbstractContextManager[None]:
        """Put the calling thread into the network of `host` for the length of a `with` block."""
        return self.host(host).inside()

    # ---- Up ----------------------------------------------------------------------------------

    def __enter__(self) -> Lab:
        return self.up()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    def up(self) -> Lab:
        """Bring everything up and wait until it works; clean up after a killed run first.

        Raises: LabError.
        """
        check_prerequisites()
        for release in self._wanted_vpses.values():
            Image(release)  # complains about an unknown one before anything is done
        for name in (*self._wanted_vpses, *self._wanted_homes):
            _check_name("host", name)
        for release in {DNS_RELEASE, *self._wanted_vpses.values()}:
            Image(release, self._say).build()
        with state_lock():
            _remove_orphans()
            if self.site.directory.exists():
                owner = owner_of(self.site.directory)
                by = f", started by process {owner.pid}" if owner else ""
                raise LabError(
                    f"Lab {self.name} is up already{by}; "
                    f"«python -m lab down --name {self.name}» ends it."
                )
            remove(self.name)  # what is left if somebody has deleted the state directory
            for name in ("processes", "hosts", "logs", "ssh", "vps"):
                (self.site.directory / name).mkdir(parents=True)
            write_owner(self.site.directory, self.site.mark, owned=True)
        end_with_this_process(self.down)
        try:
            self._create_hosts()
        except BaseException:
            self.down()
            raise
        if self._stay:
            write_owner(self.site.directory, self.site.mark, owned=False)
            forget(self.down)
        return self

    def _create_hosts(self) -> None:
        self.site.network.create()
        self.operator.create()
        for host in (self.dns, self.operator, self.client, self.client6):
            self.site.network.attach(host.name, host.addresses)
            self._configure(host)
        self.dns.start()
        for name in self._wanted_homes:
            self.add_home(name)
        if self._wanted_vpses:
            self.add_vpses(self._wanted_vpses)

    def _configure(self, host: Host) -> None:
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
            # See home_address: from 2001:db8:a000::/48 to 2001:db8:afff::/48.
            number = next(n for n in range(4096) if n not in {h.number for h in self.home.values()})
            home = Home(self.site, name, [home_address(number, 1)], self.dns, number)
            self.home[name] = home
            self.site.network.attach(name, home.addresses)
            self._configure(home)
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
        disk: int = DISK,
        wait: str = "boot",
    ) -> Vps:
        """Add a VPS and boot it.

        release: "bookworm" or "trixie"
        prepare: called with its root directory before it boots, to change what is to be there
        packages: installed before it boots (once, then kept in a layer of the image)
        memory: limit in bytes; see Vps
        disk: size in MiB
        wait: "boot", "ssh", "no" as in Vps.start, or "off" to leave it switched off

        Raises: LabError.
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

    def _reserve(self, name: str, release: str, memory: int | None = None, disk: int = DISK) -> Vps:
        """Give a new VPS its name and addresses."""
        with self._lock:
            self._check_new(name)
            used = {vps.ipv4 for vps in self.vps.values()}
            # The last part of both its addresses; a /24 ends with 254.
            number = next(n for n in range(10, 255) if f"203.0.113.{n}" not in used)
            addresses = [f"203.0.113.{number}", f"2001:db8:f::{number}"]
            vps = Vps(self.site, name, addresses, self.operator, release, memory, disk)
            vps.introduce = self._introduce  # it may have made new host keys, as cloud-init does
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
            self._introduce()
            if wait != "off":
                vps.start(wait)
        except BaseException:
            self.remove_vps(vps.name)
            raise

    def remove_vps(self, name: str) -> None:
        """Remove a VPS with its disk. Raises: LabError if there is none of this name."""
        vps = self.vps.get(name)
        if vps is None:
            raise LabError(f"There is no VPS «{name}» in lab {self.name}.")
        vps.remove()
        unmount_below(vps.directory)
        shutil.rmtree(vps.directory, ignore_errors=True)
        (self.site.directory / "hosts" / f"{name}.json").unlink(missing_ok=True)
        with self._lock:
            self.vps.pop(name, None)
        self._introduce()

    def _introduce(self) -> None:
        """Introduce the VPSes to ssh and to the plain hosts: names, addresses, host keys."""
        with self._lock:
            vpses = self.vps.items()
            known = {n: (v.addresses, v.host_key) for n, v in vpses if v.has_host_key}
            self.operator.introduce(known)
            for host in self.hosts.values():
                file = Path("/etc/netns") / host.namespace / "hosts"
                if file.exists():  # written in place: it is mounted where programs run
                    self._write_hosts(host, file)

    def _check_new(self, name: str) -> None:
        _check_name("host", name)
        if name in self.hosts or name in RESERVED:
            raise LabError(f"Lab {self.name} has something called «{name}» already.")

    # ---- From another process ----------------------------------------------------------------

    @classmethod
    def attach(cls, name: str = "lab") -> Lab:
        """The lab that another process has brought up. Raises: LabError if it is not up."""
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
            vps.introduce = self._introduce
            self.vps[name] = vps
        else:
            self.home[name] = Home(self.site, name, dns=self.dns, **facts)

    # ---- Down --------------------------------------------------------------------------------

    def down(self) -> None:
        """Remove everything the lab has on this machine; nothing happens if it is not up."""
        with state_lock():
            remove(self.name)
        self.site.reap()
        self.vps.clear()
        self.home.clear()
        forget(self.down)


def remove_by_name(name: str) -> bool:
    """Remove a lab that another process has brought up. Returns: whether there was one."""
    _check_name("lab", name)
    with state_lock():
        existed = (STATE / name).is_dir()
        remove(name)
    return existed


def remove(name: str) -> None:
    """Remove what lab `name` has on this machine, whoever started it and however it ended."""
    directory = STATE / name
    site = Site(name, directory, mark_of(directory))
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


def _remove_orphans() -> None:
    """Remove the labs whose owner was killed."""
    for name in names():
        if is_orphan(name):
            remove(name)


def _check_name(what: str, name: str) -> None:
    if not _name.fullmatch(name):
        raise LabError(
            f"«{name}» cannot be the name of a {what}: a lower-case letter, then at most 14 "
            "lower-case letters, digits and hyphens, no hyphen last."
        )
