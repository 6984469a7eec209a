from collections import Counter

import pytest

from auth_world import make_server
from cases import for_each
from millstream._protocol.principal import Principal
from millstream.auth._method import AuthMethod, Identity, Verdict, Verdicts
from wire import POST, Wire, request, run_wire

PING = request("ping", id=5)
MANY = 4200
"""Credentials of one principal, more than the cache holds."""


class Counting(AuthMethod):
    """A method with credentials ``NAME.NUMBER`` that counts its calls by name."""

    def __init__(self) -> None:
        self.asked = Counter[str]()

    async def identify(self, credential: str) -> Identity | None:
        name = credential.partition(".")[0]
        self.asked[name] += 1
        return Identity(Principal(name, "https://id.example"), 86_400.0)

    def holds(self, id: str) -> bool:
        return True

    def epoch(self) -> int:
        return 0


async def ping(wire: Wire, credential: str) -> None:
    """Send a ping with a credential."""
    headers = {**POST, "authorization": f"Bearer {credential}"}
    assert (await wire.post(PING, headers)).status == 200


@pytest.mark.many
async def test_callers_with_many_credentials_evict_only_their_own() -> None:
    method = Counting()
    people = [f"person{number}.0" for number in range(20)]
    async with run_wire(make_server(method), "asgi") as wire:
        for each in people:
            await ping(wire, each)
        for number in range(MANY):
            await ping(wire, f"mallory.{number}")
        for each in [*people, "late.0", "late.0"]:
            await ping(wire, each)
        await ping(wire, f"mallory.{MANY - 1}")
    assert method.asked.pop("mallory") == MANY
    assert set(method.asked.values()) == {1}


@for_each("spread", [False, True], ids=["one", "all different"])
def test_credential_cache_evicts_the_oldest(spread: bool) -> None:
    verdicts = Verdicts()
    values = [b"%d" % number for number in range(5000)]
    for number, value in enumerate(values):
        verdicts.keep(value, Verdict(Principal(f"s{number if spread else 0}"), 1.0))
        if number == 4095:
            assert list(verdicts) == values[:4096]
    assert list(verdicts) == values[-4096:]


def test_evicted_credentials_are_not_counted() -> None:
    verdicts = Verdicts()
    for number in range(300):
        verdicts.keep(b"%d" % (number % 7), Verdict(Principal(f"s{number % 3}"), 1.0))
    held = {id: list(values) for id, values in verdicts._by_owner.items()}
    assert sorted(value for values in held.values() for value in values) == sorted(verdicts)
    assert all(verdicts[value].principal.id == id for id, values in held.items() for value in values)
    for value in list(verdicts):
        del verdicts[value]
    assert (verdicts, verdicts._by_owner) == ({}, {})
    verdicts.keep(b"0", Verdict(Principal("s"), 1.0))
    verdicts.clear()
    assert (verdicts, verdicts._by_owner) == ({}, {})
