"""What is installed is what the lock file names, from a checkout and from the Debian package."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import need

ROOT = Path(__file__).parents[2]


def _wheel(folder: Path, name: str, version: str, *requires: str) -> str:
    """Make a wheel; return its digest as a lock file writes it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", "Provides-Extra: toml"]
    about = "\n".join([*lines, *(f"Requires-Dist: {one}" for one in requires)])
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", f"version = {version!r}\n")
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", about + "\n")
        wheel.writestr(
            f"{name}-{version}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{name}-{version}.dist-info/RECORD", "")
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def _install(environment: Path, index: Path, lock: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "tools/install", environment / "bin/python", lock],
        env={
            "PATH": "/usr/bin:/bin",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(index),
            "PIP_CONFIG_FILE": "/dev/null",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_newer_version_on_the_index_changes_nothing(tmp_path: Path) -> None:
    index, environment = tmp_path / "index", tmp_path / "venv"
    index.mkdir()
    venv.create(environment, with_pip=True)
    locked = _wheel(index, "measure", "1.0")
    plugin = _wheel(index, "plugin", "1.0", "measure[toml]>=1.0")
    _wheel(index, "measure", "1.1")  # an extra in a requirement makes an old pip look past the lock
    lock = tmp_path / "all.lock"
    lock.write_text(f"measure==1.0 --hash={locked}\nplugin==1.0 --hash={plugin}\n")

    done = _install(environment, index, lock)

    assert done.returncode == 0, done.stderr
    said = subprocess.run(
        [environment / "bin/python", "-c", "import measure, plugin; print(measure.version, plugin.version)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "1.0 1.0\n"


def test_a_lock_file_that_misses_a_package_is_an_error(tmp_path: Path) -> None:
    index, environment = tmp_path / "index", tmp_path / "venv"
    index.mkdir()
    venv.create(environment, with_pip=True)
    plugin = _wheel(index, "plugin", "1.0", "measure>=1.0")
    lock = tmp_path / "all.lock"
    lock.write_text(f"plugin==1.0 --hash={plugin}\n")

    done = _install(environment, index, lock)

    assert done.returncode != 0
    assert "plugin 1.0 requires measure" in done.stdout


def _installed(python: Path) -> set[str]:
    """What is installed for an interpreter beside this project, as name==version."""
    names = "from importlib.metadata import distributions as d; print(*(f'{x.name}=={x.version}' for x in d()))"
    said = subprocess.run([python, "-I", "-c", names], capture_output=True, text=True, check=True).stdout
    return set(said.lower().replace("_", "-").split()) - {f"sendswitch=={version('sendswitch')}"}


def _locked() -> set[str]:
    locked = re.findall(r"^([\w.-]+==[^\s;]+)", (ROOT / "requirements/run.lock").read_text(), re.M)
    return {one.lower().replace("_", "-") for one in locked}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package of this checkout, unpacked."""
    need("dpkg-deb", "dpkg")
    folder = tmp_path_factory.mktemp("deb")
    built = subprocess.run(
        [ROOT / "tools/deb", "/usr/bin/python3", folder], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("sendswitch_*.deb")
    assert built.stdout.strip() == str(file)
    subprocess.run(["dpkg-deb", "-R", file, folder / "unpacked"], check=True)
    return folder / "unpacked"


def test_the_package_has_what_an_administrator_looks_for(package: Path) -> None:
    for path in (
        "etc/sendswitch/sendswitch.toml",
        "etc/sendswitch/conf.d",
        "usr/lib/systemd/system/sendswitch.service",
        "usr/lib/systemd/system/sendswitch-worker@.service",
        "usr/share/man/man1/sendswitch.1.gz",
        "usr/share/man/man5/sendswitch.toml.5.gz",
        "usr/share/bash-completion/completions/sendswitch",
        "usr/share/zsh/vendor-completions/_sendswitch",
        "usr/share/fish/vendor_completions.d/sendswitch.fish",
        "usr/share/doc/sendswitch/copyright",
        "usr/share/doc/sendswitch/changelog.gz",
    ):
        assert (package / path).exists(), path
    home = package / "usr/lib/sendswitch"
    assert os.readlink(package / "usr/bin/sendswitch") == "../lib/sendswitch/bin/sendswitch"
    assert (home / "bin/sendswitch").read_text().startswith("#!/usr/lib/sendswitch/bin/python3")
    assert {re.sub(r"^python[\d.]*$", "python", path.name) for path in (home / "bin").iterdir()} == {
        "python",
        "sendswitch",
    }
    # Nothing tells of the folders it was built in, so that one commit gives one package.
    assert list(home.rglob("direct_url.json")) == []
    found = subprocess.run(["grep", "-rIl", "/root/usr/lib/sendswitch", package], capture_output=True, check=False)
    assert found.stdout == b""
    assert stat.S_IMODE((package / "etc/sendswitch/sendswitch.toml").stat().st_mode) == 0o640
    assert tomllib.loads((package / "etc/sendswitch/sendswitch.toml").read_text()) is not None
    control = (package / "DEBIAN/control").read_text()
    assert "@" not in control.replace("postmaster@localhost", "")
    for script in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", package / "DEBIAN" / script], check=True)


def test_the_package_runs_with_what_is_in_it(package: Path) -> None:
    """With the versions of the lock file, and nothing else of this machine's Python."""
    python = package / "usr/lib/sendswitch/bin/python"
    done = subprocess.run(
        [python, "-I", "-m", "sendswitch.cli.main", "demo", "--once", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 8
    assert _installed(python) == _locked()
    assert _compiled(package / "usr/lib/sendswitch")


def test_the_program_is_installed_below_a_prefix(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "-s", "install", f"PREFIX={tmp_path}", "PYTHON=/usr/bin/python3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = subprocess.run([tmp_path / "bin/sendswitch", "--version"], capture_output=True, text=True, check=False)
    assert (shown.returncode, version("sendswitch") in shown.stdout) == (0, True), shown.stderr
    assert _compiled(tmp_path / "lib/sendswitch")


def _compiled(environment: Path) -> bool:
    """Whether the modules of the mail path are compiled in an environment."""
    return len(list(environment.glob("lib/python3*/site-packages/sendswitch/smtp/protocol/server.*.so"))) == 1


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel of this checkout, and the versions to install with it."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run([ROOT / "tools/wheel", sys.executable, folder], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    return Path(built.stdout.strip()), next(folder.glob("*.constraints.txt"))


@pytest.mark.parametrize("tool", ["pipx", "uv"])
def test_the_wheel_is_installed_with_the_versions_it_was_tested_with(
    wheel: tuple[Path, Path], tool: str, tmp_path: Path
) -> None:
    file, constraints = wheel
    places = ("HOME", "PIPX_HOME", "PIPX_BIN_DIR", "PIPX_MAN_DIR", "UV_TOOL_DIR", "UV_TOOL_BIN_DIR")
    env = os.environ | {name: str(tmp_path / name) for name in places}
    commands = tmp_path / ("PIPX_BIN_DIR" if tool == "pipx" else "UV_TOOL_BIN_DIR")
    install = {
        "pipx": ["install", f"--pip-args=--constraint {constraints}"],
        "uv": ["tool", "install", "--python", sys.executable, "--constraints", str(constraints)],
    }

    line = [sys.executable, "-m", tool, *install[tool], f"{file}[auth]"]
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert [path.name for path in commands.iterdir()] == ["sendswitch"]
    program = commands / "sendswitch"
    assert _installed(program.resolve().parent / "python") == _locked()
    assert _compiled(program.resolve().parents[1])
    shown = subprocess.run(
        [program, "demo", "--once", "--json"], env=env, capture_output=True, check=False, timeout=120
    )
    assert shown.returncode == 0, shown.stderr
    assert len(json.loads(shown.stdout)) == 8
