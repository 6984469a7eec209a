"""Record the requests of a client, byte for byte: ``python -m benches.record NAME COMMAND… {url}``.

It starts our server of the benches and a relay before it, runs the command with the relay's URL in place of `{url}`,
and writes one request of each method to ``benches/requests/NAME.http``. The client has to call ``add(a=1234567, b=1)``,
and to print its name and version in a line ``source: …``. In the file, `{host}`, `{session}`, and `{length}` stand for
values of a run, and `@` for the id of a request. A chunked body is one chunk, written without its framing. With
``--nginx``, nginx passes the requests on, as in its guide.

The files were made by these commands. The packages are those of ``make bench`` and ``make test``, and of environments
with mcp 1.30.0, 1.12.4, and 1.9.4, which speak three revisions:

    python -m benches.record python-2026-07-28 python benches/record/client.py {url}
    python -m benches.record python-2025-11-25 python benches/record/client.py {url} legacy
    python -m benches.record python1-2025-11-25 MCP1/bin/python benches/record/client.py {url}
    python -m benches.record python1-2025-06-18 MCP1/bin/python benches/record/client.py {url}
    python -m benches.record python1-2025-03-26 MCP1/bin/python benches/record/client.py {url}
    python -m benches.record typescript-2025-11-25 node benches/record/client.mjs {url}
    python -m benches.record typescript-2026-07-28 node benches/record/client.mjs {url} 2026-07-28
    python -m benches.record go-2026-07-28 go run -C benches/go ./client {url}
    python -m benches.record rust-2025-11-25 cargo run --manifest-path benches/record/rust/Cargo.toml -- {url}
    python -m benches.record chromium-2025-11-25 python -m benches.record.browser {url}
    python -m benches.record httpx-2026-07-28 python benches/record/plain.py {url}
    python -m benches.record undici-2026-07-28 node benches/record/plain.mjs {url}
    python -m benches.record nethttp-2026-07-28 go run -C benches/go ./plain {url}
    python -m benches.record nethttpchunked-2026-07-28 go run -C benches/go ./plain {url} chunked
    python -m benches.record --nginx nginx-2026-07-28 python benches/record/client.py {url}
"""

import argparse
import asyncio
import json
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from benches.processes import ROOT, BenchError, free_port, start
from benches.targets import TARGETS
from benches.wire import REQUESTS

NUMBER = 1234567
"""The argument that identifies the call. The ids of a run have as many digits."""
WAIT = 300.0
GUIDE = ROOT / "docs" / "guides" / "behind-nginx.md"


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
        size, end = int(length[1]) if length else 0, b""
        if re.search(rb"(?im)^transfer-encoding: *chunked", head):
            digits, _, rest = rest.partition(b"\r\n")
            size, end = int(digits, 16), b"\r\n0\r\n\r\n"
        found.append((head.decode("latin-1"), rest[:size].decode()))
        sent = rest[size:].removeprefix(end)
    return found


def template(head: str, body: str) -> str:
    """Replace values that differ from run to run with placeholders."""
    marked = re.sub(r'("id": ?)("?)[0-9a-f-]+\2', r"\1@", body, count=1)
    marked = re.sub(rf"\b{NUMBER}\b", "@", marked)
    for pattern, name in (("host", "{host}"), ("content-length", "{length}"), ("mcp-session-id", "{session}")):
        head = re.sub(rf"(?im)^({pattern}: *)[^\r\n]*", rf"\1{name}", head)
    head = re.sub(r"(?i)(http://)127\.0\.0\.1:\d+", r"\1{host}", head)
    head = re.sub(r"(?im)^(x-forwarded-for: )127\.0\.0\.1", r"\g<1>203.0.113.7", head)
    return head.replace("\r\n", "\n") + "\n\n" + marked


@asynccontextmanager
async def nginx(port: int) -> AsyncIterator[int]:
    """Run nginx as the guide sets it up, without TLS, before a port, and yield its own port."""
    block = re.search(r"(?s)```nginx\n(.*?)```", GUIDE.read_text("utf-8"))
    program = shutil.which("nginx")
    if block is None or program is None:
        raise BenchError("nginx isn't installed, or its guide has no configuration")
    own = free_port()
    lines = [line for line in block[1].splitlines() if not re.match(r" *(ssl_|listen|server_name)", line)]
    site = re.sub(r"127\.0\.0\.1:8000", f"127.0.0.1:{port}", "\n".join(lines))
    site = re.sub(r"server \{", f"server {{ listen 127.0.0.1:{own};", site, count=1)
    with tempfile.TemporaryDirectory() as folder:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "".join(f"{each}_temp_path {folder}/{each};\n" for each in kinds)
        (Path(folder) / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
            f"http {{ access_log off;\n{places}{site}\n}}\n"
        )
        process = await asyncio.create_subprocess_exec(program, "-p", folder, "-c", f"{folder}/nginx.conf")
        try:
            for _ in range(500):
                with suppress(OSError):
                    (await asyncio.open_connection("127.0.0.1", own))[1].close()
                    break
                await asyncio.sleep(0.02)
            yield own
        finally:
            process.terminate()
            await process.wait()


async def record(name: str, command: list[str], port: int, *, through_nginx: bool) -> None:
    """Run the client, and write its requests.

    Raises:
        BenchError: The client printed no version, or didn't call the tool.
    """
    relay = Relay(port)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    before = server.sockets[0].getsockname()[1]
    if through_nginx:
        async with nginx(before) as proxy:
            printed = await run(command, proxy)
    else:
        printed = await run(command, before)
    server.close()
    found: dict[str, str] = {}
    for head, body in (each for sent in relay.sent for each in requests(bytes(sent))):
        if method := json.loads(body or "{}").get("method"):
            found[method] = template(head, body)
    source = re.search(r"(?m)^source: (.*)$", printed)
    if source is None or found.get("tools/call", "").count("@") != 2:
        raise BenchError(f"{command[0]} told no version, or sent no call of add(a={NUMBER}, b=1)")
    proxied = " through nginx, as its guide sets it up" if through_nginx else ""
    parts = [f"# {source[1]}{proxied}\n", *(f"### {method}\n{text}\n" for method, text in found.items())]
    (REQUESTS / f"{name}.http").write_text("\n".join(parts), "utf-8")


async def run(command: list[str], port: int) -> str:
    """Run the client with the URL of a port, and return what it printed."""
    url = f"http://127.0.0.1:{port}/mcp"
    arguments = [each.replace("{url}", url) for each in command]
    process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(WAIT):
        printed, _ = await process.communicate()
    sys.stderr.buffer.write(printed)
    return printed.decode()


def main() -> None:
    """Start our server, and record."""
    parser = argparse.ArgumentParser(prog="python -m benches.record", description=__doc__)
    parser.add_argument("--nginx", action="store_true", help="let nginx pass the requests on")
    parser.add_argument("name")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS["ours"]
        server = start(target.command(port), {}, port, Path(folder) / "log", first=target.first)
        try:
            asyncio.run(record(options.name, options.command, port, through_nginx=options.nginx))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
