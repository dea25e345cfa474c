"""Who gets which recipient: pure look-ups in a table that is replaced as a whole when users change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sendswitch.mail.address import key, without_extension

POOL = "tasks.pool"


@dataclass(frozen=True, slots=True)
class Route:
    """A recipient's pipeline: whose, which version, and what holds when it says nothing.

    `deadline` in seconds; `on_timeout` is pass, deny, hold or quarantine; `deny` is bounce, discard or quarantine.
    `candidate` is the version that runs beside the live one without effect, 0 for none.
    """

    owner: str
    version: int
    deadline: float
    on_timeout: str
    deny: str
    queue: str = POOL
    candidate: int = 0


class Routes:
    """Routes by address: an exact one, then without extension, then `@domain` for all of a domain."""

    def __init__(self, routes: Iterable[Route] = (), *, delimiters: str = "+") -> None:
        self._routes = {key(route.owner): route for route in routes}
        self._delimiters = delimiters

    def __len__(self) -> int:
        return len(self._routes)

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())

    def find(self, address: str) -> Route | None:
        """The route of a recipient; None means no pipeline: deliver."""
        routes = self._routes
        if not routes:
            return None
        wanted = key(address)
        found = routes.get(wanted)
        if found is None and self._delimiters:
            found = routes.get(without_extension(wanted, self._delimiters))
        if found is None:
            found = routes.get("@" + wanted.rpartition("@")[2])
        return found
