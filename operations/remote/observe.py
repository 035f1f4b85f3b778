# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: print, as JSON, all that a deploy needs to know of it. Changes nothing.

Standard library of Python 3.9. Arguments: regular expressions of the paths and of the unit names
that are ours (OWNED_FILES, OWNED_UNITS in home_forwarder/plan.py).
"""

import glob
import grp
import hashlib
import json
import os
import pwd
import re
import stat
import subprocess
import sys

UNITS = "/etc/systemd/system"
PLACES = (
    "/etc/home-*",
    "/etc/home-forwarder/*",
    f"{UNITS}/home-*",
    f"{UNITS}/*.wants/home-*",
    f"{UNITS}/home-*.d/*",
    f"{UNITS}/nginx.service.d/home-forwarder.conf",
    "/usr/local/bin/home-*",
    "/usr/local/lib/home-forwarder/*",
)
PACKAGES = ("python3", "socat", "ca-certificates", "nginx", "libnginx-mod-stream")
OF_RPM = {"libnginx-mod-stream": "nginx-mod-stream"}  # RPM_NAMES in operations/system.py
PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "NeedDaemonReload",
    "MainPID",
    "Wants",
    "UnitFileState",
)


def output(*command):
    """What a command prints; nothing if there is no such command."""
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        return ""
    return result.stdout.decode(errors="replace")


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def name_of(lookup, number):
    try:
        return lookup(number)[0]
    except KeyError:
        return str(number)


def files(ours):
    found = {}
    for path in (path for place in PLACES for path in glob.glob(place)):
        if not re.match(ours, path):
            continue
        status = os.lstat(path)
        entry = {
            "mode": format(stat.S_IMODE(status.st_mode), "o"),
            "owner": name_of(pwd.getpwuid, status.st_uid),
            "group": name_of(grp.getgrgid, status.st_gid),
        }
        if stat.S_ISLNK(status.st_mode):
            entry["target"] = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            entry["sha256"] = hashlib.sha256(read(path)).hexdigest()
        else:
            entry["other"] = True
        found[path] = entry
    return found


def units(ours):
    command = ["systemctl", "show", "--property=" + ",".join(PROPERTIES), "home-*"]
    found = {}
    for block in output(*command).split("\n\n"):
        properties = dict(line.partition("=")[::2] for line in block.splitlines())
        name = properties.pop("Id", "")
        if not re.match(ours, name):
            continue
        pid = properties.get("MainPID", "0")
        environment = read(f"/proc/{pid}/environ").decode(errors="replace") if pid != "0" else ""
        settings = dict(each.partition("=")[::2] for each in environment.split("\0"))
        home = name.partition("@")[2].partition(":")[0]
        properties["Revision"] = settings.get("FORWARD_REVISION", "")
        properties["HomeAddress"] = settings.get(f"HOME_IPV6_ADDRESS_{home}", "")
        found[name] = properties
    return found


def listeners():
    """Who listens on which port: protocol, local address, port, program, unit."""
    found = []
    for line in output("ss", "-Hltunp").splitlines():
        fields = line.split()
        address, _, port = fields[4].rpartition(":")
        process = re.search(r'\("([^"]*)",pid=(\d+)', line)
        cgroup = read(f"/proc/{process[2]}/cgroup").decode() if process else ""
        unit = re.findall(r"/([^/\s]+\.(?:service|socket|scope))", cgroup)
        found.append(
            {
                "protocol": fields[0],
                "address": address,
                "port": int(port),
                "program": process[1] if process else "",
                "unit": unit[-1] if unit else "",
            }
        )
    return found


def packages():
    """Installed packages, as far as a package manager can be asked."""
    names = output("dpkg-query", "-W", "-f", "${db:Status-Status} ${binary:Package}\n", *PACKAGES)
    if names:
        return [line.split()[1] for line in names.splitlines() if line.startswith("installed ")]
    wanted = {OF_RPM.get(name, name): name for name in PACKAGES}
    found = output("rpm", "-q", "--qf", "%{NAME}\n", *wanted).split()
    return [wanted[name] for name in found if name in wanted]


def addresses():
    """Known IPv6 addresses of the homes, by INDEX."""
    text = read("/etc/home-address-ipv6").decode(errors="replace")
    return dict(re.findall(r"^HOME_IPV6_ADDRESS_(\d+)=(\S+)$", text, re.M))


print(
    json.dumps(
        {
            "files": files(sys.argv[1]),
            "units": units(sys.argv[2]),
            "listeners": listeners(),
            "packages": packages(),
            "addresses": addresses(),
            "own_addresses": [
                line.split()[0] for line in read("/proc/net/if_inet6").decode().splitlines()
            ],
            "python": list(sys.version_info[:2]),
            "systemd": os.path.isdir("/run/systemd/system"),
            "root": os.geteuid() == 0,
            "manager": [each for each in ("apt-get", "dnf") if glob.glob(f"/usr/bin/{each}")],
        }
    )
)
