"""A user's own `async def process(mail, context)` in a file, run in a process of its own (see `child`).

The process starts with the first message, and again when the file changes. The trace records the text that the program
prints while it has a message.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from sendswitch.config.units import Size
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.processors import base
from sendswitch.processors.hosting.child import MEMORY, Code, Hosting


class PythonOptions(base.Options):
    """Options of `python`."""

    file: Path = Field(description="The file with `async def process(mail, context)`; absolute.")
    memory: Size = Field(MEMORY, ge=100_000_000, description="Most memory of its process, in bytes of address space.")

    @field_validator("file")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError(f"{value} must be an absolute path")
        if not value.is_file():
            raise ValueError(f"{value} is not a file that can be read")
        try:
            compile(value.read_bytes(), str(value), "exec")
        except (SyntaxError, ValueError, OSError) as error:
            raise ValueError(f"{value} is not valid Python: {error}") from error
        return value


class Python:
    """The step that asks the user's program."""

    Options: ClassVar[type[base.Options]] = PythonOptions

    def __init__(self, options: PythonOptions) -> None:
        self._file, self._changed, self.version = options.file, 0, ""
        self._hosting = Hosting(options.file.name, Code("file", str(options.file)), options.memory, self._stamp)

    def _stamp(self) -> int:
        """Return the time of the file's last change. Its version comes from its content."""
        changed = self._file.stat().st_mtime_ns
        if changed != self._changed:
            self._changed = changed
            self.version = hashlib.sha256(self._file.read_bytes()).hexdigest()[:12]
        return changed

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return the program's answer. Raises UserCodeError with the line that failed."""
        return await self._hosting.ask(mail, context)

    async def close(self) -> None:
        """End the process once the messages it has are done."""
        await self._hosting.close()
