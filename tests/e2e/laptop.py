"""A user's own machine with a worker on it."""

from __future__ import annotations

import signal
import subprocess
import sys

from sendswitch.bench.peers import Node


class Laptop:
    """A worker of a user's own in a folder of its own. `secret` is a key, or the URL of an account in RabbitMQ."""

    def __init__(self, node: Node, secret: str, *options: str, name: str = "laptop") -> None:
        self.log = node.folder / f"{name}.log"
        way = ["--broker"] if secret.startswith("amqp") else ["--url", f"http://127.0.0.1:{node.web}", "--token"]
        line = [sys.executable, "-m", "sendswitch.cli.main", "work", *way, "-"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*line, "--name", name, *options], cwd=node.folder, stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        assert self.process.stdin is not None
        self.process.stdin.write(f"{secret}\n".encode())
        self.process.stdin.close()

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)
