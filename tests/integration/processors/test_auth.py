"""SPF, DKIM, DMARC and ARC against a real DNS server and real signatures."""

from __future__ import annotations

import base64
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from sendswitch.errors import Temporary
from sendswitch.mail import results
from sendswitch.mail.content import InMemory
from sendswitch.mail.edits import AddHeader, RemoveHeader
from sendswitch.mail.envelope import Client
from sendswitch.mail.headers import edit
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Verdict
from sendswitch.mail.verdict_checks import checked
from sendswitch.processors import auth
from sendswitch.processors.auth import MOST_QUESTIONS, Auth, AuthOptions
from sendswitch.processors.base import Context, Services
from sendswitch.testing import context, message, opinion
from tests.dns_server import dns_server
from tests.timing import took

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
CLIENT = Client(address="192.0.2.25", helo="mx.my-bank.example")


def make_key() -> tuple[bytes, str]:
    """A private key, and its public one as the DNS has it."""
    private = subprocess.run(["openssl", "genrsa", "-traditional", "2048"], capture_output=True, check=True).stdout
    command = ["openssl", "rsa", "-pubout", "-outform", "DER"]
    public = subprocess.run(command, input=private, capture_output=True, check=True).stdout
    return private, base64.b64encode(public).decode()


PRIVATE, PUBLIC = make_key()
HALVES = f'"v=DKIM1; k=rsa; p={PUBLIC[:200]}" "{PUBLIC[200:]}"'
RECORDS = {
    ("my-bank.example", "TXT"): ['"v=spf1 ip4:192.0.2.0/24 -all"'],
    ("other.example", "TXT"): ['"v=spf1 ip4:192.0.2.0/24 -all"'],
    ("soft.example", "TXT"): ['"v=spf1 ~all"'],
    ("broken.example", "TXT"): ['"v=spf1 ip4:nonsense -all"'],
    ("twice.example", "TXT"): ['"v=spf1 -all"', '"v=spf1 +all"'],
    ("sel._domainkey.my-bank.example", "TXT"): [HALVES],
    ("sel._domainkey.other.example", "TXT"): [HALVES],
    ("_dmarc.my-bank.example", "TXT"): ['"v=DMARC1; p=reject; sp=quarantine; adkim=r"'],
    ("_dmarc.strict.my-bank.example", "TXT"): ['"v=DMARC1; p=reject; adkim=s; aspf=s"'],
    ("_dmarc.two.example", "TXT"): ['"v=DMARC1; p=reject"', '"v=DMARC1; p=none"'],
    ("_dmarc.bad.example", "TXT"): ['"v=DMARC1; p=explode"'],
    ("_dmarc.reports.example", "TXT"): ['"v=DMARC1; rua=mailto:a@b.example"'],
}


@pytest.fixture(scope="module", autouse=True)
def names() -> Iterator[None]:
    with dns_server(RECORDS, silent="silent.example"):
        yield


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "LIFETIME", 0.5)


def sign(raw: bytes, domain: str) -> bytes:
    import dkim

    fields = [b"from", b"to", b"subject"]
    signature: bytes = dkim.sign(raw, b"sel", domain.encode(), PRIVATE, include_headers=fields)
    return signature + raw


def asked(sender: str = "news@my-bank.example", client: Client = CLIENT) -> Context:
    return replace(context(sender), client=client)


async def said(raw: bytes, about: Context | None = None, **options: Any) -> Verdict:
    processor = Auth(AuthOptions(**options))
    processor.setup(Services(host="mx.example.test"))
    verdict = await opinion(processor, Mail(InMemory(raw)), about or asked())
    assert verdict is not None
    return checked(verdict)


BANK = message("Your statement.\r\n", From="Bank <news@my-bank.example>")


@pytest.mark.parametrize(
    ("sender", "address", "result"),
    [
        ("news@my-bank.example", "192.0.2.25", "PASS"),
        ("news@my-bank.example", "198.51.100.1", "FAIL"),
        ("a@soft.example", "192.0.2.25", "SOFTFAIL"),
        ("a@nothing.example", "192.0.2.25", "NONE"),
        ("a@broken.example", "192.0.2.25", "PERMERROR"),
        ("a@twice.example", "192.0.2.25", "PERMERROR"),
        ("a@silent.example", "192.0.2.25", "TEMPERROR"),
        ("", "192.0.2.25", "NONE"),
        ("a@my-bank.example", "", "NONE"),
        ("a@my-bank.example", "rubbish", "PERMERROR"),
    ],
)
async def test_spf(sender: str, address: str, result: str) -> None:
    verdict = await said(BANK, asked(sender, Client(address=address, helo="mx.nobody.example")))
    assert f"SPF-{result}" in verdict.tags


