"""RabbitMQ, where the configuration names it. Its library is imported only then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sendswitch.broker.rabbitmq import Hosts, missing_library
from sendswitch.broker.remote import OnSettings
from sendswitch.worker.process import NodeConsumer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sendswitch.broker.base import Hands, ReadContent
    from sendswitch.broker.calls import CallsOf, SettingsOf
    from sendswitch.broker.rabbitmq.publisher import RabbitPublisher


def rabbit_publisher(
    hosts: Hosts,
    node: str,
    read: ReadContent,
    calls: CallsOf,
    settings: SettingsOf,
    hands: Hands,
) -> RabbitPublisher:
    """Return a node's side of RabbitMQ. Raises InvalidConfiguration when the library is not installed."""
    try:
        from sendswitch.broker.rabbitmq.publisher import RabbitPublisher
    except ImportError as error:
        raise missing_library(error) from error
    return RabbitPublisher(hosts, node, read, calls, settings, hands)


def rabbit_consumer(
    urls: Sequence[str], on_settings: OnSettings, *, name: str, places: int, queues: tuple[str, ...]
) -> NodeConsumer:
    """Return a worker's side of RabbitMQ. Raises InvalidConfiguration when the library is not installed."""
    try:
        from sendswitch.broker.rabbitmq.consumer import RabbitConsumer
    except ImportError as error:
        raise missing_library(error) from error
    return RabbitConsumer(urls, name=name, places=places, queues=queues, on_settings=on_settings)
