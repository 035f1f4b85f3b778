# SPDX-License-Identifier: GPL-3.0-or-later
"""nginx as the relay: what only it can do, what both must do, and the web server it comes with."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab_samples import STANDARD, TCP, UDP, disable_nginx_service, home_data
from test_deploy import changed, started_at

from home_forwarder.plan import UNITS
from home_forwarder.relay_programs import package_names
from home_forwarder.render import sent_source_of
from lab import Lab
from lab.checkout import Checkout
from lab.image import Image
from lab.traffic import ask_tcp, ask_udp, ask_until, udp_crowd, whoami
from lab.vps import Vps

Forwards = list[dict[str, Any]]

NGINX: Forwards = [{**forward, "relay": "nginx"} for forward in STANDARD]
UDP_RELAY = "home-udpforwarder-46-to-6@0:33333.service"
TCP_RELAY = "home-tcpforwarder-46-to-6@0:44444.service"


def works(lab: Lab, vps: Vps) -> None:
    with lab.inside("client"):
        ask_until(ask_tcp, vps.ipv4, TCP, "home0 ")
        ask_until(ask_udp, vps.ipv4, UDP, "home0 ")
        ask_until(ask_tcp, vps.ipv4, 8001, "home1 ")


# ---- Traffic ---------------------------------------------------------------------------------


@pytest.mark.relays(everywhere=True)
def test_udp_clients_at_the_same_moment(
    lab: Lab,
    vps: Vps,
    checkout: Checkout,
    declared: dict[str, Any],
    relay: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Promise 24: of 100 clients, with nginx each gets its own answer and nobody else's. With socat some
    do not."""
    checkout.declare(**declared)
    checkout.deploy()
    with lab.inside("client"):
        crowd = udp_crowd(vps.ipv4, UDP, 100)
    record_property("figure", f"{relay}: at the same moment, {crowd}")
    if relay == "nginx":
        assert (crowd.answered, crowd.misled) == (100, 0)


@pytest.mark.relays(everywhere=True)
def test_udp_clients_in_quick_succession(
    lab: Lab,
    vps: Vps,
    checkout: Checkout,
    relay: str,
    record_property: Callable[[str, object], None],
) -> None:
    """2,000 clients at 1,000 a second, and room for all of them: nginx answers 99 %."""
    forward = {**STANDARD[1], "relay": relay, "max_connections": 4096}
    if relay == "nginx":
        forward["max_per_client"] = 4096
    checkout.declare(home_data(lab), [forward])
    checkout.deploy()
    with lab.inside("client"):
        crowd = udp_crowd(vps.ipv4, UDP, 2000, per_second=1000)
    record_property("figure", f"{relay}: at 1,000 a second, {crowd}")
    if relay == "nginx":
        assert crowd.answered >= 1980
        assert crowd.misled == 0


def test_large_datagrams(lab: Lab, vps: Vps, deployed: Checkout) -> None:
    """A datagram of 60,000 bytes comes back whole, and from the address that it was sent to."""
    sent = b"x" * 60_000
    for host, address in (("client", vps.ipv4), ("client6", vps.ipv6)):
        with lab.inside(host):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            peer = socket.socket(family, socket.SOCK_DGRAM)
            peer.settimeout(5)
            peer.connect((address, UDP))
            peer.send(sent)
            assert peer.recv(65536).endswith(b" " + sent)
            peer.close()


