"""What commands ask of a running node over its control socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sendswitch import logs
from sendswitch.bootstrap.control import Handler
from sendswitch.clock import system_clock
from sendswitch.config.model import Config
from sendswitch.errors import NotFound, Refused
from sendswitch.smtp.trace import Trace

if TYPE_CHECKING:
    from sendswitch.bootstrap.node import Node

Facts = Mapping[str, Any]


class Steering:
    """Does what is asked; keeps what was asked for a time: another log level, dialogs written down."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._level_until: asyncio.TimerHandle | None = None
        self._trace: Trace | None = None
        self._trace_until: asyncio.TimerHandle | None = None

    def commands(self) -> dict[str, Handler]:
        """Return what may be asked, by its name."""
        return {
            "look": self._look,
            "reload": self._reload,
            "level": self._level,
            "drain": self._drain,
            "status": self._status,
            "trace": self._dialogs,
        }

    async def _look(self, asked: Facts) -> Facts:
        """Look again: spool or database changed. Who cancelled an order may rely on it when this is answered."""
        node = self._node
        node.current.swap(orders=await node.spool.orders())
        node.look()
        node.spool.written.set()
        return {}

    async def _reload(self, asked: Facts) -> Facts:
        """Read the configuration again; gives the changed keys that wait for a restart."""
        return {"restart": await self._node.reload()}

    async def _drain(self, asked: Facts) -> Facts:
        """Take no more mail, or with `on` false take it again."""
        await self._node.drain(bool(asked.get("on", True)))
        return {}

    async def _status(self, asked: Facts) -> Facts:
        """Return what the node has to do, and where it listens."""
        node = self._node
        states, oldest, events = await node.spool.figures()
        return {
            "draining": node.draining,
            "listening": node.addresses(),
            "connections": sum(listener.connections for listener in node.listeners),
            "on_the_way": states.get("accepted", 0) + states.get("decided", 0),
            "held": states.get("held", 0),
            "quarantined": states.get("quarantined", 0),
            "oldest": oldest,
            "events_waiting": events,
            "overloaded": node.overload.why,
            "configuration_refused": node.refused,
        }

    # The log level

    async def _level(self, asked: Facts) -> Facts:
        """Log at `level`, for `seconds` or until the next reload; gives what it was."""
        return {"was": self._show(str(asked.get("level")), asked.get("seconds"))}

    def _show(self, level: str, seconds: float | None) -> str:
        """Show another level, for `seconds` or until the next reload; gives the one until now."""
        if level not in logs.LEVELS:
            raise Refused(f"{level!r} is none of {', '.join(logs.LEVELS)}")
        _cancel(self._level_until)
        before = logs.set_level(level)
        logs.level_changed(was=before, now=level)
        if seconds is not None:
            configured = self._node.config.log.level
            self._level_until = asyncio.get_running_loop().call_later(seconds, self._show, configured, None)
        return before

    def log_as(self, config: Config) -> None:
        """Log as configured; what was asked for a time is over."""
        _cancel(self._level_until)
        logs.setup(config.log.format, config.log.level)

    # Dialogs

    async def _dialogs(self, asked: Facts) -> Facts:
        """Begin (`seconds`), go on with or `end` writing dialogs down; gives the lines behind `after`."""
        if "seconds" in asked:
            self._listen_in(str(asked.get("listener", "")), str(asked.get("sender", "")), float(asked["seconds"]))
        lines = self._trace.after(int(asked.get("after", 0))) if self._trace else []
        if asked.get("end"):
            self._listen_no_more()
        return {"lines": [asdict(line) for line in lines]}

    def _listen_in(self, bind: str, sender: str, seconds: float) -> None:
        node = self._node
        sections = [section for section in node.config.listener if bind in ("", section.bind)]
        if not sections:
            raise NotFound(f"no listener is bound to {bind}; `sendswitch node status` shows them")
        self._listen_no_more()
        self._trace = Trace(sender, system_clock)
        for listener in (one for section in sections for one in node.listener(section)):
            listener.listen_in(self._trace)
        # Who asked may go away without a word.
        self._trace_until = asyncio.get_running_loop().call_later(seconds, self._listen_no_more)

    def _listen_no_more(self) -> None:
        _cancel(self._trace_until)
        self._trace = None
        for listener in self._node.listeners:
            listener.listen_in(None)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
