"""Routes of users, read from the database: the pipeline of each address, with the configured defaults."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Engine

from sendswitch import logs
from sendswitch.accounts.users import StoredPipeline, all_pipelines, candidates, get_pipeline
from sendswitch.accounts.workers import WorkersOf, all_workers
from sendswitch.conditions.pipeline import PipelineConfig
from sendswitch.config.load import parse, validate
from sendswitch.config.model import Config
from sendswitch.errors import SendSwitchError
from sendswitch.routing import HERE, POOL, Route, Routes, own_queue, rabbitmq_queue


def load_routes(engine: Engine, config: Config) -> Routes:
    """Return every user's route. A pipeline that cannot be read keeps its route: its mail waits, and none passes."""
    routes = []
    beside = candidates(engine)
    workers = {one.address: one for one in all_workers(engine)}
    for stored in all_pipelines(engine):
        own = _read(stored)
        route = make_route(stored.owner, stored.version, own, config)
        if (version := beside.get(stored.owner, 0)) != 0:
            queue = _queue(_read(get_pipeline(engine, stored.owner, version)))
            route = replace(route, candidate=version, candidate_queue=queue)
        told = workers.pop(stored.owner, None)
        routes.append(route if told is None else _run_by(told, route, config))
    without = (told for told in workers.values() if told.own)  # their workers have a pipeline
    routes += [_run_by(told, make_route(told.address, 0, PipelineConfig(), config), config) for told in without]
    return Routes(routes, delimiters=config.routing.recipient_delimiter, origin=config.routing.origin)


def _run_by(told: WorkersOf, route: Route, config: Config) -> Route:
    """Return a route with what holds for the user's workers."""
    when_offline = told.when_offline
    if told.run_by == "own-rabbitmq" and not config.broker.urls:
        when_offline = "defer"  # that RabbitMQ was taken away must let nothing pass
    if when_offline == "pool" and not route.version:
        when_offline = "defer"  # there is nothing that the site's workers could run
    queues = {"own": own_queue(told.address), "own-rabbitmq": rabbitmq_queue(told.address)}
    return replace(route, queue=queues.get(told.run_by, route.queue), when_offline=when_offline)


def _read(stored: StoredPipeline) -> PipelineConfig:
    """Return a stored pipeline, an empty one when it cannot be read."""
    try:
        return read_pipeline(stored.text, stored.owner)
    except SendSwitchError as error:
        logs.failed(f"the pipeline of {stored.owner}", error=error)
        return PipelineConfig()


def _queue(own: PipelineConfig) -> str:
    return HERE if own.light else POOL


def make_route(owner: str, version: int, own: PipelineConfig, config: Config) -> Route:
    """Return the route of one pipeline. The configuration fills in the settings that the pipeline leaves out."""
    defaults = config.pipelines
    return Route(
        owner=owner,
        version=version,
        deadline=own.deadline or defaults.deadline,
        on_timeout=own.on_timeout or defaults.on_timeout,
        deny=own.deny or defaults.deny,
        queue=_queue(own),
    )


def read_pipeline(text: str, owner: str) -> PipelineConfig:
    """Return a stored pipeline. Raises InvalidConfiguration."""
    data, lines = parse(text, owner)
    return validate(PipelineConfig, data, owner, lines)
