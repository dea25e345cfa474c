"""User code that tries to get out of its sandbox: to see what is not its own, to reach others, to outlive its step."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sendswitch.bench.peers import public_folder
from sendswitch.errors import InvalidConfiguration
from sendswitch.mail.content import InFile
from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Action, Deferral, Verdict
from sendswitch.pipeline.chain import Chain, build
from sendswitch.processors import registry
from sendswitch.processors.base import Services
from sendswitch.processors.hosting import sandbox
from sendswitch.processors.hosting.hosted import Hosted
from sendswitch.testing import context, mail
from tests.conftest import need

# What it tries; each returns what it got, and "" when it got nothing.
ATTEMPTS = {
    "a file beside its own": "open('{folder}/secret').read()",
    "the folder of its own file": "' '.join(name for name in os.listdir('{folder}') if name != '{name}')",
    "the home of root": "' '.join(os.listdir('/root'))",
    "the homes": "' '.join(os.listdir('/home') + os.listdir('/var'))",
    "the name of the machine in a file": "open('/etc/hostname').read()",
    "the users of the system": "' '.join(sorted(set(open('/etc/passwd').read().split()) - OURS))",
    "open files of its starter": "strange_files()",
    "the kernel": "str(open('/proc/sys/kernel/core_pattern', 'r+').write('core'))",
    "other processes": "' '.join(p for p in os.listdir('/proc') if p.isdigit() and int(p) > 20)",
    "the environment of its starter": "open('/proc/{pid}/environ').read()",
    "the environment of the first process": "without_ours(open('/proc/1/environ').read())",
    "a signal to its starter": "str(os.kill({pid}, 0))",
    "a socket of this machine": "str(socket.create_connection(('127.0.0.1', {port}), 1))",
    "an address outside": "str(socket.create_connection(('192.0.2.1', 80), 1))",
    "a socket in a file": "connected('{folder}/socket')",
    "a socket without a file": "connected('\\0sandbox-{pid}')",
    "a change of its own file": "str(open('{folder}/{name}', 'a').write('x'))",
    "a file of the system": "str(open('/usr/lib/new', 'w').write('x'))",
    "a file at the top": "str(open('/new', 'w').write('x'))",
    "a namespace in which it is root": "unshared()",
    "a file system": "mounted()",
    "the disks": "' '.join(sorted(set(os.listdir('/dev')) - set(DEVICES)))",
    "more of /tmp than there is": "filled('/tmp')",
    "what others left in /tmp": "' '.join(name for name in os.listdir('/tmp') if name not in '{folder} {python}')",
    "shared memory without end": "filled('/dev/shm')",
    "room in /dev": "filled('/dev')",
    "room beside its own file": "filled('{folder}')",
}
# Those that show without a sandbox that the attempts are some, and harm nobody.
HARMLESS = (
    *("a file beside its own", "the folder of its own file", "other processes", "the environment of its starter"),
    *("a signal to its starter", "a socket of this machine", "a socket in a file", "a socket without a file"),
    *("the users of the system", "what others left in /tmp"),
)
HELP = """
import ctypes, os, re, socket

DEVICES = ["core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
           "zero", "console"]
OURS = set("root:x:0:0:root:/:/usr/sbin/nologin nobody:x:65534:65534:user code:/tmp:/usr/sbin/nologin".split())
libc = ctypes.CDLL(None, use_errno=True)

def connected(name):
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(name)
        return "connected"

def strange_files():
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            place = os.readlink("/proc/self/fd/" + number)
        except OSError:
            continue  # it was the listing itself
        if int(number) > 2 and "eventpoll" not in place and not place.startswith("socket:"):  # of an event loop
            found.append(number + "=" + place)
    return " ".join(found)

def unshared():
    return "" if libc.unshare(0x10000000) else "a namespace"

def mounted():
    return "" if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) else "mounted"

def filled(folder):
    with open(folder + "/much", "wb") as file:
        try:
            for _ in range(100):
                file.write(bytes(1_000_000))
                file.flush()
        finally:
            os.remove(folder + "/much")
    return "100 MB"

def without_ours(text):
    return " ".join(one for one in text.split("\\0") if "SECRET" in one)

def tried(attempt):
    try:
        return str(attempt() or "")
    except OSError:
        return ""
"""


@pytest.fixture(autouse=True)
def installed() -> None:
    need("bwrap", "bubblewrap")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a secret, and sockets of somebody else."""
    with public_folder("sandbox") as folder:
        (folder / "secret").write_text("the secret")
        yield folder


