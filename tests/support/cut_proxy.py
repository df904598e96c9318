"""A cable between two sockets, that a test can cut, or make slow."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from functools import partial


class CutProxy:
    """Passes bytes on, both ways, until it is cut: then it keeps quiet, and nobody is told."""

    def __init__(self, target: str, bytes_per_second: float = float("inf")) -> None:
        """Listen on loopback for what goes to `tcp://HOST:PORT`, at most at a rate."""
        self._bytes_per_second = bytes_per_second
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host.strip("[]"), int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._is_cut = threading.Event()
        self._start(self._accept)

    @property
    def endpoint(self) -> str:
        """Where to connect."""
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def num_connections(self) -> int:
        """How many were made through it."""
        return (len(self._sockets) - 1) // 2

    def cut(self) -> None:
        """Let nothing through any more."""
        self._is_cut.set()

    def close(self) -> None:
        """End all connections."""
        self._is_cut.set()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                self._start(partial(self._pass, near, far))
                self._start(partial(self._pass, far, near))

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(len(data) / self._bytes_per_second)
                if not self._is_cut.is_set():
                    target.sendall(data)
        with contextlib.suppress(OSError):
            if not self._is_cut.is_set():
                target.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _start(work: Callable[[], None]) -> None:
        threading.Thread(target=work, daemon=True).start()
