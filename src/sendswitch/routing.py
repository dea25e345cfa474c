"""Routes from recipients to pipelines: pure look-ups in a table that is replaced as a whole when users change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sendswitch.mail.address import key, resolved, split, without_extension

# The queues of tasks: for any worker of the site; for a worker without other tasks, which a task may break; and for the
# node itself, which runs what is cheap for any mail. All others are for workers of one user's own.
TASKS, WEB = "tasks.", "web."
POOL, ALONE, HERE = TASKS + "pool", TASKS + "alone", TASKS + "here"
# Names in RabbitMQ have at most 255 bytes, and its library allows few signs in them.
LONGEST, _PLAIN = 200, re.compile(r"[a-z0-9._+-]*@[a-z0-9.-]+")


def own_queue(owner: str) -> str:
    """Return the queue for workers of a user's own that come over the web port."""
    return WEB + key(owner)


def rabbitmq_queue(owner: str) -> str:
    """Return the queue in RabbitMQ for workers of a user's own."""
    return TASKS + key(owner)


def fits_rabbitmq(owner: str) -> bool:
    """Return whether an owner's address can name a queue, a routing key and an account in RabbitMQ: letters, digits and
    few signs, LONGEST at most.
    """
    return len(owner) <= LONGEST and _PLAIN.fullmatch(key(owner)) is not None


def in_rabbitmq(queue: str) -> bool:
    """Return whether a queue is in RabbitMQ, where a node has one."""
    return queue.startswith(TASKS) and queue != HERE


def is_own(queue: str) -> bool:
    """Return whether a queue is for workers of a user's own."""
    return "@" in queue


@dataclass(frozen=True, slots=True)
class Route:
    """A recipient's pipeline: owner, version, and the answers for cases that it leaves open.

    `deadline` in seconds; `on_timeout` is defer, pass, deny, hold or quarantine; `deny` is bounce, discard or
    quarantine. `candidate` is the version that runs beside the live one without effect, 0 for none, and
    `candidate_queue` the queue for its tasks. `when_offline` is what happens to mail while no worker of `queue` is
    there: defer, pass, hold, quarantine, or pool for the site's workers. With version 0 there is no pipeline here: the
    user's own workers have one.
    """

    owner: str
    version: int
    deadline: float
    on_timeout: str
    deny: str
    queue: str = POOL
    candidate: int = 0
    candidate_queue: str = POOL
    when_offline: str = "defer"

    @property
    def own(self) -> bool:
        """Return whether workers of the user's own run the pipeline."""
        return is_own(self.queue)

    @property
    def needs_pool(self) -> bool:
        """Return whether workers of the site may be asked."""
        asked = (self.queue, self.candidate and self.candidate_queue)
        return POOL in asked or self.when_offline == "pool"


class Routes:
    """Routes by address: an exact one, then without extension, then `@domain` for all of a domain.

    `origin` is the domain of addresses without one (Postfix `myorigin`), '' for unknown. Nothing changes them:
    `changed` returns others.
    """

    def __init__(
        self, routes: Iterable[Route] | Mapping[str, Route] = (), *, delimiters: str = "+", origin: str = ""
    ) -> None:
        """Take routes, or a mapping of them by `mail.address.key` of their owners' addresses."""
        by_key = routes if isinstance(routes, Mapping) else {key(route.owner): route for route in routes}
        self._routes = dict(by_key)
        self._delimiters, self._origin = delimiters, origin
        self._locals: dict[str, str] | None = None

    def __len__(self) -> int:
        return len(self._routes)

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())

    def changed(self, routes: Mapping[str, Route], gone: Iterable[str]) -> Routes:
        """Return these routes without those of `gone`, and with others. Both are named by the keys of addresses."""
        kept = {**self._routes, **routes}
        for name in gone:
            kept.pop(name, None)
        return Routes(kept, delimiters=self._delimiters, origin=self._origin)

    def of(self, owner: str) -> Route | None:
        """Return the route of this owner, and of nobody else."""
        return self._routes.get(key(owner))

    def find(self, address: str) -> Route | None:
        """Return the route of a recipient; None means no pipeline: deliver.

        Every form counts that Postfix may rewrite the address to; the first that has a route wins.
        """
        if not self._routes:
            return None
        for wanted in resolved(address):
            if (found := self._of(wanted)) is not None:
                return found
        return None

    def _of(self, wanted: str) -> Route | None:
        if not split(wanted)[1]:
            return self._without_domain(wanted)
        routes = self._routes
        found = routes.get(wanted)
        if found is None and self._delimiters:
            found = routes.get(without_extension(wanted, self._delimiters))
        if found is None:
            found = routes.get("@" + wanted.rpartition("@")[2])
        return found

    def _without_domain(self, local: str) -> Route | None:
        """Return the route of a local user. Without a known origin, the route of any user with this local part."""
        if self._origin:
            return self._of(f"{local}@{key(self._origin)}")
        if self._locals is None:  # such an address is rare
            self._locals = {split(owner)[0]: owner for owner in sorted(self._routes, reverse=True)}
        bare = without_extension(local, self._delimiters)
        owners = [self._locals[name] for name in (local, bare) if name in self._locals]
        return self._routes[min(owners)] if owners else None
