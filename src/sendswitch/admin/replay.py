"""Replay: pipelines are asked again about recorded mail, without effect.

It runs in the process that calls it, not in the node: the process that has the mail runs no pipeline on request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, closing
from heapq import merge

from sendswitch.accounts.users import all_pipelines
from sendswitch.admin.base import Actor, Installation
from sendswitch.config.processes import folders_in
from sendswitch.journal.compare import Difference, Tally, action, differing, told
from sendswitch.mail.verdict import PipelineResult
from sendswitch.pipeline import recording
from sendswitch.pipeline.recording import Case
from sendswitch.pipeline.trial import Trial, replay_each
from sendswitch.routing import Route, Routes
from sendswitch.spool import admin
from sendswitch.spool import recorded_mail as recorded

MakeTrial = Callable[[str, int, str], Trial]
"""Makes a trial of an owner, a version and the pipeline's text. Raises InvalidConfiguration, ValueError."""

OnMessage = Callable[[int, int, int], bool]
"""Hears the message that is in the tally now, how many messages were read, and of how many. Returns False to stop."""


class Replay:
    """One replay: which recorded mail, and which pipelines.

    `own` is the pipeline to ask; without it each user's live one is asked. `user` is an address or @domain, '' for all.
    `found` are the deliveries that a search found, None without one.
    """

    def __init__(
        self,
        installation: Installation,
        actor: Actor,
        *,
        make: MakeTrial,
        own: Trial | None = None,
        user: str = "",
        found: Set[tuple[int, int]] | None = None,
    ) -> None:
        self._folders = folders_in(installation.config.node.data)
        self._make, self._own, self._found = make, own, found
        self._user = _only(user, installation) if user else None
        self._stored = {} if own else {one.owner: one for one in all_pipelines(installation.database())}
        self._trials: dict[str, Trial] = {}
        self._read = 0
        self.skipped = 0  # deliveries of users who are gone

    async def run(self, tally: Tally, *, after: int, before: int, on_message: OnMessage) -> bool:
        """Ask about the messages between two ids, and count the differences. Return False when it was stopped."""
        last = after
        with ExitStack() as stack:
            spools = [stack.enter_context(closing(admin.open_files(folder))) for folder in self._folders]
            total = sum(recorded.count(spool, after, before) for spool in spools)
            each = zip(spools, self._folders, strict=True)
            recordings = [self._counted(recording.cases(spool, folder, after, before)) for spool, folder in each]

            def pairs() -> Iterator[tuple[Case, Trial]]:
                for cases in merge(*recordings, key=lambda cases: cases[0].message):
                    for case in cases:
                        if (trial := self._trial(case)) is not None:
                            yield case, trial

            try:
                async for case, answer in replay_each(pairs()):
                    if case.message != last and last != after and not on_message(last, self._read, total):
                        return False
                    last = case.message
                    tally.add(_difference(case, answer), action(case.verdict), action(answer))
            finally:
                for trial in (*self._trials.values(), *([self._own] if self._own else ())):
                    await trial.close()
        return True

    def _counted(self, recordings: Iterator[list[Case]]) -> Iterator[list[Case]]:
        """Yield the cases of each message that has any, and count all."""
        for cases in recordings:
            self._read += 1
            if cases:
                yield cases

    def _trial(self, case: Case) -> Trial | None:
        """Return the trial for a case; None for a case that is not asked about."""
        if self._found is not None and (case.message, case.n) not in self._found:
            return None
        if self._user is not None and self._user.find(case.recipient.address) is None:
            return None
        if self._own is not None:
            return self._own if case.verdict is not None or self._user is not None else None
        owner = case.verdict.pipeline if case.verdict else ""
        if not owner:
            return None
        if owner not in self._trials:
            stored = self._stored.get(owner)
            if stored is None:
                self.skipped += 1
                return None
            self._trials[owner] = self._make(owner, stored.version, stored.text)
        return self._trials[owner]


def _only(user: str, installation: Installation) -> Routes:
    """Return routes that find only this user's addresses."""
    routing = installation.config.routing
    route = Route(user, 0, 1.0, "pass", "bounce")
    return Routes([route], delimiters=routing.recipient_delimiter, origin=routing.origin)


def _difference(case: Case, answer: PipelineResult) -> Difference | None:
    fields = differing(case.verdict, answer)
    if not fields:
        return None
    return Difference(
        id=case.id,
        to=case.recipient.address,
        sender=case.envelope.sender or "<>",
        subject=case.subject,
        was=told(case.verdict),
        now=told(answer),
        fields=fields,
        why=answer.reason,
        step=answer.trace[-1].processor if answer.trace else "",
    )
