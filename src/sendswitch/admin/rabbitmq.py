"""Queues and accounts in RabbitMQ, where the configuration names one. Its library is imported only when it is used."""

from __future__ import annotations

import asyncio
from types import ModuleType
from typing import TYPE_CHECKING

from sendswitch.broker.rabbitmq import Hosts, missing_library
from sendswitch.config.model import Config
from sendswitch.errors import InvalidConfiguration, Refused
from sendswitch.mail.address import key
from sendswitch.routing import rabbitmq_queue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sendswitch.broker.rabbitmq.accounts import Accounts


def needed_hosts(config: Config) -> Hosts:
    """Return the hosts of RabbitMQ. Raises InvalidConfiguration where there are none."""
    if not (urls := config.broker_urls):
        raise InvalidConfiguration(["broker.urls is empty: this needs a RabbitMQ"])
    return Hosts(urls, config.broker.queue_type)


def install(config: Config) -> None:
    """Make what the site needs and is missing. Raises InvalidConfiguration, Temporary."""
    asyncio.run(_topology().install(needed_hosts(config)))


def missing(config: Config, users: Iterable[str]) -> list[str]:
    """Return what is missing, and the accounts of nobody, in words. `users` are those with workers over RabbitMQ.

    Raises InvalidConfiguration, Refused, Temporary.
    """
    addresses = list(users)
    queues = [rabbitmq_queue(address) for address in addresses]
    problems: list[str] = asyncio.run(_topology().missing(needed_hosts(config), queues))
    if any(problem.startswith("there is no") for problem in problems):
        problems.append("`sendswitch broker install` makes what is missing")
    if config.broker.management.get_secret_value():
        wanted = {key(address) for address in addresses}
        with _accounts(config) as accounts:
            left = [name for name in accounts.names() if name not in wanted]
        problems += [
            f"the account {name} is of no route; `sendswitch route uninstall {name}` removes it" for name in left
        ]
    return problems


def remove(config: Config) -> None:
    """Remove what `install` made. Raises InvalidConfiguration; Refused when there are tasks; Temporary."""
    asyncio.run(_topology().remove(needed_hosts(config)))


def install_queue(config: Config, address: str) -> None:
    """Make the queue of a user's own workers. Raises InvalidConfiguration, Temporary."""
    asyncio.run(_topology().add_queue(needed_hosts(config), rabbitmq_queue(address)))


def has_account(config: Config, address: str) -> bool:
    """Return whether a user's own workers have an account. Raises InvalidConfiguration, Refused, Temporary."""
    with _accounts(config) as accounts:
        return accounts.there(address)


def make_account(config: Config, address: str) -> str:
    """Make an account for a user's own workers, or give it a new password. Return the URL with which they connect.

    Raises InvalidConfiguration, Refused, Temporary.
    """
    from sendswitch.broker.rabbitmq.accounts import url_of

    with _accounts(config) as accounts:
        password = accounts.make(address)
    return url_of(config.broker.public or needed_hosts(config).urls[0], address, password)


def uninstall(config: Config, address: str) -> None:
    """Remove the account and the queue of a user's own workers. What waits there is asked elsewhere.

    Raises InvalidConfiguration, Refused, Temporary.
    """
    if config.broker.management.get_secret_value():
        with _accounts(config) as accounts:
            accounts.remove(address)
    asyncio.run(_topology().remove_queue(needed_hosts(config), rabbitmq_queue(address)))


def _accounts(config: Config) -> Accounts:
    if not (management := config.broker.management.get_secret_value()):
        raise Refused(
            "broker.management is empty: accounts are made through RabbitMQ's management plugin. Where a directory has"
            " them, use --no-account"
        )
    _topology()
    from sendswitch.broker.rabbitmq.accounts import Accounts

    return Accounts(management, needed_hosts(config).urls[0])


def _topology() -> ModuleType:
    try:
        from sendswitch.broker.rabbitmq import topology
    except ImportError as error:
        raise missing_library(error) from error
    return topology
