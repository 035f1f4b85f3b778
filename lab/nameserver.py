# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS in the lab: a real name server with dynamic updates, and a resolver that lies on request.

The server (Knot DNS, from the image, with its root directory there) holds the zone home.example
and a root zone for all other names. VPSes ask the resolver in front of it, lab/faultproxy.py.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.update

from lab.errors import LabError
from lab.host import PlainHost
from lab.image import DNS_RELEASE, Image
from lab.network import IPV4_PREFIXES, IPV6_PREFIX

ZONE = "home.example"
TTL = 60
"""Seconds, as routers at home publish their addresses with."""
UPDATE_TIMEOUT = 5.0
"""Seconds; it takes milliseconds where the machine is not busy."""
ORDER_TIMEOUT = 10.0
"""Seconds for the resolver to obey; it may have many queries in hand."""
START_TIMEOUT = 20.0
"""Seconds until both programs answer; it takes one, and some where VPSes boot at the same time."""
PROGRAM = Path(__file__).with_name("faultproxy.py")

KNOT_CONFIGURATION = """
server:
    listen: [ {listen} ]
    rundir: "/mnt"
    user: root:root
    background-workers: 1
    udp-workers: 1
    tcp-workers: 1
log:
  - target: stderr
    any: info
database:
    storage: "/mnt"
    journal-db-max-size: 64M
    kasp-db-max-size: 16M
    timer-db-max-size: 16M
    catalog-db-max-size: 16M
acl:
  - id: everybody
    address: [ {updaters} ]
    action: update
template:
  - id: default
    storage: "/mnt"
    acl: everybody
    semantic-checks: off
zone:
  - domain: {zone}
    file: home.zone
  - domain: .
    file: root.zone
"""

ZONE_FILE = """\
$TTL {ttl}
@ SOA {ns}. hostmaster.{zone}. 1 3600 600 86400 {ttl}
@ NS {ns}.
{ns}. A {address}
"""

# Runs in a mount namespace of its own, so that no mount is left when the server ends.
START = """
mount -t overlay -o "lowerdir=$1" overlay "$2" && mount --bind "$3" "$2/mnt" &&
mount -t proc proc "$2/proc" && mount --bind /dev "$2/dev" && mount -t tmpfs tmpfs "$2/tmp" &&
exec chroot "$2" /usr/sbin/knotd -c /mnt/knot.conf
"""


@dataclass(frozen=True)
class Query:
    """A query that the resolver has seen.

    name: what was asked, e.g. "home0.home.example."
    type: e.g. "AAAA"
    client: the address of who asked
    transport: "udp" or "tcp"
    time: when, in seconds since the epoch
    """

    name: str
    type: str
    client: str
    transport: str
    time: float


