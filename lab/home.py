# SPDX-License-Identifier: GPL-3.0-or-later
"""A home: IPv6 only, found by its name, with an address that changes."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lab.errors import LabError
from lab.host import PlainHost, Site
from lab.nameserver import ZONE, NameServer
from lab.network import IPV6_PREFIX
from lab.processes import end

PROGRAM = Path(__file__).with_name("homeserver.py")


class Home(PlainHost):
    """One home.

    number: 0 for the first home of the lab
    prefixes: how many prefixes the provider has assigned to it so far
    ports: what it serves, as text, e.g. "TCP 44444"
    """

    def __init__(
        self,
        site: Site,
        name: str,
        addresses: Sequence[str],
        dns: NameServer,
        number: int,
        prefixes: int = 1,
        ports: Sequence[str] = (),
    ) -> None:
        super().__init__(site, name, addresses)
        self.dns = dns
        self.number = number
        self.prefixes = prefixes
        self.ports = list(ports)

    @property
    def address(self) -> str:
        """The address that it got last."""
        return self.addresses[-1]

    @property
    def hostname(self) -> str:
        """Its DNS name."""
        return f"{self.name}.{ZONE}"

    def save(self) -> None:
        """Write down what another process must know."""
        facts = {
            "kind": "home",
            "addresses": self.addresses,
            "number": self.number,
            "prefixes": self.prefixes,
            "ports": self.ports,
        }
        self.site.save(self.name, facts)

    def publish(self) -> None:
        """Tell the name server the present address, from here, as a router at home does."""
        with self.inside():
            self.dns.update(self.hostname, {"AAAA": [self.address]}, self.dns.server_addresses[1])

    def move(self, address: str | None = None, *, keep_old: bool = False, dns: bool = True) -> str:
        """Get a new address; what listens here goes on.

        address: from 2001:db8::/32; by default the same host in the provider's next prefix
        keep_old: whether the addresses so far stay usable
        dns: whether the name follows

        Returns: the new address. Raises: LabError if it cannot be this home's.
        """
        new = self.next_address() if address is None else _checked(address)
        if new in self.addresses:
            if new != self.address:
                self.addresses.remove(new)
                self.addresses.append(new)
        else:
            self.site.network.add_address(self.name, new)
            self.addresses.append(new)
        if not keep_old:
            for old in self.addresses[:-1]:
                self.site.network.remove_address(self.name, old)
            self.addresses = [new]
        self.save()
        if dns:
            self.publish()
        return new

    def next_address(self) -> str:
        """This home's address in the prefix that the provider assigns next."""
        self.prefixes += 1
        return home_address(self.number, self.prefixes)

    def serve(self, tcp: Iterable[int] = (), udp: Iterable[int] = ()) -> None:
        """Start a server on these ports, besides those that run already; see lab/homeserver.py.

        Raises: LabError if it does not start.
        """
        tcp, udp = list(tcp), list(udp)
        if not tcp and not udp:
            return
        command = [sys.executable, "-I", "-S", str(PROGRAM), self.name]
        command += ["--tcp", *map(str, tcp), "--udp", *map(str, udp)]
        with self.site.log(self.name).open("ab") as log:
            server = self.site.popen(
                ["ip", "netns", "exec", self.namespace, *command],
                self._server_name,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        with server.stdout:  # type: ignore[union-attr]
            if server.stdout.readline() != "ready\n":  # type: ignore[union-attr]
                server.wait()
                last = self.site.log(self.name).read_text().strip().splitlines()[-1:]
                raise LabError(f"The server of {self.name} did not start: {' '.join(last)}")
        self.ports += [f"TCP {port}" for port in tcp] + [f"UDP {port}" for port in udp]
        self.save()

    def stop_serving(self) -> None:
        """End all servers that `serve` started; connections are cut."""
        servers = [p for p in self.site.ledger.all() if p.what == self._server_name]
        end(servers, grace=0)
        self.ports.clear()
        self.save()

    @property
    def _server_name(self) -> str:
        return f"{self.name}: server"


def home_address(number: int, prefix: int) -> str:
    """The address of home `number` in the prefix numbered `prefix`, both from 0."""
    # A /48 for each home, where nobody else of the lab has an address.
    return str(ipaddress.IPv6Address(f"2001:db8:{0xA000 + number:x}:{prefix:x}::10"))


def _checked(address: str) -> str:
    try:
        checked = ipaddress.IPv6Address(address)
    except ValueError:
        raise LabError(f"«{address}» is no IPv6 address; a home has nothing else.") from None
    if checked not in ipaddress.IPv6Network(IPV6_PREFIX):
        raise LabError(f"{checked} is outside of {IPV6_PREFIX}, which is all that the lab routes.")
    return str(checked)
