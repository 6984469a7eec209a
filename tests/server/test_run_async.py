import asyncio
import signal
import sys
from pathlib import Path

import pytest

from millstream import Client, Server
from patience import WAIT
from processes import free_port, run_server

pytestmark = pytest.mark.server

PROGRAM = """
import asyncio, sys
from contextlib import asynccontextmanager
from millstream.compat.fastmcp import FastMCP

@asynccontextmanager
async def lifespan(server):
    yield
    print("lifespan closed", flush=True)

mcp = FastMCP("loop", lifespan=lifespan, port=int(sys.argv[1]))

@mcp.tool()
async def add(a: int, b: int) -> int:
    return a + b

async def main():
    await mcp.run_streamable_http_async()
    print("after", flush=True)

asyncio.run(main())
"""


async def test_run_async_applies_the_guard_and_returns_on_stop(tmp_path: Path) -> None:
    program, port, log = tmp_path / "loop.py", free_port(), tmp_path / "log"
    program.write_text(PROGRAM, "utf-8")
    with run_server([sys.executable, str(program), str(port)], port, log) as process:
        async with Client(f"http://127.0.0.1:{port}/mcp", timeout=WAIT) as client:
            assert (await client.call("add", a=2, b=3, result_type=int)) == 5
        twice = b"GET /mcp HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"
        assert (await first_line(port, twice)).startswith(b"HTTP/1.1 400")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
    said = log.read_text("utf-8")
    assert f"http://127.0.0.1:{port}/mcp" in said
    assert said.index("lifespan closed") < said.index("after")
    assert "plain ASGI" not in said


async def test_canceled_server_task_shuts_down_cleanly() -> None:
    port, mcp = free_port(), Server("loop")

    @mcp.tool()
    async def add(a: int, b: int) -> int:
        return a + b

    before = asyncio.all_tasks()
    serving = asyncio.create_task(mcp.run_async("http", host="127.0.0.1", port=port))
    async with asyncio.timeout(WAIT):
        while not await listens(port):
            assert not serving.done(), serving
            await asyncio.sleep(0.01)
        async with Client(f"http://127.0.0.1:{port}/mcp", timeout=WAIT) as client:
            assert (await client.call("add", a=2, b=3, result_type=int)) == 5
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert not await listens(port)
        while asyncio.all_tasks() - before:  # noqa: ASYNC110  no event signals it
            await asyncio.sleep(0.01)


async def test_run_async_rejects_unknown_transports_and_options() -> None:
    with pytest.raises(ValueError, match="'http' or 'stdio'"):
        await Server("x").run_async("tcp")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="port"):
        await Server("x").run_async(prot=1)  # type: ignore[call-arg]


async def listens(port: int) -> bool:
    """Return whether a server accepts connections on a port."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.transport.abort()
    return True


async def first_line(port: int, request: bytes) -> bytes:
    """Send a request, and return the first line of the reply."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        async with asyncio.timeout(WAIT):
            return await reader.readline()
    finally:
        writer.transport.abort()
