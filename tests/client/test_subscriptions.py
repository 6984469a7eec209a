"""Broken and refused subscriptions. `test_revisions.py` covers successful ones.

https://modelcontextprotocol.io/specification/2026-07-28/basic/patterns/subscriptions
"""

import asyncio
import json
from typing import Any

import pytest

from cases import for_each
from client.misbehaving_servers import DONE, ReceivedRequest, misbehaving, with_discovery, with_handshake
from http_peer import serve
from millstream import Client, Server, auth
from millstream.client._errors import ClientError, ConnectionLost, InvalidResponse, ServerError
from millstream.client._server_messages import Change
from patience import WAIT

KEY = "io.modelcontextprotocol/subscriptionId"
KEY_OF_BOB = "bob-has-a-key-of-some-length"


def note(asked: ReceivedRequest, name: str, **params: Any) -> bytes:
    """Return a notification of this subscription."""
    method = f"notifications/{name}"
    return json.dumps(
        {"jsonrpc": "2.0", "method": method, "params": {**params, "_meta": {KEY: asked.message["id"]}}}
    ).encode()


async def test_updates_for_other_subscriptions_are_not_delivered() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.stream()
        await asked.event(note(asked, "subscriptions/acknowledged", notifications={}))
        other = {"jsonrpc": "2.0", "method": "notifications/prompts/list_changed", "params": {"_meta": {KEY: 999}}}
        await asked.event(json.dumps(other).encode())
        await asked.event(note(asked, "resources/updated", uri="a://1"))
        await asyncio.get_running_loop().create_future()

    async with misbehaving(with_discovery(behave)) as server, Client(server.url) as client, asyncio.timeout(WAIT):
        changes = client.watch("a://1")
        async with changes:
            assert await anext(changes) == Change("resource", "a://1")


@for_each("how", ["error", "end", "close"])
async def test_rejected_subscriptions_are_not_retried(how: str) -> None:
    asked_for = 0

    async def behave(asked: ReceivedRequest) -> None:
        nonlocal asked_for
        asked_for += 1
        if how == "error":
            return await asked.error(-32601, "Method not found", status="404 Not Found")
        await asked.stream()
        if how == "close":
            raise ConnectionError
        return await asked.end()

    async with misbehaving(with_discovery(behave)) as server, Client(server.url) as client, asyncio.timeout(WAIT):
        with pytest.raises((ServerError, ConnectionLost, InvalidResponse)):
            async with client.watch():
                pass
    assert asked_for == 1


async def test_subscriptions_are_renewed_with_their_session() -> None:
    seen: list[str] = []

    async def behave(asked: ReceivedRequest) -> None:
        seen.append(asked.method)
        if asked.method == "tools/call" and seen.count("tools/call") == 1:
            await asked.reply(b"", status="404 Not Found")
        else:
            await asked.result(DONE if asked.method == "tools/call" else {})

    async with (
        misbehaving(with_handshake(behave, session="s")) as server,
        Client(server.url) as client,
        asyncio.timeout(WAIT),
    ):
        changes = client.watch("a://1")
        async with changes:
            assert (await client.call("x")).text == "done"
            assert await anext(changes) == Change("again")
    assert seen == ["resources/subscribe", "tools/call", "tools/call", "resources/subscribe", "resources/unsubscribe"]


async def test_subscriptions_that_keep_ending_are_reopened_with_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[int] = []

    def pause(failures: int) -> float:
        pauses.append(failures)
        return 0.0

    monkeypatch.setattr("millstream.client._watches.retry_pause", pause)

    async def behave(asked: ReceivedRequest) -> None:
        await asked.stream()
        await asked.event(note(asked, "subscriptions/acknowledged", notifications={"toolsListChanged": True}))
        await asked.event(asked.answer({"resultType": "complete"}))
        await asked.end()

    async with (
        misbehaving(with_discovery(behave)) as server,
        Client(server.url) as client,
        client.watch(tools=True) as changes,
        asyncio.timeout(WAIT),
    ):
        assert [await anext(changes) for _ in range(3)] == [Change("again")] * 3
    assert pauses[:3] == [0, 1, 2]


@for_each("revision", ["2025-11-25", "2026-07-28"])
async def test_watching_a_hidden_resource_is_an_error(revision: str) -> None:
    mcp = Server("shop", auth=auth.keys(named_keys={"bob": KEY_OF_BOB}))

    @mcp.resource("orders://all", scopes=["orders"])
    async def orders() -> str:
        return "none"

    async with mcp.running(), serve(mcp) as running, asyncio.timeout(WAIT):
        url, headers = f"http://127.0.0.1:{running.port}/mcp", {"Authorization": f"Bearer {KEY_OF_BOB}"}
        async with Client(url, headers=headers, revision=revision) as client:
            with pytest.raises(ClientError, match="credentials"):
                async with client.watch("orders://all") as changes:
                    await anext(changes)


async def test_broken_subscriptions_are_reopened_and_reported_once() -> None:
    opened = 0

    async def behave(asked: ReceivedRequest) -> None:
        nonlocal opened
        opened += 1
        if opened in (2, 3):
            raise ConnectionError
        await asked.stream()
        await asked.event(note(asked, "subscriptions/acknowledged", notifications={"toolsListChanged": True}))
        if opened == 1:
            raise ConnectionError
        await asked.event(note(asked, "tools/list_changed"))
        await asyncio.get_running_loop().create_future()

    async with (
        misbehaving(with_discovery(behave)) as server,
        Client(server.url) as client,
        client.watch(tools=True) as changes,
        asyncio.timeout(WAIT),
    ):
        assert [await anext(changes), await anext(changes)] == [Change("again"), Change("tools")]
    assert opened == 4


async def test_too_many_unread_changes_are_reported_as_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.client._watches._MAX_UNREAD", 3)
    opened, reopened = 0, asyncio.Event()

    async def behave(asked: ReceivedRequest) -> None:
        nonlocal opened
        opened += 1
        await asked.stream()
        await asked.event(note(asked, "subscriptions/acknowledged", notifications={}))
        if opened == 1:
            for number in range(5):
                await asked.event(note(asked, "resources/updated", uri=f"a://{number}"))
            raise ConnectionError
        reopened.set()
        await asyncio.get_running_loop().create_future()

    async with (
        misbehaving(with_discovery(behave)) as server,
        Client(server.url) as client,
        client.watch("a://") as changes,
        asyncio.timeout(WAIT),
    ):
        await reopened.wait()
        assert [await anext(changes), await anext(changes)] == [Change("again"), Change("resource", "a://4")]