def test_at_max_connections_clients_are_turned_away(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """One more is turned away at once, those who are in stay, and when one leaves there is room."""
    limited: Forwards = [
        {**NGINX[0], "max_connections": 2},
        {**NGINX[1], "max_connections": 2, "idle_timeout": 4},
        NGINX[2],
    ]
    checkout.declare(home_data(lab), limited)
    checkout.deploy()
    with lab.inside("client"):
        first, second = (socket.create_connection((vps.ipv4, TCP), timeout=5) for _ in range(2))
        whoami(first), whoami(second)
        started = time.monotonic()
        for _ in range(100):
            with pytest.raises(OSError):
                ask_tcp(vps.ipv4, TCP)
        assert time.monotonic() - started < 5
        ask_udp(vps.ipv4, UDP), ask_udp(vps.ipv4, UDP)
        with pytest.raises(OSError):
            ask_udp(vps.ipv4, UDP)  # gives up after idle_timeout
        ask_udp(vps.ipv4, UDP)
        ask_tcp(vps.ipv4, 8001)
        whoami(first), whoami(second)
        first.close()
        ask_until(ask_tcp, vps.ipv4, TCP, "home0 ", seconds=2)
    assert "limiting connections" in vps.run("journalctl -q -o cat -t home-tcpforwarder").stdout


# Overlaid on the image with nginx; its configuration comes through standard input.
START_WEB_SERVER = """
mount -t overlay -o "lowerdir=$1" overlay "$2" && mount --bind /dev "$2/dev" &&
mount -t tmpfs tmpfs "$2/tmp" && cat >"$2/tmp/nginx.conf" &&
exec chroot "$2" /usr/sbin/nginx -e stderr -c /tmp/nginx.conf
"""
WEB_SERVER = """
daemon off; master_process off; pid /tmp/pid;
events { }
http {
    access_log off;
    client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3;
    uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5;
    server {
        listen [::]:8080 ipv6only=on proxy_protocol;
        location / { return 200 "$proxy_protocol_addr $proxy_protocol_port to $proxy_protocol_server_addr"; }
    }
}
"""


@pytest.fixture
def web_server(lab: Lab, tmp_path: Any) -> Iterator[None]:
    """A real web server at home1, port 8080, that takes connections with the PROXY protocol only."""
    root = tmp_path / "root"
    root.mkdir()
    layers = ":".join(str(layer) for layer in Image("trixie").layers(list(package_names("nginx"))))
    server = lab.home["home1"].popen(
        ["unshare", "--mount", "sh", "-c", START_WEB_SERVER, "sh", layers, str(root)],
        stdin=subprocess.PIPE,
    )
    assert server.stdin is not None
    server.stdin.write(WEB_SERVER)
    server.stdin.close()
    with lab.inside("home1"):
        for _ in range(100):
            with contextlib.suppress(OSError):
                socket.create_connection(("::1", 8080), 1).close()
                break
            time.sleep(0.05)
    yield
    server.terminate()
    server.wait(10)


def web_page(address: str, port: int) -> tuple[str, int]:
    """What a web server answers, and the client's own port."""
    connection = http.client.HTTPConnection(address, port, timeout=5)
    connection.connect()
    own_port = connection.sock.getsockname()[1]
    connection.request("GET", "/")
    with contextlib.closing(connection):
        response = connection.getresponse()
        return f"{response.status} {response.read().decode()}", own_port


@pytest.mark.usefixtures("web_server")
@pytest.mark.relays("nginx", everywhere=True)
def test_the_home_sees_the_client(lab: Lab, vps: Vps, relay: str, checkout: Checkout) -> None:
    """proxy_protocol, read by a web server at home: address and port of IPv4 and IPv6 clients."""
    forward = {"home": "home1", "protocol": "tcp", "relay": relay, "proxy_protocol": True}
    forwards = [{**forward, "port": 8080}, {**forward, "port": 443, "target_port": 8080}]
    checkout.declare(home_data(lab), forwards)
    checkout.deploy()
    for host, address in (("client", vps.ipv4), ("client6", vps.ipv6)):
        own = lab.host(host).addresses[-1]
        with lab.inside(host):
            for port in (8080, 443):
                page, own_port = web_page(address, port)
                assert page == f"200 {own} {own_port} to {address}"
    checkout.declare(home_data(lab), [{**forwards[0], "proxy_protocol": False}])
    checkout.deploy()
    with lab.inside("client"), pytest.raises((OSError, http.client.HTTPException)):
        web_page(vps.ipv4, 8080)


# ---- One relay instead of the other ----------------------------------------------------------


@pytest.mark.vps(packages=["socat", *package_names("nginx")], prepare=disable_nginx_service)
def test_switched_back_and_forth(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """By deploys, under the same unit names; only the forwards concerned restart (promise 10)."""
    homes = home_data(lab)
    checkout.declare(homes, STANDARD, check_interval=3600)
    checkout.deploy()
    with lab.inside("client"):
        other = socket.create_connection((vps.ipv4, 8001), timeout=5)
        whoami(other)
    for relay in ("nginx", "socat", "nginx"):
        forwards = [*({**forward, "relay": relay} for forward in STANDARD[:2]), STANDARD[2]]
        checkout.declare(homes, forwards, check_interval=3600)
        checkout.deploy()
        works(lab, vps)
        running = vps.run(f"ps -o comm= $(systemctl show -P MainPID '{TCP_RELAY}')").stdout
        assert running.strip() == relay
        whoami(other)
        assert changed(checkout.deploy().stderr) == []
    checkout.verify()


@pytest.mark.parametrize("release", ["trixie"], indirect=True)
def test_udp_changes_over(
    lab: Lab,
    vps: Vps,
    checkout: Checkout,
    record_property: Callable[[str, object], None],
) -> None:
    """Promise 24, on a VPS that was deployed before nginx was the default for UDP: it is said, and once;
    TCP's connections stay. From then on each client gets its own answers, and from the address that it
    asked, also if the VPS got that after the deploy."""
    homes = home_data(lab)
    checkout.declare(homes, STANDARD, check_interval=3600)
    checkout.deploy()
    with lab.inside("client"):
        tcp = socket.create_connection((vps.ipv4, TCP), timeout=5)
        whoami(tcp)
    silent = [{key: forward[key] for key in forward if key != "relay"} for forward in STANDARD]
    checkout.declare(homes, silent, check_interval=3600)
    said = checkout.deploy().stderr
    assert f"udp {UDP} to {homes[0]['hostname']}: forwarded by nginx from now on" in said
    assert said.count("forwarded by nginx") == 1
    started = started_at(vps, UDP_RELAY)
    again = checkout.deploy().stderr
    assert changed(again) == []
    assert "forwarded by nginx" not in again
    assert started_at(vps, UDP_RELAY) == started
    whoami(tcp)
    for host, first, second in (
        ("client", vps.ipv4, "203.0.113.99"),
        ("client6", vps.ipv6, "2001:db8:99::99"),
    ):
        vps.site.network.add_address(vps.name, second)
        with lab.inside(host):
            for address in (first, second):
                assert ask_udp(address, UDP).startswith("home0 ")
                crowd = udp_crowd(address, UDP, 100)
                record_property("figure", f"a UDP forward at {address}: {crowd}")
                assert (crowd.answered, crowd.misled) == (100, 0)


# ---- The web server that comes with the package ----------------------------------------------


def state(vps: Vps) -> list[str]:
    """Is nginx.service active, is it enabled, and does anything listen on port 80?"""
    commands = "systemctl is-active nginx; systemctl is-enabled nginx; ss -Hltn sport = :80 | wc -l"
    return vps.run(commands, check=False).stdout.split()


@pytest.mark.vps(packages=[])
def test_nginx_service_stays_off(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """It does not run after the deploy, a reboot or an upgrade, until the admin wants it to."""
    checkout.declare(home_data(lab), NGINX, check_interval=3600)
    checkout.deploy()
    off = ["inactive", "disabled", "0"]
    assert state(vps) == off
    assert vps.run("find /etc/systemd/system -path '*nginx*'").stdout == ""
    assert changed(checkout.deploy().stderr) == []
    vps.run("DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --reinstall nginx nginx-common")
    assert state(vps) == off
    vps.reboot()
    works(lab, vps)
    assert state(vps) == off
    journal = vps.run(
        "journalctl -q -o cat -u nginx.service --grep='^(Starting|Started)'", check=False
    )
    assert journal.stdout == ""
    vps.run("systemctl enable --now nginx")
    checkout.declare(home_data(lab), [*NGINX, {**NGINX[2], "port": 8002}], check_interval=3600)
    checkout.deploy()
    assert state(vps)[:2] == ["active", "enabled"]


@pytest.mark.vps(packages=[])
def test_cut_off_while_nginx_is_installed(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """A deploy that ends between package and service: nginx.service stays off, even over a reboot,
    and the next deploy does what was left to do."""
    vps.run(["python3", "-IS", "-c", sent_source_of("services.py"), "hold", "nginx.service"])
    vps.run("DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nginx")
    vps.reboot()
    assert state(vps) == ["inactive", "enabled", "0"]
    checkout.declare(home_data(lab), NGINX)
    checkout.deploy()
    assert state(vps) == ["inactive", "disabled", "0"]
    assert vps.run(f"ls {UNITS}/nginx.service.d/home-forwarder.conf", check=False).stdout == ""
    works(lab, vps)


def nginx_files(vps: Vps) -> str:
    """Everything that the distribution's nginx reads, but the link by which it loads the module."""
    return vps.run("find /etc/nginx /var/www -type f -o -type l | grep -v mod-stream | sort").stdout


@pytest.mark.vps(packages=["socat", "nginx"])
def test_a_web_site_goes_on(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """nginx served a site before us: no request fails, from the first deploy to the undeploy."""
    before, files = state(vps), nginx_files(vps)
    pid = vps.run("systemctl show -P MainPID nginx").stdout
    assert before[:2] == ["active", "enabled"]
    failed: list[str] = []
    asked = 0
    over = threading.Event()

    def visit() -> None:
        nonlocal asked
        with lab.inside("client"):
            while not over.wait(0.05):
                asked += 1
                try:
                    page, _ = web_page(vps.ipv4, 80)
                    if not page.startswith("200 "):
                        failed.append(page)
                except (OSError, http.client.HTTPException) as error:
                    failed.append(repr(error))

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        checkout.declare(home_data(lab), NGINX)
        checkout.deploy()
        works(lab, vps)
        checkout.declare(home_data(lab), STANDARD)
        checkout.deploy()
        checkout.pyinfra("-y", "inventory.py", "undeploy.py")
    finally:
        over.set()
        visitor.join()
    assert failed == []
    assert asked > 20
    assert (state(vps), nginx_files(vps)) == (before, files)
    assert vps.run("systemctl show -P MainPID nginx").stdout == pid


@pytest.mark.vps(packages=["socat", "nginx"], prepare=disable_nginx_service)
def test_a_web_server_that_is_off_stays_off(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """nginx was installed, stopped and disabled by the admin, and lacks the stream module."""
    before = state(vps)
    assert before == ["inactive", "disabled", "0"]
    checkout.declare(home_data(lab), NGINX)
    checkout.deploy()
    works(lab, vps)
    assert state(vps) == before
