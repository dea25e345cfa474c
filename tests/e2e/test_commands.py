"""The commands as people and programs use them: what they print, how they end, what they change."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import smtplib
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import Node, free_port
from tests.conftest import need_root
from tests.e2e.steps import send, until


def sendswitch(*arguments: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    extra = ["--config", str(config)] if config else []
    line = [sys.executable, "-m", "sendswitch.cli.main", *arguments, *extra]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def test_demo_once() -> None:
    done = sendswitch("demo", "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("delivered", "bounced", "quarantined", "forwarded", "[NEWS]", "invoice.exe is a program"):
        assert word in done.stdout
    rows = json.loads(sendswitch("demo", "--once", "--json").stdout)
    assert len({row["sample"] for row in rows}) == 6


def test_demo_stays_until_it_is_told_to_stop(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "sendswitch.cli.main", "demo", "--data", str(tmp_path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            seen = ""
            while "Stop:" not in seen:
                piece = process.stdout.readline()
                assert piece, seen
                seen += piece
            web = re.search(r"http://\S+", seen)
            assert web
            assert seen.index(web[0]) == min(seen.index(other) for other in re.findall(r"http://\S+", seen))
            until(lambda: "invoice.exe" in fetch(web[0]))
            for link in re.findall(r'href="(/messages/\w+)"', fetch(web[0])):
                assert "<h2>Timeline</h2>" in fetch(web[0].rstrip("/") + link)
            edited = "async def process(mail, context):\n    from sendswitch.mail.verdict import Verdict\n"
            (tmp_path / "bob.py").write_text(f"{edited}    return Verdict.deny('as edited', reply='550 5.7.1 no')\n")
            smtp = re.search(r"--server 127\.0\.0\.1:(\d+)", seen)
            assert smtp
            send(int(smtp[1]), "bob@example.test", sender="editor@example.org")
            reports = tmp_path / "mail" / "editor@example.org" / "new"
            until(lambda: reports.is_dir() and list(reports.iterdir()))
            ask = re.search(r"sendswitch (message explain to:bob) --config (\S+)", seen)
            assert ask
            until(lambda: "as edited" in sendswitch(*ask[1].split(), "--config", ask[2]).stdout)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert (tmp_path / "mail" / "joe@example.test" / "new").is_dir()


def test_users_and_pipelines(tmp_path: Path) -> None:
    node = Node(tmp_path, "127.0.0.1:1")
    assert "is not there yet" in node.run("user", "list", check=False).stderr
    assert node.run("user", "add", "first@example.test").returncode == 0
    assert node.run("user", "rm", "first@example.test", "--yes").returncode == 0
    assert node.run("user", "list").stdout.startswith("no users")
    assert node.run("user", "add", "Joe@Example.test").returncode == 0
    assert node.run("user", "add", "joe@example.test", check=False).returncode == 4
    assert node.run("user", "add", "nonsense", check=False).returncode == 2
    assert node.run("pipeline", "show", "joe@example.test", check=False).returncode == 3
    file = tmp_path / "p.toml"
    file.write_text('[[step]]\nuse = "pas"\n')
    wrong = node.run("pipeline", "set", "joe@example.test", str(file), check=False)
    assert wrong.returncode == 2
    assert f"{file}:2: no processor 'pas'; did you mean 'pass'?" in wrong.stderr
    assert node.run("pipeline", "check", str(file), check=False).returncode == 2
    file.write_text('[[step]]\nuse = "pass"\n')
    assert node.run("pipeline", "check", str(file)).returncode == 0
    assert json.loads(node.run("pipeline", "set", "joe@example.test", str(file), "--json").stdout)["version"] == 1
    assert 'use = "pass"' in node.run("pipeline", "show", "joe@example.test").stdout
    (row,) = json.loads(node.run("user", "list", "--json").stdout)
    assert (row["address"], row["pipeline"]) == ("Joe@Example.test", 1)
    unasked = node.run("user", "rm", "joe@example.test", check=False)
    assert (unasked.returncode, "add --yes" in unasked.stderr) == (2, True)
    assert node.run("user", "rm", "joe@example.test", "--yes").returncode == 0
    assert node.run("user", "rm", "joe@example.test", "--yes", check=False).returncode == 3


def test_a_removed_user_comes_back_whole(tmp_path: Path) -> None:
    """The password and each version of the pipeline, the candidate too."""
    node, joe = Node(tmp_path, "127.0.0.1:1"), "Joe@Example.test"
    node.run("user", "add", joe)
    node.run("user", "password", joe)
    file = tmp_path / "p.toml"
    for command, use in (("set", "pass"), ("set", "deny"), ("candidate", "quarantine")):
        file.write_text(f'[[step]]\nuse = "{use}"\n')
        node.run("pipeline", command, joe, str(file))

    def known() -> list[Any]:
        return [
            json.loads(node.run(*command, "--json").stdout)
            for command in (("user", "list"), ("pipeline", "history", joe), ("pipeline", "show", joe))
        ]

    before = known()
    line = ["--config", str(node.config), "user", "rm", joe]
    for answer, code, removed in (("n", 1, 0), ("y", 0, 1)):
        assert asked_on_a_terminal(*line, answer=answer) == code
        assert len(json.loads(node.run("user", "list", "--removed", "--json").stdout)) == removed
    assert json.loads(node.run("user", "list", "--json").stdout) == []
    back = node.run("user", "restore", joe.lower())
    assert back.stdout == f"user {joe.lower()} is back; version 2 of the pipeline is live\n"
    assert known() == before
    for address, code in ((joe, 3), ("nobody@example.test", 3)):
        assert node.run("user", "restore", address, check=False).returncode == code
    node.run("user", "rm", joe, "--yes")
    node.run("user", "add", joe)
    assert node.run("user", "restore", joe, check=False).returncode == 4


def asked_on_a_terminal(*arguments: str, answer: str) -> int:
    """Run a command on a terminal of its own, and give an answer to what it asks; return its exit code."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "sendswitch.cli.main", *arguments])
    with open(terminal, "r+b", buffering=0) as screen:
        seen = b""
        while b"?" not in seen:
            seen += screen.read(1024)
        screen.write(f"{answer}\n".encode())
        with suppress(OSError):  # the other side of it is closed
            while screen.read(1024):
                pass
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_check(tmp_path: Path) -> None:
    good = tmp_path / "good.toml"
    good.write_text("")
    assert json.loads(sendswitch("check", "--json", config=good).stdout)["ok"] is True
    bad = tmp_path / "bad.toml"
    bad.write_text('[next_hop]\nadress = "x"\nidle = "soon"\n[web]\nbnd = 1\n')
    done = sendswitch("check", config=bad)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 3
    assert f"{bad}:2: unknown key 'next_hop.adress'; did you mean 'address'?" in done.stderr
    assert len(json.loads(sendswitch("--json", "check", config=bad).stdout)["errors"]) == 3
    certificate = tmp_path / "tls.toml"
    certificate.write_text('[[listener]]\ntls_certificate = "/none"\ntls_key = "/none"\n')
    assert sendswitch("check", config=certificate).returncode == 2


