"""The broker between machines: RabbitMQ, over AMQP 0-9-1.

    default exchange ── tasks.pool ──▶ a worker of the site
                    └── tasks.ann@example.test ──▶ a worker of that user
    worker of the site ── exchange `verdicts`, key <node>.pool ──▶ a queue of the node
    worker of that user ── exchange `verdicts.own`, key <node>.ann@example.test ──▶ another queue of the node

A node believes a worker only about the tasks of its own queue. RabbitMQ lets a user's account publish to the second
exchange only, and only with its own key, and proves the account by the property user-id of each message: accounts of
users are their addresses, those of the site have no @. The node hears users' workers over a connection of its own,
because the library ends a connection for one message with properties that it cannot read. Messages are
`broker.frames`.

A task is lost with a queue or with RabbitMQ's memory; the spool has its mail, and the node offers it again. So nothing
depends on RabbitMQ's disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sendswitch.errors import InvalidConfiguration

QueueType = Literal["classic", "quorum"]


@dataclass(frozen=True, slots=True)
class Hosts:
    """The hosts of a RabbitMQ by their URLs, and the type of the queues for tasks there (`x-queue-type`)."""

    urls: Sequence[str]
    queue_type: QueueType = "classic"


def missing_library(error: ImportError) -> InvalidConfiguration:
    """Return the error for a library that is not installed: the modules here import it, this one does not."""
    hint = f"broker.urls needs {error.name}, which is not installed; pip install 'sendswitch[rabbitmq]'"
    return InvalidConfiguration([hint])
