# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that VPSes are cloned from: one for each Debian release, built once and kept.

An image holds its own apt repository with every package that is installed in it and those that
a forwarder may want, so that apt works in a clone without any network.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lab.errors import LabError
from lab.mounts import overlay_options, unmount_below, used_layers

RELEASES = {"bookworm": "Debian 12", "trixie": "Debian 13"}
DNS_RELEASE = "trixie"

INSTALLED = (
    "systemd,systemd-sysv,dbus,openssh-server,sudo,iproute2,nftables,python3,ca-certificates,"
    "procps,iputils-ping,apt-utils"
)
"""What a small VPS has from the start."""

IN_STOCK = (
    "socat postfix bsd-mailx nginx-light libnginx-mod-stream cloud-init"
    " git python3-venv unattended-upgrades haproxy 6tunnel bind9-dnsutils"
    " tcsh fish zsh opendoas"
)
"""What apt can install in a clone, besides all that is installed already."""

DNS_SERVER = "knot"
"""The lab's name server; unpacked beside the image, so that clones are free of it."""

# Runs in the new system as its root. /srv/apt becomes its repository, /dns.layer the files of the
# name server. Timers that would run apt or clean up behind a test's back are masked.
RECIPE = f"""
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
archives=/var/cache/apt/archives
mkdir /srv/apt /dns.layer
mv $archives/*.deb /srv/apt/
if grep -q 'VERSION_CODENAME={DNS_RELEASE}' /etc/os-release; then
    apt-get install --yes --no-install-recommends --download-only {DNS_SERVER}
    for package in $archives/*.deb; do dpkg-deb --extract "$package" /dns.layer; done
    rm $archives/*.deb
fi
apt-get install --yes --download-only {IN_STOCK}
mv $archives/*.deb /srv/apt/
cd /srv/apt
apt-ftparchive packages . > Packages
apt-ftparchive release . > Release
rm -rf /var/lib/apt/lists/* /etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/srv/apt ./' > /etc/apt/sources.list
apt-get update
rm -f /etc/ssh/ssh_host_* /etc/machine-id /recipe
printf 'PasswordAuthentication no\\nMaxSessions 100\\nMaxStartups 100\\n' \\
    > /etc/ssh/sshd_config.d/lab.conf
useradd --create-home --shell /bin/bash admin
printf 'admin ALL=(ALL:ALL) NOPASSWD:ALL\\n' > /etc/sudoers.d/admin
chmod 440 /etc/sudoers.d/admin
for timer in apt-daily apt-daily-upgrade dpkg-db-backup e2scrub_all fstrim; do
    ln -sf /dev/null /etc/systemd/system/$timer.timer
done
"""

CONTAINED = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
)
"""Prefix of a command whose processes and mounts all go away with it, and it with this process."""


def cache_directory() -> Path:
    """Where images are kept; HOME_FORWARDER_LAB_CACHE in the environment overrides it.

    Raises: LabError if that is no path that can be mounted.
    """
    path = os.environ.get("HOME_FORWARDER_LAB_CACHE") or "/var/cache/home-forwarder-lab"
    if not re.fullmatch(r"/[\w./-]+", path):  # it becomes part of mount options
        raise LabError(
            f"HOME_FORWARDER_LAB_CACHE is «{path}»; it should be an absolute path of letters, "
            "digits, dots, hyphens and underscores."
        )
    return Path(path)


