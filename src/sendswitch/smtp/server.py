"""The server: a bound socket, its sessions, and their limits."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from sendswitch import metrics
from sendswitch.errors import Temporary
from sendswitch.smtp.endpoint import Endpoint, Networks, within
from sendswitch.smtp.flush import Turn
from sendswitch.smtp.handler import Handler
from sendswitch.smtp.protocol.server import Extensions, Limits
from sendswitch.smtp.session import Session
from sendswitch.smtp.transcript import Transcript

# Passwords of one address that are checked at once, so that one cannot keep all others waiting.
LOGINS = 5
# Clients whose extensions are remembered; behind Postfix it is one.
ADDRESSES = 1000

_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: without a byte from the client; from MAIL to the end of data. Postfix's smtpd_timeout is 300."""

    idle: float = 300.0
    transaction: float = 3600.0


@dataclass(frozen=True, slots=True)
class Options:
    """A listener's settings."""

    host: str
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    connections: int = 5000
    connections_per_address: int = 5000
    lmtp: bool = False
    xforward_from: Networks = ()
    tls: ssl.SSLContext | None = None
    xclient_from: Networks = ()
    haproxy_from: Networks = ()
    auth: Literal["off", "may", "require"] = "off"
    # Who has this name and password, '' for nobody. Raises Temporary when that cannot be known now.
    authenticate: Callable[[str, str], Awaitable[str]] | None = None
    _extensions: dict[str, Extensions] = field(default_factory=dict, init=False, repr=False, compare=False)

    def extensions_for(self, address: str) -> Extensions:
        """Return the extensions that a client with this address is offered; '' is a unix socket.

        They are kept for ADDRESSES clients, because to compare an address with networks takes longer than to greet it.
        """
        found = self._extensions.get(address)
        if found is None:
            if len(self._extensions) >= ADDRESSES:
                self._extensions.clear()
            found = self._extensions[address] = Extensions(
                # A unix socket has file permissions instead.
                xforward=not address or within(address, self.xforward_from),
                xclient=within(address, self.xclient_from),
                starttls=self.tls is not None,
                auth=self.auth,
                clear=not address or within(address, _LOOPBACK),
            )
        return found


class Listener:
    """A bound socket and its sessions."""

    def __init__(self, handler: Handler, options: Options) -> None:
        self.handler, self.options = handler, options
        self._sessions: set[Session] = set()
        self.turn = Turn()
        self._per_address: Counter[str] = Counter()
        self._logging_in: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._gone = asyncio.Event()
        self.stopping = False
        self.trace: Transcript | None = None

    def listen_in(self, trace: Transcript | None) -> None:
        """Write the dialogs of all sessions down, or no longer."""
        self.trace = trace
        for session in self._sessions:
            session.listen_in(trace)

    async def start(self, endpoint: Endpoint, *, shared: bool = False) -> None:
        """Bind and accept. Raises OSError when the address is taken.

        With `shared` other processes of this user may bind the same TCP port, and each gets some of the connections
        (SO_REUSEPORT, socket(7)).
        """
        loop = asyncio.get_running_loop()
        make: Callable[[], Session] = lambda: Session(self)  # noqa: E731
        if endpoint.path:
            self._server = await loop.create_unix_server(make, endpoint.path, backlog=1024)
        else:
            self._server = await loop.create_server(make, endpoint.host, endpoint.port, backlog=1024, reuse_port=shared)

    @property
    def port(self) -> int:
        """Return the bound TCP port, 0 for a unix socket or before `start`."""
        names = [s.getsockname() for s in self._server.sockets] if self._server else []
        return int(names[0][1]) if names and isinstance(names[0], tuple) else 0

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._sessions)

    def change(self, handler: Handler, options: Options) -> None:
        """Use these for every session that begins from now on, and the handler for every message."""
        self.handler, self.options = handler, options

    def admit(self, session: Session) -> bool:
        """Count a new session; False when there are too many."""
        self._sessions.add(session)
        self._per_address[session.address] += 1
        metrics.SMTP_CONNECTIONS.inc()
        metrics.SMTP_SESSIONS.inc()
        return self.within_limits(session)

    def rename(self, session: Session, address: str) -> None:
        """Note that the client of a session is another one than the peer that connected."""
        self._per_address[session.address] -= 1
        session.address = address
        self._per_address[address] += 1

    def within_limits(self, session: Session) -> bool:
        """Return whether there are not too many sessions, in all and from this address."""
        limits = self.options
        return (
            len(self._sessions) <= limits.connections
            and self._per_address[session.address] <= limits.connections_per_address
        )

    @contextmanager
    def logging_in(self, address: str) -> Iterator[None]:
        """Count a password from there that is being checked. Raises Temporary when there are too many."""
        if self._logging_in[address] >= LOGINS:
            raise Temporary(f"more than {LOGINS} log in at once from {address}")
        self._logging_in[address] += 1
        try:
            yield
        finally:
            self._logging_in[address] -= 1
            if not self._logging_in[address]:
                del self._logging_in[address]

    def leave(self, session: Session) -> None:
        """Forget a session whose connection is gone."""
        if session in self._sessions:
            self._sessions.discard(session)
            metrics.SMTP_CONNECTIONS.dec()
            self._per_address[session.address] -= 1
            if not self._per_address[session.address]:
                del self._per_address[session.address]
        if not self._sessions:
            self._gone.set()

    async def stop(self, grace: float = 10.0) -> None:
        """Accept no more, let each message in hand get its reply, then close; at most `grace` seconds."""
        self.stopping = True
        if self._server is not None:
            self._server.close()
        for session in list(self._sessions):
            session.stop()
        try:
            async with asyncio.timeout(grace):
                while self._sessions:
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            for session in list(self._sessions):
                session.abort()
