"""What the tests of people and their passwords share."""

import pytest
from argon2 import PasswordHasher

from millstream._limits.gcra import Rate
from millstream.auth import _guard, _proofs, _sign_in
from millstream.auth._issuing import client_proof, documents, passwords, slowed, trips

_DAY = 86_400


@pytest.fixture(autouse=True)
def unhurried(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries that are allowed in a minute are allowed in a day: in a minute, one comes back every few seconds, and a
    machine may stand still for longer than that between the first try and the last. The mark `minutes` leaves it.
    """
    if request.node.get_closest_marker("minutes") is None:
        for module in (_guard, client_proof, slowed):
            monkeypatch.setattr(module, "_FAILURES", Rate(module._FAILURES.count, _DAY))
        monkeypatch.setattr(slowed, "_NAMED", Rate(slowed._NAMED.count, _DAY))
        monkeypatch.setattr(_proofs, "_FORGED", Rate(_proofs._FORGED.count, _DAY))
        monkeypatch.setattr(_sign_in, "_OUTS", Rate(_sign_in._OUTS.count, _DAY))
        monkeypatch.setattr(documents, "_LOOKUPS", Rate(documents._LOOKUPS.count, _DAY))
        monkeypatch.setattr(trips, "_LEAVING", Rate(trips._LEAVING.count, _DAY))


@pytest.fixture
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords are hashed by the same function for a thousandth of its cost, which isn't the subject of the test."""
    hasher = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    nobodys = hasher.hash("nobody")
    monkeypatch.setattr(passwords, "_hasher", lambda: hasher)
    monkeypatch.setattr(passwords, "_nobodys", lambda: nobodys)
