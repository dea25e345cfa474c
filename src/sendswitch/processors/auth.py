"""Sender authentication: SPF (RFC 7208), DKIM (RFC 6376), DMARC (RFC 7489) and ARC (RFC 8617).

The results become tags (SPF-PASS, DKIM-FAIL, DMARC-NONE, ARC-PASS, …), which later steps can test, and the field
Authentication-Results (RFC 8601), from which a stranger's results under our name are removed. The results of a host in
`trusted` are read instead, without look-ups: that host saw the connection itself.

A DNS that does not answer is no result: where DMARC decides about the mail (`dmarc` is not `tag`) the step fails, and
`on_error` decides. A From header that is not beyond doubt is a DMARC `permerror`, and the strictest policy applies of
all domains that a reader may see in it. DMARC's sampling (pct) is not done.

A message is checked once for all its recipients, with limits for its signatures, its ARC sets and the questions to the
DNS together.
"""

from __future__ import annotations

import asyncio
import logging
import re
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from pydantic import Field

from sendswitch.errors import Temporary
from sendswitch.mail import results
from sendswitch.mail.address import in_header, sole_author
from sendswitch.mail.edits import AddHeader, Edit, RemoveHeader
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Verdict, parse_refusal
from sendswitch.processors import base

# Signatures of one message that are verified; more are written to keep somebody busy.
MOST_SIGNATURES = 5
# Seconds for one question to the DNS.
LIFETIME = 5.0
# Questions to the DNS for the keys and policies of one message; sets of ARC that are verified.
MOST_QUESTIONS, MOST_SETS = 20, 10
# Domains of a doubtful From header whose policies are looked up.
MOST_DOMAINS = 5
# Messages whose results are remembered for their other recipients.
REMEMBERED = 100
_METHODS = ("spf", "dkim", "dmarc", "arc")
# The library that verifies signatures takes quadratic time on more blanks in a row.
_BLANKS = re.compile(rb"[ \t\r\n]{1000}")
_STRICTNESS = ("none", "quarantine", "reject")


class AuthOptions(base.Options):
    """Options of `auth`."""

    dmarc: Literal["tag", "policy", "quarantine", "deny"] = Field(
        "tag", description="What a DMARC failure means; `policy`: what the author's domain asks for."
    )
    trusted: tuple[str, ...] = Field(
        (), description="Hosts whose Authentication-Results are read instead of checking; yours only."
    )
    header: bool = Field(True, description="Write the results into Authentication-Results.")
    reply: base.Refusal = Field(
        "550 5.7.26 Message refused: it fails the DMARC policy of its author's domain",
        description="What a denied sender is told.",
    )


