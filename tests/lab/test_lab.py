# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab tried by itself, without anything of ours on its VPSes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import pytest

from lab import RELEASES, CommandFailed, Lab, LabError
from lab.cgroups import ROOT as CGROUPS
from lab.checkout import PROJECT
from lab.processes import Process, end

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")


def traces(name: str) -> list[str]:
    """Whatever on this machine still bears the name of a lab."""
    sign = re.compile(rf"homelab\.{name}\.|home-forwarder-lab/{name}(/|$)|={name}-[0-9a-f]{{16}}$")
    found = Path("/proc/self/mounts").read_text().splitlines()
    places = (Path("/run/netns"), Path("/etc/netns"), Path("/run/home-forwarder-lab"))
    found += [str(path) for place in places for path in place.glob("*")]
    found += [directory for directory, _, _ in os.walk(CGROUPS)]
    found += [str(path) for path in Path("/run/systemd").rglob("*")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if int(process.name) != os.getpid():
            found += [
                f"{process}: {word}" for word in environment.decode(errors="replace").split("\0")
            ]
    return [text for text in found if sign.search(text)]


each_release = pytest.mark.parametrize("lab", RELEASES, indirect=True, scope="module")
"""For what the release of the VPS may matter to."""


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One lab with a VPS, shared by the tests that do not break it."""
    name = f"self{WORKER}"
    release = getattr(request, "param", "trixie")
    with Lab(name, vpses={"vps1": release}, homes=["home0", "home1"]) as lab:
        for home in lab.home.values():
            home.serve(tcp=[44444], udp=[33333])
        yield lab
    assert traces(name) == []


@pytest.fixture(autouse=True)
def true_dns(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let no lie outlive its test."""
    yield
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").dns.clear_faults()


def ask(lab: Lab, server: str, name: str, rdtype: str, **options: float) -> dns.message.Message:
    """Ask the resolver as a VPS would; from the client, which has IPv4 only."""
    with lab.inside("client"):
        query = dns.message.make_query(name, rdtype)
        return dns.query.udp(query, server, timeout=options.get("timeout", 5))


def addresses(answer: dns.message.Message) -> list[str]:
    """The data of the records of an answer, in their order."""
    return [record.to_text() for rrset in answer.answer for record in rrset]


# ---- VPSes -----------------------------------------------------------------------------------


@each_release
def test_a_vps_is_a_debian_that_is_up(lab: Lab) -> None:
    vps = lab.vps["vps1"]
    assert vps.run("systemctl is-system-running").stdout == "running\n"
    assert vps.run("cat /proc/1/comm").stdout == "systemd\n"
    assert f"VERSION_CODENAME={vps.release}" in vps.read("/etc/os-release")
    assert vps.run("hostname").stdout == "vps1\n"


def test_a_command_that_fails(lab: Lab) -> None:
    with pytest.raises(CommandFailed, match="status 3: oh no") as failure:
        lab.vps["vps1"].run("echo oh no >&2; exit 3")
    assert failure.value.result.returncode == 3
    assert lab.vps["vps1"].run("exit 3", check=False).returncode == 3


def test_a_timeout_is_the_end(lab: Lab) -> None:
    """Also where something else holds what the command would write to."""
    for run, command in (
        (lab.vps["vps1"].run, ["sleep", "20"]),
        (lab.operator.run, ["sh", "-c", "setsid sleep 20 & sleep 20"]),
    ):
        begun = time.monotonic()
        with pytest.raises(subprocess.TimeoutExpired):
            run(command, timeout=0.5)
        assert time.monotonic() - begun < 10
    assert lab.vps["vps1"].run("echo fine").stdout == "fine\n"


@each_release
def test_the_admin_may_sudo(lab: Lab) -> None:
    result = lab.vps["vps1"].run("id -un; sudo -n id -un", user="admin")
    assert result.stdout == "admin\nroot\n"


def test_files_and_input_arrive_as_they_are(lab: Lab) -> None:
    vps = lab.vps["vps1"]
    text = "Größe «1»\n$HOME `id` 'x' \"y\" \\n\n"
    vps.write("/etc/new dir/it's", text, mode=0o640)
    assert vps.read("/etc/new dir/it's") == text
    assert vps.run(["stat", "-c", "%a %U", "/etc/new dir/it's"]).stdout == "640 root\n"
    assert vps.run("cat", input=text).stdout == text


@each_release
def test_apt_works_without_a_network(lab: Lab) -> None:
    vps = lab.vps["vps1"]
    vps.run("apt-get update && apt-get install --yes socat")
    assert "socat" in vps.run("command -v socat").stdout


@each_release
def test_a_reboot_and_a_power_cut_keep_the_disk_but_not_the_rules(lab: Lab) -> None:
    vps = lab.vps["vps1"]
    vps.write("/etc/kept", "kept")

    def power_cycle() -> None:
        vps.power_off()
        vps.start()

    for restart in (vps.reboot, power_cycle):
        vps.run("touch /run/volatile; nft add table inet volatile")
        leader = vps.leader
        restart()
        assert vps.leader != leader
        assert vps.read("/etc/kept") == "kept"
        assert vps.run("ls /run/volatile", check=False).returncode != 0
        assert vps.run("nft list ruleset").stdout == ""


@each_release
def test_a_power_cut_tells_nobody(lab: Lab) -> None:
    vps = lab.vps["vps1"]
    with lab.inside("client"):
        connection = socket.create_connection((vps.ipv4, 22), timeout=5)
    with connection:
        assert connection.recv(4) == b"SSH-"
        vps.power_cut()
        connection.settimeout(0.5)
        connection.recv(1000)  # the rest of the greeting
        with pytest.raises(TimeoutError):
            connection.recv(1000)
        with lab.inside("client"), pytest.raises(TimeoutError):
            socket.create_connection((vps.ipv4, 22), timeout=0.5)
        assert not vps.is_on
        vps.start()
        assert vps.run("systemctl is-system-running").stdout == "running\n"


def test_an_unplugged_vps_does_not_answer(lab: Lab) -> None:
    vps = lab.vps["vps1"]
    vps.unplug()
    with lab.inside("client"), pytest.raises(TimeoutError):
        socket.create_connection((vps.ipv4, 22), timeout=0.5)
    vps.plug()
    with lab.inside("client"):
        socket.create_connection((vps.ipv4, 22), timeout=5).close()


def test_a_vps_can_be_prepared_and_replaced(lab: Lab) -> None:
    def prepare(root: Path) -> None:
        (root / "etc/prepared").write_text("by the test")

    for _ in range(2):  # the second one has the first one's addresses, at once
        vps = lab.add_vps("vps2", "trixie", prepare=prepare, memory=256 * 1024**2)
        assert vps.read("/etc/prepared") == "by the test"
        assert lab.operator.run(["ssh", "vps2", "hostname"]).stdout == "vps2\n"
        greedy = vps.run("python3 -c 'bytearray(512 * 1024**2)'; echo $?")
        assert greedy.stdout == f"{128 + signal.SIGKILL}\n"
        lab.remove_vps("vps2")
    assert [trace for trace in traces(lab.name) if "vps2" in trace] == []
    with pytest.raises(LabError, match="vps1"):
        lab.host("vps2")


@each_release
def test_cloud_init_runs(lab: Lab) -> None:
    def seed(root: Path) -> None:
        directory = root / "var/lib/cloud/seed/nocloud"
        directory.mkdir(parents=True)
        (directory / "meta-data").write_text("instance-id: vps3\n")
        (directory / "user-data").write_text(
            "#cloud-config\nlocale: C.UTF-8\nruncmd: [touch /etc/cloud-was-here]\n"
        )

    release = lab.vps["vps1"].release
    vps = lab.add_vps("vps3", release, prepare=seed, packages=["cloud-init"])
    assert "status: done" in vps.run("cloud-init status --wait").stdout
    vps.run("test -e /etc/cloud-was-here")
    lab.remove_vps("vps3")


# ---- The network -----------------------------------------------------------------------------


def test_any_name_will_do(lab: Lab) -> None:
    for name in ("a", "up", "dev"):  # words of ip(8)
        lab.add_home(name)
        with lab.inside(name), socket.create_connection((lab.dns.addresses[1], 53), timeout=5):
            pass
    for name in ("client", "bridge", "Upper", "x.y", "x-", ""):
        with pytest.raises(LabError, match=r"called|cannot be the name"):
            lab.add_home(name)


def test_families(lab: Lab) -> None:
    vps, home = lab.vps["vps1"], lab.home["home0"]
    with lab.inside("client"), pytest.raises(OSError, match="Cannot assign"):
        socket.create_connection((vps.ipv6, 22), timeout=5)
    with lab.inside("client6"):
        socket.create_connection((vps.ipv6, 22), timeout=5).close()
    with home.inside(), pytest.raises(OSError, match="unreachable"):
        socket.create_connection((vps.ipv4, 22), timeout=5)
    with lab.inside("client"), pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.88.99.1", 22), timeout=5)


def test_inside_is_left_again(lab: Lab) -> None:
    here = Path("/proc/thread-self/ns/net")
    before = here.readlink()
    with lab.inside("client"):
        assert here.readlink() != before
    assert here.readlink() == before


def test_the_operator_does_not_see_the_users_files(lab: Lab) -> None:
    said = lab.operator.run(["sh", "-c", "echo $HOME; ssh vps1 hostname; ssh-add -l"], check=False)
    assert said.stdout.splitlines()[:2] == [str(lab.operator.home_directory), "vps1"]
    assert "agent" in said.stderr


# ---- Homes -----------------------------------------------------------------------------------


def converse(lab: Lab, home: str, said: bytes, finish: bool = True) -> bytes:
    """Send something to a home's server from client6 and return all it answers."""
    with lab.inside("client6"):
        connection = socket.create_connection((lab.home[home].address, 44444), timeout=5)
    with connection:
        connection.sendall(said)
        if finish:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(100000):
            answer += data
        return answer


def test_what_homes_serve(lab: Lab) -> None:
    line = f"home0 {lab.home['home0'].address}\n".encode()
    assert converse(lab, "home0", b"whoami\n") == line
    assert converse(lab, "home0", b"whoami\nagain\n") == line * 2
    assert converse(lab, "home0", b"echo\n" + b"x" * 100000) == b"x" * 100000
    assert converse(lab, "home0", b"anything\nelse") == b"anything\nelse"
    assert converse(lab, "home0", b"y" * 10000) == b"y" * 10000
    assert converse(lab, "home0", b"sink\n" + b"x" * 300000) == b"300000\n"
    assert len(converse(lab, "home0", b"source 1000000\n", finish=False)) == 1000000
    started = time.monotonic()
    assert len(converse(lab, "home0", b"slow 0.3 10\nmore")) == 10
    assert time.monotonic() - started > 0.3
    with pytest.raises(ConnectionResetError):
        converse(lab, "home0", b"reset\n", finish=False)


def ask_over_udp(lab: Lab, address: str) -> bytes:
    """Send a datagram from client6 to a home's server and return the answer."""
    with lab.inside("client6"), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
        udp.settimeout(2)
        udp.connect((address, 33333))  # an answer from another address would not be seen
        udp.send(b"hello")
        return udp.recv(1000)


def test_a_home_moves_while_it_serves(lab: Lab) -> None:
    home, other = lab.home["home0"], lab.home["home1"]
    old = home.address
    new = home.move(keep_old=True)
    assert ask_over_udp(lab, old) == f"home0 {old} hello".encode()
    assert ask_over_udp(lab, new) == f"home0 {new} hello".encode()
    assert addresses(ask(lab, lab.dns.addresses[0], home.hostname, "AAAA")) == [new]
    newest = home.move("2001:db8:b::2")
    assert converse(lab, "home0", b"whoami\n") == f"home0 {newest}\n".encode()
    with pytest.raises(TimeoutError):
        ask_over_udp(lab, new)
    # Somebody else gets an address that was in use a moment ago.
    home.move(dns=False)
    assert addresses(ask(lab, lab.dns.addresses[0], home.hostname, "AAAA")) == [newest]
    other.move(newest)
    assert ask_over_udp(lab, newest) == f"home1 {newest} hello".encode()
    home.publish()


@pytest.mark.parametrize("address", ["192.0.2.7", "fe80::1", "nonsense"])
def test_where_a_home_cannot_move(lab: Lab, address: str) -> None:
    with pytest.raises(LabError):
        lab.home["home0"].move(address)


# ---- DNS -------------------------------------------------------------------------------------

NAME = "fault.home.example"


@pytest.mark.parametrize(
    ("kind", "rcode"),
    [
        ("servfail", dns.rcode.SERVFAIL),
        ("refused", dns.rcode.REFUSED),
        ("nxdomain", dns.rcode.NXDOMAIN),
        ("nodata", dns.rcode.NOERROR),
    ],
)
def test_faults_that_are_an_answer(lab: Lab, kind: str, rcode: dns.rcode.Rcode) -> None:
    resolver = lab.dns.addresses[0]
    lab.dns.set(NAME, aaaa=["2001:db8::1"], a=["192.0.2.1"])
    lab.dns.fault(NAME, kind, "AAAA")
    answer = ask(lab, resolver, NAME, "AAAA")
    assert (answer.rcode(), answer.answer) == (rcode, [])
    assert addresses(ask(lab, resolver, NAME, "A")) == ["192.0.2.1"]
    lab.dns.clear_faults(NAME)
    assert addresses(ask(lab, resolver, NAME, "AAAA")) == ["2001:db8::1"]


def test_faults_that_are_none(lab: Lab) -> None:
    resolver = lab.dns.addresses[0]
    lab.dns.set(NAME, aaaa=["2001:db8::1"])
    lab.dns.fault("*", "timeout")
    with pytest.raises(dns.exception.Timeout):
        ask(lab, resolver, NAME, "AAAA", timeout=0.5)
    lab.dns.fault("*", "garbage")
    with pytest.raises(dns.exception.DNSException):
        ask(lab, resolver, NAME, "AAAA", timeout=0.5)
    lab.dns.clear_faults()
    assert lab.dns.faults() == []
    lab.dns.fault(NAME, "truth", delay=0.3)
    started = time.monotonic()
    assert addresses(ask(lab, resolver, NAME, "AAAA")) == ["2001:db8::1"]
    assert time.monotonic() - started > 0.3
    lab.dns.clear_faults()


def test_faults_that_are_records(lab: Lab) -> None:
    resolver, three = lab.dns.addresses[0], ["2001:db8::1", "2001:db8::2", "2001:db8::3"]
    lab.dns.fault(NAME, "rotate", addresses=three)
    orders = [addresses(ask(lab, resolver, NAME, "AAAA")) for _ in range(4)]
    assert orders == [three, three[1:] + three[:1], three[2:] + three[:2], three]
    assert addresses(ask(lab, resolver, NAME, "A")) == []
    chain = ["CNAME b.example", "b.example CNAME c.example", "c.example AAAA ::1"]
    lab.dns.fault(NAME, "records", records=chain)
    assert addresses(ask(lab, resolver, NAME, "AAAA")) == ["b.example.", "c.example.", "::1"]
    with pytest.raises(LabError):
        lab.dns.fault(NAME, "records", records=["AAAA nonsense"])
    with pytest.raises(LabError, match="servfail"):
        lab.dns.fault(NAME, "nonsense")
    lab.dns.clear_faults()


@each_release
def test_truncation_leads_to_tcp(lab: Lab) -> None:
    lab.dns.set(NAME, aaaa=["2001:db8::1"])
    lab.dns.fault(NAME, "truncate")
    lab.dns.reset_counts()
    assert "2001:db8::1" in lab.vps["vps1"].run(f"getent ahostsv6 {NAME}").stdout
    assert {query.transport for query in lab.dns.log()} == {"udp", "tcp"}
    lab.dns.clear_faults()


def test_records_in_and_out_of_the_zone(lab: Lab) -> None:
    resolver = lab.dns.addresses[0]
    lab.dns.set("router.myfritz.example", aaaa=["2001:db8::7"])
    lab.dns.set(NAME, cname="router.myfritz.example")
    assert addresses(ask(lab, resolver, NAME, "AAAA")) == ["router.myfritz.example.", "2001:db8::7"]
    lab.dns.set(NAME)
    assert ask(lab, resolver, NAME, "AAAA").rcode() == dns.rcode.NXDOMAIN
    assert ask(lab, resolver, "example.com", "AAAA").rcode() == dns.rcode.NXDOMAIN


@each_release
def test_queries_are_counted(lab: Lab) -> None:
    vps, name = lab.vps["vps1"], lab.home["home0"].hostname
    lab.dns.reset_counts()
    assert lab.dns.queries() == 0
    vps.run(f"getent ahosts {name}")
    assert lab.dns.queries(name, "AAAA") == lab.dns.queries(name, client=vps.ipv4) / 2 == 1
    assert lab.dns.queries("other.example") == 0


# ---- Its beginning and its end ---------------------------------------------------------------

OWNER = """
import sys, time
from lab import Lab
lab = Lab(sys.argv[1], vpses={"vps1": "trixie"}).up()
lab.home["home0"].serve(tcp=[44444])
lab.operator.popen(["sh", "-c", "setsid sleep 1000 & sleep 1000"])
lab.vps["vps1"].popen("sleep 1000")
print("up", flush=True)
time.sleep(1000)
"""


def start_owner(name: str) -> subprocess.Popen[str]:
    """Start another process with a lab, and wait until it is up."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, name], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout
    assert owner.stdout.readline() == "up\n"
    return owner


def test_a_terminated_owner_leaves_nothing() -> None:
    name = f"term{WORKER}"
    owner = start_owner(name)
    assert traces(name)
    owner.send_signal(signal.SIGTERM)
    owner.wait(20)
    assert [t for t in traces(name) if f"/proc/{owner.pid}:" not in t] == []


def test_what_a_killed_owner_left_is_removed() -> None:
    name = f"kill{WORKER}"
    owner = start_owner(name)
    owner.kill()
    owner.wait(20)
    assert traces(name)
    with Lab(name) as lab:
        assert lab.vps == {}
        assert not [trace for trace in traces(name) if "vps1" in trace]
    assert traces(name) == []


def test_a_lab_in_use_is_not_taken() -> None:
    name = f"used{WORKER}"
    with Lab(name, homes=[]), pytest.raises(LabError, match=f"up already.*{os.getpid()}"):
        Lab(name).up()
    assert traces(name) == []


def test_a_lab_goes_up_again() -> None:
    lab = Lab(f"again{WORKER}", vpses={"vps1": "trixie", "vps2": "bookworm"})
    for _ in range(2):
        with lab:
            assert [vps.ipv4 for vps in lab.vps.values()] == ["203.0.113.10", "203.0.113.11"]
            assert lab.vps["vps2"].run("hostname").stdout == "vps2\n"
    assert traces(lab.name) == []
    with pytest.raises(LabError, match="not up"):
        lab.operator.run(["true"])


def test_a_failed_start_leaves_nothing() -> None:
    name = f"fail{WORKER}"
    with pytest.raises(LabError, match="already"):
        Lab(name, vpses={"vps1": "trixie", "client": "trixie"}).up()
    with pytest.raises(LabError, match="bookworm"):
        Lab(name, vpses={"vps1": "sarge"}).up()
    assert "OverflowError" in command("up", "--name", name, "--tcp", "99999").stderr
    assert traces(name) == []


def test_only_the_very_process_is_ended() -> None:
    sleeper = subprocess.Popen(["sleep", "1000"])
    process = Process.of(sleeper.pid)
    assert process
    end([Process(process.pid, process.start + 1)], grace=0)
    assert sleeper.poll() is None
    end([process])
    assert sleeper.wait(5) == -signal.SIGTERM


# ---- The command line ------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m lab` with these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "lab", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command_line() -> None:
    name = f"cli{WORKER}"
    this = ("--name", name)
    assert command("up", *this, "--homes", "2").returncode == 0
    try:
        again = command("up", *this)
        assert (again.returncode, "up already" in again.stderr) == (1, True)
        assert "203.0.113.10" in command("status").stdout
        assert command("status", "--name", "other").stdout == ""
        assert command("shell", *this, "vps1", "--", "echo", "a  b").stdout == "a  b\n"
        assert command(*this, "shell", "vps1", "--", "exit 7").returncode == 7
        assert command("shell", "vps1", *this, "--", "echo", "--name", "x").stdout == "--name x\n"
        assert command("shell", *this, "client", "--", "exit 7").returncode == 7
        assert "203.0.113.10" in command("shell", *this, "client", "getent", "hosts", "vps1").stdout
        assert "-> 2001:db8:a001:2::10" in command("move", *this, "home1").stdout
        assert "2001:db8:a001:2::10" in command("show").stdout
        assert command("fault", *this, "*", "servfail").returncode == 0
        assert command(*this, "fault").stdout == "* servfail\n"
        assert command("fault", *this, "*", "off").returncode == 0
        assert command("fault", *this).stdout == ""
        assert command("power", *this, "vps1", "cut").stdout == "vps1 is off\n"
        for wrong in (
            ("shell", "nobody"),
            ("move", "vps1"),
            ("move", "home0", "x"),
            ("power", "home0", "on"),
        ):
            result = command(wrong[0], *this, *wrong[1:])
            assert result.returncode == 1
            assert result.stderr.startswith("lab: ")
            assert "Traceback" not in result.stderr
    finally:
        assert command("down", *this).returncode == 0
    assert traces(name) == []
    assert command("shell", *this, "vps1").returncode == 1
