"""Sieve: the scripts of the corpus, and what no other implementation can be asked about."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendswitch.mail.address_list import addresses
from sendswitch.mail.content import InMemory
from sendswitch.mail.message import Mail
from sendswitch.sieve.grammar import SieveError
from sendswitch.sieve.match import MEMORY, Match
from sendswitch.sieve.run import MOST_TOLD, ScriptOutcome
from sendswitch.sieve.script import Script
from tests.sieve_corpus import CORPUS, MAIL, RECIPIENT, SENDER, STRICTER, WRONG
from tests.timing import took


def run(script: str, mail: bytes = MAIL, sender: str = SENDER, recipient: str = RECIPIENT) -> ScriptOutcome:
    return Script(script).run(Mail(InMemory(mail)), sender, recipient)


def wanted(out: ScriptOutcome) -> str:
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
        ('require "reject"; reject "x"; reject "y";', "reject a second time"),
        ('require ["fileinto", "variables"]; fileinto "${none}";', "fileinto names no folder"),
        (
            'require "variables"; set :quotewildcard "x" "' + "*" * 1500 + '"; if header :matches "subject" "${x}" {}',
            "at most 2000 characters",
        ),
        (
            'require ["variables", "regex"]; set "x" "'
            + "y" * 900
            + '"; '
            + 'if header :regex "subject" ["'
            + '","'.join(f"{n}${{x}}" for n in range(120))
            + '"] {}',
            "more to compare than a script may",
        ),
        (
            'require ["variables", "regex"]; set "x" "("; if header :regex "subject" "${x}" {}',
            "no pattern that RE2 takes",
        ),
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


def test_redirects_to_one_address_are_one() -> None:
    assert run('redirect "a@b.example"; redirect "A@B.example";').redirects == ["a@b.example"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ('"boss@corp.example" <attacker@evil.example>', ["attacker@evil.example"]),
        ("Ann (x@y (z)) <a@b>, c@d", ["a@b", "c@d"]),
        ('G: a@b, "q, r"@c; e@f', ["a@b", '"q, r"@c', "e@f"]),
        ("<@r1,@r2:joe@x>", ["joe@x"]),
        ("joe @ x . example", ["joe@x.example"]),
        ("a@b c@d, <e@f, undisclosed:;", []),
        ("(unclosed a@b", ["uncloseda@b"]),
        ('"un a@b, <c@d>', ["c@d"]),
        ('"Ann (boss" <a@b>, x (y) <c@d>', ["a@b", "c@d"]),
        ("joe@[192.0.2.1], )a@b", ["joe@[192.0.2.1]", ")a@b"]),
        ("", []),
    ],
)
def test_addresses_of_a_field(value: str, found: list[str]) -> None:
    assert addresses(value) == found


@pytest.mark.parametrize("text", ["(", '"', "<", '"\\', "(\\", "[", "()", "a@b,", '"\\"', ":;"])
def test_addresses_are_read_in_the_time_it_takes(text: str) -> None:
    began = time.process_time()
    addresses(text * 60_000)
    assert took(began) < 6


@pytest.mark.parametrize(("script", "delivered"), [("keep;", True), ("discard;", False), ('redirect "x@y.z";', False)])
def test_whether_it_is_delivered(script: str, delivered: bool) -> None:
    assert run(script).delivered == delivered


def test_of_very_many_addresses_each_is_compared() -> None:
    mail = ("To: " + ",\r\n ".join(f"A{n}@x.example" for n in range(500)) + "\r\n\r\n").encode()
    assert wanted(run('if address "to" "a499@x.example" { discard; }', mail)) == ""


def test_what_a_script_asks_again_and_again_is_read_once() -> None:
    """Three thousand tests of a subject that takes long to be decoded, and of a body."""
    subject = "=?utf-8?q?=C3=BC?= " * 3000
    mail = f"Subject: {subject}\r\nTo: {'a@b.example, ' * 500}\r\nX: y\r\n".encode() + b"Z: z\r\n" * 20_000
    text = 'require "body"; ' + 'if anyof (header "subject" "x", exists "q", body "y", address "to" "z") {}' * 600
    began = time.process_time()
    assert wanted(run(text, mail + b"\r\n" + b"text\r\n" * 20_000)) == "keep"
    assert took(began) < 10


def test_another_delimiter_and_none() -> None:
    script = 'require ["envelope", "subaddress"]; if envelope :user "to" "joe" { discard; }'
    mail = Mail(InMemory(MAIL))
    assert wanted(Script(script, delimiter="-").run(mail, SENDER, "joe-x@example.com")) == ""
    assert wanted(Script(script, delimiter="").run(mail, SENDER, "joe+x@example.com")) == "keep"


@pytest.mark.parametrize(
    "test",
    [
        'header :contains "subject" [' + ",".join(f'"{n}"' for n in range(9000)) + "]",
        'header :matches "subject" "' + "*?" * 100 + '"',
        'header :regex "subject" ["' + '","'.join(f"(a{{1,400}})(b*){n}" for n in range(20)) + '"]',
    ],
)
def test_there_is_an_end_to_what_is_compared(test: str) -> None:
    mail = Mail(InMemory(b"Subject: " + b"ab" * 120_000 + b"\r\n\r\n"))
    script = Script(f'require ["variables", "regex"]; if {test} {{ discard; }}')
    began = time.process_time()
    with pytest.raises(SieveError, match="line 1: this is more to compare than a script may"):
        script.run(mail, SENDER, RECIPIENT)
    assert took(began) < 15


def test_variables_have_limits() -> None:
    script = 'require ["variables", "fileinto"]; set "a" "' + "x" * 3000 + '";'
    script += ' set "a" "${a}${a}${a}"; set :length "n" "${a}";'
    script += "".join(f' set "v{n}" "x";' for n in range(200)) + ' fileinto "${n} ${v100}${v150}";'
    assert wanted(run(script)) == "file 4000 x"
    grown = 'require ["variables", "reject"]; set "a" "' + "x" * 4000 + '"; reject "' + "${a}" * 100 + '";'
    assert run(grown).rejected == "x" * 65_536


def test_patterns_take_no_longer_than_they_are_long() -> None:
    mail = b"Subject: " + b"a" * 50_000 + b"\r\n\r\n"
    script = 'require ["regex"]; if header :regex "subject" "^(a+)+$x" {} if header :matches "subject" "'
    script += "*a" * 20 + 'b" { discard; }'
    began = time.process_time()
    assert wanted(run(script, mail)) == "keep"
    assert took(began) < 5


def like(match: Match, text: str, wanted: str) -> tuple[str, ...] | None:
    value, key = match.value(text), match.key(wanted)
    assert match.cost(value, key, remembers=True) > 0
    if not match.holds(value, key):
        return None
    return match.groups(text, value, key) if match.patterned else ()


def test_a_pattern_may_use_little_memory() -> None:
    """RE2 keeps what it uses for as long as the script is there."""
    key = Match("regex").key("a*")
    assert key.full.options.max_mem == key.test.options.max_mem == MEMORY


def test_comparisons_of_odd_texts() -> None:
    assert like(Match("matches"), "\ud800x", "*x") == ("?x", "?")
    assert like(Match("regex"), "abc", "(b)(x)?") == ("b", "b", "")
    assert like(Match("value", "i;octet", "ge"), "b", "a") == ()
    assert like(Match("matches"), "a\\", "a\\") == ("a\\",)
    assert like(Match("matches"), "123456789abcd", "?" * 13) == ("123456789abcd", *"123456789")
    assert like(Match("matches"), "x" * 9000, "*") == ("x" * 4000, "x" * 4000)


@given(st.text(alphabet=' "\\;{}()[],:#/*.$\n\rtexkpiflonausv0159K', max_size=200))
def test_no_text_is_more_than_wrong(text: str) -> None:
    with contextlib.suppress(SieveError):
        Script(text)


@given(st.text(max_size=50), st.text(max_size=50))
def test_quoted_text_is_like_itself_alone(one: str, other: str) -> None:
    """Whatever it is: `set :quotewildcard` makes a pattern of it that only it is like."""
    quoted = "".join(f"\\{c}" if c in "*?\\" else c for c in one)
    same = Match("matches", "i;octet")
    assert like(same, one, quoted) is not None
    assert (like(same, other, quoted) is not None) == (
        one.encode("utf-8", "replace") == other.encode("utf-8", "replace")
    )


def test_of_very_many_actions_the_first_are_told() -> None:
    assert len(run("keep;\n" * (MOST_TOLD + 5)).did) == MOST_TOLD
