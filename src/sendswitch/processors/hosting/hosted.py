"""Processors from packages: each step runs in a process of its own (see `child`), so that code that blocks, crashes or
allocates without end costs its own mail only. The process starts again when a file of the package changes, so that an
edit counts from the next message on.

Built-in processors run in the worker itself. A replay asks a package's service again, because its answer stays in its
process.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.processors import base
from sendswitch.processors.hosting.child import MEMORY, Code, Hosting
from sendswitch.processors.hosting.sandbox import for_python

# Files of a package that are watched.
MOST_FILES = 200


def _files(module: str) -> list[Path]:
    """Return the files of a package, found without running any of it."""
    spec = find_spec(module.partition(".")[0])
    if spec is None or spec.origin is None:
        return []
    origin = Path(spec.origin)
    return sorted(origin.parent.rglob("*.py"))[:MOST_FILES] if spec.submodule_search_locations else [origin]


def _places(module: str) -> tuple[Path, ...]:
    """Return where a package is, and what says that it is installed, outside of Python's own places."""
    spec = find_spec(module.partition(".")[0])
    if spec is None or spec.origin is None:
        return ()
    origin = Path(spec.origin)
    place = origin.parent if spec.submodule_search_locations else origin
    known = (*for_python(), Path("/usr"))
    if any(place.is_relative_to(path) for path in known):
        return ()
    return (place, *sorted(place.parent.glob("*.dist-info"))[:MOST_FILES])


class Hosted:
    """Stands for a package's processor; its options are checked where it runs."""

    Options: ClassVar[type[base.Options]] = base.Options

    def __init__(self, name: str, module: str, version: str, options: Mapping[str, Any]) -> None:
        self.version, self._files = version, _files(module)
        self._hosting = Hosting(name, Code("processor", name, options, lambda: _places(module)), MEMORY, self._stamp)

    def setup(self, services: base.Services) -> None:
        """Take what the site wants for user code."""
        self._hosting.sandbox = services.sandbox

    def _stamp(self) -> tuple[int, ...]:
        """Return when its files were changed."""
        return tuple(file.stat().st_mtime_ns for file in self._files if file.exists())

    async def process(self, mail: Mail, context: base.Context) -> Verdict | None:
        """Return the answer of the package's processor. Raises UserCodeError with the line that failed."""
        return await self._hosting.ask(mail, context)

    async def close(self) -> None:
        """End the process once the messages it has are done."""
        await self._hosting.close()