def test_commands_without_a_spool_say_what_to_do(tmp_path: Path) -> None:
    node = Node(tmp_path, "127.0.0.1:1")
    for command in (("queue", "list"), ("quarantine", "list"), ("audit",)):
        done = node.run(*command, check=False)
        assert done.returncode == 3
        assert "was `sendswitch serve` ever run?" in done.stderr


@pytest.mark.parametrize(
    "arguments", [("nope",), ("queue", "nope"), ("user", "add"), ("postfix", "print", "--mode", "x")]
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    done = sendswitch(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_serve_without_a_worker_keeps_mail_until_there_is_one(tmp_path: Path) -> None:
    """No verdict is no pass, whatever `on_timeout` says: that is about a worker that takes too long."""
    mail = tmp_path / "mail"
    settings = {"pipelines": {"deadline": "1s", "on_timeout": "pass"}}
    with Node(tmp_path, f"maildir:{mail}", command="serve", settings=settings) as node:
        node.add_pipeline("ann@example.test", '[[step]]\nuse = "quarantine"\n')
        with smtplib.SMTP("127.0.0.1", node.port) as client:
            client.sendmail("s@example.org", ["ann@example.test"], b"Subject: x\r\n\r\nx\r\n")
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert not list(mail.glob("*/new/*"))
            time.sleep(0.05)
    with Node(tmp_path, f"maildir:{mail}", settings=settings) as node:
        until(lambda: "ann@example.test" in node.run("quarantine", "list").stdout, node=node)
        assert not list(mail.glob("*/new/*"))


def test_metrics_and_health(tmp_path: Path) -> None:
    with Node(tmp_path, f"maildir:{tmp_path / 'mail'}") as node:
        base = f"http://127.0.0.1:{node.web}"
        assert fetch(f"{base}/livez") == "ok\n"
        ready = json.loads(fetch(f"{base}/readyz"))
        assert {check["name"]: check["status"] for check in ready["checks"]} == {
            "spool": "healthy",
            "next_hop": "healthy",
            "load": "healthy",
            "intake": "healthy",
        }
        text = fetch(f"{base}/metrics")
        for name in ("sendswitch_messages_accepted_total", "sendswitch_queue_depth", "sendswitch_quarantine_messages"):
            assert name in text


def test_stopping_is_orderly(tmp_path: Path) -> None:
    node = Node(tmp_path, f"127.0.0.1:{free_port()}")
    with node:
        pass
    assert node.process is not None
    assert node.process.returncode == 0
    assert node.log.read_text().splitlines()[-1].endswith('"event":"stopped"}')


def test_every_line_of_the_log_is_json_with_its_keys(tmp_path: Path) -> None:
    with Node(tmp_path, f"maildir:{tmp_path / 'mail'}") as node, smtplib.SMTP("127.0.0.1", node.port) as client:
        client.sendmail("s@example.org", ["ann@example.test"], b"Subject: private\r\n\r\nsecret\r\n")
    lines = [json.loads(line) for line in node.log.read_text().splitlines()]
    assert [line["event"] for line in lines if "msg_id" in line] == ["accepted", "ended"]
    assert all({"ts", "level", "event"} <= set(line) for line in lines)
    assert "private" not in node.log.read_text()
    assert "secret" not in node.log.read_text()


def test_the_configuration_is_shown_and_declared(tmp_path: Path) -> None:
    node = Node(tmp_path, "127.0.0.1:1", settings={"database": {"url": f"sqlite:///{tmp_path}/x.db"}})

    def said(*arguments: str) -> Any:
        return json.loads(node.run("config", *arguments, "--json").stdout)

    rows = {row["key"]: row for row in said("show", "--changed")}
    assert rows["next_hop.address"]["origin"].startswith(f"{node.config}:")
    assert rows["database.url"]["value"] == '"(secret)"'
    assert "web.bind" in node.run("config", "show", "web", "--origin").stdout
    assert said("schema")["properties"].keys() >= {"node", "listener"}
    assert "[node]" in node.run("config", "sample").stdout
    assert "# Configuration" in node.run("config", "reference").stdout
    file = tmp_path / "users.toml"
    file.write_text('[[user]]\naddress = "ann@example.test"\npipeline = """\n[[step]]\nuse = "pass"\n"""\n')
    assert "+[[step]]" in said("plan", str(file))["steps"][0]["diff"]
    assert said("export")["text"].strip() in ("", "user = []")
    assert said("apply", str(file))["applied"]
    assert said("apply", str(file))["steps"] == []
    exported = tmp_path / "out.toml"
    exported.write_text(node.run("config", "export").stdout)
    assert said("plan", str(exported), "--prune")["steps"] == []
    secret = "whsec_" + "c2VjcmV0" * 6
    notify = f'[[step]]\nuse = "notify"\nurl = "https://hook.example/"\nsecret = "{secret}"\n'
    node.add_pipeline("bob@example.test", notify)
    (tmp_path / "other.toml").write_text(notify.replace("whsec_c2V", "whsec_d2V"))
    shown = [node.run("config", "export").stdout, str(said("plan", str(exported), "--prune"))]
    assert node.run("config", "plan", str(exported), "--prune").stdout.count("(secret)") == 1
    node.run("pipeline", "set", "bob@example.test", str(tmp_path / "other.toml"))
    shown += [node.run("pipeline", command, "bob@example.test").stdout for command in ("show", "diff", "history")]
    assert "they differ in secrets only" in shown[3]
    assert not any("whsec_" in text for text in shown)
    assert secret in node.run("pipeline", "show", "bob@example.test", "--version", "1", "--secrets").stdout
    assert f'-secret = "{secret}"' in node.run("pipeline", "diff", "bob@example.test", "--secrets").stdout
    exported.write_text(node.run("config", "export").stdout)
    hidden = node.run("config", "apply", str(exported), check=False)
    assert (hidden.returncode, "it was hidden" in hidden.stderr) == (2, True)
    exported.write_text(node.run("config", "export", "--secrets").stdout)
    assert said("plan", str(exported), "--prune")["steps"] == []
    file.write_text('[[user]]\naddress = "ann@example.test"\npipeline = "[[stp]]"\n')
    done = node.run("config", "apply", str(file), check=False)
    assert done.returncode == 2
    assert "did you mean 'step'" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        ("user", "list"),
        ("list", "show"),
        ("pipeline", "history", "a@b.example"),
        ("message", "list"),
        ("config", "export"),
        ("audit",),
        ("queue", "list"),
    ],
)
def test_commands_that_only_read_create_nothing(line: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "sendswitch.toml"
    file.write_text(f'[node]\ndata = "{tmp_path}/wrong/data"\n')
    done = sendswitch(*line, config=file)
    assert done.returncode in (3, 75), done.stdout + done.stderr
    assert f"{tmp_path}/wrong/data" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sendswitch.toml"]


def test_what_root_creates_belongs_to_whom_the_folder_belongs_to(tmp_path: Path) -> None:
    need_root()
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    file = tmp_path / "sendswitch.toml"
    file.write_text(f'[node]\ndata = "{home}/var/data"\n')
    assert sendswitch("user", "add", "ann@example.test", config=file).returncode == 0
    made = sorted(path for path in home.rglob("*"))
    assert [path.name for path in made] == ["var", "data", "sendswitch.db"]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(65534, 65534)}
    assert [oct(path.stat().st_mode & 0o777) for path in made[1:]] == ["0o700", "0o600"]


