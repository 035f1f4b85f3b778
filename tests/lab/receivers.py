# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is told: a mail server with TLS and logins, and an HTTP server, somewhere on the internet."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6
from typing import Any, NamedTuple

import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from lab import Lab
from lab.vps import Vps

HOST = "client6"
"""Where they run: nobody else needs that host of the lab for long."""
NAME = "receiver.lab.example"


class Authority:
    """Who vouches for the receivers."""

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(NAME).configure_cert(self.context)

    def be_trusted(self, vps: Vps) -> None:
        """By the VPS, the way an admin would see to it."""
        pem = self._authority.cert_pem.bytes().decode()
        vps.write("/usr/local/share/ca-certificates/lab.crt", pem)
        vps.run("update-ca-certificates")


class Mail(NamedTuple):
    """One mail as it came in."""

    to: list[str]
    sender: str
    user: str | None
    encrypted: bool
    message: EmailMessage


class MailServer:
    """A submission server (RFC 6409): STARTTLS, then a login, then mails."""

    def __init__(self, authority: Authority, user: str, password: str) -> None:
        self.mails: list[Mail] = []
        self.answers: dict[str, str] = {}
        """By recipient, in place of «250 OK»."""
        self.holds = False
        """Take the next mail only when this is False again."""
        self.accepting = threading.Event()
        """A mail has come in; it may be held."""
        self._login = (user.encode(), password.encode())
        self._authority = authority

    @contextlib.contextmanager
    def running(self, lab: Lab, *, tls: bool = False) -> Iterator[None]:
        """Up and reachable for the length of a `with` block.

        tls: on port 465, encrypted from the first byte; else on 587 with STARTTLS
        """
        controller = Controller(
            self,
            hostname=lab.client6.addresses[1],
            port=465 if tls else 587,
            ssl_context=self._authority.context if tls else None,
            tls_context=None if tls else self._authority.context,
            require_starttls=not tls,
            auth_required=True,
            auth_require_tls=not tls,  # it does not count TLS from the first byte as TLS
            authenticator=self._authenticate,
        )
        with lab.inside(HOST):
            controller.start()
        try:
            yield
        finally:
            with lab.inside(HOST):
                controller.stop()

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, how: str, data: Any
    ) -> AuthResult:
        if isinstance(data, LoginPassword) and (data.login, data.password) == self._login:
            return AuthResult(success=True, auth_data=data.login.decode())
        # As careless servers do: what was said is in the answer.
        words = data.password.decode() if isinstance(data, LoginPassword) else ""
        return AuthResult(success=False, handled=False, message=f"535 5.7.8 no such login: {words}")

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, to: str, options: list[str]
    ) -> str:
        if to in self.answers:
            return self.answers[to]
        envelope.rcpt_tos.append(to)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.accepting.set()
        while self.holds:
            await asyncio.sleep(0.05)
        assert server.transport is not None
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        message = message_from_bytes(content, policy=default)
        self.mails.append(
            Mail(
                list(envelope.rcpt_tos),
                str(envelope.mail_from),
                session.auth_data,
                server.transport.get_extra_info("sslcontext") is not None,
                message,
            )
        )
        return "250 OK"


class Post(NamedTuple):
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    content: Any


class HttpServer:
    """Takes every request, or answers all of them with another status."""

    def __init__(self, authority: Authority) -> None:
        self.posts: list[Post] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.hangs = False
        """Read on and on, and never answer."""
        self._authority = authority

    @contextlib.contextmanager
    def running(self, lab: Lab, port: int, *, tls: bool = True) -> Iterator[None]:
        """Up and reachable for the length of a `with` block."""
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                if recorder.hangs:
                    self.rfile.read()  # until the other side is tired of waiting
                    return
                content = self.rfile.read(int(self.headers["Content-Length"]))
                recorder.posts.append(
                    Post("POST", self.path, dict(self.headers), json.loads(content))
                )
                self.send_response(recorder.status)
                for name, value in recorder.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            address_family = AF_INET6

        with lab.inside(HOST):
            server = Server((lab.client6.addresses[1], port), Handler)
        if tls:
            server.socket = self._authority.context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
