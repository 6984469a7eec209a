from collections.abc import Callable

from bad_input.shop import make_shop
from millstream._stores.memory.store import MemoryMap
from wire import Wire, request, run_wire


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def rule_time(wire: Wire, clock: Callable[[], float]) -> None:
    """Let sessions and values age by a clock of ours."""
    services = wire.runtime.services
    services.clock = clock
    services.store.kv = MemoryMap(clock, 1_000_000)  # type: ignore[misc]
    services.records.clock = clock


async def delete(wire: Wire, headers: dict[str, str]) -> int:
    """The status of a DELETE."""
    return (await wire.ask("DELETE", "/mcp", headers)).status


async def test_tombstones_last_until_the_session_would_have_ended() -> None:
    clock = Clock()
    async with run_wire(make_shop(session_ttl=1_000.0), "asgi") as wire:
        rule_time(wire, clock)
        headers = await wire.initialize()
        clock.now += 500.0
        assert (await wire.post(request("ping"), headers)).status == 200
        assert await delete(wire, headers) == 204
        for _ in range(2):
            clock.now += 249.0
            wire.runtime.services.records.forget()
            assert (await wire.post(request("ping"), headers)).status == 404
        clock.now += 3.0
        assert await wire.runtime.services.store.kv.keys("") == []


async def test_session_records_survive_a_stop() -> None:
    server = make_shop()
    async with run_wire(server, "asgi") as wire:
        gone, kept = await wire.initialize(capabilities={"experimental": {"z": {}}}), await wire.initialize()
        assert await delete(wire, gone) == 204
        epoch = wire.runtime.services.store.epoch
        await server.stop()
        assert (await wire.post(request("ping"), gone)).status == 404
        assert (await wire.post(request("ping"), kept)).status == 200
        assert (await server.start()).services.store.epoch == epoch
