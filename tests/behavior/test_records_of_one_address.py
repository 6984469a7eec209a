import json
from typing import Any

import pytest

from backend_stores import stored_bytes
from bad_input.shop import make_shop
from millstream import Server
from millstream.stores import owner_for
from wire import LATEST_HANDSHAKE, POST, Reply, ask_asgi, encode_headers, request, run_wire

ELSEWHERE = "192.0.2.1"


async def send_from(mcp: Server, message: Any, headers: dict[str, str], peer: str) -> Reply:
    """Send a request from an address."""
    return await ask_asgi(mcp, "POST", "/mcp", encode_headers(headers), json.dumps(message).encode(), peer=peer)


async def begin(mcp: Server, peer: str, **capabilities: Any) -> dict[str, str]:
    """Start a session from an address, and return the headers of its requests."""
    client = {"name": "t", "version": "1"}
    opening = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": capabilities, "clientInfo": client}
    reply = await send_from(mcp, request("initialize", opening, 0), POST, peer)
    session = reply.headers[b"mcp-session-id"].decode()
    return {**POST, "mcp-session-id": session, "mcp-protocol-version": LATEST_HANDSHAKE}


def error_of(reply: Reply) -> str:
    """Return the error message, or an empty string for a result."""
    return str(reply.message.get("error", {}).get("message", ""))


async def level(mcp: Server, headers: dict[str, str], level: str, peer: str) -> str:
    """Set the log level of a session, and return the error message, or an empty string."""
    return error_of(await send_from(mcp, request("logging/setLevel", {"level": level}), headers, peer))


async def subscribe(mcp: Server, headers: dict[str, str], name: str, how: str = "subscribe") -> str:
    """Subscribe to a note, and return the error message, or an empty string."""
    uri = {"uri": f"note://{name}{'x' * 1_000}"}
    return error_of(await send_from(mcp, request(f"resources/{how}", uri), headers, "127.0.0.1"))


YOURS = "Your sessions use too much memory. End sessions that you don't need, or try again later."


async def test_one_address_gets_at_most_half_of_the_session_records() -> None:
    mcp = make_shop()

    @mcp.resource("note://{name}")
    def note(name: str) -> str:
        """A note."""
        return name

    async with run_wire(mcp, "asgi") as wire:
        kv = wire.runtime.store.kv
        kv.max_bytes = 64_000
        old = await begin(mcp, ELSEWHERE)
        assert await level(mcp, old, "info", ELSEWHERE) == ""
        greedy: list[dict[str, str]] = []
        why = ""
        while not why and len(greedy) < 100:
            greedy.append(await begin(mcp, "127.0.0.1"))
            for number in range(3):
                why = why or await subscribe(mcp, greedy[-1], str(number))
        assert (why, 5 < len(greedy) < 20) == (YOURS, True)
        assert stored_bytes(kv) < 32_000 + 1_000
        # It's the address where a session began that counts, not the one by which it comes now.
        assert await level(mcp, await begin(mcp, "127.0.0.1"), "info", "127.0.0.1") == ""
        while not await level(mcp, await begin(mcp, "127.0.0.1"), "info", "127.0.0.1"):
            pass
        fresh = await begin(mcp, "127.0.0.1")
        assert await level(mcp, fresh, "info", ELSEWHERE) == YOURS
        # Others have room, in old sessions and in new ones.
        assert await level(mcp, old, "emergency", ELSEWHERE) == ""
        for number in range(30):
            assert await level(mcp, await begin(mcp, ELSEWHERE), "info", f"198.51.100.{number}") == ""
        # What doesn't grow is changed, however often: the count of changes takes no byte more either.
        held = stored_bytes(kv)
        for _ in range(12):
            assert await subscribe(mcp, greedy[0], "0", "unsubscribe") == ""
            assert await subscribe(mcp, greedy[0], "0") == ""
            assert stored_bytes(kv) == held
        assert await level(mcp, fresh, "info", "127.0.0.1") == YOURS
        # The end of a session gives room back.
        ended = await ask_asgi(mcp, "DELETE", "/mcp", encode_headers(greedy[1]), b"", peer="127.0.0.1")
        assert ended.status == 204
        assert await level(mcp, fresh, "info", "127.0.0.1") == ""


async def test_session_ids_contain_no_address() -> None:
    mcp = make_shop()
    async with run_wire(mcp, "asgi") as wire:
        for peer in ("2001:db8::1", "2001:db8::2", ELSEWHERE, ""):
            headers = await begin(mcp, peer)
            assert await level(mcp, headers, "info", peer) == ""
        keys = await wire.runtime.store.kv.keys("session:")
        shares = [owner_for(key) for key in keys]
        assert not any("2001" in key or "192.0" in key for key in keys)
        assert [len(share) for share in shares] == [13, 13, 13, 0]
        assert shares[0] == shares[1] != shares[2]


async def test_one_caller_gets_at_most_half_of_the_capability_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("millstream._transports.streamable._CAPABILITIES_ROOM", 300)
    mcp = make_shop()
    async with run_wire(mcp, "asgi") as wire:
        unknown = {"experimental": {"x": {"y": "z" * 60}}}
        kept: list[int] = []
        for peer in ("127.0.0.1", "127.0.0.1", ELSEWHERE):
            await begin(mcp, peer, **unknown)
            kept.append(len(await wire.runtime.store.kv.keys("session:")))
        assert kept == [1, 1, 2]
