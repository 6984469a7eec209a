import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from issuing_world import BACK, Browser, Desk
from millstream._limits import StoreLimiter
from millstream._stores.base import StoreUnavailable
from millstream._stores.store import Store
from millstream._troubles import Troubles
from millstream.auth import _method
from millstream.auth._authorization_server.users import SLOW, WRONG
from millstream.auth.providers import User
from patience import WAIT
from redis_parts import until
from store_parts import BACKINGS, backings


@pytest.fixture(params=backings(name for name, each in BACKINGS.items() if each.shared))
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[list[Store]]:
    """Yield the stores of two workers."""
    backing = BACKINGS[request.param]()
    yield [await backing.worker(), await backing.worker()]
    await backing.close()


async def desks_on(stores: list[Store]) -> list[Desk]:
    """Return the authorization servers of two workers, connected as in a running server."""
    desks = [Desk(store) for store in stores]
    for desk in desks:
        desk.services.pool = StoreLimiter(desk.services.store, patience=WAIT)  # for slow machines
    return desks


async def test_wrong_passwords_from_one_address_are_counted_across_workers(stores: list[Store]) -> None:
    desks = await desks_on(stores)
    said = [await desks[number % 2].guess("192.0.2.1", f"name{number}") for number in range(14)]
    assert said == [WRONG] * 10 + [SLOW] * 4
    assert await desks[0].guess("192.0.2.1", "ada", "correct horse") == SLOW
    assert isinstance(await desks[1].guess("192.0.2.2", "ada", "correct horse"), User)


async def test_wrong_client_secrets_are_counted_across_workers(stores: list[Store]) -> None:
    """A worker reports them after its reply, so each worker lets one more pass before it learns of the limit."""
    desks = await desks_on(stores)
    id = (await desks[0].register(token_endpoint_auth_method="client_secret_post"))["client_id"]
    form = {"grant_type": "refresh_token", "refresh_token": "x", "client_id": id}
    statuses: list[int] = []
    for number in range(34):
        statuses.append((await desks[number % 2].post("/token", {**form, "client_secret": f"{number}"})).status)
        for desk in desks:
            pool = desk.running._vault.pool
            assert pool is not None
            await until(lambda: len(pool._reporting) == 0)  # noqa: B023  called at once
    assert statuses == [401] * 32 + [429] * 2


async def test_concurrent_attempts_across_workers_are_throttled(stores: list[Store]) -> None:
    desks = await desks_on(stores)
    tries = [desks[number % 2].guess("192.0.2.1", f"name{number}") for number in range(60)]
    said = Counter(map(str, await asyncio.gather(*tries)))
    assert said[WRONG] <= 10
    assert said[WRONG] + said[SLOW] == 60


async def test_many_valid_passwords_are_delayed_but_not_rejected(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_method, "PATIENCE", WAIT)  # for slow machines
    desks = await desks_on(stores)
    tries = [desks[number % 2].guess("192.0.2.1", "ada", "correct horse") for number in range(32)]
    assert {type(each) for each in await asyncio.gather(*tries)} == {User}
    assert not any(len(desk.running._authorize.throttle._turns) for desk in desks)


async def test_valid_passwords_do_not_count_as_attempts(stores: list[Store]) -> None:
    desks = await desks_on(stores)
    for number in range(30):
        assert isinstance(await desks[number % 2].guess("192.0.2.1", "ada", "correct horse"), User)


async def test_passwords_refused_during_a_correct_attempt_are_accepted_after_it(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    desks = await desks_on(stores)
    assert {await desks[0].guess("192.0.2.1", f"name{number}") for number in range(9)} == {WRONG}
    checking, gate = asyncio.Event(), asyncio.Event()

    async def check(name: str, password: str) -> User:
        checking.set()
        await gate.wait()
        return User(name)

    monkeypatch.setattr(desks[0].people, "check", check)
    first = asyncio.create_task(desks[0].guess("192.0.2.1", "bob", "battery staple"))
    await asyncio.wait_for(checking.wait(), WAIT)
    await desks[1].guess("192.0.2.1", "ada", "correct horse")  # refused, unless the machine is slow
    gate.set()
    assert isinstance(await first, User)
    assert isinstance(await desks[1].guess("192.0.2.1", "ada", "correct horse"), User)


async def test_consent_and_registrations_apply_to_all_workers() -> None:
    backing = BACKINGS["memory"]()
    store = await backing.worker()
    desks = await desks_on([store, store])
    about = b'{"redirect_uris": ["%b"]}' % BACK.encode()
    statuses = [
        (await desks[number % 2].ask("POST", "/register", body=about, content_type="application/json")).status
        for number in range(102)
    ]
    assert statuses == [201] * 100 + [429] * 2
    for desk in desks:
        desk.peer = "192.0.2.9"
    id = (await desks[0].register())["client_id"]
    agreed: list[int] = []
    for number in range(61):
        browser = Browser(desks[number % 2])
        agreed.append((await browser.answer(await browser.open(id))).status)
    assert agreed == [303] * 60 + [429]
    await backing.close()


async def test_workers_count_attempts_separately_during_a_store_outage() -> None:
    backing = BACKINGS["memory"]()
    store = await backing.worker()
    (desk,) = await desks_on([store])

    async def fails(charges: object) -> None:
        raise StoreUnavailable("away")

    away = type("Away", (), {"charge": staticmethod(fails), "release": staticmethod(fails), "troubles": Troubles()})
    desk.services.pool = StoreLimiter(away())
    said = [await desk.guess("192.0.2.1", f"name{number}") for number in range(12)]
    assert said == [WRONG] * 10 + [SLOW] * 2
    assert isinstance(await desk.guess("192.0.2.2", "ada", "correct horse"), User)
    await backing.close()
