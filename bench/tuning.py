# SPDX-License-Identifier: GPL-3.0-or-later
"""Our relays with other settings than theirs, beside themselves: what docs/performance.md rests on.

Not part of a default run: python -m bench --only tuning
"""

from __future__ import annotations

from bench.peers import HOME, OURS, PEERS, PORT_AT_HOME, Peer, unit
from bench.relays import connections, throughput, udp
from bench.setting import Bench, start_peers
from home_forwarder.render import module_of

RELAY = "/usr/local/lib/home-forwarder/relay"
FIRST_PORT = 7200  # behind those of the peers
BEST = ("nginx by hand", "HAProxy, splice", "systemd-socket-proxyd")
"""Peers to compare with."""

SOCAT = {
    "socat, block 8 KiB": ("8192", "backlog=512,nodelay"),
    "socat, block 64 KiB": ("65536", "backlog=512,nodelay"),
    "socat, block 256 KiB": ("262144", "backlog=512,nodelay"),
    "socat, block 512 KiB": ("524288", "backlog=512,nodelay"),
    "socat, block 1 MiB": ("1048576", "backlog=512,nodelay"),
    "socat, without nodelay": ("262144", "backlog=512"),
    "socat, backlog 5": ("262144", "backlog=5,nodelay"),
    "socat, sockets of 4 MiB": ("262144", "backlog=512,nodelay,rcvbuf=4194304,sndbuf=4194304"),
}
"""Block size, and options of the listening socket."""

NGINX = {
    "nginx, buffer 16 KiB": (1, "", "proxy_buffer_size 16k;"),
    "nginx, buffer 64 KiB": (1, "", "proxy_buffer_size 64k;"),
    "nginx, buffer 128 KiB": (1, "", "proxy_buffer_size 128k;"),
    "nginx, buffer 256 KiB": (1, "", "proxy_buffer_size 256k;"),
    "nginx, buffer 512 KiB": (1, "", "proxy_buffer_size 512k;"),
    "nginx, multi_accept": (1, "", "proxy_buffer_size 512k;"),
    "nginx, memory given back": (1, "", "proxy_buffer_size 512k;"),
    "nginx, 2 workers": (2, "", "proxy_buffer_size 512k;"),
    "nginx, 2 workers, reuseport": (2, " reuseport", "proxy_buffer_size 512k;"),
}
"""Workers, an option of `listen`, and a directive of TCP's server."""


def _socat(name: str, port: int) -> Peer:
    block, options = SOCAT[name]
    lines = []
    for protocol in ("tcp", "udp"):
        upper = protocol.upper()
        own = (
            options
            if protocol == "tcp"
            else ",".join(each for each in options.split(",") if "buf" in each)
        )
        listen = f"{upper}6-LISTEN:{port},ipv6-v6only=0,reuseaddr,fork,max-children=4096"
        command = f"socat -b {block} {listen}{',' * bool(own)}{own} {upper}6:{HOME}:{PORT_AT_HOME}"
        lines.append(unit(f"t{port}-{protocol}", command, "--uid=nobody"))
    return Peer(name, port, start=" && ".join(lines))


def _nginx(name: str, port: int) -> Peer:
    workers, option, directive = NGINX[name]
    text = f"""\
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
{f"worker_processes {workers};" if workers > 1 else "master_process off;"}
error_log stderr;
pid /run/bench-{port}.pid;
events {{ worker_connections 8192; multi_accept {"on" if "multi" in name else "off"}; }}
stream {{
    server {{
        listen [::]:{port} ipv6only=off backlog=512{option};
        proxy_pass {HOME}:{PORT_AT_HOME};
        {directive}
        tcp_nodelay on;
    }}
    server {{
        listen [::]:{port} udp ipv6only=off{option};
        proxy_pass {HOME}:{PORT_AT_HOME};
        proxy_buffer_size 64k;
    }}
}}
"""
    path = f"/etc/bench-{port}.conf"
    command = f"nginx -e stderr -c {path}"
    memory = module_of(RELAY).NGINX_MEMORY
    kept = () if "given back" in name else (f"-p Environment=GLIBC_TUNABLES={memory}",)
    return Peer(name, port, files={path: text}, start=unit(f"t{port}", command, *kept))


def tuning(bench: Bench) -> None:
    """TCP throughput, new connections and UDP with each setting."""
    variants = [
        make(name, FIRST_PORT + number)
        for number, (make, name) in enumerate(
            [*((_socat, name) for name in SOCAT), *((_nginx, name) for name in NGINX)]
        )
    ]
    start_peers(bench, variants)
    bench.all_peers = [peer for peer in PEERS if peer.name in (*OURS, *BEST)] + variants
    throughput(bench)
    connections(bench)
    udp(bench)
    bench.all_peers = list(PEERS)
