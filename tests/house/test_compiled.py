"""What compiled code would get wrong: it believes what the type checker believes, and checks it."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["sendswitch"]["compiled"]


def _blocks(tree: ast.AST) -> Iterator[Sequence[ast.stmt]]:
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                yield block


def _set_to_none(statement: ast.stmt) -> set[str]:
    """The attributes that a statement sets to None."""
    if not isinstance(statement, ast.Assign):
        return set()
    found = set()
    for target in statement.targets:
        targets = target.elts if isinstance(target, ast.Tuple) else [target]
        values = statement.value.elts if isinstance(statement.value, ast.Tuple) else [statement.value] * len(targets)
        for one, value in zip(targets, values, strict=False):
            if isinstance(one, ast.Attribute) and isinstance(value, ast.Constant) and value.value is None:
                found.add(ast.unparse(one))
    return found


def _used(statement: ast.stmt, how: type[ast.expr_context]) -> set[str]:
    nodes = ast.walk(statement)
    return {ast.unparse(n) for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, how)}


def believed(source: str) -> list[str]:
    """The attributes that are set to None and read later in the same block, where nothing else was set meanwhile."""
    found = []
    for block in _blocks(ast.parse(source)):
        none: set[str] = set()
        for statement in block:
            found += [f"line {statement.lineno}: {name}" for name in sorted(none & _used(statement, ast.Load))]
            none -= _used(statement, ast.Store)
            none |= _set_to_none(statement)
    return found


def waiting_in_handlers(source: str) -> list[str]:
    """The places where an `except` or a `finally` waits."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        for block in [node.body] if isinstance(node, ast.ExceptHandler) else [getattr(node, "finalbody", [])]:
            for inner in (one for statement in block for one in ast.walk(statement)):
                if isinstance(inner, ast.Await | ast.AsyncWith | ast.AsyncFor | ast.Yield | ast.YieldFrom):
                    found.add(f"line {inner.lineno}")
    return sorted(found)


def without_cause(source: str) -> list[str]:
    """The places where an error is raised from another one without `caused_by`."""
    raised = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise) and node.cause is not None)
    return [f"line {n.lineno}" for n in raised if not ast.unparse(n).startswith("raise caused_by(")]


@pytest.mark.parametrize("module", COMPILED)
def test_no_handler_waits(module: str) -> None:
    """Meanwhile all else that is raised in the process would have the handled error as its context, without end."""
    assert waiting_in_handlers((ROOT / f"src/sendswitch/{module}.py").read_text()) == []


@pytest.mark.parametrize("module", COMPILED)
def test_an_error_keeps_its_cause(module: str) -> None:
    """Compiled, `from` is without effect."""
    assert without_cause((ROOT / f"src/sendswitch/{module}.py").read_text()) == []


@pytest.mark.parametrize("module", COMPILED)
def test_what_was_set_to_none_is_not_believed_to_be_none_for_long(module: str) -> None:
    """What is called in between may set it, and then compiled code raises TypeError: None object expected."""
    assert believed((ROOT / f"src/sendswitch/{module}.py").read_text()) == []


def test_the_tests_see_it() -> None:
    handler = """
async def tried(self):
    try:
        await self.work()
    except OSError as error:
        if error:
            await self.again()
        raise ValueError("no") from error
    finally:
        async with self.lock:
            pass
"""
    assert waiting_in_handlers(handler) == ["line 10", "line 7"]
    assert without_cause(handler) == ["line 8"]
    source = """
def go_on(self):
    self.work, self.other = None, 1
    self.advance()
    if self.work is None or self.other:
        self.end()
    self.other = None
    if self.work:
        self.other = 1
    print(self.other.name)
def fine(self):
    if self.work:
        self.work = None
        return
    print(self.work)
"""
    assert believed(source) == ["line 5: self.work", "line 8: self.work"]
