"""The code's own words: the first line of a function's docstring begins with a verb."""

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


def _without_verb(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        name = str(path.relative_to(SOURCE))
        if NO_VERB.match(ast.get_docstring(node) or "") and (name, node.name) not in EXCEPT:
            yield f"{name}:{node.lineno} {node.name}"


def test_a_function_says_what_it_does_with_a_verb() -> None:
    assert [place for path in sorted(SOURCE.rglob("*.py")) for place in _without_verb(path)] == []
