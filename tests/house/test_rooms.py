"""Each kind of code is in the package where a reader looks for it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "sendswitch"
# The outbox of webhooks is a database of its own.
SQL_ROOMS = ("spool/", "db/", "webhooks/outbox.py")
SQL = re.compile(
    r"\s*(SELECT\s.+\sFROM|INSERT\s+(OR\s\w+\s+)?INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|PRAGMA)\s", re.I | re.S
)


def test_sql_is_in_the_spool_and_in_the_database_only() -> None:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith(SQL_ROOMS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.match(node.value):
                found.append(f"{name}:{node.lineno}")
    assert found == []


TESTS = SOURCE.parents[1] / "tests"
# Private in the standard library, without another way to see it.
UNSEEN = {"reader._buffer"}


def test_tests_use_what_is_public() -> None:
    """What a test reads or patches behind the door keeps the code from being changed."""
    found = []
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not re.match(r"_[a-z]", node.attr):
                continue
            of = ast.unparse(node.value)
            if of not in ("self", "cls") and not of.startswith("super(") and f"{of}.{node.attr}" not in UNSEEN:
                found.append(f"{path.relative_to(TESTS)}:{node.lineno} {of}.{node.attr}")
    assert found == []
