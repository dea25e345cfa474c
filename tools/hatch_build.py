"""Puts compiled modules into the wheel: those of the folder in SENDSWITCH_COMPILED (tools/compile.py), or none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledModules(BuildHookInterface):  # type: ignore[type-arg]
    """The build hook for hatchling. The sources stay in the wheel: tracebacks show them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files of the folder. The wheel is then for this interpreter and machine alone."""
        folder = os.environ.get("SENDSWITCH_COMPILED", "")
        if not folder or version == "editable":
            return
        for path in sorted(Path(folder).rglob("*.so")):
            build_data["force_include"][str(path)] = str(path.relative_to(folder))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