def attempts(folder: Path, name: str, port: int, which: Iterable[str]) -> str:
    lines = [HELP, "", "def all_of_them():", "    got = {}"]
    for what in which:
        code = ATTEMPTS[what].replace("{folder}", str(folder)).replace("{name}", name).replace("{port}", str(port))
        code = code.replace("{python}", f"{sys.prefix} {Path(sandbox.__file__)}")
        lines.append(f"    got[{what!r}] = tried(lambda: {code.replace('{pid}', str(os.getpid()))})")
    lines.append("    return ', '.join(f'{what}: {it:.9}' for what, it in got.items() if it)")
    return "\n".join(lines)


def pipeline(text: str, services: Services | None = None) -> Chain:
    return build(registry.check(text, "p"), 20, services or Services())


async def asked(chain: Chain, **headers: str) -> Any:
    try:
        return await chain.run(mail(**headers), context())
    finally:
        await chain.close()


def python(folder: Path, text: str, more: str = 'sandbox = "bwrap"') -> str:
    (folder / "filter.py").write_text(f"from sendswitch.mail.verdict import Verdict\n{text}")
    return f'[[step]]\nuse = "python"\nfile = "{folder}/filter.py"\n{more}\n'


def program(folder: Path, text: str, more: str = 'sandbox = "bwrap"') -> str:
    file = folder / "program.py"
    file.write_text(f"#!/usr/bin/python3\n{text}")
    file.chmod(0o755)
    return f'[[step]]\nuse = "exec"\ncommand = ["{file}"]\n{more}\n'


@pytest.mark.parametrize("use", ["python", "exec"])
@pytest.mark.parametrize("boxed", [True, False])
async def test_what_it_gets_at(folder: Path, use: str, boxed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDSWITCH_SECRET", "SECRET")
    more, which = ('sandbox = "bwrap"', tuple(ATTEMPTS)) if boxed else ("", HARMLESS)
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as place, socket.socket(socket.AF_UNIX) as nowhere:
        server.bind(("127.0.0.1", 0))
        place.bind(str(folder / "socket"))
        nowhere.bind(f"\0sandbox-{os.getpid()}")
        for one in (server, place, nowhere):
            one.listen()
        if use == "python":
            code = attempts(folder, "filter.py", server.getsockname()[1], which)
            text = python(
                folder, f"{code}\nasync def process(mail, context):\n    return Verdict(reason=all_of_them())", more
            )
        else:
            code = attempts(folder, "program.py", server.getsockname()[1], which)
            text = program(folder, f"{code}\nimport sys\nprint(all_of_them(), file=sys.stderr)", more)
        answer = await asked(pipeline(text))
    assert isinstance(answer, Verdict), answer
    (step,) = answer.trace
    if boxed:
        assert step.saw == ""
    else:
        assert [what for what in HARMLESS if f"{what}: " not in step.saw] == []


async def test_it_may_do_what_it_needs(folder: Path) -> None:
    text = program(
        folder,
        "import getpass, os, pathlib, socket, ssl, sys, tempfile, time\n"
        "body = sys.stdin.buffer.read()\n"
        "open('/tmp/x', 'w').write('x')\n"
        "assert ssl.create_default_context().get_ca_certs()\n"
        "assert (getpass.getuser(), str(pathlib.Path.home())) == ('nobody', '/tmp')\n"
        "with socket.create_server(('localhost', 0)) as server:\n"
        "    socket.create_connection(server.getsockname()).close()\n"
        "assert socket.getservbyname('smtp') == 25\n"
        "print(len(body), tempfile.mkdtemp()[:5], file=sys.stderr)",
    )
    answer = await asked(pipeline(text), Subject="x")
    assert answer.trace[0].saw.split()[1:] == ["/tmp/"]


@pytest.mark.parametrize("use", ["python", "exec"])
async def test_nothing_outlives_it(folder: Path, use: str) -> None:
    """Whatever left its parent, its group and its session."""
    code = (
        "import os, sys, time\n"
        "def leave():\n"
        "    for _ in range(5):\n"
        "        if os.fork() == 0:\n"
        "            os.setsid()\n"
        "            if os.fork() == 0:\n"
        "                os.execv('/usr/bin/sleep', ['sleep', '1234.5'])\n"
        "            os._exit(0)\n"
    )
    if use == "python":
        text = python(
            folder, f"{code}async def process(mail, context):\n    leave()\n    return Verdict(reason='left')"
        )
    else:
        text = program(folder, f"{code}leave()\nprint('left', file=sys.stderr)")
    answer = await asked(pipeline(text))
    assert answer.trace[0].saw == "left"
    async with asyncio.timeout(10):
        while any(sleeping()):
            await asyncio.sleep(0.05)


def sleeping() -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"1234.5" in path.read_bytes():
                yield int(path.parent.name)
        except OSError:
            continue


def test_it_ends_with_a_worker_that_is_killed(folder: Path) -> None:
    code = python(
        folder,
        "import os, time\nasync def process(mail, context):\n"
        "    if os.fork() == 0:\n        os.setsid()\n        os.execv('/usr/bin/sleep', ['sleep', '1234.5'])\n"
        "    time.sleep(60)",
    )
    worker = (
        "import asyncio\nfrom tests.integration.processors.test_sandbox import asked, pipeline\n"
        f"asyncio.run(asked(pipeline({code!r})))"
    )
    with subprocess.Popen([sys.executable, "-c", worker]) as process:
        end = time.monotonic() + 20
        while not any(sleeping()):
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        while any(sleeping()):
            assert time.monotonic() < end
            time.sleep(0.05)


async def test_a_site_can_ask_for_it_for_all_user_code(folder: Path) -> None:
    services = Services(sandbox=True)
    for text in (
        python(folder, "async def process(mail, context):\n    return Verdict.passed(open('/etc/passwd').read())", ""),
        program(folder, "import sys\nprint(open('/etc/passwd').read(), file=sys.stderr)\nsys.exit(9)", ""),
    ):
        answer = await asked(pipeline(text, services))
        assert "root:x:0:0:root:/:" in answer.reason


async def test_without_bubblewrap_nothing_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "PATH", "/nowhere")
    monkeypatch.setattr(sandbox, "_made", threading.Event())
    texts = [
        python(folder, "async def process(mail, context):\n    return Verdict.passed('ran')", ""),
        program(folder, "print('ran')", ""),
    ]
    for text in texts:
        with pytest.raises(
            InvalidConfiguration, match=r"sandbox: the sandbox needs bubblewrap.*\(step 1, (python|exec)\)"
        ):
            registry.check(text + 'sandbox = "bwrap"\n', "p")
        answer = await asked(pipeline(text, Services(sandbox=True)))
        assert isinstance(answer, Deferral)
        assert "apt-get install bubblewrap" in answer.reason


