"""Run one program, and end every process that it started: a script of its own, which `exec` starts for each run.

    python -I -S supervise.py BYTES_OF_MEMORY SECONDS_OF_CPU BYTES_OF_A_FILE PROCESSES BESIDE PROGRAM [ARGUMENT ...]

The kernel gives orphans to the nearest subreaper above them (prctl(2)), so whatever left its parent, its group or its
session is still found below this process. All are killed when the program ends, when there are more than PROCESSES at
once, at SIGTERM, and when the node dies. The exit status, or the signal, is the program's.

Whoever forks faster than processes are counted meets a limit of the kernel (RLIMIT_NPROC): what the user runs already,
PROCESSES, and BESIDE for what others start meanwhile. It does not hold for root; there this process comes before all
others.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

# Options of prctl(2).
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
# Seconds between two counts of the processes; seconds after which those that cannot be killed are left alone.
PAUSE, PATIENCE = 0.02, 10.0
_HEARD = (signal.SIGTERM, signal.SIGCHLD)
# What Python sets otherwise and programs expect as it was.
_DEFAULTS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT)


def below(pid: int) -> Iterator[int]:
    """Yield the processes below one, each before its children are looked for; none of a process that is gone."""
    waiting = [pid]
    while waiting:
        for one in _children(waiting.pop()):
            yield one
            waiting.append(one)


def _children(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                yield from map(int, (thread / "children").read_text().split())


def kill_below(pid: int) -> None:
    """Kill everything below a process once. Each is stopped before its children are looked for, to start no more."""
    found = []
    for one in below(pid):
        _signal(one, signal.SIGSTOP)
        found.append(one)
    for one in found:
        _signal(one, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _running() -> int:
    """Return how many processes and threads the user has."""
    count, user = 0, os.getuid()
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdecimal() and process.stat().st_uid == user:
                count += len(list((process / "task").iterdir()))
    return count


def _become(words: list[str], limits: dict[int, int], niceness: int) -> None:
    """Become the program; returns only if that fails."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
        for kind, most in limits.items():
            resource.setrlimit(kind, (most, most))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        os.execv(words[0], words)  # noqa: S606 - the program that a person configured, without a shell
    except (OSError, ValueError) as error:
        os.write(2, f"{words[0]} cannot be started: {error}\n".encode())


def _reaped(program: int, known: int | None) -> int | None:
    """Reap what has ended; return the status of the program when it is among them or was before."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == program:
                known = ended[1]
    return known


def _wait(program: int, most: int) -> int:
    """Wait until the program ends, has too many processes, or is not wanted any more; return its status."""
    ours, status = os.getpid(), None
    while status is None:
        heard = signal.sigtimedwait(_HEARD, PAUSE)
        status = _reaped(program, status)
        if status is None and len(list(islice(below(ours), most + 1))) > most:
            os.write(2, f"it had more than {most} processes\n".encode())
            break
        if heard is not None and heard.si_signo == signal.SIGTERM:
            break
    until = time.monotonic() + PATIENCE
    while any(below(ours)) and time.monotonic() < until:
        kill_below(ours)
        _reaped(program, status)
    return signal.SIGKILL if status is None else status


def main(arguments: list[str]) -> int:
    """Run what the arguments say; return its exit status, or end as it was ended."""
    memory, cpu, files, most, beside = map(int, arguments[:5])
    words = arguments[5:]
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_FSIZE: files,
    }
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    if os.getuid() == 0:
        with suppress(PermissionError):  # in a container
            os.setpriority(os.PRIO_PROCESS, 0, -20)
    else:
        limits[resource.RLIMIT_NPROC] = _running() + most + beside
    for number in _DEFAULTS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_SET_CHILD_SUBREAPER, 1), (_SET_PDEATHSIG, signal.SIGTERM)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    program = os.fork()
    if program == 0:
        _become(words, limits, niceness)
        os._exit(127)
    os.close(0)
    os.close(1)
    status = _wait(program, most)
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
