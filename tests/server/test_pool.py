import asyncio

from fleet import settle
from millstream._server.pool import Pool


def start(pool: Pool, owner: str) -> asyncio.Task[bool]:
    return asyncio.get_running_loop().create_task(pool.acquire(owner))


async def test_sole_owner_may_take_all_slots_until_another_arrives() -> None:
    pool = Pool(8)
    assert all(pool.take("ada") for _ in range(8))
    assert not pool.take("ada")
    assert not pool.take("bob")  # all are in use, but from now on one is kept for owners without any
    for _ in range(2):
        pool.leave("ada")
    assert pool.take("ada")
    assert not pool.take("ada")
    assert pool.take("bob")


async def test_freed_slots_go_to_the_waiting_owner_with_the_fewest() -> None:
    pool = Pool(4)
    for owner in ("ada", "ada", "bob", "cy"):
        assert pool.take(owner)
    order: list[str] = []
    for owner in ("ada", "bob", "eve", "cy"):
        start(pool, owner).add_done_callback(lambda _, owner=owner: order.append(owner))  # type: ignore[misc]
    await settle()
    assert pool.waiting.used == 4
    for owner in ("ada", "ada", "cy"):
        pool.leave(owner)
        await settle()
    assert order == ["eve", "ada", "cy"]  # the last place is kept while the others hold some
    assert (pool.count("ada"), pool.count("bob"), pool.count("cy"), pool.count("eve")) == (1, 1, 1, 1)


async def test_equal_owners_take_turns() -> None:
    pool = Pool(1)
    assert pool.take("eve")
    order: list[str] = []

    async def work(owner: str) -> None:
        assert await pool.acquire(owner)
        order.append(owner)
        pool.leave(owner)

    tasks = [asyncio.create_task(work(owner)) for owner in ("ada", "ada", "ada", "bob", "bob")]
    await settle()
    pool.leave("eve")
    await asyncio.gather(*tasks)
    assert order == ["ada", "bob", "ada", "bob", "ada"]
    assert (pool.used, pool.waiting.used) == (0, 0)


async def test_canceled_waits_leave_nothing_behind() -> None:
    pool = Pool(1)
    assert pool.take("eve")
    for late in (False, True):  # before and after the place was granted
        first, second = start(pool, "ada"), start(pool, "bob")
        await settle()
        if not late:
            first.cancel()
        pool.leave("eve")
        if late:
            first.cancel()
        assert await second
        assert first.cancelled()
        assert (pool.count("ada"), pool.count("bob"), pool.waiting.used) == (0, 1, 0)
        pool.move("bob", "eve")
    for _ in range(3):
        waiting = start(pool, "ada")
        await settle()
        waiting.cancel()
        await settle()
    assert pool.next_owner == ""


async def test_one_owner_fills_half_of_the_queue() -> None:
    pool = Pool(1)
    assert pool.take("eve")
    tasks = [start(pool, "ada") for _ in range(501)]
    await settle()
    assert [await task for task in tasks if task.done()] == [False]
    other = start(pool, "bob")
    await settle()
    pool.leave("eve")
    pool.leave("ada")
    assert await other
    for task in tasks:
        task.cancel()


def test_empty_owner_may_hold_everything() -> None:
    pool = Pool(2)
    assert pool.take("ada")
    assert not pool.take("bob", 2)
    assert pool.take("")