async def test_where_namespaces_are_forbidden_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sandbox, "PATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "_made", threading.Event())
    assert sandbox.trouble().startswith(
        "bubblewrap cannot make a sandbox here: bwrap: No permissions to create new namespace. It must be version 0.8"
    )
    monkeypatch.setattr(sandbox, "PATH", "/usr/bin:/bin")
    assert sandbox.trouble() == ""  # what was mended is seen at once


def test_steps_without_user_code_have_none() -> None:
    with pytest.raises(InvalidConfiguration, match="runs no user code"):
        registry.check('[[step]]\nuse = "pass"\nsandbox = "bwrap"\n', "p")
    with pytest.raises(InvalidConfiguration, match="sandbox"):
        registry.check('[[step]]\nuse = "exec"\nsandbox = "none"\ncommand = ["/bin/true"]\n', "p")


async def test_many_processes(folder: Path) -> None:
    text = program(
        folder,
        "import os, time\nfor n in range(50):\n    if os.fork() == 0:\n        time.sleep(60)\ntime.sleep(60)",
        'sandbox = "bwrap"\nprocesses = 20\non_error = "hold"',
    )
    answer = await asked(pipeline(text))
    assert answer.action is Action.PENDING
    assert "more than" in answer.trace[0].saw


@pytest.mark.parametrize("mode", [0o700, 0o750])
async def test_a_file_that_not_everybody_may_read_is_not_shown_to_its_user(folder: Path, mode: int) -> None:
    (folder / "secret.py").write_text("SMTP_PASSWORD = hunter2\n")
    (folder / "secret.py").chmod(mode)
    (folder / "link.py").symlink_to(folder / "secret.py")
    for name in ("secret.py", "link.py"):
        for text in (
            f'[[step]]\nuse = "python"\nfile = "{folder}/{name}"\nsandbox = "bwrap"\n',
            f'[[step]]\nuse = "exec"\ncommand = ["{folder}/{name}"]\nsandbox = "bwrap"\n',
        ):
            answer = await asked(pipeline(text))
            assert "unless everybody may read it" in answer.reason
            assert "hunter2" not in str(answer)


