"""Authentication-Results by its grammar: what is a result, and whose it is."""

from __future__ import annotations

import pytest

from sendswitch.mail import results


@pytest.mark.parametrize(
    ("value", "host", "methods"),
    [
        ("mx.example; spf=pass smtp.mailfrom=a.example", "mx.example", {"spf": ["pass"]}),
        ("MX.Example. 1; dkim=fail; dkim=pass (good)", "mx.example", {"dkim": ["fail", "pass"]}),
        (' "mx.example" ; dmarc / 1 = Pass', "mx.example", {"dmarc": ["pass"]}),
        ("mx.example; none", "mx.example", {}),
        ("mx.example; spf=softfail smtp.mailfrom=dmarc=pass@evil.example", "mx.example", {"spf": ["softfail"]}),
        ('mx.example; spf=none smtp.mailfrom="x; dmarc=pass"', "mx.example", {"spf": ["none"]}),
        ("mx.example; (dmarc=pass) spf=none", "mx.example", {"spf": ["none"]}),
        ('mx.example; "dmarc"=pass; spf="="', "mx.example", {}),
        ("", "", {}),
    ],
)
def test_fields_are_read(value: str, host: str, methods: dict[str, list[str]]) -> None:
    parsed = results.parse(value)
    assert parsed.host == host
    assert parsed.methods == methods


def test_the_worst_result_counts_and_only_trusted_hosts_are_asked() -> None:
    values = ["mx.example; dkim=pass; dkim=fail", "evil.example; dmarc=pass", "mx2.example; spf=invented; spf=pass"]
    trusted = frozenset({"mx.example", "mx2.example"})
    assert results.of_host(values, trusted) == ("mx.example, mx2.example", {"dkim": "fail", "spf": "invented"})
    assert results.of_host(values, frozenset({"other.example"})) is None
    assert results.worst([]) == "none"


@pytest.mark.parametrize(
    ("value", "claimed"),
    [
        ("mx.example; spf=pass", True),
        ("(comment) mx . example; spf=pass", True),
        ("mx.example 1; spf=pass", True),
        ("by mx.example; spf=pass", True),
        ('"m\\x.example"; spf=pass', True),
        ("other.example; spf=pass smtp.mailfrom=mx.example", False),
    ],
)
def test_a_field_that_may_be_taken_for_ours_is_known(value: str, claimed: bool) -> None:
    assert results.claims(value, "MX.example") is claimed


def test_what_is_written_is_read_as_it_was_meant() -> None:
    facts = {"smtp.mailfrom": 'a;dmarc=pass"\\@evil.example', "policy.empty": ""}
    value = results.written("mx.example", [("spf", "fail", facts), ("dkim", "pass", {"header.d": "a.example"})])
    assert value == (
        'mx.example; spf=fail smtp.mailfrom="a;dmarc=pass\\"\\\\@evil.example"; dkim=pass header.d=a.example'
    )
    assert results.parse(value).methods == {"spf": ["fail"], "dkim": ["pass"]}
