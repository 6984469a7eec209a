import asyncio
import json

import httpx2

from app_peer import ask
from fleet import until
from millstream import Server, Settings
from patience import WAIT
from processes import free_port, is_answering
from wire import open_sse, run_wire


async def test_urls_begin_with_the_root_path() -> None:
    server = Server("shop", serve="rest", settings=Settings(root_path="/ai"))
    async with run_wire(server, "asgi") as wire:
        path, stream = await open_sse(wire)
        assert path.startswith("/ai/messages/?session_id=")
        stream.cancel()
        assert json.loads((await ask(server, "GET", "/openapi.json")).body)["servers"] == [{"url": "/ai"}]


async def test_built_in_server_applies_the_root_path() -> None:
    server, port = Server("shop", settings=Settings(root_path="/ai")), free_port()
    serving = asyncio.create_task(server.run_async(port=port))
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=WAIT) as client:
            await until(lambda: server.runtimes.current is not None)
            async with asyncio.timeout(WAIT):
                while not await asyncio.to_thread(is_answering, port):  # noqa: ASYNC110  nothing tells
                    await asyncio.sleep(0.01)
            async with client.stream("GET", "/sse", headers={"accept": "text/event-stream"}) as reply:
                lines = reply.aiter_lines()
                told = [await anext(lines), await anext(lines)]
        assert any(line.startswith("data: /ai/messages/?session_id=") for line in told)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
