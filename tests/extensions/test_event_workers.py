import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from client.watch_parts import wait_until
from extensions.event_shop import ADA, META, OrderPaid, RpcError, events_of, make_shop
from extensions.receiver import Receiver, run_receiver
from fleet import Worker, real_fleet
from millstream import Server
from patience import WAIT
from redis_parts import long_redis_timeouts  # noqa: F401  for every test
from store_parts import (
    Backing,
    shared_backing,  # noqa: F401  the fixture `backing`
)


@asynccontextmanager
async def _run_two_workers(folder: Path, backing: Backing) -> AsyncIterator[tuple[Receiver, Worker, Worker]]:
    async with run_receiver(folder) as receiver:

        def make() -> Server:
            return make_shop(private_callbacks=True, tls=receiver.tls, retry_delay=lambda attempts: 0.01)

        async with asyncio.timeout(WAIT), real_fleet(make, backing, 2) as (one, two):
            yield receiver, one, two


async def ask(worker: Worker, method: str, key: str = ADA, **params: Any) -> dict[str, Any]:
    """Send a request to one worker and return its result."""
    headers = {
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": method,
        "authorization": f"Bearer {key}",
    }
    answer = await worker.ask(method, {**params, "_meta": META}, headers)
    if "error" in answer:
        raise RpcError(answer["error"])
    result: dict[str, Any] = answer["result"]
    return result


async def subscribe(worker: Worker, receiver: Receiver, name: str = "order.paid") -> dict[str, Any]:
    """Create a webhook subscription on one worker."""
    delivery = {"mode": "webhook", "url": receiver.url(), "secret": receiver.secret()}
    return await ask(worker, "events/subscribe", name=name, delivery=delivery)


async def test_webhooks_deliver_events_from_other_workers(tmp_path: Path, backing: Backing) -> None:
    async with _run_two_workers(tmp_path, backing) as (receiver, one, two):
        failed: set[str] = set()

        def fail_once(message: Any) -> int:
            first = message.id not in failed
            failed.add(message.id)
            return 500 if first and message.id == "evt_3" else 200

        receiver.answer = fail_once
        await subscribe(one, receiver)
        for number in range(1, 11):
            publisher = (two, one)[number % 2]
            await events_of(publisher.server).publish(OrderPaid(str(number)), id=f"evt_{number}")
        await receiver.wait_until(lambda: len({each.id for each in receiver.messages}) == 10)
        await events_of(two.server).publish(OrderPaid("end"), id="evt_end")
        await receiver.wait_until(lambda: receiver.messages[-1].id == "evt_end" and len(receiver.messages) >= 12)
        sent = [each.id for each in receiver.messages]
        assert sorted(sent) == sorted([*(f"evt_{number}" for number in range(1, 11)), "evt_3", "evt_end"])


async def test_refresh_on_another_worker_ends_a_suspension(
    tmp_path: Path, backing: Backing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("millstream.extensions.events._outbox.SUSPENSION_ATTEMPTS", 5)
    async with _run_two_workers(tmp_path, backing) as (receiver, one, two):
        receiver.answer = lambda message: 500
        await subscribe(one, receiver)
        await events_of(one.server).publish(OrderPaid("1"), id="evt_1")
        await wait_until(lambda: "is suspended until its next refresh" in caplog.text)
        await events_of(two.server).publish(OrderPaid("2"), id="evt_2")
        receiver.answer = lambda message: 200
        workers = [one, two]
        await asyncio.gather(*(subscribe(each, receiver) for each in workers))
        await receiver.wait_until(lambda: receiver.messages[-1].id == "evt_2")


async def test_events_with_equal_ids_from_two_workers_are_delivered_once(tmp_path: Path, backing: Backing) -> None:
    async with _run_two_workers(tmp_path, backing) as (receiver, one, two):
        await subscribe(one, receiver)
        await asyncio.gather(
            *(events_of(each.server).publish(OrderPaid("1"), id="evt_1") for each in (one, two, one, two))
        )
        await receiver.wait_for_messages(1)
        await events_of(one.server).publish(OrderPaid("2"), id="evt_2")
        await receiver.wait_for_messages(2)
        assert [each.id for each in receiver.messages] == ["evt_1", "evt_2"]


async def test_another_worker_continues_a_killed_workers_deliveries(
    tmp_path: Path, backing: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("_delivery", "_webhook"):
        monkeypatch.setattr(f"millstream.extensions.events.{module}.LEASE", 5.0)
    async with _run_two_workers(tmp_path, backing) as (receiver, one, two):
        await subscribe(two, receiver)
        await events_of(one.server).publish(OrderPaid("1"), id="evt_1")
        await receiver.wait_until(lambda: len(receiver.messages) == 1)
        one.runtime.dispatcher.stopping = True
        await backing.kill(one.store.real)
        for number in range(2, 6):
            await events_of(two.server).publish(OrderPaid(str(number)), id=f"evt_{number}")
        wanted = {f"evt_{number}" for number in range(1, 6)}
        await receiver.wait_until(lambda: {each.id for each in receiver.messages} == wanted)
