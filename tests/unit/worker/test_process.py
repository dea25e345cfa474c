"""A worker's own pipeline in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sendswitch.errors import InvalidConfiguration
from sendswitch.worker.process import OwnPipeline

PASS = "[[step]]\nuse = 'pass'\n"


def test_an_edited_file_is_another_pipeline(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(PASS)
    own = OwnPipeline(file)
    before = own.digest
    assert not own.changed()
    file.write_text(PASS + PASS)
    assert own.changed()
    assert (len(own.config.step), own.digest == before) == (2, False)


@pytest.mark.parametrize("text", ["[[step]]\nuse = 'nothing'\n", "[[step", "", "deadline = 5\n", "\udcff"])
def test_a_file_that_is_wrong_or_was_emptied_leaves_the_old_pipeline(tmp_path: Path, text: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(PASS)
    own = OwnPipeline(file)
    before = own.digest
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidConfiguration):
        own.changed()
    assert [step.use for step in own.config.step] == ["pass"]
    assert own.digest == before


def test_steps_that_need_the_site_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(PASS + "[[step]]\nuse = 'reply'\ntext = 'away'\n")
    with pytest.raises(InvalidConfiguration, match="step 2, reply, cannot run on a worker of a user's own"):
        OwnPipeline(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match=r"own\.toml"):
        OwnPipeline(tmp_path / "own.toml")