# What a command must not import: each costs more than the command may take.
SLOW = {"sqlalchemy", "alembic", "httpx", "uvloop", "starlette", "uvicorn", "prometheus_client", "rich"}


@pytest.mark.parametrize(
    ("command", "never"),
    [
        (("--help",), SLOW | {"pydantic", "asyncio", "sqlite3"}),
        (("--version",), SLOW | {"pydantic", "asyncio", "sqlite3"}),
        (("queue", "list"), SLOW | {"asyncio"}),
        (("quarantine", "list"), SLOW | {"asyncio"}),
        (("pipe", "-f", "a@example.test", "b@example.test"), SLOW - {"prometheus_client"}),
    ],
    ids=lambda value: "" if isinstance(value, set) else " ".join(value),
)
def test_commands_import_only_their_own(command: tuple[str, ...], never: set[str], tmp_path: Path) -> None:
    """So they start in a fraction of the time that all of the program takes."""
    node = Node(tmp_path, "127.0.0.1:1")
    (node.data / "spool").mkdir(parents=True)
    options = () if command[0].startswith("-") else ("--config", str(node.config))
    line = [sys.executable, "-X", "importtime", "-m", "sendswitch.cli.main", *command, *options]
    seen = subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stderr
    imported = {name.strip().partition(".")[0] for name in re.findall(r"\|([^|\n]*)$", seen, re.M)}
    assert "typer" in imported, seen
    assert not imported & never


