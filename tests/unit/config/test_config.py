"""Configuration: defaults, wrong files (each in bad_configs says what must be told), the environment."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field
from typer.testing import CliRunner

from sendswitch.bootstrap.node import not_bound
from sendswitch.cli import serve
from sendswitch.cli.main import app
from sendswitch.cli.output import Session
from sendswitch.cli.serve import changes
from sendswitch.config import reference
from sendswitch.config.load import key_lines, load, load_with_origins, validate
from sendswitch.config.model import Config, NodeSection, Section
from sendswitch.errors import InvalidConfiguration
from sendswitch.processors import registry
from sendswitch.smtp.endpoint import Endpoint

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


def test_the_data_folder_is_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever folder a command is started in."""
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc" / "sendswitch.toml"
    file.write_text('[node]\ndata = "data"\n')
    monkeypatch.chdir(tmp_path)
    assert load(Path("etc/sendswitch.toml"), {}).node.data == tmp_path / "etc" / "data"
    assert load(file, {}).database_url == f"sqlite:///{tmp_path}/etc/data/sendswitch.db"
    assert load(None, {"SENDSWITCH_NODE__DATA": "here"}).node.data == tmp_path / "here"
    assert load(None, {"SENDSWITCH_NODE__DATA": "/else"}).node.data == Path("/else")


def test_a_change_is_seen_once() -> None:
    stamps = iter((1, 1, 2, 2, 1))
    changed = changes(lambda: next(stamps))
    assert [changed() for _ in range(4)] == [False, True, False, True]


def test_an_edit_while_the_node_starts_is_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sendswitch.toml"
    seen: list[bool] = []
    file.write_text("")

    def read(_: Session) -> Config:
        config = load(file)
        file.write_text("# edited behind its back\n")
        return config

    async def until_signal(*_: object, changed: Callable[[], bool], **others: object) -> None:
        seen.append(changed())

    monkeypatch.setattr(Session, "config", read)
    monkeypatch.setattr(serve, "until_signal", until_signal)
    for name in ("raise_file_limit", "tune_memory"):
        monkeypatch.setattr(serve, name, lambda: None)
    monkeypatch.setattr("os.umask", lambda mask: mask)
    monkeypatch.setattr("sendswitch.logs.setup", lambda *_: None)
    done = CliRunner().invoke(app, ["--config", str(file), "run", "--reload"], catch_exceptions=False)
    assert (done.exit_code, seen) == (0, [True])


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


def test_later_sources_win_and_each_value_knows_its_place(tmp_path: Path) -> None:
    file, more = tmp_path / "x.toml", tmp_path / "conf.d"
    more.mkdir()
    file.write_text(
        '[next_hop]\naddress = "127.0.0.1:1"\nidle = "9s"\n[[listener]]\n[[listener]]\nbind = "127.0.0.1:7"\n'
    )
    (more / "20-b.toml").write_text('[next_hop]\nidle = "3s"\n')
    (more / "10-a.toml").write_text('[next_hop]\nidle = "2s"\n[log]\nlevel = "error"\n')
    (more / "ignored.txt").write_text("not TOML")
    secret = tmp_path / "secret"
    secret.write_text("mysql+pymysql://u:hidden@h/d\n")
    environment = {
        "SENDSWITCH_LOG__FORMAT": "text",
        "SENDSWITCH_DATABASE__URL_FILE": str(secret),
        "SENDSWITCH_LISTENER__1__MESSAGE_SIZE": "1MB",
        "SENDSWITCH_LISTENER__2__BIND": "127.0.0.1:8",
        "SENDSWITCH_LISTENER__2__XFORWARD_FROM": "10.0.0.0/8, ::1",
        "SENDSWITCH_TAGS__SUBJECT__SPAM": "*** ",
        "SENDSWITCH_BROKER__URLS": '["amqp://mq1/", "amqp://mq2/"]',
        "SENDSWITCH_CONFIG": "not a setting",
    }
    loaded = load_with_origins(file, environment)
    config = loaded.config
    assert (config.next_hop.address, config.next_hop.idle, config.log.level) == ("127.0.0.1:1", 3.0, "error")
    assert config.database_url == "mysql+pymysql://u:hidden@h/d"
    assert [(listener.bind, listener.message_size) for listener in config.listener] == [
        ("127.0.0.1:8025", 52_428_800),
        ("127.0.0.1:7", 1_000_000),
        ("127.0.0.1:8", 52_428_800),
    ]
    assert config.listener[2].xforward_from == ("10.0.0.0/8", "::1")
    assert config.tags.subject == {"SPAM": "*** "}
    assert [url.get_secret_value() for url in config.broker.urls] == ["amqp://mq1/", "amqp://mq2/"]
    rows = {row["key"]: row for row in reference.rows(config, loaded.origins)}
    assert rows["next_hop.address"]["origin"] == f"{file}:2"
    assert rows["next_hop.idle"]["origin"] == f"{more}/20-b.toml:2"
    assert rows["listener.1.message_size"]["origin"] == "SENDSWITCH_LISTENER__1__MESSAGE_SIZE in the environment"
    assert rows["listener.1.bind"]["origin"] == f"{file}:6"
    assert rows["database.url"] == {
        "key": "database.url",
        "value": '"(secret)"',
        "origin": "SENDSWITCH_DATABASE__URL_FILE in the environment",
    }
    assert rows["web.bind"]["origin"] == "default"
    assert "hidden" not in str(rows)


