# SPDX-License-Identifier: GPL-3.0-or-later
"""Installing packages on VPSes whose package manager is busy, or whose repositories are broken."""

from __future__ import annotations

import re
import subprocess

import pytest
from lab_samples import NGINX_PACKAGES, STANDARD, TCP, UDP, home_data, read_until
from test_deploy import changed

from lab import Lab
from lab.checkout import Checkout
from lab.traffic import ask_tcp, ask_udp, ask_until
from lab.vps import Vps

LISTS = ("/var/lib/apt/lists/lock",)
ARCHIVES = ("/var/cache/apt/archives/lock",)
DPKG = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock")

# Locks files as apt and dpkg do, for some seconds. In Perl, which every Debian has, as dpkg needs it.
LOCK = (
    "use Fcntl; my $seconds = shift; my @open;"
    " for (@ARGV) { open(my $file, '>>', $_) or die; push @open, $file;"
    " my $lock = pack('s! s! x![q] q q l x![q]', F_WRLCK, 0, 0, 0, 0);"
    " fcntl($file, F_SETLK, $lock) or die $! } sleep $seconds"
)

# Third-party repositories: one that is gone, one that nobody has signed, one that was renamed since.
BROKEN = """
cd /srv && mkdir unsigned renamed && cp apt/Packages apt/Release unsigned/ && : >renamed/Packages
echo 'deb [trusted=yes] file:/srv/renamed ./' >/etc/apt/sources.list.d/renamed.list
cd renamed && apt-ftparchive -o APT::FTPArchive::Release::Label=before release . >Release &&
apt-get update -qq && apt-ftparchive -o APT::FTPArchive::Release::Label=after release . >Release
echo 'deb file:/srv/gone stable main' >/etc/apt/sources.list.d/gone.list
echo 'deb file:/srv/unsigned ./' >/etc/apt/sources.list.d/unsigned.list
find /var/lib/apt/lists -name '*_srv_apt_*' -delete
"""

# A package as nginx.org makes it: stream is built in, and it is at odds with those of Debian. Debian's
# own program and module are in it, behind a script that hides that there is a module.
FOREIGN_NGINX = r"""
set -e
mkdir -p /root/nginx/DEBIAN /root/nginx/opt/nginx /root/nginx/usr/sbin /root/x && cd /root
for package in nginx libnginx-mod-stream; do dpkg-deb -x /srv/apt/${package}_*.deb x; done
cp x/usr/sbin/nginx x/usr/lib/nginx/modules/ngx_stream_module.so nginx/opt/nginx/
cat >nginx/usr/sbin/nginx <<'END'
#!/bin/sh
if [ "$1" = -V ]; then
    echo 'nginx version: nginx/1.29.0
configure arguments: --with-http_v2_module --with-stream --with-stream_ssl_module' >&2
    exit
fi
exec /opt/nginx/nginx -g 'load_module /opt/nginx/ngx_stream_module.so;' "$@"
END
chmod 755 nginx/usr/sbin/nginx
cat >nginx/DEBIAN/control <<'END'
Package: nginx
Version: 1.29.0-1~trixie
Architecture: all
Maintainer: nobody
Conflicts: nginx-common, nginx-core
Description: nginx from elsewhere
END
dpkg-deb --build --root-owner-group nginx >/dev/null
dpkg -i nginx.deb >/dev/null
"""


def lock(vps: Vps, files: tuple[str, ...], seconds: float) -> None:
    """Somebody else uses the package manager for a while: busy.service, which is Perl."""
    command = ["systemd-run", "-q", "--collect", "--unit=busy", "perl", "-e", LOCK, str(seconds)]
    vps.run([*command, *files])
    vps.run("timeout 5 sh -c 'until grep -q POSIX /proc/locks; do sleep 0.1; done'")


def forwards(lab: Lab, vps: Vps) -> None:
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, "home0")
        ask_until(ask_udp, vps.ipv4, UDP, "home0")


@pytest.mark.vps(packages=[])
def test_others_use_the_package_manager(
    lab: Lab, release: str, vps: Vps, checkout: Checkout
) -> None:
    """Each of its locks is waited for, with a line every ten seconds; also before there is Python."""
    checkout.declare(home_data(lab), STANDARD)
    if release == "trixie":
        vps.run("DEBIAN_FRONTEND=noninteractive apt-get purge -y -qq --autoremove python3-minimal")
        lock(vps, DPKG, 6)
        said = checkout.deploy().stderr
        forwards(lab, vps)
        assert "Waiting: Could not get lock /var/lib/dpkg/lock-frontend" in said
        assert "installed python3" in said
    long, short = (LISTS, ARCHIVES) if release == "trixie" else (DPKG, LISTS)
    vps.run("DEBIAN_FRONTEND=noninteractive apt-get purge -y -qq socat", check=False)
    lock(vps, long, 300)
    waiting = checkout.start_pyinfra(
        *("-y", "inventory.py", "deploy.py"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = read_until(waiting, "Waiting: ").splitlines()[-1]
    what = "dpkg is" if long == DPKG else "apt's package lists are"
    assert re.search(rf"Waiting: {what} locked by perl \(pid \d+, busy\.service\)", said)
    vps.run("systemctl stop busy")
    waiting.communicate(timeout=120)
    assert waiting.returncode == 0
    forwards(lab, vps)
    vps.run("DEBIAN_FRONTEND=noninteractive apt-get purge -y -qq socat", check=False)
    lock(vps, short, 2)
    checkout.deploy()
    forwards(lab, vps)
    assert changed(checkout.deploy().stderr) == []


@pytest.mark.vps(packages=[])
@pytest.mark.parametrize("release", ["trixie"], indirect=True)
def test_broken_repositories_and_packages(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """A repository that is gone, unsigned or renamed is a warning. What cannot be installed is told in
    apt's words. A program that can do it is as good as the package of a name."""
    vps.run(BROKEN)
    checkout.declare(home_data(lab), STANDARD)
    said = checkout.deploy().stderr
    forwards(lab, vps)
    for text in (
        "apt-get update ended with 100:",
        "'file:/srv/gone stable Release' does not have a Release file",
        "'file:/srv/unsigned ./ Release' is not signed",
        "'file:/srv/renamed ./ Release' changed its 'Label' value from 'before' to 'after'",
        "Installed socat",
    ):
        assert said.count(text) == 1, text
    assert changed(checkout.deploy().stderr) == []

    # On hold, and apt was cut off before.
    vps.run("apt-mark hold nginx; dpkg-query -s base-files >/var/lib/dpkg/updates/0001")
    nginx = [{**forward, "relay": "nginx"} for forward in STANDARD]
    checkout.declare(home_data(lab), nginx)
    result = checkout.deploy(check=False)
    assert result.returncode != 0
    assert "could not install nginx, libnginx-mod-stream" in result.stderr
    assert "E: Held packages were changed and -y was used without" in result.stderr
    assert "is not signed" in result.stderr
    assert "Traceback" not in result.stderr
    forwards(lab, vps)
    vps.run("apt-mark unhold nginx")

    vps.run(FOREIGN_NGINX)
    said = checkout.deploy().stderr
    assert "is not signed" not in said  # there was nothing to install
    forwards(lab, vps)
    relays = vps.run("ps -eo comm= | grep -c '^nginx$'").stdout
    assert int(relays) == len(STANDARD)
    assert changed(checkout.deploy().stderr) == []
    checkout.verify()
    installed = vps.run(["dpkg-query", "-W", *NGINX_PACKAGES], check=False).stdout
    assert installed.split() == ["nginx", "1.29.0-1~trixie"]
