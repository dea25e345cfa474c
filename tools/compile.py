"""PYTHON tools/compile.py: the package with its hot modules compiled by mypyc, in a folder whose name it prints.

The modules are named in pyproject.toml ([tool.sendswitch] compiled). The folder is below .compiled and named after
everything that went into it; what is there already is not made again. Needs mypy, setuptools, the run-time
dependencies, whose types count, and a C compiler with Python's headers. Exits with 3 when that compiler is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from mypy.version import __version__ as mypy_version
from mypyc.build import mypycify
from setuptools import setup

ROOT = Path(__file__).resolve().parents[1]
# -O2 and not -O3: as fast here, and compiled in two thirds of the time.
OPTIMIZATION = "2"


def main() -> None:
    """Compile unless it was done before, and print the folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    modules = [f"sendswitch/{name}.py" for name in project["tool"]["sendswitch"]["compiled"]]
    cache = ROOT / ".compiled"
    cache.mkdir(exist_ok=True)
    wanted = cache / _digest()
    with _alone(cache / "lock"):
        if not wanted.is_dir():
            _require_compiler()
            for old in cache.glob("[0-9a-f]*"):
                shutil.rmtree(old)
            _compile(modules, wanted)
    print(wanted)


def _digest() -> str:
    """Return a digest of what the result is made from."""
    digest = hashlib.sha256(f"{mypy_version} {sys.version} {sysconfig.get_platform()}".encode())
    for path in [ROOT / "pyproject.toml", Path(__file__), *sorted((ROOT / "src").rglob("*.py"))]:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _require_compiler() -> None:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if shutil.which(compiler) is None or not header.exists():
        sys.stderr.write("There is no C compiler with Python's headers; as root: apt-get install gcc python3-dev\n")
        sys.exit(3)


def _compile(modules: list[str], wanted: Path) -> None:
    """Compile the modules of a copy, and put it in its place when it is complete."""
    with tempfile.TemporaryDirectory(dir=wanted.parent, prefix="tmp-") as name:
        folder = Path(name)
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / "src/sendswitch", folder / "sendswitch", ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)
        os.chdir(folder)
        with _quiet():
            options = ["--config-file=pyproject.toml", *modules]
            extensions = mypycify(options, opt_level=OPTIMIZATION, debug_level="0")
            setup(name="sendswitch", packages=[], ext_modules=extensions, script_args=["-q", "build_ext", "--inplace"])
        os.chdir(ROOT)
        shutil.rmtree(folder / "build")
        folder.rename(wanted)
        folder.mkdir()  # for the end of the temporary folder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what compilers print to standard error: the folder alone is the output."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


main()