def test_an_array_in_a_later_file_replaces_the_earlier(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('[[listener]]\nbind = "127.0.0.1:1"\n[[listener]]\nbind = "127.0.0.1:2"\n')
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.toml").write_text('[[listener]]\nmode = "proxy"\n')
    loaded = load_with_origins(file, {})
    assert [listener.bind for listener in loaded.config.listener] == ["127.0.0.1:8025"]
    assert not [place for place in loaded.origins.values() if place.startswith(str(file))]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("SENDSWITCH_NODE__LIFETIM", "1d", "did you mean SENDSWITCH_NODE__LIFETIME?"),
        ("SENDSWITCH_NODES__X", "1d", "there is no such setting"),
        ("SENDSWITCH_NODE__LIFETIME", "long", "SENDSWITCH_NODE__LIFETIME in the environment: node.lifetime: 'long' is"),
        ("SENDSWITCH_NODE__HOST_FILE", "/nowhere/at/all", "No such file"),
        ("SENDSWITCH_NODE__NOTHING_FILE", "/etc/hostname", "there is no such setting"),
        ("SENDSWITCH_LISTENER__3__BIND", "127.0.0.1:1", "number 3 comes before number 0"),
        ("SENDSWITCH_LISTENER__0", "a", "it names a table"),
        ("SENDSWITCH_LISTENER__0__XFORWARD_FROM", "[1", "SENDSWITCH_LISTENER__0__XFORWARD_FROM in the environment"),
    ],
)
def test_a_wrong_variable_is_told(name: str, value: str, told: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        load(None, {name: value})
    assert told in str(caught.value)


def test_a_setting_is_given_once(tmp_path: Path) -> None:
    both = {"SENDSWITCH_LOG__LEVEL": "info", "SENDSWITCH_LOG__LEVEL_FILE": str(tmp_path)}
    with pytest.raises(InvalidConfiguration, match="set one of both"):
        load(None, both)
    whole = {"SENDSWITCH_TAGS__SUBJECT": '{"A": "a"}', "SENDSWITCH_TAGS__SUBJECT__SPAM": "x"}
    with pytest.raises(InvalidConfiguration) as caught:
        load(
            None,
            whole | {"SENDSWITCH_LISTENER__0__XFORWARD_FROM": "::1", "SENDSWITCH_LISTENER__0__XFORWARD_FROM__X": "y"},
        )
    assert "there is no such setting" in str(caught.value)


def test_everything_wrong_in_every_file_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[nod]\n[log]\nlevel = 'loud'\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.toml").write_text("[web]\nbin = 1\n")
    (tmp_path / "conf.d" / "b.toml").write_text("[[\n")
    with pytest.raises(InvalidConfiguration) as caught:
        load(file, {"SENDSWITCH_LOG__FORMA": "text"})
    text = "\n".join(caught.value.problems)
    for part in (
        "x.toml:1: unknown key 'nod'",
        "x.toml:3: log.level",
        "a.toml:2: unknown key",
        "b.toml",
        "LOG__FORMAT?",
    ):
        assert part in text
    assert len(caught.value.problems) == 5


def test_the_sample_says_what_holds(tmp_path: Path) -> None:
    """Every key of the sample, its comment sign taken away, is the default."""
    file = tmp_path / "sample.toml"
    lines = reference.sample().splitlines()
    for text in ("\n".join(lines), "\n".join(line[1:] if _is_key(line) else line for line in lines)):
        file.write_text(text)
        assert load(file, {}) == Config()


def _is_key(line: str) -> bool:
    return line.startswith("#") and line[1:2].isalpha() and not line.startswith(("#host", "#tls_"))


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
            ["p:3: deny: 'a b' is no address, domain, glob, network or header:Name=text (step 1, lists)"],
        ),
        ('[[step]]\nuse = "deny"\nreply = "250 ok"\n', ["p:3: reply: '250 ok' is no refusal"]),
        ('[[step]]\nuse = "tag"\ntags = ["a b"]\n', ["p:3: tags: tag 'a b' must be 1 to 64 letters"]),
        ('[[step]]\nuse = "forward"\nto = ["nobody"]\n', ["p:3: to: 'nobody' is no mail address"]),
        ('[[step]]\nuse = "python"\nfile = "rel.py"\n', ["p:3: file: rel.py must be an absolute path"]),
        ('[[step]]\nuse = "pass"\non_error = "panic"\n', ["p:3: step.0.on_error: write "]),
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


