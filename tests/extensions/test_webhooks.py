"""Webhooks, with each message checked by the verifier of the Standard Webhooks project (`receiver.py`)."""

import asyncio
import base64
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from msgspec import Struct

from auth.issuing.test_sign_in_end_to_end import Person
from auth_world import run_guarded
from cases import for_each
from client.watch_parts import wait_until
from extensions.event_shop import (
    ADA,
    BOB,
    OrderPaid,
    Refunded,
    RpcError,
    SepClient,
    World,
    events_of,
    key_of,
    make_shop,
    run_shop,
)
from extensions.receiver import Message, Receiver, new_secret, run_receiver
from issuing_world import KnownUsers
from millstream import Client, Server, Settings, auth
from millstream.auth._key_file import KeyFile
from millstream.client import Options, ServerError
from millstream.client._oauth import MemoryTokenStore
from millstream.client._oauth.flow import OAuth
from millstream.extensions.events import Events, _webhook
from millstream.extensions.events._catalog import RESOURCE_EXHAUSTED
from millstream.hub import Hub, Subscription
from millstream.protocol import EVENTS
from millstream.stores import MemoryMap, StoreFull, StoreUnavailable
from patience import WAIT
from processes import ROOT, TEST_PATH, free_port, run_command, run_server


def delay_one_hour(attempts: int) -> float:
    """Return a delay longer than the test."""
    return 3600.0


class Note(Struct):
    """A note."""

    text: str


def tiny_delay(attempts: int) -> float:
    """Return a minimal delay."""
    return 0.01


def short_delay(attempts: int) -> float:
    """Return a delay that leaves time for another event."""
    return 0.2


@asynccontextmanager
async def run_delivery(folder: Path, **options: Any) -> AsyncGenerator[tuple[World, Receiver]]:
    """Run a shop that delivers to a local receiver with minimal retry delays."""
    async with run_receiver(folder) as receiver:
        given: dict[str, Any] = {"private_callbacks": True, "tls": receiver.tls, "retry_delay": tiny_delay}
        async with run_shop(make_shop(**{**given, **options})) as world:
            yield world, receiver


async def _expect_error(wait: Any, code: int, reason: str = "") -> None:
    with pytest.raises(RpcError) as refused:
        await wait
    assert refused.value.code == code, refused.value
    if reason:
        assert refused.value.data["reason"] == reason


async def test_deliveries_are_signed(tmp_path: Path) -> None:
    async with run_delivery(tmp_path) as (world, receiver):
        client, secret = world.client(), receiver.secret()
        granted = await client.subscribe(receiver.url(), secret, arguments={"customer": "ada"}, ttlMs=120_000)
        assert granted["id"].startswith("sub_")
        assert granted["refreshBefore"].endswith("Z")
        assert granted["truncated"] is False
        (challenge,) = receiver.challenges
        assert challenge.headers["x-mcp-subscription-id"] == granted["id"]
        assert challenge.id.startswith("msg_verification_")
        published = await world.events.publish(OrderPaid("1"))
        await world.events.publish(OrderPaid("2", "bob"))
        await world.events.publish(OrderPaid("3"))
        first, second = await receiver.wait_for_messages(2)
        assert {first.data["data"]["order"], second.data["data"]["order"]} == {"1", "3"}
        sent = next(each for each in (first, second) if each.data["data"]["order"] == "1")
        assert sent.id == sent.data["eventId"] == published.id
        assert sent.headers["content-type"] == "application/json"
        assert sent.headers["x-mcp-subscription-id"] == granted["id"]
        assert sent.signed_with(secret)
        assert not sent.signed_with(new_secret())
        other = await client.subscribe(receiver.url(), receiver.secret(), arguments={"customer": "bob"})
        assert other["id"] != granted["id"]
        assert len(receiver.challenges) == 1
        await world.client(BOB).subscribe(receiver.url(), receiver.secret())
        assert len(receiver.challenges) == 2


async def test_concurrent_verifications_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_webhook, "_MAX_VERIFICATIONS", 4)
    async with asyncio.timeout(WAIT), run_delivery(tmp_path) as (world, receiver):
        client, urls = world.client(), [receiver.url(f"/{number}") for number in range(6)]
        for first, second, third in (urls[:3], urls[3:]):  # the same limit after earlier verifications have ended
            before = len(receiver.challenges)
            receiver.challenge_replies.clear()
            pending = [asyncio.create_task(client.subscribe(url, receiver.secret())) for url in (first, second)]
            while len(receiver.challenges) < before + 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await _expect_error(client.subscribe(third, receiver.secret()), RESOURCE_EXHAUSTED)
            other = asyncio.create_task(world.client(BOB).subscribe(first, receiver.secret()))
            while len(receiver.challenges) < before + 3:  # noqa: ASYNC110
                await asyncio.sleep(0)
            receiver.challenge_replies.set()
            await asyncio.gather(*pending, other)


async def test_endpoints_that_refuse_are_not_asked_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_webhook, "_MAX_VERIFICATIONS_PER_HOST", 8)
    async with run_delivery(tmp_path) as (world, receiver):
        client, secret = world.client(), receiver.secret()
        receiver.echoes = False
        for number in range(2):
            await _expect_error(client.subscribe(receiver.url(f"/{number}"), secret), -32027, "challenge_failed")
        await _expect_error(client.subscribe(receiver.url("/2"), secret), RESOURCE_EXHAUSTED)


