"""Event streams that stay open during a load: one thread reads the sockets and discards the data."""

import selectors
import socket
from threading import Thread
from types import TracebackType
from typing import Self

from benches.processes import BenchError

SECONDS = 10.0


class Held:
    """Streams of one server, open until the end of the block."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._waker, self._end = socket.socketpair()
        self._selector.register(self._end, selectors.EVENT_READ)
        self._thread = Thread(target=self._read, daemon=True)

    def open(self, request: bytes, until: bytes) -> None:
        """Send a request, and keep its connection once a part of the reply has arrived.

        Raises:
            BenchError: the server refused it.
        """
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=SECONDS)
        connection.sendall(request)
        received = b""
        while until not in received:
            piece = connection.recv(65_536)
            received += piece
            if not piece or (received.startswith(b"HTTP/1.1 ") and not received.startswith(b"HTTP/1.1 200")):
                raise BenchError(f"no stream was opened: {received[:300]!r}")
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waker.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _read(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._end:
                    return
                if not key.fileobj.recv(1_048_576):  # type: ignore[union-attr]
                    self._selector.unregister(key.fileobj)
