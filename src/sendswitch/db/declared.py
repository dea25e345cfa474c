"""Users and pipelines as a file: written out, compared with the database, and made so in one transaction."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from sendswitch.config.load import read as read_toml
from sendswitch.config.load import validate
from sendswitch.db import users
from sendswitch.errors import InvalidConfiguration
from sendswitch.mail.address import key


class _User(BaseModel):
    """One user."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = Field(description="user@domain, or @domain for all of a domain.")
    pipeline: str = Field("", description="The pipeline as TOML; without it mail is delivered.")


class _Users(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: tuple[_User, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One change: `what` is `add`, `change` or `remove`, `old` and `new` are the pipelines before and after."""

    address: str
    what: str
    old: str = ""
    new: str = ""


def export(engine: Engine) -> str:
    """Everybody with the live pipeline, as TOML."""
    live = {stored.owner: stored.text for stored in users.all_pipelines(engine)}
    return "\n".join(_declared(user.address, live.get(user.address, "")) for user in users.list_users(engine))


def _declared(address: str, pipeline: str) -> str:
    """One user, the pipeline as it was written where TOML can show it so."""
    if not pipeline:
        return f"[[user]]\n{tomli_w.dumps({'address': address})}"
    literal = f"pipeline = '''\n{pipeline}'''\n"
    try:
        faithful = tomllib.loads(literal)["pipeline"] == pipeline
    except tomllib.TOMLDecodeError:
        faithful = False
    text = literal if faithful else tomli_w.dumps({"pipeline": pipeline})
    return f"[[user]]\n{tomli_w.dumps({'address': address})}{text}"


def read(file: Path, check: Callable[[str, str], object]) -> Mapping[str, str]:
    """Pipelines by address from a file; `check` raises InvalidConfiguration for a wrong one, and so does this."""
    data, lines = read_toml(file)
    wanted: dict[str, str] = {}
    problems: list[str] = []
    for n, user in enumerate(validate(_Users, data, str(file), lines).user):
        place = f"{file}:{lines.get(('user', n), 1)}"
        if key(user.address) in map(key, wanted):
            problems.append(f"{place}: {user.address} is there twice")
        if not users.is_owner(user.address):
            problems.append(f"{place}: {user.address!r} is no mail address; write user@domain or @domain")
        try:
            check(user.pipeline, f"{place}: pipeline of {user.address}")
        except InvalidConfiguration as error:
            problems += error.problems
        wanted[user.address] = user.pipeline
    if problems:
        raise InvalidConfiguration(problems)
    return wanted


def plan(engine: Engine, wanted: Mapping[str, str], *, prune: bool) -> list[Step]:
    """What is to be changed, so that the database is as wanted; users it does not name stay, unless `prune`."""
    live = {key(stored.owner): stored.text for stored in users.all_pipelines(engine)}
    known = {key(user.address): user.address for user in users.list_users(engine)}
    steps = []
    for address, text in wanted.items():
        old = live.get(key(address), "")
        if key(address) not in known:
            steps.append(Step(address, "add", "", text))
        elif old != text:
            steps.append(Step(known[key(address)], "change", old, text))
    if prune:
        gone = set(known) - set(map(key, wanted))
        steps += [Step(known[name], "remove", live.get(name, "")) for name in sorted(gone)]
    return steps


def apply(engine: Engine, steps: Sequence[Step], *, author: str) -> None:
    """Carry the steps out, all or none. Raises NotFound or Refused when somebody changed the same meanwhile."""
    with engine.begin() as connection:
        for step in steps:
            if step.what == "remove":
                users.remove(connection, step.address)
                continue
            if step.what == "add":
                users.add(connection, step.address)
            if step.new or step.what == "change":
                users.store(connection, step.address, step.new, author=author)