async def test_failed_deliveries_are_repeated_with_the_same_id(tmp_path: Path) -> None:
    async with run_delivery(tmp_path) as (world, receiver):
        client = world.client()
        statuses = {"fails": [500, 302, 429, 204], "gone": [410], "large": [413], "dead": [503] * 9}

        def answer(message: Message) -> int:
            left = statuses.get(message.data["data"]["order"], [])
            return left.pop(0) if left else 200

        receiver.answer = answer
        await client.subscribe(receiver.url(), receiver.secret())
        for order in (*statuses, "last"):
            await world.events.publish(OrderPaid(order), id=f"evt_{order}")
        await receiver.wait_for_messages(4 + 1 + 1 + 5 + 1)
        counts = {order: sum(each.id == f"evt_{order}" for each in receiver.messages) for order in (*statuses, "last")}
        assert counts == {"fails": 4, "gone": 1, "large": 1, "dead": 5, "last": 1}
        await world.events.publish(OrderPaid("after"))  # 410 ends the delivery, not the subscription
        await receiver.wait_until(lambda: receiver.messages[-1].data["data"]["order"] == "after")


async def test_each_message_has_its_own_id_for_clients_that_declare_the_extension(tmp_path: Path) -> None:
    async with run_delivery(tmp_path) as (world, receiver):
        client = world.client()
        client.extensions = {EVENTS: {}}
        for arguments in ({}, {"customer": "ada"}):
            await client.subscribe(receiver.url(), receiver.secret(), arguments=arguments)
        statuses = [500]
        receiver.answer = lambda message: statuses.pop() if statuses else 200
        published = await world.events.publish(OrderPaid("1"))
        messages = await receiver.wait_for_messages(3)
        by_subscription = {each.headers["x-mcp-subscription-id"]: each.id for each in messages}
        assert len({each.id for each in messages}) == len(by_subscription) == 2  # the second attempt has the same id
        assert {each.data["eventId"] for each in messages} == {published.id}
        assert published.id not in by_subscription.values()
        client.extensions = {}  # a refresh by an older client
        for arguments in ({}, {"customer": "ada"}):
            await client.subscribe(receiver.url(), receiver.secrets[0], arguments=arguments)
        again = await world.events.publish(OrderPaid("2"))
        await receiver.wait_until(lambda: sum(each.data["eventId"] == again.id for each in receiver.messages) == 2)
        assert {each.id for each in receiver.messages[3:]} == {again.id}


async def test_failing_endpoints_are_suspended_until_the_next_refresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("millstream.extensions.events._outbox.SUSPENSION_ATTEMPTS", 10)
    async with run_receiver(tmp_path) as receiver:
        options: dict[str, Any] = {"private_callbacks": True, "tls": receiver.tls, "retry_delay": tiny_delay}
        options["store"] = f"sqlite:///{tmp_path}/s.db"
        bad, good = receiver.url("/bad"), receiver.url("/good")

        def orders(granted: dict[str, Any]) -> list[str]:
            messages = [each for each in receiver.messages if each.headers["x-mcp-subscription-id"] == granted["id"]]
            return [each.data["data"]["order"] for each in messages]

        async with run_shop(make_shop(**options)) as world:
            failing = await world.client().subscribe(bad, receiver.secret())
            receiver.answer = lambda message: 500 if message.headers["x-mcp-subscription-id"] == failing["id"] else 200
            other = await world.client(BOB).subscribe(good, receiver.secret())
            for number in (1, 2):  # one at a time, with five attempts each
                await world.events.publish(OrderPaid(str(number)))
                await receiver.wait_until(lambda count=5 * number: len(orders(failing)) == count)  # type: ignore[misc]
            await wait_until(lambda: "is suspended until its next refresh: " in caplog.text)
            await world.events.publish(OrderPaid("3"))
            await receiver.wait_until(lambda: "3" in orders(other))
        async with run_shop(make_shop(**options)) as world:  # a restart doesn't end the suspension
            await world.events.publish(OrderPaid("4"))
            await receiver.wait_until(lambda: "4" in orders(other))
            assert orders(failing) == ["1"] * 5 + ["2"] * 5
            receiver.answer = lambda message: 200
            refreshed = await world.client().subscribe(bad, receiver.secrets[0])
            assert refreshed["deliveryStatus"]["active"] is False
            assert refreshed["deliveryStatus"]["lastError"] == "http_5xx"
            await receiver.wait_until(lambda: {"3", "4"} <= {*orders(failing)})
            refreshed = await world.client().subscribe(bad, receiver.secrets[0])
            assert refreshed["deliveryStatus"]["active"] is True
    said = [each.partition(": ")[0].partition(" It")[0] for each in caplog.messages if "ebhooks for" in each]
    refused = "Webhooks for 'order.paid' are refused"
    assert said == [refused, refused, "No webhooks for 'order.paid' are suspended."]  # at both starts, and at the end


async def test_deliveries_that_work_again_end_their_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [StoreUnavailable("away")]
    position = _webhook.SubscriptionStore.position

    async def find(store: _webhook.SubscriptionStore, name: str) -> str:
        if failures:
            raise failures.pop()
        return await position(store, name)

    monkeypatch.setattr(_webhook.SubscriptionStore, "position", find)
    async with run_delivery(tmp_path):
        await wait_until(lambda: "Webhooks for 'order.paid' can be delivered again." in caplog.messages)
    assert "Webhooks for 'order.paid' can't be delivered; retrying: away" in caplog.messages


