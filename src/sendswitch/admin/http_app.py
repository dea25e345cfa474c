"""The management API as an HTTP application: each use case of `USE_CASES` at its place below /api/v1.

A running node serves it on a unix socket in its data folder, which only its own user and root can open. Use cases block
and run in threads of their own, so that a slow one delays neither mail nor the database's threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sendswitch import logs
from sendswitch.admin import (
    access_keys,
    configuration,
    deliveries,
    hold,
    lists,
    messages,
    node,
    pipelines,
    quarantine,
    queue,
    routes,
    rules,
    users,
    webhooks,
)
from sendswitch.admin.base import Actor, Installation, place_of
from sendswitch.admin.dispatch import perform
from sendswitch.admin.serialization import ACTOR, BASE, as_ours, to_problem
from sendswitch.errors import SendSwitchError
from sendswitch.mail.content import InFile, InMemory

# Use cases that run at once, and the bytes of a request's body.
THREADS = 4
MAX_BODY = 32 * 1024 * 1024

USE_CASES: tuple[Callable[..., Any], ...] = (
    *(node.refresh, node.reload, node.status, node.drain, node.set_level, node.start_trace, node.trace),
    *(node.stop_trace, node.list_workers, node.list_nodes, node.forget),
    *(queue.list_queue, queue.top, queue.flush),
    *(quarantine.list_quarantine, quarantine.release, quarantine.delete, hold.list_held, hold.answer),
    *(deliveries.show, deliveries.requeue, deliveries.forward),
    *(rules.list_rules, rules.newest, rules.add, rules.cancel, rules.resume),
    *(messages.search, messages.history, messages.content),
    *(users.list_users, users.list_removed, users.add, users.remove, users.restore, users.set_password),
    *(routes.list_routes, routes.set_route, routes.install, routes.uninstall),
    *(access_keys.list_keys, access_keys.add, access_keys.remove),
    *(pipelines.show, pipelines.diff, pipelines.check, pipelines.history, pipelines.set_live, pipelines.set_candidate),
    *(pipelines.compare, pipelines.promote, pipelines.withdraw, pipelines.roll_back),
    *(lists.list_entries, lists.add, lists.remove, lists.find),
    *(configuration.export, configuration.plan, configuration.apply),
    *(webhooks.endpoints, webhooks.events, webhooks.attempts, webhooks.resend, webhooks.enable),
)


def make_app(installation: Installation) -> Starlette:
    """Return the application over one installation. Its threads end with the process."""
    threads = ThreadPoolExecutor(THREADS, "management")
    return Starlette(routes=[_route(function, installation, threads) for function in USE_CASES])


def _route(function: Callable[..., Any], installation: Installation, threads: ThreadPoolExecutor) -> Route:
    place = place_of(function)

    async def answer(request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                return _problem(ValueError(f"the request has more than {MAX_BODY} bytes"))
        actor = Actor(request.headers.get(ACTOR, "") or "unknown")
        query = {name: request.query_params.getlist(name) for name in request.query_params}

        def work() -> Response:
            try:
                given = {name: values[0] for name, values in query.items()} | (orjson.loads(body) if body else {})
                return _response(perform(function, installation, actor, given | request.path_params))
            except Exception as error:
                if (ours := as_ours(error)) is error and not isinstance(error, SendSwitchError | ValueError):
                    logs.failed(f"{place.method} {place.path}", error=error)
                return _problem(ours)

        return await asyncio.get_running_loop().run_in_executor(threads, work)

    # A mail address may have a slash in it.
    return Route(BASE + place.path.replace("{address}", "{address:path}"), answer, methods=[place.method])


def _response(result: Any) -> Response:
    if isinstance(result, InMemory | InFile):
        size = {"Content-Length": str(result.size)}  # who reads sees by it when the content ends too early
        return StreamingResponse(result.chunks(), headers=size, media_type="message/rfc822")
    return Response(orjson.dumps(result, option=orjson.OPT_UTC_Z), media_type="application/json")


def _problem(error: Exception) -> Response:
    problem = to_problem(error)
    return Response(orjson.dumps(problem), problem["status"], media_type="application/problem+json")
