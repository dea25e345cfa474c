"""Files for secrets that are shown once: made before the secret, and left only with it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sendswitch.cli.secret_file import secret_file
from sendswitch.errors import Refused, Temporary


def test_a_secret_is_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with secret_file(file) as write:
        write("secret")
    assert file.read_text() == "secret\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old")
    (tmp_path / "link").symlink_to(file)
    for place in (file, tmp_path / "link"):
        with pytest.raises(Refused, match="exists already"), secret_file(place):
            raise AssertionError("no secret may be made")
    assert file.read_text() == "old"


def test_no_secret_is_made_that_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(Temporary, match="cannot be written"), secret_file(tmp_path / "nowhere" / "key"):
        raise AssertionError("no secret may be made")


def test_nothing_is_left_without_a_secret(tmp_path: Path) -> None:
    with secret_file(tmp_path / "none"):
        pass
    with pytest.raises(ValueError, match="no such user"), secret_file(tmp_path / "failed"):
        raise ValueError("no such user")
    with secret_file(None) as write:
        write("shown instead")
    assert list(tmp_path.iterdir()) == []
