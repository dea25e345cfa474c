"""RabbitMQ, where the configuration names it. Its library is imported only then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sendswitch.broker.remote import OnSettings
from sendswitch.config.model import Config
from sendswitch.errors import InvalidConfiguration
from sendswitch.worker.process import NodeConsumer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sendswitch.broker.base import ReadContent
    from sendswitch.broker.calls import CallsOf, SettingsOf
    from sendswitch.broker.rabbitmq.publisher import RabbitPublisher


def broker_urls(config: Config) -> list[str]:
    """Return the hosts of RabbitMQ, none where workers are on this machine."""
    return [url.get_secret_value() for url in config.broker.urls]


def rabbit_publisher(
    urls: Sequence[str],
    node: str,
    read: ReadContent,
    calls: CallsOf,
    settings: SettingsOf,
) -> RabbitPublisher:
    """Return a node's side of RabbitMQ. Raises InvalidConfiguration when the library is not installed."""
    try:
        from sendswitch.broker.rabbitmq.publisher import RabbitPublisher
    except ImportError as error:
        raise _missing(error) from error
    return RabbitPublisher(urls, node, read, calls, settings)


def rabbit_consumer(
    urls: Sequence[str], on_settings: OnSettings, *, name: str, places: int, queues: tuple[str, ...]
) -> NodeConsumer:
    """Return a worker's side of RabbitMQ. Raises InvalidConfiguration when the library is not installed."""
    try:
        from sendswitch.broker.rabbitmq.consumer import RabbitConsumer
    except ImportError as error:
        raise _missing(error) from error
    return RabbitConsumer(urls, name=name, places=places, queues=queues, on_settings=on_settings)


async def install(urls: Sequence[str]) -> None:
    """Make what is missing in RabbitMQ. Raises InvalidConfiguration, Temporary."""
    await _topology("install", urls)


async def check(urls: Sequence[str]) -> list[str]:
    """Return what is missing in RabbitMQ. Raises InvalidConfiguration, Temporary."""
    found: list[str] = await _topology("missing", urls)
    return found


async def remove(urls: Sequence[str]) -> None:
    """Remove what `install` made. Raises InvalidConfiguration; Refused when there are tasks; Temporary."""
    await _topology("remove", urls)


async def _topology(name: str, urls: Sequence[str]) -> Any:
    if not urls:
        raise InvalidConfiguration(["broker.urls is empty: without RabbitMQ there is nothing to install"])
    try:
        from sendswitch.broker.rabbitmq import topology
    except ImportError as error:
        raise _missing(error) from error
    return await getattr(topology, name)(urls)


def _missing(error: ImportError) -> InvalidConfiguration:
    hint = f"broker.urls needs {error.name}, which is not installed; pip install 'sendswitch[rabbitmq]'"
    return InvalidConfiguration([hint])
