"""The settings by which mail is decided, sent and tried again: one frozen object, replaced as a whole.

Each part reads `Current.settings` when it begins something. Work under way keeps the settings that it began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sendswitch.delivery.backoff import Backoff
from sendswitch.delivery.base import Courier
from sendswitch.delivery.compose import Composer
from sendswitch.mail.hops import Marks
from sendswitch.mail.srs import Srs
from sendswitch.queue.bounce import Reporter
from sendswitch.queue.limiter import Limiter
from sendswitch.queue.policy import Policy
from sendswitch.routing import Routes
from sendswitch.spool.records import Delivery, Message
from sendswitch.spool.rules import AdminRule, first_for


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """The settings of the queue, from configuration, users and administrators.

    `recipients` is the largest number in one SMTP transaction. `sending` limits the messages that are composed, sent
    and recorded at once: no more are in memory, and a crash can repeat no more. A new courier comes with a new limiter,
    so that mail that waits for a broken next hop goes to its successor. `marks` are put on forwarded mail; `srs`
    rewrites the senders of mail forwarded to other domains. `routes` lead to users' pipelines, and `rules` are
    administrators' rules.
    """

    courier: Courier
    composer: Composer
    policy: Policy
    backoff: Backoff
    reporter: Reporter
    recipients: int
    sending: Limiter
    marks: Marks
    srs: Srs | None = None
    routes: Routes = field(default_factory=Routes)
    rules: Sequence[AdminRule] = ()

    def rule_for(self, message: Message, delivery: Delivery, now: float) -> AdminRule | None:
        """Return the first rule that is about a delivery."""
        return first_for(self.rules, message, delivery, now)


class Current:
    """The settings that count now. Shared by the parts of one node; changed by `swap` only."""

    __slots__ = ("settings",)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def swap(self, settings: Settings) -> None:
        """Replace all settings at once.

        A caller that changes some of them takes the others from `settings`, and does not wait in between. Otherwise it
        undoes what another caller changed meanwhile.
        """
        before, self.settings = self.settings, settings
        if settings.sending is not before.sending:
            before.sending.close()

    def use_routes(self, routes: Routes) -> None:
        """Replace the routes."""
        self.swap(replace(self.settings, routes=routes))

    def use_rules(self, rules: Sequence[AdminRule]) -> None:
        """Replace the administrators' rules."""
        self.swap(replace(self.settings, rules=rules))
