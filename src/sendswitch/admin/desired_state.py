"""Users, pipelines and lists as a file: exported, compared with the database, and applied in one transaction.

Users and entries that the file leaves out stay, unless `prune` is set.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

import tomli_w
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError

from sendswitch.accounts import users, workers
from sendswitch.config.load import parse, validate
from sendswitch.db import lists
from sendswitch.errors import InvalidConfiguration, Temporary
from sendswitch.mail.address import key


class _User(BaseModel):
    """One user."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = Field(description="user@domain, or @domain for all of a domain.")
    pipeline: str = Field("", description="The pipeline as TOML; without it mail is delivered.")
    run_by: workers.RunBy = Field("site", description="Whose workers run the pipeline.")
    when_offline: Literal[""] | workers.WhenOffline = Field(
        "", description="What happens to mail while no worker is there; without it the default."
    )


class _Entry(BaseModel):
    """An entry with a reason or an end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entry: str
    reason: str = Field("", max_length=500, description="Why.")
    until: AwareDatetime | None = Field(None, description="When it ends; without it never.")


class _List(BaseModel):
    """One list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    owner: str = Field("", alias="for", description="user@domain or domain; without it the site.")
    list: Literal["allow", "deny"]
    entries: tuple[str | _Entry, ...] = ()