class Auth:
    """The check of SPF, DKIM, DMARC and ARC. It sets tags, and acts on a DMARC failure."""

    Options: ClassVar[type[base.Options]] = AuthOptions
    use: ClassVar[str] = "auth"
    waits_for_names: ClassVar[bool] = True
    version = "1"

    def __init__(self, options: AuthOptions) -> None:
        self._options, self._host, self._readers = options, "localhost", base.Services().readers
        self._trusted = frozenset(map(results.canonical, options.trusted))
        libraries()

    def setup(self, services: base.Services) -> None:
        """Take the name for results, and the readers of content."""
        self._host, self._readers = services.host or "localhost", services.readers

    def options_json(self) -> Mapping[str, Any]:
        """Return the options: none, because checks do not depend on them."""
        return {}

    def read(self, mail: Mail, context: base.Context) -> Any:
        """Return the results of every check."""
        return _checked(mail, context)

    async def query(self, mail: Mail, context: base.Context) -> Mapping[str, Any]:
        """Return `spf`, `dkim`, `dmarc` and `arc`, each with `result`, and `read`: whose results they are, '' for our
        own.
        """
        if (read := results.of_host(mail.raw_headers(results.FIELD), self._trusted)) is not None:
            host, found = read
            return {method: {"result": found.get(method, "none")} for method in _METHODS} | {"read": host}
        return await _shared(self._readers, self, mail, context) | {"read": ""}

    def evaluate(self, answer: Mapping[str, Any], mail: Mail, context: base.Context) -> Verdict | None:
        """Return the tags and the field, and the action on a DMARC failure."""
        each = {method: str(answer[method]["result"]) for method in _METHODS}
        told = ", ".join(f"{method} {result}" for method, result in each.items())
        reason = told + (f" (as {answer['read']} says)" if answer["read"] else "")
        tags = tuple(f"{method}-{result}".upper() for method, result in each.items())
        edits = self._edits(answer, mail) if self._options.header and not answer["read"] else ()
        action = self._action(each["dmarc"], str(answer["dmarc"].get("policy", "none")))
        reply = parse_refusal(self._options.reply) if action is Action.DENY else None
        return Verdict(action, tags=tags, reason=reason, edits=edits, reply=reply)

    def _action(self, dmarc: str, policy: str) -> Action | None:
        wanted = self._options.dmarc
        if wanted == "tag":
            return None
        if dmarc == "temperror":
            raise Temporary("DMARC could not be checked: the DNS does not answer")
        if dmarc not in ("fail", "permerror"):
            return None
        if wanted == "policy":
            wanted = {"reject": "deny", "quarantine": "quarantine"}.get(policy, "tag")  # type: ignore[assignment]
        return {"deny": Action.DENY, "quarantine": Action.QUARANTINE}.get(wanted)

    def _edits(self, answer: Mapping[str, Any], mail: Mail) -> tuple[Edit, ...]:
        """Return the edits: our field on top; fields of others under our name go, those under theirs stay."""
        values = mail.raw_headers(results.FIELD)
        others = [value for value in values if not results.claims(value, self._host)]
        edits: list[Edit] = []
        if len(others) < len(values):
            edits = [
                RemoveHeader(results.FIELD),
                *(AddHeader(results.FIELD, value) for value in reversed(others[:50])),
            ]
        said = [
            (method, str(answer[method]["result"]), {n: str(v) for n, v in answer[method].items() if "." in n})
            for method in _METHODS
        ]
        return (*edits, AddHeader(results.FIELD, results.written(self._host, said)))


# The results of messages that have more recipients, by loop: a future of one loop is of no use to another.
_known: WeakKeyDictionary[asyncio.AbstractEventLoop, OrderedDict[Hashable, asyncio.Future[dict[str, Any]]]]
_known = WeakKeyDictionary()


async def _shared(readers: base.Readers, step: base.Reads, mail: Mail, context: base.Context) -> dict[str, Any]:
    """Check a message, once for all its recipients."""
    known = _known.setdefault(asyncio.get_running_loop(), OrderedDict())
    same = (context.message, context.sender, context.client, mail.size, hash(mail.content.head()))
    if (running := known.get(same)) is None:
        running = known[same] = asyncio.ensure_future(readers.read(step, mail, context))
        if len(known) > REMEMBERED:
            known.popitem(last=False)
    try:
        return dict(await asyncio.shield(running))
    except Exception:
        known.pop(same, None)  # the next recipient asks anew
        raise


