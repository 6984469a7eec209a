"""Issuers' metadata and keys are fetched concurrently: an unresponsive issuer doesn't delay the others."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from auth_world import make_server, run_guarded
from backend_stores import MemoryStore
from cases import for_each
from issuer_world import AUDIENCE
from issuing_world import Desk, KnownUsers
from millstream import auth
from millstream.auth._jose import FetchedKeys
from patience import WAIT

ISSUERS = ["https://one.example", "https://two.example", "https://three.example"]


class Meeting:
    """Fetches that finish only after all of them have started."""

    def __init__(self, *fails: Exception | None) -> None:
        self.fails = fails
        self.came = 0
        self.done = 0
        self.everybody = asyncio.Event()

    async def fetch(self) -> None:
        """Run one fetch."""
        failure = self.fails[self.came]
        self.came += 1
        if self.came == len(self.fails):
            self.everybody.set()
        if failure is not None:
            raise failure
        await self.everybody.wait()
        self.done += 1


def of_identities() -> Any:
    """Return an authorization server with several identity providers."""
    return Desk(
        MemoryStore(), people=[KnownUsers(), *(auth.identity_provider(each, scopes=()) for each in ISSUERS)]
    ).running


def of_tokens() -> Any:
    """Return a server that accepts tokens of several issuers."""
    return [auth.jwt(issuer=each, audience=AUDIENCE, jwks=f"{each}/keys") for each in ISSUERS]


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Meeting]:
    """Return a function that replaces the fetching of keys with a `Meeting`."""

    def start(*fails: Exception | None) -> Meeting:
        meeting = Meeting(*fails)
        monkeypatch.setattr(FetchedKeys, "prefetch", lambda _: meeting.fetch())
        return meeting

    return start


async def test_identity_providers_are_prefetched_concurrently(meet: Callable[..., Meeting]) -> None:
    meeting = meet(None, None, None)
    async with asyncio.timeout(WAIT):
        await of_identities().prefetch()
    assert (meeting.came, meeting.done) == (3, 3)


@for_each("whose", ["identities", "tokens"])
async def test_failing_prefetch_is_reported_and_does_not_stop_others(whose: str, meet: Callable[..., Meeting]) -> None:
    meeting = meet(None, ValueError("odd"), None)
    async with asyncio.timeout(WAIT):
        if whose == "identities":
            with pytest.raises(ExceptionGroup) as told:
                await of_identities().prefetch()
        else:
            async with run_guarded(make_server(of_tokens())) as world:
                assert world.runtime.guard is not None
                with pytest.raises(ExceptionGroup) as told:
                    await world.runtime.guard.prefetch()
    assert told.group_contains(ValueError, match="odd")
    assert (meeting.came, meeting.done) == (3, 2)
