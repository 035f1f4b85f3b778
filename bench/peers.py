# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is measured: our relays as a deploy makes them, and others from Debian's packages, set up as
their manuals recommend. Each forwards its port of the VPS, TCP and UDP, to PORT_AT_HOME at home0."""

from __future__ import annotations

from dataclasses import dataclass, field

PORT_AT_HOME = 9000
HOME = "home0.home.example"
"""In /etc/hosts of the VPS: none of them pays for the lab's name server."""

OURS = {"ours, socat": "socat", "ours, nginx": "nginx"}
DIRECT, SHELL = "direct", "shell version (socat)"


@dataclass(frozen=True)
class Peer:
    """A relay.

    protocols: what it can relay
    start: shell command that starts it on the VPS; empty for ours
    units: the systemd units of its processes, by protocol, to find their memory
    version: shell command that tells its version
    usual: take part in a quick run
    """

    name: str
    port: int
    protocols: tuple[str, ...] = ("tcp", "udp")
    packages: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    start: str = ""
    units: dict[str, str] = field(default_factory=dict)
    version: str = ""
    usual: bool = False


def unit(name: str, command: str, *options: str) -> str:
    """Run something as a unit of its own, with no sandbox, as a service of the distribution."""
    return f"systemd-run -q --unit=bench-{name} -p LimitNOFILE=524288 {' '.join(options)} {command}"


def _shell(protocol: str, port: int) -> str:
    upper = protocol.upper()
    line = f"socat {upper}6-LISTEN:{port},fork,reuseaddr {upper}6:{HOME}:{PORT_AT_HOME}"
    return unit(f"shell-{protocol}", f'bash -c "{line}; exit"', "--uid=nobody")


NGINX = f"""\
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
user www-data;
worker_processes auto;
error_log stderr;
pid /run/bench-nginx.pid;
events {{ worker_connections 8192; }}
stream {{
    server {{
        listen 7012;
        listen [::]:7012;
        proxy_pass {HOME}:{PORT_AT_HOME};
    }}
    server {{
        listen 7012 udp reuseport;
        listen [::]:7012 udp reuseport;
        proxy_pass {HOME}:{PORT_AT_HOME};
    }}
}}
"""


def _haproxy(port: int, splice: bool) -> str:
    return f"""\
global
    maxconn 4096
    user haproxy
    group haproxy
defaults
    mode tcp
    {"option splice-auto" if splice else ""}
    timeout connect 10s
    timeout client 2h
    timeout server 2h
listen home
    bind :::{port} v4v6
    server home {HOME}:{PORT_AT_HOME}
"""


SOCKET_PROXYD = {
    "/etc/systemd/system/bench-proxyd.socket": "[Socket]\nListenStream=7015\n",
    "/etc/systemd/system/bench-proxyd.service": f"""\
[Unit]
Requires=bench-proxyd.socket
After=bench-proxyd.socket
[Service]
Type=notify
ExecStart=/usr/lib/systemd/systemd-socket-proxyd --connections-max=4096 {HOME}:{PORT_AT_HOME}
PrivateTmp=yes
LimitNOFILE=524288
""",
}

TCP = ("tcp",)

PEERS = [
    Peer(DIRECT, PORT_AT_HOME, usual=True),
    Peer(
        SHELL,
        7011,
        packages=("socat",),
        start=f"{_shell('tcp', 7011)} && {_shell('udp', 7011)}",
        units={"tcp": "bench-shell-tcp.service", "udp": "bench-shell-udp.service"},
        version="socat -V | sed -n 's/^socat version \\([^ ]*\\).*/socat \\1/p'",
        usual=True,
    ),
    Peer(
        "nginx by hand",
        7012,
        packages=("nginx-light", "libnginx-mod-stream"),
        files={"/etc/bench-nginx.conf": NGINX},
        start=unit("nginx", "nginx -e stderr -c /etc/bench-nginx.conf -g 'daemon off;'"),
        units={"tcp": "bench-nginx.service", "udp": "bench-nginx.service"},
        version="nginx -v 2>&1 | sed 's/.*: //'",
    ),
    Peer(
        "HAProxy",
        7013,
        TCP,
        packages=("haproxy",),
        files={"/etc/bench-haproxy.cfg": _haproxy(7013, splice=False)},
        start=unit("haproxy", "haproxy -W -db -f /etc/bench-haproxy.cfg"),
        units={"tcp": "bench-haproxy.service"},
        version="haproxy -v | sed -n '1s/version \\([^ ]*\\).*/\\1/p'",
        usual=True,
    ),
    Peer(
        "HAProxy, splice",
        7014,
        TCP,
        packages=("haproxy",),
        files={"/etc/bench-haproxy-splice.cfg": _haproxy(7014, splice=True)},
        start=unit("haproxy-splice", "haproxy -W -db -f /etc/bench-haproxy-splice.cfg"),
        units={"tcp": "bench-haproxy-splice.service"},
    ),
    Peer(
        "systemd-socket-proxyd",
        7015,
        TCP,
        files=SOCKET_PROXYD,
        start="systemctl daemon-reload && systemctl start bench-proxyd.socket",
        units={"tcp": "bench-proxyd.service"},
        version="systemctl --version | sed -n '1s/ (.*//p'",
    ),
    Peer(
        "6tunnel",
        7016,
        TCP,
        packages=("6tunnel",),
        start=unit("6tunnel", f"6tunnel -d -u nobody 7016 {HOME} {PORT_AT_HOME}"),
        units={"tcp": "bench-6tunnel.service"},
        version="dpkg-query -W -f '6tunnel ${Version}' 6tunnel",
    ),
    *(
        Peer(
            name,
            port,
            units={
                protocol: f"home-{protocol}forwarder-46-to-6@0:{port}.service"
                for protocol in ("tcp", "udp")
            },
            usual=True,
        )
        for name, port in zip(OURS, (7001, 7002), strict=True)
    ),
]
