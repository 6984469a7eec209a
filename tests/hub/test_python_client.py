"""`millstream.hub.connect` against real servers. tests/hub/test_hub_client.py has what it shares with `/hub.js`."""

import asyncio
import gc
import json
import ssl
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from command_line import run_in_process
from examples import follow_room
from faulty_proxy import faulty_proxy
from millstream import hub
from millstream.client import ClientError, InvalidResponse, TargetError, UnsendableRequest
from patience import WAIT, advance_clock
from processes import SharedServer, free_port, run_command, run_server, share_server

pytestmark = pytest.mark.server

PROGRAM = "examples/hub.py"
Connect = Callable[..., hub.HubClient]
STREAM = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    with share_server(lambda port: run_command(PROGRAM, port), tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def url(shared_hub: SharedServer) -> str:
    return f"http://127.0.0.1:{shared_hub.port()}"


@pytest.fixture(params=["sse", "websocket"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """`hub.connect` with each transport."""
    return partial(hub.connect, transport=request.param)


@asynccontextmanager
async def peer(*replies: str, keep: bool = False) -> AsyncIterator[tuple[str, list[str]]]:
    """Run a server that sends these replies, the last one repeatedly, and yield its URL and the requests' heads."""
    requests: list[str] = []
    done = asyncio.Event()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(replies[min(len(requests), len(replies)) - 1].encode())
        if keep:
            await done.wait()
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests
    finally:
        done.set()
        server.close()


async def texts(subscription: hub.HubSubscription, count: int) -> list[str]:
    """Return the data of the next events, or ``gap`` and its reason."""
    found: list[str] = []
    async with asyncio.timeout(WAIT):
        while len(found) < count:
            event = await anext(subscription)
            found.append(f"gap {event.reason}" if isinstance(event, hub.EventGap) else event.data)
    return found


async def test_readers_that_join_during_300_publishes_get_every_event_once_and_in_order(
    url: str, connect: Connect
) -> None:
    numbers = [str(number) for number in range(300)]

    async def join(feed: hub.HubClient) -> list[str]:
        return await texts(feed.subscribe("join.*", history=1000), len(numbers))

    async with connect(url) as feed, asyncio.TaskGroup() as tasks:
        readers: list[asyncio.Task[list[str]]] = []
        for number in numbers:
            await feed.publish("join.now", number)
            if int(number) % 15 == 0:
                readers.append(tasks.create_task(join(feed)))
    assert [task.result() for task in readers] == [numbers] * 20


async def test_subscriptions_and_publishers_survive_restarts(tmp_path: Path, connect: Connect) -> None:
    port = free_port()
    command = run_command(PROGRAM, port, "--store", f"sqlite:///{tmp_path}/store.db")
    with ExitStack() as running:
        server = running.enter_context(ExitStack())
        process = server.enter_context(run_server(command, port, tmp_path / "log"))
        async with connect(f"http://127.0.0.1:{port}") as feed, feed.subscribe("news", "orders.>") as events:
            await feed.publish("news", "before")
            assert await texts(events, 1) == ["before"]
            for number in (1, 2):
                process.kill()
                await asyncio.to_thread(server.close)
                publishing = asyncio.create_task(feed.publish("orders.eu.paid", f"{number}", id=f"own-{number}"))
                waiting = asyncio.create_task(texts(events, 1))
                process = server.enter_context(run_server(command, port, tmp_path / f"log{number}"))
                feed.retry_now()
                assert (await publishing).id == f"own-{number}"
                assert await waiting == [f"{number}"]
            assert events.position.rpartition(".")[2].isdigit()
            later = feed.subscribe("news", "orders.>", last_event_id=events.position)
            await feed.publish("news", "after")
            assert await texts(later, 1) == await texts(events, 1) == ["after"]


async def test_repeated_ids_are_delivered_once_if_responses_are_lost(url: str, connect: Connect) -> None:
    budgets = iter([0, 10])
    with faulty_proxy(int(url.rpartition(":")[2]), lambda: next(budgets, None)) as proxy:
        async with connect(url) as direct, connect(f"http://127.0.0.1:{proxy.port}") as feed:
            async with direct.subscribe("lost") as events:
                await feed.publish("lost", "once")
                await direct.publish("lost", "end")
                assert await texts(events, 2) == ["once", "end"]
            assert proxy.connections >= 3


async def test_revoked_keys_end_subscriptions_with_an_error(tmp_path: Path, connect: Connect) -> None:
    def keys(*arguments: str) -> str:
        return run_in_process("keys", *arguments, "--file", str(tmp_path / "keys.json")).stdout.strip()

    key, spare = keys("add", "ada"), keys("add", "bob", "--scope", "millstream:publish")
    program = tmp_path / "server.py"
    program.write_text(
        "from millstream import Server, auth\n"
        f"mcp = Server('keyed', serve='hub', auth=auth.keys(file='{tmp_path}/keys.json'))\n",
        "utf-8",
    )
    port = free_port()
    with run_server(run_command(str(program), port), port, tmp_path / "log"):
        async with (
            connect(f"http://127.0.0.1:{port}", token=key) as feed,
            connect(f"http://127.0.0.1:{port}", token=lambda: next(tokens)) as renewing,
            feed.subscribe("news") as events,
        ):
            tokens = iter([key, key, spare, spare, spare])
            async with renewing.subscribe("news") as renewed:
                keys("revoke", "ada")
                with pytest.raises(hub.HubRefused, match="The key is invalid or has been removed") as caught:
                    await texts(events, 1)
                assert caught.value.status == 403
                with pytest.raises(hub.HubRefused):
                    await feed.publish("news", "no")
                waiting = asyncio.create_task(texts(renewed, 1))
                async with connect(f"http://127.0.0.1:{port}", token=spare) as other:
                    await other.publish("news", "still here")
                assert await waiting == ["still here"]


async def test_slow_readers_get_a_gap_and_then_what_remains(tmp_path: Path, connect: Connect) -> None:
    port, blob = free_port(), "x" * 100_000
    environment = {"MILLSTREAM_HUB_REPLAY_EVENTS": "20", "MILLSTREAM_HUB_HISTORY": "20"}
    with run_server(run_command(PROGRAM, port), port, tmp_path / "log", **environment):
        async with connect(f"http://127.0.0.1:{port}") as feed, feed.subscribe("flood") as events:
            for number in range(200):
                await feed.publish("flood", f"{number} {blob}")
            await feed.publish("flood", "end")
            found = [""]
            while found[-1] != "end":
                found += [text.split()[0] if text.endswith("x") else text for text in await texts(events, 1)]
            numbers = [int(text) for text in found if text.isdigit()]
            assert numbers == sorted(set(numbers))
            assert "gap trimmed" in found
            assert numbers[-1] == 199


async def test_canceled_reads_lose_nothing(url: str, connect: Connect) -> None:
    found: list[str] = []
    numbers = [str(number) for number in range(200)]
    async with connect(url) as feed, feed.subscribe("canceled") as events:

        async def publish() -> None:
            for number in numbers:
                await feed.publish("canceled", number)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish())
            while len(found) < len(numbers):
                reading = tasks.create_task(texts(events, 1))
                for _ in range(len(found) % 4):
                    await asyncio.sleep(0)
                if reading.cancel() and not reading.done():
                    await asyncio.wait([reading])
                if not reading.cancelled():
                    found += reading.result()
                else:
                    found += await texts(events, 1)
    assert found == numbers


async def test_closing_ends_waiting_readers(url: str, connect: Connect) -> None:
    async with connect(url) as feed:
        events, other = feed.subscribe("quiet"), feed.subscribe("quiet")
        async with events, other:
            tasks = [asyncio.create_task(anext(each, None)) for each in (events, other)]
            await asyncio.sleep(0)
            events.close()
            assert await tasks[0] is None
        assert await tasks[1] is None
    async with connect("http://127.0.0.1:9") as offline:
        waiting = asyncio.create_task(anext(offline.subscribe("x"), None))
        for _ in range(3):
            await asyncio.sleep(0)
    assert await waiting is None
    with pytest.raises(ClientError, match="isn't connected"):
        await feed.publish("quiet", "late")


async def test_leaving_a_loop_unsubscribes(url: str, connect: Connect) -> None:
    async with connect(url) as feed, feed.subscribe("$presence.den") as changes:
        await feed.publish("den", "Hello")
        found: list[hub.HubEvent | hub.EventGap] = []
        async for _ in feed.subscribe("den", history=1, name="Ada"):
            found.append(await asyncio.wait_for(anext(changes), WAIT))  # who leaves earlier isn't announced
            break
        found.append(await asyncio.wait_for(anext(changes), WAIT))
        assert [each.event for each in found if isinstance(each, hub.HubEvent)] == ["join", "leave"]


async def test_members_follow_the_name_of_a_subscription(url: str, connect: Connect) -> None:
    async with connect(url) as feed, connect(url) as other:
        async with feed.subscribe("room", name="Ada"):
            found = await other.members("room")
            assert [(each.client_id, each.name) for each in found.members] == [(feed.client_id, "Ada")]
            changes = other.subscribe("$presence.room", last_event_id=found.event)
        event = await asyncio.wait_for(anext(changes), WAIT)
        assert isinstance(event, hub.HubEvent)
        assert (event.event, json.loads(event.data)["name"]) == ("leave", "Ada")


async def test_silent_connections_are_replaced(url: str, connect: Connect) -> None:
    with faulty_proxy(int(url.rpartition(":")[2])) as proxy:
        async with connect(f"http://127.0.0.1:{proxy.port}") as feed, feed.subscribe("silent") as events:
            proxy.silence()
            waiting = asyncio.ensure_future(anext(events))
            async with hub.connect(url) as other:
                await other.publish("silent", "missed")
            for _ in range(4):  # a WebSocket sends a ping after 20 seconds, and waits as long for the pong
                advance_clock(14)
                for _ in range(20):
                    await asyncio.sleep(0)
            event = await asyncio.wait_for(waiting, WAIT)
            assert isinstance(event, hub.HubEvent)
            assert event.data == "missed"
            assert proxy.connections == 2


async def test_servers_that_refuse_for_a_while_are_asked_again_after_that_time() -> None:
    refusal = 'retry: 7000\n\nevent: unavailable\ndata: {"status":503,"detail":"Too many\\nsubscribers."}\n\n'
    now = asyncio.get_running_loop().time
    async with (
        peer(STREAM + refusal, STREAM + "id: a.1\n\n", keep=True) as (url, requests),
        hub.connect(url) as feed,
    ):
        opening = asyncio.create_task(feed.subscribe("x").__aenter__())
        start = now()
        while len(requests) < 2:
            advance_clock(0.1 if requests else 0)
            await asyncio.sleep(0)
        assert asyncio.get_running_loop().time() - start > 7
        await opening


async def test_channels_of_a_subscription_share_their_history_and_their_order(url: str, connect: Connect) -> None:
    room = f"shared-{uuid4()}"
    async with connect(url) as feed:
        for number in range(6):
            await feed.publish(f"{room}.{'ab'[number % 2]}", number)
        async with feed.subscribe(f"{room}.a", f"{room}.b", history=4) as events:
            await feed.publish(f"{room}.a", 6)
            assert await texts(events, 2) == ["2", "3"]
            position = events.position
            assert await texts(events, 3) == ["4", "5", "6"]
        assert await texts(feed.subscribe(f"{room}.>", last_event_id=position), 3) == ["4", "5", "6"]


@asynccontextmanager
async def socket_peer(respond: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[str]:
    """Run a server whose WebSockets are handled by a function, and yield its URL."""
    async with serve(respond, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_event_streams_are_used_if_a_proxy_does_not_pass_websockets_on() -> None:
    plain = "HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    event = 'id: a.1\ndata: {"type":"event","channel":"x","data":"one"}\n\n'
    async with (
        peer(plain, STREAM + event, keep=True) as (url, requests),
        hub.connect(url, transport="websocket", token="key-0123") as feed,
    ):
        assert await texts(feed.subscribe("x"), 1) == ["one"]
    assert [each.split()[1].partition("?")[0] for each in requests] == ["/ws", "/events"]
    assert "Authorization: Bearer key-0123" in requests[0]


async def test_events_that_a_server_cannot_read_are_refused(url: str, connect: Connect) -> None:
    data: list[object] = []
    for _ in range(200):
        data = [data]
    async with connect(url) as feed:
        with pytest.raises(hub.HubRefused, match="nested"):
            await feed.publish("deep", data)
        assert (await feed.publish("deep", "flat")).id


async def test_refusals_on_a_socket_do_not_quote_the_token() -> None:
    async def respond(socket: ServerConnection) -> None:
        await socket.send('{"type":"connected"}')
        await socket.recv()
        await socket.send('{"type":"error","error":{"code":-32003,"message":"Not with k-123456789."}}')
        await socket.wait_closed()

    async with (
        socket_peer(respond) as url,
        hub.connect(url, token="k-123456789", transport="websocket") as feed,
    ):
        with pytest.raises(hub.HubRefused, match="Not with") as caught:
            await texts(feed.subscribe("x"), 1)
        assert "k-123456789" not in str(caught.value)


async def test_event_streams_are_used_only_if_a_proxy_never_passes_websockets_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for status, methods in ((503, ["CONNECT", "CONNECT"]), (403, ["CONNECT", "GET"])):
        async with peer(f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n") as (proxy, requests):
            monkeypatch.setenv("HTTP_PROXY", proxy)
            async with hub.connect("http://hub.example", transport="websocket") as feed:
                reading = asyncio.create_task(texts(feed.subscribe("x"), 1))
                while len(requests) < 2:
                    advance_clock(0.1 if requests else 0)
                    await asyncio.sleep(0)
            with pytest.raises(StopAsyncIteration):
                await reading
            assert [each.split()[0] for each in requests[:2]] == methods


async def test_subscriptions_share_the_certificates_that_a_client_trusts(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[ssl.SSLContext] = []
    load = ssl.create_default_context

    def create() -> ssl.SSLContext:
        loaded.append(load())
        return loaded[-1]

    monkeypatch.setattr(ssl, "create_default_context", create)
    async with hub.connect("https://127.0.0.1:9", transport="websocket") as feed:
        reading = [asyncio.create_task(anext(feed.subscribe("x"), None)) for _ in range(3)]
        for _ in range(3):
            await asyncio.sleep(0)
    await asyncio.wait(reading)
    assert len(loaded) == 1


async def test_messages_that_a_hub_does_not_send_end_a_socket_and_not_the_program() -> None:
    messages = [
        b'{"type":"event","channel":"x","id":"a.1","data":"\xff"}',
        b'{"type":"event","channel":"x","id":"a.1","data":"1","\xff":1}',
        b'{"type":"event","channel":"x","id":"a.1","data":%b1%b}' % (b"[" * 100_000, b"]" * 100_000),
        b"[]",
        b'{"type":"event","channel":"x","id":"a.1","data":"one"}',
    ]
    sent = iter(messages)

    async def respond(socket: ServerConnection) -> None:
        await socket.send('{"type":"connected"}')
        await socket.recv()
        await socket.send(next(sent), text=True)
        await socket.wait_closed()

    async with socket_peer(respond) as url, hub.connect(url, transport="websocket") as feed:
        reading = asyncio.create_task(texts(feed.subscribe("x"), 1))
        while not reading.done():
            feed.retry_now()
            await asyncio.sleep(0)
        assert await reading == ["one"]


async def test_servers_cannot_ask_for_retries_without_a_delay(caplog: pytest.LogCaptureFixture) -> None:
    error = '{"type":"error","error":{"code":-32000,"message":"Later.","data":{"retryAfterMs":-1000000}}}'

    async def respond(socket: ServerConnection) -> None:
        await socket.send('{"type":"connected"}')
        await socket.recv()
        await socket.send(error)
        await socket.wait_closed()

    async with socket_peer(respond) as url, hub.connect(url, transport="websocket") as feed:
        reading = asyncio.create_task(anext(feed.subscribe("x"), None))
        while not caplog.records:
            feed.retry_now()
            await asyncio.sleep(0)
    await reading
    assert "retrying in 0." in caplog.records[0].getMessage()


async def test_leaving_a_loop_unsubscribes_after_a_message_in_too_many_fragments() -> None:
    closed, count = asyncio.Event(), 0

    async def respond(socket: ServerConnection) -> None:
        nonlocal count
        count += 1
        await socket.send('{"type":"connected"}')
        await socket.recv()
        if count == 1:
            with suppress(ConnectionClosed):
                await socket.send("x" for _ in range(200_000))
            return
        await socket.send('{"type":"event","channel":"x","id":"a.1","data":"one"}')
        await socket.wait_closed()
        closed.set()

    gc.disable()  # the subscription must not be in a cycle
    try:
        async with socket_peer(respond) as url, hub.connect(url, transport="websocket") as feed:
            async for _ in feed.subscribe("x"):
                break
            await asyncio.wait_for(closed.wait(), WAIT)
    finally:
        gc.enable()


async def test_invalid_handshakes_do_not_quote_the_token(caplog: pytest.LogCaptureFixture) -> None:
    switched = "HTTP/1.1 101 Yes\r\nupgrade: k-123456789\r\nconnection: upgrade\r\n\r\n"
    async with (
        peer(switched) as (url, _),
        hub.connect(url, token="k-123456789", transport="websocket") as feed,
    ):
        reading = asyncio.create_task(anext(feed.subscribe("x"), None))
        while not caplog.records:
            feed.retry_now()
            await asyncio.sleep(0)
    await reading
    assert "invalid Upgrade header" in caplog.text
    assert "k-123456789" not in caplog.text


async def test_slow_programs_read_why_their_socket_was_closed(caplog: pytest.LogCaptureFixture) -> None:
    async def respond(socket: ServerConnection) -> None:
        await socket.send('{"type":"connected"}')
        start = json.loads(await socket.recv())
        await socket.send(json.dumps({"type": "position", "id": start.get("last_event_id", "") + "1"}))
        if start.get("last_event_id"):
            await socket.send('{"type":"event","channel":"x","data":"one","id":"a"}')
            await socket.wait_closed()
        await socket.close(1013, "slow")

    async with socket_peer(respond) as url, hub.connect(url, transport="websocket") as feed:
        assert await texts(feed.subscribe("x"), 1) == ["one"]
    assert [each.getMessage() for each in caplog.records if "too slow" in each.getMessage()]


async def test_replies_that_a_hub_does_not_send_are_errors() -> None:
    for body, kind, text in (
        ("data: nonsense\n\n", InvalidResponse, "a hub doesn't send"),
        ('data: {"type":"other"}\n\n', InvalidResponse, "a hub doesn't send"),
        ("event: gap\ndata: []\n\n", InvalidResponse, "a hub doesn't send"),
        (f"data: {'x' * 5_000_000}\n\n", ClientError, "more than 4,194,304 bytes"),
    ):
        async with peer(STREAM + body, keep=True) as (url, _), hub.connect(url) as feed:
            with pytest.raises(kind, match=text):
                await texts(feed.subscribe("x"), 1)


async def test_servers_without_a_hub_are_an_error(tmp_path: Path, connect: Connect) -> None:
    port = free_port()
    with run_server(run_command("examples/greet.py", port), port, tmp_path / "log"):
        async with connect(f"http://127.0.0.1:{port}") as feed:
            for _ in range(2):
                with pytest.raises(ClientError, match="has no hub"):
                    await texts(feed.subscribe("x"), 1)


async def test_missing_hubs_are_retried_once_there_was_one() -> None:
    missing = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
    event = 'id: a.1\ndata: {"type":"event","channel":"x","data":"one"}\n\n'
    async with peer(STREAM, missing, STREAM + event) as (url, requests), hub.connect(url) as feed:
        reading = asyncio.create_task(texts(feed.subscribe("x"), 1))
        while not reading.done():
            advance_clock(0.1 if requests else 0)
            await asyncio.sleep(0)
        assert (await reading, len(requests)) == (["one"], 3)


async def test_publishers_log_once_that_they_try_again(caplog: pytest.LogCaptureFixture) -> None:
    published = '{"id":"a.1","subscribers":0}'
    done = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(published)}\r\n\r\n{published}"
    failed = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"
    async with peer(failed, failed, done) as (url, requests), hub.connect(url) as feed:
        publishing = asyncio.create_task(feed.publish("x", "y"))
        while not publishing.done():
            advance_clock(0.1 if requests else 0)
            await asyncio.sleep(0)
        assert (await publishing).id == "a.1"
    (message,) = [each.getMessage() for each in caplog.records if each.name == "millstream.hub"]
    assert message.startswith("Retrying for up to 60 s:")
    assert message.endswith("responded with status 502.")


async def test_tokens_are_sent_to_one_server_and_never_quoted() -> None:
    moved = "HTTP/1.1 301 Moved\r\nlocation: http://127.0.0.1:9/events\r\ncontent-length: 0\r\n\r\n"
    quote = '{"detail":"The key k-123456789 is bad."}'
    denied = f"HTTP/1.1 403 No\r\ncontent-type: application/problem+json\r\ncontent-length: {len(quote)}\r\n\r\n{quote}"
    moved_with_it = moved.replace("/events", "/k-123456789")
    for reply, text in (
        (moved, "redirects to http://127.0.0.1:9/events"),
        (moved_with_it, "redirects to http://127.0.0.1:9/"),
        (denied, "The key .* is bad"),
    ):
        async with peer(reply) as (url, requests), hub.connect(f"{url}/base/", token="k-123456789") as feed:
            with pytest.raises(hub.HubRefused, match=text) as caught:
                await texts(feed.subscribe("x"), 1)
            assert "k-123456789" not in str(caught.value)
            assert requests[0].startswith("GET /base/events?channel=x&history=0&envelope=1")
            assert "Authorization: Bearer k-123456789" in requests[0]


async def test_arguments_that_cannot_be_sent_are_refused_before_a_request() -> None:
    for url in ("ws://127.0.0.1:9", "127.0.0.1:9", "https://name:word@example.com"):
        with pytest.raises(TargetError):
            hub.connect(url)
    async with hub.connect("http://127.0.0.1:9", token="a\r\nX-Injected: 1") as feed:
        with pytest.raises(UnsendableRequest):
            await feed.publish("x", "y")
        with pytest.raises(UnsendableRequest):
            await anext(feed.subscribe("x"))
        with pytest.raises(TypeError):
            await feed.publish("x", object())
        with pytest.raises(ValueError, match="separate argument"):
            feed.subscribe("x,y")
    assert "a\r\n" not in repr(feed)
    async with hub.connect("http://127.0.0.1:9", token="a\r\nX-Injected: 1", transport="websocket") as feed:
        with pytest.raises(UnsendableRequest):
            await feed.publish("x", "y")
        with pytest.raises(UnsendableRequest):
            await anext(feed.subscribe("x"))
    with pytest.raises(ValueError, match='must be "sse" or "websocket", not \'ws\''):
        hub.connect("http://127.0.0.1:9", transport="ws")  # type: ignore[arg-type]


async def test_events_carry_their_publisher_name_and_id(url: str, connect: Connect) -> None:
    async with connect(url) as feed, feed.subscribe("whole") as events:
        sent = await feed.publish("whole", {"n": 1}, event="said", id=f"own-{uuid4()}")
        async with httpx2.AsyncClient(timeout=WAIT) as http:
            await http.post(f"{url}/publish", json={"channel": "whole", "data": "plain"})
        first, second = [await asyncio.wait_for(anext(events), WAIT) for _ in range(2)]
        assert isinstance(first, hub.HubEvent)
        assert isinstance(second, hub.HubEvent)
        assert (first.channel, first.data, first.event, first.id) == ("whole", '{"n":1}', "said", sent.id)
        assert (second.data, second.id, second.position) == ("plain", events.position, "")


async def test_example_prints_the_messages_of_a_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, lines = free_port(), asyncio.Queue[str]()
    monkeypatch.setattr("builtins.print", lambda line, **_: lines.put_nowait(line))
    with run_server(run_command("examples/rooms.py", port), port, tmp_path / "log"):
        place = f"http://127.0.0.1:{port}", "lobby"
        await follow_room.say(*place, "Hello")
        following = asyncio.create_task(follow_room.follow(*place))
        assert await asyncio.wait_for(lines.get(), WAIT) == "Python: Hello"
        following.cancel()


def test_blocking_client_is_used_from_several_threads(url: str) -> None:
    with hub.connect_blocking(url, token=lambda: "") as feed:
        with ThreadPoolExecutor(4) as pool, feed.subscribe("threads") as events:
            sent = {each.id for each in pool.map(lambda number: feed.publish("threads", number), range(20))}
            received = [next(events) for _ in range(20)]
        assert {each.id for each in received if isinstance(each, hub.HubEvent)} == sent
        assert feed.members("threads").members == []


def test_blocking_subscription_ends_when_another_thread_closes_it_or_its_client(url: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        with hub.connect_blocking(url) as feed:
            events, others = feed.subscribe("ends"), feed.subscribe("ends.too")
            readers = [pool.submit(list, each) for each in (events, others)]  # type: ignore[call-overload]
            feed.publish("ends", "1", id="own")
            with feed.subscribe("ends", history=1) as again:
                assert next(again).data == "1"  # type: ignore[union-attr]
            events.close()
            readers[0].result(WAIT)
        assert readers[1].result(WAIT) == []
        assert list(others) == []


def test_blocking_client_outside_its_block_says_what_to_write(url: str) -> None:
    feed = hub.connect_blocking(url)
    for use in (lambda: feed.publish("x", "y"), lambda: feed.subscribe("x")):
        with pytest.raises(ClientError, match=r"Use `with hub\.connect_blocking"):
            use()
    feed.retry_now()


def test_interrupted_read_of_a_blocking_subscription_loses_no_event(url: str) -> None:
    program = """
        import os, signal, sys
        from millstream import hub

        calls = []

        def token():
            calls.append(1)
            if len(calls) == 1:  # while the main thread waits for an event
                os.kill(os.getpid(), signal.SIGINT)
            return ""

        signal.signal(signal.SIGINT, signal.default_int_handler)
        with hub.connect_blocking(sys.argv[1], token=token) as feed:
            events = feed.subscribe("interrupted", history=1)
            try:
                next(events)
            except KeyboardInterrupt:
                feed.publish("interrupted", "after")
            print(next(events).data)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), url], capture_output=True, text=True, timeout=WAIT, check=True
    )
    assert done.stdout == "after\n"
