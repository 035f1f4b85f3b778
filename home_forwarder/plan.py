# SPDX-License-Identifier: GPL-3.0-or-later
"""What one VPS must look like: packages, files, links and running units, as data.

`make_plan` is pure. deploy.py makes a VPS match a plan, tests/verify checks that one does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from home_forwarder.config import Config, Forward, Notify
from home_forwarder.nginx_service import DROP_IN
from home_forwarder.render import program, render, without_comments
from home_forwarder.values import Secret

UNITS = "/etc/systemd/system"
STATE = "/var/lib/home-forwarder"
SECRETS = "/etc/home-forwarder"
PROGRAMS = (
    "/usr/local/bin/home-address-update",
    "/usr/local/lib/home-forwarder/port-holder",
    "/usr/local/lib/home-forwarder/relay",
)
NOTIFY = "/usr/local/lib/home-forwarder/notify"
PACKAGES = ("python3", "socat")
NGINX_PACKAGES = ("nginx", "libnginx-mod-stream")
"""As Debian calls them; operations/system.py has the names of others."""

PROTOCOLS = ("tcp", "udp")
VARIANTS = ("46", "4", "6")
DEFAULT_MAX_CONNECTIONS = Forward.model_fields["max_connections"].default
SPARE_TASKS = 32
"""Processes of a relay beside its connections: the listener, and those just ending."""

_UNIT_NAME = (
    r"home-(tcp|udp)forwarder(-(46|4|6)-to-6)?@[^/]*\.service"
    r"|home-((tcp|udp)?forwarders|address-updater|notifier(-webhook|-program)?)\.(service|timer|path)"
    r"|home-address-watcher(@[^/]*)?\.(path|service)"
)
OWNED_UNITS = rf"^({_UNIT_NAME})$"
"""Names of units that are ours: one that is not declared is stopped and disabled."""
UNFINISHED = ".home-forwarder-new"
"""Ends the name of a file that a deploy is just writing; operations/remote/install.py renames it."""
OWNED_FILES = (
    rf"^({UNITS}/([^/]*\.wants/)?({_UNIT_NAME})"
    rf"|{UNITS}/({_UNIT_NAME})\.d/forward\.conf"
    r"|/etc/home-forwarder\.conf|/etc/home-address-ipv[46]"
    rf"|{SECRETS}/(smtp-password|webhook-url|webhook-token)"
    rf"|{re.escape(DROP_IN)}"
    r"|/usr/local/bin/home-address-update(\.sh)?|/usr/local/lib/home-forwarder/[^/]+"
    rf")({re.escape(UNFINISHED)})?$"
)
"""Paths that are ours: one that is not declared is deleted. An admin's own drop-ins are not ours."""


@dataclass(frozen=True)
class File:
    """A regular file with all of its text; mode in octal digits."""

    path: str
    content: str = field(repr=False)
    mode: str = "644"
    owner: str = "root"
    group: str = "root"
    secret: bool = False
    """Its content is shown to nobody."""
    compact: str = field(default="", repr=False)
    """Another content that is as good: the same program without its comments, for user-data."""

    def has_content(self, sha256: str) -> bool:
        """Is that (in hexadecimal digits) the digest of what the file must hold?"""
        contents = [self.content, self.compact] if self.compact else [self.content]
        return sha256 in [hashlib.sha256(each.encode()).hexdigest() for each in contents]


@dataclass(frozen=True)
class Link:
    """A symbolic link. A unit is enabled by links, as `systemctl enable` makes them."""

    path: str
    target: str


@dataclass(frozen=True)
class Relay:
    """The relay process of one port: its unit, the forward's unit, and what it listens on."""

    unit: str
    forward: str
    protocol: str
    listen: str
    port: int
    home: int
    revision: str


@dataclass(frozen=True)
class Plan:
    """One VPS as it must be. An empty plan is a VPS with nothing of ours."""

    packages: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    links: tuple[Link, ...] = ()
    running: tuple[str, ...] = ()
    """Units that must be active, relays aside."""
    relays: tuple[Relay, ...] = ()
    """Relays run as soon as their home's address is known."""
    triggered: tuple[str, ...] = ()
    """Services that come and go: started by a timer or a path unit."""

    @property
    def entries(self) -> tuple[File | Link, ...]:
        """Everything that stands in the file system."""
        return (*self.files, *self.links)

    @property
    def units(self) -> frozenset[str]:
        """Every unit that may exist."""
        return frozenset((*self.running, *self.triggered, *(relay.unit for relay in self.relays)))


