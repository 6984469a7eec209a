"""A proxy to Redis for tests, which simulates network faults."""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Self


class Proxy:
    """A proxy to a local server that can be cut, frozen, and half closed."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.target_port = port
        """Port for new connections."""
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._silent = set[asyncio.StreamWriter]()
        self._cuts = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self.drop_replies = False
        """Drop replies."""
        self.dropped_bytes = 0
        self.delay = 0.0
        """Seconds by which each reply is delayed."""
        self.split = False
        """Forward each byte separately, in both directions."""
        self.reply_bytes_left: int | None = None
        """Bytes of replies to forward before dropping the rest. None is no limit."""
        self.command_bytes_left: int | None = None
        """Bytes of the next commands to forward before resetting the connection. None is no limit."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection, including those being opened."""
        self._cuts += 1
        for pair in self._pairs:
            for side in pair:
                side.transport.abort()
        self._pairs.clear()

    def freeze(self) -> None:
        """Delay all replies from now on."""
        self._open.clear()

    def half_close(self) -> None:
        """Close the server's side of connections for writing only."""
        for client, _ in self._pairs:
            self._silent.add(client)
            client.write_eof()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cuts = self._cuts
        try:
            theirs, ours = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.close()
            return
        if self._cuts != cuts:  # this connection may lead to the old port
            for side in (writer, ours):
                side.transport.abort()
            return
        self._pairs.append((writer, ours))
        for source, sink, may_reply in ((reader, ours, None), (theirs, writer, self._open)):
            task = asyncio.create_task(self._pump(source, sink, may_reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, may_reply: asyncio.Event | None
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if may_reply is None:
                    data, torn = self._tear(data)
                else:
                    await may_reply.wait()
                    await asyncio.sleep(self.delay)
                    data, torn = self._keep(data), False
                if sink in self._silent:
                    continue  # drop replies after the EOF
                for piece in [bytes([byte]) for byte in data] if self.split else [data]:
                    sink.write(piece)
                    await sink.drain()
                    if self.split:
                        await asyncio.sleep(0)  # the reader gets each byte separately
                if torn:
                    await asyncio.sleep(0)
                    self._reset(sink)
        sink.close()

    def _tear(self, data: bytes) -> tuple[bytes, bool]:
        """Return what passes of a command, and whether its connection ends there."""
        if self.command_bytes_left is None or len(data) < self.command_bytes_left:
            return data, False
        cut, self.command_bytes_left = self.command_bytes_left, None
        return data[:cut], True

    def _keep(self, data: bytes) -> bytes:
        """Return the bytes of a reply to forward."""
        if self.drop_replies:
            self.dropped_bytes += len(data)
            return b""
        if self.reply_bytes_left is not None:
            data = data[: self.reply_bytes_left]
            self.reply_bytes_left -= len(data)
        return data

    def _reset(self, side: asyncio.StreamWriter) -> None:
        for pair in [each for each in self._pairs if side in each]:
            self._pairs.remove(pair)
            for each in pair:
                sock = each.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                each.transport.abort()
