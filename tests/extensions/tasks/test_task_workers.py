import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extensions.tasks.tasks_world import TaskClient, accept, text
from fleet import Worker, fleet, one_worker, real_fleet, settle, until
from millstream import Context, Server
from patience import WAIT
from shared_store import SharedStore
from store_parts import Backing, open_store
from wire import Json, request, run_wire


@dataclass
class Name:
    name: str


class Shop:
    """Workers with the same tools, and a record of their calls."""

    def __init__(self) -> None:
        self.began = Counter[str]()
        """Worker's name and word -> number of starts."""
        self.ended = Counter[str]()
        self.release = asyncio.Event()
        self._servers = 0

    def make(self) -> Server:
        """Return another worker."""
        self._servers += 1
        mcp, mine = Server("shop"), str(self._servers)

        async def wait(word: str) -> str:
            self.began[f"{mine}:{word}"] += 1
            await self.release.wait()
            self.ended[word] += 1
            return f"{mine}:{word}"

        @mcp.tool(task="required")
        async def once(word: str) -> str:
            """Return the word. Not retried."""
            return await wait(word)

        @mcp.tool(task="required", task_retry=True)
        async def again(word: str) -> str:
            """Return the word. Retried after a worker stopped."""
            return await wait(word)

        @mcp.tool(task="required")
        async def asks(ctx: Context) -> str:
            """Ask the user."""
            person = await ctx.elicit("Who?", Name, key="who")
            return f"{mine}:{person.name}"

        mcp.tool(asks, name="asks_again", task="required", task_retry=True)

        return mcp

    def runs(self, word: str) -> int:
        """Return the number of starts of a function on all workers."""
        return sum(count for key, count in self.began.items() if key.endswith(f":{word}"))


def client_of(worker: Worker) -> TaskClient:
    """Return a client of one worker."""

    async def ask(method: str, params: Json, fields: dict[str, str]) -> Json:
        return await worker.ask(method, params, fields)

    return TaskClient(ask)


async def test_any_worker_answers_and_accepts_requests_about_a_task(backing: Backing) -> None:
    shop = Shop()
    async with real_fleet(shop.make, backing, 2) as workers:
        one, two = map(client_of, workers)
        task_id = (await one.call("once", word="Dune"))["taskId"]
        assert (await two.get(task_id))["status"] == "working"
        cancelled = (await one.call("once", word="Emma"))["taskId"]
        await until(lambda: shop.runs("Emma") == 1)
        await two.cancel(cancelled)
        assert (await one.get(cancelled))["status"] == "cancelled"
        await until(lambda: len(workers[0].runtime.dispatcher.calls) == 1)
        shop.release.set()
        assert text(await two.wait_for_end(task_id)) == "1:Dune"
        asking = (await one.call("asks"))["taskId"]
        assert list(await two.wait_for_questions(asking)) == ["who"]
        await two.update(asking, who=accept(name="Ada"))
        assert text(await one.wait_for_end(asking)) == "1:Ada"  # the function waited there
        assert (shop.runs("Dune"), shop.ended["Emma"]) == (1, 0)


async def test_killed_worker_leaves_no_task_unsettled(backing: Backing) -> None:
    shop = Shop()
    async with real_fleet(shop.make, backing, 3) as workers:
        one, two, three = map(client_of, workers)
        lost = (await one.call("once", word="Dune"))["taskId"]
        again = (await one.call("again", word="Emma"))["taskId"]
        asking, retried = [(await one.call(tool))["taskId"] for tool in ("asks", "asks_again")]
        other = (await two.call("once", word="Ulysses"))["taskId"]
        await one.wait_for_questions(asking)
        await one.wait_for_questions(retried)
        await until(lambda: len(shop.began) == 3)
        workers[0].runtime.dispatcher.stopping = True
        await backing.kill(workers[0].store.real)
        failed = await three.wait_for_end(lost)
        assert failed["status"] == "failed"
        assert "may have taken effect" in failed["error"]["message"]
        await until(lambda: shop.runs("Emma") == 2)
        shop.release.set()
        assert text(await two.wait_for_end(again)) in ("2:Emma", "3:Emma")
        assert text(await three.wait_for_end(other)) == "2:Ulysses"
        for task_id in asking, retried:
            await three.update(task_id, who=accept(name="Ada"))
        assert "may have taken effect" in text(await two.wait_for_end(asking))
        assert text(await two.wait_for_end(retried)) == "3:Ada"
        assert (shop.runs("Dune"), shop.runs("Emma"), shop.runs("Ulysses")) == (1, 2, 1)