class NameServer(PlainHost):
    """The host «dns»; its addresses are the resolver's IPv4, IPv6, and the server's IPv4, IPv6."""

    @property
    def resolver_addresses(self) -> list[str]:
        """Where VPSes ask."""
        return self.addresses[:2]

    @property
    def server_addresses(self) -> list[str]:
        """Where the real server takes dynamic updates."""
        return self.addresses[2:]

    # ---- The records -------------------------------------------------------------------------

    def set(
        self,
        name: str,
        *,
        aaaa: Iterable[str] | None = None,
        a: Iterable[str] | None = None,
        cname: str | None = None,
    ) -> None:
        """Replace what the real server has for `name` by these records, by a dynamic update.

        With none of them the name is gone (NXDOMAIN). Raises: LabError if the server refuses.
        """
        records = {"AAAA": list(aaaa or ()), "A": list(a or ())}
        if cname is not None:
            records["CNAME"] = [str(dns.name.from_text(cname))]
        with self.inside():
            self.update(name, records, self.server_addresses[0], replace_all=True)

    def update(
        self,
        name: str,
        records: Mapping[str, Sequence[str]],
        server: str,
        replace_all: bool = False,
    ) -> None:
        """Send one update (RFC 2136) from the calling thread's network to `server`. Raises: LabError."""
        owner = dns.name.from_text(name)
        zone = dns.name.from_text(ZONE)
        update = dns.update.UpdateMessage(zone if owner.is_subdomain(zone) else dns.name.root)
        if replace_all:
            update.delete(owner)
        for kind, values in records.items():
            if not replace_all:
                update.delete(owner, kind)
            for value in values:
                update.add(owner, TTL, kind, value)
        try:
            response = dns.query.tcp(update, server, timeout=UPDATE_TIMEOUT)
        except (OSError, dns.exception.DNSException) as error:
            raise LabError(f"The name server did not take the update of {name}: {error}") from None
        if response.rcode() != dns.rcode.NOERROR:
            reason = dns.rcode.to_text(response.rcode())
            raise LabError(f"The name server refused the update of {name}: {reason}.")

    # ---- The lies ----------------------------------------------------------------------------

    def fault(self, name: str, kind: str, rtype: str | None = None, **details: Any) -> None:
        """Let the resolver lie about `name` ("*" for every name) until `clear_faults`.

        rtype: lie to queries of this type only, e.g. "AAAA"
        kind: "servfail", "refused", "formerr", "notimp", "nxdomain", "nodata";
          "timeout" never answers; "garbage" answers with nonsense; "truncate" says over UDP
          that TCP is needed; "truth" is no lie (use it with delay);
          "rotate" with addresses=[...], starting one further each time;
          "records" with records=["AAAA ::1", "CNAME x.example.", "x.example. AAAA fe80::1"]
        delay: seconds to wait before the answer

        Raises: LabError for another kind, or if the resolver does not take the order.
        """
        if kind not in FAULTS:
            raise LabError(f"There is no fault «{kind}»; choose one of {', '.join(FAULTS)}.")
        needed = {"rotate": "addresses", "records": "records"}.get(kind)
        if needed and not details.get(needed):
            raise LabError(f"The fault «{kind}» needs {needed}=[...].")
        owner = "*" if name == "*" else str(dns.name.from_text(name)).lower()
        self._order("fault", name=owner, rdtype=rtype or "", kind=kind, **details)

    def clear_faults(self, name: str | None = None) -> None:
        """Tell the truth again about `name`, or about every name."""
        owner = name if name in (None, "*") else str(dns.name.from_text(name or "")).lower()
        self._order("clear", name=owner)

    def faults(self) -> list[dict[str, Any]]:
        """The faults in force."""
        result: list[dict[str, Any]] = self._order("faults")
        return result

    # ---- What was asked ----------------------------------------------------------------------

    def log(self) -> list[Query]:
        """The queries that the resolver has seen, oldest first (at most 20,000)."""
        return [Query(**entry) for entry in self._order("log")]

    def queries(
        self, name: str | None = None, rtype: str | None = None, client: str | None = None
    ) -> int:
        """How many queries there were since `reset_counts`: all, or only such."""
        owner = None if name is None else str(dns.name.from_text(name)).lower()
        return sum(
            (owner in (None, query.name))
            and (rtype in (None, query.type))
            and (client in (None, query.client))
            for query in self.log()
        )

    def reset_counts(self) -> None:
        """Forget the queries seen so far."""
        self._order("reset")

    def _order(self, order: str, **details: Any) -> Any:
        message = json.dumps({"order": order, **details}).encode() + b"\n"
        try:
            with socket.socket(socket.AF_UNIX) as control:
                control.settimeout(ORDER_TIMEOUT)
                control.connect(str(self._control))
                control.sendall(message)
                with control.makefile("rb") as replies:
                    reply = json.loads(replies.readline())
        except (OSError, ValueError) as error:
            raise LabError(f"The resolver does not take orders: {error}.") from None
        if "error" in reply:
            raise LabError(f"The resolver cannot do that: {reply['error']}.")
        return reply["result"]

    # ---- Its life ----------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """Where the server keeps its files."""
        return self.site.directory / "dns"

    @property
    def _control(self) -> Path:
        return self.directory / "control"

    def start(self) -> None:
        """Start the server and the resolver, and wait until both answer. Raises: LabError."""
        image = Image(DNS_RELEASE)
        files = self.directory / "files"
        root = self.directory / "root"
        files.mkdir(parents=True)
        root.mkdir()
        listen = ", ".join(f"{address}@53" for address in self.server_addresses)
        updaters = f"{IPV4_PREFIXES[0]}, {IPV6_PREFIX}"
        (files / "knot.conf").write_text(
            KNOT_CONFIGURATION.format(listen=listen, updaters=updaters, zone=ZONE)
        )
        for file in ("home.zone", "root.zone"):
            text = ZONE_FILE.format(
                ttl=TTL, zone=ZONE, ns=f"ns.{ZONE}", address=self.server_addresses[0]
            )
            (files / file).write_text(text)
        layers = f"{image.dns_layer}:{image.root}"
        proxy = [sys.executable, "-P", str(PROGRAM), "--control", str(self._control)]
        proxy += ["--upstream", self.server_addresses[0], "--listen", *self.resolver_addresses]
        enter = ["ip", "netns", "exec", self.namespace]
        with self.site.log("dns-server").open("ab") as log:
            self.site.popen(
                [*enter, "unshare", "--mount", "sh", "-c", START]
                + ["sh", layers, str(root), str(files)],
                "dns: server",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        with self.site.log("dns-resolver").open("ab") as log:
            self.site.popen(
                [*enter, *proxy],
                "dns: resolver",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            with contextlib.suppress(LabError, OSError, dns.exception.DNSException):
                self.faults()
                with self.inside():
                    for address in self.server_addresses:
                        dns.query.udp(dns.message.make_query(ZONE, "SOA"), address, timeout=0.5)
                return
            for part in ("server", "resolver"):
                if not self.site.ledger.find(f"dns: {part}") or time.monotonic() > deadline:
                    log = self.site.log(f"dns-{part}").read_text(errors="replace")
                    last = " / ".join(log.strip().splitlines()[-3:])
                    raise LabError(f"The {part} of DNS did not start: {last}")
            time.sleep(0.05)


FAULTS = (
    *("servfail", "refused", "formerr", "notimp", "nxdomain", "nodata"),
    *("timeout", "garbage", "truncate", "truth", "rotate", "records"),
)
