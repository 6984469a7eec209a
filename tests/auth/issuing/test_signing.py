import logging
from typing import Any

import pytest

from issuing_world import SECRETS, Clock, Desk
from millstream import Settings
from millstream._server.calls import Secrets
from millstream._server.calls.services import ChangeFeed, Services
from millstream._stores.store import Store
from millstream.auth._authorization_server.grants import AFTER, AHEAD, SIGNS, SigningKey, advance
from millstream.auth._jose import open_token

DAY = 86_400.0


def kids(found: Any) -> list[str]:
    """Return the key ids of a set."""
    return [each["kid"] for each in found["keys"]]


async def test_first_key_signs_despite_a_slow_clock(every_store: Store) -> None:
    ahead, behind = Clock(), Clock()
    behind.now -= 5
    maker, other = Desk(every_store, clock=ahead), Desk(every_store, clock=behind)
    (kid,) = kids(await maker.running.signing.public())
    assert open_token(await other.running.signing.sign({"iss": "x"}))[0].kid == kid


async def test_keys_are_published_before_and_after_use(every_store: Store) -> None:
    clock = Clock()
    desk = Desk(every_store, clock=clock)
    signing = desk.running.signing

    async def signed_by() -> str | None:
        return open_token(await signing.sign({"iss": "x"}))[0].kid

    first = await signed_by()
    assert kids(await signing.public()) == [first]
    clock.now += SIGNS - AHEAD + 1
    assert await signed_by() == first
    (_, second) = kids(await signing.public())
    clock.now += AHEAD
    assert await signed_by() == second
    assert kids(await signing.public()) == [first, second]
    before = signing.epoch
    clock.now += AFTER
    assert kids(await signing.public()) == [second]
    assert signing.epoch == before + 1


async def test_tokens_survive_key_rotation_and_restart(every_store: Store) -> None:
    clock = Clock()
    desk = Desk(every_store, clock=clock)
    id = (await desk.register())["client_id"]
    await desk.running.signing.public()
    clock.now += SIGNS - AHEAD + 1
    await desk.running.signing.public()
    clock.now += AHEAD - 10
    given = await desk.tokens(id)
    clock.now += 100
    restarted = Desk(every_store, clock=clock)
    assert await restarted.who(given["access_token"]) is not None
    again = (await restarted.refresh(id, given["refresh_token"])).message
    assert open_token(again["access_token"])[0].kid != open_token(given["access_token"])[0].kid


async def test_keys_that_another_worker_has_just_made_are_found(every_store: Store) -> None:
    clock = Clock()
    one, other = (Desk(every_store, clock=clock).running.signing for _ in range(2))
    await one.public()
    for name in await every_store.kv.keys("oauth-keys:"):
        await every_store.kv.delete(name)  # as a store without persistence loses them when it restarts
    kid = open_token(await other.sign({"iss": "x"}))[0].kid
    clock.now += 2
    assert len(await one.find(kid, "ES256")) == 1


def test_idle_server_signs_with_the_old_key_until_the_new_one_is_published() -> None:
    old = SigningKey("a", {}, 0.0)
    kept, new = advance((old,), 365 * DAY)
    assert (kept, new.begins) == (old, 366 * DAY)
    assert advance((kept, new), 365 * DAY) == (kept, new)


async def test_keys_sealed_with_another_secret_are_replaced_and_logged(
    every_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk(every_store)
    given = await desk.tokens((await desk.register())["client_id"])
    other = Desk(every_store)
    services = Services(Settings(), every_store, ChangeFeed(), Secrets((b"t" * 32,), "setting"))
    other.running = other.issuer.bind(services, "Book shop", list)
    with caplog.at_level(logging.WARNING, "millstream"):
        assert await other.who(given["access_token"]) is None
    assert "MILLSTREAM_SECRET_KEY" in caplog.text
    both = Services(Settings(), every_store, ChangeFeed(), Secrets((b"u" * 32, b"t" * 32), "setting"))
    caplog.clear()
    third = other.issuer.bind(both, "Book shop", list)
    assert await third.signing.public() == await other.running.signing.public()
    assert caplog.text == ""
    assert SECRETS.values == (b"s" * 32,)


async def test_key_set_contains_no_private_members(desk: Desk) -> None:
    """RFC 7517 §9.3."""
    reply = await desk.ask("GET", "/.well-known/jwks.json")
    assert {name for key in reply.message["keys"] for name in key} == {"kty", "crv", "x", "y", "kid", "alg", "use"}
    assert reply.headers["cache-control"] == "public, max-age=300"
