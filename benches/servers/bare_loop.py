"""Floor of every HTTP server in Python: `bare_loop.py PORT` is uvloop and httptools around the JSON."""

import asyncio
import sys

import httptools
import uvloop
from bare_json import answer


class Connection(asyncio.Protocol):
    """One keep-alive connection without limits, timeouts or routes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = transport.write  # type: ignore[attr-defined]
        self.feed = httptools.HttpRequestParser(self).feed_data
        self.body = b""

    def data_received(self, data: bytes) -> None:
        self.feed(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        reply = answer(self.body)
        self.body = b""
        self.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(reply), reply)
        )


async def main() -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


uvloop.run(main())
