# SPDX-License-Identifier: GPL-3.0-or-later
"""A VPS: a Debian system with systemd as PID 1 in systemd-nspawn.

Its disk is an overlay on the release's image with a tmpfs on top, so a clone takes no time and
one VPS that fills its disk does no harm to the others. A container's root is the machine's root:
this is a lab, no security boundary. What one does with it over ssh is in connection.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.cgroups import Cgroup
from lab.connection import Connection
from lab.errors import LabError
from lab.host import Host, Operator, Site, generate_key
from lab.image import Image
from lab.mounts import mount, overlay_options
from lab.processes import KILLED_WITHIN, Process, children, end

SSH_PORT = 22
BOOT_TIMEOUT = 90.0
"""Seconds; a boot takes 2 of an idle machine, and systemd itself gives a unit 90 to start or stop."""
DISK = 4096
"""MiB, as the smallest VPSes have; only what is written takes memory."""
PROBE_TIMEOUT = 0.3
"""Seconds for sshd's first words; while a VPS boots, a lost packet would take the kernel a second."""
REBOOTED = 133
"""Exit status of `systemd-nspawn --keep-unit` after a reboot inside; see its NEWS for 209."""

# systemd takes these signals as orders, see systemd(1).
SIGNAL_POWER_OFF = signal.SIGRTMIN + 4
SIGNAL_REBOOT = signal.SIGRTMIN + 5

# Keeps one VPS going: nspawn in the VPS's own control groups, again after each reboot. The rules
# of nftables live as long as the network namespace, but a real machine forgets them.
KEEPER = f"""
groups=$1 namespace=$2; shift 2
while :; do
    ip netns exec "$namespace" nft flush ruleset
    sh -c 'for group in $0; do echo $$ > "$group/cgroup.procs"; done; exec "$@"' "$groups" "$@"
    [ $? -eq {REBOOTED} ] || break
done
"""


