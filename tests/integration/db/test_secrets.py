"""Secrets that nodes share, in each kind of database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine

from sendswitch.db.secrets import LENGTH, secret


def test_whoever_asks_first_makes_it_for_all(engine: Engine) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: secret(engine, "one"), range(8)))
    assert len(found) == 1
    assert len(found.pop()) == LENGTH
    assert secret(engine, "two") not in found | {secret(engine, "one")}
