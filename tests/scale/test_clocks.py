import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fleet import STREAM, EventStream
from redis_parts import redis_server, until
from skewed_workers import PinnedWorker, SkewedWorkers, find_workers
from wire import LATEST_HANDSHAKE, per_request, request, routing

pytestmark = [pytest.mark.server, pytest.mark.nightly]
KINDS = ["memory", "sqlite", "redis"]
OPENING = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
PERSON = {"action": "accept", "content": {"name": "Ada"}}


@pytest.fixture(scope="module", params=KINDS)
def shared(request: pytest.FixtureRequest) -> Iterator[SkewedWorkers]:
    """Four workers on each store."""
    if request.param == "redis":
        redis_server()
    with tempfile.TemporaryDirectory(prefix="millstream-clocks-") as folder, ExitStack() as stack:
        servers = SkewedWorkers(request.param, Path(folder))
        stack.callback(servers.close)
        yield servers


@pytest.fixture
async def four(shared: SkewedWorkers) -> AsyncIterator[list[PinnedWorker]]:
    """Those four, each with a way to it: the first and the third are ahead, the others behind."""
    port = shared.port()
    shared.shift_clocks(0)
    yield (workers := await find_workers(port, skewed=shared.skewed))
    for worker in workers:
        worker.http.pinned.drop_connections()


async def until_status(worker: PinnedWorker, message: object, headers: dict[str, str], wanted: int) -> None:
    """Wait until a POST gets a status: what another worker did is on its way."""

    async def is_there() -> bool:
        return await status(worker, message, headers) == wanted

    await until(is_there)


async def status(worker: PinnedWorker, message: object, headers: dict[str, str]) -> int:
    """Of a POST."""
    reply = await worker.post(message, headers)
    await reply.body()
    return reply.status


async def talk(worker: PinnedWorker, headers: dict[str, str], gate: str) -> EventStream:
    """A call whose first word has come."""
    message = request("tools/call", {"name": "talks", "arguments": {"gate": gate}}, 5)
    stream = EventStream(await worker.post(message, headers))
    await stream.until(1)
    return stream


async def question(worker: PinnedWorker, headers: dict[str, str], id: int = 7) -> tuple[EventStream, Any]:
    """A call that asks, and the id of its question."""
    stream = EventStream(await worker.post(request("tools/call", {"name": "ask", "arguments": {}}, id), headers))
    (asked,) = await stream.until(1)
    return stream, asked["id"]


async def answered(stream: EventStream, id: Any, worker: PinnedWorker, headers: dict[str, str]) -> bool:
    """Whether an answer to one worker finds the question of another."""
    assert await status(worker, {"jsonrpc": "2.0", "id": id, "result": PERSON}, headers) == 202
    return (await stream.end())[-1]["result"]["content"][0]["text"] == "Ada"


async def mailbox(worker: PinnedWorker, path: str, last: str = "") -> EventStream:
    """A subscriber to the hub."""
    more = {"last-event-id": last} if last else {}
    return EventStream(await worker.http.fetch("GET", path, {**STREAM, **more}))


def data(stream: EventStream) -> list[str]:
    """What a subscriber has heard."""
    return [event.data for event in stream.events if event.data and event.name == "message"]


async def until_seen(worker: PinnedWorker, seconds: int, headers: dict[str, str]) -> None:
    """Wait until a worker knows what its store's clock says."""

    async def is_seen() -> bool:
        return abs(float(await worker.call("store_time", headers)) - time.time() - seconds) < 30

    await until(is_seen)


