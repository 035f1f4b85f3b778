# SPDX-License-Identifier: GPL-3.0-or-later
"""The forwards: ports of the VPS that lead to a home, each by a relay process."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator

from home_forwarder.plan import (
    UNITS,
    File,
    Listen,
    Ours,
    Part,
    Relay,
    program_file,
    unit_file,
)
from home_forwarder.relay_programs import RELAY_PROGRAMS
from home_forwarder.values import (
    Model,
    PortRange,
    one_of,
    parse_name,
    parse_ports,
    parse_switch,
    whole_number,
)

PROTOCOLS = ("tcp", "udp")
VARIANTS = ("46", "4", "6")
MAX_CONNECTIONS = 16384
"""Of one forward: with socat each connection is a process of its own on the VPS."""
IDLE_TIMEOUT = {"tcp": 7440, "udp": 300}
"""Seconds: RFC 5382 (REQ-5, 2 h 4 min) for TCP, RFC 4787 (REQ-5) for UDP."""
MAX_IDLE_TIMEOUT = 30 * 86400
DEFAULT_RELAYS = {"tcp": "socat", "udp": "nginx"}
"""socat cannot keep UDP clients apart (promise 24)."""
LEAST_PER_CLIENT = 64
"""Where a quarter of max_connections is less, one client is not limited unless that is asked for."""
SPARE_TASKS = 32
"""Processes of a relay beside its connections: the listener, and those just ending."""
OURS = Ours(
    units=(
        r"home-(tcp|udp)forwarder(-(46|4|6)-to-6)?@[^/]*\.service",
        r"home-((tcp|udp)?forwarders)\.(service|timer|path)",
    ),
    drop_ins=(r"forward\.conf",),
    files=(
        ("/usr/local/lib/home-forwarder", r"[^/]+"),
        # There while a package is being installed: home_forwarder/distribution_service.py.
        *(
            (f"{UNITS}/{service}.d", r"home-forwarder\.conf")
            for service in sorted(
                package.service
                for program in RELAY_PROGRAMS.values()
                for package in program.packages
                if package.service
            )
        ),
    ),
)
LAUNCHERS = (
    "/usr/local/lib/home-forwarder/port-holder",
    "/usr/local/lib/home-forwarder/relay",
)

# ---- What may be declared --------------------------------------------------------------------


class Forward(Model):
    """One port, or range of ports, of the VPS that leads to a home."""

    home: Annotated[str, BeforeValidator(parse_name)]
    protocol: Annotated[Literal["tcp", "udp"], one_of("tcp", "udp")]
    port: Annotated[PortRange, BeforeValidator(parse_ports)]
    target_port: Annotated[int, whole_number("a port", 1, 65535)] | None = None
    listen: Annotated[Literal["46", "4", "6"], one_of("46", "4", "6")] = "46"
    idle_timeout: (
        Annotated[int, whole_number("a time", 1, MAX_IDLE_TIMEOUT, "of seconds")] | None
    ) = None
    max_connections: Annotated[int, whole_number("a limit", 1, MAX_CONNECTIONS)] = 1024
    max_per_client: Annotated[int, whole_number("a limit", 1, MAX_CONNECTIONS)] | None = None
    relay: Annotated[str, one_of(*RELAY_PROGRAMS)] | None = None
    proxy_protocol: Annotated[bool, BeforeValidator(parse_switch)] = False

    @property
    def program(self) -> str:
        """The declared relay, or its protocol's default: a key of RELAY_PROGRAMS."""
        return self.relay or DEFAULT_RELAYS[self.protocol]

    @property
    def per_client(self) -> int:
        """The declared max_per_client, or its default; 0 for none.

        A limit below LEAST_PER_CLIENT would turn people away who share an address.
        """
        if self.max_per_client is not None:
            return self.max_per_client
        quarter = self.max_connections // 4
        able = RELAY_PROGRAMS[self.program].max_per_client
        return quarter if able and quarter >= LEAST_PER_CLIENT else 0

    @property
    def idle_seconds(self) -> int:
        """The declared idle_timeout, or its protocol's default."""
        return self.idle_timeout or IDLE_TIMEOUT[self.protocol]

    def target_of(self, port: int) -> int:
        """The port at home that `port` of the VPS leads to."""
        return (self.target_port or self.port.first) + port - self.port.first


def wrong_forward(where: str, forward: Forward, homes: Sequence[str]) -> Iterator[str]:
    """What is wrong with one forward, its port being free; each message begins with `where`."""
    if forward.home not in homes:
        close = difflib.get_close_matches(forward.home, homes, n=1)
        right = f"the homes are {', '.join(homes)}" if homes else "there are no homes"
        if close:
            right = f"did you mean {close[0]!r}?"
        yield f"{where}.home: {forward.home!r} is not the name of a home; {right}"
    if forward.target_of(forward.port.last) > 65535:
        yield (
            f"{where}.target_port: {forward.target_port} is too high for a range of"
            f" {len(forward.port)} ports; the last would be {forward.target_of(forward.port.last)}"
        )
    if forward.proxy_protocol and forward.protocol != "tcp":
        yield f"{where}.proxy_protocol: True is for tcp only; leave it out of a udp forward"
    elif forward.proxy_protocol and "tcp" not in RELAY_PROGRAMS[forward.program].proxy_protocol:
        able = [name for name, each in RELAY_PROGRAMS.items() if "tcp" in each.proxy_protocol]
        yield (
            f"{where}.proxy_protocol: True is more than {forward.program} can do;"
            f' write "relay": "{able[0]}" as well'
        )
    if forward.max_per_client and not RELAY_PROGRAMS[forward.program].max_per_client:
        able = [name for name, each in RELAY_PROGRAMS.items() if each.max_per_client]
        yield (
            f"{where}.max_per_client: {forward.max_per_client} is more than {forward.program} can do;"
            f' write "relay": "{able[0]}" as well'
        )


