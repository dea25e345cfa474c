"""Routes of users, read from the database: the pipeline of each address, with the configured defaults.

A node reads all users once, when it starts. After that it reads those that were changed since, by the numbers of
changes (`db.marks`). Of a pipeline it reads the summary only; the worker that runs it reads its text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, bindparam, func, not_, select, tuple_, update

from sendswitch import logs
from sendswitch.accounts.users import summary_of
from sendswitch.accounts.workers import WorkersOf, with_default
from sendswitch.conditions.pipeline import RULES, Summary, read_pipeline, summary_from
from sendswitch.config.model import Config
from sendswitch.db import marks
from sendswitch.db.tables import pipelines, removed_users, users
from sendswitch.errors import SendSwitchError
from sendswitch.routing import HERE, POOL, Route, Routes, own_queue, rabbitmq_queue

# Pipelines read, or summaries written, by one statement.
PIECE = 500


@dataclass(frozen=True, slots=True)
class Changes:
    """Users by the keys of their addresses: those who are there, and those who are not any more.

    `number` is that of the last change. `routes` are of those with a pipeline, here or on workers of their own.
    """

    number: int
    there: Collection[str]
    gone: Collection[str]
    routes: Mapping[str, Route]


def load_routes(engine: Engine, config: Config) -> Routes:
    """Return every user's route. A pipeline that cannot be read keeps its route: its mail waits, and none passes."""
    return routes_of(read_users(engine, config), config)


def routes_of(everybody: Changes, config: Config) -> Routes:
    """Return the routes of all users."""
    routing = config.routing
    return Routes(everybody.routes, delimiters=routing.recipient_delimiter, origin=routing.origin)


def read_users(engine: Engine, config: Config, *, since: int = -1) -> Changes:
    """Return the users that were changed after the change of the number `since`, by default all."""
    with engine.connect() as connection:
        # Read before the users, so that a change which comes meanwhile is read again later, not left out.
        number = marks.number(connection, marks.USERS)
        rows = list(_rows(connection, since))
        removed = connection.execute(select(removed_users.c.key).where(removed_users.c.changed > since)).scalars()
        there = {str(row.key) for row in rows}
        gone = set(removed) - there
        summaries = _made_now(connection, rows)
    return Changes(number, there, gone, dict(_routes(rows, summaries, config)))


def _rows(connection: Connection, since: int) -> Iterator[Row[Any]]:
    if since < 0:
        yield from connection.execute(_users())
        return
    # Named one by one: told by the number of the change only, PostgreSQL would go through all pipelines.
    changed = connection.execute(select(users.c.id).where(users.c.changed > since)).scalars().all()
    for n in range(0, len(changed), PIECE):
        yield from connection.execute(_users(changed[n : n + PIECE]))


def _users(numbers: Sequence[int] | None = None) -> Select[Any]:
    """Select users with version and summary of the live pipeline and of the candidate, by default all users."""
    newest = select(pipelines.c.user_id, func.max(pipelines.c.version).label("version"))
    newest = newest.where(pipelines.c.role == "live")
    if numbers is not None:
        newest = newest.where(pipelines.c.user_id.in_(numbers))
    last = newest.group_by(pipelines.c.user_id).subquery()
    live, candidate = pipelines.alias(), pipelines.alias()
    from_ = (
        users.outerjoin(last, last.c.user_id == users.c.id)
        .outerjoin(live, (live.c.user_id == users.c.id) & (live.c.version == last.c.version))
        .outerjoin(candidate, (candidate.c.user_id == users.c.id) & (candidate.c.role == "candidate"))
    )
    user = users.c.id, users.c.address, users.c.key, users.c.workers, users.c.when_offline
    of_live = live.c.version.label("live"), live.c.summary.label("live_summary")
    of_candidate = candidate.c.version.label("candidate"), candidate.c.summary.label("candidate_summary")
    found = select(*user, *of_live, *of_candidate).select_from(from_)
    return found if numbers is None else found.where(users.c.id.in_(numbers))


def _made_now(connection: Connection, rows: Sequence[Row[Any]]) -> dict[tuple[int, int], Summary]:
    """Return the summaries, by user and version, of pipelines that are stored without one that counts."""
    wanted = [(row.id, row.live) for row in rows if row.live and summary_from(row.live_summary) is None]
    wanted += [(r.id, r.candidate) for r in rows if r.candidate and summary_from(r.candidate_summary) is None]
    owners, made = {row.id: str(row.address) for row in rows}, {}
    for n in range(0, len(wanted), PIECE):
        named = tuple_(pipelines.c.user_id, pipelines.c.version).in_(wanted[n : n + PIECE])
        query = select(pipelines.c.user_id, pipelines.c.version, pipelines.c.text).where(named)
        for user, version, text in connection.execute(query):
            made[user, version] = _summary(text, owners[user]) or Summary()
    return made


def _summary(text: str, owner: str) -> Summary | None:
    """Return the summary of a stored pipeline, None when it cannot be read."""
    try:
        return read_pipeline(text, owner).summary
    except SendSwitchError as error:
        logs.failed(f"the pipeline of {owner}", error=error)
        return None


def _routes(
    rows: Sequence[Row[Any]], made: Mapping[tuple[int, int], Summary], config: Config
) -> Iterator[tuple[str, Route]]:
    for row in rows:
        own = row.workers != "site"
        if row.live is None and not own:
            continue
        live = made.get((row.id, row.live)) or summary_from(row.live_summary or "") or Summary()
        route = make_route(row.address, row.live or 0, live, config)
        if row.live and row.candidate:
            beside = made.get((row.id, row.candidate)) or summary_from(row.candidate_summary) or Summary()
            route = replace(route, candidate=row.candidate, candidate_queue=_queue(beside))
        if own or row.when_offline:
            route = _run_by(with_default(row.address, row.workers, row.when_offline), route, config)
        yield row.key, route


def renew_summaries(engine: Engine) -> int:
    """Write the summaries that are missing or were made by other rules. Return their number.

    It is done when a node starts, so that the next start and each change read no texts. Pipelines that cannot be read
    keep none. When it ends before all are written, the others are still found.
    """
    done, after = 0, 0
    wanted = (pipelines.c.role != "retired") & not_(pipelines.c.summary.startswith(f'["{RULES}",', autoescape=True))
    query = select(pipelines.c.id, pipelines.c.text).where(wanted).order_by(pipelines.c.id).limit(PIECE)
    change = update(pipelines).where(pipelines.c.id == bindparam("number")).values(summary=bindparam("made"))
    while True:
        with engine.begin() as connection:
            rows = connection.execute(query.where(pipelines.c.id > after)).all()
            if not rows:
                return done
            after = rows[-1].id
            found = ((row.id, summary_of(row.text)) for row in rows)
            made = [{"number": number, "made": summary} for number, summary in found if summary]
            if made:
                connection.execute(change, made)
            done += len(made)


def _run_by(told: WorkersOf, route: Route, config: Config) -> Route:
    """Return a route with what holds for the user's workers."""
    when_offline = told.when_offline
    if told.run_by == "own-rabbitmq" and not config.broker.urls:
        when_offline = "defer"  # that RabbitMQ was taken away must let nothing pass
    if when_offline == "pool" and not route.version:
        when_offline = "defer"  # there is nothing that the site's workers could run
    queues = {"own": own_queue(told.address), "own-rabbitmq": rabbitmq_queue(told.address)}
    return replace(route, queue=queues.get(told.run_by, route.queue), when_offline=when_offline)


def _queue(own: Summary) -> str:
    return HERE if own.light else POOL


def make_route(owner: str, version: int, own: Summary, config: Config) -> Route:
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