async def test_records_and_tombstones_are_shared(four: list[PinnedWorker]) -> None:
    headers = await four[0].initialize()
    older = await four[1].get(headers)
    stream = await four[2].get(headers)
    await until(lambda: older.ended)
    await asyncio.gather(
        *(each.ask("resources/subscribe", {"uri": f"shelf://{n}"}, headers, n) for n, each in enumerate(four))
    )
    for number in range(4):
        await four[(number + 1) % 4].call("update", headers, uri=f"shelf://{number}")
    assert {each["params"]["uri"] for each in await stream.until(4)} == {f"shelf://{number}" for number in range(4)}
    for number in range(8):
        assert await four[number % 4].call("count", headers) == str(number + 1)
    assert await four[3].delete(headers) == 204
    await stream.end()
    for worker in four:
        await until_status(worker, request("ping"), headers, 404)


async def test_answers_and_cancellations_reach_their_calls(four: list[PinnedWorker], shared: SkewedWorkers) -> None:
    headers = await four[0].initialize({"elicitation": {}})
    for number in range(4):
        stream, id = await question(four[number], headers)
        assert await answered(stream, id, four[(number + 1) % 4], headers)
        line = await talk(four[number], headers, str(shared.folder / "never"))
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}}
        assert await status(four[(number + 1) % 4], note, headers) == 202
        await line.end()


async def test_sealed_state_opens_on_another_worker(four: list[PinnedWorker]) -> None:
    for first, second in ((0, 1), (1, 0)):
        asked = per_request("tools/call", {"name": "ask", "arguments": {}}, elicitation={})
        found = json.loads(await (await four[first].post(asked, routing("tools/call", "ask"))).body())["result"]
        answers = dict.fromkeys(found["inputRequests"], PERSON)
        again = {"name": "ask", "arguments": {}, "inputResponses": answers, "requestState": found["requestState"]}
        message = per_request("tools/call", again, elicitation={})
        reply = json.loads(await (await four[second].post(message, routing("tools/call", "ask"))).body())
        assert reply["result"]["content"][0]["text"] == "Ada"


async def test_calls_continue_on_another_worker(
    four: list[PinnedWorker], shared: SkewedWorkers, tmp_path: Path
) -> None:
    headers = await four[0].initialize()
    line = await talk(four[0], headers, str(tmp_path / "gate"))
    older = await four[1].get(headers, line.last_id)
    await until(lambda: line.ended)
    (tmp_path / "gate0").touch()
    await older.until(1)
    newer = await four[3].get(headers, older.last_id)
    await until(lambda: older.ended)
    (tmp_path / "gate1").touch()
    (tmp_path / "gate2").touch()
    messages = line.messages + older.messages + await newer.end()
    assert [each["params"]["data"] for each in messages[:-1]] == ["word 0", "word 1", "word 2"]
    assert messages[-1]["result"]["content"][0]["text"] == "said"


async def test_http_sse_messages_reach_their_stream_despite_clock_skew(four: list[PinnedWorker]) -> None:
    stream = await mailbox(four[0], "/sse")
    await until(lambda: stream.events)
    path = stream.events.pop(0).data
    messages = [request("initialize", OPENING, 0), *(request("ping", {}, number) for number in range(1, 4))]
    for number, message in enumerate(messages):
        assert await status_at(four[number], path, message) == 202
        await stream.until(number + 1)
    assert [each["id"] for each in stream.messages] == [0, 1, 2, 3]
    stream.close()


async def status_at(worker: PinnedWorker, path: str, message: object) -> int:
    """Of a message of HTTP+SSE."""
    reply = await worker.http.fetch("POST", path, {"content-type": "application/json"}, json.dumps(message).encode())
    await reply.body()
    return int(reply.status)


async def test_switched_items_are_shared_between_workers(four: list[PinnedWorker]) -> None:
    headers = await four[0].initialize()
    for on in (False, True):
        await four[1].call("switch", headers, on=on)
        for worker in four:
            await until(lambda worker=worker, on=on: is_switched(worker, headers, on=on))


async def is_switched(worker: PinnedWorker, headers: dict[str, str], *, on: bool) -> bool:
    """Whether a worker offers the tool, or doesn't."""
    found = await worker.ask("tools/list", {}, headers)
    return on == ("limited" in {each["name"] for each in found["result"]["tools"]})


