"""The worker's end of the socketpair: blocking frames in, locked frames out."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

from hxd import wire

_CHUNK = 1 << 16


class Channel:
    """One thread reads; any thread may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def frames(self) -> Iterator[wire.ToWorker]:
        """Frames until the daemon closes; raises `wire.WireError` on garbage."""
        splitter = wire.Splitter(wire.TO_WORKER_LIMIT)
        while data := self._sock.recv(_CHUNK):
            for body in splitter.feed(data):
                yield wire.decode(wire.to_worker, body)

    def send(self, frame: wire.Frame) -> None:
        """Blocks while the daemon doesn't read; raises `OSError` when it is gone."""
        self.send_bytes(wire.encode(frame))

    def send_bytes(self, data: bytes) -> None:
        with self._lock:
            self._sock.sendall(data)

    def failed(
        self,
        id: int | None,
        fault: str,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        # A message with a file's worth of text in it must still fit into a frame.
        self.send(wire.Failed(id, fault, message[:4000], code, param))
