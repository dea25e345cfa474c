"""Who may say they sent it: SPF (RFC 7208), DKIM (RFC 6376), DMARC (RFC 7489) and ARC (RFC 8617).

The results become tags (SPF-PASS, DKIM-FAIL, DMARC-NONE, ARC-PASS, …), which later steps ask for, and the field
Authentication-Results (RFC 8601), from which what a stranger wrote under our name is removed. What a host in `trusted`
has written there is read instead, and nothing is looked up: it saw the connection itself.

A DNS that cannot be asked is no result: where DMARC decides about the mail (`dmarc` is not `tag`) that is a failure of
the step, and `on_error` decides. A From header that is not beyond doubt is a DMARC failure: nobody knows whose policy
holds. DMARC's sampling (pct) is not done.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, Literal

from pydantic import Field

from sendswitch.errors import Temporary
from sendswitch.mail.address import in_header, key, only
from sendswitch.mail.headers import AddHeader, Edit, RemoveHeader
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Verdict, parse_refusal
from sendswitch.processors import base
from sendswitch.processors.threads import asking_names

# Signatures of one message that are verified; more are written to keep somebody busy.
MOST_SIGNATURES = 5
# Seconds for one question to the DNS.
LIFETIME = 5.0
FIELD = "Authentication-Results"
_METHODS = ("spf", "dkim", "dmarc", "arc")
_RESULT = re.compile(r"\b(spf|dkim|dmarc|arc)\s*=\s*([a-z]+)", re.I)
_COMMENT = re.compile(r"\([^()]*\)|\"[^\"]*\"")
_SAFE = re.compile(r"[^A-Za-z0-9.@_+=-]")


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
    """Checks SPF, DKIM, DMARC and ARC; tags, and acts on a DMARC failure."""

    Options: ClassVar[type[base.Options]] = AuthOptions
    version = "1"

    def __init__(self, options: AuthOptions) -> None:
        self._options, self._host = options, "localhost"
        self._trusted = {host.lower() for host in options.trusted}
        _libraries()

    def enter(self, site: base.Site) -> None:
        """Know whose name results are written under."""
        self._host = site.host or "localhost"

    async def ask(self, mail: Mail, context: base.Context) -> Mapping[str, Any]:
        """`spf`, `dkim`, `dmarc` and `arc`, each with `result`, and `read`: whose results they are, '' for our own."""
        for value in mail.raw_headers(FIELD):
            host, results = _parsed(value)
            if host in self._trusted:
                return {method: {"result": results.get(method, "none")} for method in _METHODS} | {"read": host}
        return await asking_names(_checked, mail, context) | {"read": ""}

    def judge(self, answer: Mapping[str, Any], mail: Mail, context: base.Context) -> Verdict | None:
        """The tags and the field, and what a DMARC failure means."""
        results = {method: str(answer[method]["result"]) for method in _METHODS}
        told = ", ".join(f"{method} {result}" for method, result in results.items())
        reason = told + (f" (as {answer['read']} says)" if answer["read"] else "")
        tags = tuple(f"{method}-{result}".upper() for method, result in results.items())
        edits = self._edits(answer, mail) if self._options.header and not answer["read"] else ()
        action = self._action(results["dmarc"], str(answer["dmarc"].get("policy", "none")))
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
        """Our field on top; what others wrote under our name is gone, what they wrote under theirs stays."""
        values = mail.raw_headers(FIELD)
        others = [value for value in values if _parsed(value)[0] != self._host.lower()]
        edits: list[Edit] = []
        if len(others) < len(values):
            edits = [RemoveHeader(FIELD), *(AddHeader(FIELD, value) for value in reversed(others[:50]))]
        results = "; ".join(_written(method, answer[method]) for method in _METHODS)
        return (*edits, AddHeader(FIELD, f"{self._host}; {results}"))


def _written(method: str, result: Mapping[str, str]) -> str:
    facts = [f"{name}={_SAFE.sub('', value)}" for name, value in result.items() if "." in name and value]
    return " ".join([f"{method}={result['result']}", *facts])


def _parsed(value: str) -> tuple[str, dict[str, str]]:
    """Whose results they are, and each method's (RFC 8601 2.2); of several the first that is a pass, else the first."""
    while (bare := _COMMENT.sub(" ", value)) != value:  # comments nest
        value = bare
    host, _, rest = value.partition(";")
    found: dict[str, str] = {}
    for method, result in _RESULT.findall(rest):
        method, result = method.lower(), result.lower()[:20]
        if method not in found or result == "pass":
            found[method] = result
    return (host.split() or [""])[0].lower(), found


