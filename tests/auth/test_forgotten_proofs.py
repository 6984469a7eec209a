"""Proofs of keys (DPoP, RFC 9449 §11.1) while somebody fills what remembers them: none counts a second time."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from auth.test_bound_tokens import AUDIENCE, KEY, OTHER, digest, signed
from millstream._http.message import Request
from millstream._limits.pool import Pool
from millstream._protocol.seal import KeyRing
from millstream._stores.rates import Charge, Decision, Seat
from millstream.auth import _proofs
from millstream.auth._method import NonceWanted
from millstream.auth._proofs import Nonces, Proofs
from patience import WAIT
from store_parts import BACKINGS, backings

RING = KeyRing((b"s" * 32,))
FEW = 40
COUNTS = (1, FEW // 2, FEW - 1, FEW, FEW + 1, 2 * FEW - 1, 2 * FEW + 1)


class Clock:
    """Wall time, as the test has it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """What one worker knows of proofs; it has run for an hour."""

    def __init__(self, clock: Callable[[], float], pool: Pool | None = None, *, began: float = -3600.0) -> None:
        self.clock = clock
        self.pool = pool
        self.proofs = Proofs(AUDIENCE, Nonces(lambda: RING), began=clock() + began, clock=clock)

    async def takes(self, proof: str, key: Any = KEY) -> bool | str:
        """Whether a request with a proof counts; or the nonce that it wants."""
        raw = [(b"host", b"mcp.example.com"), (b"dpop", proof.encode())]
        request = Request("GET", "/mcp", raw, dict(raw))
        try:
            return await self.proofs.holds(request, b"token", key.thumbprint(), self.pool)
        except NonceWanted as exc:
            return str(exc)

    async def flood(self, count: int, *, since: int = 0) -> None:
        """Somebody else with a token sends as many proofs, and goes along with nonces."""
        for number in range(since, since + count):
            assert await self.gets_through(f"flood {number}", OTHER)

    async def gets_through(self, id: str, key: Any = KEY) -> str:
        """The proof of a request that counts, after as many tries as there are memories that may have been full."""
        nonce = ""
        for attempt in range(10):
            sent = proof(self.clock, f"{id}, {attempt}", key=key, nonce=nonce)
            found = await self.takes(sent, key)
            if found is True:
                return sent
            assert isinstance(found, str)
            nonce = found
        raise AssertionError("still refused")


def proof(clock: Callable[[], float], id: str, *, key: Any = KEY, nonce: str = "") -> str:
    """A good proof."""
    said = {"jti": id, "htm": "GET", "htu": AUDIENCE, "iat": int(clock()), "ath": digest("token")}
    return signed({**said, **({"nonce": nonce} if nonce else {})}, key=key)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """There's room for few."""
    monkeypatch.setattr(_proofs, "_MAX_KEPT", FEW)
    monkeypatch.setattr("millstream._stores.tally.MAX_PACES", FEW)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("count", COUNTS)
async def test_a_proof_never_counts_twice_however_many_others_come_in_between(count: int) -> None:
    """A fixed defect: a hundred thousand within two minutes pushed older ones out, and those counted again."""
    clock = Clock()
    worker = Worker(clock)
    once = proof(clock, "once")
    assert await worker.takes(once) is True
    await worker.flood(count)
    assert await worker.takes(once) is not True


@pytest.mark.usefixtures("few")
async def test_who_is_asked_for_a_nonce_goes_on_with_it_until_the_memory_is_full_again() -> None:
    """One request more for each time that it's full; a nonce of before is as good as none, also one made just then."""
    clock = Clock()
    worker = Worker(clock)
    await worker.flood(FEW)
    nonce = await worker.takes(proof(clock, "a"))
    assert isinstance(nonce, str)
    kept = proof(clock, "b", nonce=nonce)
    assert [await worker.takes(kept), await worker.takes(kept)] == [True, False]
    await worker.flood(2 * FEW, since=100)
    newer = await worker.takes(kept)
    assert isinstance(newer, str)
    assert await worker.takes(proof(clock, "c", nonce=nonce)) not in (True, False)
    assert await worker.takes(proof(clock, "d", nonce=newer)) is True


@pytest.mark.usefixtures("few")
async def test_two_minutes_after_a_flood_nobody_is_asked_for_a_nonce_any_more() -> None:
    """What was forgotten is too old to count."""
    clock = Clock()
    worker = Worker(clock)
    await worker.flood(FEW + 1)
    once = proof(clock, "once", nonce=str(await worker.takes(proof(clock, "a"))))
    assert await worker.takes(once) is True
    clock.now += 61
    assert await worker.takes(once) is False
    assert await worker.takes(proof(clock, "b")) is True
    assert isinstance(await worker.takes(proof(Clock(), "c")), bool)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", backings(["local"]))
async def test_nor_does_it_count_at_another_worker_once_the_store_has_forgotten_it(kind: str) -> None:
    """Without Redis, what the workers share has as much room, and says when it has forgotten some."""
    backing = BACKINGS[kind]()
    clock = time.time  # the store's age of what it forgot is real, too
    pools = [Pool((await backing.worker()).rates, patience=WAIT) for _ in range(2)]
    first, second = (Worker(clock, pool) for pool in pools)
    for count in COUNTS:
        once = await first.gets_through(f"once {count}")
        await first.flood(count, since=1000 * count)
        assert await second.takes(once) is not True, count
    for pool in pools:
        await pool.close()
    await backing.close()


class Silent:
    """A store that remembers for good, and doesn't answer."""

    lasting = True

    async def take(self, charges: list[Charge]) -> Decision:
        raise OSError("away")

    async def leave(self, seats: list[Seat]) -> None:
        """Nobody has one."""


async def test_while_redis_does_not_answer_a_worker_that_has_just_started_asks_for_a_nonce() -> None:
    """A fixed defect: what had been seen before the start was known to Redis alone, and counted again."""
    clock = Clock()
    pool = Pool(Silent())  # type: ignore[arg-type]  lists are sequences
    worker = Worker(clock, pool, began=0.0)
    nonce = await worker.takes(proof(clock, "before the start"))
    assert isinstance(nonce, str)
    assert await worker.takes(proof(clock, "a", nonce=nonce)) is True
    assert await Worker(clock, pool).takes(proof(clock, "b")) is True
    await pool.close()
