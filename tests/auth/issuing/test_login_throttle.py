import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import pytest

from millstream._limits import Limiter, Rate
from millstream._server.calls.vault import Vault
from millstream.auth import _method
from millstream.auth._authorization_server.users import SLOW, WRONG, LoginThrottle
from millstream.auth._method import NotAdmitted, Unavailable
from millstream.auth.providers import SignInFailed, User
from redis_parts import until


class NoStore:
    """The vault of a single worker."""

    pool = None

    def limiter(self, name: str, rate: Rate) -> Limiter:
        """Return a limiter whose clock stands still."""
        return Limiter(name, rate, clock=lambda: 1000.0)


class Slow:
    """Accounts whose passwords are checked when the gate opens."""

    def __init__(self) -> None:
        self.inside: Counter[str] = Counter()
        self.most = 0
        self.gate = asyncio.Event()

    async def check(self, name: str, password: str) -> User | None:
        """Return the user for the right password."""
        self.inside[name] += 1
        self.most = max(self.most, self.inside[name])
        try:
            await self.gate.wait()
        finally:
            self.inside[name] -= 1
        if password == "broken":
            raise SignInFailed("The directory isn't available.")
        if password == "away":
            raise Unavailable("The directory doesn't respond.")
        return User(name) if password == "right" else None


@pytest.fixture
def slow() -> Iterator[Slow]:
    """Yield the accounts."""
    found = Slow()
    yield found
    found.gate.set()


def throttled(slow: Slow) -> LoginThrottle:
    """Return the throttle of a single worker."""
    return LoginThrottle(cast("Any", slow), cast("Vault", NoStore()))


async def attempt(throttle: LoginThrottle, password: str, peer: str = "192.0.2.1", name: str = "ada") -> str:
    """Try a password, and return the result."""
    try:
        return (await throttle.check(peer, name, password)).subject
    except NotAdmitted as exc:
        return str(exc)


async def test_concurrent_correct_passwords_are_all_accepted(slow: Slow) -> None:
    throttle = throttled(slow)
    tasks = [asyncio.create_task(attempt(throttle, "right")) for _ in range(40)]
    await until(lambda: slow.inside["ada"] == 1)
    slow.gate.set()
    assert await asyncio.gather(*tasks) == ["ada"] * 40
    assert slow.most == 1
    assert not len(throttle._turns)


async def test_concurrent_guesses_get_as_many_attempts_as_sequential_ones(slow: Slow) -> None:
    throttle = throttled(slow)
    tasks = [asyncio.create_task(attempt(throttle, "wrong")) for _ in range(40)]
    await until(lambda: slow.inside["ada"] == 1)
    slow.gate.set()
    assert Counter(await asyncio.gather(*tasks)) == {WRONG: 10, SLOW: 30}
    assert await attempt(throttle, "right") == SLOW


async def test_correct_passwords_between_failures_are_accepted_up_to_the_limit(slow: Slow) -> None:
    slow.gate.set()
    throttle = throttled(slow)
    said = [await attempt(throttle, password) for _ in range(9) for password in ("wrong", "right")]
    assert said == [WRONG, "ada"] * 9


async def test_attempts_from_one_address_do_not_delay_other_names_and_addresses(slow: Slow) -> None:
    throttle = throttled(slow)
    first = asyncio.create_task(attempt(throttle, "right"))
    await until(lambda: slow.inside["ada"] == 1)
    other = asyncio.create_task(attempt(throttle, "right", peer="192.0.2.2", name="bob"))
    await until(lambda: slow.inside["bob"] == 1)
    slow.gate.set()
    assert await asyncio.gather(first, other) == ["ada", "bob"]


async def test_failed_checks_and_canceled_attempts_do_not_count(slow: Slow) -> None:
    throttle = throttled(slow)
    for _ in range(20):
        gone = asyncio.create_task(attempt(throttle, "wrong"))
        await until(lambda: slow.inside["ada"] == 1)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
    slow.gate.set()
    assert {await attempt(throttle, "broken") for _ in range(20)} == {"The directory isn't available."}
    assert await attempt(throttle, "right") == "ada"
    assert not len(throttle._turns)


async def test_errors_of_the_accounts_are_shown_instead_of_a_limit(slow: Slow) -> None:
    slow.gate.set()
    throttle = throttled(slow)
    assert {await attempt(throttle, "away") for _ in range(20)} == {"The directory doesn't respond."}
    with pytest.raises(NotAdmitted) as caught:
        await throttle.check("192.0.2.1", "ada", "away")
    assert (caught.value.status, caught.value.wrong) == (503, False)


async def test_attempts_that_wait_too_long_are_refused(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    throttle = throttled(slow)
    first = asyncio.create_task(attempt(throttle, "right"))
    await until(lambda: slow.inside["ada"] == 1)
    monkeypatch.setattr(_method, "PATIENCE", 0.0)
    assert await attempt(throttle, "right") == SLOW
    slow.gate.set()
    assert await first == "ada"
