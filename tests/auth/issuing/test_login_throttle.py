import asyncio
from typing import Any, cast

from millstream._limits import Rate
from millstream.auth._authorization_server.tickets import Vault
from millstream.auth._authorization_server.users import FailureLimiter
from redis_parts import until


class NoStore:
    """The vault of a single worker."""

    pool = None


def three(**options: Any) -> FailureLimiter:
    """Return a limiter of three failures a day per address and per name."""
    return FailureLimiter({"a": Rate(3, 86400), "b": Rate(30, 86400)}, cast("Vault", NoStore()), **options)


class Crowd:
    """Concurrent attempts that finish when released."""

    def __init__(self, attempts: FailureLimiter) -> None:
        self.attempts = attempts
        self.inside = 0
        self.most = 0
        self.gate = asyncio.Event()

    async def one(self, address: str = "x", name: str = "ada", *, right: bool = True) -> bool:
        """Make an attempt, and return whether it was allowed."""
        async with self.attempts.attempt(address, name) as may:
            if may:
                self.inside += 1
                self.most = max(self.most, self.inside)
                await self.gate.wait()
                self.inside -= 1
                if not right:
                    await self.attempts.record_failure(address, name)
        return may

    def send(self, count: int, **how: Any) -> list[asyncio.Task[bool]]:
        """Start several attempts."""
        return [asyncio.create_task(self.one(**how)) for _ in range(count)]


async def test_valid_attempts_wait_within_the_failure_limit() -> None:
    crowd = Crowd(three())
    tasks = crowd.send(20)
    await until(lambda: crowd.inside == 3)
    crowd.gate.set()
    assert await asyncio.gather(*tasks) == [True] * 20
    assert crowd.most == 3
    assert not len(crowd.attempts)


async def test_concurrent_failures_get_the_same_number_of_attempts() -> None:
    crowd = Crowd(three())
    tasks = crowd.send(20, right=False)
    await until(lambda: crowd.inside == 3)
    crowd.gate.set()
    assert sum(await asyncio.gather(*tasks)) == 3
    assert not await crowd.one()


async def test_failed_login_reduces_concurrency_without_rejecting_others() -> None:
    crowd = Crowd(three())
    crowd.gate.set()
    await crowd.one(right=False)
    crowd.gate.clear()
    tasks = crowd.send(9)
    await until(lambda: crowd.inside == 2)
    crowd.gate.set()
    assert await asyncio.gather(*tasks) == [True] * 9
    assert crowd.most == 2


async def test_attempts_from_one_address_do_not_delay_another() -> None:
    crowd = Crowd(three())
    tasks = crowd.send(4)
    await until(lambda: crowd.inside == 3)
    other = crowd.send(1, address="y")
    await until(lambda: crowd.inside == 4)
    crowd.gate.set()
    assert await asyncio.gather(*tasks, *other) == [True] * 5


async def test_abandoned_waits_leave_nothing_behind() -> None:
    crowd = Crowd(three(patience=0.0))
    tasks = crowd.send(3)
    await until(lambda: crowd.inside == 3)
    assert not await crowd.one()
    crowd.attempts._patience = 1e6
    gone = crowd.send(1)[0]
    await until(lambda: len(crowd.attempts) == 4)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    crowd.gate.set()
    assert await asyncio.gather(*tasks) == [True] * 3
    assert not len(crowd.attempts)


async def test_waiting_attempts_are_bounded() -> None:
    crowd = Crowd(three())
    tasks = crowd.send(400)
    await until(lambda: sum(task.done() for task in tasks) == 400 - 3 - 256)
    crowd.gate.set()
    assert sum(await asyncio.gather(*tasks)) == 3 + 256
