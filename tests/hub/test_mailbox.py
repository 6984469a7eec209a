import asyncio
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from cases import for_each
from hub_parts import Clock, DelayedStore, MemoryStore, Outlet, encode_line, listen, open_hub, receive, turns
from millstream.hub import Hub, HubLimits, InvalidName
from property_settings import examples


async def test_mailbox_messages_wait_for_an_absent_client() -> None:
    async with open_hub() as hub:
        for number in range(3):
            assert (await hub.send("me", f"{number}", event="progress")).subscribers == 0
        await hub.send("you", "other")
        outlet = await receive(hub, "me")
        assert (await hub.send("me", "3")).subscribers == 1
        assert outlet.data == ["0", "1", "2", "3"]
        assert outlet.events()[0][0] == "progress"


async def test_mailbox_messages_are_not_repeated() -> None:
    async with open_hub() as hub:
        await hub.send("me", "1")
        outlet = await receive(hub, "me")
        await hub.send("me", "2")
        assert outlet.data == ["1", "2"]
        outlet.close()
        assert (await receive(hub, "me")).data == []
        await hub.send("me", "3")
        assert (await receive(hub, "me")).data == []


async def test_lost_mailbox_messages_are_resumed_by_id() -> None:
    async with open_hub() as hub:
        outlet = await receive(hub, "me")
        await hub.send("me", "1")
        last = outlet.last_id
        await hub.send("me", "2")
        outlet.close()
        await hub.send("me", "3")
        again = await receive(hub, "me", last_event_id=last)
        assert (again.data, again.gaps) == (["2", "3"], [])


async def test_two_connections_of_a_client_both_receive_messages() -> None:
    async with open_hub() as hub:
        one, two = await receive(hub, "me"), await receive(hub, "me")
        await hub.send("me", "1")
        one.close()
        await hub.send("me", "2")
        assert (one.data, two.data) == (["1"], ["1", "2"])
        assert (await receive(hub, "me")).data == []


async def test_full_mailbox_drops_oldest_events_and_reports_a_gap() -> None:
    async with open_hub(mailbox=3) as hub:
        for number in range(3):
            await hub.send("me", str(number))
        outlet = await receive(hub, "me")
        assert (outlet.gaps, outlet.data) == ([], ["0", "1", "2"])
        outlet.close()
        for number in range(3, 8):
            await hub.send("me", str(number))
        outlet = await receive(hub, "me")
        assert outlet.gaps == ["trimmed"]
        assert outlet.data == ["5", "6", "7"]


async def test_mailbox_age_is_bounded() -> None:
    clock = Clock()
    async with open_hub(clock=clock, mailbox_age=60.0, history_age=10.0) as hub:
        await hub.send("me", "old")
        clock.now += 40
        await hub.send("me", "new")
        clock.now += 30
        outlet = await receive(hub, "me")
        assert (outlet.gaps, outlet.data) == (["expired"], ["new"])
        outlet.close()
        clock.now += 20
        await hub.send("me", "newer")
        clock.now += 20
        outlet = await receive(hub, "me")
        assert (outlet.gaps, outlet.data) == ([], ["newer"]), "what is too old now was given before"


async def test_mailboxes_are_private() -> None:
    async with open_hub() as hub:
        every = await listen(hub, ">")
        other = await receive(hub, "you")
        await hub.send("me", "1")
        assert every.data == other.data == []
        assert (await listen(hub, ">", history=10)).data == []


@for_each("client_id", ["", "a b", "a\nb", "*", ">"])
async def test_invalid_client_ids_are_rejected_for_reading_and_writing(client_id: str) -> None:
    async with open_hub() as hub:
        with pytest.raises(InvalidName):
            await hub.send(client_id, "x")
        with pytest.raises(InvalidName):
            await receive(hub, client_id)


async def test_mailbox_cursor_survives_a_worker_stop() -> None:
    store = MemoryStore()
    async with open_hub(store) as one:
        outlet = await receive(one, "me")
        await one.send("me", "1")
        assert outlet.data == ["1"]
    async with open_hub(store) as two:
        await two.send("me", "2")
        assert (await receive(two, "me")).data == ["2"]


async def test_mailbox_cursor_survives_a_worker_crash() -> None:
    store = MemoryStore()
    async with open_hub(store) as one, open_hub(store) as two:
        await receive(one, "me")
        await one.send("me", "1")
        await turns()
        await one.send("me", "2")  # the place of this one is not in the store yet
        assert (await receive(two, "me")).data == ["2"]


@for_each("seed", range(6))
async def test_mailbox_follows_a_client_across_workers(seed: int) -> None:
    dice = random.Random(seed)
    memory = MemoryStore()
    stores = [DelayedStore(lambda: dice.randrange(4), memory) for _ in range(2)]
    async with open_hub(stores[0]) as one, open_hub(stores[1]) as two:
        hubs = [one, two]
        got: list[str] = []

        async def write() -> None:
            for number in range(40):
                await dice.choice(hubs).send("me", str(number))
                await turns(dice.randrange(10))

        writer = asyncio.create_task(write())
        while True:
            finished = writer.done()
            outlet = Outlet()
            await dice.choice(hubs).receive("me", outlet, encode=encode_line)
            await turns(dice.randrange(40))
            outlet.close()
            await turns(60)  # its place is written down behind it
            assert outlet.gaps == []
            got += outlet.data
            if finished:
                break
        assert got == list(map(str, range(40)))


class Mailbox(RuleBasedStateMachine):
    """One client that comes and goes without ids, and messages at any time."""

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.store = MemoryStore(clock=Clock())
        self.hub = self.open()
        self.outlet: Outlet | None = None
        self.sent: list[str] = []
        self.got: list[str] = []

    def open(self) -> Hub:
        hub = Hub(self.store, HubLimits(), clock=Clock())
        self.runner.run(hub.open())
        return hub

    @rule(times=st.integers(1, 5))
    def send(self, times: int) -> None:
        for _ in range(times):
            self.sent.append(str(len(self.sent)))
            self.runner.run(self.hub.send("me", self.sent[-1]))

    @rule()
    def publish(self) -> None:
        self.runner.run(self.hub.publish("broadcast", "x"))

    @rule()
    def come(self) -> None:
        if self.outlet is None:
            self.outlet = self.runner.run(receive(self.hub, "me"))

    @rule()
    def go(self) -> None:
        if self.outlet is not None:
            self.outlet.close()
            self.got += self.outlet.data
            self.outlet = None

    @rule()
    def restart(self) -> None:
        self.go()
        self.runner.run(self.hub.close())
        self.hub = self.open()

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.come()
            self.go()
            self.runner.run(self.hub.close())
            self.runner.close()
            assert self.got == self.sent


@pytest.mark.many
def test_reconnecting_client_gets_each_message_once() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Mailbox, settings=settings(max_examples=examples(5), stateful_step_count=25)
    )
