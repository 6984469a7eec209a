"""Session flood (CVE-2026-59951, CVE-2026-67430): handshakes that are never used leave nothing behind.

Counts of what the server holds; `tests/test_memory.py` weighs the process. A session that opens nothing is its id.
"""

import asyncio
import gc

import pytest

from bad_input.shop import make_shop
from wire import POST, Wire, request, wired

FLOOD = 2_000


def held(wire: Wire) -> dict[str, int]:
    """What a session could leave behind."""
    gc.collect()
    services = wire.runtime.services
    return {
        "records": len(services.records.known),
        "streams": len(wire.runtime.streams),
        "calls": len(wire.runtime.dispatcher.calls),
        "questions": len(services.questions),
        "tasks": len(asyncio.all_tasks()),
        "objects of a session": sum(type(each).__name__ in ("Session", "Connection") for each in gc.get_objects()),
    }


@pytest.mark.parametrize("capabilities", [{}, {"elicitation": {}, "sampling": {}, "roots": {"listChanged": True}}])
async def test_thousands_of_handshakes_leave_no_task_record_or_object(capabilities: dict[str, object]) -> None:
    """Design §5: a session that opens nothing occupies no memory, so a flood has nothing to fill."""
    async with wired(make_shop(), "asgi") as wire:
        await wire.initialize(capabilities=capabilities)
        before = held(wire)
        sessions = {(await wire.initialize(capabilities=capabilities))["mcp-session-id"] for _ in range(FLOOD)}
        assert len(sessions) == FLOOD
        assert held(wire) == before


async def test_sessions_that_were_used_are_remembered_up_to_a_bound() -> None:
    """The table of verified ids saves work; it does not grow with the sessions."""
    async with wired(make_shop(), "asgi") as wire:
        for _ in range(FLOOD):
            headers = await wire.initialize()
            assert (await wire.post(request("ping"), headers)).status == 200
        after = held(wire)
        assert after["records"] == after["calls"] == after["streams"] == 0
        assert after["objects of a session"] <= 256


async def test_refused_first_requests_leave_nothing() -> None:
    """What never became a session: bad versions, bad bodies, unknown ids."""
    async with wired(make_shop(), "asgi") as wire:
        before = held(wire)
        for n in range(500):
            assert (await wire.post(request("initialize", {"protocolVersion": n}))).message["error"]["code"] == -32602
            assert (await wire.post(b"{", POST)).status == 400
            assert (await wire.post(request("ping"), {**POST, "mcp-session-id": f"no{n}"})).status == 404
        assert held(wire) == before


async def test_tombstones_are_capped_and_a_full_cap_is_503() -> None:
    """Design §5: a DELETE is answered after its tombstone is written, and is capped per principal."""
    async with wired(make_shop(max_deletes=20), "asgi") as wire:
        sessions = [await wire.initialize() for _ in range(25)]
        statuses = [(await wire.ask("DELETE", "/mcp", headers)).status for headers in sessions]
        assert statuses == [204] * 20 + [503] * 5
        assert len(wire.runtime.services.records.known) == 20
        assert (await wire.post(request("ping"), sessions[-1])).status == 200
