"""Runs a page of the docs as its reader would: one shell from top to bottom, and what is printed is what the page says.

- ```console blocks hold commands (`$ …`, going on with `> …`) and what they print.
- Other blocks whose first line is `# FILE` are files, written as they stand; a message and a script without that line.
- `…` stands for any text, alone on a line for any lines. Ids, times and how long something took differ; an id must
  differ in the same way everywhere, and a later command uses the one that was printed. Ports and folders are ours.
- A command ends with 0 unless the page shows an error of ours or a server's refusal.
- What shows something is asked again until it shows it: mail is through in its own time.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sendswitch.bench.peers import free_port

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r"# (?P<name>[\w./-]+\.\w+)\n")
ID = re.compile(r"\b3[0-9a-hjkmnp-tv-z]{12}\b")
# What differs from run to run, as it stands in an escaped line, and what any of it looks like.
VARIES = [
    (
        re.compile(r"\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d:\d\d(?:\\\.\d+Z)?)?"),
        r"\d{4}-\d\d-\d\d(?:[ T][\d:]{8}(?:\.\d+Z)?)?",
    ),
    (re.compile(r"\d+(?:\\\.\d+)? ?ms\b"), r"\d+(?:\.\d+)? ?ms"),
    (re.compile(r"\d+(?:\\\.\d+)? MiB\b"), r"\d+(?:\.\d+)? MiB"),
    # Each release of Rspamd has rules and weights of its own.
    (
        re.compile(r"no action, score \S+ of 15 by \S+ .*?\\\.$"),
        r"(?:no action|greylist), score [\d.]+ of 15 by [A-Z_]+ .*\.",
    ),
    (re.compile(r"with the score 3\\\.4,"), r"with the score [\d.]+,"),
]
# Commands that only show something, which may take a moment to be there.
SHOWS = re.compile(
    r"sendswitch (message (list|explain|timeline)|\w+ list|node (status|ready)|pipeline compare)|ls |cat |curl "
)
SOON = 20.0
# What a command prints that ends with another status than 0, and only such a one.
REFUSED = re.compile(r"sendswitch: |<\*\* ")


@dataclass
class Command:
    """One command of a page, and the lines it prints."""

    line: str
    expected: list[str] = field(default_factory=list)


def parse(page: str) -> list[Command | tuple[str, str]]:
    """Commands and files (name, text) in the order of the page."""
    found: list[Command | tuple[str, str]] = []
    for kind, body in FENCE.findall(page):
        if kind == "console":
            for line in body.splitlines():
                if line.startswith("$ "):
                    found.append(Command(line[2:]))
                    continue
                last = found[-1]
                assert isinstance(last, Command), line
                if line.startswith("> ") or line == ">":
                    last.line += f"\n{line[2:]}"
                else:
                    last.expected.append(line)
        elif (name := FILE.match(body)) is not None:
            found.append((name["name"], body[name.end() :] if name["name"].endswith((".eml", ".sh")) else body))
    return found


class Reader:
    """Somebody with a shell who does what a page says. `known` maps what pages write to what is so here."""

    def __init__(
        self, folder: Path, known: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ports = {port: str(free_port()) for port in ("8025", "8587", "10025", "60666")}
        self._known = {f":{port}": f":{here}" for port, here in ports.items()} | dict(known or {})
        self._folder, self._ids, self._status = folder, dict[str, str](), 0
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"PATH": path, "LOGNAME": "admin", "HOME": str(folder), "COLUMNS": "160", "PS1": "", "TERM": "dumb"}
        # What is printed goes to a terminal, as the reader's does, and pages show.
        ours, theirs = pty.openpty()
        settings = termios.tcgetattr(theirs)
        settings[1] &= ~termios.OPOST  # line ends stay as they are
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
        self._shell = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=theirs,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={k: v for k, v in os.environ.items() if not k.startswith("SENDSWITCH")} | own | dict(env or {}),
            text=True,
            start_new_session=True,
        )
        os.close(theirs)
        self._printed = open(ours, encoding="utf-8", errors="replace", newline="\n")  # noqa: SIM115
        self._say('ls() { command ls -1 "$@"; }')
        self.transcript: list[tuple[str, list[str]]] = []

    def follow(self, page: str) -> None:
        """Do everything the page says. Raises AssertionError where it is not as the page says."""
        for step in parse(page):
            if isinstance(step, Command):
                self._command(step)
            else:
                name, text = step
                (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self._folder / name).write_text(self._here(text))

    def _command(self, command: Command) -> None:
        end = time.monotonic() + SOON
        while True:
            said = self._say(self._here(command.line))
            ids = dict(self._ids)
            problem = compare(command.expected, said, ids)
            if not problem and (self._status == 0) is any(REFUSED.match(line) for line in command.expected):
                problem = f"it ended with {self._status}"
            if not problem or not SHOWS.match(command.line) or time.monotonic() > end:
                break
            time.sleep(0.2)
        self.transcript.append((command.line, said))
        printed = "\n".join(said)
        assert not problem, f"$ {command.line}\n{problem}\nIt printed:\n{printed}\n{self._log()}"
        self._ids = ids

    def _log(self) -> str:
        log = self._folder / "log"
        return log.read_text()[-1500:] if log.exists() else ""

    def _say(self, line: str) -> list[str]:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{line}\nprintf '\\n=== %s\\n' $?\n")
        self._shell.stdin.flush()
        said: list[str] = []
        for answer in self._printed:
            if answer.startswith("=== "):
                self._status = int(answer[4:])
                break
            said.append(self._there(answer.rstrip("\n")))
        return said

    def _here(self, text: str) -> str:
        return replaced(text, self._known | self._ids)

    def _there(self, text: str) -> str:
        return replaced(text, {here: page for page, here in self._known.items()})

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the shell, and end what was started in it."""
        if self._shell.poll() is None:
            self._say("kill $(jobs -p) 2>/dev/null; wait")
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait(30)
        self._printed.close()


