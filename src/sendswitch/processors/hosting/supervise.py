"""Run one program and end every process that it started. `exec` starts this file as a script for each run.

    python -I -S supervise.py PARENT MEMORY CPU_SECONDS FILE_SIZE PROCESSES FILE PROGRAM [ARGUMENT ...]

MEMORY and FILE_SIZE are bytes, and PROCESSES is how many it may have at once.

The program gets standard input, output and error, and the open FILE unless it is 0; all others are closed.

The kernel gives orphans to the nearest subreaper above them (prctl(2)), so a process that left its parent, its group or
its session is still below this script. The script kills them all when the program ends, when there are more than
PROCESSES at once, at SIGTERM, and when PARENT dies. It ends with the exit status or the signal of the program.
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
# Seconds between two counts of the processes; between two attempts to kill them all; until the script gives up on those
# that cannot be killed.
PAUSE, AGAIN, PATIENCE = 0.02, 0.001, 10.0
# Processes of the user (not of root) above which the kernel refuses a fork: a program forks faster than we count.
MOST_OF_USER = 10_000
_HEARD = (signal.SIGTERM, signal.SIGCHLD)
# Signals that Python ignores or handles. A program expects the default actions.
_DEFAULTS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT)


def below(pid: int) -> Iterator[int]:
    """Yield the descendants of a process, each before its own children are read. Yield none for a dead process."""
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
    """Kill the descendants of a process. Stop each before its children are read, so that it forks no more."""
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


def ends_with(parent: int, number: signal.Signals) -> None:
    """Ask the kernel for a signal at the death of the parent. End at once if the parent is dead already."""
    _control(_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(127)


def close_others(kept: int = 0) -> None:
    """Close all files but the three standard ones and `kept`. The starter of the node may have left some open."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != kept:
            with suppress(OSError):  # the listing itself
                os.close(int(name))


def _become(words: list[str], limits: dict[int, int], niceness: int, parent: int) -> None:
    """Replace this process by the program. Return only if that fails."""
    try:
        ends_with(parent, signal.SIGKILL)
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
        for kind, most in limits.items():
            hard = resource.getrlimit(kind)[1]
            limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (limit, limit))
        for number in _DEFAULTS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        os.execv(words[0], words)  # noqa: S606 - the program that a person configured, without a shell
    except BaseException as error:  # a traceback would end with a status that looks like the program's
        _say(f"{words[0]} cannot be started: {error}")


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _reaped(program: int) -> int | None:
    """Reap the processes that ended. Return the status of the program if it ended."""
    status = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == program:
                status = ended[1]
    return status


def _wait(program: int, most: int) -> int:
    """Wait for the end of the program, too many processes, or SIGTERM. Kill the descendants; return the status."""
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
        time.sleep(AGAIN)
    if status is None and many:
        _say(f"it had more than {most} processes")
    return signal.SIGKILL if status is None else status


def main(arguments: list[str]) -> int:
    """Run the program of the arguments. Return its exit status, or end by the signal that ended it."""
    parent, memory, cpu, files, most, kept = map(int, arguments[:6])
    words, ours = arguments[6:], os.getpid()
    close_others(kept)
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
    ends_with(parent, signal.SIGTERM)
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):  # only root may; root has no RLIMIT_NPROC, so the script must outrun its program
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    program = os.fork()
    if program == 0:
        _become(words, limits, niceness, ours)
        os._exit(127)
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