@pytest.mark.parametrize(
    ("change", "result"),
    [
        (lambda raw: sign(raw, "my-bank.example"), "PASS"),
        (lambda raw: sign(raw, "my-bank.example").replace(b"Your", b"Their"), "FAIL"),
        (lambda raw: sign(raw, "my-bank.example").replace(b"Subject: test", b"Subject: else"), "FAIL"),
        (lambda raw: sign(raw, "nobody.example"), "PERMERROR"),
        (lambda raw: sign(raw, "silent.example"), "TEMPERROR"),
        (lambda raw: b"DKIM-Signature: v=1; rubbish\r\n" + raw, "PERMERROR"),
        (lambda raw: raw, "NONE"),
        # One that is good counts, wherever it stands.
        (lambda raw: b"DKIM-Signature: v=1; rubbish\r\n" + sign(raw, "my-bank.example"), "PASS"),
    ],
)
async def test_dkim(change: Callable[[bytes], bytes], result: str) -> None:
    assert f"DKIM-{result}" in (await said(change(BANK))).tags


def from_(author: str) -> bytes:
    return message("Hello.\r\n", From=author)


@pytest.mark.parametrize(
    ("raw", "sender", "result"),
    [
        (BANK, "news@my-bank.example", "PASS"),  # by SPF
        (sign(BANK, "my-bank.example"), "x@other.example", "PASS"),  # by DKIM
        (BANK, "x@other.example", "FAIL"),  # SPF passes for somebody else
        (sign(BANK, "other.example"), "x@other.example", "FAIL"),  # both pass for somebody else
        (from_("a@sub.my-bank.example"), "news@my-bank.example", "PASS"),  # of the same organization
        (from_("a@strict.my-bank.example"), "news@my-bank.example", "FAIL"),
        (sign(from_("a@strict.my-bank.example"), "my-bank.example"), "x@other.example", "FAIL"),
        (from_("a@nothing.example"), "x@other.example", "NONE"),
        (from_("a@two.example"), "x@other.example", "NONE"),
        (from_("a@bad.example"), "x@other.example", "NONE"),
        (from_("a@reports.example"), "x@other.example", "FAIL"),  # as p=none
        (from_("a@silent.example"), "x@other.example", "TEMPERROR"),
        (sign(BANK, "silent.example"), "x@other.example", "TEMPERROR"),  # it might pass when the DNS answers
        (from_("a@other.example, b@my-bank.example"), "x@other.example", "PERMERROR"),
        (b"From: a@other.example\r\nFrom: b@my-bank.example\r\n\r\n", "x@other.example", "PERMERROR"),
        (b"Subject: nobody\r\n\r\n", "x@other.example", "PERMERROR"),
    ],
)
async def test_dmarc(raw: bytes, sender: str, result: str) -> None:
    assert f"DMARC-{result}" in (await said(raw, asked(sender))).tags


@pytest.mark.parametrize(
    ("author", "dmarc", "action"),
    [
        ("a@my-bank.example", "tag", None),
        ("a@my-bank.example", "deny", Action.DENY),
        ("a@my-bank.example", "quarantine", Action.QUARANTINE),
        ("a@my-bank.example", "policy", Action.DENY),
        ("a@sub.my-bank.example", "policy", Action.QUARANTINE),
        ("a@nothing.example", "policy", None),
        # Readers read it differently: the strictest policy that any of them sees holds.
        ("a@other.example, b@my-bank.example", "policy", Action.DENY),
        ("b@my-bank.example (a@other.example)", "policy", Action.DENY),
        ("Bank " + "a " * 4500 + "<b@my-bank.example>", "policy", Action.DENY),
        ('"b@my-bank.example" <a@nothing.example>', "policy", None),
        ("b@my-bank.example <a@nothing.example>", "policy", Action.DENY),
        ("=?utf-8?q?b=40my-bank.example?=", "policy", Action.DENY),
        ("a@other.example, b@my-bank.example", "deny", Action.DENY),
    ],
)
async def test_what_a_failure_means(author: str, dmarc: str, action: Action | None) -> None:
    verdict = await said(from_(author), asked("x@other.example"), dmarc=dmarc)
    assert verdict.action is action
    assert ("5.7.26" in str(verdict.reply)) is (action is Action.DENY)


