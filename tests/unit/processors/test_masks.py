"""Secrets in pipelines are not shown, however they are written, and what hides them is never taken for one."""

from __future__ import annotations

import tomllib

import pytest

from sendswitch.config.units import MASK
from sendswitch.errors import InvalidConfiguration
from sendswitch.processors import registry
from sendswitch.processors.masks import masked

SECRET = "whsec_" + "c2VjcmV0" * 6
STEP = '[[step]]\nuse = "notify"\nurl = "https://hook.example/in"\nsecret = {}\n'


@pytest.mark.parametrize(
    "written",
    [f'"{SECRET}"', f"'{SECRET}'", f'"""{SECRET}"""', f'"\\u0077{SECRET[1:]}"', '"whsec_\\\n    ' + SECRET[6:] + '"'],
    ids=["basic", "literal", "multi-line", "escaped", "folded"],
)
def test_a_secret_is_hidden_however_it_is_written(written: str) -> None:
    text = "# mine\n" + STEP.format(written if "\n" not in written else f'""{written}""')
    assert tomllib.loads(text)["step"][0]["secret"] == SECRET
    shown = masked(text)
    assert SECRET[8:20] not in shown
    assert tomllib.loads(shown)["step"] == [tomllib.loads(text)["step"][0] | {"secret": MASK}]
    with pytest.raises(InvalidConfiguration, match="secret: it was hidden") as wrong:
        registry.check(shown, "file.toml")
    assert all(":0:" not in problem for problem in wrong.value.problems)


def test_the_rest_of_a_pipeline_is_shown_as_it_is() -> None:
    for secret in ('{ file = "/etc/secret" }', '{ env = "SECRET" }'):
        text = f"# mine\n{STEP.format(secret)}[[step]]\nuse = 'pass' # last\n"
        assert masked(text) == text
    assert masked('[[step]]\nuse = "pass"\nreason = "at https://me:pw@host/x"\n').count(f"//me:{MASK}@host/x") == 1


def test_a_secret_that_is_an_ordinary_word_does_not_garble_the_rest() -> None:
    text = '[[step]]\nuse = "gone"\ntoken = "e"\nwhen = "from:eve"\n'
    assert tomllib.loads(masked(text))["step"] == [{"use": "gone", "token": MASK, "when": "from:eve"}]


def test_a_password_with_an_at_sign_is_hidden_whole() -> None:
    shown = masked('[[step]]\nuse = "pass"\nreason = "https://me:p@ss:w@host/x and https://host/a:b@c"\n')
    assert f"https://me:{MASK}@host/x and https://host/a:b@c" in shown


def test_what_cannot_be_read_is_not_shown() -> None:
    assert SECRET not in masked(f"nonsense {SECRET}")
    gone = f'[[step]]\nuse = "gone"\nwhen = "from:x"\ntoken = "{SECRET}"\n'
    assert masked(gone) == gone.replace(SECRET, MASK)
