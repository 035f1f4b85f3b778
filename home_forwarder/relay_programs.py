# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs that relays are made of, and what each of them needs and can do.

vps/usr/local/lib/home-forwarder/relay has their command lines.
"""

from __future__ import annotations

from dataclasses import dataclass

from home_forwarder.plan import Package


@dataclass(frozen=True)
class RelayProgram:
    """One program that can be a relay."""

    packages: tuple[Package, ...]
    proxy_protocol: tuple[str, ...] = ()
    """Protocols in which it can tell the home who the client is."""
    max_per_client: bool = False
    """It can limit the connections, or UDP peers, of one client."""
    socket_per_family: bool = False
    """On "46" it listens on a socket for each family, not on one for both."""


# What nginx was built with stands behind «configure arguments»; "=dynamic" is a module in a file of
# its own. nginx writes it to standard error.
_CAN_STREAM = (
    "/usr/sbin/nginx -V 2>&1 | grep -Eq -e '--with-stream( |$)'"
    " || ls /usr/lib*/nginx/modules/ngx_stream_module.so"
)

RELAY_PROGRAMS = {
    "socat": RelayProgram((Package("socat", unless="[ -x /usr/bin/socat ]"),)),
    "nginx": RelayProgram(
        (
            Package("nginx", unless="[ -x /usr/sbin/nginx ]", service="nginx.service"),
            Package("libnginx-mod-stream", rpm="nginx-mod-stream", unless=_CAN_STREAM),
        ),
        proxy_protocol=("tcp",),
        max_per_client=True,
        socket_per_family=True,
    ),
}


def package_names(program: str) -> tuple[str, ...]:
    """Debian's names of what a relay program needs."""
    return tuple(package.name for package in RELAY_PROGRAMS[program].packages)