async def test_a_dns_that_does_not_answer_lets_nothing_pass_and_refuses_nothing() -> None:
    raw = from_("a@silent.example")
    assert (await said(raw, asked("x@other.example"))).action is None
    with pytest.raises(Temporary, match="the DNS does not answer"):
        await said(raw, asked("x@other.example"), dmarc="policy")


async def test_the_field_is_ours_and_nobody_elses() -> None:
    forged = b"Authentication-Results: MX.example.test; dmarc=pass\r\n"
    other = b"Authentication-Results: relay.example; spf=pass smtp.mailfrom=a@b\r\n"
    verdict = await said(forged + other + sign(BANK, "my-bank.example"))
    assert verdict.edits[0] == RemoveHeader("Authentication-Results")
    head = edit(
        forged + other + b"Subject: x\r\n\r\n", [e for e in verdict.edits if isinstance(e, AddHeader | RemoveHeader)]
    )
    written = [line for line in head.split(b"\r\n") if line.startswith(b"Authentication-Results")]
    assert written[1:] == [other.rstrip()]
    ours = written[0].decode()
    assert ours.startswith(
        "Authentication-Results: mx.example.test; spf=pass smtp.mailfrom=news@my-bank.example; dkim=pass"
    )
    assert "header.d=my-bank.example header.s=sel" in ours
    assert "dmarc=pass header.from=my-bank.example policy.dmarc=reject" in ours
    assert (await said(BANK, header=False)).edits == ()


async def test_what_a_trusted_host_wrote_is_read_and_what_others_wrote_is_not() -> None:
    result = b"Authentication-Results: edge.example (comment; dmarc=fail (nested)) 1; dkim=fail; dkim=pass;\r\n"
    result += b" dmarc=\r\n fail\r\n"
    lie = b"Authentication-Results: edge.example; dmarc=pass\r\n"
    verdict = await said(result + lie + BANK, trusted=("Edge.example",), dmarc="quarantine")
    assert verdict.tags == ("SPF-NONE", "DKIM-FAIL", "DMARC-FAIL", "ARC-NONE")
    assert (verdict.action, verdict.edits) == (Action.QUARANTINE, ())
    assert verdict.reason.endswith("(as edge.example says)")
    assert "DMARC-PASS" in (await said(result + BANK)).tags  # checked, not read


@pytest.mark.parametrize(
    ("field", "tag"),
    [
        ("edge.example; spf=pass smtp.mailfrom=dmarc=pass@evil.example; dmarc=fail", "DMARC-FAIL"),
        ('edge.example; spf=pass smtp.mailfrom="; dmarc=pass; x"@evil.example', "DMARC-NONE"),
        ("edge.example 1; dmarc/1=fail header.from=x", "DMARC-FAIL"),
        ('"edge.example"; dmarc=fail', "DMARC-FAIL"),
        ("(a) edge.example (b); (c) dmarc (d) = (e) fail (f)", "DMARC-FAIL"),
        ("Edge.Example.; dmarc=fail", "DMARC-FAIL"),
        ("edge.example; dmarc=pass; dmarc=fail", "DMARC-FAIL"),
        ("edge.example; none", "DMARC-NONE"),
        ("edge.example; dmarc=unheardof", "DMARC-UNHEARDOF"),
    ],
)
async def test_results_are_read_by_their_grammar(field: str, tag: str) -> None:
    raw = f"Authentication-Results: {field}\r\n".encode() + BANK
    assert tag in (await said(raw, trusted=("edge.example",))).tags


async def test_all_fields_of_a_trusted_host_count_and_the_worst_result_wins() -> None:
    raw = b"Authentication-Results: edge.example; spf=pass\r\nAuthentication-Results: edge.example; dmarc=fail\r\n"
    tags = (
        await said(raw + b"Authentication-Results: edge.example; spf=softfail\r\n" + BANK, trusted=("edge.example",))
    ).tags
    assert tags[0] == "SPF-SOFTFAIL"
    assert tags[2] == "DMARC-FAIL"


