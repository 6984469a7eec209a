import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fleet import EventStream, Worker, fleet, settle, until
from millstream import Context, Server, Settings, auth
from patience import WAIT
from shared_store import SharedStore
from wire import Json, per_request, routing

ABLE = {"elicitation": {"form": {}}}
FORM = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
ALICE, BOB, CAROL = (
    "alice-has-a-key-of-some-length",
    "bob-has-another-of-some-length",
    "carol-has-a-third-of-some-length",
)


class World:
    """An upstream and its record of events."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        """Outcomes of the calls of `asks`."""
        self.answers: list[int] = []
        self.places: list[int] = []
        self.go = asyncio.Event()
        self.server = Server("there")
        self.server.tool(self.asks)
        self.server.tool(self.works)
        self.server.prompt(self.topic)
        self.server.resource("note://place")(self.place)
        self.server.resource("place://{number}")(self.room)

    async def asks(self, ctx: Context, times: int = 1, note: str = "") -> str:
        """Ask for numbers and add them."""
        try:
            for number in range(times):
                self.answers.append((await ctx.elicit(f"Number {number}?", FORM))["x"])
                await ctx.progress(number + 1, times)
        except BaseException as exc:
            self.ended.append(type(exc).__name__)
            raise
        self.ended.append("returned")
        return str(sum(self.answers))

    async def works(self, ctx: Context, size: int = 1) -> str:
        """Ask a question, log a message of `size` bytes, and continue once allowed."""
        try:
            await ctx.elicit("Go?", FORM)
            await ctx.warning("x" * size)
            await self.go.wait()
        except BaseException as exc:
            self.ended.append(type(exc).__name__)
            raise
        return "gone"

    async def topic(self, ctx: Context) -> str:
        return f"About {(await ctx.elicit('Which?', FORM))['x']}"

    async def place(self, ctx: Context) -> str:
        self.places.append((await ctx.elicit("Where?", FORM))["x"])
        return f"Place {self.places[-1]}"

    async def room(self, ctx: Context, number: str) -> str:
        return f"{(await self.place(ctx)).replace(' ', f' {number} ')}"

    @asynccontextmanager
    async def workers(self, count: int = 3, **settings: Any) -> AsyncIterator[list[Worker]]:
        """Run workers of a gateway to the upstream."""
        shared = SharedStore()
        guard = settings.pop("auth", None)

        def make() -> Server:
            front = Server(
                "front",
                auth=guard,
                settings=Settings(secret_key="a secret of the tests that is long enough", **settings),
            )
            front.tool(both)
            front.upstream("there", self.server, prefix="", revision="2025-11-25", start_timeout=WAIT)
            return front

        async with self.server.running(), fleet(make, count, store=shared) as workers:
            yield workers


async def both(ctx: Context) -> str:
    """A tool of the gateway itself."""
    return f"{await ctx.read_resource('note://place')} {await ctx.read_resource('place://1')}"


@pytest.fixture
def world() -> World:
    return World()


async def send(worker: Worker, *request: Any, **options: Any) -> Json:
    """Return the result or error of a request, as `send_with_messages` sends it."""
    reply, _ = await send_with_messages(worker, *request, **options)
    return reply


async def send_with_messages(
    worker: Worker,
    method: str = "tools/call",
    name: str = "asks",
    arguments: Json | None = None,
    *,
    then: Json | None = None,
    key: str = "",
    token: str = "",
) -> tuple[Json, list[Json]]:
    """Return the response of a request after the messages before it. `then` contains the members that a retry adds."""
    message, headers = prepare(method, name, arguments, then=then, key=key, token=token)
    async with asyncio.timeout(WAIT):
        reply = await worker.post(message, headers)
        if reply.streaming:
            messages = await EventStream(reply).end()
        else:
            messages = [json.loads(await reply.body())]
    last = messages[-1]
    return last.get("result") or {"error": last["error"]}, messages[:-1]


def prepare(
    method: str, name: str, arguments: Json | None, *, then: Json | None, key: str, token: str
) -> tuple[Json, dict[str, str]]:
    params: Json = {"uri" if method == "resources/read" else "name": name, **(then or {})}
    if method != "resources/read":
        params["arguments"] = arguments or {}
    message = per_request(method, params, **ABLE)
    meta = message["params"]["_meta"]
    meta["io.modelcontextprotocol/logLevel"] = "info"
    if token:
        meta["progressToken"] = token
    headers = routing(method, name)
    if key:
        headers["authorization"] = f"Bearer {key}"
    return message, headers


def answer(asked: Json, x: object = 7) -> Json:
    """Return the members of a retry, with the same answer to every question."""
    assert asked.get("resultType") == "input_required", asked
    answers = {each: {"action": "accept", "content": {"x": x}} for each in asked["inputRequests"]}
    return {"inputResponses": answers, "requestState": asked["requestState"]}


async def resume(first: Worker, second: Worker, name: str = "works") -> EventStream:
    """Call a tool at one worker and answer its question at another. Return that stream once it has a message."""
    message, headers = prepare("tools/call", name, None, then=answer(await send(first, name=name)), key="", token="")
    stream = EventStream(await second.post(message, headers))
    await stream.until(1)
    return stream


def text(result: Json) -> str:
    return str(result["content"][0]["text"])


async def test_questions_are_answered_on_any_worker(world: World) -> None:
    async with world.workers() as workers:
        asked, _ = await send_with_messages(workers[0], arguments={"times": 3})
        said: list[Json] = []
        for number, worker in enumerate((workers[1], workers[0], workers[2])):
            question = next(iter(asked["inputRequests"].values()))
            assert question["params"]["message"] == f"Number {number}?"
            asked, more = await send_with_messages(
                worker, arguments={"times": 3}, then=answer(asked, number), token="t"
            )
            said += more
        assert text(asked) == "3"
        assert world.answers == [0, 1, 2]
        assert world.ended == ["returned"]
        # The first request had no progress token, so the upstream wasn't asked for progress.
        assert said == []


async def test_prompts_and_resources_can_ask_questions(world: World) -> None:
    async with world.workers(2) as (first, second):
        asked = await send(first, "prompts/get", "topic")
        done = await send(second, "prompts/get", "topic", then=answer(asked, 4))
        assert done["messages"][0]["content"]["text"] == "About 4"
        asked = await send(first, "resources/read", "note://place")
        done = await send(second, "resources/read", "note://place", then=answer(asked, 5))
        assert done["contents"][0]["text"] == "Place 5"


async def test_resources_with_questions_are_read_once(world: World) -> None:
    async with world.workers(2) as workers:
        asked = await send(workers[0], name="both")
        for number in (3, 4):
            asked = await send(workers[number % 2], name="both", then=answer(asked, number))
        assert text(asked) == "Place 3 Place 1 4"
        assert world.places == [3, 4]


async def test_progress_and_logs_reach_the_waiting_request(world: World) -> None:
    async with world.workers(2) as workers:
        for waker in workers:
            world.go.clear()
            large = {"size": 600_000}  # more than one message between workers
            asked = await send(workers[0], name="works", arguments=large, token="one")
            message, headers = prepare("tools/call", "works", large, then=answer(asked), key="", token="two")
            stream = EventStream(await waker.post(message, headers))
            assert (await stream.until(1))[0]["params"]["data"] == "x" * 600_000
            world.go.set()
            assert text((await stream.end())[-1]["result"]) == "gone"


async def test_state_resumes_its_call_once(world: World) -> None:
    async with world.workers(2) as (first, second):
        asked = await send(first, arguments={"times": 2})
        again = await send(second, arguments={"times": 2}, then=answer(asked))
        for worker in (first, second):
            copied = await send(worker, arguments={"times": 2}, then=answer(asked))
            assert copied["inputRequests"] == again["inputRequests"]
            changed = await send(worker, arguments={"times": 2}, then=answer(asked, 8))
            assert changed["error"]["code"] == -32602
            assert "already answered" in changed["error"]["message"]
        assert text(await send(first, arguments={"times": 2}, then=answer(again))) == "14"
        for worker in (first, second):
            assert text(await send(worker, arguments={"times": 2}, then=answer(again))) == "14"
            for old in answer(again, 8), answer(asked):
                assert (await send(worker, arguments={"times": 2}, then=old))["error"]["code"] == -32602
        assert world.answers == [7, 7]
        assert world.ended == ["returned"]


async def test_concurrent_answers_resume_a_call_once(world: World) -> None:
    async with world.workers() as workers:
        asked = await send(workers[0])
        ends = await asyncio.gather(
            *(send(worker, then=answer(asked, number)) for number, worker in enumerate(workers))
        )
        assert sorted("error" in each for each in ends) == [False, True, True]
        assert len(world.answers) == 1


async def test_only_the_same_caller_and_arguments_resume_a_call(world: World) -> None:
    guard = auth.keys(named_keys={"alice": ALICE, "bob": BOB})
    async with world.workers(2, auth=guard) as (first, second):
        asked = await send(first, key=ALICE)
        then = answer(asked)
        forged = then["requestState"][:-4] + ("AAAA" if not then["requestState"].endswith("AAAA") else "BBBB")
        attempts: list[dict[str, Any]] = [
            {"key": BOB, "then": then},
            {"key": ALICE, "then": then, "arguments": {"times": 2}},
            {"key": ALICE, "then": then, "name": "works"},
            {"key": ALICE, "then": {**then, "requestState": forged}},
            {"key": ALICE, "then": {**then, "requestState": "nonsense"}},
        ]
        for worker in (first, second):
            for attempt in attempts:
                assert (await send(worker, **attempt))["error"]["code"] == -32602, attempt
        assert world.answers == []
        # A malformed answer is refused, and the state stays valid.
        for bad in ({"action": "yes"}, [], "text", {"action": "accept", "content": 5}, None):
            wrong = {**then, "inputResponses": dict.fromkeys(then["inputResponses"], bad)}
            assert (await send(second, key=ALICE, then=wrong))["error"]["code"] == -32602, bad
        assert text(await send(second, key=ALICE, then=then)) == "7"


async def test_missing_answers_are_requested_again(world: World) -> None:
    async with world.workers(2) as (first, second):
        asked = await send(first)
        again = await send(second, then={"requestState": asked["requestState"], "inputResponses": {"other": {}}})
        assert again["inputRequests"] == asked["inputRequests"]
        assert again["requestState"] != asked["requestState"]
        assert text(await send(first, then=answer(again))) == "7"


@pytest.mark.parametrize("noticed", [True, False])
async def test_calls_on_dead_workers_fail(world: World, noticed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.peers.RECEIPT_TIMEOUT", 0.05)
    async with world.workers(2) as (first, second):
        asked = await send(first)
        await first.die(noticed=noticed)
        lost = await send(second, then=answer(asked))
        assert lost["isError"]
        assert "again" in text(lost)
        asked = await send(second)
        assert text(await send(second, then=answer(asked))) == "7"


async def test_worker_death_ends_the_waiting_request(world: World) -> None:
    async with world.workers(2) as (first, second):
        stream = await resume(first, second)
        await first.die()
        lost = (await stream.end())[-1]["result"]
        assert lost["isError"]
        assert "stopped" in text(lost)


async def test_messages_that_the_store_rejects_leave_no_unretrieved_error(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def late(ctx: Context) -> str:
        """Ask a question, log a message, and log two more during the outage, each after the last one has failed."""
        await ctx.elicit("Go?", FORM)
        await ctx.warning("before")
        await world.go.wait()
        for number in range(2):
            await ctx.warning(f"during {number}")
            await settle()
        world.ended.append("returned")
        return "done"

    world.server.tool(late)
    async with world.workers(2) as (first, second):
        stream = await resume(first, second, "late")
        first.store.down = True
        world.go.set()
        await until(lambda: world.ended and count_parked(first) == 0)
        first.store.down = False
        await settle()
        stream.close()
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def test_results_that_the_store_rejects_end_the_waiting_request(world: World) -> None:
    async def grows(ctx: Context) -> str:
        """Ask a question, then return more than the store accepts."""
        await ctx.elicit("Go?", FORM)
        return "x" * 20_000_000

    world.server.tool(grows)
    async with world.workers(2) as (first, second):
        asked = await send(first, name="grows")
        reply = await send(second, name="grows", then=answer(asked))
        assert reply["error"]["code"] == -32603
        assert count_parked(first) == 0


async def test_lost_messages_end_request_and_call(world: World) -> None:
    async with world.workers(2) as (first, second):
        stream = await resume(first, second)
        second.store.miss()
        assert (await stream.end())[-1]["result"]["isError"]
        await until(lambda: world.ended)


@pytest.mark.parametrize("waker", [0, 1])
async def test_client_disconnect_cancels_its_call(world: World, waker: int) -> None:
    async with world.workers(2) as workers:
        stream = await resume(workers[0], workers[waker])
        stream.close()
        await until(lambda: world.ended)
        assert world.ended == ["CancelledError"]
        await until(lambda: count_parked(workers[0]) == 0)


async def test_unanswered_calls_expire(world: World) -> None:
    async with world.workers(1, input_timeout=0.05) as (worker,):
        asked = await send(worker)
        await until(lambda: world.ended)
        assert world.ended == ["ClientRefusal"]  # at the question, so that the tool can undo its work
        assert count_parked(worker) == 0
        assert "has ended" in (await send(worker, then=answer(asked)))["error"]["message"]


async def test_parked_calls_are_bounded_per_caller_and_in_total(world: World) -> None:
    guard = auth.keys(named_keys={"alice": ALICE, "bob": BOB, "carol": CAROL})
    async with world.workers(1, auth=guard, max_pending_inputs=2) as (worker,):
        asked = [await send(worker, key=ALICE)]
        assert "Too many questions" in text(await send(worker, key=ALICE))
        asked.append(await send(worker, key=BOB))
        assert "Too many questions" in text(await send(worker, key=CAROL))
        assert count_parked(worker) == 2
        for each, key in zip(asked, (ALICE, BOB), strict=True):
            await send(worker, key=key, then=answer(each))
        assert count_parked(worker) == 0
        assert text(await send(worker, key=BOB, then=answer(await send(worker, key=BOB))))


async def test_repeated_answers_from_one_caller_do_not_delay_another(world: World) -> None:
    guard = auth.keys(named_keys={"alice": ALICE, "bob": BOB})
    async with world.workers(2, auth=guard, max_pending_inputs=2) as (first, second):
        alice, bob = await send(first, key=ALICE), await send(first, key=BOB)
        *_, done = await asyncio.gather(
            *(send(second, key=ALICE, then=answer(alice)) for _ in range(8)),
            send(second, key=BOB, then=answer(bob, 5)),
        )
        assert 5 in world.answers, done


async def test_parked_bytes_are_bounded_per_caller(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.calls.parked_calls.MAX_BYTES", 20_000)
    guard = auth.keys(named_keys={"alice": ALICE, "bob": BOB})
    large = {"times": 1, "note": "x" * 1_500}
    async with world.workers(1, auth=guard) as (worker,):
        asked = await send(worker, key=ALICE, arguments=large)
        assert "Too many questions" in text(await send(worker, key=ALICE, arguments=large))
        answer(await send(worker, key=BOB, arguments=large))
        assert text(await send(worker, key=ALICE, arguments=large, then=answer(asked))) == "7"
        answer(await send(worker, key=ALICE, arguments=large))


async def test_stopping_server_cancels_parked_calls(world: World) -> None:
    async with world.workers(1) as (worker,):
        await send(worker)
        await settle()
    assert world.ended == ["CancelledError"]


def count_parked(worker: Worker) -> int:
    """Return the number of parked calls on a worker."""
    read: Callable[[], int] = worker.runtime.host.reports["parked_calls"]
    return read()
