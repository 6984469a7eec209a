"""The dialect of a WebSocket without the subprotocol: calls, channels, JSON-RPC messages, and invalid messages."""

import json
from typing import Any

from cases import for_each
from millstream import Principal, Settings
from millstream.hub import HubLimits
from socket_world import TRANSPORTS, ask, recv_json, send_json, world
from wire import per_request


@for_each("way", TRANSPORTS)
async def test_seed_snippet_gets_its_response(way: str) -> None:
    async with world(way) as app, app.client() as socket:
        hello = await recv_json(socket)
        assert (hello["type"], hello["server"]["name"]) == ("connected", "socket")
        assert hello["client_id"]
        answer = await ask(socket, {"type": "mcp_call", "tool": "add", "arguments": {"a": 1, "b": 2}})
        assert (answer["type"], answer["tool"]) == ("mcp_result", "add")
        assert answer["result"]["content"][0]["text"] == "3"
        assert "id" not in answer


@for_each("id", [1, -1, 1.5, "a", "\x00", 10**30])
async def test_replies_have_the_id_of_the_message(id: Any) -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        assert (await ask(socket, {"type": "ping", "id": id})) == {"type": "pong", "id": id}
        answer = await ask(socket, {"type": "mcp_call", "tool": "add", "arguments": {"a": 1, "b": 2}, "id": id})
        assert answer["id"] == id


BAD = [
    ("{", -32700),
    ("", -32700),
    ('{"type":"ping"} x', -32700),
    ("7", -32600),
    ("null", -32600),
    ("{}", -32601),
    ('{"type":7}', -32600),
    ('{"type":"dance","id":1}', -32601),
    ('{"type":"mcp_call","id":1}', -32602),
    ('{"type":"mcp_call","tool":7,"id":1}', -32602),
    ('{"type":"mcp_call","tool":"none","id":1}', -32602),
    ('{"type":"subscribe","channel":"a b","id":1}', -32602),
    ('{"type":"subscribe","channel":"a\\u0000","id":1}', -32602),
    ('{"type":"subscribe","channel":"","id":1}', -32602),
    ('{"type":"subscribe","channel":"a,,b","id":1}', -32602),
    ('{"type":"subscribe","channel":"$client.x","id":1}', -32003),
    ('{"type":"subscribe","name":"a\\nb","id":1}', -32602),
    ('{"type":"unsubscribe","channel":"nowhere","id":1}', -32602),
    ('{"type":"publish","id":1}', -32602),
    ('{"type":"publish","data":1,"channel":"*","id":1}', -32602),
    ('{"type":"publish","data":1,"channel":"$client.x","id":1}', -32003),
    ('{"type":"publish","data":1,"event":"a\\r\\nb","id":1}', -32602),
    ('{"type":"publish","data":1,"event":"gap","id":1}', -32602),
    ('{"type":"publish","data":1,"event_id":"a\\nb","id":1}', -32602),
    ('{"type":"publish","data":1,"chanel":"ops","id":1}', -32602),
    ('{"type":"ping","id":' + "[" * 100 + "]" * 100 + "}", -32700),
    ("[" * 100_000, -32700),
]


@for_each(("text", "code"), BAD, ids=range(len(BAD)))
async def test_invalid_message_is_an_error_and_keeps_the_socket(text: str, code: int) -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        answer = await ask(socket, text)
        assert answer["type"] == "error"
        assert answer["error"]["code"] == code, answer
        assert answer["error"]["message"]
        assert answer.get("id") == (1 if '"id":1' in text else None)
        assert (await ask(socket, {"type": "ping"}))["type"] == "pong"


async def test_misspelled_channel_members_are_rejected() -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        answer = await ask(socket, {"type": "publish", "data": 1, "chanel": "ops", "id": 1})
        assert "`chanel`" in answer["error"]["message"]
        right = {"type": "publish", "data": 1, "channel": "a", "event": "e", "event_id": "x", "id": 1}
        assert (await ask(socket, right))["type"] == "published"


async def test_invalid_arguments_are_reported_in_the_result() -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        for arguments in ([], {"a": 1}, {"a": 1, "b": "x"}):
            answer = await ask(socket, {"type": "mcp_call", "tool": "add", "arguments": arguments, "id": 1})
            assert (answer["type"], answer["id"], answer["result"]["isError"]) == ("mcp_result", 1, True)


