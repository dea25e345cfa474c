"""Health and metrics over HTTP.

`/livez` answers while the process does. `/readyz` answers 200 only while mail can be taken and handed on; each
check says in words what is wrong. `/metrics` is for Prometheus.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sendswitch import metrics

Check = Callable[[], Awaitable[str]]
"""Gives '' when all is well, else a sentence that says what is wrong and what to do."""

# Seconds a check may take; whoever asks waits for the slowest.
LIMIT = 5.0


async def ask(checks: Mapping[str, Check]) -> list[dict[str, str]]:
    """Ask all checks at once; one that takes too long or fails is not well."""

    async def one(name: str, check: Check) -> dict[str, str]:
        try:
            async with asyncio.timeout(LIMIT):
                cause = await check()
        except TimeoutError:
            cause = f"no answer within {LIMIT:g} s"
        except Exception as error:
            cause = str(error) or type(error).__name__
        return {"name": name, "status": "unhealthy" if cause else "healthy", "cause": cause}

    return list(await asyncio.gather(*(one(name, check) for name, check in checks.items())))


def make_app(checks: Mapping[str, Check], refresh: Callable[[], Awaitable[None]]) -> Starlette:
    """The application. `refresh` brings the gauges up to date before they are shown."""

    async def livez(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        results = await ask(checks)
        ready = all(result["status"] == "healthy" for result in results)
        body = {"status": "healthy" if ready else "unhealthy", "checks": results}
        headers = {} if ready else {"Retry-After": "10"}
        return JSONResponse(body, status_code=200 if ready else 503, headers=headers)

    async def show_metrics(request: Request) -> Response:
        await refresh()
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", show_metrics),
        ]
    )