class _Every(Section):
    """A key of each kind."""

    whole: int = Field(1, ge=0, le=9)
    number: float = Field(1.0, gt=0, lt=9)
    choice: Literal["one", "two"] = "one"
    switch: bool = True
    text: str = Field("x", min_length=1, max_length=3, pattern="^x")
    several: tuple[str, ...] = Field((), min_length=0, max_length=1)
    file: Path = Path("x")
    names: dict[str, str] = Field(default_factory=dict)
    table: NodeSection = NodeSection()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"whole": "many"}, "whole: this is a whole number"),
        ({"whole": 1.5}, "whole: this is a whole number"),
        ({"whole": []}, "whole: this is a whole number"),
        ({"whole": -1}, "whole: write 0 or more"),
        ({"whole": 10}, "whole: write 9 or less"),
        ({"number": "many"}, "number: this is a number"),
        ({"number": []}, "number: this is a number"),
        ({"number": 0}, "number: write more than 0"),
        ({"number": 9.5}, "number: write less than 9"),
        ({"choice": "three"}, "choice: write 'one' or 'two'"),
        ({"switch": "perhaps"}, "switch: write true or false"),
        ({"switch": []}, "switch: write true or false"),
        ({"text": 1}, "text: this is a text"),
        ({"text": ""}, "text: write at least 1 characters"),
        ({"text": "xxxx"}, "text: write at most 3 characters"),
        ({"text": "y"}, "text: only what matches ^x"),
        ({"several": "x"}, "several: this is a list"),
        ({"several": ["x", "y"]}, "several: write at most 1 of them"),
        ({"file": 1}, "file: this is a path"),
        ({"names": "x"}, "names: this is a table"),
        ({"table": "x"}, "table: this is a table"),
    ],
)
def test_no_error_speaks_of_python_s_types(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidConfiguration) as wrong:
        validate(_Every, given, "file", {})
    (problem,) = wrong.value.problems
    assert problem.startswith(f"file: {sentence}")
    assert "Input" not in problem


def test_an_address_that_cannot_be_bound_says_why() -> None:
    denied, taken = (OSError(number, "x") for number in (errno.EACCES, errno.EADDRINUSE))
    assert "CAP_NET_BIND_SERVICE" in str(not_bound("listener.bind", Endpoint("127.0.0.1", 25), denied))
    for error, port in ((denied, 8025), (taken, 25)):
        assert "CAP_NET" not in str(not_bound("listener.bind", Endpoint("127.0.0.1", port), error))
    assert str(not_bound("web.bind", Endpoint("::1", 25), taken)).startswith("web.bind [::1]:25: another program")
