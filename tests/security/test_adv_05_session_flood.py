"""Session floods (CVE-2026-59951, CVE-2026-67430): unused handshakes leave nothing behind.

These tests count objects in the server; `tests/test_memory.py` measures the memory of the process.
"""

import asyncio
import contextlib
import gc
import itertools

import pytest

from bad_input.shop import make_shop
from cases import for_each
from four_workers import FOUR, ON_FOUR
from millstream.stores import StoreFull
from wire import POST, Wire, request, run_wire

pytestmark = pytest.mark.many
FLOOD = 2_000
SIGN = {"uri": "shop://sign"}


def held(wire: Wire) -> dict[str, int]:
    """Count the objects that a session could leave behind; empty for workers in other processes."""
    if wire.runtime is None:  # pyright: ignore[reportUnnecessaryComparison]
        return {}
    gc.collect()
    services = wire.runtime.services
    return {
        "records": len(services.records.known),
        "streams": len(wire.runtime.streams),
        "calls": len(wire.runtime.dispatcher.calls),
        "questions": len(services.questions),
        "tasks": len(asyncio.all_tasks()),
        "objects of a session": sum(
            type(each).__name__ in ("Session", "ClientConnection", "ServerConnection") for each in gc.get_objects()
        ),
    }


@for_each("capabilities", [{}, {"elicitation": {}, "sampling": {}, "roots": {"listChanged": True}}])
async def test_thousands_of_handshakes_leave_nothing_behind(capabilities: dict[str, object]) -> None:
    async with run_wire(make_shop(), "asgi") as wire:
        await wire.initialize(capabilities=capabilities)
        before = held(wire)
        sessions = {(await wire.initialize(capabilities=capabilities))["mcp-session-id"] for _ in range(FLOOD)}
        assert len(sessions) == FLOOD
        assert held(wire) == before


async def test_session_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._transports.streamable.MAX_CACHED_SESSIONS", 256)
    async with run_wire(make_shop(), "asgi") as wire:
        before = held(wire)
        for _ in range(FLOOD):
            headers = await wire.initialize()
            assert (await wire.post(request("ping"), headers)).status == 200
        after = held(wire)
        assert after["records"] == after["calls"] == after["streams"] == 0
        assert after["objects of a session"] - before["objects of a session"] == 256


@pytest.mark.parametrize("way", ["asgi", ON_FOUR])
async def test_rejected_first_requests_leave_nothing_behind(way: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        before = held(wire)
        for n in range(50 if way == FOUR else 500):
            assert (await wire.post(request("initialize", {"protocolVersion": n}))).message["error"]["code"] == -32602
            assert (await wire.post(b"{", POST)).status == 400
            assert (await wire.post(request("ping"), {**POST, "mcp-session-id": f"no{n}"})).status == 404
        assert held(wire) == before


async def test_tombstones_are_capped_with_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._transports.streamable.MAX_DELETES", 20)
    async with run_wire(make_shop(), "asgi") as wire:
        sessions = [await wire.initialize() for _ in range(25)]
        statuses = [(await wire.ask("DELETE", "/mcp", headers)).status for headers in sessions]
        assert statuses == [204] * 20 + [503] * 5
        assert len(wire.runtime.services.records.known) == 20
        assert (await wire.post(request("ping"), sessions[-1])).status == 200


def declaring(size: int) -> dict[str, object]:
    """Return client capabilities that don't fit in the session id."""
    return {"sampling": {}, "experimental": {"x": {"y": "y" * size}}}


@pytest.mark.parametrize("way", ["asgi", ON_FOUR])
async def test_large_unknown_capabilities_are_dropped(way: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        large: dict[str, str] = {}
        for _ in range(8 if way == FOUR else 40):
            large = await wire.initialize(capabilities=declaring(2_000_000))
        assert (await wire.post(request("ping"), large)).status == 200
        assert held(wire).get("records", 0) == 0
        small = await wire.initialize(capabilities=declaring(100))
        assert held(wire).get("records", 1) == 1
        for headers in (large, small):
            for method, params in (("logging/setLevel", {"level": "error"}), ("resources/subscribe", SIGN)):
                assert (await wire.post(request(method, params), headers)).message["result"] == {}
            assert (await wire.ask("DELETE", "/mcp", headers)).status == 204


async def test_small_capabilities_stay_within_their_share() -> None:
    async with run_wire(make_shop(), "asgi") as wire:
        headers: dict[str, str] = {}
        for _ in range(16 * 1024 // 4 + 300):
            headers = await wire.initialize(capabilities=declaring(4_000))
        assert held(wire)["records"] <= 16 * 1024 * 1024 // 4_000
        assert (await wire.post(request("resources/subscribe", SIGN), headers)).message["result"] == {}


async def test_sessions_work_with_a_full_store() -> None:
    async with run_wire(make_shop(), "asgi") as wire:
        early = await wire.initialize()
        kv = wire.runtime.services.store.kv
        with contextlib.suppress(StoreFull):
            for n in itertools.count():
                await kv.put(f"session:{n}", bytes(1_000_000 if n < 31 else 100), 60.0)
        late = await wire.initialize(capabilities=declaring(100))
        refused = await wire.post(request("resources/subscribe", SIGN), late)
        assert refused.error[:2] == (200, -32000)
        for headers in (early, late):
            assert (await wire.ask("DELETE", "/mcp", headers)).status == 204
            assert (await wire.post(request("ping"), headers)).status == 404
