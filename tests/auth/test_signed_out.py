import asyncio
import time
from typing import Any

import pytest

from auth.test_sign_in import OWN, cookie
from auth.test_stream_ends import open_stream, rest_of
from auth_world import BOB, ROOT, STREAM, run_guarded
from backend_stores import MemoryStore
from millstream._protocol.errors import LocalError
from millstream._server.calls.vault import digest
from millstream.auth._sign_in import EVERYWHERE, SignedOut, verdict_key
from patience import WAIT
from store_parts import BACKINGS, Backing, backings


def ended(known: SignedOut) -> list[tuple[str, float]]:
    """Return the streams to close since the last check."""
    found: list[tuple[str, float]] = []
    known.end(lambda owner, until: found.append((owner, until)))
    return found


def sign_outs(world: Any) -> SignedOut:
    """Return the sign-outs that a server's guard handles."""
    known = world.runtime.guard.on_refresh[0].__self__
    assert isinstance(known, SignedOut)
    return known


@pytest.mark.parametrize("kind", backings(["memory", "sqlite", "local", "redis"]))
async def test_sign_out_applies_to_all_workers(kind: str) -> None:
    backing: Backing = BACKINGS[kind]()
    first, *others = [await backing.worker() for _ in range(2 if kind in ("local", "redis") else 1)]
    here = SignedOut(first, {verdict_key("jar"): "known"})
    there = [SignedOut(each, {verdict_key("jar"): "known", verdict_key("other"): "known"}) for each in others]
    await here.add(digest("jar"), "https://id.example ada lovelace", 1000.5, 60)
    for each in [here, *there]:
        async with asyncio.timeout(WAIT):
            while verdict_key("jar") in each._verdicts:  # noqa: ASYNC110  no notification
                await asyncio.sleep(0)
        assert [ended(each), ended(each)] == [[("https://id.example ada lovelace", 1000.5)], []]
        assert [await each.has(name, "", 1.0) for name in ("jar", "other", "")] == [True, False, False]
    assert all(verdict_key("other") in each._verdicts for each in there)
    late = SignedOut(first, {})
    assert await late.has("jar", "", 1.0)
    for each in [here, late, *there]:
        each.stop()
    await backing.close()


async def test_sign_outs_apply_locally_during_a_store_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backing = BACKINGS["memory"]()
    store = await backing.worker()

    async def away(*_: Any, **__: Any) -> Any:
        raise LocalError("the store is away")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("get", "put"):
            patch.setattr(type(store.kv), name, away)
        known = SignedOut(store, {})
        await known.add(digest("jar"), "ada", 1.0, 60)
        assert [await known.has("jar", "", 1.0), await known.has("other", "", 1.0)] == [True, False]
    assert "can't be notified: the store is away" in caplog.text
    await backing.close()


async def test_missed_sign_outs_restart_cookie_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bus, told = type(MemoryStore().bus), {}

    def subscribing(self: Any, topic: str, receive: Any, *, interrupted: Any = None) -> Any:
        told[topic] = interrupted
        return subscribe(self, topic, receive, interrupted=interrupted)

    subscribe = bus.subscribe
    monkeypatch.setattr(bus, "subscribe", subscribing)
    async with run_guarded() as world:
        copied, other = await cookie(world), await cookie(world)
        streams = [await world.send(None, "GET", "/dashboard/events", **STREAM, **OWN, cookie=jar)
                   for jar in (copied, other)]  # fmt: skip
        assert [(await each.head())[0] for each in streams] == [200, 200]
        by_key = await open_stream(world, ROOT, "/events")
        await world.runtime.store.kv.put(f"signed-out:{digest(copied.partition('=')[2])}", b"9e12", 60)
        told["signed-out"]()
        assert (await world.ask(None, "GET", "/docs", cookie=copied)).status == 401
        assert (await world.ask(None, "GET", "/docs", cookie=other)).status == 200
        world.runtime.sweep.tick(0.0)
        for each in streams:
            assert b"retry: " in await rest_of(each)
        assert len(world.runtime.streams) == 1
        by_key.close()


async def test_remembered_sign_outs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.auth._sign_in._MAX_SIGN_OUTS", 10)
    backing = BACKINGS["memory"]()
    known = SignedOut(await backing.worker(), {})
    for number in range(100):
        await known.add(digest(f"jar {number}"), "ada", float(number), 60)
        known.note_use("ada", float(number))
    assert len(ended(known)) == len(known._known) == len(known._in_use) == 10
    assert all([await known.has(f"jar {number}", "", float(number)) for number in range(100)])
    await backing.close()


async def test_sign_outs_are_rate_limited_per_user() -> None:
    async with run_guarded() as world:
        known = sign_outs(world)
        jars = [await cookie(world) for _ in range(61)]
        replies = [await world.ask(None, "POST", "/sign-out", b"", cookie=jar, **OWN) for jar in jars]
        assert {reply.status for reply in replies} == {303}
        counts = [await known.has(jar.partition("=")[2], "", time.time()) for jar in jars]
        assert counts == [True] * 60 + [False]


