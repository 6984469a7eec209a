"""Records in the store that an older version wrote. `older_records.json` has their keys and values, in base64."""

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import msgspec

from bad_input.shop import make_shop
from cases import for_each
from extensions.tasks.tasks_world import TaskClient, text
from fleet import fleet, one_worker
from hub_parts import MemoryStore, open_hub, receive
from millstream import Server
from shared_store import SharedStore
from wire import Json

TTL = 300.0
RECORDS: dict[str, bytes] = {
    key: base64.b64decode(value)
    for key, value in json.loads((Path(__file__).parent / "older_records.json").read_text()).items()
}


def find(kind: str) -> tuple[str, bytes]:
    """Return the key and the value of the record of a kind."""
    return next((key, value) for key, value in RECORDS.items() if key.startswith(f"{kind}:"))


async def store_session(shared: SharedStore, value: bytes) -> dict[str, str]:
    """Begin a session whose record has this value. Return the headers of its requests."""
    async with one_worker(make_shop, shared) as worker:
        headers = await worker.initialize()
        await worker.ask("logging/setLevel", {"level": "info"}, headers)
        (key,) = await shared.core.kv.keys("session:")
        await shared.core.kv.put(key, value, TTL)
    return headers


async def test_subscriptions_from_an_older_version_continue() -> None:
    shared = SharedStore()
    headers = await store_session(shared, find("session")[1])
    async with one_worker(make_shop, shared) as worker:
        stream = await worker.get(headers)
        await worker.server.resource_updated("shop://sign")
        (message,) = await stream.until(1)
        assert message["params"] == {"uri": "shop://sign"}


async def test_older_workers_can_read_the_records_of_newer_ones() -> None:
    async with fleet(make_shop, 1) as (worker,):
        headers = await worker.initialize()
        await worker.ask("resources/subscribe", {"uri": "shop://sign"}, headers)
        (key,) = await worker.store.core.kv.keys("session:")
        raw = await worker.store.core.kv.get(key)
        assert raw is not None
        older: Json = msgspec.json.decode(raw)
        assert "subscriptions" not in older  # it was a list


@for_each("value", [b'{"watched":3}', b'{"subscriptions":{"a":""}}', b"\x92\x01", b""])
async def test_session_with_an_unreadable_record_is_unknown(value: bytes) -> None:
    shared = SharedStore()
    headers = await store_session(shared, value)
    async with one_worker(make_shop, shared) as worker:
        assert (await worker.ask("tools/list", None, headers))["status"] == 404
        assert (await worker.get(headers)).status == 404
        assert (await worker.ask("tools/list", None, await worker.initialize()))["status"] == 200


async def test_stream_ends_when_its_record_cannot_be_read() -> None:
    async with fleet(make_shop, 2) as (one, two):
        headers = await one.initialize()
        await one.ask("resources/subscribe", {"uri": "shop://sign"}, headers)
        stream = await one.get(headers)
        (key,) = await one.store.core.kv.keys("session:")
        await one.store.core.kv.put(key, b"{}{}", TTL)
        assert (await two.ask("logging/setLevel", {"level": "info"}, headers))["status"] == 404
        one.runtime.services.records.forget()
        await stream.end()


async def test_task_handed_over_by_an_older_version_runs() -> None:
    shared, done = SharedStore(), asyncio.Event()
    key, value = find("task")
    record: dict[str, Any] = msgspec.msgpack.decode(value)
    record |= {"created": time.time(), "updated": time.time()}
    await shared.core.kv.put(key, msgspec.msgpack.encode(record), TTL)
    await shared.core.kv.put(*find("taskcall"), TTL)

    def make() -> Server:
        mcp = Server("shop")

        @mcp.tool(task="required", task_retry=True)
        async def again(word: str) -> str:
            """Return the word."""
            done.set()
            return word

        return mcp

    async with one_worker(make, shared) as worker:
        client = TaskClient(worker.ask)
        assert (await client.get(record["id"]))["status"] == "working"
        await done.wait()
        assert text(await client.wait_for_end(record["id"])) == "Emma"


async def test_messages_that_an_older_version_delivered_are_not_repeated() -> None:
    store = MemoryStore()
    async with open_hub(store) as hub:
        for number in range(2):
            await hub.send("me", f"{number}")
        _, seen = find("seen")
        place = f"{store.epoch}.{seen.rpartition(b'.')[2].decode()}"
        first = await receive(hub, "other")
        assert first.data == []
        await store.kv.put(find("seen")[0], place.encode(), TTL)
        assert (await receive(hub, "me")).data == ["1"]
