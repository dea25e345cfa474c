"""Write docs/reference/kit.md from the code: every member of what a processor gets and gives, with an example.

The examples are run when the page is made. A member without one is an error, so that the page is never behind the code.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from sendswitch.mail.edits import AddHeader, MarkSubject, RemoveHeader, SetHeader
from sendswitch.mail.message import Attachment, Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.processors.base import Context
from sendswitch.testing import context, mail

# The message, and the context, that all examples are about.
SAMPLE = (
    'mail("The bill is attached.\\n", {"bill.pdf": b"%PDF-1.7"},\n'
    '     From_="Shop <shop@example.org>", Subject="=?utf-8?q?Gr=C3=BC=C3=9Fe?=")'
)
NAMES: dict[str, Any] = {
    "mail": mail(
        "The bill is attached.\n",
        {"bill.pdf": b"%PDF-1.7"},
        From_="Shop <shop@example.org>",
        Subject="=?utf-8?q?Gr=C3=BC=C3=9Fe?=",
    ),
    "context": context("shop@example.org", "ann@example.test", now=1.7e9),
    "Verdict": Verdict,
    "AddHeader": AddHeader,
    "SetHeader": SetHeader,
    "RemoveHeader": RemoveHeader,
    "MarkSubject": MarkSubject,
}
NAMES["attachment"] = NAMES["mail"].attachments[0]

MAIL = {
    "attachments": "[one.name for one in mail.attachments]",
    "authors": "mail.authors",
    "dispositions": "mail.dispositions",
    "fields": "[field.name for field in mail.fields]",
    "findings": "[str(finding) for finding in mail.findings]",
    "header": 'mail.header("Subject")',
    "headers": 'mail.headers("from")',
    "html": "mail.html",
    "parts": "[part.type for part in mail.parts]",
    "raw": "mail.raw[:10]",
    "raw_headers": 'mail.raw_headers("subject")',
    "size": "mail.size",
    "subject": "mail.subject",
    "text": "mail.text",
}
ATTACHMENT = {
    "data": "attachment.data",
    "name": "attachment.name",
    "names": "attachment.names",
    "size": "attachment.size",
    "type": "attachment.type",
}
CONTEXT = {
    "attempt": "context.attempt",
    "client": "context.client.address, context.client.name, context.client.helo",
    "message": "context.message",
    "notes": 'context.notes.append("looked up 3 names")',
    "now": "context.now",
    "recipient": "context.recipient.address",
    "rehearsal": "context.rehearsal",
    "score": "context.score",
    "sender": "context.sender",
    "tags": '"SPAM" in context.tags',
}
VERDICT = {
    "action": 'Verdict.quarantine("odd").action.value',
    "deny": 'Verdict.deny("too loud", reply="550 5.7.1 Not so loud").to_json()',
    "edits": 'Verdict(edits=(AddHeader("X-Seen", "yes"), RemoveHeader("X-Old"), MarkSubject("[shop] "))).edits[0]',
    "forward": 'Verdict.forwarded("joe@example.test").forward',
    "forwarded": 'Verdict.forwarded("joe@example.test", keep_copy=True).to_json()',
    "hold": 'Verdict.pending("wait", hold=60).hold',
    "keep_copy": 'Verdict.forwarded("joe@example.test").keep_copy',
    "passed": 'Verdict.passed("a friend").to_json()',
    "pending": 'Verdict.pending("wait", hold=60, then="deny").to_json()',
    "quarantine": 'Verdict.quarantine("odd").to_json()',
    "reason": 'Verdict.deny("too loud").reason',
    "reply": 'str(Verdict.deny(reply="550 5.7.1 Not so loud").reply)',
    "score": "Verdict(score=7.5).to_json()",
    "tagged": 'Verdict.tagged("NEWS", "WEEKLY").to_json()',
    "tags": 'Verdict.tagged("NEWS").tags',
    "then": 'Verdict.pending("wait", then="deny").then.value',
    "to_json": "Verdict().to_json()",
}

# Members that the node uses or sets, and a processor has no use for.
OF_THE_NODE = {
    Mail: {"content", "examined", "know", "large_header", "prepare"},
    Attachment: set(),
    Context: {"broke"},
    Verdict: {"denial", "file", "pipeline", "rewrite", "trace", "version", "with_trace", "worker", "written"},
}

HEAD = """<!-- made from the code by tools/kit.py; do not edit -->
# What a processor gets and gives

`process(mail, context)` gets a `Mail` and a `Context`, and returns a `Verdict` or None. `query(mail, context)` and
`evaluate(answer, mail, context)` get the same. How to write a processor:
[write your own processor](../processors/write-your-own.md).

The examples are about this message (`from sendswitch.testing import mail, context`):

```python
{sample}
```
"""


def members(kind: type) -> dict[str, tuple[str, str]]:
    """Return the public members of a class, each with how it is written and the first sentence about it."""
    found: dict[str, tuple[str, str]] = {}
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            found[field.name] = (f"{field.name}: {field.type}", "")
    for name, member in vars(kind).items():
        if name.startswith("_") or name in found:
            continue
        about = _sentence(member)
        if isinstance(member, cached_property):
            found[name] = (f"{name}: {inspect.signature(member.func).return_annotation}", about)
        elif isinstance(member, property):
            found[name] = (f"{name}: {inspect.signature(member.fget).return_annotation}", about)  # type: ignore[arg-type]
        elif isinstance(member, staticmethod):
            found[name] = (f"{name}{inspect.signature(member.__func__)}", about)
        elif inspect.isfunction(member):
            found[name] = (f"{name}{_without_self(inspect.signature(member))}", about)
    return {name: found[name] for name in sorted(found) if name not in OF_THE_NODE[kind]}


def _without_self(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _sentence(member: Any) -> str:
    target = member.func if isinstance(member, cached_property) else member
    text = " ".join((inspect.getdoc(target) or "").split("\n\n")[0].split()).removeprefix("Return ")
    return text[:1].upper() + text[1:]


def table(kind: type, examples: dict[str, str]) -> str:
    """Return a class as a section: what it says of itself, and a row a member. Raises KeyError without an example."""
    text = f"\n## {kind.__name__}\n\n{inspect.getdoc(kind)}\n\n| member | example | gives |\n| --- | --- | --- |\n"
    about = ""
    for name, (written, sentence) in members(kind).items():
        example = examples[name]
        gives = eval(example, dict(NAMES))  # noqa: S307 - the examples above
        text += f"| `{_cell(_plain(written))}` | `{_cell(example)}` | `{_cell(repr(gives))}` |\n"
        if sentence:
            about += f"- **`{name}`**: {sentence}\n"
    return text + (f"\n{about}" if about else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(written: str) -> str:
    """Types without quotes and without what only a type checker wants to know."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", written)


def page() -> str:
    """Return the page."""
    text = HEAD.format(sample=SAMPLE)
    for kind, examples in ((Mail, MAIL), (Attachment, ATTACHMENT), (Context, CONTEXT), (Verdict, VERDICT)):
        unknown = set(examples) - set(members(kind))
        if unknown:
            raise KeyError(f"{kind.__name__} has no {sorted(unknown)[0]}")
        text += table(kind, examples)
    return text


def main() -> None:
    """Write the page."""
    file = Path(__file__).resolve().parent.parent / "docs" / "reference" / "kit.md"
    file.write_text(page())
    sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