def make_plan(config: Config) -> Plan:
    """The plan for a VPS with this data."""
    homes = range(len(config.homes))
    relays = tuple(_relays(config))
    instances = {relay.forward: relay for relay in relays}
    enabled = (
        ("home-forwarders.service", ("multi-user.target",)),
        *(
            (f"home-{protocol}forwarders.service", ("multi-user.target", "home-forwarders.service"))
            for protocol in PROTOCOLS
        ),
        ("home-address-updater.timer", ("timers.target",)),
        *((f"{name}.path", ("paths.target",)) for name in _notifiers(config.notify)),
        *((f"{name}.timer", ("timers.target",)) for name in _notifiers(config.notify)),
        *((f"home-address-watcher@{index}.path", ("paths.target",)) for index in homes),
        *(
            (name, ("multi-user.target", f"home-{relay.protocol}forwarders.service"))
            for name, relay in instances.items()
        ),
    )
    files = (*_common_files(config), *_instance_files(config, relays))
    paths = {file.path for file in files}
    return Plan(
        packages=(*PACKAGES, *_relay_packages(config), *_trust(config.notify)),
        files=files,
        links=(
            *(Link(f"/etc/home-address-ipv{n}", f"{STATE}/home-address-ipv{n}") for n in (4, 6)),
            *(
                Link(f"{UNITS}/{wanting}.wants/{unit}", _unit_file(unit, paths))
                for unit, wanted_by in enabled
                for wanting in wanted_by
            ),
        ),
        running=tuple(unit for unit, _ in enabled),
        relays=relays,
        triggered=(
            "home-address-updater.service",
            *(f"{name}.service" for name in _notifiers(config.notify)),
            *(f"home-address-watcher@{index}.service" for index in homes),
        ),
    )


def _unit_file(unit: str, paths: set[str]) -> str:
    """The file that a unit comes from: its own, or that of its template."""
    own = f"{UNITS}/{unit}"
    if own in paths:
        return own
    name, _, suffix = unit.rpartition(".")
    return f"{UNITS}/{name.partition('@')[0]}@.{suffix}"


def _common_files(config: Config) -> Iterator[File]:
    """What every VPS has, whatever it forwards."""
    for path in PROGRAMS:
        yield _program(path)
    yield File(
        "/etc/home-forwarder.conf",
        render(
            "etc/home-forwarder.conf.j2",
            homes=config.homes,
            notify=_notify_settings(config.notify),
            unresolved_after=config.unresolved_after,
        ),
    )
    for name in (
        "home-forwarders.service",
        "home-address-updater.service",
        "home-address-watcher@.path",
        "home-address-watcher@.service",
    ):
        yield _unit(name, name)
    yield from _notify_files(config.notify)
    timer = "home-address-updater.timer"
    yield _unit(timer, timer, check_interval=config.check_interval)
    for protocol in PROTOCOLS:
        group = f"home-{protocol}forwarders.service"
        yield _unit(group, "home-PROTOCOLforwarders.service", protocol=protocol)
        yield _front(f"home-{protocol}forwarder@.service", protocol, ["46"])
        for listen in VARIANTS:
            yield _unit(
                f"home-{protocol}forwarder-{listen}-to-6@.service",
                "home-PROTOCOLforwarder-LISTEN-to-6@.service",
                protocol=protocol,
                listen=listen,
                default_max_connections=DEFAULT_MAX_CONNECTIONS,
                spare_tasks=SPARE_TASKS,
            )


def _notifiers(notify: Notify | None) -> dict[str, str]:
    """The units that send, without their suffix, and the way of each."""
    if notify is None:
        return {}
    return {
        **({"home-notifier": "mail"} if notify.mail_to else {}),
        **({"home-notifier-webhook": "webhook"} if notify.webhook else {}),
        **({"home-notifier-program": "program"} if notify.program else {}),
    }


def _notify_files(notify: Notify | None) -> Iterator[File]:
    if notify is not None:
        yield _program(NOTIFY)
    for name, way in _notifiers(notify).items():
        secrets = _secrets(notify, way)
        for secret, content in secrets.items():
            yield File(f"{SECRETS}/{secret}", f"{content.text}\n", mode="600", secret=True)
        yield _unit(
            f"{name}.service",
            "home-notifier.service",
            way=way,
            secrets={secret: f"{SECRETS}/{secret}" for secret in secrets},
            sendmail=bool(way == "mail" and notify and notify.sendmail),
        )
        for kind in ("path", "timer"):
            yield _unit(f"{name}.{kind}", f"home-notifier.{kind}", way=way)


