# SPDX-License-Identifier: GPL-3.0-or-later
"""nginx as the relay: its configuration, what a forward may say, and the service of its package."""

from __future__ import annotations

import ipaddress
import subprocess
from pathlib import Path
from typing import Any

import pytest
from unit_samples import (
    ADDRESS,
    EACH,
    RELAY,
    TCP,
    UDP,
    Data,
    data,
    file_of,
    is_ours,
    plan_of,
    program,
)

from home_forwarder.config import load_config
from home_forwarder.mistakes import DataError
from home_forwarder.plan import UNITS
from home_forwarder.relay_programs import RELAY_PROGRAMS, package_names
from home_forwarder.remote import services
from home_forwarder.render import module_of
from operations.packages import HELD

relay = module_of(RELAY)


def forward(protocol: str, listen: str = "46", port: int = 8080, **settings: str) -> Any:
    """What is to be forwarded. settings: FORWARD_*."""
    return relay.Forward(protocol, listen, port, ADDRESS, settings)


def nginx(
    protocol: str, listen: str = "46", port: int = 8080, **settings: str
) -> dict[str, list[str]]:
    """directives() of nginx for that forward."""
    return directives(relay.nginx_configuration(forward(protocol, listen, port, **settings)))


def directives(configuration: str) -> dict[str, list[str]]:
    """What each directive says, without comments; the blocks are flat."""
    found: dict[str, list[str]] = {}
    for line in configuration.splitlines():
        name, _, value = line.partition("#")[0].strip().partition(" ")
        if value and not value.endswith("{"):
            assert value.endswith(";"), line
            found.setdefault(name, []).append(value[:-1])
    blocks = {"events": 1, "stream": 1, "server": 1, "map": configuration.count("map $")}
    assert configuration.count("{") == configuration.count("}") == sum(blocks.values())
    return found


@pytest.mark.parametrize(("protocol", "listen"), EACH)
def test_configuration(protocol: str, listen: str) -> None:
    """A socket for each family, none for both; the target is an address: nothing asks DNS."""
    found = nginx(protocol, listen, FORWARD_TARGET_PORT="80")
    sockets = [value.split() for value in found["listen"]]
    addresses = {"4": "0.0.0.0:8080", "6": "[::]:8080"}
    assert [words[0] for words in sockets] == [addresses[family] for family in listen]
    for words in sockets:
        assert ("ipv6only=on" in words) is words[0].startswith("[")
        assert ("udp" in words) is (protocol == "udp")
        assert ("backlog=512" in words) is (protocol == "tcp")
        assert any(word.startswith("so_keepalive=") for word in words) is (protocol == "tcp")
    assert found["proxy_pass"] == [f"[{ADDRESS}]:80"]
    assert found["proxy_timeout"] == [{"tcp": "7440s", "udp": "300s"}[protocol]]
    assert found.get("proxy_half_close") == {"tcp": ["on"], "udp": None}[protocol]
    assert found.get("proxy_buffer_size") == {"tcp": ["512k"], "udp": ["64k"]}[protocol]
    assert "access_log" not in found


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_limits(protocol: str) -> None:
    """Each client takes two connections, and one that is turned away takes one for a moment."""
    found = nginx(protocol, FORWARD_MAX_CONNECTIONS="7", FORWARD_IDLE_TIMEOUT="60")
    assert found["limit_conn"] == ["clients 7"]
    limits = nginx(protocol, FORWARD_MAX_CONNECTIONS="7", FORWARD_MAX_PER_CLIENT="2")["limit_conn"]
    assert limits == ["clients 7", "client 2"]
    assert int(found["worker_connections"][0]) > 2 * 7 + 2
    assert found["proxy_timeout"] == ["60s"]
    assert nginx(protocol, FORWARD_IDLE_TIMEOUT="0")["proxy_timeout"] != ["0s"]


