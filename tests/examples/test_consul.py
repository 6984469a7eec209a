import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from patience import WAIT
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server


async def test_server_stays_listed_during_a_rolling_restart(tmp_path: Path) -> None:
    """The agent is a stand-in with Consul's two endpoints."""
    services: dict[str, Any] = {}
    tokens: set[str] = set()
    registrations: list[str] = []

    async def register(request: web.Request) -> web.Response:
        tokens.add(request.headers["x-consul-token"])
        entry = await request.json()
        services[entry["ID"]] = entry
        registrations.append(entry["ID"])
        return web.Response()

    async def deregister(request: web.Request) -> web.Response:
        del services[request.match_info["id"]]
        return web.Response()

    application = web.Application()
    application.router.add_put("/v1/agent/service/register", register)
    application.router.add_put("/v1/agent/service/deregister/{id}", deregister)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = free_port()
    server = run_server(
        run_command("examples/consul.py", port, "--workers", "2"), port, tmp_path / "log", MILLSTREAM_PORT=str(port),
        CONSUL_HTTP_ADDR=f"http://127.0.0.1:{runner.addresses[0][1]}", CONSUL_HTTP_TOKEN="secret",
    )  # fmt: skip
    try:
        process = await asyncio.to_thread(server.__enter__)
        (entry,) = services.values()
        assert (entry["Port"], entry["Check"]["HTTP"]) == (port, f"http://127.0.0.1:{port}/readyz")
        assert tokens == {"secret"}
        before = len(registrations)
        process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(WAIT):
            while len(registrations) < before + 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, WAIT) == 0
        assert list(services) == [entry["ID"]]
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)
        await runner.cleanup()
