"""Accounts in RabbitMQ for workers of users' own, made through its management plugin.

An account is named like its user's address. It may consume its own queue and publish with its own key, and nothing
else; that isolates users in one virtual host as well as one of their own would.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import ssl
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx

from sendswitch.broker.rabbitmq.topology import OWN_VERDICTS, account_of
from sendswitch.errors import Refused, Temporary
from sendswitch.routing import rabbitmq_queue

# Seconds for one request; connections and channels of an account at once; bytes of chance in a password.
PATIENCE, CONNECTIONS, CHANNELS, CHANCE = 20.0, 20, 80, 24


class Accounts:
    """The accounts of one virtual host. `management` is the plugin's URL with the name and password of an administrator
    of RabbitMQ, and `broker` the URL of the virtual host. Each method raises Temporary when RabbitMQ cannot be asked,
    and Refused when it does not let this administrator in.
    """

    def __init__(self, management: str, broker: str) -> None:
        # Passwords go there: no proxy gets them, and no redirect is followed.
        trusted = ssl.create_default_context()  # the machine's certificates, as for RabbitMQ itself
        self._client = httpx.Client(base_url=management.rstrip("/"), timeout=PATIENCE, trust_env=False, verify=trusted)
        self._place = urlsplit(management).hostname or ""
        self._vhost = vhost_of(broker)

    def __enter__(self) -> Accounts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def make(self, address: str) -> str:
        """Make the account of an address, or give it a new password. Return the password, which nothing shows again.

        One that is there is removed first, which ends its connections: RabbitMQ keeps them when a password changes.
        The password comes last, so that an account without its limits lets nobody in. Raises Refused where somebody
        else's account has this name.
        """
        user = _account(address)
        self.remove(address)
        self._ask("PUT", f"/users/{user}", {"password_hash": "", "tags": ""})
        for name, most in (("max-connections", CONNECTIONS), ("max-channels", CHANNELS)):
            self._ask("PUT", f"/user-limits/{user}/{name}", {"value": most})
        self._ask("PUT", f"/permissions/{self._vhost}/{user}", permissions(address))
        self._ask("PUT", f"/topic-permissions/{self._vhost}/{user}", topic_permissions(address))
        password = secrets.token_urlsafe(CHANCE)
        algorithm = "rabbit_password_hashing_sha256"
        told = {"password_hash": _hash(password), "hashing_algorithm": algorithm, "tags": ""}
        self._ask("PUT", f"/users/{user}", told)
        return password

    def remove(self, address: str) -> bool:
        """Remove the account of an address, and end its connections. Return whether there was one. Raises Refused for
        one that is not ours.
        """
        user = _account(address)
        if not self._there(user):
            return False
        self._ask("DELETE", f"/users/{user}", missing=True)  # RabbitMQ ends its connections, too
        return True

    def there(self, address: str) -> bool:
        """Return whether an address has an account. Raises Refused for one that is not ours."""
        return self._there(_account(address))

    def _there(self, user: str) -> bool:
        found = self._ask("GET", f"/users/{user}", missing=True)
        if found is not None and _tags(found):
            raise Refused(f"RabbitMQ has an account {unquote(user)} with the tags {', '.join(_tags(found))}: not ours")
        return found is not None

    def names(self) -> list[str]:
        """Return the accounts in this virtual host that are named like an address of a user."""
        found = (str(one["user"]) for one in self._ask("GET", f"/vhosts/{self._vhost}/permissions"))
        return sorted(name for name in found if "@" in name)

    def _ask(self, method: str, path: str, told: Any = None, *, missing: bool = False) -> Any:
        """Return the answer to a request; None for an empty one and, if it may be `missing`, for nothing there."""
        try:
            answer = self._client.request(method, f"/api{path}", json=told)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Temporary(f"RabbitMQ's management plugin at {self._place} cannot be asked: {reason}") from error
        if missing and answer.status_code == httpx.codes.NOT_FOUND:
            return None
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise Refused(
                f"RabbitMQ at {self._place} does not let this account manage others: broker.management needs one with"
                " the tag administrator"
            )
        if not answer.is_success:
            raise Temporary(f"RabbitMQ at {self._place} answered {method} {path} with {answer.status_code}")
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise Temporary(f"RabbitMQ at {self._place} answered {method} {path} with no JSON") from error


def _account(address: str) -> str:
    """Return the name of an address's account, as it stands in a URL."""
    return quote(account_of(rabbitmq_queue(address)), safe="")


def permissions(address: str) -> dict[str, str]:
    """Return what the account of an address may do with exchanges and queues: regular expressions by kind."""
    queue = re.escape(rabbitmq_queue(address))
    return {"configure": "^$", "write": f"^{re.escape(OWN_VERDICTS)}$", "read": f"^{queue}$"}


def topic_permissions(address: str) -> dict[str, str]:
    """Return with which routing keys the account of an address may publish."""
    account = re.escape(account_of(rabbitmq_queue(address)))
    return {"exchange": OWN_VERDICTS, "write": rf"^[^.]+\.{account}$", "read": "^$"}


def vhost_of(broker: str) -> str:
    """Return the virtual host of a URL, as it stands in other URLs."""
    return urlsplit(broker).path[1:] or quote("/", safe="")


def url_of(broker: str, address: str, password: str) -> str:
    """Return the URL by which an account's worker connects."""
    parts = urlsplit(broker)
    place = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{_account(address)}:{password}@{place}").geturl()


def _tags(user: Any) -> list[str]:
    """Return the tags of an account, which RabbitMQ writes as a list, and before 3.9 as words with commas."""
    tags = user.get("tags", [])
    return [tag for tag in (tags.split(",") if isinstance(tags, str) else tags) if tag]


def _hash(password: str) -> str:
    """Return a password as RabbitMQ keeps it, so that it goes over no network."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
