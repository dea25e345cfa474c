"""One's own processor, from `processor new` to a running node; and packages that mean no good."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sendswitch.bench.peers import Node
from tests.e2e.next_hop import NextHop
from tests.e2e.steps import QUICK, clean, said, send, until

BIN = Path(sys.executable).parent


def run(folder: Path, *line: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"SENDSWITCH_NODE__DATA": str(folder / "data"), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def command(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, "-m", "sendswitch.cli.main", *words, check=check)


def installed(folder: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `pip install` does it, but beside the environment that the tests share."""
    line = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    run(folder, *line, "--no-build-isolation", "--target", str(site), ".")
    monkeypatch.setenv("PYTHONPATH", str(site))


def test_a_new_package_runs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "find-offers made" in command(tmp_path, "processor", "new", "find-offers").stdout
    folder = tmp_path / "find-offers"
    assert "3 passed" in run(folder, sys.executable, "-m", "pytest", "-p", "no:cacheprovider").stdout
    installed(folder, tmp_path / "site", monkeypatch)
    listed = command(tmp_path, "processor", "list").stdout
    assert "sendswitch-find-offers 0.1.0" in listed
    assert "Words that are looked for." in command(tmp_path, "processor", "show", "find-offers").stdout
    tried = command(folder, "try", "example.eml", "--to", "you@example.com", "--pipeline", "pipeline.toml").stdout
    assert "find-offers (version 0.1.0)" in tried
    assert "said tags NEWS: it says 'special offer'." in tried
    # What is wrong with its options is told as for any other step.
    (folder / "wrong.toml").write_text("[[step]]\nuse = 'find-offers'\nwrods = ['x']\n")
    wrong = command(folder, "try", "example.eml", "--to", "a@b.example", "--pipeline", "wrong.toml", check=False)
    assert "wrong.toml:3" in wrong.stderr
    assert "wrods" in wrong.stderr


@pytest.mark.parametrize(
    ("name", "status", "problem"),
    [("Find", 2, "is no name"), ("a b", 2, "is no name"), ("class", 2, "is no name"), ("lists", 4, "already")],
)
def test_names_that_cannot_be(tmp_path: Path, name: str, status: int, problem: str) -> None:
    done = command(tmp_path, "processor", "new", name, check=False)
    assert (done.returncode, problem in done.stderr) == (status, True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = command(tmp_path, "processor", "new", "mine", check=False)
    assert (done.returncode, "is there already" in done.stderr) == (4, True)


BAD = """
import os, time
from sendswitch.mail.verdict import Verdict
from sendswitch.processors import base


class Bad:
    Options = base.Options
    version = "1"

    def __init__(self, options):
        pass

    async def process(self, mail, context):
        match mail.subject:
            case "loop":
                while True: pass
            case "block":
                time.sleep(1000)
            case "eat":
                return [bytes(10**6) for n in range(10**6)]
            case "fork":
                while os.fork(): time.sleep(0.05)
                time.sleep(1000)
            case "raise":
                return {}["what the author forgot"]
            case "nonsense":
                return "pass"
            case "print":
                print("hello", mail.subject)
        return Verdict.tagged("GOOD")
"""


def test_a_package_that_means_no_good_costs_its_own_mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "processor", "new", "bad")
    (tmp_path / "bad" / "bad.py").write_text(BAD)
    installed(tmp_path / "bad", tmp_path / "site", monkeypatch)
    ways = ("loop", "block", "eat", "fork", "raise", "nonsense")
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline("joe@example.test", "[[step]]\nuse = 'bad'\nlimit = '6s'\non_error = 'hold'\n")
        node.add_pipeline("ann@example.test", "[[step]]\nuse = 'tag'\ntags = ['ANN']\n")
        for way in ways:
            send(node.port, subject=way)
            send(node.port, "ann@example.test", subject="meanwhile")
        until(lambda: len(hop.parcels) == len(ways), limit=2.0, node=node)  # nobody else waits
        until(lambda: len(said(node, "hold", "list")) == len(ways), node=node)
        send(node.port, subject="print")  # not before: it may take as long while the others keep both cores
        until(lambda: len(hop.parcels) > len(ways), node=node)
        why = {row["subject"]: row["reply"] for row in said(node, "hold", "list")}
        assert "no answer within 6 s" in why["loop"]
        assert "no answer within 6 s" in why["block"]
        assert "KeyError: 'what the author forgot' at bad.py:26: return {}[" in why["raise"]
        assert "process() returned str; return a Verdict or None" in why["nonsense"]
        assert "MemoryError" in why["eat"]
        assert left_of(tmp_path)
        story = node.run("message", "explain", "subject:print").stdout
        assert "said tags GOOD: it printed: hello print." in story
        clean(node)
    assert not left_of(tmp_path)


def left_of(folder: Path) -> list[str]:
    """Processes that were started with this folder in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
    return found


def test_an_edited_package_is_used_for_the_next_mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "processor", "new", "find-offers")
    installed(tmp_path / "find-offers", tmp_path / "site", monkeypatch)
    file = tmp_path / "site" / "find_offers.py"
    with NextHop() as hop, Node(tmp_path, f"127.0.0.1:{hop.port}", settings=QUICK) as node:
        node.add_pipeline(
            "joe@example.test", "[[step]]\nuse = 'find-offers'\ntag = 'NEWS'\nwords = ['unsubscribe', 'secret']\n"
        )
        send(node.port, subject="unsubscribe")
        until(lambda: hop.parcels and b"X-SendSwitch-Tags: NEWS" in hop.parcels[0].data, node=node)
        file.write_text(file.read_text().replace("Verdict.tagged(self._tag,", "Verdict.tagged('EDITED',"))
        send(node.port, subject="unsubscribe")
        until(lambda: len(hop.parcels) == 2, node=node)
        assert b"X-SendSwitch-Tags: EDITED" in hop.parcels[1].data
        # What a package is told, a key for instance, is in no command line.
        assert "sendswitch.processors.hosting.host" in (shown := run(tmp_path, "ps", "axww", "-o", "args").stdout)
        assert "'secret'" not in shown
        assert '"secret"' not in shown
        clean(node)


def test_a_package_that_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "processor", "new", "broken")
    (tmp_path / "broken" / "broken.py").write_text("import nothing_of_that_name\n")
    installed(tmp_path / "broken", tmp_path / "site", monkeypatch)
    told = "broken of sendswitch-broken 0.1.0 cannot be loaded: ModuleNotFoundError"
    assert told in command(tmp_path, "processor", "list").stdout
    (tmp_path / "p.toml").write_text("[[step]]\nuse = 'broken'\n")
    (tmp_path / "m.eml").write_text("Subject: x\n\nx\n")
    tried = command(tmp_path, "try", "m.eml", "--to", "a@b.example", "--pipeline", "p.toml", check=False)
    assert told in tried.stderr
