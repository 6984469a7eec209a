"""A store that lost its newest values: what a worker has acknowledged is written again, and the others hear of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from auth.issuing.test_endings import asks, guard_of
from issuing_world import Desk
from millstream._http.message import Response
from millstream._protocol.principal import Principal
from redis_parts import until
from shared_store import SharedStore


class Workers:
    """Two workers of one authorization server, and what the store had some time ago."""

    def __init__(self, shared: SharedStore, one: Desk, two: Desk) -> None:
        self._shared = shared
        self.one = one
        self.two = two
        self.saved: dict[str, bytes] = {}

    async def save(self) -> None:
        """What the next server will have."""
        kv = self._shared.core.kv
        self.saved = {key: await kv.get(key) or b"" for key in await kv.keys("oauth-")}

    async def fail_over(self, *, epoch: str = "") -> None:
        """The next server takes over, perhaps with a hole in its streams."""
        kv = self._shared.core.kv
        for key in await kv.keys("oauth-"):
            await kv.delete(key)
        for key, value in self.saved.items():
            await kv.put(key, value, 600.0)
        self._shared.core.epoch = epoch or self._shared.core.epoch
        self.lose_words()

    def lose_words(self) -> None:
        """What was on its way to the workers gets lost, and they are told so."""
        for worker in self._shared.live.values():
            worker.miss()


@asynccontextmanager
async def workers() -> AsyncIterator[Workers]:
    """Both, for the length of the block."""
    shared = SharedStore()
    stores = [shared.worker() for _ in range(2)]
    for store in stores:
        await store.open()
    one, two = (Desk(store) for store in stores)  # type: ignore[arg-type]
    for desk in (one, two):
        desk.services.open()
    yield Workers(shared, one, two)
    for desk, store in zip((one, two), stores, strict=True):
        await desk.services.close()
        await store.close()


async def test_what_was_revoked_stays_revoked() -> None:
    """A fixed defect: after a failover of Redis the token counted again until it expired, and nobody said so."""
    async with workers() as world:
        one, two = world.one, world.two
        id = (await one.register())["client_id"]
        given = await one.tokens(id)
        await world.save()
        await one.post("/revoke", {"client_id": id, "token": given["access_token"]})
        await world.fail_over(epoch="another")
        guard = guard_of(two)
        await asks(guard, given["access_token"])  # whose verdict may be that of before

        async def refused() -> bool:
            guard.refresh()
            return isinstance(await asks(guard, given["access_token"]), Response)

        await until(refused)
        assert (await two.refresh(id, given["refresh_token"])).status == 400


async def test_streams_end_on_a_worker_that_may_have_missed_the_word() -> None:
    """A fixed defect: what a revoked token had opened there went on. Nobody knows which it was, so all come back."""
    async with workers() as world:
        one, two = world.one, world.two
        client = (await one.register())["client_id"]
        ended, lasting = [await one.tokens(client) for _ in range(2)]
        guard = guard_of(two)
        for each in (ended, lasting):
            found = await asks(guard, each["access_token"])
            assert isinstance(found, Principal)
        await one.post("/revoke", {"client_id": client, "token": ended["access_token"]})
        world.lose_words()
        assert isinstance(await asks(guard, lasting["access_token"]), Principal)
        assert guard.refresh()
        assert not guard.holds(found.id)
        assert isinstance(await asks(guard, lasting["access_token"]), Principal)
        guard.refresh()
        assert guard.holds(found.id)


async def test_a_refresh_token_that_was_renewed_is_no_stolen_one() -> None:
    """The store has an older generation, and would end the grant of a client that brings the newer one."""
    async with workers() as world:
        one, two = world.one, world.two
        id = (await one.register())["client_id"]
        given = await one.tokens(id)
        await world.save()
        renewed = (await one.refresh(id, given["refresh_token"])).message
        await world.fail_over()

        async def brought() -> bool:
            return (await grants(two))[0] not in world.saved.values()

        await until(brought)
        assert (await two.refresh(id, renewed["refresh_token"])).status == 200


async def test_a_code_that_was_used_counts_as_used() -> None:
    """It's worth one token (RFC 6749 §4.1.2), also when the store has forgotten that."""
    async with workers() as world:
        one, two = world.one, world.two
        id = (await one.register())["client_id"]
        code = (await one.sign_in(id))["code"]
        await world.save()
        assert (await one.token(id, code)).status == 200
        await world.fail_over()
        await until(lambda: grants(two))
        assert (await two.token(id, code)).error == "invalid_grant"


async def grants(desk: Desk) -> list[bytes | None]:
    """What the store has of them."""
    kv = desk.services.store.kv
    return await kv.get_many(await kv.keys("oauth-grant:"))