@pytest.mark.parametrize(("protocol", "listen"), EACH)
def test_it_does_not_talk_to_itself(protocol: str, listen: str) -> None:
    """Promise 20: datagrams from the VPS's own IPv6 addresses are none of a client."""
    it = forward(protocol, listen)
    own = ["2001:0db8:0000:0000:0000:0000:0000:0005", "fe80::5"]
    found = directives(relay.nginx_configuration(it, own=own)).get("deny")
    assert found == (own if protocol == "udp" and "6" in listen else None)


def test_own_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the kernel has, in full length; none where there is no IPv6."""
    own = [ipaddress.IPv6Address(address) for address in relay.own_ipv6()]
    there = Path("/proc/self/net/if_inet6").read_text(encoding="ascii").splitlines()
    assert [address.packed.hex() for address in own] == [line.split()[0] for line in there]

    def no_ipv6(path: str) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(relay, "open", no_ipv6, raising=False)
    assert relay.own_ipv6() == []


def test_its_environment_stays_readable() -> None:
    """A master process would write its title over it, and a deploy reads FORWARD_REVISION there."""
    found = nginx("tcp")
    assert (found["master_process"], found["daemon"]) == (["off"], ["off"])


def test_nothing_is_written_outside() -> None:
    """The pid file is in the unit's own /tmp, and there is no other file."""
    found = directives(relay.nginx_configuration(forward("tcp"), "/usr/lib/x.so"))
    paths = [value for values in found.values() for value in values if "/" in value]
    assert paths == ["/tmp/nginx.pid", "/usr/lib/x.so"]
    assert found["load_module"] == ["/usr/lib/x.so"]
    assert found["error_log"] == ["stderr error"]


@pytest.mark.parametrize(
    ("word", "on"),
    [
        *((word, True) for word in ("on", "1", "yes", "true", "On", "TRUE")),
        *((word, False) for word in ("", "off", "0", "no", "false", "Off", "nonsense", " ")),
    ],
)
def test_proxy_protocol(word: str, on: bool) -> None:
    """Only a word that means yes is one."""
    assert nginx("tcp", FORWARD_PROXY_PROTOCOL=word)["proxy_protocol"] == ["on" if on else "off"]
    assert "proxy_protocol" not in nginx("udp", FORWARD_PROXY_PROTOCOL=word)


WHOLE = """\
daemon off;
master_process off;
pid /tmp/nginx.pid;
error_log stderr error;
load_module /usr/lib/x.so;
events {
    worker_connections 46;
    multi_accept on;
}
stream {
    limit_conn_zone $server_port zone=clients:32k;
    limit_conn clients 7;
    map $binary_remote_addr $client {
        "~(?s)^(........)" $1;
        default $binary_remote_addr;
    }
    limit_conn_zone $client zone=client:32k;
    limit_conn client 3;
    server {
        listen 0.0.0.0:8080 backlog=512 so_keepalive=300s:30s:9;
        listen [::]:8080 ipv6only=on backlog=512 so_keepalive=300s:30s:9;
        proxy_pass [2001:db8::1]:80;
        proxy_timeout 7440s;
        proxy_connect_timeout 10s;
        proxy_socket_keepalive on;
        proxy_buffer_size 512k;
        proxy_half_close on;
        proxy_protocol on;
        tcp_nodelay on;
    }
}
"""


def test_a_whole_configuration() -> None:
    """Promise 10: a release that changes it must restart relays, and know it."""
    it = forward(
        "tcp",
        FORWARD_TARGET_PORT="80",
        FORWARD_MAX_CONNECTIONS="7",
        FORWARD_MAX_PER_CLIENT="3",
        FORWARD_PROXY_PROTOCOL="on",
    )
    assert relay.nginx_configuration(it, "/usr/lib/x.so") == WHOLE


