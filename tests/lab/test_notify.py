# SPDX-License-Identifier: GPL-3.0-or-later
"""What the VPS tells the admin, by each way, to real servers; and that it keeps their secrets."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from email import message_from_string
from email.message import EmailMessage
from email.policy import default

import pytest
from lab_samples import STANDARD, home_data
from receivers import NAME, Authority, HttpServer, MailServer

from lab import Lab
from lab.checkout import Checkout
from lab.vps import Vps

UPDATER = "home-address-updater.service"
SPOOL = "/var/lib/home-forwarder/spool"
SECRET = "correct-horse-battery-staple"  # noqa: S105 - it is made to be searched for
PROGRAM = "/usr/local/bin/tell-me"


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def receiver(lab: Lab) -> Iterator[str]:
    """A name in DNS for the host of the receivers."""
    lab.dns.set(NAME, aaaa=[lab.client6.addresses[1]])
    yield NAME
    lab.dns.set(NAME)


def deploy(lab: Lab, checkout: Checkout, notify: Mapping[str, object], *arguments: str) -> str:
    """Deploy two forwards to home0 with this notify; what pyinfra said."""
    homes = [{**home_data(lab, count=1)[0], "description": "Fritz!Box «at home»"}]
    checkout.declare(homes, STANDARD[:2], check_interval=3600, notify=notify)
    done = checkout.deploy(*arguments)
    return done.stdout + done.stderr


def secret_file(checkout: Checkout, text: str = SECRET) -> str:
    """A file at the operator; its path for the data."""
    path = checkout.directory / "secret"
    path.touch(mode=0o600)
    path.write_text(f"{text}\n")
    return "secret"


def move(lab: Lab, vps: Vps) -> str:
    """home0 gets another address and the VPS sees it; the words of the subject."""
    old = lab.home["home0"].address
    lab.home["home0"].move()
    vps.run("systemctl start home-address-updater")
    # By systemd's clock: the way there and back takes its time on a busy machine.
    started, ended = (
        int(
            vps.run(
                ["systemctl", "show", "-P", f"ExecMain{what}TimestampMonotonic", UPDATER]
            ).stdout
        )
        for what in ("Start", "Exit")
    )
    assert ended - started < 2_000_000, "the update waited for the notification"
    return f"moved from {old} to {lab.home['home0'].address}"


def waiting(vps: Vps) -> list[str]:
    """What is in the spool."""
    return vps.run(["ls", SPOOL]).stdout.split()


def until(true: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def idle(vps: Vps, unit: str = "home-notifier") -> None:
    """Until a sender that was started by its path unit has ended."""
    until(lambda: vps.run(["systemctl", "is-active", unit], check=False).stdout[:3] != "act")


def journal(vps: Vps, unit: str) -> str:
    return vps.run(["journalctl", "-q", "-o", "cat", "-u", unit]).stdout


def told(vps: Vps, way: str) -> list[str]:
    """The moves that were told by a way, in order, as its sender has it."""
    unit = "home-notifier" if way == "mail" else f"home-notifier-{way}"
    return re.findall(f"Told by {way}: .*(moved .*)", journal(vps, unit))


# ---- Mails through the VPS's own mail server ---------------------------------------------------


def mails(vps: Vps, count: int) -> list[EmailMessage]:
    """root's mailbox, once that many mails are in it."""
    vps.run(
        f"timeout 20 sh -c 'until [ $(grep -c ^Subject: /var/mail/root) -ge {count} ];"
        " do sleep 0.2; done' 2>/dev/null"
    )
    box = re.split(r"^From .*\n", vps.read("/var/mail/root"), flags=re.M)[1:]
    return [message_from_string(text, policy=default) for text in box]


def moves_of(mails: list[EmailMessage]) -> list[str]:
    return sorted(mail["Subject"].partition(": ")[2].strip() for mail in mails)


