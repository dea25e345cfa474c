"""Notifications to systemd: a node or a worker is ready, alive, or stopping (sd_notify(3), Type=notify)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Protocol

# Seconds between two signs of life of a node that another process of ours started.
BEAT = 2.0


class Supervising(Protocol):
    """The program that started a process and watches it."""

    def tell(self, state: str) -> None:
        """Tell a state such as `READY=1`."""

    async def watch(self) -> None:
        """Give signs of life until cancelled."""


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


class OverPipe:
    """The process that started this node as one of several (`bootstrap.node_processes`): lines go through a pipe."""

    def __init__(self, pipe: int) -> None:
        os.set_inheritable(pipe, False)
        os.set_blocking(pipe, False)
        self._pipe = pipe

    def tell(self, state: str) -> None:
        """Send a state. One that does not read is no reason to stop."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, state.encode() + b"\n")

    async def watch(self) -> None:
        """Say that the event loop lives, until cancelled."""
        while True:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(BEAT)
