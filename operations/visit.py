# SPDX-License-Identifier: GPL-3.0-or-later
"""A visit to many VPSes at once, to look and not to change: connected to as a deploy does.

It is pyinfra that connects, with the data of the inventory, so whatever logs in for a deploy logs in
here (promise 22).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from paramiko import SSHException
from paramiko.ssh_exception import NoValidConnectionsError
from pyinfra.api.config import Config
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State
from pyinfra.context import ctx_host, ctx_state

from operations.connecting import heed, hint_of
from operations.sending import NotUnderstood

T = TypeVar("T")


class NotReached(Exception):
    """Nothing can be said of a VPS; the text says why, without its name."""


@dataclass
class Visit(Generic[T]):
    """What was found at each of the hosts, by name, or why nothing was."""

    state: State
    found: dict[str, T | NotReached] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    """Sentences for the operator, such as the fingerprint of a host key at first contact."""

    def end(self) -> None:
        """Close the connections."""
        with ctx_state.use(self.state):
            for host in self.state.inventory:
                if host.connected:
                    host.disconnect()
                client = getattr(host.connector, "client", None)
                if client is not None:  # pyinfra leaves it open
                    client.close()


def visit(inventory: Inventory, names: Iterable[str], look: Callable[[State, Host], T]) -> Visit[T]:
    """Connect to hosts of an inventory, all at the same time, and look at each.

    look: makes what is wanted of a connected host; run() of operations/sending.py is made for it.
        What it raises is what was found then, as a NotReached.
    """
    state = State(inventory, Config())
    result: Visit[T] = Visit(state)
    heed(state, lambda host, text: result.told.append(f"{host.name}: {text}"), hints=False)
    chosen = [inventory.get_host(name) for name in names]
    with ctx_state.use(state):
        looks = {host: state.pool.spawn(_look, state, host, look) for host in chosen}
        for host, greenlet in looks.items():
            result.found[host.name] = greenlet.get()
    return result


def reason_of(error: Exception, host: Host) -> str:
    """Why a host could not be connected to or asked, in one line."""
    if isinstance(error, TimeoutError) and not error.args:
        return "it does not answer in time"
    said = str(error) or type(error).__name__
    if isinstance(error.__context__, NoValidConnectionsError):  # it has a reason for each address
        reasons = {
            getattr(each, "strerror", "") or str(each) for each in error.__context__.errors.values()
        }
        said = f"{said}: {', '.join(sorted(reasons))}"
    return "; ".join(filter(None, (said, hint_of(host, error))))


def _look(state: State, host: Host, look: Callable[[State, Host], T]) -> T | NotReached:
    with ctx_host.use(host):
        try:
            host.connect(show_errors=False, raise_exceptions=True)
        except (PyinfraError, OSError, SSHException) as error:
            return NotReached(f"could not be reached: {reason_of(error, host)}")
        state.activate_host(host)
        try:
            return look(state, host)
        except NotReached as error:
            return error
        except (NotUnderstood, PyinfraError, OSError, SSHException) as error:
            return NotReached(f"cannot be looked at: {reason_of(error, host)}")
        except Exception as error:  # whatever a VPS answers concerns that VPS alone (promise 14)
            said = f"{type(error).__name__}: {error}"
            return NotReached(f"cannot be looked at: its answer is not understood ({said})")
