import asyncio

import pytest

from behavior.combinations import Combination, in_combinations
from behavior.conftest import Connect
from behavior.harness import new_order_uri
from patience import WAIT

UPDATED = "notifications/resources/updated"
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
KINDS = ("tools", "prompts", "resources")


@in_combinations("session")
@pytest.mark.parametrize("kind", KINDS)
async def test_list_changes_are_announced(connect: Connect, combination: Combination, kind: str) -> None:
    """MCP 2026-07-28, basic/patterns/subscriptions."""
    client = await connect(combination)
    subscription = await client.watch()
    since = len(client.notes)
    assert (await client.call("grow", kind=kind)).text == "grown"
    params = await client.wait_for_notification(f"notifications/{kind}/list_changed", since=since)
    assert params.get("_meta", {}).get(SUBSCRIPTION) == subscription
    assert {note["method"] for note in client.notes[since:]} == {f"notifications/{kind}/list_changed"}


@in_combinations("session")
async def test_updates_reach_the_resource_subscribers(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/subscriptions."""
    client = await connect(combination)
    watched, also = new_order_uri(), new_order_uri()
    subscription = await client.watch(watched, also)
    since = len(client.notes)
    await client.call("touch", uri=new_order_uri())
    await client.call("touch", uri=watched)
    params = await client.wait_for_notification(UPDATED, since=since)
    assert params["uri"] == watched
    assert params.get("_meta", {}).get(SUBSCRIPTION) == subscription
    await client.call("touch", uri=also)
    await client.until(lambda: len(client.notes) == since + 2)
    assert client.notes[-1]["params"]["uri"] == also


@in_combinations("session")
async def test_updates_to_static_resources_are_delivered(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/subscriptions."""
    client = await connect(combination)
    await client.watch("note://one")
    await client.call("touch", uri="note://one")
    assert (await client.wait_for_notification(UPDATED))["uri"] == "note://one"


@in_combinations("handshake session")
async def test_updates_stop_after_unsubscribe(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, server/resources."""
    client = await connect(combination)
    left, kept = new_order_uri(), new_order_uri()
    await client.watch(left, kept)
    await client.request("resources/unsubscribe", {"uri": left})
    since = len(client.notes)
    await client.call("touch", uri=left)
    await client.call("touch", uri=kept)
    assert (await client.wait_for_notification(UPDATED, since=since))["uri"] == kept
    assert len(client.notes) == since + 1
    await client.request("resources/unsubscribe", {"uri": kept})
    assert (await client.request("resources/unsubscribe", {"uri": kept})).result == {}


@in_combinations("handshake session")
async def test_subscriptions_to_unknown_resources_are_rejected(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, server/resources."""
    client = await connect(combination)
    assert (await client.request("resources/subscribe", {"uri": "note://none"})).error["code"] == -32002


@in_combinations(over=("sessionless",), until="2025-11-25")
async def test_subscriptions_need_a_session(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/transports."""
    client = await connect(combination)
    assert "error" in (await client.request("resources/subscribe", {"uri": "note://one"})).message


@in_combinations("requests of its own")
async def test_subscriptions_are_acknowledged_before_filtered_changes_arrive(
    connect: Connect, combination: Combination
) -> None:
    """MCP 2026-07-28, basic/patterns/subscriptions."""
    client = await connect(combination)
    wanted = {"toolsListChanged": True, "promptsListChanged": False, "taskIds": ["x"], "resourceSubscriptions": []}
    sent = await client.start("subscriptions/listen", {"notifications": wanted}, id="an id")
    acknowledged = await client.wait_for_notification("notifications/subscriptions/acknowledged")
    assert acknowledged == {"notifications": {"toolsListChanged": True}, "_meta": {SUBSCRIPTION: "an id"}}
    await client.call("grow", kind="prompts")
    await client.call("touch", uri="note://one")
    await client.call("grow", kind="tools")
    await client.wait_for_notification("notifications/tools/list_changed")
    assert {note["method"] for note in client.notes} == {
        "notifications/subscriptions/acknowledged",
        "notifications/tools/list_changed",
    }
    assert {note["params"]["_meta"][SUBSCRIPTION] for note in client.notes} == {sent}


@in_combinations("requests of its own")
async def test_two_subscriptions_receive_their_own_updates(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/subscriptions."""
    client = await connect(combination)
    one, two = new_order_uri(), new_order_uri()
    first = await client.watch(one, kinds=())
    second = await client.watch(two, kinds=("tools",))
    since = len(client.notes)
    await client.call("touch", uri=two)
    await client.call("touch", uri=one)
    await client.until(lambda: len(client.notes) == since + 2)
    heard = {note["params"]["uri"]: note["params"]["_meta"][SUBSCRIPTION] for note in client.notes[since:]}
    assert heard == {one: first, two: second}


@in_combinations("requests of its own")
async def test_subscriptions_without_a_known_target_end_immediately(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/subscriptions."""
    client = await connect(combination)
    reply = await client.request("subscriptions/listen", {"notifications": {"taskIds": ["x"]}})
    assert reply.of("notifications/subscriptions/acknowledged")[0]["notifications"] == {}
    assert reply.result["resultType"] == "complete"
    assert SUBSCRIPTION in reply.result["_meta"]


@in_combinations("requests of its own")
async def test_subscriptions_need_a_filter(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/subscriptions: `notifications` is required."""
    client = await connect(combination)
    assert (await client.request("subscriptions/listen")).error["code"] == -32602


@in_combinations("requests of its own", "our process")
async def test_stopping_server_ends_subscriptions_with_a_result(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/subscriptions."""
    client = await connect(combination)
    sent = await client.watch()
    await (await client.server.start()).drain(WAIT)
    reply = await client.finish(sent)
    assert reply.result["_meta"][SUBSCRIPTION] == sent
    assert reply.result["resultType"] == "complete"


@in_combinations("requests of its own", "our process")
async def test_closing_the_runtime_ends_subscriptions_with_a_result(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/subscriptions."""
    client = await connect(combination)
    sent = await client.watch()
    await client.server.stop()
    assert (await client.finish(sent)).result["_meta"][SUBSCRIPTION] == sent


@in_combinations("requests of its own", "streamable http")
async def test_subscriptions_are_rejected_if_no_stream_can_carry_them(
    connect: Connect, combination: Combination
) -> None:
    client = await connect(combination)
    params = client.params({"notifications": {"toolsListChanged": True}})
    message = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params}
    async with asyncio.timeout(WAIT):
        reply = await client.streamable.post(message, {"accept": "application/json"})
    assert reply.status == 406


@in_combinations("requests of its own", "explicit cancel")
async def test_notification_cancels_a_subscription(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/subscriptions."""
    client = await connect(combination)
    sent = await client.watch()
    await client.notify("notifications/cancelled", {"requestId": sent})
    assert (await client.call("text")).text == "plain"
    since = len(client.notes)
    await client.call("grow", kind="tools")
    await client.call("text")
    assert client.notes[since:] == []


@in_combinations("requests of its own", "streamable http")
async def test_subscriptions_stream_even_if_calls_reply_with_json(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/patterns/subscriptions."""
    client = await connect(combination)
    sent = await client.watch()
    stream = client.streamable.streams[sent]
    assert stream.exchange.streaming
    await client.call("grow", kind="tools")
    await client.wait_for_notification("notifications/tools/list_changed")
    assert {event.id for event in stream.events} == {None}
