"""Configuration: defaults, wrong files (each in bad_configs says what must be told), the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from sendswitch.config.load import key_lines, load
from sendswitch.config.model import Config
from sendswitch.errors import InvalidConfiguration
from sendswitch.processors import registry

BAD = sorted((Path(__file__).parent / "bad_configs").glob("*.toml"))


def test_an_empty_file_works(tmp_path: Path) -> None:
    file = tmp_path / "empty.toml"
    file.write_text("")
    config = load(file)
    assert config == load(None) == Config()
    assert config.listener[0].bind == "127.0.0.1:8025"
    assert config.next_hop.address == "127.0.0.1:10025"
    assert config.web.bind == "127.0.0.1:60666"
    assert str(config.node.data) == "/var/lib/sendswitch"


def test_units_and_lists(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(
        '[node]\nlifetime = "2d"\n[[listener]]\nmessage_size = "25MB"\n'
        '[[listener]]\nmode = "proxy"\nbind = "unix:/run/x"\n'
    )
    config = load(file)
    assert config.node.lifetime == 172800
    assert config.listener[0].message_size == 25_000_000
    assert [listener.mode for listener in config.listener] == ["filter", "proxy"]


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_wrong_file_is_told_all_at_once_with_lines(file: Path) -> None:
    wanted = [line[2:] for line in file.read_text().splitlines() if line.startswith("# ")]
    with pytest.raises(InvalidConfiguration) as caught:
        load(file)
    problems = caught.value.problems
    assert len(problems) == len(wanted), problems
    for problem, want in zip(problems, wanted, strict=True):
        assert problem.startswith(str(file))
        line, colon, text = want.partition(": ")
        if line.isdigit() and colon:
            assert problem.startswith(f"{file}:{line}: "), problem
            assert text in problem
        else:
            assert want in problem


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="cannot be read"):
        load(tmp_path / "none.toml")


def test_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.toml"
    file.write_text('[next_hop]\naddress = "127.0.0.1:1"\nidle = "9s"\n')
    monkeypatch.setenv("SENDSWITCH_NEXT_HOP__ADDRESS", "127.0.0.1:2")
    config = load(file)
    assert config.next_hop.address == "127.0.0.1:2"
    assert config.next_hop.idle == 9


def test_lines_of_keys() -> None:
    text = '''a = 1
[t] # comment
"quoted key" = 2
text = """
fake = 3
"""
list = [
  "x = 4",
]
[[l]]
k = 5
[[l]]
k = 6
[l.sub]
d.e = 7
'''
    assert key_lines(text) == {
        ("a",): 1,
        ("t",): 2,
        ("t", "quoted key"): 3,
        ("t", "text"): 4,
        ("t", "list"): 7,
        ("l", 0): 10,
        ("l", 0, "k"): 11,
        ("l", 1): 12,
        ("l", 1, "k"): 13,
        ("l", 1, "sub"): 14,
        ("l", 1, "sub", "d", "e"): 15,
    }


# Pipelines


def test_a_good_pipeline() -> None:
    config = registry.check(
        'deadline = "5s"\n[[step]]\nuse = "lists"\ndeny = ["x.example"]\n[[step]]\nuse = "pass"\n', "p"
    )
    assert [step.use for step in config.step] == ["lists", "pass"]
    assert config.deadline == 5


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('[[step]]\nuse = "list"\n', ["p:2: no processor 'list'; did you mean 'lists'?"]),
        (
            '[[step]]\nuse = "lists"\ndenny = ["x"]\n',
            ["p:3: unknown key 'denny'; did you mean 'deny'? (step 1, lists)"],
        ),
        (
            '[[step]]\nuse = "lists"\ndeny = ["a b"]\n',
            ["p:3: deny: 'a b' is no address, domain or glob (step 1, lists)"],
        ),
        ('[[step]]\nuse = "deny"\nreply = "250 ok"\n', ["p:3: reply: '250 ok' is no refusal"]),
        ('[[step]]\nuse = "tag"\ntags = ["a b"]\n', ["p:3: tags: tag 'a b' must be 1 to 64 letters"]),
        ('[[step]]\nuse = "forward"\nto = ["nobody"]\n', ["p:3: to: 'nobody' is no mail address"]),
        ('[[step]]\nuse = "python"\nfile = "rel.py"\n', ["p:3: file: rel.py must be an absolute path"]),
        ('[[step]]\nuse = "pass"\non_error = "panic"\n', ["p:3: step.0.on_error: Input should be"]),
        ('dedline = "5s"\n', ["p:1: unknown key 'dedline'; did you mean 'deadline'?"]),
        ('[[step]]\nuse = "x1"\n[[step]]\nuse = "x2"\n', ["p:2: no processor 'x1'", "p:4: no processor 'x2'"]),
    ],
)
def test_a_wrong_pipeline_is_told_with_lines(text: str, wanted: list[str]) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        registry.check(text, "p")
    assert len(caught.value.problems) == len(wanted), caught.value.problems
    for problem, want in zip(caught.value.problems, wanted, strict=True):
        assert problem.startswith(want)