@pytest.mark.parametrize(
    "forged",
    [
        "mx.example.test; dmarc=pass",
        '"mx.example.test"; dmarc=pass',
        "(x) mx.example.test; dmarc=pass",
        '"mx\\.example.test" (x) 1; dmarc=pass',
        "mx.example.test.; dmarc=pass",
        "(a\\)b) MX.example.test; dmarc=pass",
        '(a "b) mx.example.test; dmarc=pass (")',
        '"mx." "example.test"; dmarc=pass',
        "(open mx.example.test; dmarc=pass",
    ],
)
async def test_no_spelling_of_our_name_survives(forged: str) -> None:
    raw = f"Authentication-Results: {forged}\r\n".encode() + BANK
    verdict = await said(raw)
    head = edit(raw[: raw.find(b"\r\n\r\n") + 4], [e for e in verdict.edits if isinstance(e, AddHeader | RemoveHeader)])
    assert head.lower().count(b"authentication-results:") == 1


async def test_values_are_quoted() -> None:
    raw = BANK
    verdict = await said(raw, asked("dmarc=pass@my-bank.example"))
    (ours,) = [e.value for e in verdict.edits if isinstance(e, AddHeader)]
    assert 'smtp.mailfrom="dmarc=pass@my-bank.example"' in ours
    assert results.parse(ours).methods["dmarc"] == ["pass"]


async def test_a_message_asks_for_so_much_and_is_asked_once_for_all_recipients(monkeypatch: pytest.MonkeyPatch) -> None:
    import dns.resolver

    asked_for: list[str] = []
    real = dns.resolver.resolve

    def counted(name: str, *rest: Any, **more: Any) -> Any:
        asked_for.append(str(name))
        return real(name, *rest, **more)

    monkeypatch.setattr(dns.resolver, "resolve", counted)
    sets = b"".join(
        b"ARC-Seal: i=%d; a=rsa-sha256; d=my-bank.example; s=k%d; cv=none; b=x\r\n" % (n, n)
        + b"ARC-Message-Signature: i=%d; a=rsa-sha256; d=my-bank.example; s=m%d; h=from; bh=x; b=x\r\n" % (n, n)
        + b"ARC-Authentication-Results: i=%d; x; none\r\n" % n
        for n in range(1, 51)
    )
    step = Auth(AuthOptions())
    raw = sets + sign(BANK, "my-bank.example")

    async def several() -> list[Verdict | None]:
        found = []
        for n in range(5):
            letter = replace(context("news@my-bank.example", f"r{n}@example.test"), client=CLIENT)
            mail = Mail(InMemory(raw))
            found.append(step.evaluate(await step.query(mail, letter), mail, letter))
        return found

    verdicts = await several()
    assert all(verdict is not None and "ARC-FAIL" in verdict.tags for verdict in verdicts)
    assert len(asked_for) <= MOST_QUESTIONS


async def test_blanks_do_not_keep_the_library_busy() -> None:
    raw = sign(BANK, "my-bank.example").replace(b"Subject: ", b"Subject: " + b" " * 80_000)
    began = time.process_time()
    assert "DKIM-PERMERROR" in (await said(raw)).tags
    assert took(began) < 6


async def test_arc() -> None:
    import dkim

    sealed = b"".join(
        dkim.arc_sign(
            b"Authentication-Results: other.example; spf=pass\r\n" + BANK,
            *(b"sel", b"other.example", PRIVATE, b"other.example"),
            include_headers=[b"from", b"to", b"subject"],
        )
    )
    assert "ARC-PASS" in (await said(sealed + BANK)).tags
    assert "ARC-FAIL" in (await said(sealed + BANK.replace(b"Your", b"Their"))).tags
    assert "ARC-FAIL" in (await said(b"ARC-Seal: rubbish\r\n" + BANK)).tags


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    auth.libraries.cache_clear()
    monkeypatch.setattr(auth, "import_module", missing)
    with pytest.raises(ValueError, match=r"auth needs dkim; install it with: pip install 'sendswitch\[auth\]'"):
        Auth(AuthOptions())
