"""URIs that are longer than any that the server offers."""

import json
from typing import Any

from auth_world import ROOT, run_guarded
from cases import for_each
from cpu import cpu_seconds_of


@for_each("method", ["resources/subscribe", "resources/unsubscribe"])
async def test_subscribing_to_a_long_uri_takes_no_longer_than_reading_it(method: str) -> None:
    begin = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
    long = {"uri": "http://" + "ä" * 500_000}

    async with run_guarded() as world:
        reply = await world.post(ROOT, {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": begin})
        session = reply.headers[b"mcp-session-id"].decode()

        async def ask(name: str, params: Any) -> Any:
            message = {"jsonrpc": "2.0", "id": 1, "method": name, "params": params}
            return json.loads((await world.post(ROOT, message, mcp_session_id=session)).body)

        assert "error" in await ask("resources/read", long)
        reading = await cpu_seconds_of(lambda: ask("resources/read", long))
        assert await cpu_seconds_of(lambda: ask(method, long)) < 4 * reading