async def test_channels_presence_and_mailboxes_are_shared(four: list[PinnedWorker]) -> None:
    headers = await four[0].initialize()
    path = "/events?channel=news&client_id=client"
    listeners = [await mailbox(each, f"{path}{number}") for number, each in enumerate(four)]
    await until(lambda: all(each.events for each in listeners))
    for number in range(8):
        await four[number % 4].call("publish", headers, text=str(number))
    await until(lambda: [data(each) for each in listeners] == [[str(number) for number in range(8)]] * 4)
    assert len({tuple(event.id for event in each.events if event.data) for each in listeners}) == 1
    for worker in four:
        assert set((await worker.call("present", headers)).split()) == {f"client{number}" for number in range(4)}
    await four[1].call("send", headers, text="for ada")
    ada = await mailbox(four[0], "/mcp/sse/ada")
    await until(lambda: data(ada) == ["for ada"])
    for stream in (*listeners, ada):
        stream.close()


async def test_calls_questions_and_streams_on_dead_workers_end(four: list[PinnedWorker], shared: SkewedWorkers) -> None:
    headers = await four[1].initialize({"elicitation": {}})
    line = await talk(four[0], headers, str(shared.folder / "never"))
    followed = await four[2].get(headers, line.last_id)
    asking, id = await question(four[0], headers)
    stream = await mailbox(four[0], "/sse")
    await until(lambda: stream.events)
    four[0].kill()
    (error,) = await followed.end()
    assert error["id"] == 5
    assert "Try again" in error["error"]["message"]
    await until_status(four[3], {"jsonrpc": "2.0", "id": id, "result": PERSON}, headers, 400)

    async def is_gone() -> bool:
        return await status_at(four[1], stream.events[0].data, request("ping")) == 404

    await until(is_gone)
    asking.close()


async def test_clock_changes_do_not_affect_sessions_or_calls(
    four: list[PinnedWorker], shared: SkewedWorkers, tmp_path: Path
) -> None:
    headers = await four[0].initialize({"elicitation": {}})
    line = await talk(four[0], headers, str(tmp_path / "gate"))
    listener = await mailbox(four[1], "/events?channel=news&client_id=ann")
    await until(lambda: listener.events)
    taken = [await four[number % 4].ask("tools/call", {"name": "limited"}, headers) for number in range(6)]
    assert [each["status"] for each in taken].count(200) <= 4
    lives = {worker.pid for worker in four}
    said: list[str] = []
    counted = 0
    for seconds in (-90, 90, 0):
        opened = [await question(each, headers, 100 + number) for number, each in enumerate(four[:2])]
        shared.shift_clocks(seconds)
        for number, (stream, id) in enumerate(opened):
            for worker in four:
                said.append(f"{seconds} {number} {worker.pid}")
                counted += 1
                await worker.call("publish", headers, text=said[-1])
                assert "ann" in (await worker.call("present", headers)).split()
                assert await worker.call("count", headers) == str(counted)
                assert (await worker.ask("tools/call", {"name": "limited"}, headers))["status"] == 429
            assert await answered(stream, id, four[2 + number], headers)
            await until(lambda: data(listener) == said)
            for worker in four:
                await until_seen(worker, seconds, headers)
    again = await four[2].get(headers, line.last_id)
    await until(lambda: line.ended)
    for number in range(3):
        (tmp_path / f"gate{number}").touch()
    words = [each["params"]["data"] for each in line.messages + (await again.end())[:-1]]
    assert words == ["word 0", "word 1", "word 2"]
    late = await mailbox(four[3], "/events?channel=news", listener.last_id)
    await four[2].call("publish", headers, text="end")
    await until(lambda: data(late) == ["end"])
    assert {each.pid for each in await find_workers(shared.port(), skewed=shared.skewed)} == lives
