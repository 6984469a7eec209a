import asyncio

import pytest

from dict_backend import Data, DictBackend
from millstream._stores.memory.store import UsageCounter
from millstream._stores.workers import LeasedWorker, expire
from millstream._troubles import Troubles

LEASE = 6.0


class Machine:
    """Workers on one store, whose clock moves only on request."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self._data = Data()
        self._tally = UsageCounter(self._data)

    async def worker(self) -> LeasedWorker:
        backend = DictBackend(self._data, self._tally, LEASE)
        backend.time = lambda: self.now  # type: ignore[method-assign]
        leases = LeasedWorker(backend, Troubles())
        await leases.renew()
        return leases

    async def run(self, *workers: LeasedWorker, seconds: float) -> None:
        """Let some workers renew their leases for a time."""
        for _ in range(int(seconds)):
            self.now += 1.0
            for each in workers:
                await each.renew()


async def test_expired_workers_get_a_new_name() -> None:
    machine = Machine()
    one, two = await machine.worker(), await machine.worker()
    old = two.me
    await machine.run(one, seconds=LEASE - 1)
    assert await one.alive(old)
    await machine.run(one, seconds=2)
    assert not await one.alive(old)
    await two.renew()
    assert two.me != old
    assert await one.alive(two.me)
    assert not await one.alive(old)


async def test_store_pauses_and_clock_jumps_do_not_expire_leases() -> None:
    machine = Machine()
    workers = [await machine.worker() for _ in range(3)]
    names = [each.me for each in workers]
    await machine.run(*workers, seconds=10)
    machine.now += 1_000.0
    assert await workers[0].alive(names[1])
    for each in workers:
        await each.renew()
    assert [each.me for each in workers] == names
    assert all([await workers[0].alive(name) for name in names])
    await machine.run(*workers[:2], seconds=LEASE + 1)
    assert not await workers[0].alive(names[2])


async def test_dead_workers_are_noticed_after_a_clock_change() -> None:
    machine = Machine()
    one, dead = await machine.worker(), await machine.worker()
    machine.now -= 1_000.0
    await machine.run(one, seconds=LEASE + 1)
    assert not await one.alive(dead.me)


async def test_dead_workers_are_kept_for_a_day_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.workers._MAX_DEAD", 3)
    machine = Machine()
    one, *others = [await machine.worker() for _ in range(5)]
    for each in others:
        await expire(each._backend, each.me)
    await one.read()
    assert one.dead == {each.me for each in others[1:]}
    machine.now += 86_400.0
    await one.renew()
    assert one.dead == set()


async def test_suspension_during_a_renewal_is_no_outage_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    one, two = await machine.worker(), await machine.worker()
    await one.open()
    old, kv = one.me, one._backend.kv
    get, is_suspended, resumes = kv.get, asyncio.Event(), asyncio.Event()

    async def get_too_late(key: str) -> bytes | None:
        monkeypatch.setattr(kv, "get", get)
        is_suspended.set()
        await resumes.wait()
        raise OSError("no answer in time")

    monkeypatch.setattr(kv, "get", get_too_late)
    one.hurry()
    await is_suspended.wait()
    await machine.run(two, seconds=LEASE + 1)
    resumes.set()
    await one.make_certain()
    assert (one.is_cut_off, one.me == old) == (False, False)
    await one.close()