def _secrets(notify: Notify | None, way: str) -> dict[str, Secret]:
    """What the sender of this way must know and nobody else may, by the name of its credential."""
    found: dict[str, Secret | None] = {}
    if notify and notify.smtp and way == "mail":
        found["smtp-password"] = notify.smtp.password_file
    if notify and notify.webhook and way == "webhook":
        found["webhook-url"] = notify.webhook.url_file
        found["webhook-token"] = notify.webhook.token_file
    return {name: secret for name, secret in found.items() if secret}


def _notify_settings(notify: Notify | None) -> dict[str, str]:
    """The lines of /etc/home-forwarder.conf about notifications; nothing in it is secret."""
    if notify is None:
        return {}
    settings: dict[str, str | None] = {
        "SEND_MAILS_TO": notify.mail_to,
        "NOTIFY_MAIL_FROM": notify.mail_from,
        "NOTIFY_SENDMAIL": "1" if notify.sendmail else None,
        "NOTIFY_PROGRAM": notify.program,
    }
    if notify.smtp:
        settings["NOTIFY_SMTP_HOST"] = notify.smtp.host
        settings["NOTIFY_SMTP_PORT"] = str(notify.smtp.chosen_port)
        settings["NOTIFY_SMTP_SECURITY"] = notify.smtp.chosen_security
        settings["NOTIFY_SMTP_USER"] = notify.smtp.user
    if notify.webhook:
        settings["NOTIFY_WEBHOOK_PRESET"] = notify.webhook.preset
        settings["NOTIFY_WEBHOOK_URL"] = notify.webhook.url
    return {key: value for key, value in settings.items() if value}


def _trust(notify: Notify | None) -> tuple[str, ...]:
    """The package that TLS needs to know a server by its certificate."""
    tls = notify and (
        (notify.smtp and notify.smtp.chosen_security != "none")
        or (notify.webhook and notify.webhook.any_url.startswith("https:"))
    )
    return ("ca-certificates",) if tls else ()


def _relay_packages(config: Config) -> tuple[str, ...]:
    """What other relays than socat need."""
    return NGINX_PACKAGES if any(each.relay == "nginx" for each in config.forwards) else ()


def _program(path: str) -> File:
    source = program(path)
    return File(path, source, mode="755", compact=without_comments(source))


def _unit(name: str, template: str, **values: object) -> File:
    return File(f"{UNITS}/{name}", render(f"{UNITS.lstrip('/')}/{template}.j2", **values))


def _front(name: str, protocol: str, variants: list[str]) -> File:
    return _unit(name, "home-PROTOCOLforwarder@.service", protocol=protocol, variants=variants)


def _settings(forward: Forward, port: int) -> dict[str, int | str]:
    """What a relay is told. What is not said changes no revision: older relays run on."""
    return {
        "FORWARD_TARGET_PORT": forward.target_of(port),
        "FORWARD_IDLE_TIMEOUT": forward.idle_seconds,
        "FORWARD_MAX_CONNECTIONS": forward.max_connections,
        **({"FORWARD_RELAY": forward.relay} if forward.relay != "socat" else {}),
        **({"FORWARD_PROXY_PROTOCOL": "on"} if forward.proxy_protocol else {}),
    }


def _revision(settings: dict[str, int | str]) -> str:
    """What tells a relay that runs with these settings from one that does not."""
    return hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:16]


def _relays(config: Config) -> Iterator[Relay]:
    for forward in config.forwards:
        index = config.index_of(forward.home)
        for port in forward.port:
            instance = f"{index}:{port}"
            yield Relay(
                unit=f"home-{forward.protocol}forwarder-{forward.listen}-to-6@{instance}.service",
                forward=f"home-{forward.protocol}forwarder@{instance}.service",
                protocol=forward.protocol,
                listen=forward.listen,
                port=port,
                home=index,
                revision=_revision(_settings(forward, port)),
            )


def _instance_files(config: Config, relays: tuple[Relay, ...]) -> Iterator[File]:
    """A drop-in for each relay; a unit of its own for each forward that is not on "46"."""
    settings = [_settings(forward, port) for forward in config.forwards for port in forward.port]
    for relay, values in zip(relays, settings, strict=True):
        yield _unit(
            f"{relay.unit}.d/forward.conf",
            "home-PROTOCOLforwarder-LISTEN-to-6@INDEX:PORT.service.d/forward.conf",
            settings=values,
            revision=relay.revision,
            spare_tasks=SPARE_TASKS,
        )
    variants: dict[tuple[str, str], list[str]] = {}
    for relay in relays:
        variants.setdefault((relay.forward, relay.protocol), []).append(relay.listen)
    for (forward, protocol), families in variants.items():
        if families != ["46"]:
            yield _front(forward, protocol, families)
