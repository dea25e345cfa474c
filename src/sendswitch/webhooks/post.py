"""One request to a webhook, signed when it is made."""

from __future__ import annotations

import asyncio

from sendswitch.errors import Refused
from sendswitch.processors.services.endpoint import signed
from sendswitch.processors.services.http import asked, checked_url, new_client, retry_after
from sendswitch.processors.services.reachable import Reach
from sendswitch.webhooks.outbox import Event

# Seconds for a request; bytes of an answer.
LIMIT, LONGEST = 20.0, 64 * 1024


class Post:
    """The HTTP client for receivers. It keeps connections."""

    def __init__(self, reach: Reach) -> None:
        self._reach, self._client = reach, new_client()

    async def ask(self, event: Event) -> tuple[int, str, float]:
        """Return the status (0 for none), the receiver's words, and the delay it asks for (seconds)."""
        try:
            async with asyncio.timeout(LIMIT):
                url, name = await checked_url(event.url, self._reach)
                head = signed(
                    event.secrets,
                    event.id,
                    event.body,
                    form=event.form,
                    attempt=event.attempts + 1,
                    message=event.message,
                    host=name,
                )
                answer = await asked(
                    self._client, "POST", url, headers=head, content=event.body.encode(), limit=LONGEST, name=name
                )
        except TimeoutError:
            return 0, f"no answer within {LIMIT:g} s", 0.0
        except (OSError, ValueError, Refused) as error:
            return 0, str(error), 0.0
        return answer.status, answer.text, retry_after(answer)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()
