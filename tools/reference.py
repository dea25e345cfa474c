"""Write docs/reference from the code: configuration, processors, metrics, log events, commands, the wire format.

`tools/reference.py` writes; a test in tests/house holds the pages to what this gives.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from sendswitch import logs, metrics
from sendswitch.admin.base import place_of
from sendswitch.admin.http_app import USE_CASES
from sendswitch.admin.serialization import BASE, NAME
from sendswitch.cli.main import app
from sendswitch.conditions.pipeline import PipelineConfig, StepConfig
from sendswitch.config import reference
from sendswitch.delivery.compose import Composer
from sendswitch.intake import after_queue, proxy
from sendswitch.journal import events
from sendswitch.mail.content import InMemory, read_all
from sendswitch.mail.edits import AddHeader, MarkSubject, RemoveHeader
from sendswitch.mail.envelope import Client, Envelope, Recipient
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Denial, StepRecord, Verdict
from sendswitch.processors import registry
from sendswitch.processors.attachment import Attachment, AttachmentOptions
from sendswitch.reply import Reply
from sendswitch.smtp.protocol import parameters, replies
from sendswitch.smtp.protocol.server import TRANSITIONS, Extensions, Limits, ServerConnection
from sendswitch.spool.states import State
from sendswitch.testing import context

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.evasions import EVASIONS, ZIPS
from tests.mime_samples import multipart, part

MADE = "<!-- Made by tools/reference.py; change the code, then run `make reference`. -->\n\n"


def _summary(function: Callable[..., Any]) -> str:
    """Return the first line of a docstring, without the verb that says no more than the table's heading."""
    line = (inspect.getdoc(function) or "").splitlines()[0].removeprefix("Log that ").removeprefix("Return ")
    return line[:1].upper() + line[1:]


def configuration() -> str:
    """Every key of sendswitch.toml."""
    return MADE + reference.page()


def processors() -> str:
    """Pipelines and every processor with its options."""
    text = MADE + "# Pipelines and processors\n\n## The file\n\n" + reference.table(PipelineConfig)
    text += "\n## Each `[[step]]`\n\n" + reference.table(StepConfig)
    for name in registry.names():
        kind = registry.find(name)
        text += f"\n## `{name}`\n\n{inspect.getdoc(kind)}\n"
        module = inspect.getmodule(kind)
        if name not in _FIXED and module is not None:
            text += "\n" + "\n\n".join((inspect.getdoc(module) or "").split("\n\n")[1:]) + "\n"
        if kind.Options.model_fields:
            text += "\n" + reference.table(kind.Options)
    return text


def observability() -> str:
    """Metrics and log events."""
    text = MADE + "# Metrics and log events\n\n## Metrics\n\nAt `/metrics` on the web port.\n\n"
    text += "| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n"
    for metric in metrics.REGISTRY.collect():
        source = metrics.REGISTRY._names_to_collectors[metric.name]
        labels = ", ".join(source._labelnames)  # type: ignore[attr-defined]
        name = metric.name + ("_total" if metric.type == "counter" else "")
        text += f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |\n"
    text += "\n## Log events\n\nOne JSON object a line on standard error: `ts`, `level`, `event`, then:\n\n"
    text += "| event | keys | meaning |\n| --- | --- | --- |\n"
    for name, function in inspect.getmembers(logs, inspect.isfunction):
        if not name.startswith("_") and name not in ("setup", "flush") and function.__module__ == logs.__name__:
            keys = ", ".join(inspect.signature(function).parameters)
            text += f"| `{name}` | {keys} | {_summary(function)} |\n"
    return text


def commands() -> str:
    """Every command with its arguments."""
    text = MADE + "# Commands\n\n`sendswitch [--config FILE] [--json] COMMAND`; both options may stand anywhere.\n"
    text += (
        "Exit codes: 0 done, 1 failed, 2 usage or wrong configuration, 3 not found, 4 refused, 75 try again later.\n\n"
    )
    text += "| command | what it does |\n| --- | --- |\n"
    group = typer.main.get_command(app)
    for line in _commands(group, "sendswitch"):
        text += line
    return text


def _commands(command: object, path: str) -> list[str]:
    inner = getattr(command, "commands", None)
    if inner:
        return [line for name in inner for line in _commands(inner[name], f"{path} {name}")]
    words = [path]
    for parameter in command.params:  # type: ignore[attr-defined]
        if parameter.param_type_name == "argument":
            words.append(parameter.name.upper())
        elif parameter.name != "help":
            words.append(f"[{parameter.opts[0]}]")
    help_ = (command.help or "").splitlines()[0]  # type: ignore[attr-defined]
    return [f"| `{' '.join(words)}` | {help_} |\n"]


# Those of one module, which tells of them all.
_FIXED = ("pass", "deny", "tag", "forward", "hold", "quarantine")

_WIRE = """# The wire format

## SMTP and LMTP

Everything a listener can offer; STARTTLS, AUTH, XFORWARD and XCLIENT where the listener is told to.

```
C: EHLO client.example
{hello}```

Which command may come in which state, and where an accepting reply leads (`LHLO` for LMTP):

| state | command | then |
| --- | --- | --- |
{transitions}
Parameters of MAIL: {mail}. Of RCPT: {rcpt}.
Attributes of XFORWARD: {xforward}. Of XCLIENT: {xclient}.

Replies that a listener gives by itself; others are the pipeline's, the next hop's or the configuration's:

| code | status | text |
| --- | --- | --- |
{replies}
## What a message gains

Two fields on top, the tags below, header edits; the body is never touched.

```
{composed}```

## A verdict

In the spool, in events, and from a worker. What is empty is left out; `reply` is one SMTP reply.

```json
{verdict}
```

## An envelope

Sender and recipients are kept beside it.

```json
{envelope}
```

## Events

What a delivery's history is made of, and the state each leads to. Others are named after their state: {states}.

| event | leads to |
| --- | --- |
{events}
"""


