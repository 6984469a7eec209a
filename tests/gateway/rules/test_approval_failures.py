"""What callers and approvers see after each failure, at another worker and after a restart, on each kind of store."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from client.misbehaving_servers import OFFER, ReceivedRequest, misbehaving
from fleet import Worker, real_fleet, until
from gateway.approvals import (
    ADA,
    BOB,
    BY,
    LIST,
    RULES,
    Shop,
    answer,
    ask,
    collect,
    get,
    id_in,
    pending,
    send,
    text,
)
from millstream import ToolError
from millstream.gateway import ToolPolicy, UpstreamPolicy
from patience import WAIT
from store_parts import BACKINGS, Backing, LocalSqliteBacking, backings
from wire import Json, per_request, routing

ONCE = UpstreamPolicy(tools={"*": ToolPolicy(approve=BY, idempotency="10m")})
KEYED = UpstreamPolicy(tools={"*": ToolPolicy(approve=BY, idempotency=True)})
EVE = "a-key-that-the-operator-named-eve"
OLD, NEW = "o" * 40, "n" * 40
"""Secret keys."""
AGAIN = "It didn't run again.]\n"
KEY = "millstream/idempotencyKey"


class Gateway:
    """A gateway with two workers. Each step of a test happens at another process than the step before."""

    def __init__(self, backing: Backing, *, restarts: bool) -> None:
        self.shop = Shop()
        self.seconds = 0.0
        """How far the workers' clocks are ahead."""
        self._backing, self._restarts = backing, restarts
        self._running = AsyncExitStack()
        self.workers: list[Worker] = []

    async def begin(self, later: dict[str, Any] | None = None, **options: Any) -> Worker:
        """Start the workers, and return the first.

        Args:
            later: Options that the other worker has, and both after a restart.
            options: Options of `Shop.front`.
        """
        self._later = options | (later or {})
        return await self._start(options, options if self._restarts else self._later)

    async def next(self) -> Worker:
        """Return the process for the next step."""
        if self._restarts:
            await self.stop()
            return await self._start(self._later, self._later)
        self.workers.reverse()
        return self.workers[0]

    async def stop(self) -> None:
        """Stop the workers."""
        await self._running.aclose()

    async def _start(self, *options: dict[str, Any]) -> Worker:
        made = iter(options)
        await self._running.enter_async_context(self.shop.server.running())
        fleet = real_fleet(lambda: self.shop.front(**next(made)), self._backing, len(options))
        self.workers = await self._running.enter_async_context(fleet)
        for each in self.workers:
            services = each.runtime.services
            services.clock = lambda clock=services.clock: clock() + self.seconds
        return self.workers[0]


@pytest.fixture(name="gateway", params=["other worker", "restart"])
async def each_gateway(request: pytest.FixtureRequest, backing: Backing) -> AsyncIterator[Gateway]:
    """Return a gateway that restarts between the steps of a test, or doesn't."""
    gateway = Gateway(backing, restarts=request.param == "restart")
    async with asyncio.timeout(WAIT):
        yield gateway
        await gateway.stop()


@pytest.fixture(name="backing", params=backings(("local", "local-sqlite", "redis", "nats")))
async def each_backing(request: pytest.FixtureRequest) -> AsyncIterator[Backing]:
    """Return each kind of store that two workers share."""
    backing = LocalSqliteBacking() if request.param == "local-sqlite" else BACKINGS[request.param]()
    yield backing
    await backing.close()


async def lose_caller(gateway: Gateway, worker: Worker) -> None:
    """Send a call whose caller leaves while it runs, and let it run to its end."""
    gateway.shop.release.clear()
    leaving = asyncio.create_task(send(worker))
    await until(lambda: gateway.shop.calls)
    await worker.http.close()
    await asyncio.gather(leaving, return_exceptions=True)
    gateway.shop.release.set()
    runtime = worker.runtime
    await until(lambda: not runtime.dispatcher.calls and not len(runtime.services.idempotent))


async def approve(gateway: Gateway, id: str) -> Worker:
    """Approve a request at the next process, and return that."""
    worker = await gateway.next()
    assert await answer(worker, id) == 200
    return worker


# Approval by another person


