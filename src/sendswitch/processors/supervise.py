"""Run one program, and end every process that it started: a script of its own, which `exec` starts for each run.

    python -I -S supervise.py PARENT BYTES_OF_MEMORY SECONDS_OF_CPU BYTES_OF_A_FILE PROCESSES PROGRAM [ARGUMENT ...]

The kernel gives orphans to the nearest subreaper above them (prctl(2)), so whatever left its parent, its group or its
session is still found below this process. All are killed when the program ends, when there are more than PROCESSES at
once, at SIGTERM, and when PARENT dies. The exit status, or the signal, is the program's.
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
# All processes of the user, from which on the kernel refuses the program more: it forks faster than we count. Not root.
MOST_OF_USER = 10_000
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


def _control(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _ends_with(parent: int, number: signal.Signals) -> None:
    """Be sent a signal when the parent dies, which it may have done already."""
    _control(_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(127)


def _become(words: list[str], limits: dict[int, int], niceness: int, parent: int) -> None:
    """Become the program; returns only if that fails."""
    try:
        _ends_with(parent, signal.SIGKILL)
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
        for kind, most in limits.items():
            hard = resource.getrlimit(kind)[1]
            limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (limit, limit))
        for number in _DEFAULTS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        os.execv(words[0], words)  # noqa: S606 - the program that a person configured, without a shell
    except BaseException as error:  # whose exit status would be taken for the program's
        _say(f"{words[0]} cannot be started: {error}")


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _reaped(program: int) -> int | None:
    """Reap what has ended; return the status of the program when it is among them."""
    status = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == program:
                status = ended[1]
    return status


def _wait(program: int, most: int) -> int:
    """Wait until the program ends, has too many processes, or is not wanted any more; return its status."""
    ours, status, many = os.getpid(), None, False
    while status is None and not many:
        heard = signal.sigtimedwait(_HEARD, PAUSE)
        status = _reaped(program)
        many = len(list(islice(below(ours), most + 1))) > most
        if heard is not None and heard.si_signo == signal.SIGTERM:
            break
    until = time.monotonic() + PATIENCE
    while any(below(ours)) and time.monotonic() < until:
        kill_below(ours)
        _reaped(program)
        time.sleep(PAUSE / 20)
    if status is None and many:
        _say(f"it had more than {most} processes")
    return signal.SIGKILL if status is None else status


def main(arguments: list[str]) -> int:
    """Run what the arguments say; return its exit status, or end as it was ended."""
    parent, memory, cpu, files, most = map(int, arguments[:5])
    words, ours = arguments[5:], os.getpid()
    if not Path(f"/proc/self/task/{ours}/children").exists():
        _say("this kernel does not tell what a process started (CONFIG_PROC_CHILDREN), so nothing is run")
        return 127
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_FSIZE: files,
        resource.RLIMIT_NPROC: MOST_OF_USER,
    }
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    _control(_SET_CHILD_SUBREAPER, 1)
    _ends_with(parent, signal.SIGTERM)
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):  # of who is not root, or in a container; root has no limit to its processes
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    program = os.fork()
    if program == 0:
        _become(words, limits, niceness, ours)
        os._exit(127)
    os.close(0)
    os.close(1)
    status = _wait(program, most)
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        os.kill(ours, os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