def completed(text: str) -> list[str]:
    """Return the words that bash offers for the last one of a line."""
    words = text.split(" ")
    asked = f"""eval "$(sendswitch completion bash)"
COMP_WORDS=({" ".join(words[:-1])} "{words[-1]}") COMP_CWORD={len(words) - 1}
_sendswitch_completion sendswitch
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    found = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True, env=found)
    return done.stdout.split()


def test_a_shell_completes_commands_and_options() -> None:
    assert completed("sendswitch qu") == ["queue", "quarantine"]
    assert completed("sendswitch queue su") == ["suspend"]
    assert "--dry-run" in completed("sendswitch queue bounce --")
    for shell in ("zsh", "fish"):
        assert "_SENDSWITCH_COMPLETE" in sendswitch("completion", shell).stdout
    assert sendswitch("completion", "csh").returncode == 2


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    """What began already ends in order, so that nothing else is printed."""
    with Node(tmp_path / "first", "127.0.0.1:1") as first:
        for key, value in (("web.bind", first.web), ("listener.bind", first.port)):
            second = Node(tmp_path / key, "127.0.0.1:1")
            text = second.config.read_text()
            own = second.web if key == "web.bind" else second.port
            second.config.write_text(text.replace(f":{own}", f":{value}"))
            done = second.run("run", check=False)
            told = [line for line in done.stderr.splitlines() if not line.startswith("{")]
            taken = (
                f"sendswitch: {key} 127.0.0.1:{value}: another program listens there already; choose another address"
            )
            assert (done.returncode, told) == (75, [taken])
            events = [json.loads(line)["event"] for line in done.stderr.splitlines() if line.startswith("{")]
            assert events[-1] == "stopped"


# A command as another user, who need not be able to read the program.
# What is imported late must be there before: the program may lie where only root may read.
AS_NOBODY = """
import contextlib, io, os, sqlalchemy.dialects.sqlite, sys, typer.main
import sendswitch.bootstrap.parts, sendswitch.db.journal
from sendswitch.cli import main
for name, command in typer.main.get_command(main.app).commands.items():
    pass