async def test_one_user_cannot_block_sign_outs_from_an_address() -> None:
    async with run_guarded() as world:
        jar, mine = await cookie(world), [await cookie(world, BOB) for _ in range(61)]
        for sent in [f"{jar}x"] * 61 + mine:
            assert (await world.ask(None, "POST", "/sign-out", b"", cookie=sent, **OWN)).status == 303
        assert (await world.ask(None, "GET", "/docs", cookie=jar)).status == 200
        await world.ask(None, "POST", "/sign-out", b"", cookie=jar, **OWN)
        assert (await world.ask(None, "GET", "/docs", cookie=jar)).status == 401


async def test_request_in_progress_is_rejected_after_sign_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with run_guarded() as world:
        jar = await cookie(world)
        values = type(world.runtime.services.store.kv)
        get, asked, go = values.get, asyncio.Event(), asyncio.Event()

        async def late(self: Any, key: str) -> Any:
            found = await get(self, key)
            if key.startswith("signed-out:") and not asked.is_set():
                asked.set()
                await go.wait()
            return found

        monkeypatch.setattr(values, "get", late)
        copied = asyncio.create_task(world.ask(None, "GET", "/docs", cookie=jar))
        await asyncio.wait_for(asked.wait(), WAIT)
        await world.ask(None, "POST", "/sign-out", b"", cookie=jar, **OWN)
        go.set()
        assert (await copied).status == 401
        assert (await world.ask(None, "GET", "/docs", cookie=jar)).status == 401


async def test_foreign_cookies_are_not_remembered() -> None:
    async with run_guarded() as world:
        jar = await cookie(world)
        for sent in ("millstream=made-up", "millstream=", "other=x", f"{jar}x"):
            assert (await world.ask(None, "POST", "/sign-out", b"", cookie=sent, **OWN)).status == 303
        foreign = {"origin": "http://evil.example", "sec_fetch_site": "cross-site"}
        assert (await world.ask(None, "POST", "/sign-out", b"", cookie=jar, **foreign)).status == 403
        assert (await world.ask(None, "GET", "/docs", cookie=jar, **OWN)).status == 200
        known = sign_outs(world)
        assert ended(known) == []


async def test_signing_out_everywhere_ends_all_cookies_and_streams() -> None:
    async with run_guarded() as world:
        mine, copied, other = await cookie(world), await cookie(world), await cookie(world, BOB)
        streams = [
            await world.send(None, "GET", "/events", **STREAM, **OWN, cookie=jar) for jar in (mine, copied, other)
        ]
        assert [(await each.head())[0] for each in streams] == [200, 200, 200]
        await world.ask(None, "POST", "/sign-out", b"everywhere=1", cookie=mine, **OWN)
        statuses = [(await world.ask(None, "GET", "/docs", cookie=jar)).status for jar in (mine, copied, other)]
        assert statuses == [401, 401, 200]
        world.runtime.sweep.tick(0.0)
        for each in streams[:2]:
            await rest_of(each)
        assert len(world.runtime.streams) == 1
        assert (await world.ask(None, "GET", "/docs", cookie=await cookie(world))).status == 200
        streams[2].close()


async def test_foreign_pages_cannot_sign_users_out_everywhere() -> None:
    async with run_guarded() as world:
        jar = await cookie(world)
        for headers in ({"origin": "http://127.0.0.1:9"}, {"sec_fetch_site": "same-site"}, {}):
            reply = await world.ask(None, "POST", "/sign-out", b"everywhere=1", cookie=jar, **headers)
            assert reply.status == 403
        assert (await world.ask(None, "GET", "/docs", cookie=jar)).status == 200


@pytest.mark.parametrize("kind", backings(["memory", "sqlite", "local", "redis"]))
async def test_sign_out_everywhere_applies_to_all_workers_and_restarts(kind: str) -> None:
    backing: Backing = BACKINGS[kind]()
    first, *others = [await backing.worker() for _ in range(2 if kind in ("local", "redis") else 1)]
    here = SignedOut(first, {})
    there = [SignedOut(each, {}) for each in others]
    for each in (here, *there):
        each.note_use("ada", 2000.0)
        each.note_use("bob", 2000.0)
    await here.add(EVERYWHERE, "ada", 1000.0, 60)
    for each in (here, *there, SignedOut(first, {})):
        found = [await each.has("", id, at) for id, at in (("ada", 999.9), ("ada", 1000.1), ("bob", 999.9))]
        assert found == [True, False, False]
    closed: list[tuple[str, float]] = []
    for each in (here, *there):
        async with asyncio.timeout(WAIT):
            while not (closed := ended(each)):  # noqa: ASYNC110  no notification
                await asyncio.sleep(0)
        assert closed == [("ada", 2000.0)]
        each.stop()
    await backing.close()