async def test_declared_receivers_need_no_challenge(tmp_path: Path) -> None:
    async with run_delivery(tmp_path) as (world, receiver):
        client, secret = world.client(), receiver.secret()
        receiver.echoes = False
        declared = json.dumps({"receivers": ["/hooks/", "/one"]})
        receiver.document = 200, declared
        for path in ("/hooks/a", "/hooks/a/b?c=../d", "/one", "/one/deeper"):
            await client.subscribe(receiver.url(path), secret)
        for path in ("/hook", "/hooksx", "/onex", "/hooks/../x", "/hooks/%2e%2e/x", "/hooks/..%2fx"):
            await _expect_error(client.subscribe(receiver.url(path), secret), -32027, "challenge_failed")
        for document in (
            (404, declared), (302, declared), (200, "[]"), (200, "?"), (200, '{"receivers": "/"}'),
            (200, '{"receivers": [""]}'), (200, declared + " " * 70_000),
        ):  # fmt: skip
            receiver.document = document
            await _expect_error(client.subscribe(receiver.url("/hooks/c"), secret), -32027, "challenge_failed")
        receiver.document = 200, declared
        # Another principal's consent is asked for again.
        before = receiver.documents
        await world.client(BOB).subscribe(receiver.url("/hooks/a"), secret)
        assert receiver.documents == before + 1
        receiver.echoes = True  # an endpoint that responds to the challenge isn't asked for the document
        await client.subscribe(receiver.url("/other"), secret)
        assert receiver.documents == before + 1
        await world.events.publish(OrderPaid("1"))
        await receiver.wait_for_messages(6)


async def test_cursor_does_not_pass_undelivered_events(tmp_path: Path) -> None:
    async with run_delivery(tmp_path, retry_delay=short_delay) as (world, receiver):
        stuck = [500]
        receiver.answer = lambda message: stuck.pop() if message.data["data"]["order"] == "1" and stuck else 200
        client = world.client()
        granted = await client.subscribe(receiver.url(), receiver.secret())
        await world.events.publish(OrderPaid("1"))
        await receiver.wait_for_messages(1)
        await world.events.publish(OrderPaid("2"))
        await receiver.wait_for_messages(3)
        by_order = {each.data["data"]["order"]: each.data["cursor"] for each in receiver.messages}
        replayed = await client.request("events/poll", name="order.paid", cursor=by_order["2"])
        assert [each["data"]["order"] for each in replayed["events"]] == ["1", "2"]
        assert granted["cursor"] != by_order["1"]


async def test_old_and_new_secret_both_sign_after_a_rotation(tmp_path: Path) -> None:
    async with run_delivery(tmp_path) as (world, receiver):
        client, old = world.client(), receiver.secret()
        first = await client.subscribe(receiver.url(), old)
        await world.events.publish(OrderPaid("1"))
        await receiver.wait_for_messages(1)
        new = receiver.secret()
        second = await client.subscribe(receiver.url(), new)
        assert second["id"] == first["id"]
        assert second["deliveryStatus"]["active"] is True
        await world.events.publish(OrderPaid("2"))
        await receiver.wait_until(
            lambda: any(each.signed_with(new) and each.signed_with(old) for each in receiver.messages[1:])
        )


async def test_unsubscribed_endpoints_receive_nothing(tmp_path: Path) -> None:
    async with run_delivery(tmp_path) as (world, receiver):
        client = world.client()
        await client.subscribe(receiver.url("/a"), receiver.secret())
        await client.subscribe(receiver.url("/b"), receiver.secret())
        delivery = {"url": receiver.url("/a")}
        await _expect_error(
            world.client(BOB).request("events/unsubscribe", name="order.paid", delivery=delivery), -32023
        )
        await client.request("events/unsubscribe", name="order.paid", delivery=delivery)
        await _expect_error(client.request("events/unsubscribe", name="order.paid", delivery=delivery), -32023)
        ids = {each.headers["x-mcp-subscription-id"] for each in receiver.challenges}
        for number in range(3):
            await world.events.publish(OrderPaid(str(number)))
        await receiver.wait_for_messages(3)
        assert len({each.headers["x-mcp-subscription-id"] for each in receiver.messages} & ids) == 1


async def test_endpoints_must_confirm_subscriptions(tmp_path: Path) -> None:
    async with run_delivery(tmp_path) as (world, receiver):
        client, secret = world.client(), receiver.secret()
        receiver.echoes = False
        await _expect_error(client.subscribe(receiver.url(), secret), -32027, "challenge_failed")
        receiver.echoes = True
        for url, reason in (("https://localhost:1/", "connection_refused"), ("https://127.0.0.1:1/", "")):
            await _expect_error(client.subscribe(url, secret), -32027, reason)
        await world.events.publish(OrderPaid("1"))
        await client.subscribe(receiver.url(), secret)
        await world.events.publish(OrderPaid("2"))
        (only,) = await receiver.wait_for_messages(1)
        assert only.data["data"]["order"] == "2"