async def test_failing_tools_return_only_an_incident() -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        answer = await ask(socket, {"type": "mcp_call", "tool": "fails"})
        assert answer["result"]["isError"]
        assert "incident" in answer["result"]["content"][0]["text"]
        assert "secret" not in json.dumps(answer)


async def test_tools_that_ask_questions_are_rejected_in_the_dialect() -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        answer = await ask(socket, {"type": "mcp_call", "tool": "name", "id": 1})
        assert answer["id"] == 1
        assert answer.get("error") or answer["result"]["isError"]


async def test_json_rpc_works_beside_the_dialect() -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        assert (await ask(socket, per_request("tools/list", id="x")))["id"] == "x"
        assert (await ask(socket, [1]))[0]["error"]["code"] == -32600
        assert (await ask(socket, {"type": "ping"}))["type"] == "pong"


@for_each("way", TRANSPORTS)
async def test_published_events_reach_other_sockets(way: str) -> None:
    async with world(way) as app, app.client() as one, app.client() as other:
        await recv_json(one), await recv_json(other)
        await send_json(other, {"type": "subscribe", "channel": "news.*", "id": 1})
        assert (await recv_json(other))["type"] == "position"
        assert await recv_json(other) == {"type": "subscribed", "id": 1, "channel": "news.*"}
        sent = await ask(one, {"type": "publish", "channel": "news.a", "data": {"n": 1}, "event": "tick", "id": "p"})
        assert (sent["type"], sent["id"], sent["subscribers"]) == ("published", "p", 1)
        event = await recv_json(other)
        assert event == {
            "type": "event", "channel": "news.a", "event": "tick", "id": sent["event_id"], "data": '{"n":1}',
        }  # fmt: skip


async def test_one_subscription_can_have_several_channels_and_a_client_id() -> None:
    async with world() as app, app.client() as one, app.client() as other:
        await recv_json(one), await recv_json(other)
        await send_json(other, {"type": "subscribe", "channel": "a,b.*", "name": "Ada", "client_id": "ada"})
        assert [(await recv_json(other))["type"] for _ in range(2)] == ["position", "subscribed"]
        members = await ask(one, {"type": "members", "channel": "a"})
        assert [(each["client_id"], each["name"]) for each in members["members"]] == [("ada", "Ada")]
        for channel in ("b.c", "a"):
            await ask(one, {"type": "publish", "channel": channel, "data": channel})
            assert (await recv_json(other))["data"] == channel
        assert (await ask(other, {"type": "unsubscribe", "channel": "a,b.*"}))["type"] == "unsubscribed"


async def test_unsubscribing_stops_events_and_keeps_the_socket_open() -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        await send_json(socket, {"type": "subscribe"})
        assert [(await recv_json(socket))["type"] for _ in range(2)] == ["position", "subscribed"]
        assert (await ask(socket, {"type": "subscribe"}))["error"]["code"] == -32600
        assert (await ask(socket, {"type": "unsubscribe"}))["type"] == "unsubscribed"
        assert (await app.hub.publish("broadcast", "x")).subscribers == 0
        assert (await ask(socket, {"type": "ping"}))["type"] == "pong"


async def test_reconnect_with_last_id_misses_nothing() -> None:
    async with world() as app:
        async with app.client() as socket:
            await recv_json(socket)
            await send_json(socket, {"type": "subscribe"})
            place = await recv_json(socket)
        for n in range(250):
            await app.hub.publish("broadcast", f"line {n}\nof two")
        async with app.client() as socket:
            await recv_json(socket)
            await send_json(socket, {"type": "subscribe", "last_event_id": place["id"]})
            assert [(await recv_json(socket))["data"] for _ in range(250)] == [f"line {n}\nof two" for n in range(250)]
            assert [(await recv_json(socket))["type"] for _ in range(2)] == ["position", "subscribed"]


