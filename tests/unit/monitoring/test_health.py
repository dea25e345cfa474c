"""Health over HTTP: what stops mail, what should only be looked at, and what is asked for by name."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from sendswitch.monitoring.health import make_app


async def well() -> str:
    return ""


async def ill() -> str:
    return "make room"


async def broken() -> str:
    raise OSError("no such file")


async def nothing() -> None:
    return


def get(path: str, checks: dict[str, Any], warnings: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Ask the application as a server would."""
    sent: list[dict[str, Any]] = []

    async def inside() -> None:
        name, _, query = path.partition("?")
        scope = {"type": "http", "method": "GET", "path": name, "query_string": query.encode(), "headers": []}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            sent.append(message)

        await make_app(checks, warnings, nothing)(scope, receive, send)

    asyncio.run(inside())
    return sent[0]["status"], orjson.loads(sent[1]["body"])


@pytest.mark.parametrize(
    ("path", "checks", "warnings", "code", "status"),
    [
        ("/healthz", {"spool": well}, {"journal": well}, 200, "healthy"),
        ("/healthz", {"spool": well}, {"journal": ill}, 200, "degraded"),
        ("/healthz?strict", {"spool": well}, {"journal": ill}, 503, "degraded"),
        ("/healthz", {"spool": ill}, {"journal": ill}, 503, "unhealthy"),
        ("/healthz?check=journal", {"spool": ill}, {"journal": ill}, 200, "degraded"),
        ("/healthz?check=spool", {"spool": broken}, {"journal": well}, 503, "unhealthy"),
        ("/readyz", {"spool": well}, {"journal": ill}, 200, "healthy"),
        ("/readyz", {"spool": ill}, {"journal": well}, 503, "unhealthy"),
    ],
)
def test_health(path: str, checks: dict[str, Any], warnings: dict[str, Any], code: int, status: str) -> None:
    found, body = get(path, checks, warnings)
    assert (found, body["status"]) == (code, status)
    causes = {check["name"]: check["cause"] for check in body["checks"]}
    if status == "unhealthy" and broken in checks.values():
        assert causes == {"spool": "no such file"}
    elif code == 503 or status == "degraded":
        assert "make room" in causes.values()


def test_a_check_that_is_not_there() -> None:
    code, body = get("/healthz?check=colour", {"spool": well}, {"journal": well})
    assert code == 404
    assert body["error"] == "no check is named colour; known are spool, journal"