async def test_worker_presumed_dead_changes_nothing_when_it_returns() -> None:
    shop = Shop()
    async with fleet(shop.make, 2) as workers:
        one, two = map(client_of, workers)
        lost = (await one.call("once", word="Dune"))["taskId"]
        again = (await one.call("again", word="Emma"))["taskId"]
        await until(lambda: len(shop.began) == 2)
        workers[0].store.sleep()
        assert (await two.wait_for_end(lost))["status"] == "failed"
        await until(lambda: shop.runs("Emma") == 2)
        workers[0].store.wake()
        await until(lambda: not workers[0].runtime.dispatcher.calls)
        shop.release.set()
        assert text(await one.wait_for_end(again)) == "2:Emma"
        assert (await one.get(lost))["status"] == "failed"
        assert (shop.ended["Dune"], shop.ended["Emma"]) == (0, 1)


async def test_retried_task_repeats_what_it_did_since_its_last_question() -> None:
    done, release = Counter[str](), asyncio.Event()

    def make() -> Server:
        mcp = Server("shop")

        @mcp.tool(task="required", task_retry=True)
        async def buy(ctx: Context) -> str:
            """Act, ask, and act."""
            await ctx.once("before", lambda: done.update(["before"]), store=True)
            person = await ctx.elicit("Who?", Name, key="who")
            await ctx.once("after", lambda: done.update(["after"]), store=True)
            await release.wait()
            return person.name

        return mcp

    async with fleet(make, 2) as workers:
        one, two = map(client_of, workers)
        task_id = (await one.call("buy"))["taskId"]
        await one.wait_for_questions(task_id)
        await one.update(task_id, who=accept(name="Ada"))
        await until(lambda: done["after"] == 1)
        workers[0].store.sleep()
        await until(lambda: done["after"] == 2)
        release.set()
        assert text(await two.wait_for_end(task_id)) == "Ada"
        assert done["before"] == 1


async def test_task_fails_after_losing_too_many_workers() -> None:
    shop, shared = Shop(), SharedStore()
    async with fleet(shop.make, 1, store=shared) as (last,), fleet(shop.make, 4, store=shared) as workers:
        task_id = (await client_of(workers[0]).call("again", word="Emma"))["taskId"]
        for runs in range(1, 4):
            await until(lambda runs=runs: shop.runs("Emma") == runs)  # type: ignore[misc]
            (mine,) = [each for each in (*workers, last) if each.runtime.dispatcher.calls and not each.store.dead]
            mine.store.die()
        task = await client_of(next(each for each in (*workers, last) if not each.store.dead)).wait_for_end(task_id)
        assert "3 times" in task["error"]["message"]
        assert shop.runs("Emma") == 3
        shop.release.set()


async def test_stopping_worker_hands_over_unfinished_tasks(backing: Backing) -> None:
    shop = Shop()
    async with real_fleet(shop.make, backing, 1) as (stays,):
        staying = client_of(stays)
        async with real_fleet(shop.make, backing, 1) as (goes,):
            leaving = client_of(goes)
            lost = (await leaving.call("once", word="Dune"))["taskId"]
            again = (await leaving.call("again", word="Emma"))["taskId"]
            await until(lambda: len(shop.began) == 2)
            await goes.runtime.drain(0.0)
            failed = await staying.get(lost)
            assert (failed["status"], failed["error"]["code"]) == ("failed", -31503)
        await until(lambda: shop.began["1:Emma"] == 1)
        shop.release.set()
        assert text(await staying.wait_for_end(again)) == "1:Emma"
        assert shop.ended == {"Emma": 1}


async def test_only_worker_leaves_its_tasks_to_the_next_one() -> None:
    shop, shared = Shop(), SharedStore()
    async with one_worker(shop.make, shared) as goes:
        task_id = (await client_of(goes).call("again", word="Emma"))["taskId"]
        await until(lambda: shop.runs("Emma") == 1)
        await goes.runtime.drain(0.0)
        await settle()
    for number in range(2, 6):  # more restarts than a task may survive crashes
        async with one_worker(shop.make, shared) as comes:
            await until(lambda number=number: shop.began[f"{number}:Emma"] == 1)  # type: ignore[misc]
            if number == 5:
                shop.release.set()
                assert text(await client_of(comes).wait_for_end(task_id)) == "5:Emma"


