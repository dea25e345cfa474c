"""`processor list|show|new`: the processors for pipelines, and a template for a new one."""

from __future__ import annotations

import inspect
import keyword
import re
from pathlib import Path
from typing import Annotated

import typer

from sendswitch.cli.output import Session
from sendswitch.config.reference import default
from sendswitch.errors import NotFound, Refused, in_words
from sendswitch.processors import registry

app = typer.Typer(help="Processors: what pipelines are made of.", no_args_is_help=True)

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the installed processors and their packages."""
    session: Session = context.obj
    rows = [{"name": name, "package": registry.package(name), "what": _what(name)} for name in registry.names()]
    session.show(rows, ("name", "package", "what"), "none")


@app.command("show")
def show(context: typer.Context, name: Annotated[str, typer.Argument(help="As `processor list` shows it.")]) -> None:
    """Show a processor's options with their defaults."""
    session: Session = context.obj
    try:
        kind = registry.find(name)
    except ValueError as error:
        raise NotFound(str(error)) from error
    rows = [
        {"option": option, "default": default(option, field), "meaning": field.description or ""}
        for option, field in kind.Options.model_fields.items()
    ]
    session.show(rows, ("option", "default", "meaning"), f"{name} has no options: {_first_line(kind)}")


def _what(name: str) -> str:
    try:
        return _first_line(registry.find(name))
    except ValueError as error:
        return str(error)


def _first_line(kind: object) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


@app.command("new")
def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Lower case, words joined by hyphens, such as find-offers.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where the package's folder is made.")] = Path(),
) -> None:
    """Make a package with a processor, tests and a README. It runs without changes."""
    session: Session = context.obj
    module = name.replace("-", "_")
    if not _NAME.match(name) or keyword.iskeyword(module):
        raise ValueError(f"{name!r} is no name: lower case letters and digits, words joined by hyphens")
    if name in registry.names():
        raise Refused(f"there is a processor {name} already ({registry.package(name)}); choose another name")
    target = folder / name
    try:
        target.mkdir()
    except FileExistsError as error:
        raise Refused(f"{target} is there already") from error
    except OSError as error:
        raise NotFound(f"{target} cannot be made: {in_words(error)}") from error
    words = {"NAME": name, "MODULE": module, "CLASS": "".join(word.title() for word in name.split("-"))}
    for path, text in _FILES.items():
        file = target / path.replace("MODULE", module)
        file.parent.mkdir(exist_ok=True)
        file.write_text(re.sub(r"NAME|MODULE|CLASS", lambda found: words[found[0]], text))
    session.done(f"{target} made; next: read {target / 'README.md'}", folder=str(target), name=name)


_FILES = {
    "MODULE.py": '''"""NAME: tags mail that says certain words."""

from __future__ import annotations

from pydantic import Field

from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.processors import base


class CLASSOptions(base.Options):
    """What a pipeline can say about this step; the descriptions are shown by `sendswitch processor show NAME`."""

    words: tuple[str, ...] = Field(("unsubscribe",), description="Words that are looked for.")
    tag: str = Field("NEWS", description="The tag that is set.")


class CLASS:
    """Tags mail that says certain words."""

    Options = CLASSOptions
    version = "1"

    def __init__(self, options: CLASSOptions) -> None:
        self._words = [word.lower() for word in options.words]
        self._tag = options.tag

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """A tag, or None: no opinion."""
        text = f"{mail.subject}\\n{mail.text}".lower()
        for word in self._words:
            if word in text:
                return Verdict.tagged(self._tag, reason=f"it says {word!r}")
        return None
''',
    "tests/test_MODULE.py": '''"""What NAME says about mail."""

from MODULE import CLASS

from sendswitch.testing import assert_verdict, mail


def test_mail_with_such_words_is_tagged(judge):
    verdict = judge(CLASS(CLASS.Options()), mail("To unsubscribe, click here."))
    assert_verdict(verdict, action=None, tags=("NEWS",), reason="'unsubscribe'")


def test_words_and_tag_are_options(judge):
    options = CLASS.Options(words=("lottery",), tag="WIN")
    assert_verdict(judge(CLASS(options), mail(Subject="LOTTERY")), tags=("WIN",))


def test_other_mail_goes_on(judge):
    assert judge(CLASS(CLASS.Options()), mail("Lunch?")) is None
''',
    "pyproject.toml": """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "sendswitch-NAME"
version = "0.1.0"
description = "A processor for SendSwitch"
requires-python = ">=3.11"
dependencies = ["sendswitch"]

[project.entry-points."sendswitch.processors"]
NAME = "MODULE:CLASS"

[tool.hatch.build.targets.wheel]
only-include = ["MODULE.py"]

[tool.pytest.ini_options]
pythonpath = ["."]
""",
    "pipeline.toml": """[[step]]
use = "NAME"
words = ["unsubscribe", "special offer"]
""",
    "example.eml": """From: news@shop.example
To: you@example.com
Subject: A special offer

Only today.
""",
    "README.md": """# NAME

A processor for SendSwitch: it tags mail that says certain words.

    python -m pytest                          # its tests (pip install pytest)
    pip install --no-deps -e .                # now pipelines can use it
    sendswitch processor show NAME
    sendswitch try example.eml --to you@example.com --pipeline pipeline.toml

Change `MODULE.py`, and the version in `pyproject.toml` when it begins to answer otherwise: the journal tells which one
judged a message. `process` returns a `Verdict` or None; its arguments and its result are described in
`sendswitch.processors.base`. It runs in a process of its own: what blocks or breaks it costs only the mail it was asked
about.
""",
}