@pytest.mark.vps(packages=["socat", "postfix"])
@pytest.mark.parametrize("notify", [{"mail_to": "root"}, {"mail_to": "root", "sendmail": True}])
def test_mail_on_change(lab: Lab, vps: Vps, checkout: Checkout, notify: dict[str, object]) -> None:
    """By SMTP or sendmail to postfix: which home, from where to where, the forwards concerned."""
    deploy(lab, checkout, notify)
    moved = move(lab, vps)
    (mail,) = mails(vps, 1)
    assert mail["Subject"].strip() == f"Fritz!Box «at home»: {moved}"
    assert "\nForwards restarted:\n  tcp 44444\n  udp 33333\n" in mail.get_content()
    assert waiting(vps) == []


@pytest.mark.vps(packages=["socat", "postfix"])
def test_mails_wait_for_the_mail_server(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """Three changes while the mail server is down: three mails when it is back, each once."""
    deploy(lab, checkout, {"mail_to": "root"})
    # The timer's five minutes become a second, and not the one to 61 s that its accuracy allows.
    vps.run("mkdir -p /run/systemd/system/home-notifier.timer.d")
    vps.write(
        "/run/systemd/system/home-notifier.timer.d/soon.conf",
        "[Timer]\nOnUnitInactiveSec=1s\nAccuracySec=1ms\n",
    )
    vps.run("systemctl daemon-reload && systemctl restart home-notifier.timer")
    vps.run("postfix stop", check=False)
    moves = [move(lab, vps) for _ in range(3)]
    until(lambda: journal(vps, "home-notifier").count("3 messages left for the next try") >= 2)
    assert len(waiting(vps)) == 3
    vps.run("postfix start")
    until(lambda: waiting(vps) == [])
    assert told(vps, "mail") == moves
    # postfix does not keep to the order in which it was handed them.
    assert moves_of(mails(vps, 3)) == sorted(moves)
    vps.run("systemctl start home-notifier")
    assert moves_of(mails(vps, 3)) == sorted(moves)


# ---- Mails through a server on the internet, with a login --------------------------------------


def world_search(vps: Vps) -> set[str]:
    """Every place on the VPS where SECRET, or how SMTP sends it, is found: files, journal, processes.

    A file that did not change since the VPS was switched on is the image's, and has nothing of ours.
    """
    # Assembled there, so that the search does not find itself.
    script = """
import base64, os, subprocess
secret = "-".join(("correct", "horse", "battery", "staple")).encode()
words = [secret, base64.b64encode(secret), base64.b64encode(b"\\0me\\0" + secret)]
show = ["systemctl", "show", "-P", "UserspaceTimestamp", "--timestamp=unix"]
switched_on = int(subprocess.check_output(show)[1:])
for directory, subdirectories, names in os.walk("/"):
    if directory == "/":
        subdirectories[:] = sorted(set(subdirectories) - {"proc", "sys", "dev"})
    for path in (os.path.join(directory, name) for name in names):
        if os.path.isfile(path) and os.lstat(path).st_ctime >= switched_on:
            content = open(path, "rb").read()
            if any(word in content for word in words):
                print(path, oct(os.stat(path).st_mode & 0o777))
for command in ("journalctl --no-pager", "ps axww -o args", "systemctl show home-notifier.service",
                "cat /proc/*/cmdline /proc/*/environ"):
    found = subprocess.run(["sh", "-c", command], stdout=-1, stderr=-3).stdout
    if any(word in found for word in words):
        print(command)
"""
    vps.write("/root/search.py", script)
    return set(vps.run("python3 /root/search.py").stdout.splitlines())


@pytest.mark.filterwarnings("ignore:Requiring AUTH")  # it does not see the TLS of port 465
@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_login_over_tls(
    lab: Lab, vps: Vps, checkout: Checkout, receiver: str, authority: Authority, security: str
) -> None:
    """Nothing goes to a server that nobody vouches for; to the right one, encrypted, after a login."""
    server = MailServer(authority, "me", SECRET)
    smtp = {"host": receiver, "security": security, "user": "me"}
    smtp["password_file"] = secret_file(checkout)
    notify = {"mail_to": "admin@lab.example", "mail_from": "vps@lab.example", "smtp": smtp}
    deploy(lab, checkout, notify)
    with server.running(lab, tls=security == "tls"):
        moved = move(lab, vps)
        until(lambda: "certificate verify failed" in journal(vps, "home-notifier"))
        assert (server.mails, len(waiting(vps))) == ([], 1)
        authority.be_trusted(vps)
        vps.run("systemctl start home-notifier")
    (mail,) = server.mails
    assert (mail.to, mail.sender) == (["admin@lab.example"], "vps@lab.example")
    assert (mail.user, mail.encrypted) == ("me", True)
    assert mail.message["From"] == "home-forwarder <vps@lab.example>"
    assert mail.message["Subject"] == f"Fritz!Box «at home»: {moved}"
    assert waiting(vps) == []


def test_the_password_is_found_nowhere_else(
    lab: Lab, vps: Vps, checkout: Checkout, receiver: str, authority: Authority
) -> None:
    """Promise 17: while it is used, when the server repeats it, in what the operator sees, and after."""
    server = MailServer(authority, "me", SECRET)
    smtp = {"host": receiver, "user": "me", "password_file": secret_file(checkout)}
    notify = {"mail_to": "admin@lab.example", "smtp": smtp}
    said = deploy(lab, checkout, notify, "-vvv")
    vps.run("rm /etc/home-forwarder.conf; echo old >/etc/home-forwarder/smtp-password")
    shown = checkout.pyinfra("--dry", "--diff", "inventory.py", "deploy.py")
    said += shown.stdout + shown.stderr
    assert "+ SEND_MAILS_TO" in said
    assert "/etc/home-forwarder/smtp-password (mode 600, its content is secret)" in said
    verified = checkout.verify(check=False).stdout
    assert "/etc/home-forwarder/smtp-password: its content differs" in verified
    said += verified + deploy(lab, checkout, notify, "--debug")
    assert SECRET not in said

    authority.be_trusted(vps)
    place = "/etc/home-forwarder/smtp-password 0o600"
    server.holds = True
    with server.running(lab):
        move(lab, vps)
        assert server.accepting.wait(10)
        # While it is in use, systemd keeps a copy for this unit alone, in memory.
        meanwhile = {tuple(each.split()) for each in world_search(vps)}
        copy = "/run/credentials/home-notifier.service/smtp-password"
        assert {path for path, _ in meanwhile} == {place.split()[0], copy}
        assert {mode for _, mode in meanwhile} <= {"0o600", "0o400", "0o440"}
        server.holds = False
        until(lambda: server.mails)
        idle(vps)
    other = MailServer(authority, "me", "another password")
    with other.running(lab):
        move(lab, vps)
        until(lambda: "the login of me was refused (535)" in journal(vps, "home-notifier"))
        idle(vps)
    assert world_search(vps) == {place}
    assert len(waiting(vps)) == 1
    assert SECRET not in deploy(lab, checkout, {"mail_to": "root"}, "--diff")
    assert world_search(vps) == set()
    assert vps.run("ls /etc/home-forwarder", check=False).returncode != 0


def test_a_mail_reaches_each_recipient_once(
    lab: Lab, vps: Vps, checkout: Checkout, receiver: str, authority: Authority
) -> None:
    """Who is refused today is tried again; the others do not get it twice, and later mails go on."""
    server = MailServer(authority, "me", SECRET)
    smtp = {"host": receiver, "user": "me", "password_file": secret_file(checkout)}
    deploy(lab, checkout, {"mail_to": "one@lab.example, two@lab.example", "smtp": smtp})
    authority.be_trusted(vps)
    server.answers = {"two@lab.example": "550 5.1.1 nobody of that name"}
    with server.running(lab):
        moves = [move(lab, vps)]
        until(lambda: len(server.mails) == 1)
        idle(vps)
        moves.append(move(lab, vps))
        until(lambda: len(server.mails) == 2)
        idle(vps)
        assert [mail.to for mail in server.mails] == [["one@lab.example"]] * 2
        said = journal(vps, "home-notifier")
        assert "for two@lab.example: 550 5.1.1 nobody of that name\n" in said
        assert len(waiting(vps)) == 2
        server.answers = {}
        vps.run("systemctl start home-notifier")
    assert [mail.to for mail in server.mails[2:]] == [["two@lab.example"]] * 2
    subjects = [mail.message["Subject"].partition(": ")[2] for mail in server.mails]
    assert subjects == moves * 2
    identities = [mail.message["Message-ID"] for mail in server.mails]
    assert identities[:2] == identities[2:]
    assert waiting(vps) == []


# ---- A webhook ---------------------------------------------------------------------------------


def test_webhook(
    lab: Lab, vps: Vps, checkout: Checkout, receiver: str, authority: Authority
) -> None:
    """Each preset as its server wants it; promise 17 for the token and for a URL."""
    server = HttpServer(authority)
    base, token = f"https://{receiver}:8443", secret_file(checkout)
    (checkout.directory / "url").touch(mode=0o600)
    (checkout.directory / "url").write_text(f"{base}/hooks/{SECRET}?a=b\n")
    places = {
        "token": "/etc/home-forwarder/webhook-token 0o600",
        "url": "/etc/home-forwarder/webhook-url 0o600",
    }
    authority.be_trusted(vps)
    with server.running(lab, 8443):
        deploy(lab, checkout, {"webhook": {"url_file": "url"}})
        moved = move(lab, vps)
        until(lambda: len(server.posts) == 1)
        assert world_search(vps) == {places["url"]}
        deploy(
            lab,
            checkout,
            {"webhook": {"url": f"{base}/topic", "preset": "ntfy", "token_file": token}},
        )
        move(lab, vps)
        until(lambda: len(server.posts) == 2)
        deploy(lab, checkout, {"webhook": {"url": base, "preset": "gotify", "token_file": token}})
        move(lab, vps)
        until(lambda: len(server.posts) == 3)
        idle(vps, "home-notifier-webhook")
    assert world_search(vps) == {places["token"]}
    assert waiting(vps) == []
    plain, ntfy, gotify = server.posts
    assert plain.path == f"/hooks/{SECRET}?a=b"
    assert plain.headers["Content-Type"] == "application/json"
    assert "Authorization" not in plain.headers
    old, new = moved.split()[2::2]
    expected = {
        "event": "changed",
        "index": 0,
        "hostname": "home0.home.example",
        "description": "Fritz!Box «at home»",
        "family": "ipv6",
        "old_address": old,
        "new_address": new,
        "forwards": ["tcp 44444", "udp 33333"],
        "vps": "vps1",
        "subject": f"Fritz!Box «at home»: {moved}",
    }
    assert {key: plain.content[key] for key in expected} == expected
    assert "Forwards restarted:\n" in plain.content["text"]
    assert ntfy.path == "/"
    assert ntfy.headers["Authorization"] == f"Bearer {SECRET}"
    assert ntfy.content["topic"] == "topic"
    assert ntfy.content["title"].startswith("Fritz!Box «at home»: moved from ")
    assert "Forwards restarted:\n" in ntfy.content["message"]
    assert gotify.path == "/message"
    assert gotify.headers["Authorization"] == f"Bearer {SECRET}"
    assert set(gotify.content) == {"title", "message", "priority"}


def test_answers_of_a_webhook(
    lab: Lab, vps: Vps, checkout: Checkout, receiver: str, authority: Authority
) -> None:
    """Down or refusing: it waits, is said once a run, is given up after a week; no redirect is followed."""
    server, unit = HttpServer(authority), "home-notifier-webhook"
    deploy(lab, checkout, {"webhook": {"url": f"http://{receiver}:8080/x"}})
    moves = [move(lab, vps) for _ in range(2)]
    idle(vps, unit)
    assert len(waiting(vps)) == 2
    assert "Connection refused" in journal(vps, unit)
    with server.running(lab, 8080, tls=False):
        tries = 0
        for status, each_run in ((503, 1), (404, 2), (401, 2), (302, 2)):
            server.status, server.headers = status, {"Location": f"http://{receiver}:8080/other"}
            vps.run(f"journalctl --rotate; systemctl start {unit}", check=False)
            tries += each_run  # a server in trouble is left alone, a refusal may be of one message
            assert len(server.posts) == tries
            assert journal(vps, unit).count(f"it answered {status} ") == 1
        assert {post.path for post in server.posts} == {"/x"}
        # The first one is a week old.
        first = waiting(vps)[0]
        stamp, _, rest = first.partition("-")
        vps.run(f"cd {SPOOL} && mv {first} {float(stamp) - 7 * 86400 - 60:.6f}-{rest}")
        vps.run(f"systemctl start {unit}", check=False)
        assert "could not be delivered for 7 days and is dropped" in journal(vps, unit)
        assert len(waiting(vps)) == 1
        server.status = 204
        vps.run(f"systemctl start {unit}")
    assert server.posts[-1].content["subject"].endswith(moves[1])
    assert waiting(vps) == []


# ---- A program, and several ways at once -------------------------------------------------------


def install_program(vps: Vps, lines: str) -> None:
    """A program of the admin's own; what it prints is in the journal."""
    vps.write(PROGRAM, f"#!/bin/sh\n{lines}\n", mode=0o755)


def test_program(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """It gets the facts in its environment, runs in a sandbox, and a failing one is tried again."""
    install_program(
        vps,
        'echo "[$HOME_EVENT][$HOME_INDEX][$HOME_DESCRIPTION][$HOME_HOSTNAME][$HOME_NEW_ADDRESS]'
        '[$HOME_FORWARDS]$#"; id -u; env | grep -c ^NOTIFY\nfor place in /etc /var /var/lib/home-forwarder'
        " /var/lib/home-forwarder/watch; do touch $place/x && echo escaped; done\n"
        "[ -e /etc/refuse ] && exit 1\n[ -e /etc/later ] && exit 75\nexit 0",
    )
    homes = [{**home_data(lab, count=1)[0], "description": "$(touch /tmp/x) `id`; 'x' \"y\""}]
    checkout.declare(homes, STANDARD[:2], check_interval=3600, notify={"program": PROGRAM})
    checkout.deploy()
    move(lab, vps)
    until(lambda: "Told by program" in journal(vps, "home-notifier-program"))
    said = journal(vps, "home-notifier-program").splitlines()
    assert (
        f"[changed][0][$(touch /tmp/x) `id`; 'x' \"y\"][home0.home.example]"
        f"[{lab.home['home0'].address}][tcp 44444, udp 33333]0"
    ) in said
    assert "0" in said  # none of our own settings
    assert not {"escaped", "root"} & set(said)
    assert int(next(line for line in said if line.isdecimal() and line != "0")) > 60000
    idle(vps, "home-notifier-program")

    for how, attempts in (("refuse", 2), ("later", 1)):
        vps.run(f"touch /etc/{how}; systemctl stop home-notifier-program.path")
        moves = [move(lab, vps) for _ in range(2)]
        before = journal(vps, "home-notifier-program").count("[changed]")
        vps.run("systemctl start home-notifier-program", check=False)
        assert len(waiting(vps)) == 2
        assert journal(vps, "home-notifier-program").count("[changed]") == before + attempts
        vps.run(f"rm /etc/{how}; systemctl start home-notifier-program")
        assert waiting(vps) == []
        assert told(vps, "program")[-2:] == moves


@pytest.mark.vps(packages=["socat", "postfix"])
def test_one_way_down_is_nothing_to_the_others(
    lab: Lab, vps: Vps, checkout: Checkout, receiver: str, authority: Authority
) -> None:
    """Three ways, one of which hangs and one of which is down: the third is told at once, all once."""
    install_program(vps, "exit 0")
    server, unit = HttpServer(authority), "home-notifier-webhook"
    webhook = {"url": f"http://{receiver}:8080/x"}
    deploy(lab, checkout, {"mail_to": "root", "webhook": webhook, "program": PROGRAM})
    vps.run("postfix stop", check=False)

    server.hangs = True
    with server.running(lab, 8080, tls=False):
        moves = []
        for _ in range(3):
            moves.append(move(lab, vps))
            until(lambda: told(vps, "program") == moves, seconds=3)
        assert server.posts == []
        assert mails_waiting(vps) == {"mail": 3, "webhook": 3}
        server.hangs = False
        vps.run(f"systemctl stop {unit}; systemctl start {unit}")
        vps.run("postfix start && systemctl start home-notifier")
    subjects = [post.content["subject"].partition(": ")[2] for post in server.posts]
    assert subjects == moves
    assert told(vps, "mail") == moves
    vps.run(f"systemctl start home-notifier {unit} home-notifier-program")
    assert (len(server.posts), told(vps, "program")) == (3, moves)
    assert moves_of(mails(vps, 3)) == sorted(moves)
    assert waiting(vps) == []


def mails_waiting(vps: Vps) -> dict[str, int]:
    ways = [name.split(".")[-2] for name in waiting(vps)]
    return {way: ways.count(way) for way in sorted(set(ways))}


def test_what_is_no_longer_declared(lab: Lab, vps: Vps, checkout: Checkout) -> None:
    """The units of a way go with it, and what it was to tell; without any, nothing is spooled."""
    install_program(vps, "exit 1")
    deploy(lab, checkout, {"program": PROGRAM})
    move(lab, vps)
    until(lambda: "it ended with 1" in journal(vps, "home-notifier-program"))
    deploy(lab, checkout, {"mail_to": "root"})
    assert "home-notifier-program" not in vps.run("systemctl list-units --all 'home-*'").stdout
    assert vps.run("ls /etc/systemd/system/*/home-notifier-* ", check=False).returncode != 0
    vps.run("systemctl start home-notifier")
    assert waiting(vps) == []
    assert "nobody is told by program any more" in journal(vps, "home-notifier")
    checkout.declare(home_data(lab, count=1), STANDARD[:2], check_interval=3600)
    checkout.deploy()
    assert (
        vps.run("systemctl list-unit-files 'home-notifier*' | grep home", check=False).stdout == ""
    )
    vps.run("echo SEND_MAILS_TO=root >>/etc/home-forwarder.conf")
    move(lab, vps)
    assert waiting(vps) == []
    assert "Nobody is told: no sender is here" in journal(vps, "home-address-updater")


def test_security_scores(lab: Lab, vps: Vps, checkout: Checkout, receiver: str) -> None:
    """Senders at 1.5 or better; root's sendmail has the capabilities of a mail program and no more."""
    smtp = {"host": receiver, "user": "me", "password_file": secret_file(checkout)}
    notify = {"mail_to": "me@lab.example", "smtp": smtp, "program": PROGRAM}
    notify["webhook"] = {"url": f"https://{receiver}/x", "token_file": "secret"}
    deploy(lab, checkout, notify)

    def score(unit: str) -> float:
        overall = vps.run(f"systemd-analyze security --no-pager {unit} | tail -n 1").stdout
        return float(overall.split(": ")[1].split()[0])

    for unit in ("home-notifier", "home-notifier-webhook", "home-notifier-program"):
        assert score(f"{unit}.service") <= 1.5, unit
    deploy(lab, checkout, {"mail_to": "root", "sendmail": True})
    assert score("home-notifier.service") <= 2.5
