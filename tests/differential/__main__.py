"""Ask other programs what they see in malformed messages and archives, record it, and compare it with what we see.

    python -m tests.differential [--only PROGRAM ...]

Programs: Python's `email` with both of its policies, mailparser and postal-mime (npm), Stalwart's mail-parser (cargo);
for archives zipfile, unzip, 7z and bsdtar. Answers of a program that is not asked stay as they were recorded. Exits
with 1 when a program sees what we do not and nothing explains it (docs/differences.md).
"""

from __future__ import annotations

import argparse
import email
import email.policy
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sendswitch.smtp.protocol.content import clean
from tests.differential import answers, mutations
from tests.differential.answers import Shown
from tests.differential.explained import EXPLAINED
from tests.differential.seen import digest

READERS = Path(__file__).parent / "readers"
# Where other programs are installed; thrown away by `make clean`.
WORK = Path(".differential")


def python(raw: bytes, policy: email.policy.Policy) -> Iterator[tuple[str, str]]:
    """Yield what Python's own reader shows."""
    for part in email.message_from_bytes(raw, policy=policy).walk():
        try:
            name = part.get_filename()
            content = part.get_payload(decode=True)
        except Exception:  # the reader gives up on this part, and shows nothing of it
            continue
        if name is not None:
            yield str(name), digest(content if isinstance(content, bytes) else b"")


def each_python(paths: Sequence[Path]) -> Mapping[str, list[Shown]]:
    """Ask Python's reader, with the policy of old programs and that of new ones."""
    policies = {"python": email.policy.default, "python-compat32": email.policy.compat32}
    return {name: [frozenset(python(path.read_bytes(), policy)) for path in paths] for name, policy in policies.items()}


def each_node(paths: Sequence[Path]) -> Mapping[str, list[Shown]]:
    """Ask the two readers of npm."""
    folder = WORK / "node"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "node.mjs"):
        shutil.copy(READERS / name, folder)
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return _lines(["node", "--unhandled-rejections=none", str(folder / "node.mjs")], paths)


def each_stalwart(paths: Sequence[Path]) -> Mapping[str, list[Shown]]:
    """Ask the reader of Stalwart."""
    folder = WORK / "stalwart"
    shutil.copytree(READERS / "stalwart", folder, dirs_exist_ok=True)
    subprocess.run(["cargo", "build", "--quiet", "--release"], cwd=folder, check=True)
    return _lines([str(folder / "target/release/stalwart-reader")], paths)


def _lines(command: list[str], paths: Sequence[Path]) -> Mapping[str, list[Shown]]:
    names = "".join(f"{path}\n" for path in paths)
    told = subprocess.run(command, input=names, stdout=subprocess.PIPE, text=True, check=True).stdout
    out: dict[str, list[Shown]] = {}
    for line in told.splitlines():
        who, *shown = line.split()
        pairs = (one.partition(":") for one in shown)
        found = ((bytes.fromhex(n).decode("utf-8", "replace"), digest(bytes.fromhex(c))) for n, _, c in pairs)
        out.setdefault(who, []).append(frozenset(found))
    assert all(len(shown) == len(paths) for shown in out.values())
    return out


def each_zipfile(paths: Sequence[Path]) -> Mapping[str, list[Shown]]:
    """Ask Python's reader of zip files."""
    return {"zipfile": [frozenset(_zipfile(path.read_bytes())) for path in paths]}


def _zipfile(data: bytes) -> Iterator[tuple[str, str]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                try:
                    yield info.filename, digest(archive.read(info))
                except Exception:  # the reader lists the file and cannot unpack it
                    yield info.filename, ""
    except Exception:  # the reader gives up on the archive
        return


def _unpackers() -> Iterator[tuple[str, list[str]]]:
    yield "unzip", ["unzip", "-o", "-q", "FILE", "-d", "FOLDER"]
    yield "7z", ["7z", "x", "-y", "-bd", "-pnone", "-oFOLDER", "FILE"]
    yield "bsdtar", ["bsdtar", "-x", "-f", "FILE", "-C", "FOLDER"]


def each_unpacker(paths: Sequence[Path]) -> Mapping[str, list[Shown]]:
    """Ask programs that write what is in an archive into a folder."""
    return {who: [frozenset(_unpacked(command, path)) for path in paths] for who, command in _unpackers()}


def _unpacked(command: list[str], path: Path) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        words = [word.replace("FILE", str(path)).replace("FOLDER", folder) for word in command]
        subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
        for found in sorted(Path(folder).rglob("*")):
            if found.is_file():
                yield str(found.relative_to(folder)), digest(found.read_bytes())


Each = Callable[[Sequence[Path]], Mapping[str, list[Shown]]]
MAIL: Mapping[str, Each] = {
    "python": each_python,
    "node": each_node,
    "stalwart": each_stalwart,
}
ZIP: Mapping[str, Each] = {"zipfile": each_zipfile, "unpackers": each_unpacker}


def pythons_own() -> Iterator[tuple[str, bytes]]:
    """Yield the messages of Python's own tests, where they are installed (Debian: libpython3.11-testsuite)."""
    for folder in {Path(email.__file__).parents[1] / "test", *Path("/usr/lib").glob("python3*/test")}:
        for path in sorted(folder.glob("test_email/data/msg_*.txt")):
            yield f"python {path.name}", clean(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


def asked(each: Each, paths: Sequence[Path]) -> Mapping[str, list[Shown]]:
    """Return what programs answer, nothing for those that this machine cannot run."""
    try:
        return each(paths)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        print(f"  not asked: {error}", flush=True)
        return {}


def inputs() -> Iterator[tuple[str, bytes]]:
    """Yield every input with its key."""
    for number in range(mutations.MESSAGES):
        yield f"mail {number}", mutations.message(number)
    for number in range(mutations.ZIPS):
        yield f"zip {number}", mutations.packed(number)
    yield from pythons_own()


def main() -> None:
    """Ask, record and compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=[*MAIL, *ZIP], default=[*MAIL, *ZIP], help="whom to ask")
    only = parser.parse_args().only
    known = answers.recorded() if answers.RECORDED.exists() else {}
    given = dict(inputs())
    found = {key: dict(known.get((key, digest(raw)), {})) for key, raw in given.items()}
    with tempfile.TemporaryDirectory() as folder:
        paths = {key: Path(folder) / key.replace(" ", "-") for key in given}
        for key, raw in given.items():
            paths[key].write_bytes(raw)
        for kind, programs in (("zip", ZIP), ("", MAIL)):
            keys = [key for key in given if key.startswith("zip") == (kind == "zip")]
            for name in filter(programs.__contains__, only):
                print(f"{name}: {len(keys)} inputs", flush=True)
                for who, shown in asked(programs[name], [paths[key] for key in keys]).items():
                    for key, one in zip(keys, shown, strict=True):
                        found[key][who] = one
    answers.record({(key, digest(given[key])): of_input for key, of_input in found.items()})
    told = [one for key, raw in given.items() for one in answers.differences(key, raw, found[key])]
    print(f"{len(given)} inputs, {len(found)} with answers")
    for reason in EXPLAINED:
        print(f"  {sum(one.reason == reason for one in told):4} times: {reason}")
    print(*(one for one in told if not one.reason), sep="\n")
    sys.exit(any(not one.reason for one in told))


if __name__ == "__main__":
    main()