async def test_call_whose_text_was_lost_has_one_request(gateway: Gateway) -> None:
    one = await gateway.begin()
    headers = {**routing("tools/call", "s_refund"), "authorization": f"Bearer {ADA}"}
    await one.post(per_request("tools/call", {"name": "s_refund", "arguments": {"order": "7"}}), headers)  # unread
    asked = await send(await gateway.next())
    assert [each["id"] for each in await pending(await gateway.next())] == [id_in(asked)]
    assert gateway.shop.calls == []


async def test_call_whose_result_was_lost_needs_another_approval(gateway: Gateway) -> None:
    id = id_in(await send(await gateway.begin()))
    one = await approve(gateway, id)
    await lose_caller(gateway, one)
    two = await gateway.next()
    assert "no such request" in text(await collect(two, id))
    assert id_in(await send(two)) != id
    assert gateway.shop.calls == ["7"]


async def test_call_that_runs_once_gives_its_lost_result_again(gateway: Gateway) -> None:
    id = id_in(await send(await gateway.begin(policy=ONCE)))
    one = await approve(gateway, id)
    await lose_caller(gateway, one)
    two = await gateway.next()
    assert text(await send(two)).endswith(f"{AGAIN}refunded 7")
    assert await pending(two) == []
    assert gateway.shop.calls == ["7"]


async def test_request_that_nobody_answers_expires(gateway: Gateway) -> None:
    id = id_in(await send(await gateway.begin(policy=ask(within="30m"))))
    gateway.seconds = 1801
    two = await gateway.next()
    assert await pending(two) == []
    assert await answer(two, id) == 404
    assert id_in(await send(one := await gateway.next())) != id
    assert len(await pending(one)) == 1


@pytest.mark.parametrize(
    "policy",
    [
        ask(by=("group:managers", "user:eve")),
        UpstreamPolicy(tools={"*": ToolPolicy(approve=BY, description="Another one.")}),
        UpstreamPolicy(tools={"*": ToolPolicy(approve=BY, hidden={"note": "x"})}),
    ],
)
async def test_changed_rule_definition_or_hidden_value_needs_another_request(
    gateway: Gateway, policy: UpstreamPolicy
) -> None:
    one = await gateway.begin({"policy": policy})
    old, approved = id_in(await send(one)), id_in(await send(one, order="8"))
    assert await answer(one, approved) == 200
    two = await gateway.next()
    again = id_in(await send(two))
    assert {each["id"]: each["outdated"] for each in await pending(two)} == {old: True, again: False}
    assert await answer(two, old) == 409
    assert "waits for approval" in text(await send(two, order="8"))
    for each in (old, approved):
        assert "no such request" in text(await collect(two, each))
    assert gateway.shop.calls == []


@pytest.mark.parametrize("lost", ["approvals:", "approvals:~", LIST])
async def test_lost_records_lead_to_a_new_request_or_the_same_one(gateway: Gateway, lost: str) -> None:
    one = await gateway.begin()
    waiting, approved = id_in(await send(one)), id_in(await send(one, order="8"))
    assert await answer(one, approved) == 200
    for name in await one.store.kv.keys(lost):
        await one.store.kv.delete(name)
    two = await gateway.next()
    assert await pending(two) == []
    assert await answer(two, waiting) == 404
    again = id_in(await send(two))
    assert (again == waiting) is (lost == LIST)
    assert [each["id"] for each in await pending(await gateway.next())] == [again]
    assert gateway.shop.calls == []


async def test_answer_of_a_worker_that_died_before_it_changed_the_list_counts_once(gateway: Gateway) -> None:
    id = id_in(await send(one := await gateway.begin()))
    listed = await one.store.kv.get(LIST)
    two = await gateway.next()
    assert await answer(two, id, approve=False) == 200
    await two.store.kv.put(LIST, listed, 60.0)
    one = await gateway.next()
    assert await pending(one) == []
    assert await answer(one, id) == 404
    assert "An approver declined this call" in text(await send(one))
    assert gateway.shop.calls == []


async def test_revoked_key_of_the_caller_does_not_send_the_approved_call(gateway: Gateway) -> None:
    id = id_in(await send(await gateway.begin({"keys": {}}, keys={"eve": EVE}), EVE))
    two = await approve(gateway, id)
    for tool, arguments in (("s_refund", {"order": "7"}), ("get_approved_result", {"request": id})):
        headers = {**routing("tools/call", tool), "authorization": f"Bearer {EVE}"}
        reply = await two.post(per_request("tools/call", {"name": tool, "arguments": arguments}), headers)
        assert reply.status == 401
    assert gateway.shop.calls == []


