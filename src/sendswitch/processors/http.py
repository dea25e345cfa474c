"""Services that speak HTTP: one request, one answer of limited size."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import httpx
from pydantic import AfterValidator


def _url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{text!r} is no URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{text!r} is no URL; write it like https://host/path")
    return text.rstrip("/")


Url = Annotated[str, AfterValidator(_url)]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def text(self) -> str:
        """The body for people."""
        return self.body.decode("utf-8", "replace")


@cache
def _trusted() -> ssl.SSLContext:
    # The machine's own certificates, which its administrator keeps; reading them takes longer than a request.
    return ssl.create_default_context()


def new_client() -> httpx.AsyncClient:
    """Keeps connections; who uses it says how many at once. Knows no proxy, cookie or redirect, and no time limit but
    that of the step."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=20)
    return httpx.AsyncClient(verify=_trusted(), limits=limits, timeout=None, trust_env=False, follow_redirects=False)  # noqa: S113 - the step's


async def asked(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: Sequence[tuple[bytes, bytes]],
    content: AsyncIterator[bytes] | bytes,
    limit: int,
) -> Answer:
    """The answer as it is sent. Raises OSError that names the URL, ValueError for one of more than `limit` bytes."""
    body = bytearray()
    try:
        async with client.stream(
            method, url, headers=[(b"Accept-Encoding", b"identity"), *headers], content=content
        ) as response:
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > limit:
                    raise ValueError(f"{url} answered with more than {limit} bytes")
            return Answer(response.status_code, response.headers, bytes(body))
    except httpx.HTTPError as error:
        raise OSError(f"{url} could not be asked: {error or type(error).__name__}") from error
