"""Record the bytes of one `tools/call` of a client: ``python -m benches.record NAME COMMAND… {url}``.

It starts our server of the benches and a relay before it, runs the command with the relay's URL in place of `{url}`,
and writes the request that it saw to ``benches/requests/NAME.http``. The client has to call ``add(a=1234567, b=1)``.
In the file, `{host}`, `{session}`, and `{length}` stand for values of a run, and `@` for the id of a call.

The four files were made by these commands, after ``make bench`` and ``make test`` had installed the packages:

    python -m benches.record python .bench/venv/bin/python benches/record/client.py {url}
    python -m benches.record typescript node benches/record/client.mjs {url}
    python -m benches.record go go run -C benches/go ./client {url}
    python -m benches.record rust cargo run --manifest-path benches/record/rust/Cargo.toml -- {url}
"""

import asyncio
import re
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from benches.processes import ROOT, BenchError, free_port, start
from benches.targets import TARGETS

NUMBER = 1234567
"""The argument by which the call is recognized; the ids of a run have as many digits."""
WAIT = 300.0


class Relay:
    """Passes connections on, and keeps what clients send."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sent: list[bytearray] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection."""
        kept = bytearray()
        self.sent.append(kept)
        to_server = await asyncio.open_connection("127.0.0.1", self._port)
        back = asyncio.create_task(self._copy(to_server[0], writer, None))
        await self._copy(reader, to_server[1], kept)
        back.cancel()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(65_536):
                if kept is not None:
                    kept += piece
                writer.write(piece)
                await writer.drain()
        writer.close()


def requests(sent: bytes) -> list[tuple[str, str]]:
    """Split the bytes of a connection into heads and bodies."""
    found: list[tuple[str, str]] = []
    while b"\r\n\r\n" in sent:
        head, _, rest = sent.partition(b"\r\n\r\n")
        length = re.search(rb"(?im)^content-length: *(\d+)", head)
        size = int(length[1]) if length else 0
        found.append((head.decode("latin-1"), rest[:size].decode()))
        sent = rest[size:]
    return found


def template(head: str, body: str) -> str:
    """Put the names of what differs from run to run into a request.

    Raises:
        BenchError: the body isn't the call that was wanted.
    """
    marked, count = re.subn(r'("id": ?)("?)[0-9a-f-]+\2', r"\1@", body, count=1)
    marked = re.sub(rf"\b{NUMBER}\b", "@", marked)
    if count != 1 or marked.count("@") != 2:
        raise BenchError(f"no id or no argument in {body}")
    for pattern, name in (("host", "{host}"), ("content-length", "{length}"), ("mcp-session-id", "{session}")):
        head = re.sub(rf"(?im)^({pattern}: *)[^\r\n]*", rf"\1{name}", head)
    return head.replace("\r\n", "\n") + "\n\n" + marked


async def record(name: str, command: list[str], port: int) -> None:
    """Run the client, and write its call."""
    relay = Relay(port)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
    process = await asyncio.create_subprocess_exec(*[each.replace("{url}", url) for each in command])
    async with asyncio.timeout(WAIT):
        await process.wait()
    server.close()
    calls = [each for sent in relay.sent for each in requests(bytes(sent)) if str(NUMBER) in each[1]]
    if not calls:
        raise BenchError(f"{command[0]} sent no call of add(a={NUMBER}, b=1)")
    (ROOT / "benches" / "requests" / f"{name}.http").write_text(template(*calls[-1]), "utf-8")


def main() -> None:
    """Start our server, and record."""
    name, *command = sys.argv[1:]
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS["ours"]
        server = start(target.command(port), {}, port, Path(folder) / "log", first=target.first)
        try:
            asyncio.run(record(name, command, port))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
