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

from home_forwarder.compare import Observed
from home_forwarder.config import Config
from home_forwarder.parts.addresses import Home
from home_forwarder.plan import CONF
from home_forwarder.render import module_of

SECONDS = 5.0
"""For all look-ups together, since they are made at the same time."""
LONG_TTL = 300
"""Seconds: so long may resolvers keep the old address after a change."""

Records = tuple[list[str], int] | str
"""Addresses and their TTL in seconds, or why there are none."""

_updater = module_of("/usr/local/bin/home-address-update")
_answers: dict[str, Records] = {}
_lock = threading.Lock()


def warn_about_names(config: Config, seen: Observed) -> None:
    """Warn about homes that would not work now; nothing is stopped by it."""
    own = [(int(address, 16), 0) for address in seen.own_addresses]
    names = {home.hostname for home in config.homes if ":" not in home.hostname}
    with _lock:  # several VPSes mostly share their homes
        new = sorted(names - _answers.keys())
        if new:
            with ThreadPoolExecutor(max_workers=len(new)) as pool:
                _answers.update(zip(new, pool.map(_look_up, new), strict=True))
    for home in config.homes:
        is_new = f"={home.hostname}\n" not in seen.texts.get(CONF, "")
        records = _answers.get(home.hostname, ([home.hostname], 0))
        for warning in warnings(home, records, own, is_new=is_new):
            _warn(f"{home.name}: {warning}")


def _warn(text: str) -> None:
    host.log_styled(text, fg="yellow", log_func=logger.warning)


def warnings(
    home: Home, records: Records, own: list[tuple[int, int]], *, is_new: bool = True
) -> Iterable[str]:
    """What is wrong with the records of a home, each in a sentence.

    is_new: it was not declared before; what is only worth knowing is said once.
    """
    if isinstance(records, str):
        yield f"could not confirm an IPv6 address of {home.hostname}: {records}"
        return
    addresses, ttl = records
    for address in addresses:
        reason = _updater.refusal(address, own, home.allow_private)
        if reason:
            whose = "" if address == home.hostname else f", an address of {home.hostname},"
            yield f"{address}{whose} will be refused: it is {reason}"
    if ttl > LONG_TTL and is_new:
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
