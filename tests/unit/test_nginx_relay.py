# SPDX-License-Identifier: GPL-3.0-or-later
"""nginx as the relay: its configuration, what a forward may say, and the service of its package."""

from __future__ import annotations

import re
import subprocess

import pytest
from unit_samples import ADDRESS, EACH, NAS, RELAY, TCP, UDP, Data, data, file_of, plan_of, program

from home_forwarder.config import DataError, load_config
from home_forwarder.nginx_service import DROP_IN, HOLD, RELEASE
from home_forwarder.plan import NGINX_PACKAGES, OWNED_FILES, PACKAGES
from home_forwarder.render import load_program
from operations.preflight import SHOWN, warning_of_crowds

relay = load_program(RELAY)

pytestmark = pytest.mark.usefixtures("no_settings")


def directives(configuration: str) -> dict[str, list[str]]:
    """What each directive says, without comments; the blocks are flat."""
    found: dict[str, list[str]] = {}
    for line in configuration.splitlines():
        name, _, value = line.partition("#")[0].strip().partition(" ")
        if value and value != "{":
            assert value.endswith(";"), line
            found.setdefault(name, []).append(value[:-1])
    assert configuration.count("{") == configuration.count("}") == 3
    return found


@pytest.mark.parametrize(("protocol", "listen"), EACH)
def test_configuration(protocol: str, listen: str) -> None:
    """A socket for each family, none for both; the target is an address: nothing asks DNS."""
    found = directives(relay.nginx(protocol, listen, 8080, ADDRESS, 80))
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
def test_limits(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client takes two connections, and one that is turned away takes one for a moment."""
    monkeypatch.setenv("FORWARD_MAX_CONNECTIONS", "7")
    monkeypatch.setenv("FORWARD_IDLE_TIMEOUT", "60")
    found = directives(relay.nginx(protocol, "46", 1, ADDRESS, 1))
    assert found["limit_conn"] == ["clients 7"]
    assert int(found["worker_connections"][0]) > 2 * 7 + 2
    assert found["proxy_timeout"] == ["60s"]
    monkeypatch.setenv("FORWARD_IDLE_TIMEOUT", "0")
    assert directives(relay.nginx(protocol, "46", 1, ADDRESS, 1))["proxy_timeout"] != ["0s"]


def test_its_environment_stays_readable() -> None:
    """A master process would write its title over it, and a deploy reads FORWARD_REVISION there."""
    found = directives(relay.nginx("tcp", "46", 1, ADDRESS, 1))
    assert (found["master_process"], found["daemon"]) == (["off"], ["off"])


def test_nothing_is_written_outside() -> None:
    """The pid file is in the unit's own /tmp, and there is no other file."""
    found = directives(relay.nginx("tcp", "46", 1, ADDRESS, 1, True, "/usr/lib/x.so"))
    paths = [value for values in found.values() for value in values if "/" in value]
    assert paths == ["/tmp/nginx.pid", "/usr/lib/x.so"]
    assert found["load_module"] == ["/usr/lib/x.so"]
    assert found["error_log"] == ["stderr error"]


@pytest.mark.parametrize("on", [True, False])
def test_proxy_protocol(on: bool) -> None:
    found = directives(relay.nginx("tcp", "46", 1, ADDRESS, 1, on))
    assert found["proxy_protocol"] == ["on" if on else "off"]
    assert "proxy_protocol" not in directives(relay.nginx("udp", "46", 1, ADDRESS, 1))


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [
        ("tcp", {"FORWARD_RELAY": "haproxy"}),
        ("tcp", {"FORWARD_PROXY_PROTOCOL": "on"}),
        ("tcp", {"FORWARD_RELAY": "socat", "FORWARD_PROXY_PROTOCOL": "on"}),
        ("udp", {"FORWARD_RELAY": "nginx", "FORWARD_PROXY_PROTOCOL": "on"}),
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
    assert (done.returncode, done.stdout) == (2, "")
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
            {**TCP, "relay": "haproxy"},
            "forwards[0].relay: 'haproxy' is not one of 'socat', 'nginx'",
        ),
        ({**TCP, "relay": None}, "forwards[0].relay: None is not one of 'socat', 'nginx'"),
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


def test_packages() -> None:
    """nginx is installed where a forward wants it, and nowhere else."""
    assert plan_of().packages == PACKAGES
    assert plan_of(forwards=[TCP, {**UDP, "relay": "nginx"}]).packages == (
        *PACKAGES,
        *NGINX_PACKAGES,
    )


def test_warning_of_crowds() -> None:
    """One line, with the forwards and the key."""
    forwards: list[Data] = [TCP, UDP, {**UDP, "port": "8000-8010"}]
    warning = warning_of_crowds(load_config(data(forwards=forwards)))
    assert warning is not None
    assert warning.startswith("udp 33333 to nas, udp 8000-8010 to nas: socat ")
    assert warning.endswith('write "relay": "nginx"')
    many = [{"home": NAS["name"], "protocol": "udp", "port": port} for port in range(1, SHOWN + 3)]
    assert " and 2 more: " in str(warning_of_crowds(load_config(data(forwards=many))))
    for harmless in ([TCP], [{**UDP, "relay": "nginx"}]):
        assert warning_of_crowds(load_config(data(forwards=harmless))) is None


# ---- nginx.service ---------------------------------------------------------------------------


def test_what_is_left_of_an_installation_is_found() -> None:
    """As something undeclared, by a deploy and by the verification."""
    assert re.match(OWNED_FILES, DROP_IN)
    assert not re.match(OWNED_FILES, DROP_IN.replace("home-forwarder.conf", "override.conf"))


@pytest.mark.parametrize("command", [HOLD, RELEASE])
def test_shell_commands_can_be_read_by_sh(command: str) -> None:
    subprocess.run(["sh", "-n", "-c", command], check=True)