async def test_request_of_a_lost_secret_key_is_counted(gateway: Gateway) -> None:
    id = id_in(await send(await gateway.begin({"settings": {"secret_key": NEW}}, settings={"secret_key": OLD})))
    two = await gateway.next()
    assert json.loads(await (await get(two)).body()) == {"requests": [], "unreadable": 1}
    assert await answer(two, id) == 404
    assert id_in(await send(two)) != id


async def test_request_of_a_replaced_secret_key_is_used(gateway: Gateway) -> None:
    later = {"settings": {"secret_key": f"{NEW},{OLD}"}}
    id = id_in(await send(await gateway.begin(later, settings={"secret_key": OLD})))
    two = await approve(gateway, id)
    assert text(await send(two)) == "refunded 7"


# Calls that run once


async def test_identical_approved_calls_at_once_run_once(gateway: Gateway) -> None:
    id = id_in(await send(await gateway.begin(policy=ONCE)))
    await approve(gateway, id)
    two = await gateway.next()
    results = await asyncio.gather(*(send(each) for each in [*gateway.workers] * 3))
    assert sorted(text(each).rpartition(AGAIN)[1:] for each in results) == [
        ("", "refunded 7"),
        *[(AGAIN, "refunded 7")] * 5,
    ]
    assert await pending(two) == []
    assert gateway.shop.calls == ["7"]


TOOLS = {"tools": [{"name": "refund", "inputSchema": {"type": "object"}}]}


@pytest.mark.parametrize("policy", [RULES, ONCE])
async def test_call_whose_upstream_was_lost_is_not_repeated_without_an_approval(
    gateway: Gateway, policy: UpstreamPolicy
) -> None:
    calls: list[str] = []

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "tools/call":
            calls.append(asked.method)
            raise ConnectionError
        await asked.result({"server/discover": OFFER, "tools/list": TOOLS}.get(asked.method, {}))

    async with misbehaving(behave) as server:
        id = id_in(await send(await gateway.begin(policy=policy, target=server.url)))
        one = await approve(gateway, id)
        assert "The call may have taken effect." in text(await send(one))
        two = await gateway.next()
        wanted = "its outcome is unknown" if policy is ONCE else "waits for approval"
        assert wanted in text(await send(two))
        assert "no such request" in text(await collect(two, id))
        await gateway.stop()
    assert len(calls) == 1


async def test_error_of_a_tool_is_the_result_of_an_approved_call(gateway: Gateway) -> None:
    @gateway.shop.server.tool
    def fail(order: str) -> str:
        """Fail."""
        gateway.shop.calls.append(order)
        raise ToolError("The card was refused.")

    id = id_in(await send(await gateway.begin(policy=ONCE), tool="s_fail"))
    one = await approve(gateway, id)
    assert text(await send(one, tool="s_fail")) == "The card was refused."
    assert text(await send(await gateway.next(), tool="s_fail")).endswith(f"{AGAIN}The card was refused.")
    assert gateway.shop.calls == ["7"]


async def test_key_belongs_to_one_caller_and_one_set_of_arguments(gateway: Gateway) -> None:
    async def send_with_key(worker: Worker, key: str = "k1", **options: str) -> Json:
        meta = per_request("tools/call", {})["params"]["_meta"]
        return await send(worker, _meta={**meta, KEY: key}, **options)

    id = id_in(await send_with_key(await gateway.begin(policy=KEYED)))
    one = await approve(gateway, id)
    assert text(await send_with_key(one)) == "refunded 7"
    two = await gateway.next()
    assert "used with other arguments" in text(await send_with_key(two, order="8"))
    assert await pending(two) == []
    assert text(await send_with_key(two)).endswith(f"{AGAIN}refunded 7")
    asked = [id_in(await send_with_key(two, **each)) for each in ({"key": "k2"}, {"who": BOB})]
    assert sorted(each["id"] for each in await pending(await gateway.next())) == sorted(asked)
    assert gateway.shop.calls == ["7"]