class Image:
    """The image of one release.

    release: "bookworm" or "trixie"
    say: called with one line of progress at a time

    Raises: LabError for any other release.
    """

    def __init__(self, release: str, say: Callable[[str], None] | None = None) -> None:
        if release not in RELEASES:
            raise LabError(
                f"There is no release «{release}» in the lab; choose one of {', '.join(RELEASES)}."
            )
        self.release = release
        recipe = "\n".join((release, INSTALLED, RECIPE))
        self.name = f"{release}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
        self.directory = cache_directory() / self.name
        self._say = say or (lambda line: print(line, file=sys.stderr, flush=True))

    @property
    def is_built(self) -> bool:
        """Whether the image exists as a whole."""
        return self.directory.is_dir()

    @property
    def root(self) -> Path:
        """The root directory of the system."""
        return self.directory / "root"

    @property
    def dns_layer(self) -> Path:
        """The files of the name server, to be laid over the root directory."""
        return self.directory / "dns"

    def build(self) -> None:
        """Build the image unless it is there; wait for a build that runs in another process.

        Raises: LabError with the last lines of its log.
        """
        if self.is_built:
            return
        with self._lock():
            if self.is_built:
                return
            _remove_leftovers()
            started = time.monotonic()
            self._say(f"Building the {self.release} image, once; this takes about a minute ...")
            work = cache_directory() / f"building-{self.name}"
            work.mkdir()
            try:
                self._bootstrap(work)
                (work / "root" / "dns.layer").rename(work / "dns")
                work.rename(self.directory)
            except BaseException:
                _remove_tree(work)
                raise
            self._say(f"The {self.release} image took {time.monotonic() - started:.0f} s.")

    def layers(self, packages: Sequence[str] = ()) -> list[Path]:
        """The directories that make up a clone, topmost first; what is missing is built.

        packages: names of packages that are to be installed on top of the image, from its stock

        Raises: LabError.
        """
        self.build()
        if not packages:
            return [self.root]
        wanted = sorted(set(packages))
        name = hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:12]
        layer = self.directory / f"layer-{name}"
        if not layer.is_dir():
            with self._lock():
                if not layer.is_dir():
                    _remove_leftovers()
                    self._install(wanted, layer)
        return [layer, self.root]

    def _bootstrap(self, work: Path) -> None:
        script = work / "recipe"
        script.write_text(RECIPE)
        quoted = shlex.quote(str(script))
        command = [
            *CONTAINED,
            "mmdebstrap",
            "--variant=apt",
            f"--include={INSTALLED}",
            # The downloaded packages and the lists are wanted.
            "--skip=essential/unlink,cleanup/apt/lists,cleanup/reproducible",
            f'--customize-hook=cat {quoted} > "$1/recipe"; chroot "$1" sh -eu /recipe',
            self.release,
            str(work / "root"),
        ]
        log = cache_directory() / f"{self.release}.log"
        with log.open("wb") as output:
            # The lock is inherited: should we be killed, nobody builds while the orphans die.
            builder = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[self._lock_fd],
            )
            self._follow(builder, log)
        if builder.returncode != 0:
            last = " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
            raise LabError(f"Building the {self.release} image failed ({last}); see {log}.")

    def _follow(self, builder: subprocess.Popen[bytes], log: Path) -> None:
        """Wait for the builder; pass its headlines on, so that nobody thinks it hangs."""
        told = 0
        try:
            while builder.poll() is None:
                time.sleep(0.2)
                lines = log.read_text(errors="replace").splitlines()
                for line in lines[told:-1]:
                    if line.startswith("I: ") and "..." in line:
                        self._say(f"  {line[3:]}")
                told = max(told, len(lines) - 1)
        except BaseException:
            builder.kill()
            builder.wait()
            raise

    def _install(self, packages: Sequence[str], layer: Path) -> None:
        self._say(f"Installing {', '.join(packages)} on top of the {self.release} image ...")
        work = cache_directory() / "building-layer"
        for name in ("upper", "work", "root"):
            (work / name).mkdir(parents=True)
        (work / "upper" / "usr" / "sbin").mkdir(parents=True)
        policy = work / "upper" / "usr" / "sbin" / "policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")  # nothing is started while installing
        policy.chmod(0o755)
        options = overlay_options([self.root], work)
        script = (
            'mount -t overlay overlay -o "$1" "$2/root" && mount -t proc proc "$2/root/proc" && '
            'shift && work=$1 && shift && exec chroot "$work/root" env '
            "DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get install --yes -- "
            '"$@"'
        )
        result = subprocess.run(
            [*CONTAINED, "sh", "-c", script, "sh", options, str(work), *packages],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            pass_fds=[self._lock_fd],
        )
        if result.returncode != 0:
            last = " / ".join((result.stdout + result.stderr).strip().splitlines()[-3:])
            raise LabError(f"Installing {', '.join(packages)} in an image failed ({last}).")
        policy.unlink()
        (work / "upper").rename(layer)
        _remove_tree(work)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the one lock of the cache directory; builders wait for each other."""
        cache_directory().mkdir(parents=True, exist_ok=True)
        with (cache_directory() / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say("Waiting for another process that builds an image ...")
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._lock_fd = lock.fileno()
            yield


def prune() -> list[str]:
    """Remove images of older recipes that no lab uses. Returns: their names."""
    current = {Image(release).name for release in RELEASES}
    mounts = used_layers()
    removed = []
    for path in cache_directory().glob("*-*"):
        used = f"{path}/" in mounts
        if path.is_dir() and path.name not in current and not used:
            _remove_tree(path)
            removed.append(path.name)
    return removed


def _remove_leftovers() -> None:
    """Remove what killed builds left; the caller holds the lock, so none of it is in use."""
    for path in cache_directory().glob("building-*"):
        _remove_tree(path)


def _remove_tree(path: Path) -> None:
    """Remove a directory, but never what a killed build has mounted below it."""
    unmount_below(path)
    shutil.rmtree(path)