@cache
def _libraries() -> Any:
    """The suffix list, when all is installed. Raises ValueError that says how to install what is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were written for an older Python
            for name in ("dkim", "dns.resolver", "spf"):
                import_module(name)
            from publicsuffixlist import PublicSuffixList
    except ImportError as error:
        raise ValueError(f"auth needs {error.name}; install it with: pip install 'sendswitch[auth]'") from error
    return PublicSuffixList()


def _checked(mail: Mail, context: base.Context) -> dict[str, Any]:
    """Every check. Blocks for the DNS."""
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
        import dns.exception
        import dns.resolver

        text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
        try:
            answer = dns.resolver.resolve(text, "TXT", lifetime=LIFETIME)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, ValueError):
            return None
        except dns.exception.DNSException:
            self.unsure = True
            return None
        self.found = True
        return b"".join(next(iter(answer)).strings)


def _dkim(mail: Mail) -> list[dict[str, str]]:
    import dkim

    found = []
    for n in range(min(len(mail.raw_headers("dkim-signature")), MOST_SIGNATURES)):
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
    """The library's logger: what strangers sign is no news."""
    logger = logging.getLogger("sendswitch.dkim")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


def _best(results: Sequence[dict[str, str]]) -> dict[str, str]:
    """The one that counts for people: a pass, else what might be one later, else the first."""
    for wanted in ("pass", "temperror"):
        for result in results:
            if result["result"] == wanted:
                return result
    return results[0] if results else {"result": "none"}


def _arc(mail: Mail) -> dict[str, str]:
    import dkim

    if not mail.raw_headers("arc-seal"):
        return {"result": "none"}
    try:
        result, _, _ = dkim.ARC(mail.raw, logger=_silent()).verify(dnsfunc=_Keys())
    except Exception:  # as above
        return {"result": "fail"}
    return {"result": "pass" if result == b"pass" else "fail"}


def _dmarc(mail: Mail, spf: Mapping[str, str], dkim: Sequence[Mapping[str, str]]) -> dict[str, str]:
    values = mail.raw_headers("from")
    author = only(values, in_header(values))
    domain = key(author).rpartition("@")[2] if author else ""
    if not domain:
        return {"result": "permerror", "policy": "none"}
    organization = _organization(domain)
    try:
        record = _record(domain)
        if record is None and organization != domain:
            record = _record(organization)
            policy = "sp"
        else:
            policy = "p"
    except Temporary:
        return {"result": "temperror", "header.from": domain, "policy": "none"}
    if record is None:
        return {"result": "none", "header.from": domain, "policy": "none"}
    asked = record.get(policy) or record["p"]
    facts = {"header.from": domain, "policy": asked, "policy.dmarc": asked}
    passed = (
        [spf.get("domain", "")]
        if spf["result"] == "pass" and _aligned(record.get("aspf"), domain, spf["domain"])
        else []
    )
    passed += [
        one["header.d"]
        for one in dkim
        if one["result"] == "pass" and _aligned(record.get("adkim"), domain, one["header.d"])
    ]
    if passed:
        return {"result": "pass"} | facts
    unsure = any(one["result"] == "temperror" for one in (spf, *dkim))
    return {"result": "temperror" if unsure else "fail"} | facts


def _organization(domain: str) -> str:
    found = _libraries().privatesuffix(domain)
    return str(found) if found else domain


def _aligned(mode: str | None, author: str, domain: str) -> bool:
    """Strict: the same domain; relaxed: of the same organization (RFC 7489 3.1)."""
    if (mode or "r").lower() == "s":
        return author == domain
    return _organization(author) == _organization(domain)


def _record(domain: str) -> dict[str, str] | None:
    """The DMARC record of a domain; None when there is none, or more than one (RFC 7489 6.6.3). Raises Temporary."""
    import dns.exception
    import dns.resolver

    try:
        answer = dns.resolver.resolve(f"_dmarc.{domain}", "TXT", lifetime=LIFETIME)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return None
    except dns.exception.DNSException as error:
        raise Temporary(f"the DNS does not answer: {error}") from error
    except ValueError:  # no name the DNS could have
        return None
    texts = [b"".join(record.strings).decode("utf-8", "replace") for record in answer]
    records = [text for text in texts if text.replace(" ", "").startswith("v=DMARC1")]
    if len(records) != 1:
        return None
    pairs = (part.partition("=") for part in records[0].split(";"))
    tags = {name.strip().lower(): value.strip().lower() for name, equals, value in pairs if equals}
    return tags if tags.get("p") in ("none", "quarantine", "reject") else None