@cache
def libraries() -> Any:
    """Return the suffix list when every library is installed. Raises ValueError with the command that installs them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were written for an older Python
            for name in ("dkim", "dns.resolver", "spf"):
                import_module(name)
            from publicsuffixlist import PublicSuffixList
    except ImportError as error:
        raise ValueError(f"auth needs {error.name}; install it with: pip install 'sendswitch[auth]'") from error
    return PublicSuffixList()


class _Questions:
    """The questions to the DNS for one message: each name once, and at most `MOST_QUESTIONS` names."""

    def __init__(self) -> None:
        self._left = MOST_QUESTIONS
        self._answers: dict[str, list[bytes] | Temporary] = {}

    def texts(self, name: str) -> list[bytes]:
        """Return the TXT records of a name, [] for none. Raises Temporary when the DNS does not answer."""
        if name not in self._answers:
            self._answers[name] = self._ask(name)
        answer = self._answers[name]
        if isinstance(answer, Temporary):
            raise answer
        return answer

    def _ask(self, name: str) -> list[bytes] | Temporary:
        import dns.exception
        import dns.resolver

        self._left -= 1
        if self._left < 0:
            return Temporary("the message asks for too much of the DNS")
        try:
            answer = dns.resolver.resolve(name, "TXT", lifetime=LIFETIME)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, ValueError):
            return []
        except dns.exception.DNSException as error:
            return Temporary(f"the DNS does not answer: {error}")
        return [b"".join(record.strings) for record in answer]


# Those of the message that this thread checks: the library calls back with no more than a name.
_questions: ContextVar[_Questions | None] = ContextVar("questions", default=None)


def _texts(name: str) -> list[bytes]:
    """Return the TXT records of a name. Raises Temporary."""
    return (_questions.get() or _Questions()).texts(name)


def _checked(mail: Mail, context: base.Context) -> dict[str, Any]:
    """Check everything. Blocks for the DNS."""
    _questions.set(_Questions())
    spf, dkim = _spf(context), _dkim(mail)
    return {"spf": spf, "dkim": _best(dkim), "dmarc": _dmarc(mail, spf, dkim), "arc": _arc(mail)}


def _spf(context: base.Context) -> dict[str, str]:
    import spf

    address, sender, helo = context.client.address, context.sender, context.client.helo
    if not address or address.startswith("unix:"):
        return {"result": "none"}
    domain = sender.rpartition("@")[2] or helo
    try:
        result, _ = spf.check2(i=address, s=sender, h=helo or "unknown", timeout=2 * LIFETIME, querytime=LIFETIME)
    except Exception as error:  # whatever a stranger's record makes of the library
        result = "temperror" if "DNS" in type(error).__name__ or "Timeout" in type(error).__name__ else "permerror"
    return {"result": result, "smtp.mailfrom": sender or f"postmaster@{domain}", "domain": domain.lower()}


class _Keys:
    """Looks a key up for the library, and remembers how that went, because it forgets."""

    def __init__(self) -> None:
        self.found, self.unsure = False, False

    def __call__(self, name: bytes | str, timeout: float = 5) -> bytes | None:
        text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
        try:
            texts = _texts(text)
        except Temporary:
            self.unsure = True
            return None
        self.found = bool(texts)
        return texts[0] if texts else None


def _dkim(mail: Mail) -> list[dict[str, str]]:
    import dkim

    signed = min(len(mail.raw_headers("dkim-signature")), MOST_SIGNATURES)
    if signed and _BLANKS.search(mail.raw):
        return [{"result": "permerror"}]
    found = []
    for n in range(signed):
        one, keys = dkim.DKIM(mail.raw, logger=_silent()), _Keys()
        try:
            good = one.verify(idx=n, dnsfunc=keys)
            result = "pass" if good else "temperror" if keys.unsure else "fail" if keys.found else "permerror"
        except dkim.ValidationError as error:
            result = "fail" if "body hash" in str(error) else "permerror"
        except Exception:  # whatever a stranger's signature makes of the library
            result = "permerror"
        found.append({"result": result, "header.d": _text(one.domain).lower(), "header.s": _text(one.selector)})
    return found


def _text(value: bytes | str | None) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value or ""


@cache
def _silent() -> logging.Logger:
    """Return a logger for the library without output: errors in strangers' signatures are no news."""
    logger = logging.getLogger("sendswitch.dkim")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


