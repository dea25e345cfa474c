"""`try`: show the verdict of a pipeline about a message in a file, and its effect, without carrying it out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from sendswitch.accounts.routes import load_routes
from sendswitch.accounts.users import get_pipeline
from sendswitch.bootstrap.parts import make_trial
from sendswitch.cli.output import Session, readable
from sendswitch.cli.pipeline import read_file
from sendswitch.config.model import Config
from sendswitch.db.connect import open_database
from sendswitch.delivery.compose import Composer
from sendswitch.errors import NotFound, in_words
from sendswitch.journal import story
from sendswitch.mail.address import valid
from sendswitch.mail.content import InMemory
from sendswitch.mail.edits import Cut
from sendswitch.mail.envelope import Client, Envelope, Recipient
from sendswitch.mail.headers import fields
from sendswitch.mail.mime.words import decoded
from sendswitch.mail.verdict import Deferral, PipelineResult, Verdict
from sendswitch.pipeline.recording import Case
from sendswitch.pipeline.trial import Trial
from sendswitch.queue import policy as decide
from sendswitch.smtp.protocol.content import clean


def try_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The message as a file; - for standard input.")],
    to: Annotated[str, typer.Option("--to", help="The recipient whose pipeline runs.")],
    sender: Annotated[str, typer.Option("--from", help="MAIL FROM; '' for the null sender.")] = "sender@example.org",
    address: Annotated[str, typer.Option("--ip", help="The client's address.")] = "192.0.2.1",
    name: Annotated[str, typer.Option("--client-name", help="The client's name, from reverse DNS.")] = "",
    helo: Annotated[str, typer.Option("--helo", help="The client's EHLO argument.")] = "client.example.org",
    source: Annotated[str, typer.Option("--source", help="XFORWARD SOURCE: LOCAL or REMOTE.")] = "REMOTE",
    pipeline: Annotated[Path | None, typer.Option("--pipeline", help="Use a file, not the live pipeline.")] = None,
    attempt: Annotated[int, typer.Option("--attempt", min=1, help="Attempt number to simulate.")] = 1,
) -> None:
    """Run a recipient's pipeline on a message, without effect.

    The message has a whole envelope. Exits with 1 if a step failed or there is no verdict.
    """
    session: Session = context.obj
    config = session.config()
    for one in filter(None, (sender, to)):
        if not valid(one):
            raise ValueError(f"{one!r} is no mail address")
    client = Client(address=address, name=name, helo=helo, protocol="ESMTP", source=source)
    recipient = Recipient(to)
    envelope = Envelope(sender, (recipient,), client)
    content = InMemory(_read(file))
    case = Case(0, 0, recipient, envelope, content, "", time.time(), attempt)
    trial = _trial(config, to, pipeline)

    async def ask() -> PipelineResult:
        try:
            return await trial.ask(case)
        finally:
            await trial.close()

    answer = uvloop.run(ask())
    _tell(session, config, trial, case, answer)
    if isinstance(answer, Deferral) or any(step.failed for step in answer.trace):
        raise typer.Exit(1)


def _read(file: Path) -> bytes:
    """Return a message with its line ends as a listener would have made them."""
    try:
        data = typer.get_binary_stream("stdin").read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise NotFound(f"{file}: cannot be read: {in_words(error)}") from error
    return clean(data)


def _trial(config: Config, to: str, file: Path | None) -> Trial:
    if file is not None:
        return make_trial(config, str(file), 0, read_file(file))
    engine = open_database(config.database_url, migrate=False)
    route = load_routes(engine, config).find(to)
    if route is None:
        raise NotFound(f"{to} has no pipeline: its mail is delivered. Name one: --pipeline FILE")
    return make_trial(config, route.owner, route.version, get_pipeline(engine, route.owner, route.version).text)


def _tell(session: Session, config: Config, trial: Trial, case: Case, answer: PipelineResult) -> None:
    whose = f"the pipeline of {trial.route.owner}, version {trial.route.version}" if trial.route.version else "the file"
    steps = [step.to_json() for step in answer.trace]
    numbered = story.numbered(story.steps_of({"trace": steps}))
    facts: dict[str, object] = {"pipeline": trial.route.owner, "version": trial.route.version, "steps": steps}
    sentences = [f"{whose[0].upper()}{whose[1:]} was asked.", *numbered]
    if isinstance(answer, Deferral):
        facts |= {"deferred": answer.reason}
        sentences += [f"Nothing was decided: {answer.reason}. It would be asked again later."]
    else:
        effect = decide.effect(
            answer,
            sender=case.envelope.sender,
            recipient=case.recipient,
            client=case.envelope.client,
            policy=trial.policy,
            now=case.at,
        )
        told = {name: value for name, value in answer.to_json().items() if name != "trace"}
        added = _added(config, case, answer) if isinstance(effect, decide.DeliverEffect) else []
        facts |= {"verdict": told, "effect": decide.in_words(effect), "added": added}
        sentences += [story.verdict_told(told), decide.in_words(effect)]
        sentences += [f"With the field {field}" for field in added]
        if cuts := sum(isinstance(edit, Cut) for edit in answer.edits):
            sentences += [f"With {cuts} part{'s' * (cuts > 1)} taken out."]
    session.done("\n".join(readable(sentence) for sentence in sentences), **facts)


def _added(config: Config, case: Case, answer: Verdict) -> list[str]:
    """Return the fields that the message would gain."""
    composer = Composer(config.node.host, dict(config.tags.subject))
    client = case.envelope.client
    composed = composer.compose(
        case.content,
        message="0" * 13,
        client=client,
        received=case.at,
        verdict=answer,
        utf8=case.envelope.smtputf8,
    )
    before = [field.raw for field in fields(case.content.head())]
    after = fields(composed.head())[2:]  # the trace, which every message gets
    return [f"{field.name}: {decoded(field.value)}" for field in after if field.raw not in before]
