# SPDX-License-Identifier: GPL-3.0-or-later
"""Before anything is changed: what DNS says of the homes, as seen from the operator's side, and what
is allowed but may surprise."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import dns.exception
import dns.resolver
from pyinfra import host, logger

from home_forwarder.config import Config, Home
from home_forwarder.render import load_program

SECONDS = 5.0
"""For all look-ups together, since they are made at the same time."""
LONG_TTL = 300
"""Seconds: so long may resolvers keep the old address after a change."""
SHOWN = 8
"""Forwards named in one warning."""

Records = tuple[list[str], int] | str
"""Addresses and their TTL in seconds, or why there are none."""

_updater = load_program("/usr/local/bin/home-address-update")
_answers: dict[str, Records] = {}
_lock = threading.Lock()


def warn_about_names(config: Config, own_addresses: Iterable[str]) -> None:
    """Warn about homes that would not work now; nothing is stopped by it.

    own_addresses: the VPS's IPv6 addresses in 32 hexadecimal digits.
    """
    own = [(int(address, 16), 0) for address in own_addresses]
    names = {home.hostname for home in config.homes if ":" not in home.hostname}
    with _lock:  # several VPSes mostly share their homes
        new = sorted(names - _answers.keys())
        if new:
            with ThreadPoolExecutor(max_workers=len(new)) as pool:
                _answers.update(zip(new, pool.map(_look_up, new), strict=True))
    for home in config.homes:
        for warning in warnings(home, _answers.get(home.hostname, ([home.hostname], 0)), own):
            host.log_styled(f"{home.name}: {warning}", fg="yellow", log_func=logger.warning)


def warn_about_relays(config: Config) -> None:
    """Warn about forwards whose relay may be the wrong one for them."""
    warning = warning_of_crowds(config)
    if warning:
        host.log_styled(warning, fg="yellow", log_func=logger.warning)


def warning_of_crowds(config: Config) -> str | None:
    """What socat means for UDP, in one line; None if no forward is concerned."""
    names = [
        f"udp {forward.port} to {forward.home}"
        for forward in config.forwards
        if (forward.protocol, forward.relay) == ("udp", "socat")
    ]
    if not names:
        return None
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"{', '.join(names[:SHOWN])}{more}: socat serves one UDP client well; of several that begin at"
        " the same moment some get another's answers or none. For more than one client write"
        ' "relay": "nginx"'
    )


def warnings(home: Home, records: Records, own: list[tuple[int, int]]) -> Iterable[str]:
    """What is wrong with the records of a home, each in a sentence."""
    if isinstance(records, str):
        yield f"could not confirm an IPv6 address of {home.hostname}: {records}"
        return
    addresses, ttl = records
    for address in addresses:
        reason = _updater.refusal(address, own, home.allow_private)
        if reason:
            yield f"{address}, an address of {home.hostname}, will be refused: it is {reason}"
    if ttl > LONG_TTL:
        yield (
            f"the TTL of {home.hostname} is {ttl} s; after a change of address it may take as long"
            f" until anyone sees it (at most {LONG_TTL} s would be good)"
        )


def _look_up(hostname: str) -> Records:
    try:
        answer = dns.resolver.resolve(f"{hostname}.", "AAAA", lifetime=SECONDS)
    except dns.resolver.NXDOMAIN:
        return "the name does not exist"
    except dns.resolver.NoAnswer:
        return "the name has no AAAA record"
    except dns.exception.Timeout:
        return f"no answer within {SECONDS:.0f} s"
    except (dns.exception.DNSException, OSError) as error:
        return str(error)
    return [record.address for record in answer], answer.rrset.ttl if answer.rrset else 0
