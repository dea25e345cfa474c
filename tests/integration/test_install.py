"""`tools/install` installs what the lock file names, whatever newer versions an index has."""

from __future__ import annotations

import hashlib
import subprocess
import venv
import zipfile
from pathlib import Path

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