class _File(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: tuple[_User, ...] = ()
    list: tuple[_List, ...] = ()


ListName = tuple[str, str]
"""A scope, '' for the site, and `allow` or `deny`."""


@dataclass(frozen=True, slots=True)
class WantedUser:
    """A user's pipeline, '' for none, and workers. `when_offline` is '' for the default."""

    pipeline: str = ""
    run_by: workers.RunBy = "site"
    when_offline: str = ""

    @property
    def route(self) -> list[str]:
        """Return the lines about the workers, none for what all users have."""
        told = {"run_by": self.run_by, "when_offline": self.when_offline}
        return tomli_w.dumps({name: value for name, value in told.items() if value not in ("site", "")}).splitlines()


NO_USER = WantedUser()


@dataclass(frozen=True, slots=True)
class Wanted:
    """The content of a file: users by address, and entries of lists with their reasons and ends."""

    users: Mapping[str, WantedUser]
    lists: Mapping[ListName, Mapping[str, tuple[str, float | None]]]


class Change(Protocol):
    """One change. `what` is `add`, `change` or `remove`; `of` names the user or the list."""

    @property
    def of(self) -> str:
        """Return the user or the list."""
        ...

    what: str

    def diff(self, show: Callable[[str], str] = str) -> list[str]:
        """Return the lines before and after. `show` returns the text of a pipeline as it may be shown."""
        ...

    def make(self, connection: Connection, *, author: str) -> None:
        """Make the change. Raises NotFound or Refused when another request changed the same thing meanwhile."""
        ...


@dataclass(slots=True)
class UserChange:
    """A user before and after."""

    of: str
    what: str
    old: WantedUser = NO_USER
    new: WantedUser = NO_USER

    def diff(self, show: Callable[[str], str] = str) -> list[str]:
        """Return the change of the pipeline and the workers. `show` returns the text of a pipeline as it may be
        shown.
        """
        old, new = ([*one.route, *show(one.pipeline).splitlines()] for one in (self.old, self.new))
        return list(difflib.unified_diff(old, new, "is", "shall be", lineterm=""))

    def make(self, connection: Connection, *, author: str) -> None:
        """Add, change or remove the user. Raises NotFound, Refused."""
        if self.what == "remove":
            users.remove(connection, self.of, author=author)
            return
        if self.what == "add":
            users.add(connection, self.of)
        if self.new.pipeline != self.old.pipeline:
            users.store(connection, self.of, self.new.pipeline, author=author)
        if self.new.route != self.old.route:
            workers.change(connection, self.of, run_by=self.new.run_by, when_offline=self.new.when_offline)


@dataclass(slots=True)
class ListChange:
    """One list: entries to add or change, and entries to remove with their numbers."""

    name: ListName
    put: Mapping[str, tuple[str, float | None]]
    gone: Mapping[str, int]
    what: str = "change"

    @property
    def of(self) -> str:
        """Return the name of the list and its scope."""
        scope, list_ = self.name
        return f"{list_} list of {scope or 'the site'}"

    def diff(self, show: Callable[[str], str] = str) -> list[str]:
        """Return the removed and the added entries."""
        return [f"-{entry}" for entry in self.gone] + [f"+{_shown(entry, *told)}" for entry, told in self.put.items()]

    def make(self, connection: Connection, *, author: str) -> None:
        """Change the list. Raises NotFound."""
        lists.put(connection, *self.name, self.put, author=author)
        lists.take_off(connection, list(self.gone.values()))


def export(engine: Engine, *, show: Callable[[str], str] = str) -> str:
    """Return all users with their live pipelines, and all lists, as TOML. `show` returns a pipeline as it may
    be shown.
    """
    tables = [_declared(address, user, show) for address, user in _known_users(engine).items()]
    kept: dict[ListName, list[str]] = {}
    for entry in lists.entries(engine):
        kept.setdefault((entry.scope, entry.list), []).append(_shown(entry.entry, entry.reason, entry.expires))
    for (scope, list_), entries in sorted(kept.items()):
        head = tomli_w.dumps({"for": scope, "list": list_} if scope else {"list": list_})
        tables.append(f"[[list]]\n{head}entries = [\n" + "".join(f"    {entry},\n" for entry in entries) + "]\n")
    return "\n".join(tables)


def _shown(entry: str, reason: str, expires: float | None) -> str:
    """Return an entry as the file has it."""
    more = [f"reason = {_string(reason)}"] if reason else []
    if expires is not None:
        more.append(f"until = {datetime.fromtimestamp(round(expires), UTC):%Y-%m-%dT%H:%M:%SZ}")
    return f"{{ {', '.join([f'entry = {_string(entry)}', *more])} }}" if more else _string(entry)


def _string(text: str) -> str:
    return tomli_w.dumps({"x": text}).removeprefix("x = ").rstrip("\n")


def _declared(address: str, user: WantedUser, show: Callable[[str], str]) -> str:
    """Return one user as TOML, with the pipeline as it was written where TOML allows it."""
    pipeline = show(user.pipeline) if user.pipeline else ""
    begin = "[[user]]\n" + tomli_w.dumps({"address": address}) + "".join(f"{line}\n" for line in user.route)
    if not pipeline:
        return begin
    literal = f"pipeline = '''\n{pipeline}'''\n"
    try:
        faithful = tomllib.loads(literal)["pipeline"] == pipeline
    except tomllib.TOMLDecodeError:
        faithful = False
    text = literal if faithful else tomli_w.dumps({"pipeline": pipeline})
    return begin + text


def read(text: str, file: str, check: Callable[[str, str], object], check_entry: Callable[[str], str]) -> Wanted:
    """Return the content of a file. `file` is its name.

    `check` raises InvalidConfiguration for a wrong pipeline; `check_entry` returns an entry as it is kept, or raises
    ValueError. Raises InvalidConfiguration with every error.
    """
    data, lines = parse(text, file)
    wanted: dict[str, WantedUser] = {}
    kept: dict[ListName, dict[str, tuple[str, float | None]]] = {}
    problems: list[str] = []
    told = validate(_File, data, file, lines)
    for n, one in enumerate(told.list):
        place = f"{file}:{lines.get(('list', n), 1)}"
        try:
            entries = kept.setdefault((lists.scope_of(one.owner), one.list), {})
            for entry in one.entries:
                more = _Entry(entry=entry) if isinstance(entry, str) else entry
                until = more.until.timestamp() if more.until is not None else None
                entries[check_entry(more.entry)] = (more.reason, until)
        except ValueError as error:
            problems.append(f"{place}: {error}")
    for n, user in enumerate(told.user):
        place = f"{file}:{lines.get(('user', n), 1)}"
        if key(user.address) in map(key, wanted):
            problems.append(f"{place}: {user.address} is there twice")
        problems += _user_problems(user, place, check)
        wanted[user.address] = WantedUser(user.pipeline, user.run_by, user.when_offline)
    if problems:
        raise InvalidConfiguration(problems)
    return Wanted(wanted, kept)


def _user_problems(user: _User, place: str, check: Callable[[str, str], object]) -> list[str]:
    """Return what is wrong with one user."""
    problems = []
    if not users.is_owner(user.address):
        problems.append(f"{place}: {user.address!r} is no mail address; write user@domain or @domain")
    try:
        check(user.pipeline, f"{place}: pipeline of {user.address}")
        workers.check(user.address, user.when_offline, run_by=user.run_by, pipeline=bool(user.pipeline))
    except InvalidConfiguration as error:
        problems += error.problems
    except ValueError as error:
        problems.append(f"{place}: {error}")
    return problems


def plan(engine: Engine, wanted: Wanted, *, prune: bool) -> list[Change]:
    """Return the steps that bring the database to the wanted content."""
    return [*_plan_users(engine, wanted.users, prune=prune), *_plan_lists(engine, wanted.lists, prune=prune)]


def _plan_users(engine: Engine, wanted: Mapping[str, WantedUser], *, prune: bool) -> list[UserChange]:
    known = {key(address): (address, user) for address, user in _known_users(engine).items()}
    steps = []
    for address, new in wanted.items():
        if key(address) not in known:
            steps.append(UserChange(address, "add", NO_USER, new))
            continue
        name, old = known[key(address)]
        if old != new:
            steps.append(UserChange(name, "change", old, new))
    if prune:
        gone = set(known) - set(map(key, wanted))
        steps += [UserChange(known[name][0], "remove", known[name][1]) for name in sorted(gone)]
    return steps


def _known_users(engine: Engine) -> dict[str, WantedUser]:
    """Return all users of the database by address."""
    live = {stored.owner: stored.text for stored in users.all_pipelines(engine)}
    run_by = workers.given(engine)
    return {
        user.address: WantedUser(live.get(user.address, ""), *run_by.get(user.address, ("site", "")))
        for user in users.list_users(engine)
    }


def _plan_lists(
    engine: Engine, wanted: Mapping[ListName, Mapping[str, tuple[str, float | None]]], *, prune: bool
) -> list[ListChange]:
    there: dict[ListName, dict[str, lists.ListEntry]] = {}
    for entry in lists.entries(engine):
        there.setdefault((entry.scope, entry.list), {})[entry.entry] = entry
    steps = []
    for name in sorted({*wanted, *there}):
        have, want = there.get(name, {}), wanted.get(name, {})
        put = {
            entry: told
            for entry, told in want.items()
            if entry not in have or _shown(entry, *told) != _shown(entry, have[entry].reason, have[entry].expires)
        }
        gone = {entry: one.id for entry, one in have.items() if entry not in want} if prune else {}
        if put or gone:
            steps.append(ListChange(name, put, gone))
    return steps


def apply(engine: Engine, steps: Sequence[Change], *, author: str) -> None:
    """Make the steps, all or none.

    Raises NotFound, Refused or Temporary when another request changed the same thing meanwhile.
    """
    try:
        with engine.begin() as connection:
            for step in steps:
                step.make(connection, author=author)
    except IntegrityError as error:
        raise Temporary(f"another request changed the same meanwhile, try again: {error.orig}") from error
