# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator should know before a deploy changes a VPS, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from home_forwarder.compare import PER_CLIENT, PROGRAM, Changes, Observed
from home_forwarder.plan import CONF, Plan, Relay, some_of
from home_forwarder.render import module_of

_updater = module_of("/usr/local/bin/home-address-update")


def new_forwards(plan: Plan, changes: Changes) -> list[str]:
    """The user's own forwards that are started, as they would say them: «tcp 44444 to xxx.myfritz.net»."""
    return list(
        dict.fromkeys(_name(relay, plan) for relay in plan.relays if relay.forward in changes.start)
    )


def other_programs(plan: Plan, seen: Observed) -> Iterator[str]:
    """Forwards whose relay becomes another program, such as UDP ones of a VPS deployed before nginx was
    the default for them."""
    changed: dict[tuple[str, str], list[str]] = {}
    for relay in plan.relays:
        unit = seen.units.get(relay.unit)
        before = unit.environment.get(PROGRAM, "socat") if unit and unit.runs else relay.program
        if before != relay.program:
            changed.setdefault((before, relay.program), []).append(_name(relay, plan))
    for (before, program), names in changed.items():
        yield (
            f"{some_of(dict.fromkeys(names))}: forwarded by {program} from now on, and by {before}"
            f' before; connections end once; "relay": "{before}" would keep it'
        )


def new_limits(plan: Plan, seen: Observed) -> Iterator[str]:
    """Forwards that limit a client from now on, such as those of a VPS deployed before that was the
    default."""
    limited: dict[int, list[str]] = {}
    for relay in plan.relays:
        unit = seen.units.get(relay.unit)
        before = unit.environment if unit and unit.runs else {}
        if relay.per_client and before.get(PROGRAM) == relay.program and PER_CLIENT not in before:
            limited.setdefault(relay.per_client, []).append(_name(relay, plan))
    for limit, names in limited.items():
        yield (
            f"{some_of(dict.fromkeys(names))}: one client may have {limit} connections at most from now"
            ' on; connections end once; "max_per_client" sets another limit'
        )


def _name(relay: Relay, plan: Plan) -> str:
    return f"{relay.protocol} {relay.ports} to {plan.homes[relay.home]}"


def losses(plan: Plan, seen: Observed) -> Iterator[str]:
    """What goes, or ends connections, because it is declared no more, or elsewhere."""
    there = _settings(seen.texts.get(CONF, ""))
    declared = _settings(next((file.content for file in plan.files if file.path == CONF), ""))
    before, after = _homes(there), _homes(declared)
    for index, hostname in before.items():
        if after.get(index) == hostname:
            continue
        # Several homes may have one host name: one that was there before is not this one.
        new = [number for number in after if after[number] == hostname != before.get(number)]
        if not new:
            label = there.get(f"HOME_HOSTDESC_{index}") or hostname
            yield f"home {index} ({label}, {hostname}) is not declared: it goes, and its forwards with it"
        elif _forwards_of(index, seen):
            yield (
                f"{hostname} becomes home {new[0]} and was home {index}: the connections of its forwards"
                f' end; "index": {index} for that home would keep them'
            )
    mails = there.get("SEND_MAILS_TO")
    if mails and plan.files and "SEND_MAILS_TO" not in declared:
        yield (
            f"SEND_MAILS_TO={mails} is not declared: nobody will get mails of changes; to keep it,"
            f' write notify = {{"mail_to": "{mails}"}}'
        )


def _settings(text: str) -> Mapping[str, str]:
    """The lines of /etc/home-forwarder.conf; none if an admin has made it unreadable."""
    try:
        settings: Mapping[str, str] = _updater.parse_settings(text)
    except _updater.Problem:
        return {}
    return settings


def _homes(settings: Mapping[str, str]) -> dict[int, str]:
    """The host name of each home, by INDEX."""
    key = "HOME_HOSTNAME_"
    return {
        int(name.removeprefix(key)): value.rstrip(".").lower()
        for name, value in settings.items()
        if name.startswith(key) and name.removeprefix(key).isdecimal()
    }


def _forwards_of(index: int, seen: Observed) -> bool:
    return any(f"@{index}:" in unit and each.runs for unit, each in seen.units.items())
