"""What the tests of people and their passwords share."""

import pytest
from argon2 import PasswordHasher

from millstream.auth._issuing import passwords


@pytest.fixture
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords are hashed by the same function for a thousandth of its cost, which isn't the subject of the test."""
    hasher = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    nobodys = hasher.hash("nobody")
    monkeypatch.setattr(passwords, "_hasher", lambda: hasher)
    monkeypatch.setattr(passwords, "_nobodys", lambda: nobodys)