@for_each("way", TRANSPORTS)
async def test_overlapping_subscriptions_deliver_each_event_once(way: str) -> None:
    async with world(way) as app, app.client() as socket:
        await recv_json(socket)
        for channel in ("broadcast", ">"):
            await send_json(socket, {"type": "subscribe", "channel": channel})
            assert [(await recv_json(socket))["type"] for _ in range(2)] == ["position", "subscribed"]
        assert (await app.hub.publish("broadcast", "1")).subscribers == 1
        await app.hub.publish("other", "2")
        assert (await ask(socket, {"type": "unsubscribe", "channel": ">"}))["data"] == "1"
        assert [(await recv_json(socket)).get("data") for _ in range(2)] == ["2", None]
        await app.hub.publish("other", "3")
        await app.hub.publish("broadcast", "4")
        assert (await recv_json(socket))["data"] == "4"


async def test_gap_precedes_the_remaining_events() -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        await app.hub.publish("broadcast", "left")
        gap = await ask(socket, {"type": "subscribe", "last_event_id": "never.1"})
        assert gap == {"type": "gap", "reason": "unknown"}
        assert (await recv_json(socket))["data"] == "left"


async def test_named_subscribers_are_present_until_their_socket_closes() -> None:
    async with world() as app:
        async with app.client() as socket:
            hello = await recv_json(socket)
            await send_json(socket, {"type": "subscribe", "name": "Ada"})
            await app.until(lambda: app.hub.stats().published > 0)
            (member,) = await app.hub.presence("broadcast")
            assert (member.client_id, member.name) == (hello["client_id"], "Ada")
        await app.until(lambda: app.hub.stats().published > 1)
        assert await app.hub.presence("broadcast") == []


async def test_hub_limits_are_dialect_errors() -> None:
    limits = HubLimits(max_channels_per_subscriber=2, max_connections=3)
    async with world(limits=limits) as app, app.client() as one, app.client() as other:
        await recv_json(one), await recv_json(other)
        answers = []
        for socket, channel in [(one, "a"), (one, "b"), (one, "c"), (other, "a"), (other, "b")]:
            answer = await ask(socket, {"type": "subscribe", "channel": channel})
            answers.append(answer["error"]["code"] if answer["type"] == "error" else (await recv_json(socket))["type"])
        assert answers == ["subscribed", "subscribed", -32000, "subscribed", -32000]


async def test_sockets_subscribe_to_as_many_channels_as_the_setting_allows() -> None:
    for settings, most in ((Settings(), 100), (Settings(hub_channels_per_subscriber=17), 17)):
        async with world(limits=HubLimits.of(settings)) as app, app.client() as socket:
            await recv_json(socket)

            async def change(kind: str, channel: str) -> Any:
                answer = await ask(socket, {"type": kind, "channel": channel})
                while answer["type"] == "position":
                    answer = await recv_json(socket)
                return answer

            for number in range(most):
                assert (await change("subscribe", f"c{number}"))["type"] == "subscribed"
            assert (await change("subscribe", "more"))["error"]["message"] == (
                f"Too many subscribers (channels on one socket: {most}). Unsubscribe from one first."
            )
            assert (await change("unsubscribe", "c0"))["type"] == "unsubscribed"
            assert "channels on one socket" in (await change("subscribe", "more,others"))["error"]["message"]
            assert (await change("subscribe", "more"))["type"] == "subscribed"


TOO_BIG_A_NUMBER = "1e400"
"""Whoever decodes it says that it's out of range."""


@for_each("data", ["é" * 120_000, ["é" * 60_000] * 2, {"a b": ['"\\'] * 30_000}])
async def test_event_size_is_measured_without_the_envelope(data: Any) -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        message = json.dumps({"type": "publish", "data": data}, indent=4)
        assert len(message) > 262_144
        assert (await ask(socket, message))["type"] == "published"


async def test_unused_members_are_not_decoded() -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        for member in ("channel", "tool"):
            answer = await ask(socket, f'{{"type":"nonsense","{member}":[{TOO_BIG_A_NUMBER}]}}')
            assert answer["error"]["code"] == -32601
            answer = await ask(socket, f'{{"type":"ping","{member}":[{TOO_BIG_A_NUMBER}]}}')
            assert answer["type"] == "pong"


