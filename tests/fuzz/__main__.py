"""Fuzz every target in turn, each in a process of its own; exit with 1 when one raised.

    python -m tests.fuzz [--seconds N] [TARGET ...]     atheris, which knows which lines an input reached
    python -m tests.fuzz cost MODULE:WORK < MESSAGE     the seconds of a core that it takes

The input that made a target raise is printed, for a test of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

LONGEST = 4000


def fuzz(name: str, seconds: int, seed: int) -> None:
    """Fuzz one target; ends the process."""
    import atheris  # here, because it is slow to load and the processes that measure do not need it

    with atheris.instrument_imports(include=["sendswitch"]):
        from tests.fuzz import targets
    target = {one.__name__: one for one in targets.SEEDS}[name]
    with tempfile.TemporaryDirectory() as folder:
        for n, data in enumerate(targets.SEEDS[target]):
            (Path(folder) / str(n)).write_bytes(data)
        options = [
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-max_len={LONGEST}",
            "-timeout=60",
            "-close_fd_mask=1",
        ]
        atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", folder], partial(_told, target))
        atheris.Fuzz()


def _told(target: Callable[[bytes], None], data: bytes) -> None:
    try:
        target(data or b"\0")
    except Exception:  # of any kind: it is what the fuzzer looks for, and is raised again
        traceback.print_exc()  # the process ends without writing what it has not written yet
        print(f"for {data!r}", file=sys.stderr, flush=True)
        raise


def cost(work: str) -> None:
    """Print what a message on standard input takes."""
    from tests.fuzz import targets

    module, _, name = work.partition(":")
    print(targets.cost(getattr(import_module(module), name), sys.stdin.buffer.read()))


def main() -> None:
    """Fuzz, or measure."""
    match sys.argv[1:]:
        case ["cost", work]:
            return cost(work)
        case ["one", name, seconds, seed]:
            return fuzz(name, int(seconds), int(seed))
    from tests.fuzz import targets

    known = [target.__name__ for target in targets.SEEDS]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(known)}; all when none is named")
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    failed = []
    for name in chosen.targets or known:
        print(f"{name}: {chosen.seconds} s", flush=True)
        line = [sys.executable, "-m", "tests.fuzz", "one", name, str(chosen.seconds), str(chosen.seed)]
        if subprocess.run(line, check=False).returncode != 0:
            failed.append(name)
    sys.exit(f"raised: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