async def test_private_addresses_and_redirects_are_rejected(tmp_path: Path) -> None:
    async with run_delivery(tmp_path, private_callbacks=False) as (world, receiver):
        client, secret = world.client(), receiver.secret()
        hosts = (f"localhost:{receiver.port}", "127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "[fd00::1]")
        for host in (*hosts, "[::ffff:10.0.0.1]", "100.64.0.1"):
            await _expect_error(client.subscribe(f"https://{host}/hook", secret), -32027, "connection_refused")
        assert receiver.challenges == []
    async with run_delivery(tmp_path) as (world, receiver):
        await world.client().subscribe(receiver.url(), receiver.secret())
        receiver.answer = lambda message: receiver.url("/elsewhere")
        await world.events.publish(OrderPaid("1"))
        assert len({each.id for each in await receiver.wait_for_messages(5)}) == 1


async def test_invalid_webhook_requests_are_rejected(tmp_path: Path) -> None:
    async with run_delivery(tmp_path) as (world, receiver):
        client, url, good = world.client(), receiver.url(), receiver.secret()
        short = "whsec_" + base64.b64encode(b"x" * 23).decode()
        long = "whsec_" + base64.b64encode(b"x" * 65).decode()
        for secret in ("", "secret", "whsec_", "whsec_???", short, long, good.removeprefix("whsec_")):
            await _expect_error(client.subscribe(url, secret), -32602)
        for wrong in (url.replace("https", "http"), "https://a:b@localhost/", "ftp://x", "", "https://x/#y"):
            await _expect_error(client.subscribe(wrong, good), -32602)
        for ttl in (0, -1, "1"):
            await _expect_error(client.subscribe(url, good, ttlMs=ttl), -32602)
        await _expect_error(client.subscribe(url, good, name="nothing"), -32023)
        other = {"mode": "carrier-pigeon", "url": url, "secret": good}
        await _expect_error(client.request("events/subscribe", name="order.paid", delivery=other), -32026)
        assert receiver.challenges == []


async def test_webhook_subscriptions_are_limited(tmp_path: Path) -> None:
    customers = [f"c{number}" for number in range(100)]
    caps = {"max_ttl": 3600.0, "max_subscriptions": 3, "max_subscriptions_each": 2}
    async with run_delivery(tmp_path, customers=customers, **caps) as (world, receiver):
        client, secret = world.client(), receiver.secret()
        short = (await client.subscribe(receiver.url(), secret, ttlMs=1))["refreshBefore"]
        longest = (await client.subscribe(receiver.url(), secret, ttlMs=None))["refreshBefore"]
        assert short < longest
        await client.subscribe(receiver.url("/2"), secret)
        await _expect_error(client.subscribe(receiver.url("/3"), secret), -32025)
        await client.subscribe(receiver.url("/2"), secret)  # a refresh doesn't count as another subscription
        await client.request("events/unsubscribe", name="order.paid", delivery={"url": receiver.url("/2")})
        await client.subscribe(receiver.url("/3"), secret)

        async def subscribe_all() -> None:
            for name in customers:  # workers update the count in the background
                await world.client(key_of(name)).subscribe(receiver.url(f"/{name}"), secret)

        await _expect_error(subscribe_all(), -32025)


async def test_refresh_keeps_the_subscription_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, put = asyncio.Queue[bytes](), MemoryMap.put

    async def record(self: MemoryMap, key: str, value: bytes, ttl: float, **options: Any) -> None:
        if key.startswith("events:count."):
            counts.put_nowait(value)
        await put(self, key, value, ttl, **options)

    monkeypatch.setattr(MemoryMap, "put", record)
    async with asyncio.timeout(WAIT), run_delivery(tmp_path) as (world, receiver):
        client, secret = world.client(), receiver.secret()
        for _ in range(2):  # without the second one, the count would expire before the subscription
            await client.subscribe(receiver.url(), secret)
            while await counts.get() != b"1":
                pass


async def test_subscription_can_start_with_past_events(tmp_path: Path) -> None:
    async with run_delivery(tmp_path) as (world, receiver):
        client = world.client()
        start = (await client.request("events/poll", name="order.paid"))["cursor"]
        for number in range(3):
            await world.events.publish(OrderPaid(str(number)))
        granted = await client.subscribe(receiver.url(), receiver.secret(), cursor=start)
        assert granted["truncated"] is False
        await world.events.publish(OrderPaid("3"))
        await receiver.wait_for_messages(4)
        assert sorted(each.data["data"]["order"] for each in receiver.messages) == ["0", "1", "2", "3"]
        late = await client.subscribe(receiver.url("/late"), receiver.secret(), cursor="gone.7")
        assert late["truncated"] is True
        await receiver.wait_for_messages(8)


async def test_match_functions_receive_the_subscriber(tmp_path: Path) -> None:
    async with run_delivery(tmp_path) as (world, receiver):
        ids = {}
        for key, customer in ((ADA, "ada"), (BOB, "bob")):
            granted = await world.client(key).subscribe(receiver.url(), receiver.secret(), name="order.refunded")
            ids[granted["id"]] = customer
        for number, customer in enumerate(("ada", "bob", "eve", "ada")):
            await world.events.publish(Refunded(str(number), customer, 1.0))
        await receiver.wait_for_messages(3)
        for each in receiver.messages:
            assert each.data["data"]["customer"] == ids[each.headers["x-mcp-subscription-id"]]


async def test_pending_deliveries_continue_after_a_restart(tmp_path: Path) -> None:
    up = asyncio.Event()
    async with run_receiver(tmp_path) as receiver:
        receiver.answer = lambda message: 200 if up.is_set() or message.data["data"]["order"] == "taken" else 500
        options: dict[str, Any] = {
            "private_callbacks": True,
            "tls": receiver.tls,
            "store": f"sqlite:///{tmp_path}/s.db",
        }
        async with run_shop(make_shop(**options)) as world:
            await world.client().subscribe(receiver.url(), receiver.secret())
            await world.events.publish(OrderPaid("taken"))
            await receiver.wait_for_messages(1)
            await world.events.publish(OrderPaid("owed"))
            await receiver.wait_for_messages(2)
        up.set()
        shop = make_shop(**options, retry_delay=tiny_delay)
        async with run_shop(shop) as world:
            await world.events.publish(OrderPaid("new"))
            orders = [each.data["data"]["order"] for each in await receiver.wait_for_messages(4)]
    assert orders[:2] == ["taken", "owed"]
    assert sorted(orders[2:]) == ["new", "owed"]


async def test_expired_subscriptions_receive_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.extensions.events._webhook.MIN_TTL", 0.05)
    async with run_delivery(tmp_path) as (world, receiver):
        client = world.client()
        short = await client.subscribe(receiver.url("/short"), receiver.secret(), ttlMs=50)
        lasting = await client.subscribe(receiver.url("/lasting"), receiver.secret())

        def received(id: str) -> list[str]:
            return [each.data["eventId"] for each in receiver.messages if each.headers["x-mcp-subscription-id"] == id]

        async def publish() -> str:
            published = await world.events.publish(OrderPaid("1"))
            await receiver.wait_until(lambda: published.id in received(lasting["id"]))
            return published.id

        until = datetime.fromisoformat(short["refreshBefore"]) + timedelta(milliseconds=1)  # it's rounded down
        while datetime.now(UTC) < until:
            await publish()
        late = {await publish(), await publish()}
        assert not late & set(received(short["id"]))


async def test_deliveries_restart_if_the_channel_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow, failures = Hub.follow, [StoreUnavailable("The store is down.")]

    async def fail_once(hub: Hub, channel: str, *args: Any, **options: Any) -> Subscription:
        if channel == "order.paid" and failures:
            raise failures.pop()
        return await follow(hub, channel, *args, **options)

    monkeypatch.setattr(Hub, "follow", fail_once)
    async with asyncio.timeout(WAIT), run_delivery(tmp_path) as (world, receiver):
        await world.client().subscribe(receiver.url(), receiver.secret())
        await world.events.publish(OrderPaid("1"))
        await receiver.wait_for_messages(1)
        assert not failures


async def test_full_store_does_not_end_deliveries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, failures = MemoryMap.compare_and_set, [StoreFull("The store is full.")]

    async def fail_once(kv: MemoryMap, key: str, expected: bytes | None, *args: Any, **options: Any) -> bool:
        if key.startswith("events:sub.") and expected is not None and failures:
            raise failures.pop()
        return await change(kv, key, expected, *args, **options)

    monkeypatch.setattr(MemoryMap, "compare_and_set", fail_once)
    async with asyncio.timeout(WAIT), run_delivery(tmp_path) as (world, receiver):
        await world.client().subscribe(receiver.url(), receiver.secret())
        while failures:  # noqa: ASYNC110  until a worker has saved that it started
            await asyncio.sleep(0)
        for count in (1, 2):  # the first one may still leave before the failure has an effect
            await world.events.publish(OrderPaid(str(count)))
            await receiver.wait_for_messages(count)


async def test_too_many_pending_events_become_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.extensions.events._webhook.TIMEOUT", 20 * WAIT)
    async with run_delivery(tmp_path, retry_delay=delay_one_hour) as (world, receiver):
        receiver.answer = lambda message: 200 if "type" in message.data else 503
        await world.client().subscribe(receiver.url(), receiver.secret())
        for number in range(105):
            await world.events.publish(OrderPaid(str(number)))
        await receiver.wait_until(lambda: any("type" in each.data for each in receiver.messages))
        (gap,) = [each for each in receiver.messages if "type" in each.data]
        assert gap.data["type"] == "gap"
        assert gap.id.startswith("msg_gap_")
        page = await world.client().request("events/poll", name="order.paid", cursor=gap.data["cursor"])
        assert [each["data"]["order"] for each in page["events"]][:1] == ["1"]


async def test_subscriptions_that_lose_access_are_terminated(tmp_path: Path) -> None:
    async with run_receiver(tmp_path) as receiver:
        options: dict[str, Any] = {
            "private_callbacks": True,
            "tls": receiver.tls,
            "store": f"sqlite:///{tmp_path}/s.db",
        }
        shop = make_shop(**options)
        events_of(shop).event("note")(Note)
        async with run_shop(shop) as world:
            await world.client(BOB).subscribe(receiver.url(), receiver.secret(), name="note")
        shop = make_shop(**options)
        events_of(shop).event("note", scopes=["audit"])(Note)
        async with run_shop(shop) as world:
            (message,) = await receiver.wait_for_messages(1)
            assert message.data["type"] == "terminated"
            assert message.data["error"]["code"] == -32024
            delivery = {"url": receiver.url()}
            await _expect_error(world.client(BOB).request("events/unsubscribe", name="note", delivery=delivery), -32023)


async def test_revoked_keys_end_their_webhooks(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    end = time.time() + 600
    stolen, kept = (file.add(name, (), time.time(), end) for name in ("stolen", "kept"))
    async with run_receiver(tmp_path) as receiver:
        events = Events(private_callbacks=True, tls=receiver.tls)
        settings = Settings(secret_key="0123456789abcdef" * 4)
        shop = Server("shop", serve="hub", auth=auth.keys(file=file.path), extensions=[events], settings=settings)
        events_of(shop).event("order.paid")(OrderPaid)
        async with run_shop(shop) as world:
            ended = await world.client(stolen).subscribe(receiver.url("/stolen"), receiver.secret(), ttlMs=None)
            assert datetime.fromisoformat(ended["refreshBefore"]).timestamp() <= end
            await world.client(kept).subscribe(receiver.url("/kept"), receiver.secret())
            file.remove("stolen")
            (message,) = await receiver.wait_for_messages(1)
            assert (message.data["type"], message.headers["x-mcp-subscription-id"]) == ("terminated", ended["id"])
            await events_of(shop).publish(OrderPaid("1"))
            _, delivered = await receiver.wait_for_messages(2)
            assert delivered.headers["x-mcp-subscription-id"] != ended["id"]


async def test_slow_endpoints_do_not_block_other_principals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.extensions.events._webhook.TIMEOUT", 20 * WAIT)
    async with AsyncExitStack() as stack:
        receiver, *slow = [await stack.enter_async_context(run_receiver(tmp_path)) for _ in range(4)]
        shop = make_shop(private_callbacks=True, tls=receiver.tls, retry_delay=tiny_delay)
        world = await stack.enter_async_context(run_shop(shop))
        for each in slow:
            each.replies.clear()
            url, secret = each.url(), each.secret()
            for number in range(32):
                await world.client(BOB).subscribe(url, secret, name="order.noted", arguments={"above": number})
        await world.client().subscribe(receiver.url(), receiver.secret())
        await world.events.publish("order.noted", {"order": "1"})
        await slow[0].wait_for_messages(1)
        await world.events.publish(OrderPaid("1"), id="evt_1")
        (message,) = await receiver.wait_for_messages(1)
        assert message.id == "evt_1"
        for each in slow:
            each.replies.set()
        for each in slow:
            await each.wait_for_messages(32)


async def test_hanging_endpoints_lose_only_their_principals_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.extensions.events._webhook.TIMEOUT", 20 * WAIT)
    async with AsyncExitStack() as stack:
        receiver, hanging = [await stack.enter_async_context(run_receiver(tmp_path)) for _ in range(2)]
        shop = make_shop(private_callbacks=True, tls=receiver.tls, retry_delay=tiny_delay)
        world = await stack.enter_async_context(run_shop(shop))
        hanging.replies.clear()
        url, secret = hanging.url(), hanging.secret()
        for number in range(100):
            await world.client(BOB).subscribe(url, secret, name="order.noted", arguments={"above": number})
        noted = await world.client().subscribe(receiver.url(), receiver.secret(), name="order.noted")
        paid = await world.client().subscribe(receiver.url(), receiver.secrets[0])
        for number in range(25):
            for each in range(10):
                await events_of(shop).publish("order.noted", {"order": f"{number}.{each}"})
            await events_of(shop).publish(OrderPaid(str(number)))
            await receiver.wait_for_messages(11 * (number + 1))  # 25,000 deliveries are due to the other principal
        assert Counter(each.headers["x-mcp-subscription-id"] for each in receiver.messages) == {
            noted["id"]: 250,
            paid["id"]: 25,
        }
        assert all("eventId" in each.data for each in receiver.messages)
        hanging.replies.set()
        await hanging.wait_until(lambda: any(each.data.get("type") == "gap" for each in hanging.messages))


async def test_pending_deliveries_are_limited_per_principal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.extensions.events._outbox.MAX_QUEUED", 20 * 1_050)
    monkeypatch.setattr("millstream.extensions.events._webhook.TIMEOUT", 20 * WAIT)
    async with run_receiver(tmp_path) as hanging, run_delivery(tmp_path) as (world, receiver):
        hanging.replies.clear()
        for number in range(4):
            await world.client(BOB).subscribe(
                hanging.url(), hanging.secret(), name="order.noted", arguments={"above": number}
            )
        await world.client().subscribe(receiver.url(), receiver.secret(), name="order.noted")
        for number in range(10):
            await world.events.publish("order.noted", {"order": str(number)})
            await receiver.wait_for_messages(number + 1)
        hanging.replies.set()
        await world.events.publish("order.noted", {"order": "last"}, id="evt_last")
        await hanging.wait_until(lambda: sum(each.id == "evt_last" for each in hanging.messages) == 4)
        kinds = Counter(each.data.get("type", "event") for each in hanging.messages)
        assert kinds["gap"] == 4
        assert 10 < kinds["event"] < 4 * 11  # at most 10 waited, and each subscription got the last one


async def test_endpoints_on_the_same_host_as_a_hanging_one_get_their_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.extensions.events._webhook.TIMEOUT", 20 * WAIT)
    async with run_delivery(tmp_path) as (world, receiver):
        receiver.replies.clear()
        for number in range(100):
            await world.client(BOB).subscribe(
                receiver.url(), receiver.secret(), name="order.noted", arguments={"above": number}
            )
        await world.client().subscribe(receiver.url(), receiver.secret())
        await world.events.publish("order.noted", {"order": "1"})
        await receiver.wait_for_messages(1)
        await world.events.publish(OrderPaid("1"), id="evt_1")
        await receiver.wait_until(lambda: receiver.messages[-1].id == "evt_1")
        receiver.replies.set()


async def test_hanging_endpoints_are_suspended_until_they_respond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_receiver(tmp_path) as hanging, run_delivery(tmp_path, retry_delay=short_delay) as (world, receiver):
        client = world.client()

        async def is_timed_out() -> bool:
            again = await client.subscribe(hanging.url(), hanging.secrets[0])
            return bool(again["deliveryStatus"]["lastError"] == "timeout")

        await client.subscribe(hanging.url(), hanging.secret())
        await client.subscribe(receiver.url(), receiver.secret())
        monkeypatch.setattr("millstream.extensions.events._webhook.TIMEOUT", 0.3)
        hanging.replies.clear()
        await world.events.publish(OrderPaid("0"))
        async with asyncio.timeout(WAIT):
            while not await is_timed_out():
                pass
        for number in range(1, 21):
            await world.events.publish(OrderPaid(str(number)))
        await receiver.wait_for_messages(21)
        assert len({each.id for each in hanging.messages}) < 10  # the first one again, and more on a slow machine
        hanging.replies.set()
        await hanging.wait_until(lambda: len({each.id for each in hanging.messages}) == 21)


async def test_suspended_endpoint_gets_the_next_event_after_a_data_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout = "millstream.extensions.events._webhook.TIMEOUT"
    async with run_delivery(tmp_path, retry_delay=delay_one_hour) as (world, receiver):
        client = world.client()
        await client.subscribe(receiver.url(), receiver.secret())
        monkeypatch.setattr(timeout, 0.3)
        receiver.replies.clear()
        await world.events.publish(OrderPaid("0"))
        async with asyncio.timeout(WAIT):
            while True:  # the next attempt is in an hour
                again = await client.subscribe(receiver.url(), receiver.secrets[0])
                if again["deliveryStatus"]["lastError"] == "timeout":
                    break
        monkeypatch.setattr(timeout, WAIT)
        receiver.replies.set()
        monkeypatch.setattr("millstream.extensions.events._delivery.epoch_of", lambda hub: "another")
        await world.events.publish(OrderPaid("1"), id="evt_1")
        await receiver.wait_until(lambda: any(each.id == "evt_1" for each in receiver.messages))


@for_each("granted", [True, False])
async def test_revoked_tokens_end_their_webhooks(tmp_path: Path, granted: bool) -> None:
    async with run_receiver(tmp_path) as receiver:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        events = Events(private_callbacks=True, tls=receiver.tls, retry_delay=tiny_delay)
        batch = auth.client("batch", secret="s" * 40, scopes=["shop:use"])
        issuer = auth.issuer(url, users=KnownUsers(), clients=[batch])
        shop = Server("shop", serve="hub", auth=issuer, extensions=[events], settings=Settings())
        events_of(shop).event("order.paid")(OrderPaid)
        async with run_guarded(shop, port=port), httpx2.AsyncClient(timeout=WAIT, trust_env=False) as http:
            token, form = await (_sign_in(url) if granted else _own_token(http, url))
            client = SepClient(http, f"{url}/mcp", token)
            granted_until = await client.subscribe(receiver.url(), receiver.secret())
            await events.publish(OrderPaid("1"), id="evt_1")
            await receiver.wait_for_messages(1)
            assert (await http.post(f"{url}/revoke", data={**form, "token": token})).status_code == 200
            await receiver.wait_until(lambda: receiver.messages[-1].data.get("type") == "terminated")
            await events.publish(OrderPaid("2"), id="evt_2")
            assert [each.data.get("type", each.id) for each in receiver.messages] == ["evt_1", "terminated"]
            assert granted_until["id"] == receiver.messages[-1].headers["x-mcp-subscription-id"]


async def _sign_in(url: str) -> tuple[str, dict[str, str]]:
    """Return a user's token and the form that revokes it."""
    kept = MemoryTokenStore()
    async with Client(f"{url}/mcp", options=Options(auth=OAuth(store=kept, redirect_handler=Person().visit))) as client:
        await client.ping()
    (tokens,) = kept.load().tokens.values()
    return tokens.access_token, {"client_id": kept.load().registrations[url].client_id}


async def _own_token(http: httpx2.AsyncClient, url: str) -> tuple[str, dict[str, str]]:
    """Return a program's token and the form that revokes it."""
    form = {"client_id": "batch", "client_secret": "s" * 40}
    reply = await http.post(f"{url}/token", data={**form, "grant_type": "client_credentials"})
    return reply.json()["access_token"], form


async def test_webhooks_require_a_principal_that_the_hub_admits(tmp_path: Path) -> None:
    async with run_receiver(tmp_path) as receiver:
        open_shop = Server("shop", serve="hub", extensions=[Events()])
        events_of(open_shop).event("order.paid")(OrderPaid)
        async with Client(open_shop) as client:
            with pytest.raises(ServerError) as refused:
                await client.events.webhook("order.paid", receiver.url(), receiver.secret())
            assert refused.value.code == -32024
        hidden = make_shop(authorize_channel=lambda principal, action, channel: False)
        async with run_shop(hidden) as world:
            await _expect_error(world.client().subscribe(receiver.url(), receiver.secret()), -32024)
            await _expect_error(world.client().request("events/poll", name="order.paid"), -32024)
        assert receiver.challenges == []


async def test_client_manages_webhooks(tmp_path: Path) -> None:
    async with run_delivery(tmp_path) as (world, receiver):
        headers = {"Authorization": f"Bearer {ADA}"}
        async with Client(f"http://127.0.0.1:{world.port}/mcp", headers=headers) as client:
            events, url, chosen = client.events, receiver.url(), {"customer": "ada"}
            granted = await events.webhook("order.paid", url, receiver.secret(), chosen, ttl=300)
            assert granted.delivery_status is None
            again = await events.webhook("order.paid", url, receiver.secrets[0], chosen)
            assert (again.id, (again.delivery_status or {})["active"]) == (granted.id, True)
            await world.events.publish(OrderPaid("1"))
            (message,) = await receiver.wait_for_messages(1)
            assert message.headers["x-mcp-subscription-id"] == granted.id
            await events.remove_webhook("order.paid", url, chosen)
            with pytest.raises(ServerError, match="no such subscription"):
                await events.remove_webhook("order.paid", url, chosen)


def _program(folder: Path, receiver: Receiver) -> Path:
    """Write a program that serves the shop in separate processes."""
    program = folder / "shop.py"
    program.write_text(
        f"""
import os, ssl, sys
sys.path[:0] = [*{TEST_PATH.split(os.pathsep)!r}, {str(ROOT)!r}]
from extensions.event_shop import OrderPaid, Refunded, events_of, make_shop
tls = ssl.create_default_context(cafile={str(folder / "c.pem")!r})
mcp = make_shop(private_callbacks=True, tls=tls)

@mcp.tool
async def pay(order: str) -> int:
    await events_of(mcp).publish(OrderPaid(order), id=order)
    return os.getpid()

@mcp.tool
async def refund(order: str, customer: str) -> int:
    await events_of(mcp).publish(Refunded(order, customer, 5.0), id=order)
    return os.getpid()

@mcp.tool
async def who() -> int:
    return os.getpid()
"""
    )
    return program


@asynccontextmanager
async def _run_two_workers(folder: Path, *options: str) -> AsyncGenerator[tuple[Receiver, SepClient]]:
    """Run two workers on one store, a receiver, and a client whose requests reach either worker."""
    async with run_receiver(folder) as receiver:
        port = free_port()
        command = run_command(str(_program(folder, receiver)), port, "--workers", "2", *options)
        with run_server(command, port, folder / "log"):
            limits = httpx2.Limits(max_keepalive_connections=0)
            async with httpx2.AsyncClient(timeout=WAIT, trust_env=False, limits=limits) as http:
                yield receiver, SepClient(http, f"http://127.0.0.1:{port}/mcp", ADA)


async def _call(client: SepClient, tool: str, **arguments: str) -> int:
    result = await client.request("tools/call", name=tool, arguments=arguments)
    pid: int = result["structuredContent"]
    return pid


async def _publish_on_both_workers(client: SepClient) -> set[int]:
    """Publish ``evt_1`` to ``evt_20``, with some on each worker. Return the process ids."""
    workers = {await _call(client, "pay", order=f"evt_{number}") for number in range(1, 20)}
    while len(workers) < 2:  # the kernel chooses the worker
        workers.add(await _call(client, "who"))
    await _call(client, "pay", order="evt_20")
    return workers


@pytest.mark.server
async def test_two_workers_deliver_each_event_once(tmp_path: Path) -> None:
    async with _run_two_workers(tmp_path) as (receiver, client):
        await client.subscribe(receiver.url(), receiver.secret())
        await _publish_on_both_workers(client)
        await receiver.wait_for_messages(20)
        await _call(client, "pay", order="evt_end")
        await receiver.wait_until(lambda: receiver.messages[-1].id == "evt_end")
        assert sorted(each.id for each in receiver.messages) == sorted(
            [*(f"evt_{number}" for number in range(1, 21)), "evt_end"]
        )


@pytest.mark.server
async def test_principals_cannot_access_each_others_webhooks_or_events(tmp_path: Path) -> None:
    async with _run_two_workers(tmp_path, "--store", f"sqlite:///{tmp_path}/store.db") as (receiver, ada):
        bob = SepClient(ada._http, ada._url, BOB)
        url, secrets = receiver.url(), {name: receiver.secret() for name in ("ada", "bob")}
        owners: dict[str, str] = {}
        cursors: dict[str, str] = {}
        for name, client in (("ada", ada), ("bob", bob), ("ada", ada), ("bob", bob)):
            for event in ("order.refunded", "order.paid"):
                result = await client.subscribe(url, secrets[name], name=event)
                owners[result["id"]] = name
                cursors.setdefault(name, result["cursor"])
        assert len(owners) == 4
        for event in ("order.refunded", "order.paid"):
            delivery = {"mode": "webhook", "url": url, "secret": secrets["bob"]}
            await bob.request("events/unsubscribe", name=event, delivery=delivery)
            with pytest.raises(RpcError, match="no such subscription"):
                await bob.request("events/unsubscribe", name=event, delivery=delivery)
        for number in range(4):
            for customer in ("ada", "bob"):
                await _call(ada, "refund", order=f"{customer}-{number}", customer=customer)
        await _call(ada, "pay", order="end")
        await receiver.wait_until(lambda: len({each.id for each in receiver.messages}) >= 5)
        assert {each.id for each in receiver.messages} == {"end", *(f"ada-{number}" for number in range(4))}
        for message in receiver.messages:
            assert owners[message.headers["x-mcp-subscription-id"]] == "ada"
            assert message.signed_with(secrets["ada"])
        for client, mine in ((ada, "ada"), (bob, "bob")):
            page = await client.request("events/poll", name="order.refunded", cursor=cursors["ada"])
            assert [each["data"]["customer"] for each in page["events"]] == [mine] * 4
        for wanted, count in (("order.refunded", 0), ("order.*", 1), (">", 1), ("order.paid", 1)):
            head = {"authorization": f"Bearer {BOB}", "accept": "text/event-stream", "last-event-id": cursors["ada"]}
            root = ada._url.removesuffix("/mcp")
            async with bob._http.stream("GET", f"{root}/events?channel={wanted}", headers=head) as reply:
                assert reply.status_code == (200 if count else 403)
                if count:
                    lines = [line async for line in until_data(reply.aiter_lines(), "end")]
                    assert not [line for line in lines if "customer" in line and '"order":"end"' not in line], lines
        with pytest.raises(RpcError, match="no event"):
            await bob.subscribe(url, secrets["bob"], name="audit.noted")


async def until_data(lines: AsyncIterator[str], text: str) -> AsyncIterator[str]:
    """Yield lines up to one that contains a text."""
    async for line in lines:
        yield line
        if text in line:
            return


@pytest.mark.server
@pytest.mark.nightly
async def test_events_survive_killed_workers(tmp_path: Path) -> None:
    async with _run_two_workers(tmp_path) as (receiver, client):
        receiver.answer = lambda message: 500
        await client.subscribe(receiver.url(), receiver.secret(), ttlMs=600_000)
        workers = await _publish_on_both_workers(client)
        await receiver.wait_for_messages(20)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        receiver.answer = lambda message: 200
        killed, wanted = len(receiver.messages), {f"evt_{number}" for number in range(1, 21)}
        await receiver.wait_until(lambda: {each.id for each in receiver.messages[killed:]} >= wanted)
        # Messages that a worker sent before it was killed may arrive later.
        assert max(Counter(each.id for each in receiver.messages[killed:]).values()) <= 2


@pytest.mark.nightly
async def test_ten_thousand_subscriptions_receive_an_event(tmp_path: Path) -> None:
    names = [f"customer{number}" for number in range(100)]
    async with run_delivery(tmp_path, customers=names) as (world, receiver):
        url, secret = receiver.url(), receiver.secret()
        for name in names:
            client = world.client(key_of(name))
            for number in range(100):
                await client.subscribe(url, secret, name="order.noted", arguments={"above": number}, ttlMs=None)
        assert len(receiver.challenges) == len(names)
        await world.events.publish("order.noted", {"order": "1"})
        async with asyncio.timeout(20 * WAIT):
            while len(receiver.messages) < 10_000:
                await receiver.wait_for_messages(min(len(receiver.messages) + 500, 10_000))
        assert len({each.headers["x-mcp-subscription-id"] for each in receiver.messages}) == 10_000
