"""Changes of Postfix's master.cf with postconf(1), and their way back.

The values before the first change are kept in the data folder, so that `remove` leaves Postfix as it was. Only our own
services and the parameters that we set are ever changed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from sendswitch import durable
from sendswitch.errors import NotFound, Refused, Temporary

STATE = "postfix.json"


@dataclass(frozen=True, slots=True)
class Service:
    """A line of master.cf with its parameters: `name` is like `smtp/inet`, `line` the whole line."""

    name: str
    line: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Services of our own, and parameters of services that are there."""

    services: tuple[Service, ...]
    parameters: dict[str, dict[str, str]]


class Postconf:
    """One Postfix: its configuration folder, None for the system's."""

    def __init__(self, folder: Path | None, data: Path) -> None:
        if shutil.which("postconf") is None:
            raise NotFound("postconf is not installed here; `sendswitch postfix print` shows what to write elsewhere")
        self._state = data / STATE
        self._where = ["-c", str(folder)] if folder else []
        self.folder = self._run("-h", "config_directory").strip()

    def commands(self, wanted: Wanted) -> list[list[str]]:
        """Return the commands of `apply` in order. Raises NotFound when master.cf lacks a service that has to be
        changed.
        """
        for name in wanted.parameters:
            if not self._run("-M", name).strip():
                raise NotFound(f"master.cf has no service {name}; name yours with --service")
        lines = []
        for service in wanted.services:
            lines.append(["-M", "-e", f"{service.name}={service.line}"])
            lines += [["-P", "-e", f"{service.name}/{key}={value}"] for key, value in service.parameters.items()]
        for name, parameters in wanted.parameters.items():
            lines += [["-P", "-e", f"{name}/{key}={value}"] for key, value in parameters.items()]
        return [["postconf", *self._where, *line] for line in lines]

    def modes(self) -> dict[str, str]:
        """Return the services that were changed by `apply`, and their modes.

        Raises Refused when it was another Postfix.
        """
        return dict(self._known()["modes"])

    def apply(self, wanted: Wanted, modes: Mapping[str, str]) -> None:
        """Change master.cf, and keep the values before the first change. `modes` are those of the services."""
        known, commands = self._known(), self.commands(wanted)
        for name, parameters in wanted.parameters.items():
            before = known["parameters"].setdefault(name, {})
            before |= {key: self.parameter(name, key) for key in parameters if key not in before}
        for service in wanted.services:
            # With its parameters, as postconf prints a service; '' where there was none.
            known["services"].setdefault(service.name, self._run("-M", service.name).strip())
        self._state.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        durable.replace(self._state, [orjson.dumps(known | {"modes": dict(modes)})])
        for command in commands:
            _check(command)

    def before(self, service: str, key: str) -> str | None:
        """Return the value of a service's parameter before `apply`, None where the service did not set it."""
        known = self._known()["parameters"].get(service, {})
        return known[key] if key in known else self.parameter(service, key)

    def ours(self, service: str) -> bool:
        """Return whether `apply` has written this service."""
        return service in self._known()["services"]

    def _known(self) -> dict[str, Any]:
        if not self._state.exists():
            return {"folder": self.folder, "modes": {}, "services": {}, "parameters": {}}
        state: dict[str, Any] = {"modes": {}} | orjson.loads(self._state.read_bytes())
        if state["folder"] != self.folder:
            raise Refused(f"SendSwitch was put into the Postfix of {state['folder']}, not of {self.folder}")
        return state

    def remove(self) -> list[list[str]]:
        """Restore the values before `apply`. Return the commands. Raises NotFound when nothing was changed, and Refused
        when another Postfix was changed.
        """
        if not self._state.exists():
            raise NotFound("this node has not been put into Postfix with `postfix apply`; edit master.cf by hand")
        state, lines = self._known(), []
        for name, parameters in state["parameters"].items():
            for key, value in parameters.items():
                setting = f"{name}/{key}"
                lines.append(["-P", "-X", setting] if value is None else ["-P", "-e", f"{setting}={value}"])
        for name, line in state["services"].items():
            lines.append(["-M", "-e", f"{name}={line}"] if line else ["-M", "-X", name])
        commands = [["postconf", *self._where, *line] for line in lines]
        for command in commands:
            _check(command)
        self._state.unlink()
        return commands

    def reload(self) -> None:
        """Make a running Postfix read its configuration. Raises Temporary with its words."""
        _check(["postfix", *self._where, "reload"])

    def effective(self, service: str, key: str) -> str:
        """Return the value that counts for a service: its own, else that of main.cf."""
        own = self.parameter(service, key)
        return self._run("-x", "-h", key).strip() if own is None else own

    def listening(self) -> dict[str, str]:
        """Return the lines of the services that listen on the network, by name (`smtp/inet`)."""
        lines = [line.split(None, 2) for line in self._run("-M", "*/inet").splitlines()]
        return {f"{name}/{kind}": " ".join((name, kind, rest)) for name, kind, rest in lines}

    def parameter(self, service: str, key: str) -> str | None:
        """Return the value that a service itself sets for a parameter, None where it sets none."""
        found = self._run("-P", f"{service}/{key}").strip()
        return found.partition("=")[2].strip() if found else None

    def _run(self, *arguments: str) -> str:
        line = ["postconf", *self._where, *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=False).stdout


def port_of(service: str) -> str:
    """Return the port, or the name of one, in the name of a service that listens on the network."""
    return service.partition("/")[0].rpartition(":")[2]


def _check(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Temporary(f"{' '.join(command)} failed: {done.stderr.strip()}")