def _best(results: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the result to show: a pass, else one that may pass later, else the first."""
    for wanted in ("pass", "temperror"):
        for result in results:
            if result["result"] == wanted:
                return result
    return results[0] if results else {"result": "none"}


def _arc(mail: Mail) -> dict[str, str]:
    import dkim

    sets = len(mail.raw_headers("arc-seal"))
    if not sets:
        return {"result": "none"}
    if sets > MOST_SETS or _BLANKS.search(mail.raw):
        return {"result": "fail"}
    try:
        result, _, _ = dkim.ARC(mail.raw, logger=_silent()).verify(dnsfunc=_Keys())
    except Exception:  # as above
        return {"result": "fail"}
    return {"result": "pass" if result == b"pass" else "fail"}


def _dmarc(mail: Mail, spf: Mapping[str, str], dkim: Sequence[Mapping[str, str]]) -> dict[str, str]:
    values = mail.raw_headers("from")
    author = sole_author(values)
    try:
        if author is None:
            return _doubtful(in_header(values))
        domain = author.rpartition("@")[2]
        record, asked = _policy(domain)
    except Temporary:
        domain = (author or "").rpartition("@")[2]
        return {"result": "temperror", "header.from": domain, "policy": "none"}
    if record is None:
        return {"result": "none", "header.from": domain, "policy": "none"}
    facts = {"header.from": domain, "policy": asked, "policy.dmarc": asked}
    passed = spf["result"] == "pass" and _aligned(record.get("aspf"), domain, spf["domain"])
    for one in dkim:
        passed = passed or (one["result"] == "pass" and _aligned(record.get("adkim"), domain, one["header.d"]))
    if passed:
        return {"result": "pass"} | facts
    unsure = any(one["result"] == "temperror" for one in (spf, *dkim))
    return {"result": "temperror" if unsure else "fail"} | facts


def _doubtful(authors: Sequence[str]) -> dict[str, str]:
    """Return the result for a From header that readers read differently: the strictest policy of its domains holds."""
    domains = list(dict.fromkeys(author.rpartition("@")[2] for author in authors))[:MOST_DOMAINS]
    policies = [_policy(domain)[1] for domain in domains if domain]
    strictest = max(policies, key=_STRICTNESS.index, default="none")
    return {"result": "permerror", "policy": strictest, "policy.dmarc": strictest if policies else ""}


def _policy(domain: str) -> tuple[dict[str, str] | None, str]:
    """Return the DMARC record of a domain, None without one, and its policy. Raises Temporary."""
    record, policy = _record(domain), "p"
    organization = _organization(domain)
    if record is None and organization != domain:
        record, policy = _record(organization), "sp"
    if record is None:
        return None, "none"
    return record, record.get(policy) or record["p"]


def _organization(domain: str) -> str:
    found = libraries().privatesuffix(domain)
    return str(found) if found else domain


def _aligned(mode: str | None, author: str, domain: str) -> bool:
    """Return whether domains are aligned (RFC 7489 section 3.1): `s` the same, `r` of the same organization."""
    if (mode or "r").lower() == "s":
        return author == domain
    return _organization(author) == _organization(domain)


def _record(domain: str) -> dict[str, str] | None:
    """Return the DMARC record of a domain; None when there is none, or more than one (RFC 7489 section 6.6.3).

    A record without a policy that asks for reports is one that asks for nothing else. Raises Temporary.
    """
    texts = [text.decode("utf-8", "replace") for text in _texts(f"_dmarc.{domain}")]
    records = [text for text in texts if re.match(r"v[ \t]*=[ \t]*DMARC1[ \t]*(?:;|\Z)", text)]
    if len(records) != 1:
        return None
    pairs = (part.partition("=") for part in records[0].split(";"))
    tags = {name.strip().lower(): value.strip().lower() for name, equals, value in pairs if equals}
    if tags.get("p") not in _STRICTNESS or tags.get("sp", "none") not in _STRICTNESS:
        if "rua" not in tags:
            return None
        tags |= {"p": "none", "sp": "none"}
    return tags
