# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: print, as JSON, all that a deploy needs to know of it. Changes nothing.

Standard library of Python 3.9. Arguments: regular expressions of the paths and of the unit names
that are ours (OWNED_FILES, OWNED_UNITS in home_forwarder/plan.py).
"""

import datetime
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
DIRECTORIES = (UNITS, f"{UNITS}/home-*.wants", f"{UNITS}/home-*.d")
MASK = "/dev/null"
LIST_UNITS = ("systemctl", "list-units", "--all", "--full", "--output=json")


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


def last_load():
    """When systemd read its files last, at boot or for a daemon-reload; seconds since 1970."""
    names = "UnitsLoadStartTimestamp,UnitsLoadTimestamp"
    text = output("systemctl", "show", "--timestamp=us+utc", "--property=" + names)
    times = [0.0]
    for time in re.findall(r"=\w+ (.+) UTC$", text, re.M):
        parsed = datetime.datetime.strptime(time, "%Y-%m-%d %H:%M:%S.%f")
        times.append(parsed.replace(tzinfo=datetime.timezone.utc).timestamp())
    return max(times)


def files(ours, loaded):
    """Files and links; "unread" are those that systemd has not read yet."""
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
        if path.startswith(UNITS + "/") and status.st_ctime > loaded:
            entry["unread"] = True
        found[path] = entry
    return found


def deleted_since(loaded):
    """Were files of units deleted (or written) that systemd may still know?"""
    paths = (path for place in DIRECTORIES for path in glob.glob(place))
    return any(os.stat(path).st_ctime > loaded for path in paths)


def masked():
    """Names of units that the admin has masked, for ever or until the next boot."""
    paths = [*glob.glob(f"{UNITS}/home-*"), *glob.glob("/run/systemd/system/home-*")]
    links = (path for path in paths if os.path.islink(path) and os.readlink(path) == MASK)
    return sorted({os.path.basename(path) for path in links})


def unit_of(pid):
    """The unit that a process belongs to, as its control group is called."""
    cgroup = read(f"/proc/{pid}/cgroup").decode(errors="replace")
    return (re.findall(r"/([^/\s]+\.(?:service|socket|scope))", cgroup) or [""])[-1]


def environments():
    """With what settings processes run: a dict for each unit of ours that has one."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        unit = unit_of(pid)
        if unit.startswith("home-") and unit not in found:
            environment = read(f"/proc/{pid}/environ").decode(errors="replace")
            if environment:
                settings = environment.split("\0")
                found[unit] = dict(each.partition("=")[::2] for each in settings)
    return found


def units(ours):
    """Units that systemd knows; `systemctl show` would take seconds for those of 100 forwards."""
    settings = environments()
    found = {}
    for each in json.loads(output(*LIST_UNITS, "home-*") or "[]"):
        name = each["unit"]
        if not re.match(ours, name):
            continue
        home = name.partition("@")[2].partition(":")[0]
        own = settings.get(name, {})
        found[name] = {
            "LoadState": each["load"],
            "ActiveState": each["active"],
            "SubState": each["sub"],
            "Runs": name in settings,
            "Revision": own.get("FORWARD_REVISION", ""),
            "HomeAddress": own.get(f"HOME_IPV6_ADDRESS_{home}", ""),
        }
    return found


def listeners():
    """Who listens on which port: protocol, local address, port, program, unit."""
    found = []
    for line in output("ss", "-Hltunp").splitlines():
        fields = line.split()
        address, _, port = fields[4].rpartition(":")
        process = re.search(r'\("([^"]*)",pid=(\d+)', line)
        found.append(
            {
                "protocol": fields[0],
                "address": address,
                "port": int(port),
                "program": process[1] if process else "",
                "unit": unit_of(process[2]) if process else "",
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


LOADED = last_load()
print(
    json.dumps(
        {
            "files": files(sys.argv[1], LOADED),
            "deleted_since_load": deleted_since(LOADED),
            "masked": masked(),
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