async def test_forbidden_channels_are_dialect_errors() -> None:
    def authorize(principal: Principal | None, action: str, channel: str) -> bool:
        return channel != f"no-{action}"

    async with world(authorize=authorize) as app, app.client() as socket:
        await recv_json(socket)
        for message in ({"type": "subscribe", "channel": "no-subscribe"},
                        {"type": "publish", "channel": "no-publish", "data": 1}):  # fmt: skip
            assert (await ask(socket, message))["error"]["code"] == -32003


async def test_oversized_events_are_rejected_before_parsing() -> None:
    async with world(limits=HubLimits(max_event=1000)) as app, app.client() as socket:
        await recv_json(socket)
        data = f"[{'1,' * 2000}1e999]"
        answer = await ask(socket, f'{{"type":"publish","data":{data},"id":1}}')
        assert answer["error"]["message"] == f"An event must have at most 1000 bytes, not {len(data)} bytes of JSON."
        answer = await ask(socket, '{"type":"publish","data":[1e999],"id":1}')
        assert "out of range" in answer["error"]["message"]


@for_each(
    "message",
    [
        {"type": "mcp_call", "tool": "x" * 20_000},
        {"type": "publish", "data": 1, "x" * 20_000: 1},
        {"type": "x" * 20_000},
        {"type": "subscribe", "name": "\ufffd" * 20_000},
    ],
)
async def test_errors_quote_only_the_beginning_of_the_input(message: dict[str, Any]) -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        answer = await ask(socket, message)
        assert answer["type"] == "error"
        assert len(json.dumps(answer)) < 1000


async def test_missing_hub_is_explained_in_the_dialect() -> None:
    async with world() as app:
        app.route._hub = None
        async with app.client() as socket:
            await recv_json(socket)
            for message in ({"type": "subscribe"}, {"type": "publish", "data": 1}):
                error = (await ask(socket, message))["error"]
                assert (error["code"], "hub" in error["message"]) == (-32601, True)
            assert (await ask(socket, {"type": "unsubscribe"}))["error"]["code"] == -32602


async def test_publishing_is_forbidden_if_it_is_turned_off() -> None:
    async with world() as app:
        app.route.may_publish = lambda principal, address, headers: False
        async with app.client() as socket:
            await recv_json(socket)
            assert (await ask(socket, {"type": "publish", "data": 1}))["error"]["code"] == -32003
            assert app.hub.stats().published == 0


async def test_excess_calls_are_dialect_errors() -> None:
    async with world(max_calls=1) as app, app.client() as socket:
        await recv_json(socket)
        await send_json(socket, {"type": "mcp_call", "tool": "forever"})
        await app.until(lambda: len(app.runtime.dispatcher.calls) == 1)
        answer = await ask(socket, {"type": "mcp_call", "tool": "add", "arguments": {"a": 1, "b": 2}, "id": 5})
        assert (answer["id"], answer["error"]["code"]) == (5, -32000)


async def test_calls_over_the_time_limit_are_ended() -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        await send_json(socket, {"type": "mcp_call", "tool": "forever", "id": 5})
        await app.until(lambda: len(app.runtime.dispatcher.calls) == 1)
        (call,) = app.runtime.dispatcher.calls
        call.expire()
        answer = await recv_json(socket)
        assert (answer["id"], answer["result"]["isError"]) == (5, True)


async def test_plain_get_explains_the_websocket_path() -> None:
    """RFC 9110 §15.5.22."""
    async with world() as app:
        response = await app.route.plain(None)  # type: ignore[arg-type]
        assert (response.status, b"upgrade: websocket" in response.head) == (426, True)


async def test_subscriptions_can_start_with_recent_events() -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        for number in range(3):
            await ask(socket, {"type": "publish", "channel": "past", "data": number, "id": number})
        await send_json(socket, {"type": "subscribe", "channel": "past", "history": 2, "id": 9})
        assert [(await recv_json(socket)).get("data") for _ in range(2)] == ["1", "2"]
        while (answer := await recv_json(socket))["type"] != "subscribed":
            assert answer["type"] == "position"
        wrong = await ask(socket, {"type": "subscribe", "channel": "other", "history": "all", "id": 10})
        assert wrong["error"]["code"] == -32602
