import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from aiohttp import web

from millstream._app.server_process import consul
from millstream._app.server_process.consul import ConsulRegistration
from millstream._app.server_process.errors import CommandError
from patience import WAIT
from processes import free_port, run_command, run_server
from redis_parts import until

pytestmark = pytest.mark.server


class Agent:
    """The endpoints of a Consul agent for registration, and their requests."""

    def __init__(self) -> None:
        self.services: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        self.url = ""
        self._changed = asyncio.Event()

    async def register(self, request: web.Request) -> web.Response:
        """PUT /v1/agent/service/register."""
        entry = await request.json()
        assert set(entry) <= {"ID", "Name", "Port", "Address", "Tags", "Meta", "Check"}
        assert set(entry["Check"]) == {"Name", "TTL", "Status", "DeregisterCriticalServiceAfter"}
        self.services[entry["ID"]] = entry
        return self._answer(request, "register")

    async def passing(self, request: web.Request) -> web.Response:
        """PUT /v1/agent/check/pass/service:ID."""
        kind, _, name = unquote(request.match_info["check"]).partition(":")
        if kind != "service" or name not in self.services:
            self._answer(request, "unknown")
            return web.Response(status=404, text=f'Unknown check ID "{name}"')
        return self._answer(request, "pass")

    async def deregister(self, request: web.Request) -> web.Response:
        """PUT /v1/agent/service/deregister/ID."""
        del self.services[unquote(request.match_info["id"])]
        return self._answer(request, "deregister")

    def _answer(self, request: web.Request, what: str) -> web.Response:
        self.asked.append(what)
        self.tokens.add(request.headers.get("X-Consul-Token", ""))
        return web.Response()


@asynccontextmanager
async def agent() -> AsyncIterator[Agent]:
    """An agent on a free port."""
    made = Agent()
    application = web.Application()
    application.router.add_put("/v1/agent/service/register", made.register)
    application.router.add_put("/v1/agent/check/pass/{check}", made.passing)
    application.router.add_put("/v1/agent/service/deregister/{id}", made.deregister)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_server_is_registered_while_it_accepts_work(workers: str, tmp_path: Path) -> None:
    port = free_port()
    async with agent() as listed:
        command = run_command("examples/bookshop.py", port, "--workers", workers, "--consul", listed.url)
        server = run_server(command, port, tmp_path / "log", CONSUL_HTTP_TOKEN="secret")
        process = await asyncio.to_thread(server.__enter__)
        try:
            await until(lambda: listed.services)
            (entry,) = listed.services.values()
            assert entry["Name"] == "bookshop"
            assert (entry["Address"], entry["Port"]) == ("127.0.0.1", port)
            assert entry["Meta"] == {"version": entry["Meta"]["version"], "path": "/mcp", "scheme": "http"}
            process.send_signal(signal.SIGTERM)
            await until(lambda: not listed.services)
            assert await asyncio.to_thread(process.wait, WAIT) == 0
        finally:
            await asyncio.to_thread(server.__exit__, None, None, None)
        assert listed.asked == ["register", "deregister"]
        assert listed.tokens == {"secret"}


def registration(url: str, *, host: str = "127.0.0.1", name: str = "shop") -> ConsulRegistration:
    return ConsulRegistration(url, name=name, host=host, port=8000, meta={}, serves=lambda: True)


async def test_check_is_renewed_and_lost_registrations_are_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consul, "TTL", 0.03)
    async with agent() as listed:
        kept = registration(listed.url)
        kept.open()
        await until(lambda: listed.asked.count("pass") > 2)
        listed.services.clear()
        await until(lambda: listed.services)
        await kept.close()
        assert not listed.services
        assert "unknown" in listed.asked


async def test_unreachable_agent_is_logged_once_and_retried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consul, "TTL", 0.03)
    kept = registration("http://127.0.0.1:1")
    kept.open()
    tries: list[int] = []
    put = kept._put

    async def count(path: str, body: bytes = b"") -> int:
        tries.append(1)
        return await put(path, body)

    monkeypatch.setattr(ConsulRegistration, "_put", staticmethod(count))
    await until(lambda: len(tries) > 3)
    await kept.close()
    assert [each.getMessage().partition(":")[0] for each in caplog.records] == [
        "The server can't register with Consul; retrying",
        "The server couldn't be deregistered from Consul, which removes it later",
    ]


async def test_wildcard_bind_registers_the_agent_address() -> None:
    async with agent() as listed:
        kept = registration(listed.url, host="0.0.0.0", name="My Analytics Server")  # noqa: S104
        kept.open()
        await until(lambda: listed.services)
        (entry,) = listed.services.values()
        assert entry["Name"] == "My-Analytics-Server"
        assert "Address" not in entry
        await kept.close()


def test_invalid_consul_urls_show_an_example() -> None:
    with pytest.raises(CommandError, match="isn't the URL of a Consul agent"):
        registration("localhost:8500")
