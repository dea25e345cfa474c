"""What becomes of what a Sieve script wants."""

from __future__ import annotations

from typing import Any

import pytest

from sendswitch.config.load import validate
from sendswitch.errors import InvalidConfiguration, Temporary
from sendswitch.mail.content import InMemory
from sendswitch.mail.edits import AddHeader
from sendswitch.mail.message import Mail
from sendswitch.mail.mime.words import decoded as display
from sendswitch.mail.verdict import Action, Denial, Verdict
from sendswitch.mail.verdict_checks import checked
from sendswitch.processors import registry
from sendswitch.processors.base import Context, InThreads, Reads, Services
from sendswitch.processors.sieve import Sieve, SieveOptions
from sendswitch.testing import context, mail
from tests.unit.processors.test_reply import Post

ASKED = context("friend@example.org", "ann@example.test", now=1_700_000_000.0)


async def ask(script: str, one: Mail | None = None, **options: Any) -> Verdict | None:
    sieve = Sieve(SieveOptions(script=script, **options))
    verdict: Verdict | None = await sieve.process(one or mail(To="ann@example.test"), ASKED)
    assert verdict is None or checked(verdict) == verdict
    return verdict


async def test_nothing_and_keep_go_on() -> None:
    assert await ask("if false { discard; }") is None
    assert await ask("keep;") == Verdict(reason="line 1: keep")


async def test_a_folder_is_a_tag_and_a_header_field() -> None:
    script = 'require "fileinto"; fileinto "INBOX.Work / Größe"; fileinto "Junk"; fileinto "Ä";'
    assert (await ask(f'require "fileinto"; fileinto "{"x" * 100}";')).tags == ("x" * 64,)  # type: ignore[union-attr]
    verdict = await ask(script, folders={"Junk": "SPAM"})
    assert verdict is not None
    assert verdict.action is None
    assert verdict.tags == ("INBOX-Work-Gr-e", "SPAM", "FOLDER")
    assert all(edit == AddHeader("X-SendSwitch-Folder", edit.value) for edit in verdict.edits)  # type: ignore[union-attr]
    values = [edit.value for edit in verdict.edits]  # type: ignore[union-attr]
    assert all(value.isascii() for value in values)
    assert [display(value) for value in values] == ["INBOX.Work / Größe", "Junk", "Ä"]


async def test_redirect_forwards() -> None:
    verdict = await ask('redirect "a@b.example"; redirect "c@d.example";')
    assert verdict is not None
    assert (verdict.action, verdict.forward, verdict.keep_copy) == (
        Action.FORWARD,
        ("a@b.example", "c@d.example"),
        False,
    )
    verdict = await ask('require ["copy", "fileinto"]; redirect :copy "a@b.example"; fileinto "Seen";')
    assert verdict is not None
    assert verdict.keep_copy
    assert verdict.tags == ()
    assert verdict.edits == (AddHeader("X-SendSwitch-Folder", "Seen"),)


async def test_reject_tells_the_sender() -> None:
    verdict = await ask('require "reject"; reject text:\nGo away,\nFrànk!\n.\n;')
    assert verdict is not None
    assert verdict.action is Action.DENY
    assert str(verdict.reply) == "550 5.7.1 Go away, Fr?nk!"
    nothing = await ask('require "reject"; reject " ";')
    assert nothing is not None
    assert str(nothing.reply) == "550 5.7.1 Message refused by the recipient's filter"


async def test_discard_is_silent() -> None:
    assert await ask("discard;") == Verdict(Action.DENY, reason="line 1: discard", denial=Denial.DISCARD)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('require "reject"; keep; reject "x";', "rejects the mail and does something else"),
        ('require "reject"; redirect "a@b.example"; reject "x";', "rejects the mail and does something else"),
        ("".join(f'redirect "a{n}@b.example";' for n in range(5)), "redirects to 5 addresses; at most 4"),
        ('require "variables"; set "x" "y"; redirect "${x}";', "'y' is no mail address"),
        ('require "fileinto";' + "".join(f'fileinto "{n}";' for n in range(40)), "files into 40 folders"),
    ],
)
async def test_what_cannot_be_done(script: str, said: str) -> None:
    """It would fail again, so it is kept (RFC 5228 2.10.6)."""
    verdict = await ask(script)
    assert verdict is not None
    assert verdict.action is None
    assert verdict.reason.startswith("the script failed, so the mail is kept: ")
    assert said in verdict.reason


async def test_vacation_answers() -> None:
    sieve, post = Sieve(SieveOptions(script='require "vacation"; vacation :days 3 "I am away.";')), Post()
    sieve.setup(Services(auto_replies=post))
    asked = context("friend@example.org", "ann@example.test", now=1_700_000_000.0)
    assert await sieve.process(mail(To="ann@example.test", Subject="Hello"), asked) == Verdict(
        reason="line 1: vacation"
    )
    (reply,) = post.replies
    assert (reply.to, reply.again) == ("friend@example.org", 3 * 86_400.0)
    assert b"Subject: Auto: Hello" in reply.data
    assert b"I am away." in reply.data
    assert asked.notes == ["answered friend@example.org"]


async def test_who_is_not_answered() -> None:
    asked = context("", "ann@example.test")
    verdict = await Sieve(SieveOptions(script='require "vacation"; vacation "x";')).process(mail(), asked)
    assert verdict is not None
    assert asked.notes == ["not answered: it has the null sender"]


async def test_a_script_is_no_work_for_the_event_loop() -> None:
    elsewhere: list[str] = []

    class Spied(InThreads):
        async def read(self, step: Reads, mail: Mail, context: Context) -> Any:
            elsewhere.append(step.use)
            return await super().read(step, mail, context)

    step = Sieve(SieveOptions(script="discard;"))
    step.setup(Services(readers=Spied()))
    verdict = await step.process(mail(To="ann@example.test"), context())
    assert verdict == Verdict(Action.DENY, reason="line 1: discard", denial=Denial.DISCARD)
    assert elsewhere == ["sieve"]


async def test_a_script_over_its_budget_is_a_failure_of_the_step() -> None:
    raw = b"Subject: " + b"a" * 900_000 + b"\r\n\r\nx\r\n"
    keys = ", ".join(f'"*a{n}*b*"' for n in range(60))
    script = f'if header :matches "Subject" [{keys}] {{ discard; }}'
    with pytest.raises(Temporary, match="more to compare than a script may"):
        await Sieve(SieveOptions(script=script)).process(Mail(InMemory(raw)), context())


def test_options_are_checked_when_they_are_saved() -> None:
    with pytest.raises(InvalidConfiguration, match=r"p.toml:1: step 1, sieve: line 2: there is no command kep"):
        registry.check('[[step]]\nuse = "sieve"\nscript = """\n# mine\nkep;\n"""\n', "p.toml")
    with pytest.raises(InvalidConfiguration, match="tag 'a b' must be"):
        validate(SieveOptions, {"script": "keep;", "folders": {"x": "a b"}}, "x", {})
