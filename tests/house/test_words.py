"""The code's own words: how docstrings begin, and words that the glossary replaces."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "sendswitch"
# What a sentence without a verb at its beginning begins with.
NO_VERB = re.compile(
    r"(A|All|An|Another|Any|As|Both|Each|Every|Everything|False|How|If|In|Is|Nobody|Nothing|One|Only|Our|Raises|Seconds"
    r"|Something|That|The|There|This|Those|To|True|Two|Until|What|When|Where|Whether|Which|Who|Whose|Why|[^A-Za-z]\S*)(?![A-Za-z])"
)
# A command's docstring is what its --help prints.
EXCEPT = {("cli/main.py", "options")}


# How no docstring begins, whether a module's, a class's or a function's.
RIDDLES = re.compile(r"(Gives|How|It|Such|That|Those|What|When|Where|Whether|Which|Who|Whose)\b")
# Words of our own that the field's words replace (docs/glossary.md).
REPLACED = re.compile(r"\b(in earnest|journeys?|obeys?|obeyed|whoever)\b", re.I)


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            place = f"{path.relative_to(SOURCE)}:{getattr(node, 'lineno', 1)}"
            yield place, ast.get_docstring(node) or ""


def _without_verb(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        name = str(path.relative_to(SOURCE))
        if NO_VERB.match(ast.get_docstring(node) or "") and (name, node.name) not in EXCEPT:
            yield f"{name}:{node.lineno} {node.name}"


def test_a_function_says_what_it_does_with_a_verb() -> None:
    assert [place for path in sorted(SOURCE.rglob("*.py")) for place in _without_verb(path)] == []


def test_no_docstring_is_a_riddle() -> None:
    found = [place for path in sorted(SOURCE.rglob("*.py")) for place, text in _docstrings(path) if RIDDLES.match(text)]
    assert found == []


def test_the_fields_words_are_used() -> None:
    docs = SOURCE.parents[1] / "docs"
    files = [*SOURCE.rglob("*.py"), *docs.rglob("*.md"), SOURCE.parents[1] / "README.md"]
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted(files)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if REPLACED.search(line)
    ]
    assert found == []
