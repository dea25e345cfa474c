"""The message as it leaves: a trace field on top, tags, header edits. The body keeps every byte but those that a
verdict cuts out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache

from sendswitch.mail.content import Content, Edited, Spliced
from sendswitch.mail.edits import AddHeader, Cut, Edit, MarkSubject
from sendswitch.mail.envelope import Client
from sendswitch.mail.headers import closed, edit, hops, without_own
from sendswitch.mail.hops import FIELD as FORWARDED
from sendswitch.mail.verdict import Verdict

_SAFE = re.compile(r"[A-Za-z0-9.:_\[\]-]{0,255}\Z")
_UNSAFE = re.compile(r"[^A-Za-z0-9.:_\[\]-]+")

TAGS = "X-SendSwitch-Tags"
TRACE = "X-SendSwitch-Trace"
# A message that comes by here this often is going round in circles (a re-injection service that filters
# again); once or twice happens to honest forwards.
MAX_OWN_TRACES = 5


@dataclass(frozen=True, slots=True)
class Composer:
    """The composer of outgoing messages. `host` is our name in trace fields; `marks` maps a tag to a prefix of the
    Subject.
    """

    host: str
    marks: dict[str, str]

    def compose(
        self,
        content: Content,
        *,
        message: str,
        client: Client,
        received: float,
        verdict: Verdict | None = None,
        utf8: bool = False,
    ) -> Content:
        """Return the content with our fields. Fields of a stranger under our names are removed, so that ours can be
        trusted.

        Text beyond ASCII is encoded unless the message is one for SMTPUTF8 (`utf8`).
        """
        head = content.head()
        changed = without_own(closed(head), TRACE, FORWARDED)
        edits = self._edits(verdict)
        trace = self._trace(message, client, received)
        if edits:
            changed = edit(changed, [one for one in edits if not isinstance(one, Cut)], utf8=utf8)
            if cuts := [one for one in edits if isinstance(one, Cut)]:
                content = Spliced(content, _in_order(cuts, len(head), content.size))
        elif changed is head:
            return Edited(content, trace)
        return Edited(content, trace + changed, len(head))

    def _edits(self, verdict: Verdict | None) -> tuple[Edit, ...]:
        edits: tuple[Edit, ...] = ()
        if verdict is not None:
            edits = verdict.edits
            if verdict.tags:
                edits += (AddHeader(TAGS, ", ".join(verdict.tags)),)
                edits += tuple(MarkSubject(self.marks[tag]) for tag in verdict.tags if tag in self.marks)
        return edits

    def _trace(self, message: str, client: Client, received: float) -> bytes:
        protocol, came = _plain(client.protocol) or "ESMTP", ""
        if client.address or client.helo:
            helo, name = _plain(client.helo) or "unknown", _plain(client.name) or "unknown"
            address = _plain(client.address.partition("%")[0]) or "unknown"
            address = f"IPv6:{address}" if ":" in address else address
            came = f"from {helo} ({name} [{address}])\r\n\t"
        return (
            f"{TRACE}: {self.host} {message}\r\n"
            f"Received: {came}by {self.host} (SendSwitch) with {protocol} id {message};\r\n"
            f"\t{_date(int(received))}\r\n"
        ).encode()


def _in_order(cuts: Sequence[Cut], first: int, size: int) -> tuple[tuple[int, int, bytes], ...]:
    """Return the cuts behind the header in order. Cuts that overlap become one, with the text of the first."""
    chosen: list[tuple[int, int, bytes]] = []
    for cut in sorted(cuts, key=lambda cut: cut.start):
        if not first <= cut.start < cut.end <= size:
            continue
        if chosen and cut.start < chosen[-1][1]:
            start, end, text = chosen[-1]
            chosen[-1] = (start, max(end, cut.end), text)
        else:
            chosen.append((cut.start, cut.end, _lines(cut.text)))
    return tuple(chosen)


def _lines(text: str) -> bytes:
    return re.sub(r"\r\n|\r|\n", "\r\n", text).encode("utf-8", "replace")


@lru_cache(maxsize=64)
def _date(second: int) -> str:
    """Return a second as a date (RFC 5322 section 3.3), made once for all messages of that second."""
    return format_datetime(datetime.fromtimestamp(second, UTC))


def _plain(text: str) -> str:
    """Return `text` for a trace field: nothing that could end a comment, a line or a field."""
    return text if _SAFE.match(text) else _UNSAFE.sub("", text)[:255]


def loops(head: bytes, host: str, max_hops: int) -> str:
    """Return why this message is in a loop, '' when it is not."""
    count = hops(head)
    if count > max_hops:
        return f"{count} Received fields, more than max_hops = {max_hops}"
    lower = head.lower()
    own = lower.count(f"{TRACE}: {host} ".lower().encode())
    return f"{own} {TRACE} fields of our own" if own >= MAX_OWN_TRACES else ""
