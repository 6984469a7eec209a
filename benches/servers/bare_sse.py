"""Floor of every broadcast in Python: `bare_sse.py PORT` writes one chunk to all connections in one loop.

`GET` is a subscriber, `POST` an event in the JSON that `POST /publish` takes. The bytes on the wire are those of our
own stream: one chunk for each event, with an id. Nothing is limited, kept or checked.
"""

import asyncio
import resource
import sys

import msgspec
import uvloop

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
decode = msgspec.json.Decoder(dict[str, str]).decode
subscribers: dict["Connection", None] = {}
events = 0


class Connection(asyncio.Protocol):
    """One subscriber or publisher."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = transport.write  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:
        subscribers.pop(self, None)

    def data_received(self, data: bytes) -> None:
        global events  # noqa: PLW0603
        if data.startswith(b"GET"):
            subscribers[self] = None
            self.write(HEAD)
            return
        events += 1
        event = b"id: 0123456789abcdef.%d\ndata: %b\n\n" % (
            events,
            decode(data.partition(b"\r\n\r\n")[2])["data"].encode(),
        )
        chunk = b"%x\r\n%b\r\n" % (len(event), event)
        for subscriber in subscribers:
            subscriber.write(chunk)
        self.write(REPLY)


async def main() -> None:
    """Serve until the process is ended."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", int(sys.argv[1]), backlog=2048)
    await server.serve_forever()


uvloop.run(main())
