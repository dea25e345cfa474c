"""Notifications to systemd: a node or a worker is ready, alive, or stopping (sd_notify(3), Type=notify)."""

from __future__ import annotations

import asyncio
import contextlib
import socket


class Supervisor:
    """The notification socket of systemd; without an address nothing is sent.

    `address` is a path, or a name in the abstract namespace behind `@`. `watchdog` is the seconds after which systemd
    kills a process that is silent, 0 for never.
    """

    def __init__(self, address: str, watchdog: float) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog = watchdog

    def tell(self, state: str) -> None:
        """Send a state such as `READY=1`. A systemd that does not listen is no reason to stop."""
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line,
        ):
            line.setblocking(False)
            line.sendto(state.encode(), self._address)

    async def watch(self) -> None:
        """Say that the event loop lives, twice in each period of the watchdog, until cancelled."""
        while self._watchdog:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / 2)
