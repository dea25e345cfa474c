"""The whole envelope of a message: MAIL, RCPT and the client (RFC 5321, 3461, XFORWARD).

The spool stores it as JSON and tasks carry it. `to_json` and `from_json` are inverse, and a missing field has its
default, so that old spools stay readable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Client:
    """The client that handed the message in: the connection, overridden by XFORWARD from a trusted peer.

    `login` is the user who logged in with AUTH (RFC 4954), with us or at the peer that sent XCLIENT LOGIN; `protocol`
    has an A then, and an S where TLS was in use (RFC 3848). `source` is XFORWARD SOURCE, 'LOCAL' or 'REMOTE' (Postfix
    XFORWARD_README), '' where it is unknown.
    """

    address: str = ""
    name: str = ""
    port: str = ""
    helo: str = ""
    protocol: str = ""
    source: str = ""
    ident: str = ""
    login: str = ""


@dataclass(frozen=True, slots=True)
class Recipient:
    """One RCPT: the address and the DSN parameters of RFC 3461 as given. Code that uses the parameters decodes them."""

    address: str
    notify: str = ""
    orcpt: str = ""


@dataclass(frozen=True, slots=True)
class Envelope:
    """MAIL, all RCPTs and the client. `sender` is '' for the null path."""

    sender: str
    recipients: tuple[Recipient, ...]
    client: Client = Client()
    body: str = ""
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""

    @property
    def ascii(self) -> bool:
        """Return whether all addresses are ASCII, so that SMTPUTF8 (RFC 6531) is not needed for them."""
        return self.sender.isascii() and all(recipient.address.isascii() for recipient in self.recipients)

    def to_json(self) -> dict[str, Any]:
        """Return sender, MAIL parameters and client, without default values and without recipients.

        Recipients are stored apart, because each has its own state.
        """
        client = client_to_json(self.client)
        out: dict[str, Any] = {"client": client} if client else {}
        for name in ("body", "smtputf8", "ret", "envid"):
            if value := getattr(self, name):
                out[name] = value
        return out


_CLIENT = ("address", "name", "port", "helo", "protocol", "source", "ident", "login")


def client_to_json(client: Client) -> dict[str, Any]:
    """Return a client as plain JSON values, without empty ones."""
    return {name: value for name in _CLIENT if (value := getattr(client, name))}


def client_from_json(data: Mapping[str, Any]) -> Client:
    """Return the inverse of `client_to_json`. Unknown fields are ignored."""
    return Client(**{name: str(value) for name, value in data.items() if name in _CLIENT})


def from_json(sender: str, recipients: tuple[Recipient, ...], data: Mapping[str, Any]) -> Envelope:
    """Return the inverse of `Envelope.to_json`."""
    return Envelope(
        sender=sender,
        recipients=recipients,
        client=client_from_json(data.get("client", {})),
        body=str(data.get("body", "")),
        smtputf8=bool(data.get("smtputf8", False)),
        ret=str(data.get("ret", "")),
        envid=str(data.get("envid", "")),
    )
