"""Health and metrics over HTTP.

`/livez` answers while the process does. `/readyz` answers 200 only while the node can take mail and deliver it; each
check says in words what is wrong. `/healthz` has more checks: `degraded` stops no mail, but an administrator should
look. It answers 503 when a check is unhealthy, with `?strict` also when one is degraded, and `?check=NAME` runs only
that check. `/metrics` is for Prometheus.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sendswitch import metrics

Check = Callable[[], Awaitable[str]]
"""A check: it returns '' when all is well, else a sentence that says what is wrong and what to do."""

# Seconds that a check may take. An answer waits for the slowest check.
LIMIT = 5.0


async def ask(checks: Mapping[str, Check], wrong: str = "unhealthy") -> list[dict[str, str]]:
    """Run all checks at once. A check that takes too long or fails has the status `wrong`."""

    async def one(name: str, check: Check) -> dict[str, str]:
        try:
            async with asyncio.timeout(LIMIT):
                cause = await check()
        except TimeoutError:
            cause = f"no answer within {LIMIT:g} s"
        except Exception as error:
            cause = str(error) or type(error).__name__
        return {"name": name, "status": wrong if cause else "healthy", "cause": cause}

    return list(await asyncio.gather(*(one(name, check) for name, check in checks.items())))


@dataclass(frozen=True, slots=True)
class _Pages:
    """The pages of health and metrics, one method each."""

    checks: Mapping[str, Check]
    warnings: Mapping[str, Check]
    refresh: Callable[[], Awaitable[None]]

    async def livez(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        results = await ask(self.checks)
        ready = all(result["status"] == "healthy" for result in results)
        body = {"status": "healthy" if ready else "unhealthy", "checks": results}
        headers = {} if ready else {"Retry-After": "10"}
        return JSONResponse(body, status_code=200 if ready else 503, headers=headers)

    async def healthz(self, request: Request) -> Response:
        only = request.query_params.getlist("check")
        unknown = sorted(set(only) - {*self.checks, *self.warnings})
        if unknown:
            known = ", ".join((*self.checks, *self.warnings))
            return JSONResponse({"error": f"no check is named {', '.join(unknown)}; known are {known}"}, 404)
        found = [
            await ask({name: check for name, check in some.items() if not only or name in only}, wrong)
            for some, wrong in ((self.checks, "unhealthy"), (self.warnings, "degraded"))
        ]
        results = [result for some in found for result in some]
        statuses = [result["status"] for result in results]
        status = next((status for status in ("unhealthy", "degraded") if status in statuses), "healthy")
        bad = status == "unhealthy" or (status == "degraded" and "strict" in request.query_params)
        return JSONResponse({"status": status, "checks": results}, status_code=503 if bad else 200)

    async def show_metrics(self, request: Request) -> Response:
        await self.refresh()
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def make_app(
    checks: Mapping[str, Check],
    warnings: Mapping[str, Check],
    refresh: Callable[[], Awaitable[None]],
    pages: Sequence[Route] = (),
) -> Starlette:
    """Return the application with health, metrics and `pages`.

    A failure of `checks` stops mail, one of `warnings` does not. `refresh` updates the gauges before they are shown.
    """
    own = _Pages(checks, warnings, refresh)
    routes = [
        Route("/livez", own.livez),
        Route("/readyz", own.readyz),
        Route("/healthz", own.healthz),
        Route("/metrics", own.show_metrics),
    ]
    return Starlette(routes=[*routes, *pages])
