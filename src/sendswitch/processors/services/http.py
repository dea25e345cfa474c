"""Services that speak HTTP: one request, one answer of limited size."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http.cookiejar import DefaultCookiePolicy
from typing import Annotated

import httpx
from pydantic import AfterValidator

from sendswitch.processors.services.reachable import Reach


def _url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{text!r} is no URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{text!r} is no URL; write it like https://host/path")
    if url.userinfo:
        raise ValueError("a URL with a password in it would be shown in logs; let the receiver check the signature")
    return text


Url = Annotated[str, AfterValidator(_url)]


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """A whole answer."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def text(self) -> str:
        """Return the body for people."""
        return self.body.decode("utf-8", "replace")


def shown(url: str) -> str:
    """Return a URL for logs and traces, without its query, which may be secret."""
    return url.partition("?")[0]


@cache
def trusted() -> ssl.SSLContext:
    """Return the machine's certificates, which its administrator keeps. To read them takes longer than a request."""
    return ssl.create_default_context()


def new_client() -> httpx.AsyncClient:
    """Return a client that keeps connections. Its user sets the number at once and the time of a request.

    It follows no redirects, and uses no proxy and no cookies.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=20)
    client = httpx.AsyncClient(verify=trusted(), limits=limits, timeout=None, trust_env=False, follow_redirects=False)  # noqa: S113 - the step's
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return client


async def asked(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: Sequence[tuple[bytes, bytes]],
    content: AsyncIterator[bytes] | bytes,
    limit: int,
    name: str = "",
) -> PipelineResult:
    """Return the answer as it is sent. `name` is whose certificate is expected where the URL has an address.

    Raises OSError that names the URL, ValueError for an answer of more than `limit` bytes.
    """
    place = name or shown(url)
    extensions = {"sni_hostname": name.partition(":")[0]} if name and not name.startswith("[") else {}
    body = bytearray()
    head = [(b"Accept-Encoding", b"identity"), *headers]
    try:
        async with client.stream(method, url, headers=head, content=content, extensions=extensions) as response:
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > limit:
                    raise ValueError(f"{place} answered with more than {limit} bytes")
            return PipelineResult(response.status_code, response.headers, bytes(body))
    except httpx.HTTPError as error:
        raise OSError(f"{place} could not be asked: {error or type(error).__name__}") from error


async def checked_url(url: str, reach: Reach) -> tuple[str, str]:
    """Return the URL with an address in it that may be reached, and the host's own name, with its port where it has
    one.

    Raises Refused, OSError.
    """
    parsed = httpx.URL(url)
    address = await reach.find(
        parsed.raw_host.decode("ascii").strip("[]"), parsed.port or (443 if parsed.scheme == "https" else 80)
    )
    return str(parsed.copy_with(host=address)), parsed.netloc.decode("ascii")


def retry_after(answer: PipelineResult) -> float:
    """Return seconds until it may be asked again, as it says (RFC 9110 10.2.3); 0 when it says nothing that counts."""
    said = answer.headers.get("retry-after", "").strip()
    if said.isdecimal():
        return float(said[:8])
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
