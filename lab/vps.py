# SPDX-License-Identifier: GPL-3.0-or-later
"""A VPS: a Debian system with systemd as PID 1 in systemd-nspawn, reached over ssh.

Its disk is an overlay on the release's image with a tmpfs on top, so a clone takes no time and
one VPS that fills its disk does no harm to the others. A container's root is the machine's root:
this is a lab, no security boundary.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.cgroups import Cgroup
from lab.errors import LabError
from lab.host import Host, Operator, Site, finish, generate_key
from lab.image import Image
from lab.mounts import mount, overlay_options
from lab.processes import Process, children, end

SSH_PORT = 22
BOOT_TIMEOUT = 90.0
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

    + release: "bookworm" (Debian 12) or "trixie" (Debian 13)
    + memory: limit in bytes, None for none; what is written to the disk counts (it is a tmpfs)
    + disk: size of the disk in MiB
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
        disk: int = 4096,
    ) -> None:
        super().__init__(site, name, addresses)
        self.operator = operator
        self.release = release
        self.memory = memory
        self.disk = disk
        self.cgroup = Cgroup(self.namespace)
        self.when_up: Callable[[], None] = lambda: None
        """Called when sshd answers, before anything is done over ssh."""
        self._keeper: subprocess.Popen[bytes] | None = None
        self._ssh_lock = threading.Lock()
        self._masters: dict[str, Process] = {}

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

    # Its life

    def create(
        self,
        resolvers: Sequence[str],
        prepare: Callable[[Path], None] | None = None,
        packages: Sequence[str] = (),
    ) -> None:
        """Make the disk and the network, without booting.

        + resolvers: the name servers in its resolv.conf
        + prepare: called with its root directory when all else is there
        + packages: installed on top of the image
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

        + wait: "boot" until systemd has started everything, "ssh" until sshd answers, or "no"
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
        """Wait up to `timeout` seconds until sshd answers ("ssh") or the boot is over ("boot")."""
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
        self.when_up()
        if until == "boot":
            left = max(deadline - time.monotonic(), 5)
            try:
                # "degraded" is a state like others here; whoever cares can ask for it.
                self.run("systemctl is-system-running --wait", check=False, timeout=left)
            except subprocess.TimeoutExpired:
                jobs = self.run("systemctl list-jobs --no-legend", check=False).stdout.strip()
                raise LabError(f"{self.name} still boots; it waits for: {jobs}") from None

    def _sshd_answers(self) -> bool:
        with self.operator.inside():
            try:
                with socket.create_connection((self.ipv4, SSH_PORT), timeout=0.3) as probe:
                    return probe.recv(4) == b"SSH-"
            except OSError:
                return False

    def _console_tail(self) -> str:
        text = self.site.log(self.name).read_text(errors="replace")
        return " / ".join(text.strip().splitlines()[-4:]) or "(empty)"

    def reboot(self, wait: str = "boot") -> None:
        """Restart it properly; see `start` for `wait`."""
        before = self._require_leader()
        self.disconnect()
        before.signal(SIGNAL_REBOOT)
        deadline = time.monotonic() + BOOT_TIMEOUT
        while (now := self.leader) is None or now == before:
            if not self.is_on or time.monotonic() > deadline:
                raise LabError(f"{self.name} did not reboot; console: {self._console_tail()}")
            time.sleep(0.05)
        self.wait(wait)

    def power_off(self) -> None:
        """Shut it down properly. Its disk stays; while it is off, nobody answers for it."""
        leader = self._require_leader()
        self.disconnect()
        keeper = self.site.ledger.find(self._keeper_name)
        leader.signal(SIGNAL_POWER_OFF)
        if keeper and not keeper.wait(BOOT_TIMEOUT):
            raise LabError(f"{self.name} did not shut down; console: {self._console_tail()}")
        self.site.network.plug(self.name, connected=False)
        self._off()

    def power_cut(self) -> None:
        """Switch it off at once: no process inside is told, no connection is ended."""
        self.site.network.plug(self.name, connected=False)
        self.disconnect()
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
            self._keeper.wait(10)
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

    # What one does with it

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,
        timeout: float | None = 120,
        user: str = "root",
    ) -> "subprocess.CompletedProcess[str]":
        """Run a shell command, or a list of arguments, over ssh and return its output as text.

        + user: "root", or "admin" who may use sudo without a password
        + timeout: seconds, then subprocess.TimeoutExpired; what runs on the VPS may go on
        + check: raise CommandFailed with its output if it fails
        """
        line = command if isinstance(command, str) else shlex.join(command)
        self._connect(user)
        process = self.site.popen(
            [*self._ssh(user), "--", line],
            f"{self.name}: ssh",
            env=self.operator.environment(),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        return finish(self.site, process, [line], input, timeout, check, self.name)

    def popen(
        self,
        command: str | Sequence[str],
        *,
        user: str = "root",
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
        text: bool = True,
    ) -> "subprocess.Popen[str]":
        """Start a shell command, or a list of arguments, over ssh."""
        line = command if isinstance(command, str) else shlex.join(command)
        self._connect(user)
        return self.site.popen(
            [*self._ssh(user), "--", line],
            f"{self.name}: ssh",
            env=self.operator.environment(),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=text,
        )

    def read(self, path: str) -> str:
        """Return the content of a file; LabError if it cannot be read."""
        return self.run(["cat", "--", path]).stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file as root, by renaming; missing directories are made."""
        script = (
            'umask 077; mkdir -p -m 755 -- "$(dirname -- "$1")" && cat > "$1.lab-new" && '
            'chmod -- "$2" "$1.lab-new" && mv -T -- "$1.lab-new" "$1"'
        )
        self.run(["sh", "-c", script, "write", path, f"{mode:o}"], input=text)

    def disconnect(self) -> None:
        """Close the ssh connections that `run` keeps open."""
        with self._ssh_lock:
            end(self._masters.values(), grace=0)
            for user in self._masters:
                self._control_path(user).unlink(missing_ok=True)
            self._masters.clear()

    def _control_path(self, user: str) -> Path:
        # One for each process that uses the lab, so that nobody waits for another's connection.
        return self.site.directory / "ssh" / f"{self.name}-{user}-{os.getpid()}"

    def _ssh(self, user: str) -> list[str]:
        return [
            *("ip", "netns", "exec", self.operator.namespace),
            *("ssh", "-S", str(self._control_path(user)), "-l", user, self.name),
        ]

    def _connect(self, user: str) -> None:
        """Open the connection that the commands of `user` share, unless it is open."""
        with self._ssh_lock:
            master = self._masters.get(user)
            path = self._control_path(user)
            if master and master.alive and path.exists():
                return
            path.unlink(missing_ok=True)
            process = self.site.popen(
                [*self._ssh(user), "-M", "-N", "-o", "ServerAliveInterval=15"],
                f"{self.name}: ssh connection of {user}",
                env=self.operator.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            deadline = time.monotonic() + 20
            while not path.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    said = process.communicate()[1].strip()
                    raise LabError(f"ssh to {user}@{self.name} failed: {said or 'no answer'}")
                time.sleep(0.01)
            if recorded := Process.of(process.pid):
                self._masters[user] = recorded


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