arguments, sys.argv = sys.argv, ["sendswitch", "user", "list", "--help"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main.main()
sys.argv = arguments
os.seteuid(65534)
main.main()
"""


def test_a_database_that_belongs_to_another_user_is_told_in_words(public: Path) -> None:
    need_root()
    node = Node(public, "127.0.0.1:1")
    node.run("user", "add", "joe@example.test")
    for mode, words in ((0o755, "this user cannot"), (0o700, "permission denied")):
        node.data.chmod(mode)
        for command in (("user", "add", "ann@example.test"), ("user", "list"), ("message", "list"), ("audit",)):
            line = [sys.executable, "-c", AS_NOBODY, "--config", str(node.config), *command]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            assert done.returncode in (1, 3, 75), done
            assert re.fullmatch(rf"sendswitch: .*({words}|no spool).*\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    "command", [("queue", "list"), ("message", "list"), ("hold", "list"), ("queue", "drop", "--reason", "x")]
)
def test_a_word_with_an_h_does_not_ask_for_help(command: tuple[str, ...], tmp_path: Path) -> None:
    """A search may exclude: `-from:hal`. Options of one letter would be read out of such a word."""
    node = Node(tmp_path, "127.0.0.1:1")
    for word in ("-from:hal", "-id:38grhh0000000", "-his"):
        assert "Usage" not in node.run(*command, word, check=False).stdout
    for asked in ("-h", "--help"):
        assert node.run(*command, asked).stdout.startswith("Usage")
    assert sendswitch("-h").stdout.startswith("Usage")
    assert sendswitch("queue", "-h").stdout.startswith("Usage")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ('[broker]\nurls = ["amqp://site:secret@127.0.0.1:1/"]\n', True),
        ('[broker]\nurls = ["amqp://127.0.0.1:1/"]\nmanagement = "http://boss:secret@127.0.0.1:1"\n', True),
        ('[database]\nurl = "postgresql+psycopg://me:secret@127.0.0.1:1/x"\n', True),
        ('[broker]\nurls = ["amqp://127.0.0.1:1/"]\n', False),
    ],
)
def test_the_doctor_finds_passwords_that_others_can_read(tmp_path: Path, setting: str, told: bool) -> None:
    file = tmp_path / "sendswitch.toml"
    file.write_text(f'[node]\ndata = "data"\n{setting}')
    for mode, found in ((0o644, told), (0o640, False)):
        file.chmod(mode)
        findings = json.loads(sendswitch("doctor", "--json", config=file).stdout)
        assert any(one["what"] == "secrets" for one in findings) is found, mode
