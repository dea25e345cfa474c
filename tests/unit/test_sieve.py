"""Sieve: the scripts of the corpus, and what no other implementation can be asked about."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.mail.content import InMemory
from sendswitch.mail.message import Mail
from sendswitch.sieve.grammar import SieveError
from sendswitch.sieve.match import Match
from sendswitch.sieve.run import Outcome
from sendswitch.sieve.script import Script
from tests.sieve_corpus import CORPUS, MAIL, RECIPIENT, SENDER, STRICTER, WRONG


def run(script: str, mail: bytes = MAIL, sender: str = SENDER, recipient: str = RECIPIENT) -> Outcome:
    return Script(script).run(Mail(InMemory(mail)), sender, recipient)


def wanted(out: Outcome) -> str:
    """An outcome in the words of the corpus."""
    words = [f"file {folder}" for folder in out.folders] + [f"redirect {address}" for address in out.redirects]
    words += ["keep"] * (out.implicit or out.kept)
    words += ["reject"] * (out.rejected is not None) + ["vacation"] * (out.vacation is not None)
    return ", ".join(sorted(words))


@pytest.mark.parametrize(("script", "what"), [case[1:] for case in CORPUS], ids=[case[0] for case in CORPUS])
def test_what_a_script_wants(script: str, what: str) -> None:
    assert wanted(run(script)) == what
    assert wanted(run(script.replace("\n", "\r\n"))) == what


@pytest.mark.parametrize(("script", "said"), WRONG + STRICTER)
def test_what_is_wrong_is_said_with_its_line(script: str, said: str) -> None:
    with pytest.raises(SieveError) as error:
        Script(script)
    assert said in str(error.value)
    assert str(error.value).startswith("line ")


def test_what_was_done_is_told_with_its_line() -> None:
    out = run(
        'require ["fileinto", "copy", "vacation"];\nfileinto "A";\nredirect :copy "x@y.example";\nkeep;\nvacation "x";'
    )
    assert out.did == ["line 2: fileinto 'A'", "line 3: redirect to x@y.example", "line 4: keep", "line 5: vacation"]


def test_texts_of_several_lines() -> None:
    out = run('require "reject";\nreject text: # why\nNot\n..here.\n.hidden\n.\n;')
    assert out.rejected == "Not\n.here.\n.hidden\n"


def test_an_answer() -> None:
    out = run(
        'require ["vacation", "variables"]; set "to" "j@example.com";'
        ' vacation :days 400 :subject "About ${to}" :addresses ["${to}", "k@example.com"] "Away, ${to}.";'
    )
    assert out.vacation is not None
    assert out.vacation.days == 90
    assert out.vacation.subject == "About j@example.com"
    assert out.vacation.addresses == ("j@example.com", "k@example.com")
    assert out.vacation.reason == "Away, j@example.com."
    assert not run('require "vacation"; vacation "x";').vacation.subject  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('require "variables"; set "x" "nobody"; redirect "${x}";', "'nobody' is no mail address"),
        ('require "vacation"; vacation "x"; vacation "y";', "vacation a second time"),
        ('require ["variables", "regex"]; set "x" "("; if header :regex "subject" "${x}" {}', "no regular expression"),
        (
            'require ["variables", "regex"]; set "x" "' + "y" * 2500 + '"; if header :regex "subject" "${x}" {}',
            "at most 2000 characters",
        ),
    ],
)
def test_what_only_a_message_shows(script: str, said: str) -> None:
    made = Script(script)
    with pytest.raises(SieveError, match=said):
        made.run(Mail(InMemory(MAIL)), SENDER, RECIPIENT)


def test_the_null_path_has_no_parts() -> None:
    script = 'require ["envelope", "subaddress"]; if envelope :PART "from" "" { discard; }'
    for part in ("all", "localpart", "domain", "user", "detail"):
        assert wanted(run(script.replace("PART", part), sender="")) == ""


@pytest.mark.parametrize(("script", "delivered"), [("keep;", True), ("discard;", False), ('redirect "x@y.z";', False)])
def test_whether_it_is_delivered(script: str, delivered: bool) -> None:
    assert run(script).delivered == delivered


def test_addresses_that_change_their_length_in_lower_case() -> None:
    """What was compared is then given as it was compared."""
    mail = 'From: "İ" <Ann@example.org>\r\n\r\n'.encode()
    script = 'require ["variables", "fileinto"]; if address :matches "from" "*@*" { fileinto "${1}"; }'
    assert wanted(run(script, mail)) == "file ann"


def test_another_delimiter_and_none() -> None:
    script = 'require ["envelope", "subaddress"]; if envelope :user "to" "joe" { discard; }'
    mail = Mail(InMemory(MAIL))
    assert wanted(Script(script, delimiter="-").run(mail, SENDER, "joe-x@example.com")) == ""
    assert wanted(Script(script, delimiter="").run(mail, SENDER, "joe+x@example.com")) == "keep"


def test_whether_the_body_is_read() -> None:
    assert Script('require "body"; if body "x" {}').reads_body
    assert not Script("keep;").reads_body


def test_variables_have_limits() -> None:
    script = 'require ["variables", "fileinto"]; set "a" "' + "x" * 3000 + '";'
    script += ' set "a" "${a}${a}${a}"; set :length "n" "${a}";'
    script += "".join(f' set "v{n}" "x";' for n in range(200)) + ' fileinto "${n} ${v100}${v150}";'
    assert wanted(run(script)) == "file 4000 x"
    grown = 'require ["variables", "fileinto"]; set "a" "' + "x" * 4000 + '"; fileinto "' + "${a}" * 100 + '";'
    assert len(run(grown).folders[0]) == 65_536


def test_patterns_take_no_longer_than_they_are_long() -> None:
    mail = b"Subject: " + b"a" * 50_000 + b"\r\n\r\n"
    script = 'require ["regex"]; if header :regex "subject" "^(a+)+$x" {} if header :matches "subject" "'
    script += "*a" * 20 + 'b" { discard; }'
    began = time.perf_counter()
    assert wanted(run(script, mail)) == "keep"
    assert time.perf_counter() - began < 5


def test_comparisons_of_odd_texts() -> None:
    assert Match("matches").find("\ud800x", "*x") == ("?x", "?")
    assert Match("regex").find("abc", "(b)(x)?") == ("b", "b", "")
    assert Match("value", "i;octet", "ge").find("b", "a") == ()
    assert Match("matches").find("a\\", "a\\") == ("a\\",)


@given(st.text(alphabet=' "\\;{}()[],:#/*.$\n\rtexkpiflonausv0159K', max_size=200))
def test_no_text_is_more_than_wrong(text: str) -> None:
    with contextlib.suppress(SieveError):
        Script(text)


@given(st.text(max_size=50), st.text(max_size=50))
def test_quoted_text_is_like_itself_alone(one: str, other: str) -> None:
    """Whatever it is: `set :quotewildcard` makes a pattern of it that only it is like."""
    quoted = "".join(f"\\{c}" if c in "*?\\" else c for c in one)
    same = Match("matches", "i;octet")
    assert same.find(one, quoted) is not None
    assert (same.find(other, quoted) is not None) == (
        one.encode("utf-8", "replace") == other.encode("utf-8", "replace")
    )
