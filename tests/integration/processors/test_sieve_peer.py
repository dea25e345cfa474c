"""Dovecot's Pigeonhole is asked about the same scripts: what it wants done is what we do."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendswitch.bench.peers import public_folder
from tests.conftest import need
from tests.servers import as_of_dovecot_2_4
from tests.sieve_corpus import CORPUS, MAIL, RECIPIENT, SENDER, WRONG


class Pigeonhole:
    """Its sieve-test, which says what a script wants done without doing it."""

    def __init__(self, folder: Path) -> None:
        self._script, self._mail, config = folder / "x.sieve", folder / "x.eml", folder / "dovecot.conf"
        self._mail.write_bytes(MAIL)
        user = "nobody" if os.getuid() == 0 else getpass.getuser()
        (folder / "mail").mkdir()
        (folder / "mail").chmod(0o777)
        where = f"mail_location = maildir:{folder}/mail\n"
        if as_of_dovecot_2_4():
            where = "dovecot_config_version = 2.4.0\ndovecot_storage_version = 2.4.0\n"
            where += f"mail_driver = maildir\nmail_path = {folder}/mail\n"
        config.write_text(
            f"{where}log_path = /dev/stderr\nssl = no\nbase_dir = {folder}\n"
            f"mail_home = {folder}/mail\nmail_uid = {user}\nfirst_valid_uid = 1\nfirst_valid_gid = 1\n"
            f"mail_gid = {'nogroup' if os.getuid() == 0 else os.getgid()}\nrecipient_delimiter = +\n"
        )
        self._line = ["sieve-test", "-c", str(config), "-f", SENDER, "-a", RECIPIENT]

    def ask(self, script: str) -> tuple[int, str]:
        """Its exit status and what it says."""
        self._script.write_text(script)
        line = [*self._line, str(self._script), str(self._mail)]
        done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30, check=False)
        return done.returncode, done.stdout.decode()


@pytest.fixture(scope="module")
def pigeonhole() -> Iterator[Pigeonhole]:
    need("sieve-test", "dovecot-sieve")
    with public_folder("sieve") as folder:
        yield Pigeonhole(folder)


def wanted(told: str) -> str:
    """What Pigeonhole says it would do, in the words of the corpus."""
    words = [f"redirect {address}" for address in re.findall(r"\* redirect message to: <(.*)>", told)]
    words += ["keep" if f == "INBOX" else f"file {f}" for f in re.findall(r"\* store message in folder: (.*)", told)]
    words += ["reject"] * ("* reject message" in told) + ["vacation"] * ("* send vacation message" in told)
    return ", ".join(sorted(set(words)))


# The command line knows no ereject.
KNOWN = [case for case in CORPUS if "ereject" not in case[1]]


@pytest.mark.parametrize(("script", "what"), [case[1:] for case in KNOWN], ids=[case[0] for case in KNOWN])
def test_it_wants_the_same(pigeonhole: Pigeonhole, script: str, what: str) -> None:
    status, told = pigeonhole.ask(script)
    assert status == 0, told
    assert wanted(told) == what, told


@pytest.mark.parametrize("script", [script for script, _ in WRONG])
def test_it_finds_the_same_wrong(pigeonhole: Pigeonhole, script: str) -> None:
    status, told = pigeonhole.ask(script)
    assert status != 0, told