async def test_a_program_behind_a_link(folder: Path) -> None:
    program(folder, "import sys\nprint('ran', file=sys.stderr)")
    (folder / "there").mkdir()
    (folder / "there" / "link").symlink_to("../program.py")
    text = f'[[step]]\nuse = "exec"\ncommand = ["{folder}/there/link"]\nsandbox = "bwrap"\n'
    answer = await asked(pipeline(text))
    assert answer.trace[0].saw == "ran"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("sys.exit(1)", "it said no"),
        ("os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
        ("os.kill(os.getppid(), 9); time.sleep(60)", "ran on"),
    ],
)
async def test_a_fault_of_the_sandbox_is_no_verdict_of_the_program(folder: Path, code: str, told: str) -> None:
    """Which ends with 1 when it cannot do its own work, as the program may do to refuse."""
    more = 'sandbox = "bwrap"\nexits = { 1 = "deny" }\nlimit = "3s"'
    text = program(folder, f"import os, sys, time\nprint('it said no', file=sys.stderr)\n{code}", more)
    made = pipeline(text)
    answer: Any = await made.run(mail(), context())
    if told == "it said no":
        assert (answer.action, answer.reason) == (Action.DENY, "it said no")
    elif told == "ran on":  # the first process of a sandbox does not die by a signal from inside
        assert "no answer within 3 s" in answer.reason
    else:
        assert isinstance(answer, Deferral)
        assert told in answer.reason
    file = folder / "program.py"
    file.write_text("#!/opt/no/such/interpreter\n")
    answer = await asked(made)
    assert isinstance(answer, Deferral)
    assert "was not run to its end in the sandbox: bwrap" in answer.reason


async def test_several_large_messages_at_once(folder: Path) -> None:
    large = folder / "large.eml"
    large.write_bytes(b"Subject: large\r\n\r\n" + b"x" * 50_000_000)
    made = pipeline(
        python(
            folder,
            "import asyncio, os\nborn, now, most = os.urandom(4).hex(), 0, 0\n"
            "async def process(mail, context):\n"
            "    global now, most\n    now += 1\n    most = max(most, now)\n"
            "    await asyncio.sleep(0.2)\n    size = len(mail.raw)\n    now -= 1\n"
            "    return Verdict.passed(f'{born} {size} {most}')",
        )
    )
    mails = [Mail(InFile(large, large.stat().st_size)) for _ in range(6)]
    try:
        answers = await asyncio.gather(*(made.run(one, context()) for one in mails))
    finally:
        await made.close()
    born, sizes, most = zip(*(answer.reason.split() for answer in answers), strict=True)
    assert set(sizes) == {str(large.stat().st_size)}
    assert len(set(born)) == 1  # one process had them all
    assert max(map(int, most)) == 2


async def test_a_process_that_answers_what_nobody_asked_is_ended(folder: Path) -> None:
    """However much it says, the worker goes on with other mail."""
    text = python(
        folder,
        "import os, threading\n"
        "def say():\n"
        "    while True:\n"
        "        for out in range(3, 12):\n"
        "            try:\n"
        "                os.write(out, b'{}\\n' * 1000)\n"
        "            except OSError:\n"
        "                pass\n"
        "async def process(mail, context):\n"
        "    threading.Thread(target=say, daemon=True).start()\n"
        "    import asyncio\n"
        "    await asyncio.sleep(5)",
        'sandbox = "bwrap"\non_error = "hold"',
    )
    slowest, began = 0.0, time.monotonic()
    asking = asyncio.ensure_future(asked(pipeline(text)))
    while not asking.done():
        before = time.monotonic()
        await asyncio.sleep(0.01)
        slowest = max(slowest, time.monotonic() - before)
    assert "the process ended" in asking.result().reason
    assert time.monotonic() - began < 15
    assert slowest < 0.5


async def test_what_it_prints_without_end_does_not_fill_the_log(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = python(
        folder,
        "import os\nasync def process(mail, context):\n"
        "    for _ in range(300):\n        os.write(2, b'x' * 65536)\n    return Verdict.passed('done')",
    )
    assert (await asked(pipeline(text))).reason == "done"
    assert len(capfd.readouterr().err) < 2_000_000


async def test_a_package_s_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees its own package, and not what lies beside it."""
    (folder / "nosy.py").write_text(
        "import os\nfrom pathlib import Path\nfrom sendswitch.mail.verdict import Verdict\n"
        "from sendswitch.processors.base import Options\n"
        "class Nosy:\n    Options = Options\n    version = '1'\n"
        "    def __init__(self, options): pass\n"
        "    async def process(self, mail, context):\n"
        "        return Verdict.passed(' '.join(sorted(os.listdir(Path(__file__).parent))))\n"
        "    async def close(self): pass\n"
    )
    about = folder / "nosy-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nosy\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[sendswitch.processors]\nnosy = nosy:Nosy\n")
    monkeypatch.syspath_prepend(str(folder))
    step = Hosted("nosy", "nosy", "1", {})
    step.setup(Services(sandbox=True))
    try:
        answer = await step.process(mail(), context())
    finally:
        await step.close()
    assert answer is not None
    assert set(answer.reason.split()) - {"__pycache__"} == {"nosy-1.dist-info", "nosy.py"}
