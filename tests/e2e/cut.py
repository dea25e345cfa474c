"""A network between two programs that can be cut: nothing arrives any more, and nobody is told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

# Bytes of one read, and seconds between two looks whether the network is there.
PIECE, LOOK = 65_536, 0.05


class Network:
    """Passes connections on to a port of this machine, from `port`."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._whole, self._ended = threading.Event(), threading.Event()
        self._whole.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lines: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._serve)

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def cut(self) -> None:
        """Pass nothing on from now on. New connections are made, and hear nothing."""
        self._whole.clear()

    def heal(self, *, forgotten: bool = False) -> None:
        """Pass on what waits, and what comes. A network that has `forgotten` its connections ends them."""
        if forgotten:
            self._end()
        self._whole.set()

    def close(self) -> None:
        self._ended.set()
        self._whole.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._end()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _end(self) -> None:
        lines, self._lines = self._lines, []
        for line in lines:
            _shut(line)

    def _serve(self) -> None:
        while not self._ended.is_set():
            with suppress(OSError):  # nothing listens there now, or this is over
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    near.close()
                    continue
                self._lines += near, far
                self._start(self._connect, near, far)

    def _connect(self, near: socket.socket, far: socket.socket) -> None:
        with near, far:
            back = threading.Thread(target=self._pass_on, args=(far, near), daemon=True)
            back.start()
            self._pass_on(near, far)
            back.join()

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := near.recv(PIECE):
                while not self._whole.wait(LOOK) and near in self._lines:
                    pass
                far.sendall(data)
        _shut(near)
        _shut(far)


def _shut(line: socket.socket) -> None:
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