async def test_tasks_can_finish_during_the_drain() -> None:
    shop, shared = Shop(), SharedStore()
    async with fleet(shop.make, 1, store=shared) as (stays,), one_worker(shop.make, shared) as goes:
        task_id = (await client_of(goes).call("once", word="Dune"))["taskId"]
        await until(lambda: shop.runs("Dune") == 1)
        draining = asyncio.create_task(goes.runtime.drain(60.0))
        await settle()
        shop.release.set()
        await draining
        assert text(await client_of(stays).get(task_id)) == "2:Dune"


async def test_task_results_survive_a_restart(tmp_path: Path) -> None:
    shop, url = Shop(), f"sqlite:///{tmp_path}/store.db"
    kept: dict[str, str] = {}

    async def serve(work: Any) -> None:
        server = shop.make()
        server.runtimes.record().store = open_store(url)
        async with run_wire(server, "asgi") as wire:

            async def ask(method: str, params: Json, fields: dict[str, str]) -> Json:
                return dict((await wire.post(request(method, params), fields)).message)

            await work(TaskClient(ask))

    async def first(client: TaskClient) -> None:
        for name, tool in (("lost", "once"), ("again", "again")):
            kept[name] = (await client.call(tool, word=name))["taskId"]
        for tool in "asks", "asks_again":
            kept[tool] = (await client.call(tool))["taskId"]
            await client.wait_for_questions(kept[tool])
        await until(lambda: len(shop.began) == 2)

    async def second(client: TaskClient) -> None:
        assert (await client.wait_for_end(kept["lost"]))["status"] == "failed"
        shop.release.set()
        assert text(await client.wait_for_end(kept["again"])) == "2:again"
        for tool, said in ("asks", "may have taken effect"), ("asks_again", "2:Ada"):
            await client.update(kept[tool], who=accept(name="Ada"))
            assert said in text(await client.wait_for_end(kept[tool]))

    async def third(client: TaskClient) -> None:
        assert text(await client.get(kept["again"])) == "2:again"

    for work in (first, second, third):
        await serve(work)


async def test_task_outcome_is_stored_after_a_store_outage() -> None:
    shop, shared = Shop(), SharedStore()
    async with fleet(shop.make, 2, store=shared) as workers:
        one, two = map(client_of, workers)
        task_id = (await one.call("once", word="Dune"))["taskId"]
        await until(lambda: shop.runs("Dune") == 1)
        workers[0].store.down = True
        shop.release.set()
        await until(lambda: shop.ended["Dune"] == 1)
        await settle()
        assert (await two.get(task_id))["status"] == "working"
        workers[0].store.down = False
        assert text(await two.wait_for_end(task_id)) == "1:Dune"


async def test_cancellation_reaches_a_worker_that_missed_the_message() -> None:
    shop, shared = Shop(), SharedStore()
    async with fleet(shop.make, 2, store=shared) as workers:
        one, two = map(client_of, workers)
        task_id = (await one.call("once", word="Dune"))["taskId"]
        await until(lambda: shop.runs("Dune") == 1)
        workers[0].store.drops_messages = True
        await two.cancel(task_id)
        workers[0].store.drops_messages = False
        assert workers[0].runtime.dispatcher.calls
        workers[0].store.miss()
        await until(lambda: not workers[0].runtime.dispatcher.calls)


async def test_task_from_a_dead_worker_takes_over_its_call_slots(backing: Backing) -> None:
    release, began = asyncio.Event(), Counter[str]()

    def make() -> Server:
        mcp = Server("shop")

        @mcp.tool(task="required", task_retry=True, concurrency=1)
        async def alone(word: str) -> str:
            """Run without concurrent calls."""
            began[word] += 1
            await release.wait()
            return word

        return mcp

    async with asyncio.timeout(WAIT), real_fleet(make, backing, 3) as workers:
        one, two, three = map(client_of, workers)
        task_id = (await one.call("alone", word="Dune"))["taskId"]
        await until(lambda: began["Dune"] == 1)
        workers[0].runtime.dispatcher.stopping = True
        await backing.kill(workers[0].store.real)
        await until(lambda: began["Dune"] == 2)
        refused = await three.response("tools/call", {"name": "alone", "arguments": {"word": "Emma"}})
        assert refused["error"]["data"]["code"] == "rate_limited"
        release.set()
        assert text(await two.wait_for_end(task_id)) == "Dune"
        made = await three.retry_until_accepted("tools/call", {"name": "alone", "arguments": {"word": "Emma"}})
        assert made["result"]["resultType"] == "task", made
        assert began["Emma"] == 1