def replaced(text: str, known: Mapping[str, str]) -> str:
    """`text` with each key of `known` as its value, all in one pass; a port that begins like another is another."""
    words = "|".join(sorted(map(re.escape, known), key=len, reverse=True))
    return re.sub(f"(?:{words})(?![0-9])", lambda found: known[found[0]], text)


def compare(expected: list[str], said: list[str], ids: dict[str, str]) -> str:
    """What is not as expected, '' when all is; learns which id stands for which."""
    wanted = [line for line in expected if line.strip()]
    got = [" ".join(line.split()) for line in said if line.strip()]
    at = 0
    anything = False
    for line in wanted:
        if line.strip() == "…":
            anything = True
            continue
        pattern = _pattern(line)
        while at < len(got):
            found = pattern.fullmatch(got[at])
            if found and _same_ids(line, found, ids):
                break
            if not anything:
                return f"expected: {line}\n     got: {got[at]}"
            at += 1
        if at == len(got):
            return f"expected: {line}\n     got: nothing more"
        at, anything = at + 1, False
    if at < len(got) and not anything:
        return f"nothing more expected, got: {got[at]}"
    return ""


def _pattern(line: str) -> re.Pattern[str]:
    text = re.escape(" ".join(line.split())).replace("\\ ", " ").replace("\\-", "-")
    text = text.replace("…", ".*")
    for form, any_of_it in VARIES:
        text = form.sub(lambda _, what=any_of_it: what, text)  # type: ignore[misc] # the default is bound here
    return re.compile(ID.sub("([0-9a-z]{13})", text))


def _same_ids(line: str, found: re.Match[str], ids: dict[str, str]) -> bool:
    named = ID.findall(" ".join(line.split()))
    learnt = dict(ids)
    if any(learnt.setdefault(page, here) != here for page, here in zip(named, found.groups(), strict=True)):
        return False
    ids.update(learnt)
    return True
