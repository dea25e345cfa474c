"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendswitch import durable


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, done = tmp_path / "state", []
    fsync, rename = os.fsync, os.replace

    def noted(handle: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def renamed(part: Path, name: Path) -> None:
        done.append(f"{part} is {name}")
        rename(part, name)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", renamed)
    durable.replace(file, [b"a", b"b"])
    part, as_file, folder = done
    assert (as_file, folder) == (f"{part} is {file}", str(tmp_path))
    assert file.read_bytes() == b"ab"
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state"
    file.write_bytes(b"before")

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        durable.replace(file, broken())

    def full(part: Path, name: Path) -> None:
        raise OSError("read only")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="read only"):
        durable.replace(file, [b"after"])
    assert file.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_new_file_is_new(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            durable.write_new(tmp_path / name, [b"x"])
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "there").read_bytes() == b"mine"


def test_a_file_system_that_cannot_sync_a_folder_keeps_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def unable(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}") or broken:
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    broken = False
    monkeypatch.setattr(os, "fsync", unable)
    file = tmp_path / "state"
    durable.replace(file, [b"whole"])
    assert file.read_bytes() == b"whole"
    broken = True
    with pytest.raises(OSError, match="Invalid"):
        durable.sync(file)
