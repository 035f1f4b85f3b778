# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: labs for people."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence

from lab.errors import LabError
from lab.home import Home
from lab.host import PlainHost
from lab.image import RELEASES, Image, prune
from lab.lab import Lab, check_prerequisites, remove_by_name
from lab.nameserver import FAULTS
from lab.owner import is_orphan, leave_in_order_when_terminated, names
from lab.picture import picture
from lab.processes import MARK
from lab.vps import Vps

DEFAULT_NAME = "lab"
DEFAULT_VPS = "vps1=trixie"
DEFAULT_TCP = [44444]
DEFAULT_UDP = [33333]

Action = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command. Returns: its exit status; 0, 1 for an error, 2 for wrong usage."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    action: Action = options.action
    leave_in_order_when_terminated()
    try:
        check_prerequisites()
        return action(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader has seen enough; nothing more can be said to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options may stand before the subcommand, after it, and between what belongs to it."""
    ours, inner = list(arguments), []
    if "shell" in ours and "--" in ours:
        # argparse would take the host for the whole command line if an option follows it.
        where = ours.index("--")
        ours, inner = ours[:where], ours[where + 1 :]
    options = _parser().parse_args(ours)
    options.inner = [*getattr(options, "command", []), *inner]
    options.shown = [options.name] if options.name else None
    options.name = options.name or DEFAULT_NAME
    return options


def _add_name(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--name", default=default, metavar="LAB", help=f"which lab (default: {DEFAULT_NAME})"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab",
        description="Throw-away VPSes, homes, clients and DNS on one Linux machine.",
        epilog="examples:\n  python -m lab up\n  python -m lab shell vps1\n  python -m lab down",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_name(parser, default=None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, action: Action, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(action=action)
        return command

    def add_named(name: str, action: Action, text: str) -> argparse.ArgumentParser:
        command = add(name, action, text)
        # Suppressed: what is not said here does not replace what was said before the subcommand.
        _add_name(command, default=argparse.SUPPRESS)
        return command

    up = add_named("up", _up, "Bring a lab up; it stays until «down».")
    up.add_argument(
        "--vps",
        action="append",
        metavar="NAME=RELEASE",
        help=f"a VPS, repeatable; {' or '.join(RELEASES)} (default: {DEFAULT_VPS})",
    )
    up.add_argument("--homes", type=int, default=1, metavar="N", help="home0, home1, ... (1)")
    for protocol, ports in (("tcp", DEFAULT_TCP), ("udp", DEFAULT_UDP)):
        up.add_argument(
            f"--{protocol}",
            type=int,
            nargs="*",
            default=ports,
            metavar="PORT",
            help=f"{protocol.upper()} ports that homes serve ({' '.join(map(str, ports))})",
        )

    down = add_named("down", _down, "Remove a lab and everything it has on this machine.")
    down.add_argument("--all", action="store_true", help="every lab")

    for name in ("status", "show"):
        add_named(name, _status, "Show which labs are up, with their hosts and addresses.")

    shell = add_named("shell", _shell, "Open a shell on a host, or run a command there.")
    shell.add_argument("host", metavar="HOST", help="a VPS (over ssh), client, home0, ...")
    shell.add_argument(
        "command",
        nargs="*",
        metavar="CMD",
        help="a line for the shell, or a program and its arguments; after «--»",
    )

    move = add_named("move", _move, "Give a home a new address; its DNS name follows.")
    move.add_argument("home", metavar="HOME")
    move.add_argument("address", nargs="?", metavar="ADDRESS", help="default: in a new prefix")
    move.add_argument("--keep-old", action="store_true", help="keep the present address, too")
    move.add_argument("--no-dns", action="store_true", help="leave the DNS name as it is")

    power = add_named("power", _power, "Switch a VPS on or off.")
    power.add_argument("vps", metavar="VPS")
    power.add_argument("what", choices=("on", "off", "cut", "reboot"))

    fault = add_named("fault", _fault, "Let DNS lie about a name; without NAME show the lies.")
    fault.add_argument("host", nargs="?", metavar="NAME", help="a DNS name, or «*» for all")
    fault.add_argument("kind", nargs="?", metavar="KIND", help=f"off, {', '.join(FAULTS)}")
    fault.add_argument("value", nargs="*", metavar="VALUE", help="an address; «AAAA ::1»")

    image = add("image", _image, "Build the images that are missing.")
    image.add_argument("release", nargs="*", metavar="RELEASE", help="default: all of them")
    image.add_argument("--prune", action="store_true", help="remove images of older recipes")
    return parser


def _up(options: argparse.Namespace) -> int:
    vpses = {}
    for text in options.vps or [DEFAULT_VPS]:
        name, separator, release = text.partition("=")
        if not separator:
            raise LabError(f"«--vps {text}» should be NAME=RELEASE, e.g. {DEFAULT_VPS}.")
        if name in vpses:
            raise LabError(f"There can be only one VPS «{name}».")
        vpses[name] = release
    if options.homes < 0:
        raise LabError(f"There cannot be {options.homes} homes.")
    started = time.monotonic()
    homes = [f"home{number}" for number in range(options.homes)]
    lab = Lab(options.name, vpses=vpses, homes=homes, stay=True)
    _say(f"Starting lab {options.name} with {', '.join([*vpses, *homes])} ...")
    lab.up()
    try:
        for home in lab.home.values():
            home.serve(options.tcp, options.udp)
    except BaseException:
        lab.down()
        raise
    _say(f"Lab {options.name} is up after {time.monotonic() - started:.1f} s.")
    print(picture(lab))
    return 0


def _down(options: argparse.Namespace) -> int:
    for name in names() if options.all else [options.name]:
        existed = remove_by_name(name)
        _say(f"Lab {name} {'is down' if existed else 'was not up'}.")
    return 0


def _status(options: argparse.Namespace) -> int:
    """All labs, or the one that was named."""
    there = [name for name in names() if name in (options.shown or [name])]
    if not there:
        which = f"Lab {options.shown[0]} is not" if options.shown else "No lab is"
        _say(f"{which} up; «python -m lab up» starts one.")
    for name in there:
        if is_orphan(name):
            print(
                f"lab {name}: left by a killed run; «python -m lab down --name {name}» removes it"
            )
        else:
            with contextlib.suppress(LabError):  # it may go down this very moment
                print(picture(Lab.attach(name)))
    return 0


def _shell(options: argparse.Namespace) -> int:
    lab = Lab.attach(options.name)
    host = lab.host(options.host)
    inner: list[str] = options.inner
    line = inner[0] if len(inner) == 1 else shlex.join(inner)
    plain = host if isinstance(host, PlainHost) else lab.operator
    if isinstance(host, Vps):
        if not host.is_on:
            raise LabError(f"{host.name} is switched off; «python -m lab power {host.name} on».")
        terminal = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else []
        inner = ["ssh", *terminal, host.name, *(["--", line] if inner else [])]
    elif len(inner) == 1:
        inner = ["sh", "-c", line]
    elif not inner:
        inner = ["bash", "--norc"] if shutil.which("bash") else ["sh"]
    environment = {**plain.environment(), MARK: lab.site.mark, "PS1": f"{host.name}:\\w\\$ "}
    sys.stdout.flush()
    # The shell takes our place: its terminal, its signals and its exit status are the user's.
    os.execvpe("ip", ["ip", "netns", "exec", plain.namespace, *inner], environment)  # noqa: S606


def _move(options: argparse.Namespace) -> int:
    home = Lab.attach(options.name).host(options.home)
    if not isinstance(home, Home):
        raise LabError(f"{options.home} is no home; only homes move.")
    old = home.address
    new = home.move(options.address, keep_old=options.keep_old, dns=not options.no_dns)
    print(f"{home.name}: {old} -> {new}")
    return 0


def _power(options: argparse.Namespace) -> int:
    vps = Lab.attach(options.name).host(options.vps)
    if not isinstance(vps, Vps):
        raise LabError(f"{options.vps} is no VPS.")
    {
        "on": vps.start,
        "off": vps.power_off,
        "cut": vps.power_cut,
        "reboot": vps.reboot,
    }[options.what]()
    print(f"{vps.name} is {'on' if vps.is_on else 'off'}")
    return 0


def _fault(options: argparse.Namespace) -> int:
    dns = Lab.attach(options.name).dns
    if options.host is None:
        for fault in dns.faults():
            details = [f"{k}={v}" for k, v in fault.items() if k not in ("name", "kind") and v]
            print(" ".join([fault["name"], fault["kind"], *details]))
    elif options.kind in (None, "off"):
        dns.clear_faults(options.host)
    else:
        key = {"rotate": "addresses", "records": "records"}.get(options.kind)
        if options.value and not key:
            raise LabError(f"The fault «{options.kind}» takes no values.")
        dns.fault(options.host, options.kind, **({key: options.value} if key else {}))
    return 0


def _image(options: argparse.Namespace) -> int:
    for release in options.release or RELEASES:
        image = Image(release, _say)
        image.build()
        print(image.directory)
    if options.prune:
        for name in prune():
            _say(f"Removed {name}.")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
