"""A private RabbitMQ, with the name server that it needs, on free ports and in a folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from sendswitch.bench.peers import free_port, wait_for_port

# Debian's wrappers in /usr/sbin change the user and the folder.
RABBITMQ = Path("/usr/lib/rabbitmq/bin")


class Names:
    """The name server by which the hosts of a cluster find each other, and the password that they share."""

    def __init__(self) -> None:
        self.port, self.cookie = free_port(), os.urandom(12).hex()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs."""
        if self._process is None:
            line = ["epmd", "-port", str(self.port), "-address", "127.0.0.1"]
            self._process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_for_port(self.port, self._process)

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(15)
            self._process = None


class RabbitMQ:
    """A RabbitMQ for guest/guest from this machine, with a name server of its own unless `names` is one.

    `plugins` are started with it; `settings` are lines of its configuration, and `advanced` is the rest of it, in
    Erlang's terms. With the plugin for management, `management` is its URL.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "rabbit",
        plugins: tuple[str, ...] = (),
        settings: str = "",
        advanced: str = "",
        names: Names | None = None,
    ) -> None:
        self.name = f"{name}@localhost"
        self._alone, self._names = names is None, names or Names()
        self.folder, self.port, web = folder, free_port(), free_port()
        self.management = f"http://guest:guest@127.0.0.1:{web}"
        self._web = web if "rabbitmq_management" in plugins else 0
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self._between = free_port()
        if self._web:
            settings += f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {web}\n"
        self._configure(plugins, settings, advanced)
        self._environment = self._made_environment()
        self._process: subprocess.Popen[bytes] | None = None

    def _configure(self, plugins: tuple[str, ...], settings: str, advanced: str) -> None:
        """Write its folders and files."""
        folder = self.folder
        for place in ("mnesia", "log", "home"):
            (folder / place).mkdir(parents=True)
        cookie = folder / "home" / ".erlang.cookie"
        cookie.write_text(self._names.cookie)
        cookie.chmod(0o400)
        (folder / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
        (folder / "advanced.config").write_text(advanced or "[].\n")
        (folder / "none").write_text("")
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{self.port}\nlog.console = false\n"
            f"disk_free_limit.absolute = 50MB\nvm_memory_high_watermark.absolute = 2GB\n{settings}"
        )

    def _made_environment(self) -> dict[str, str]:
        """Return what tells it where all of this is."""
        folder, local = self.folder, "-kernel inet_dist_use_interface {127,0,0,1}"
        return os.environ | {
            "HOME": str(folder / "home"),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_DIST_PORT": str(self._between),
            "ERL_EPMD_PORT": str(self._names.port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{local} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
            "RABBITMQ_CTL_ERL_ARGS": local,
            "LANG": "C.UTF-8",
        }

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._names.start()
        with (self.folder / "log" / "said").open("ab") as log:
            process = self._process = subprocess.Popen(
                [str(RABBITMQ / "rabbitmq-server")],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment,
                start_new_session=True,
            )
        wait_for_port(self.port, process)
        if self._web:
            wait_for_port(self._web, process)

    def join(self, other: RabbitMQ) -> None:
        """Become a host of another one's cluster."""
        for words in (("stop_app",), ("join_cluster", other.name), ("start_app",)):
            self.control(*words)

    def control(self, *words: str) -> str:
        """Run rabbitmqctl and return what it prints."""
        line = [str(RABBITMQ / "rabbitmqctl"), "-q", *words]
        return subprocess.run(
            line, env=self._environment, cwd=self.folder, check=True, capture_output=True, text=True, timeout=120
        ).stdout

    def kill(self) -> None:
        """Kill it with all its processes, as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(15)
            self._process = None
        if self._alone:
            self._names.kill()
