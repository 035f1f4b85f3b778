# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator should know before a deploy changes a VPS, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from home_forwarder.compare import Changes, Observed
from home_forwarder.plan import CONF, Plan
from home_forwarder.render import module_of

_updater = module_of("/usr/local/bin/home-address-update")


def new_forwards(plan: Plan, changes: Changes) -> list[str]:
    """The user's own forwards that are started, as they would say them: «tcp 44444 to xxx.myfritz.net»."""
    return list(
        dict.fromkeys(
            f"{relay.protocol} {relay.ports} to {plan.homes[relay.home]}"
            for relay in plan.relays
            if relay.forward in changes.start
        )
    )


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
