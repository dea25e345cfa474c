"""Processors that packages bring: each step of one runs in a process of its own (see `child`), so that code which
blocks, crashes or allocates without end costs its own mail only.

Built-in processors run in the worker itself. In a replay a package's service is asked again: its answer stays in its
process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.processors import base
from sendswitch.processors.child import MEMORY, Hosting


class Hosted:
    """Stands for a package's processor; its options are checked where it runs."""

    Options: ClassVar[type[base.Options]] = base.Options

    def __init__(self, name: str, version: str, options: Mapping[str, Any]) -> None:
        self.version = version
        self._hosting = Hosting(name, ("processor", name, orjson.dumps(options).decode()), MEMORY, lambda: version)

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """What the package's processor answers. Raises UserCodeError with the line that failed."""
        return await self._hosting.ask(mail, context)

    async def close(self) -> None:
        """End the process once the messages it has are done."""
        await self._hosting.close()
