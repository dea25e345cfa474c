"""Mail addresses as RFC 5321 section 4.1.2 writes them, and the one form that they are looked up by.

An address is kept and sent on as it was given. Comparison happens on its canonical form (`key`): the domain as A-label
in lower case without a dot at its end (RFC 5890), the local part in Unicode's composed form (NFC) without quoting, in
lower case: no site that runs Postfix gives `Joe` and `joe` to different people, and a list entry that misses by case
would be a hole. `resolved` does what Postfix's rewriting does (trivial-rewrite(8): bangpaths, percent signs, routes),
so that no spelling of a mailbox reaches it without its pipeline.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import idna

from sendswitch.mail.address_list import addresses
from sendswitch.mail.mime.words import decoded
from sendswitch.mail.text import storable

# A path in angle brackets: an optional source route that is ignored (RFC 5321 C), then the mailbox. A quoted
# local part may hold any character, '>' and '@' included.
_PATH = re.compile(r'<(?:@[^<>:]*:)?((?:"(?:[^"\\]|\\.)*"|[^<>"\s])*)>')
_ATOM = re.compile(r"[^\s<>()\[\],;:\"\\@\x00-\x1f\x7f]+")
_LOCAL = re.compile(r'(?:"(?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*"|[^\s<>()\[\],;:"\\@\x00-\x1f\x7f]+)\Z')
_DOMAIN = re.compile(r"(?:\[[0-9A-Za-z.:\-]+\]|[^\s<>()\[\],;:\"\\@\x00-\x1f\x7f]+)\Z")
# What stands between the separators of a header's value, in one pass: an address is such a word with an '@' in it.
_WORD = re.compile(r"[^\s<>()\[\],;:\"\\\x00-\x1f]+")
# Most fields: one address of plain atoms, alone or behind a name of plain words, about which all readers agree.
_DOTTED = r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*"
PLAIN = re.compile(rf"[ \t]*(?:[A-Za-z0-9 '_+-]*<({_DOTTED})>|({_DOTTED}))[ \t]*\Z")
# A name in quotes, without what a lenient reader might take for an address in brackets.
_QUOTED_NAME = re.compile(r'"(?:[^"\\<>]|\\[^<>])*"(?=[ \t]*<)')
# Characters of a field that an author is read from beyond doubt; a longer one is doubtful.
MAX_PARSED = 8000

# RFC 5321 4.5.3.1: 64 for the local part, 255 for the domain, 256 for the path. Real mail exceeds the first
# (VERP, SRS), so only the whole is limited.
MAX_ADDRESS = 320
# Zero width non-joiner and joiner: Persian and Sinhala need them in words.
JOINERS = "\u200c\u200d"
# Addresses of one From header that are looked at; honest ones have one.
MOST_AUTHORS = 2000
# Rewritings of one address; each takes one sign out of it.
MOST_REWRITES = 10


def split(address: str) -> tuple[str, str]:
    """Return local part and domain; the domain is '' for an address without one (`postmaster`)."""
    local, at, domain = ("", "", "") if address.endswith('"') else address.rpartition("@")
    return (local, domain) if at else (address, "")


def valid(address: str) -> bool:
    """Return whether `address` may stand in a path: it cannot break out of the brackets or carry a line break."""
    return 0 < len(address) <= MAX_ADDRESS and _valid(address)


@lru_cache(maxsize=4096)
def _valid(address: str) -> bool:
    if not address.isascii() and (storable(address, MAX_ADDRESS) != address or not _joins(address)):
        return False
    local, domain = split(address)
    if not domain:
        return "@" not in address and bool(_ATOM.fullmatch(local))
    return bool(_LOCAL.match(local) and _DOMAIN.match(domain))


def _joins(address: str) -> bool:
    """Return whether each joiner in an address is in a place where a script needs it (RFC 5892 appendix A.1 and A.2).

    In other places a joiner is invisible and would make a second mailbox that looks the same.
    """
    local, domain = split(address)
    return all(
        _in_context(label, place)
        for label in (local, *domain.split("."))
        for place, character in enumerate(label)
        if character in JOINERS
    )


def _in_context(label: str, place: int) -> bool:
    try:
        return idna.valid_contextj(label, place)
    except ValueError:  # beside a character that Unicode does not know (IDNAError is one too)
        return False


def parse_path(text: str) -> tuple[str, str] | None:
    """Split '<path> rest' into the address and the rest; None when the text does not begin with a valid path.

    The null path is ''. The caller decides whether a non-ASCII address is allowed (SMTPUTF8).
    """
    found = _PATH.match(text)
    if not found:
        return None
    address = found[1]
    if address and not valid(address):
        return None
    rest = text[found.end() :]
    if rest and not rest.startswith(" "):
        return None
    return address, rest.strip()


def key(address: str) -> str:
    """Return the canonical form: equal for two addresses of one mailbox. Never sent, never shown as an address."""
    if address.isascii() and '"' not in address and not address.endswith("."):
        return address.lower()
    local, domain = split(address)
    if not domain:
        return _composed(_unquoted(local))
    return f"{_composed(_unquoted(local))}@{domain_key(domain)}"


def domain_key(domain: str) -> str:
    """Return the canonical form of a domain: A-labels in lower case, without a dot at its end."""
    if domain.isascii():
        return domain.rstrip(".").lower()
    return _a_labels(domain)


@lru_cache(maxsize=1024)
def _a_labels(domain: str) -> str:
    text = unicodedata.normalize("NFC", domain[:MAX_ADDRESS]).strip(".\u3002\uff0e\uff61")
    try:
        return idna.encode(text, uts46=True, transitional=False).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        return unicodedata.normalize("NFKC", text).lower().rstrip(".")


def readable_domain(domain: str) -> str:
    """Return a domain in canonical form as people write it, with U-labels."""
    if "xn--" not in domain:
        return domain
    try:
        return idna.decode(domain[:MAX_ADDRESS])
    except (idna.IDNAError, UnicodeError):
        return domain


def spellings(address: str) -> tuple[str, ...]:
    """Return an address as text to be searched in: its canonical form, with U-labels where it has any."""
    canonical = key(address)
    local, domain = split(canonical)
    readable = readable_domain(domain)
    return (canonical,) if readable == domain else (canonical, f"{local}@{readable}")


def _composed(local: str) -> str:
    return local.lower() if local.isascii() else unicodedata.normalize("NFC", local).lower()


def _unquoted(local: str) -> str:
    if len(local) > 1 and local[0] == local[-1] == '"':
        return re.sub(r"\\(.)", r"\1", local[1:-1])
    return local


def resolved(address: str) -> Iterator[str]:
    """Yield the canonical forms of the mailboxes that Postfix may deliver this address to, the address itself first.

    Postfix rewrites `site!user` and `user%site` where there is no `@` or the domain is its own, and looks into quotes
    (resolve_dequoted_address). Which domains are its own is not known here, so each form that it could become is one.
    """
    canonical = key(address)
    yield canonical
    local, domain = split(canonical)
    if not any(sign in local for sign in "@%!"):
        return
    for _ in range(MOST_REWRITES):
        if "@" in local:
            local, _, domain = local.rpartition("@")
        elif "!" in local:
            domain, _, local = local.partition("!")
        elif "%" in local:
            local, _, domain = local.rpartition("%")
        else:
            return
        yield f"{_composed(_unquoted(local))}@{domain_key(domain)}"


def without_extension(address_key: str, delimiters: str) -> str:
    """Return the key without its address extension (Postfix `recipient_delimiter`), or itself when it has none.

    A delimiter as first character is part of the name, as in Postfix.
    """
    local, domain = split(address_key)
    for n, character in enumerate(local):
        if n and character in delimiters:
            return f"{local[:n]}@{domain}" if domain else local[:n]
    return address_key


def in_header(values: Sequence[str]) -> list[str]:
    """Return every address key that a reader could take for the author in these header values, in order, each once.

    Deliberately wide: mail clients disagree about malformed fields, so an address counts when any reading finds it: by
    the grammar, as any word with an '@', or in an encoded word.
    """
    if len(values) == 1 and (plain := PLAIN.match(values[0])):
        return [(plain[1] or plain[2]).lower()]
    found: dict[str, None] = {}
    for value in values:
        for address in addresses(value[:MAX_PARSED]):
            found[key(address)] = None
    for value in values:
        for text in (value, decoded(value)) if "=?" in value else (value,):
            words = [word for word in _WORD.findall(text) if "@" in word.strip("@")]
            if len(words) > MOST_AUTHORS:  # a reader shows those at the beginning, or those at the end
                words = words[: MOST_AUTHORS // 2] + words[-MOST_AUTHORS // 2 :]
            found.update(dict.fromkeys(map(key, words)))
    return list(found)


def only(values: Sequence[str], found: Sequence[str]) -> str | None:
    """Return the key of the one author when the field is beyond doubt (one field, one reading, one address), else None.

    `found` is the result of `in_header` for `values`. A decision to let mail through needs this; a decision to keep
    mail out uses every author in `found`.
    """
    return found[0] if len(values) == len(found) == 1 and len(values[0]) <= MAX_PARSED else None


def sole_author(values: Sequence[str]) -> str | None:
    """Return the one author's key when all readers agree about it, else None.

    An address in a quoted name is a name for every reader; one in a comment is not.
    """
    if len(values) != 1 or len(values[0]) > MAX_PARSED:
        return None
    strict = [key(address) for address in addresses(values[0])]
    if len(strict) != 1 or not split(strict[0])[1]:
        return None
    wide = in_header([_QUOTED_NAME.sub('""', values[0])])
    return strict[0] if wide == strict else None
