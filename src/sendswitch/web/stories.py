"""Two pages that need no login: the messages of the journal, and the story of each. For `demo` only.

They answer on a loopback name, so that a page of another site cannot read them through a name of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape

from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from sendswitch.db import journal
from sendswitch.journal import story
from sendswitch.journal.events import Event, fold
from sendswitch.mail.ids import from_text, to_text

# Deliveries on the list, and seconds after which a browser loads it again.
MOST, AGAIN = 100, 5
LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">{head}
<title>{title}</title><style>
:root {{ color-scheme: light dark; --line: #8884 }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line) }}
td {{ overflow-wrap: anywhere }} .short {{ white-space: nowrap; overflow-wrap: normal }}
p, td {{ unicode-bidi: plaintext }} .state {{ font-weight: 600 }}
@media (max-width: 40rem) {{ .wide {{ display: none }} }}
</style></head><body>{body}</body></html>
"""


def make_routes(engine: Engine) -> list[Route]:
    """Return the routes of both pages. They read the database in threads."""

    def messages(request: Request) -> Response:
        return _page("SendSwitch: messages", _list(engine), head=f'<meta http-equiv="refresh" content="{AGAIN}">')

    def message(request: Request) -> Response:
        text = request.path_params["id"]
        try:
            found = journal.story(engine, from_text(text)).events
        except ValueError:
            found = []
        if not found:
            return _page("SendSwitch: no such message", f"<h1>No message has the id {escape(text)}</h1>{_BACK}", 404)
        return _page(f"SendSwitch: {text}", _story(text, found))

    return [Route("/", _on_loopback(messages)), Route("/messages/{id}", _on_loopback(message))]


_BACK = '<p><a href="/">All messages</a></p>'


def _on_loopback(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
    def checked(request: Request) -> Response:
        # The field itself: the URL that is made of it falls back to our address when a name has odd characters.
        if not LOOPBACK.fullmatch(request.headers.get("host", "")):
            return HTMLResponse("Open this page as http://127.0.0.1 or http://localhost.\n", 421, HEADERS)
        return answer(request)

    return checked


def _page(title: str, body: str, status: int = 200, head: str = "") -> Response:
    return HTMLResponse(_PAGE.format(title=escape(title), body=body, head=head), status, HEADERS)


def _list(engine: Engine) -> str:
    rows = "".join(
        f'<tr><td class="short wide">{_time(found.message["received"])}</td>'
        f"<td>{escape(found.message['sender'] or '<>')}</td><td>{escape(found.delivery['recipient'])}</td>"
        f'<td><a href="/messages/{to_text(found.message["id"])}">'
        f"{escape(found.message['subject'] or '(no subject)')}</a></td>"
        f'<td class="short state">{escape(found.delivery["state"])}</td>'
        f'<td class="wide">{escape(found.delivery["reason"] or found.delivery["reply"])}</td></tr>'
        for found in journal.find(engine, (), limit=MOST)
    )
    if not rows:
        return "<h1>Messages</h1><p>No message has come yet. Send one to the SMTP address that the terminal shows.</p>"
    names = ("Received", "From", "To", "Subject", "State", "Why")
    head = "".join(f"<th{' class=wide' if name in ('Received', 'Why') else ''}>{name}</th>" for name in names)
    return f"<h1>Messages</h1><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _story(text: str, events: Sequence[Event]) -> str:
    states = {n: str(row["state"]) for (_, n), row in fold(events).deliveries.items()}
    parts = [f"<h1>Message {escape(text)}</h1>{_BACK}"]
    for n, state in sorted(states.items()):
        told = story.explain(events, n, state)
        sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in told.sentences)
        parts.append(f"<h2>{escape(told.recipient)}: {escape(told.state)}</h2><ol>{sentences}</ol>")
    lines = "".join(
        f'<tr><td class="short">{_time(line.at)}</td><td>{escape(line.recipient)}</td><td>{escape(line.text)}</td></tr>'
        for line in story.timeline(events)
    )
    return "".join(parts) + f"<h2>Timeline</h2><table><tbody>{lines}</tbody></table>"


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
