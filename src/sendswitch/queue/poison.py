"""Poison: mail that may have killed the node or a worker. Its deliveries are known, offered one at a time, and put in
quarantine when one was alone three times.

Each delivery that a worker gets is noted in a file, and again when it ends. The kernel has the note when the process is
killed; it need not be on the disk, because mail kills a process, not the machine. After a kill of the node, a delivery
that began and did not end is suspect. It broke something when the node is killed again, when it was alone with a worker
that ended, or when its process had to be killed at a limit.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

# How often a delivery may break what runs its pipeline before it is put into quarantine.
MOST = 3
# Bytes of the file above which it is written anew.
LONGEST = 1_000_000

# Seconds after which the end of a pipeline is written at the latest.
LATEST = 0.05

Key = tuple[int, int]
Write = Callable[[Mapping[Key, int]], Awaitable[None]]
"""Makes counts of deliveries durable; a count below zero means that the delivery is no suspect any more."""


async def _nowhere(counts: Mapping[Key, int]) -> None:
    return None


@dataclass(slots=True)
class Suspects:
    """The suspects of one node.

    `counts` says how often each broke something; `digests` are those of content whose message is not in the spool,
    which was asked about while its sender waited. `turn` is held while one is asked about, so that they are offered one
    at a time.
    """

    counts: dict[Key, int] = field(default_factory=dict)
    digests: set[bytes] = field(default_factory=set)
    write: Write = _nowhere
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def poison(self, key: Key) -> bool:
        """Return whether a delivery broke its pipeline too often to be asked again."""
        return self.counts.get(key, 0) >= MOST

    async def broke(self, key: Key) -> None:
        """Count a crash of this delivery's pipeline; durable on return. Raises SpoolUnavailable."""
        count = self.counts.get(key, 0) + 1
        await self.write({key: count})
        self.counts[key] = count

    async def mark(self, key: Key) -> None:
        """Remember a delivery that a worker of the user's own had without a verdict; durable on return.

        Raises SpoolUnavailable.
        """
        if key not in self.counts:
            await self.write({key: 0})
            self.counts[key] = 0

    async def clear(self, key: Key) -> None:
        """Forget a suspect that came to a verdict. Raises SpoolUnavailable."""
        await self.write({key: -1})
        self.counts.pop(key, None)


class Notes:
    """The file of the deliveries that workers have (`broker.embedded.Hands`). It begins empty, because `left_in_hand`
    has read it before.

    A begin is written at once. Ends are written together: with the next begin, or after LATEST seconds. After a kill, a
    delivery that ended in these seconds may be a suspect too.
    """

    def __init__(self, path: Path) -> None:
        self._running: dict[Key, bytes] = {}
        self._ended: list[str] = []
        self._later: asyncio.TimerHandle | None = None
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = 0

    def begin(self, message: int, n: int, digest: bytes) -> None:
        """Note that a pipeline begins."""
        self._running[message, n] = digest
        self._write(_begun(message, n, digest))

    def end(self, message: int, n: int) -> None:
        """Note that a pipeline ended."""
        self._running.pop((message, n), None)
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(LATEST, self._write_ends)
        self._ended.append(f"-{message}.{n}.\n")

    def _write_ends(self) -> None:
        self._later = None
        self._write()

    def _write(self, begun: str = "") -> None:
        text = "".join(self._ended) + begun
        self._ended.clear()
        # A full disk must not stop mail: then nobody is suspected.
        with suppress(OSError):
            if self._size > LONGEST:
                os.ftruncate(self._file, 0)
                self._size, text = 0, "".join(_begun(*key, digest) for key, digest in self._running.items())
            if text:
                self._size += os.write(self._file, text.encode())

    def close(self) -> None:
        """Close the file; deliveries in it count at the next start."""
        if self._later is not None:
            self._later.cancel()
        self._write()
        os.close(self._file)


def _begun(message: int, n: int, digest: bytes) -> str:
    return f"+{message}.{n}.{digest.hex()}\n"


def left_in_hand(path: Path) -> dict[Key, bytes]:
    """Return the deliveries in hand when the last process was killed, with the digests of their contents."""
    found: dict[Key, bytes] = {}
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return found
    for line in lines:
        with suppress(ValueError):  # the last line may be cut
            message, n, digest = line[1:].split(".")
            if line[0] == "+":
                found[int(message), int(n)] = bytes.fromhex(digest)
            else:
                found.pop((int(message), int(n)), None)
    return found