def wire() -> str:
    """What goes over the wire: SMTP, what a message gains, verdicts, events."""
    own = {
        reply for module in (replies, after_queue, proxy) for reply in vars(module).values() if isinstance(reply, Reply)
    }
    return MADE + _WIRE.format(
        hello=_hello(),
        transitions=_rows(sorted((state.name, verb, then.name) for (state, verb), then in TRANSITIONS.items())),
        mail=_words(parameters.MAIL),
        rcpt=_words(parameters.RCPT),
        xforward=_words(parameters.XFORWARD),
        xclient=_words(parameters.XCLIENT),
        replies=_rows(sorted((reply.code, reply.enhanced, f"`{reply.text}`") for reply in own)),
        composed=_composed(),
        verdict=json.dumps(_VERDICT.to_json(), indent=2),
        envelope=json.dumps(_ENVELOPE.to_json(), indent=2),
        states=_words(state.value for state in State if state.value not in events.STATES),
        events=_rows((f"`{name}`", state or "the state it was in") for name, state in events.STATES.items()),
    )


_VERDICT = Verdict(
    Action.DENY,
    tags=("SPAM",),
    edits=(AddHeader("X-Score", "9.1"), RemoveHeader("X-Old"), MarkSubject("[spam] ")),
    reply=Reply(550, "5.7.1", "Not wanted here"),
    reason="too many exclamation marks",
    denial=Denial.BOUNCE,
    trace=(
        StepRecord("lists", seconds=0.0001, outcome="no opinion"),
        StepRecord("python", seconds=0.02, outcome="deny", saw="9 of 5"),
    ),
    pipeline="joe@example.com",
    version=3,
)
_CLIENT = Client("203.0.113.9", "mail.example.org", "25", "mail.example.org", "ESMTP", "REMOTE", "4XyZ1")
_ENVELOPE = Envelope("ann@example.org", (Recipient("joe@example.com"),), _CLIENT, "8BITMIME", True, "HDRS", "QQ314159")


def _hello() -> str:
    offered = Extensions(xforward=True, xclient=True, starttls=True, auth="may", clear=True)
    machine = ServerConnection("switch.example.com", limits=Limits(), client=Client(), extensions=offered)
    machine.receive_data(b"EHLO client.example\r\n")
    machine.next_event()
    return "".join(f"S: {line}\n" for line in machine.data_to_send().decode().splitlines())


def _composed() -> str:
    verdict = Verdict(tags=("SPAM",), edits=(AddHeader("X-Score", "9.1"),))
    came = InMemory(b"From: ann@example.org\r\nSubject: Hello\r\n\r\nHow are you?\r\n")
    composer = Composer("switch.example.com", {"SPAM": "***SPAM*** "})
    left = composer.compose(came, message="38fwqhqeqet00", client=_CLIENT, received=1.7e9, verdict=verdict)
    return read_all(left).decode().replace("\r\n", "\n")


def _rows(rows: Iterable[tuple[object, ...]]) -> str:
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def _words(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


_MANAGEMENT = f"""# The management API

A running node serves it as HTTP on the unix socket `{NAME}` in `node.data`, which only its own user and root can
open. The commands are its clients. While no node runs, a command does the same work on the files itself.

Arguments of GET are the query's, those of POST a JSON object. Times are RFC 3339. A list with a cursor returns `items`
and `next`; ask for the next page with `after`. An error is `application/problem+json` (RFC 9457) with `kind` and
`errors`.

```console
$ curl --unix-socket /var/lib/sendswitch/{NAME} http://localhost{BASE}/node
```

| method | path below `{BASE}` | arguments | what it does |
| --- | --- | --- | --- |
"""


def management() -> str:
    """The management API: each use case with its place and arguments."""
    rows = []
    for function in USE_CASES:
        place = place_of(function)
        names = [name for name in list(inspect.signature(function).parameters)[2:] if f"{{{name}}}" not in place.path]
        rows.append((place.method, f"`{place.path}`", _words(names), _summary(function)))
    return MADE + _MANAGEMENT + _rows(rows)


def evasions() -> str:
    """What the step `attachment` finds in each message of tests/evasions.py."""
    text = MADE + _EVASIONS
    archives = {what: multipart(part(data, "a.zip", "application/zip")) for what, data in ZIPS.items()}
    for group, messages in (EVASIONS | {"Zip archives": archives}).items():
        text += f"\n## {group}\n\n| what is odd | what the step says |\n| --- | --- |\n"
        text += _rows((what, _found(raw).replace("|", "\\|")) for what, raw in messages.items())
    return text


_EVASIONS = """# Evasions

Each message here hides a file `evil.exe` from a filter that reads it in one way only, or cannot be looked into. The
step is `attachment` with `names = ["*.exe"]` and defaults. [What the filter sees](../reading.md) explains the findings.
"""


def _found(raw: bytes) -> str:
    verdict = asyncio.run(Attachment(AttachmentOptions(names=("*.exe",))).process(Mail(InMemory(raw)), context()))
    return "" if verdict is None else verdict.reason


PAGES = {
    "evasions.md": evasions,
    "configuration.md": configuration,
    "processors.md": processors,
    "observability.md": observability,
    "commands.md": commands,
    "wire.md": wire,
    "management.md": management,
}


def main() -> None:
    """Write all pages."""
    folder = Path(__file__).resolve().parent.parent / "docs" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (folder / name).write_text(make())
    sys.stdout.write(f"{len(PAGES)} pages in {folder}\n")


if __name__ == "__main__":
    main()
