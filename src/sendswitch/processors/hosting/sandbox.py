"""A sandbox for user code: bubblewrap, a small program of Debian that needs no root (bwrap(1)), version 0.8 or later.

What runs in it sees the system read-only, an empty /tmp of its own, and what it is given to read, but no other process,
no network, no data of the switch, no configuration and no home. It gets no new privileges, and ends with its starter.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import orjson

import sendswitch
from sendswitch.errors import Temporary

# The package to install, and where its program may be.
PACKAGE, PATH = "bubblewrap", "/usr/local/bin:/usr/bin:/bin"
# Bytes of /tmp; seconds in which a trial must be through; the number of the user and group inside.
ROOM, PATIENCE, NOBODY = 64 * 1024 * 1024, 10.0, "65534"
# Where a system keeps programs and libraries. Some of these are links on some systems.
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# What programs read of /etc: where libraries and certificates are, which time it is, what a number or an ending means.
_ETC = (
    *("alternatives", "ca-certificates.conf", "ld.so.cache", "localtime", "mime.types", "nsswitch.conf", "protocols"),
    *("services", "ssl/certs", "ssl/openssl.cnf"),
)
# And what we say there instead of the system: one user, and localhost.
_OURS = Path(__file__).parent / "etc"
# Where a Python has its programs and libraries, below its prefix.
_PYTHON = ("bin", "lib", "lib64", "pyvenv.cfg")


class NoSandbox(Temporary):
    """There is no sandbox here, so that nothing is run."""


def wrapped(words: Sequence[str], readable: Iterable[Path] = (), status: int | None = None) -> list[str]:
    """Return the command that runs a program in a sandbox, where it can also read these files and folders.

    The program has the process 1 as its parent. How it ended is written to the file descriptor `status`, for
    `ended_with`. Raises NoSandbox.
    """
    if (why := trouble()) != "":
        raise NoSandbox(why)
    return _wrapped(words, readable, status)


def ended_with(told: bytes) -> int | None:
    """Return the exit status of a program from what was written to `status`, below zero for a signal; None when the
    sandbox itself ended before.
    """
    for line in told.splitlines():
        if b'"exit-code"' in line and (said := orjson.loads(line).get("exit-code")) is not None:
            return 128 - said if said > 128 else int(said)
    return None


def _wrapped(words: Sequence[str], readable: Iterable[Path], status: int | None = None) -> list[str]:
    if (program := _program()) is None:
        raise NoSandbox(MISSING)
    line = [program] if status is None else [program, "--json-status-fd", str(status)]
    line += ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
    line += ["--uid", NOBODY, "--gid", NOBODY, "--cap-drop", "ALL", "--setenv", "HOME", "/tmp"]  # noqa: S108 - its own
    line += ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        if (path := Path(name)).is_symlink():
            line += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            line += ["--ro-bind", name, name]
    for name in _ETC:
        line += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for path in sorted(_OURS.iterdir()):
        line += ["--ro-bind", str(path), f"/etc/{path.name}"]
    line += ["--proc", "/proc", "--dev", "/dev"]
    for name in ("/dev/shm", "/tmp"):  # noqa: S108 - its own
        line += ["--size", str(ROOM), "--tmpfs", name]
    for path in readable:
        line += ["--ro-bind", str(path), str(path)]
    # Nothing else can be written to, or it would be memory without a limit. Root could change the kernel in /proc.
    for name in ("/dev", "/proc", "/"):
        line += ["--remount-ro", name]
    return [*line, "--chdir", "/", "--", *words]


def for_python() -> tuple[Path, ...]:
    """Return where Python and this package are, outside of the system's own places."""
    places = [Path(prefix) / name for prefix in (sys.prefix, sys.base_prefix) for name in _PYTHON]
    places.append(Path(sendswitch.__file__).parent)
    return tuple(path for path in dict.fromkeys(places) if path.exists() and not path.is_relative_to("/usr"))


def for_file(file: Path) -> tuple[Path, ...]:
    """Return what must be readable for a file that a user names: itself, and where it lies if it is a link.

    Raises NoSandbox for one that not everybody may read: its content would be shown to this user.
    """
    place = file.resolve()
    try:
        mode = place.stat().st_mode
    except OSError as error:
        raise NoSandbox(f"{file} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode) or not mode & stat.S_IROTH:
        raise NoSandbox(f"{file} is not in a sandbox unless everybody may read it: chmod o+r {file}")
    return tuple(path for path in dict.fromkeys((file, place)) if not path.is_relative_to("/usr"))


_made = threading.Event()
MISSING = f"the sandbox needs {PACKAGE}, which is not installed: apt-get install {PACKAGE}"


def trouble() -> str:
    """Return why there is no sandbox here, '' where there is one. Tries until the first success, then remembers it."""
    if not _made.is_set() and (why := _try()) != "":
        return why
    _made.set()
    return ""


def installed() -> bool:
    """Return whether the program is there; whether it can make a sandbox only the workers know."""
    return _program() is not None


def _try() -> str:
    if not installed():
        return MISSING
    try:
        line = _wrapped(["/bin/true"], ())
        done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, check=False)  # noqa: S603 - ours
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{PACKAGE} cannot be run: {error}"
    if done.returncode == 0:
        return ""
    said = " ".join(done.stderr.split())[:200]
    return (
        f"{PACKAGE} cannot make a sandbox here: {said}. It must be version 0.8 or later, and the kernel, AppArmor and"
        " the unit of systemd must allow user namespaces"
    )


def _program() -> str | None:
    return shutil.which("bwrap", path=PATH)
