"""What `Rates` promises, asked of every store; with several workers, of every store that they can share."""

import asyncio
from collections.abc import Sequence

import pytest

from millstream._stores.base import Store
from millstream._stores.memory.store import MemoryStore
from millstream._stores.rates import SEAT_WAIT, Charge, Pace, Quota, Seat
from store_parts import Backing, until_workers

HOUR = 3600


def seats(count: int, *holders: str) -> list[Seat]:
    return [Seat("seats", count, holder) for holder in holders]


async def allowed(store: Store, *charges: Charge) -> bool:
    """Whether the store gives all of them."""
    return all(each.wait == 0 for each in (await store.rates.take(charges)).taken)


async def how_many(stores: Sequence[Store], times: int, charge: Charge) -> int:
    """How many of so many at once are allowed, asked of the workers in turn."""
    done = await asyncio.gather(*(allowed(stores[number % len(stores)], charge) for number in range(times)))
    return sum(done)


async def test_a_pace_gives_its_count_at_once_and_then_says_how_long_to_wait(store: Store) -> None:
    """The contract of `Pace`: GCRA, by the store's clock."""
    assert await how_many([store], 12, Pace("a", 10, 10 * HOUR)) == 10
    (refused,) = (await store.rates.take([Pace("a", 10, 10 * HOUR)])).taken
    assert HOUR - 600 < refused.wait <= HOUR
    assert (int(refused.left), refused.amount) == (0, 0.0)
    assert await allowed(store, Pace("b", 10, 10 * HOUR))


async def test_a_cost_takes_more_and_one_above_the_count_takes_it_all(store: Store) -> None:
    """The contract of `Rates.take`: whoever asks for more than the whole count waits for the whole count."""
    first, second = (
        await store.rates.take([Pace("a", 10, HOUR, cost=4), Quota("a", 10, store.time() + HOUR, 4)])
    ).taken
    assert (first.amount, round(first.left)) == (second.amount, round(second.left)) == (4.0, 6)
    assert not await allowed(store, Pace("a", 10, HOUR, cost=7))
    assert await allowed(store, Pace("b", 10, HOUR, cost=25))
    (refused,) = (await store.rates.take([Pace("b", 10, HOUR)])).taken
    assert refused.wait > HOUR


async def test_if_one_refuses_none_is_charged(store: Store) -> None:
    """The contract of `Rates.take`, for each kind in front of and behind one that refuses."""
    until = store.time() + HOUR
    full = Quota("full", 1, until)
    assert await allowed(store, full)
    for _ in range(3):
        assert not await allowed(store, Pace("a", 1, HOUR), Quota("b", 1, until), Seat("c", 1, "x"), full)
        assert not await allowed(store, full, Pace("a", 1, HOUR), Quota("b", 1, until), Seat("c", 1, "x"))
    assert await allowed(store, Pace("a", 1, HOUR), Quota("b", 1, until), Seat("c", 1, "y"))


async def test_a_caller_may_take_some_more_for_what_comes_next(store: Store) -> None:
    """The contract of `Pace.most`: as much as there is, never less than the cost, never more than the count."""
    amounts = [(await store.rates.take([Pace("a", 25, 25 * HOUR, most=10)])).taken[0].amount for _ in range(3)]
    assert amounts == [10.0, 10.0, 5.0]
    assert not await allowed(store, Pace("a", 25, 25 * HOUR, most=10))


async def test_a_quota_says_how_long_it_lasts_and_ends_with_its_time(store: Store) -> None:
    """The contract of `Quota`: one that has ended holds nobody back."""
    now = store.time()
    assert await allowed(store, Quota("day", 2, now + HOUR, 2))
    (refused,) = (await store.rates.take([Quota("day", 2, now + HOUR)])).taken
    assert HOUR - 600 < refused.wait <= HOUR + 1
    for _ in range(3):
        assert await allowed(store, Quota("yesterday", 1, now - HOUR))


async def test_a_seat_is_held_until_it_is_given_back(store: Store) -> None:
    """The contract of `Seat`: taking one again changes nothing, giving back what isn't held is no error."""
    assert [await allowed(store, seat) for seat in seats(2, "x", "y", "z", "x")] == [True, True, False, True]
    (refused,) = (await store.rates.take(seats(2, "z"))).taken
    assert refused.wait == SEAT_WAIT
    await store.rates.leave(seats(2, "x", "nobody"))
    await store.rates.leave([Seat("unknown", 2, "x")])
    assert [await allowed(store, seat) for seat in seats(2, "z", "x")] == [True, False]


async def test_a_quota_outlives_the_store_that_is_closed(store: Store) -> None:
    """The contract of `Rates.take`: quotas live as long as values do."""
    until = store.time() + HOUR
    assert await allowed(store, Quota("month", 1, until))
    await store.close()
    await store.open()
    assert not await allowed(store, Quota("month", 1, until))


async def test_all_workers_together_get_what_there_is(backing: Backing) -> None:
    """The contract of `Rates.take`: no more than that, however they race, and no less."""
    stores = [await backing.worker() for _ in range(4)]
    until = stores[0].time() + HOUR
    assert await how_many(stores, 60, Pace("a", 20, HOUR * 20)) == 20
    assert await how_many(stores, 60, Quota("a", 20, until)) == 20
    for number in range(60):
        seat = Seat("s", 20, str(number))
        assert await allowed(stores[number % 4], seat) == (number < 20)
    assert (await stores[0].rates.take([])).workers == 4


async def test_the_seats_of_a_worker_that_dies_are_free_when_its_lease_is_over(backing: Backing) -> None:
    """The contract of `Rates`: nobody else can give them back."""
    first, second = await backing.worker(), await backing.worker()
    assert await allowed(first, *seats(1, "x"))
    assert not await allowed(second, *seats(1, "x"))
    await backing.kill(first)
    await until_workers(second, lambda: allowed(second, *seats(1, "x")))


async def test_many_paces_of_one_kind_take_no_room_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proofs come with every request: whoever has a key would else forget wrong passwords by sending many."""
    monkeypatch.setattr("millstream._stores.tally.MAX_PACES", 100)
    store = MemoryStore()
    await store.open()
    guesses, other = Pace("0123abc", 1, 3600), Pace("4567def", 1, 3600)
    for each in (guesses, other):
        assert (await store.rates.take([each])).taken[0].wait <= 0
    for number in range(1000):
        assert (await store.rates.take([Pace(f"dpop:{number}", 1, 120)])).taken[0].wait <= 0
    for each in (guesses, other, Pace("dpop:999", 1, 120)):
        assert (await store.rates.take([each])).taken[0].wait > 0
    await store.close()
