"""Tables, times, sizes and errors as commands print them."""

from __future__ import annotations

import errno
import json
import os
import re
import sqlite3
import ssl
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from sendswitch.admin.base import at
from sendswitch.admin.serialization import as_ours
from sendswitch.cli import output
from sendswitch.cli.output import Bytes, Session, exit_code, fitting, local, readable, sentences, sized
from sendswitch.errors import InvalidConfiguration, NotFound, Refused, Temporary, in_words

ID, AT = "38fwqhqeqet00.12", 1.7e9
ROWS: list[dict[str, Any]] = [
    {"id": ID, "received": at(AT), "from": "somebody.with.a.long.name@a-long-domain.example", "size": Bytes(83e9)}
]


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int) -> list[str]:
    """The table on a terminal of this width."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    Session().show(ROWS, tuple(ROWS[0]), "nothing", spare=("size", "received"))
    return re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


def test_ids_and_times_never_break(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (120, 80, 70, 60, 40):
        lines = printed(capsys, monkeypatch, width)
        assert max(map(len, lines)) <= width, lines
        assert lines[1].startswith(ID)
        assert ("received" in lines[0]) == (local(AT) in lines[1])


def test_a_narrow_terminal_has_fewer_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [printed(capsys, monkeypatch, width)[0].split() for width in (120, 62, 54, 35)]
    assert heads == [["id", "received", "from", "size"]] * 2 + [["id", "received", "from"], ["id", "from"]]
    assert fitting({"a": ["a", "x" * 30], "b": ["b"]}, (), 3) == ["a", "b"], "what is not spare is always shown"


def test_a_pipe_gets_tabs_and_plain_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    Session().show([*ROWS, {"id": "x", "from": "tab\there"}], tuple(ROWS[0]), "nothing")
    head, row, second = capsys.readouterr().out.splitlines()
    assert head == "id\treceived\tfrom\tsize"
    assert row.split("\t") == [ID, local(AT), ROWS[0]["from"], "83000000000"]
    assert second.split("\t") == ["x", "", "tab\N{REPLACEMENT CHARACTER}here", ""]


def test_json_has_times_by_rfc_3339(capsys: pytest.CaptureFixture[str]) -> None:
    Session(json=True).show(ROWS, ("id",), "nothing")
    (row,) = json.loads(capsys.readouterr().out)
    assert row["received"] == "2023-11-14T22:13:20Z"
    assert datetime.fromisoformat(row["received"]) == datetime.fromtimestamp(AT, UTC)
    assert row["size"] == 83e9


def test_times_in_tables_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tehran")
    time.tzset()
    try:
        assert readable(at(AT)) == local(AT) == "2023-11-15 01:43:20"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert local(None) == ""


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_940, "9.9 kB"), (9_960, "10 kB"), (999_499, "999 kB")),
        *((999_500, "1.0 MB"), (83_123_456_789, "83 GB"), (5 * 10**15, "5000 TB")),
    ],
)
def test_sizes_have_three_digits_and_a_unit(size: int, shown: str) -> None:
    assert sized(size) == readable(Bytes(size)) == shown


def sqlite_error(file: Path, flags: str = "") -> sqlite3.Error:
    with pytest.raises(sqlite3.Error) as found, closing(sqlite3.connect(f"file:{file}{flags}", uri=True)) as opened:
        opened.execute("CREATE TABLE t (x)")
    return found.value


def test_errors_of_libraries_become_sentences(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 500)
    sqlite3.connect(tmp_path / "good").close()
    for error, words in (
        (sqlite_error(tmp_path / "none" / "x"), "check owner and permissions"),
        (sqlite_error(tmp_path / "text"), "restore a backup"),
        (sqlite_error(tmp_path / "good", "?mode=ro"), "cannot write the file"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full"),
        (OSError(errno.EACCES, "x", "/etc/shadow"), "permission denied"),
        (OSError(errno.EADDRINUSE, "error while attempting to bind"), "another program listens there"),
        (OSError(errno.ELOOP, os.strerror(errno.ELOOP)), "too many levels of symbolic links"),
        (ssl.SSLError(1, "[SSL] bad certificate"), "bad certificate"),
        (Exception(2003, "Can't connect to MySQL server"), "Can't connect"),
        (Exception("first line\nsecond line"), "first line"),
        (KeyError(), "KeyError"),
        (NotFound("as it is"), "as it is"),
    ):
        found = in_words(error)
        assert words in found
        assert "\n" not in found
        assert "Errno" not in found
    with pytest.raises(OperationalError) as failed:
        create_engine("sqlite://").connect().execute(text("SELECT secret FROM users"))
    assert "SELECT" not in in_words(failed.value)


def test_every_error_has_an_exit_code(tmp_path: Path) -> None:
    with pytest.raises(OperationalError) as failed:
        create_engine("sqlite://").connect().execute(text("SELECT secret FROM users"))
    codes = {
        InvalidConfiguration(["a", "b"]): 2,
        NotFound("x"): 3,
        Refused("x"): 4,
        Temporary("x"): 75,
        sqlite_error(tmp_path / "none" / "x"): 75,
        failed.value: 75,
        FileNotFoundError(errno.ENOENT, "x", "/file"): 1,
        ValueError("x"): 2,
        ZeroDivisionError(): None,
    }
    assert {error: exit_code(as_ours(error)) for error in codes} == codes
    assert sentences(InvalidConfiguration(["a", "b"])) == ["a", "b"]
    assert sentences(as_ours(FileNotFoundError(errno.ENOENT, "x", "/file"))) == [
        "/file: there is no such file or folder"
    ]
    assert sentences(as_ours(failed.value))[0].startswith("the database cannot be used: ")
    assert sentences(as_ours(sqlite_error(tmp_path / "none" / "x")))[0].startswith("the spool cannot be used: ")


def test_complaints_go_where_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    output.complain(NotFound("no\x1b[31m\nsendswitch: forged"), json=False)
    output.complain(NotFound("none"), json=True)
    seen = capsys.readouterr()
    assert seen.err == "sendswitch: no\N{REPLACEMENT CHARACTER}[31m\n  sendswitch: forged\n"
    assert json.loads(seen.out) == {"errors": ["none"]}