class Vps(Host):
    """One VPS.

    release: "bookworm" (Debian 12) or "trixie" (Debian 13)
    memory: limit in bytes, None for none; what is written to the disk counts (it is a tmpfs)
    disk: size of the disk in MiB
    """

    ssh_port = SSH_PORT

    def __init__(
        self,
        site: Site,
        name: str,
        addresses: Sequence[str],
        operator: Operator,
        release: str,
        memory: int | None = None,
        disk: int = DISK,
    ) -> None:
        super().__init__(site, name, addresses)
        self.operator = operator
        self.release = release
        self.memory = memory
        self.disk = disk
        self.cgroup = Cgroup(self.namespace)
        self.introduce: Callable[[], None] = lambda: None
        """Called when sshd answers, before anything is done over ssh."""
        self._keeper: subprocess.Popen[bytes] | None = None
        self.connection = Connection(site, name, operator)
        # What one does with it all day.
        self.run, self.popen = self.connection.run, self.connection.popen
        self.read, self.write = self.connection.read, self.connection.write

    @property
    def ipv4(self) -> str:
        """Its IPv4 address."""
        return self.addresses[0]

    @property
    def ipv6(self) -> str:
        """Its IPv6 address."""
        return self.addresses[1]

    @property
    def directory(self) -> Path:
        """Where its disk is mounted."""
        return self.site.directory / "vps" / self.name

    @property
    def root(self) -> Path:
        """Its root directory, seen from outside; without what it has mounted itself."""
        return self.directory / "root"

    @property
    def host_key(self) -> str:
        """The public half of its ssh host key."""
        return " ".join(self._host_key_file.read_text().split()[:2])

    @property
    def has_host_key(self) -> bool:
        """Whether its host key exists already."""
        return self._host_key_file.exists()

    @property
    def _host_key_file(self) -> Path:
        return self.root / "etc/ssh/ssh_host_ed25519_key.pub"

    # ---- Its life ----------------------------------------------------------------------------

    def create(
        self,
        resolvers: Sequence[str],
        prepare: Callable[[Path], None] | None = None,
        packages: Sequence[str] = (),
    ) -> None:
        """Make the disk and the network, without booting.

        resolvers: the name servers in its resolv.conf
        prepare: called with its root directory when all else is there
        packages: installed on top of the image
        """
        layers = Image(self.release).layers(packages)
        self.site.network.attach(self.name, self.addresses)
        self.site.network.plug(self.name, connected=False)
        disk = self.directory / "disk"
        disk.mkdir(parents=True)
        mount("tmpfs", disk, f"size={self.disk}m,mode=755")
        for name in ("upper", "work"):
            (disk / name).mkdir()
        self.root.mkdir()
        mount("overlay", self.root, overlay_options(layers, disk))
        self._personalize(resolvers)
        if prepare:
            prepare(self.root)

    def _personalize(self, resolvers: Sequence[str]) -> None:
        """Give the clone what sets it apart: identity, names, keys."""
        etc = self.root / "etc"
        (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "hosts").write_text(
            "127.0.0.1 localhost\n"
            f"127.0.1.1 {self.name}\n"
            "::1 localhost ip6-localhost ip6-loopback\n"
        )
        (etc / "resolv.conf").unlink(missing_ok=True)
        (etc / "resolv.conf").write_text("".join(f"nameserver {a}\n" for a in resolvers))
        generate_key(etc / "ssh" / "ssh_host_ed25519_key", self.name)
        for home in (self.root / "root", self.root / "home" / "admin"):
            owner = home.stat()
            directory = home / ".ssh"
            directory.mkdir(mode=0o700, exist_ok=True)
            file = directory / "authorized_keys"
            file.write_text(self.operator.public_key)
            file.chmod(0o600)
            for path in (directory, file):
                os.chown(path, owner.st_uid, owner.st_gid)

    def start(self, wait: str = "boot") -> None:
        """Switch the VPS on.

        wait: "boot" until systemd has started everything, "ssh" until sshd answers, or "no"

        Raises: LabError if it does not come up.
        """
        if self.is_on:
            raise LabError(f"{self.name} is switched on already.")
        self.cgroup.create(self.memory)
        self.site.network.plug(self.name)
        with self.site.log(self.name).open("ab") as console:
            self._keeper = self.site.popen(
                ["sh", "-c", KEEPER, "keeper", " ".join(map(str, self.cgroup.paths))]
                + [self.namespace, *self._nspawn()],
                self._keeper_name,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                    "SYSTEMD_NSPAWN_LOCK": "0",
                },
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self.wait(wait)

    def _nspawn(self) -> list[str]:
        return [
            "systemd-nspawn",
            "--quiet",
            f"--directory={self.root}",
            f"--machine={self.namespace}",
            f"--hostname={self.name}",
            "--register=no",
            "--keep-unit",
            "--boot",
            f"--network-namespace-path=/run/netns/{self.namespace}",
            # For IPAddressDeny= and its like, which are refused silently otherwise.
            "--capability=CAP_NET_ADMIN,CAP_BPF",
            "--system-call-filter=bpf",
            "--resolv-conf=off",
            "--timezone=off",
            "--console=pipe",
        ]

    @property
    def _keeper_name(self) -> str:
        return f"{self.name}: keeper"

    @property
    def is_on(self) -> bool:
        """Whether it is switched on."""
        return self.site.ledger.find(self._keeper_name) is not None

    @property
    def leader(self) -> Process | None:
        """Its PID 1 as a process of the machine outside, None while there is none."""
        keeper = self.site.ledger.find(self._keeper_name)
        nspawns = children(keeper.pid) if keeper else []
        for nspawn in nspawns:
            for child in children(nspawn):
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{child}/status").read_text()
                    # In its own PID namespace it has number 1.
                    line = next(ln for ln in status.splitlines() if ln.startswith("NSpid:"))
                    if len(line.split()) > 2 and line.split()[-1] == "1":
                        return Process.of(child, f"{self.name}: init")
        return None

    def wait(self, until: str = "boot", timeout: float = BOOT_TIMEOUT) -> None:
        """Wait until sshd answers ("ssh") or the boot is over ("boot").

        timeout: seconds

        Raises: LabError with the end of its console, or what the boot waits for.
        """
        if until not in ("boot", "ssh", "no"):
            raise LabError(f"One can wait for «boot», «ssh» or «no», not for «{until}».")
        if until == "no":
            return
        deadline = time.monotonic() + timeout
        while not self._sshd_answers():
            if not self.is_on or time.monotonic() > deadline:
                how = "did not come up" if self.is_on else "went off while it was booting"
                raise LabError(f"{self.name} {how}; its console: {self._console_tail()}")
            time.sleep(0.05)
        self.introduce()
        if until == "boot":
            left = max(deadline - time.monotonic(), 5)  # to ask at all, if sshd was late
            try:
                # "degraded" is a state like others here; whoever cares can ask for it.
                self.run("systemctl is-system-running --wait", check=False, timeout=left)
            except subprocess.TimeoutExpired:
                jobs = self.run("systemctl list-jobs --no-legend", check=False).stdout.strip()
                raise LabError(f"{self.name} still boots; it waits for: {jobs}") from None

    def _sshd_answers(self) -> bool:
        with self.operator.inside():
            try:
                with socket.create_connection(
                    (self.ipv4, SSH_PORT), timeout=PROBE_TIMEOUT
                ) as probe:
                    return probe.recv(4) == b"SSH-"
            except OSError:
                return False

    def _console_tail(self) -> str:
        text = self.site.log(self.name).read_text(errors="replace")
        return " / ".join(text.strip().splitlines()[-4:]) or "(empty)"

    def reboot(self, wait: str = "boot") -> None:
        """Restart it properly; see `start` for `wait`. Raises: LabError."""
        before = self._require_leader()
        self.connection.close()
        before.signal(SIGNAL_REBOOT)
        deadline = time.monotonic() + BOOT_TIMEOUT
        while (now := self.leader) is None or now == before:
            if not self.is_on or time.monotonic() > deadline:
                raise LabError(f"{self.name} did not reboot; console: {self._console_tail()}")
            time.sleep(0.05)
        self.wait(wait)

    def power_off(self) -> None:
        """Shut it down properly. Its disk stays; while it is off, nobody answers for it.

        Raises: LabError.
        """
        leader = self._require_leader()
        self.connection.close()
        keeper = self.site.ledger.find(self._keeper_name)
        leader.signal(SIGNAL_POWER_OFF)
        if keeper and not keeper.wait(BOOT_TIMEOUT):
            raise LabError(f"{self.name} did not shut down; console: {self._console_tail()}")
        self.site.network.plug(self.name, connected=False)
        self._off()

    def power_cut(self) -> None:
        """Switch it off at once: no process inside is told, no connection is ended."""
        self.site.network.plug(self.name, connected=False)
        self.connection.close()
        if keeper := self.site.ledger.find(self._keeper_name):
            nspawns = [Process.of(pid) for pid in children(keeper.pid)]
            leader = self.leader
            # The keeper first: it might take this for a reboot. nspawn last: it would tell init.
            end([keeper], grace=0)
            end([leader] if leader else [], grace=0)
            end([nspawn for nspawn in nspawns if nspawn], grace=0)
        self._off()

    def _off(self) -> None:
        self.cgroup.remove()
        if self._keeper:
            self._keeper.wait(KILLED_WITHIN)
            self._keeper = None

    def remove(self) -> None:
        """Switch it off and remove everything it has."""
        if self.is_on:
            self.power_cut()
        self.cgroup.remove()
        forget_machine(self.namespace)
        self.site.network.detach(self.name)

    def _require_leader(self) -> Process:
        leader = self.leader
        if leader is None:
            raise LabError(f"{self.name} is switched off.")
        return leader


def forget_machine(pattern: str) -> None:
    """Remove the directories that systemd-nspawn leaves for machines whose name matches."""
    leftovers = Path("/run/systemd/nspawn")
    for place in (leftovers / "propagate", leftovers / "unix-export"):
        for path in place.glob(pattern):
            path.rmdir()
        with contextlib.suppress(OSError):  # there is none, or others use it
            place.rmdir()
    with contextlib.suppress(OSError):
        leftovers.rmdir()
