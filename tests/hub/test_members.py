"""The lists of members that clients ask for, which agree with the presence events before and after them."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from auth_world import STREAM, GuardedServer, run_guarded
from cases import for_each
from fleet import real_fleet
from http_peer import serve
from hub_parts import DelayedStore, MemoryStore, Outlet, encode_line, listen, open_hub, second_worker, turns
from millstream import Principal, Server, Settings, auth
from millstream.hub import Hub
from patience import WAIT
from redis_parts import long_redis_timeouts, until  # noqa: F401  for every test
from store_parts import (
    Backing,
    LocalBacking,
    shared_backing,  # noqa: F401  the fixture `backing`
)
from wire import Json

ADA, BOB, OFFICE = "key-of-ada-0123456789", "key-of-bob-0123456789", "key-of-office-0123456789"


def allow(principal: Principal | None, action: str, channel: str) -> bool:
    """Keep Bob out of the vault."""
    return channel != "vault" or (principal is not None and principal.subject != "bob")


def make_rooms(store: str = "memory://", **settings: Any) -> Server:
    """Return a hub with three callers, one of whom may see who is behind a name."""
    keys = auth.keys(named_keys={"ada": ADA, "bob": BOB, "office": (OFFICE, ["millstream:identities"])})
    return Server("rooms", serve="hub", auth=keys, authorize_channel=allow, settings=Settings(store=store, **settings))


def apply(present: Iterable[str], events: Iterable[tuple[str | None, str | None, str]]) -> set[str]:
    """Return who is present after presence events, each of which must change something."""
    members = set(present)
    for event, data, _ in events:
        if event in ("join", "leave"):
            client = json.loads(data or "")["client_id"]
            assert (client in members) == (event == "leave"), f"{event} {client} is repeated or missing"
            (members.add if event == "join" else members.remove)(client)
    return members


async def churn(hub: Hub, dice: random.Random, prefix: str) -> list[Outlet]:
    """Let clients come and go, and return those that stay."""
    present = list[Outlet]()
    for number in range(12):
        present.append(await listen(hub, "chat", client_id=f"{prefix}{number}"))
        await turns(dice.randrange(4))
        if dice.random() < 0.6:
            present.pop(dice.randrange(len(present))).close()
    return present


async def until_settled(*hubs: Hub) -> set[str]:
    """Wait until no departure is pending and return who is present."""
    async with asyncio.timeout(WAIT):
        while True:
            await turns(50)
            for hub in hubs:
                await hub.refresh()
            stored = {member.client_id for member in await hubs[0].presence("chat")}
            lists = [await hub.members("chat") for hub in hubs]
            if all({each.client_id for each in found.members} == stored for found in lists):
                return stored


@for_each("seed", range(6))
async def test_list_and_later_presence_events_agree_while_clients_come_and_go(seed: int) -> None:
    dice, memory = random.Random(seed), MemoryStore()
    stores = [DelayedStore(lambda: dice.randrange(4), memory) for _ in range(2)]
    async with open_hub(stores[0]) as one, open_hub(stores[1]) as two:
        churning = [asyncio.create_task(churn(hub, dice, name)) for hub, name in ((one, "a"), (two, "b"))]
        readers = list[tuple[set[str], Outlet]]()
        while not all(task.done() for task in churning):
            await turns(dice.randrange(8))
            asked, other = dice.sample([one, two], 2)
            found = await asked.members("chat")
            reader = await listen(dice.choice([asked, other]), "$presence.chat", last_event_id=found.event)
            readers.append(({member.client_id for member in found.members}, reader))
        kept = await asyncio.gather(*churning)
        stored = await until_settled(one, two)
        assert len(stored) == sum(map(len, kept))
        for present, reader in readers:
            assert apply(present, reader.events()) == stored
            assert reader.gaps == []


@for_each("seed", range(4))
async def test_subscriber_receives_the_members_and_then_each_later_change_once(seed: int) -> None:
    dice, memory = random.Random(seed), MemoryStore()
    stores = [DelayedStore(lambda: dice.randrange(4), memory) for _ in range(2)]
    async with open_hub(stores[0]) as one, open_hub(stores[1]) as two:
        churning = [asyncio.create_task(churn(hub, dice, name)) for hub, name in ((one, "a"), (two, "b"))]
        readers = list[Outlet]()
        while not all(task.done() for task in churning):
            await turns(dice.randrange(8))
            for hub in (one, two):
                readers.append(await listen(hub, "chat", "$presence.chat", members=True, client_id=f"r{len(readers)}"))
                await hub.publish("chat", "hello")
        await asyncio.gather(*churning)
        stored = await until_settled(one, two)
        for reader in readers:
            events = [each for each in reader.events() if each[1]]
            assert events[0][0] == "members", "an arrival or departure came before the list"
            first = json.loads(events[0][1] or "")
            assert apply([each["client_id"] for each in first["members"]], events) == stored


async def test_members_event_resumes_without_losing_or_repeating_messages() -> None:
    memory = MemoryStore()
    async with open_hub(DelayedStore(lambda: 3, memory)) as hub:
        start = (await listen(hub, "chat")).last_id
        for number in range(5):
            await hub.publish("chat", str(number))
        outlet = Outlet()
        channels = ["chat", "$presence.chat"]
        joining = asyncio.create_task(
            hub.subscribe(channels, outlet, encode=encode_line, last_event_id=start, members=True)
        )
        for number in range(5, 10):
            await hub.publish("chat", str(number))
        await joining
        events = outlet.events()
        [place] = [place for place, (event, _, _) in enumerate(events) if event == "members"]
        again = await listen(hub, *channels, last_event_id=events[place][2])
        before = [data for event, data, _ in events[:place] if data]
        assert [*before, *again.data] == [str(number) for number in range(10)]


async def test_change_that_is_being_announced_is_not_listed_before_its_event() -> None:
    memory = MemoryStore()
    store = second_worker(memory)
    async with open_hub(store) as one, open_hub(second_worker(memory)) as two:
        announce, append = asyncio.Event(), store.log.append

        async def append_later(*args: Any, **options: Any) -> Any:
            await announce.wait()
            return await append(*args, **options)

        store.log.append = append_later
        ann, present = Outlet(), set[str]()
        joining = asyncio.create_task(one.subscribe(["chat"], ann, encode=encode_line, client_id="ann"))
        for change in ("join", "leave"):
            await turns()
            found = await two.members("chat")
            assert {member.client_id for member in found.members} == present, change
            announce.set()
            await joining
            await turns()
            reader = await listen(two, "$presence.chat", last_event_id=found.event)
            assert [event for event, data, _ in reader.events() if data] == [change]
            present = apply(present, reader.events())
            announce.clear()
            ann.close()


async def test_announced_client_is_listed_before_its_record_says_so() -> None:
    memory = MemoryStore()
    store = second_worker(memory)
    async with open_hub(store) as one, open_hub(second_worker(memory)) as two:
        finish, compare_and_set, writes = asyncio.Event(), memory.kv.compare_and_set, list[str]()

        async def write(key: str, *rest: Any) -> bool:
            writes.append(key)
            if key.startswith("member:") and len(writes) > 1:
                await finish.wait()
            return await compare_and_set(key, *rest)

        memory.kv.compare_and_set = write  # type: ignore[method-assign]
        watcher = await listen(two, "$presence.chat")
        joining = asyncio.create_task(listen(one, "chat", client_id="ann"))
        await watcher.until(1)
        found = await two.members("chat")
        assert [member.client_id for member in found.members] == ["ann"]
        assert watcher.events()[-1][2] == found.event
        finish.set()
        await joining


async def test_worker_that_reads_changes_late_does_not_list_them_early() -> None:
    memory, lag = MemoryStore(), [0]
    async with open_hub(memory) as one, open_hub(DelayedStore(lambda: lag[0], memory)) as late:
        reader = await listen(late, "$presence.chat")
        lag[0] = 100
        await listen(one, "chat", client_id="ann")
        await turns(2)
        lag[0] = 0
        found = await late.members("chat")
        assert [member.client_id for member in found.members] == ["ann"]
        assert apply((), reader.events()) == {"ann"}, "the list is ahead of the events"
        assert reader.events()[-1][2] == found.event


async def test_reading_many_lists_reads_the_store_once() -> None:
    memory = MemoryStore()
    store = DelayedStore(lambda: 1, memory)
    async with open_hub(store, refresh=1_000_000) as hub:
        for number in range(3):
            await listen(hub, "chat", client_id=f"c{number}")
        reads, get_many = [], memory.kv.get_many

        async def count(keys: Any) -> Any:
            reads.append(keys)
            return await get_many(keys)

        memory.kv.get_many = count  # type: ignore[method-assign]
        first = await asyncio.gather(*(hub.members("chat") for _ in range(50)))
        await listen(hub, "chat", client_id="late")
        last = await asyncio.gather(*(hub.members("chat") for _ in range(50)))
        assert len(reads) == 1
        assert {len(each.members) for each in first} == {3}
        assert {tuple(member.client_id for member in each.members) for each in last} == {("c0", "c1", "c2", "late")}


async def test_workers_with_a_shared_store_agree_on_the_members(backing: Backing) -> None:
    async with AsyncExitStack() as stack:
        stores = [await backing.worker() for _ in range(2)]
        one, two = [await stack.enter_async_context(open_hub(store, clock=store.time)) for store in stores]
        before = await two.members("chat")
        assert before.members == []
        ann, bob = await listen(one, "chat", client_id="ann"), await listen(two, "chat", client_id="bob")
        found = await two.members("chat")
        assert [member.client_id for member in found.members] == ["ann", "bob"]
        ann.close()
        await listen(two, "chat", client_id="cid")
        for hub in (one, two):
            for start in (before, found):
                reader = await listen(hub, "$presence.chat", last_event_id=start.event)
                present = [member.client_id for member in start.members]
                await until(lambda present=present, reader=reader: apply(present, reader.events()) == {"bob", "cid"})
        bob.close()


async def test_members_of_a_dead_worker_are_not_listed() -> None:
    memory = MemoryStore()
    store = second_worker(memory)
    async with open_hub(store) as dying, open_hub(second_worker(memory)) as hub:
        await listen(dying, "chat", client_id="ann")
        assert [each.client_id for each in (await hub.members("chat")).members] == ["ann"]
        await store.end_lease()
        await hub.refresh()
        assert (await hub.members("chat")).members == []


# On the wire


@asynccontextmanager
async def on_channel(world: GuardedServer, key: str, channel: str, name: str = "") -> AsyncIterator[Any]:
    """Open a socket that is subscribed to a channel."""
    async with world.socket(key) as socket:
        await socket.recv()
        await request(socket, {"type": "subscribe", "channel": channel, "name": name})
        yield socket


async def request(socket: Any, message: Json) -> tuple[list[Json], Json]:
    """Send a message of the dialect. Return the messages before its response, and the response."""
    await socket.send(json.dumps({**message, "id": 7}))
    before = list[Json]()
    async with asyncio.timeout(WAIT):
        while (reply := json.loads(await socket.recv())).get("id") != 7:
            before.append(reply)
    return before, reply


async def read_events(world: GuardedServer, key: str, path: str, count: int) -> list[dict[str, str]]:
    """Return the first events with data of a stream."""
    peer = await world.send(key, "GET", path, **STREAM)
    assert (await peer.head())[0] == 200
    text, found = b"", list[dict[str, str]]()
    async with asyncio.timeout(WAIT):
        while len(found) < count:
            text += await peer.chunk()
            blocks = text.decode().split("\n\n")[:-1]
            events = [dict(line.split(": ", 1) for line in each.splitlines() if line[0] != ":") for each in blocks]
            found = [each for each in events if "data" in each]
    peer.close()
    return found


async def test_rest_websocket_and_event_stream_send_the_same_list() -> None:
    async with run_guarded(make_rooms()) as world, on_channel(world, ADA, "room", "Ada L.") as ada:
        reply = await world.ask(BOB, "GET", "/members?channel=room")
        assert (reply.status, reply.headers[b"cache-control"]) == (200, b"no-store")
        found = json.loads(reply.body)
        [member] = found["members"]
        assert (found["channel"], member["name"], member["user"], "owner" in member) == (
            "room", "Ada L.", {"name": "ada"}, False
        )  # fmt: skip
        _, answer = await request(ada, {"type": "members", "channel": "room"})
        assert answer == {"type": "members", "id": 7, **found}
        for envelope in (0, 1):
            path = f"/events?channel=room,$presence.room&members=1&envelope={envelope}"
            [event] = await read_events(world, BOB, path, 1)
            assert (event["event"], json.loads(event["data"]), event["id"]) == ("members", found, found["event"])
        full = json.loads((await world.ask(OFFICE, "GET", "/members?channel=room")).body)
        assert full["members"][0]["user"] == {"name": "ada", "subject": "ada"}


async def test_presence_events_before_the_answer_are_included_and_later_ones_are_not() -> None:
    async with run_guarded(make_rooms()) as world, on_channel(world, ADA, "$presence.room") as watcher:
        members = set[str]()
        for number in range(4):
            async with (
                on_channel(world, BOB, "room", f"Bob {number}"),
                on_channel(world, BOB, "room", f"Bob {number}b"),
            ):
                before, reply = await request(watcher, {"type": "members", "channel": "room"})
                changes = [(each["event"], each["data"], each["id"]) for each in before if each["type"] == "event"]
                listed = {each["client_id"] for each in reply["members"]}
                assert apply(members, changes) == listed
                members = listed
                assert not changes or changes[-1][2] == reply["event"]


async def test_only_callers_who_may_subscribe_learn_who_is_present() -> None:
    async with run_guarded(make_rooms()) as world, on_channel(world, ADA, "vault", "Ada"):
        assert (await world.ask(ADA, "GET", "/members?channel=vault")).status == 200
        assert (await world.ask(BOB, "GET", "/members?channel=vault")).status == 403
        assert (await world.ask(None, "GET", "/members?channel=vault")).status == 401
        peer = await world.send(BOB, "GET", "/events?channel=$presence.vault&members=1", **STREAM)
        assert (await peer.head())[0] == 403
        peer.close()
        async with on_channel(world, BOB, "room") as bob:
            for channel, code in (("vault", -32003), ("$presence.vault", -32003), ("a..b", -32602), ("room.*", -32602)):
                _, reply = await request(bob, {"type": "members", "channel": channel})
                assert (reply["type"], reply["error"]["code"]) == ("error", code), channel


@for_each("query", ["", "channel=", "channel=room.*", "channel=a..b"])
async def test_list_needs_the_name_of_one_channel(query: str) -> None:
    async with run_guarded(make_rooms()) as world:
        assert (await world.ask(ADA, "GET", f"/members?{query}")).status == 400


@for_each("query", ["channel=room&members=1", "channel=$presence.*&members=1", "channel=$presence.room&members=yes"])
async def test_stream_refuses_a_list_that_it_cannot_send(query: str) -> None:
    async with run_guarded(make_rooms()) as world:
        peer = await world.send(ADA, "GET", f"/events?{query}", **STREAM)
        assert (await peer.head())[0] == 400
        peer.close()


async def test_other_workers_clients_are_listed_on_every_transport() -> None:
    backing = LocalBacking()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(backing.close)
        workers = await stack.enter_async_context(real_fleet(make_rooms, backing, 2))
        one, two = [
            GuardedServer(each.server, each.runtime, await stack.enter_async_context(serve(each.server)))
            for each in workers
        ]
        await stack.enter_async_context(on_channel(one, ADA, "room", "Ada"))
        bob = await stack.enter_async_context(on_channel(two, BOB, "room", "Bob"))
        found = json.loads((await two.ask(BOB, "GET", "/members?channel=room")).body)
        assert [each["name"] for each in found["members"]] == ["Ada", "Bob"]
        assert (await request(bob, {"type": "members", "channel": "room"}))[1]["members"] == found["members"]
        [event] = await read_events(one, ADA, "/events?channel=$presence.room&members=1", 1)
        assert json.loads(event["data"])["members"] == found["members"]