def test_how_it_is_started() -> None:
    """It reads its configuration, and takes a file for each client."""
    it = forward("udp")
    start = relay.nginx(it)
    assert start.command == ["/usr/sbin/nginx", "-e", "stderr", "-c", "/dev/stdin"]
    assert start.stdin in {
        relay.nginx_configuration(it, module, relay.own_ipv6())
        for module in ("", *relay.NGINX_MODULES)
    }
    assert start.variables == {"GLIBC_TUNABLES": relay.NGINX_MEMORY}
    assert start.one_process


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [
        ("tcp", {"FORWARD_RELAY": "haproxy"}),
        ("tcp", {"FORWARD_PROXY_PROTOCOL": "on"}),
        ("udp", {"FORWARD_MAX_PER_CLIENT": "5"}),
        ("tcp", {"FORWARD_RELAY": "socat", "FORWARD_PROXY_PROTOCOL": "on"}),
        ("udp", {"FORWARD_RELAY": "nginx", "FORWARD_PROXY_PROTOCOL": "on"}),
        ("tcp", {"FORWARD_PROXY_PROTOCOL": "Yes"}),
    ],
)
def test_settings_that_no_relay_can_keep(protocol: str, settings: dict[str, str]) -> None:
    """Written by hand into a unit: told, not ignored."""
    done = subprocess.run(
        [*program(RELAY), protocol, "46", "0:1"],
        env={"HOME_HOSTNAME_0": "nas.test", "HOME_IPV6_ADDRESS_0": ADDRESS, **settings},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("FORWARD_RELAY is socat or nginx")


def test_nginx_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where an admin writes FORWARD_RELAY=nginx by hand: what to do, and no traceback."""
    monkeypatch.setattr(relay, "NGINX", ["/nonexistent/nginx"])
    monkeypatch.setattr("sys.argv", ["relay", "tcp", "46", "0:80"])
    monkeypatch.setenv("HOME_HOSTNAME_0", "nas.test")
    monkeypatch.setenv("HOME_IPV6_ADDRESS_0", ADDRESS)
    monkeypatch.setenv("FORWARD_RELAY", "nginx")
    assert relay.main() == 2
    assert "apt-get install nginx libnginx-mod-stream" in capsys.readouterr().out


# ---- Data and plan ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "mistake"),
    [
        (
            {**TCP, "proxy_protocol": True},
            "forwards[0].proxy_protocol: True is more than socat can do; write"
            ' "relay": "nginx" as well',
        ),
        (
            {**TCP, "proxy_protocol": True, "relay": "socat"},
            "forwards[0].proxy_protocol: True is more than socat can do; write"
            ' "relay": "nginx" as well',
        ),
        (
            {**UDP, "proxy_protocol": True, "relay": "nginx"},
            "forwards[0].proxy_protocol: True is for tcp only; leave it out of a udp forward",
        ),
        (
            {**UDP, "proxy_protocol": True},
            "forwards[0].proxy_protocol: True is for tcp only; leave it out of a udp forward",
        ),
        (
            {**TCP, "max_per_client": 5},
            "forwards[0].max_per_client: 5 is more than socat can do; write"
            ' "relay": "nginx" as well',
        ),
        (
            {**UDP, "max_per_client": 0},
            "forwards[0].max_per_client: 0 is not a limit; write a whole number from 1 to 16384",
        ),
        (
            {**TCP, "relay": "haproxy"},
            "forwards[0].relay: 'haproxy' is not one of 'socat', 'nginx'",
        ),
        (
            {**TCP, "relay": "nginx", "proxy_protocol": "v2"},
            "forwards[0].proxy_protocol: 'v2' is neither True nor False",
        ),
        ({**TCP, "relais": "nginx"}, "forwards[0].relais: no such key; did you mean 'relay'?"),
    ],
)
def test_mistakes(forward: Data, mistake: str) -> None:
    """Promise 11."""
    with pytest.raises(DataError) as caught:
        load_config(data(forwards=[forward]))
    assert caught.value.mistakes == [mistake]


def test_drop_in_says_what_is_not_the_default() -> None:
    """So that a forward of an older version is not restarted by a newer one (promise 10)."""
    name = "home-tcpforwarder-46-to-6@0:44444.service"
    texts, revisions = [], []
    for change in ({}, {"relay": "socat"}, {"relay": "nginx"}, {"proxy_protocol": True}):
        forward = {**TCP, **({"relay": "nginx"} if "proxy_protocol" in change else {}), **change}
        plan = plan_of(forwards=[forward])
        texts.append(file_of(plan, f"{name}.d/forward.conf"))
        revisions.append(plan.relays[0].revision)
        assert plan.relays[0].unit == name
    assert texts[0] == texts[1]
    assert "RELAY" not in texts[0]
    assert "Environment=FORWARD_RELAY=nginx\n" in texts[2]
    assert "PROXY" not in texts[2]
    assert "Environment=FORWARD_PROXY_PROTOCOL=on\n" in texts[3]
    assert len(set(revisions)) == 3


@pytest.mark.parametrize(
    ("forward", "limit"),
    [
        (UDP, 256),
        ({**TCP, "relay": "nginx"}, 256),
        ({**UDP, "max_connections": 4097}, 1024),
        ({**UDP, "max_connections": 256}, 64),
        ({**UDP, "max_connections": 255}, 0),
        ({**UDP, "max_connections": 255, "max_per_client": 3}, 3),
        ({**UDP, "max_per_client": 1024}, 1024),
        (TCP, 0),
        ({**UDP, "relay": "socat"}, 0),
    ],
)
def test_max_per_client(forward: Data, limit: int) -> None:
    """Promise 20: a quarter of all, where that is not too few; none with socat, which cannot."""
    plan = plan_of(forwards=[forward])
    assert [relay.per_client for relay in plan.relays] == [limit]
    drop_in = file_of(plan, f"{plan.relays[0].unit}.d/forward.conf")
    lines = [line for line in drop_in.splitlines() if "PER_CLIENT" in line]
    assert lines == ([f"Environment=FORWARD_MAX_PER_CLIENT={limit}"] if limit else [])


def test_packages() -> None:
    """nginx is installed where a forward wants it, and nowhere else."""
    base = plan_of(forwards=[TCP, {**UDP, "relay": "socat"}]).packages
    assert [package.name for package in base] == ["python3", "socat"]
    both = plan_of(forwards=[TCP, UDP]).packages
    assert both == (*base, *RELAY_PROGRAMS["nginx"].packages)
    assert package_names("nginx") == ("nginx", "libnginx-mod-stream")
    only = plan_of(forwards=[UDP]).packages
    assert only == both, "socat is there for use by hand"


@pytest.mark.parametrize(
    ("forward", "program"),
    [
        (TCP, "socat"),
        (UDP, "nginx"),
        ({**TCP, "relay": "nginx"}, "nginx"),
        ({**UDP, "relay": "socat"}, "socat"),
    ],
)
def test_default_relays(forward: Data, program: str) -> None:
    """UDP by nginx unless socat is asked for (promise 24)."""
    plan = plan_of(forwards=[forward])
    assert [relay.program for relay in plan.relays] == [program]
    drop_in = file_of(plan, f"{plan.relays[0].unit}.d/forward.conf")
    assert ("Environment=FORWARD_RELAY=nginx\n" in drop_in) is (program == "nginx")


# ---- nginx.service ---------------------------------------------------------------------------


def test_what_is_left_of_an_installation_is_found() -> None:
    """As something undeclared, by a deploy and by the verification; and an installation is mended."""
    assert services.DROP_IN.format("nginx.service").endswith(HELD)
    for package in (each for relays in RELAY_PROGRAMS.values() for each in relays.packages):
        if package.service:
            path = services.DROP_IN.format(package.service)
            assert path == f"{UNITS}/{package.service}.d/home-forwarder.conf"
            assert is_ours(path)
            assert not is_ours(path.replace("home-forwarder.conf", "override.conf"))
            assert not is_ours(f"{UNITS}/{package.service}")
    assert is_ours(f"{UNITS}/nginx.service.d/home-forwarder.conf")


@pytest.mark.parametrize(
    "command",
    [
        package.unless
        for relays in RELAY_PROGRAMS.values()
        for package in relays.packages
        if package.unless
    ],
)
def test_shell_commands_can_be_read_by_sh(command: str) -> None:
    subprocess.run(["sh", "-n", "-c", command], check=True)