# ---- What a VPS gets for it ------------------------------------------------------------------


def forwards_part(forwards: Sequence[Forward], homes: Mapping[str, int]) -> Part:
    """The groups, a unit and a relay for each port.

    homes: the INDEX of each home by its name.
    """
    relays, instances = [], []
    for forward in forwards:
        for port in forward.port:
            settings = _settings(forward, port)
            relay = _relay(forward, port, homes[forward.home], settings)
            relays.append(relay)
            instances.append(_drop_in(relay, settings))
    variants: dict[tuple[str, str], list[str]] = {}
    for relay in relays:
        variants.setdefault((relay.forward, relay.protocol), []).append(relay.listen)
    programs = ["socat", *(forward.program for forward in forwards)]  # socat: for use by hand
    return Part(
        packages=tuple(
            package for name in dict.fromkeys(programs) for package in RELAY_PROGRAMS[name].packages
        ),
        files=(
            *map(program_file, LAUNCHERS),
            *_templates(),
            *instances,
            # Dependencies cannot be taken away by a drop-in: other families have a file of their own.
            *(
                _forward_unit(unit, protocol, families)
                for (unit, protocol), families in variants.items()
                if families != ["46"]
            ),
        ),
        enabled=(
            ("home-forwarders.service", ("multi-user.target",)),
            *(
                (
                    f"home-{protocol}forwarders.service",
                    ("multi-user.target", "home-forwarders.service"),
                )
                for protocol in PROTOCOLS
            ),
            *(
                (unit, ("multi-user.target", f"home-{protocol}forwarders.service"))
                for unit, protocol in variants
            ),
        ),
        relays=tuple(relays),
        listens=tuple(
            Listen(relay.protocol, relay.listen, relay.ports, relay.unit) for relay in relays
        ),
    )


def _templates() -> Iterator[File]:
    """The groups, and what each forward is an instance of, for use by hand as well."""
    yield unit_file("home-forwarders.service")
    for protocol in PROTOCOLS:
        group = f"home-{protocol}forwarders.service"
        yield unit_file(group, "home-PROTOCOLforwarders.service", protocol=protocol)
        yield _forward_unit(f"home-{protocol}forwarder@.service", protocol, ["46"])
        for listen in VARIANTS:
            yield unit_file(
                f"home-{protocol}forwarder-{listen}-to-6@.service",
                "home-PROTOCOLforwarder-LISTEN-to-6@.service",
                protocol=protocol,
                listen=listen,
                default_max_connections=Forward.model_fields["max_connections"].default,
                spare_tasks=SPARE_TASKS,
            )


def _forward_unit(name: str, protocol: str, variants: list[str]) -> File:
    template = "home-PROTOCOLforwarder@.service"
    return unit_file(name, template, protocol=protocol, variants=variants)


def _settings(forward: Forward, port: int) -> dict[str, int | str]:
    """What a relay is told. What is not said changes no revision: older relays run on."""
    return {
        "FORWARD_TARGET_PORT": forward.target_of(port),
        "FORWARD_IDLE_TIMEOUT": forward.idle_seconds,
        "FORWARD_MAX_CONNECTIONS": forward.max_connections,
        **({"FORWARD_RELAY": forward.program} if forward.program != "socat" else {}),
        **({"FORWARD_MAX_PER_CLIENT": forward.per_client} if forward.per_client else {}),
        **({"FORWARD_PROXY_PROTOCOL": "on"} if forward.proxy_protocol else {}),
    }


def _relay(forward: Forward, port: int, home: int, settings: dict[str, int | str]) -> Relay:
    instance = f"{home}:{port}"
    return Relay(
        unit=f"home-{forward.protocol}forwarder-{forward.listen}-to-6@{instance}.service",
        forward=f"home-{forward.protocol}forwarder@{instance}.service",
        protocol=forward.protocol,
        listen=forward.listen,
        ports=PortRange(port, port),
        home=home,
        program=forward.program,
        revision=hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:16],
        per_client=forward.per_client,
    )


def _drop_in(relay: Relay, settings: dict[str, int | str]) -> File:
    return unit_file(
        f"{relay.unit}.d/forward.conf",
        "home-PROTOCOLforwarder-LISTEN-to-6@INSTANCE.service.d/forward.conf",
        generic=False,
        settings=settings,
        revision=relay.revision,
        spare_tasks=SPARE_TASKS,
    )
