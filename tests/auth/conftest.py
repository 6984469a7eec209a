"""Fixtures for tests with user accounts and passwords."""

from typing import Any

import pytest

from millstream._limits import Limiter, Rate
from millstream.auth import _guard, _sign_in
from millstream.auth._authorization_server import clients, tickets, users

_DAY = 86_400


class _DailyLimiter(Limiter):
    """A limiter that counts failed sign-ins per day."""

    def __init__(self, name: str, rate: Rate, **options: Any) -> None:
        super().__init__(name, Rate(rate.count, _DAY) if name in ("sign-in", "client-sign-in") else rate, **options)


@pytest.fixture(autouse=True)
def daily_attempt_limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count sign-in attempts per day, not per minute, so a slow machine doesn't regain attempts during a test.

    Tests with the mark `minutes` use the default.
    """
    if request.node.get_closest_marker("minutes") is None:
        for module in (_guard, tickets):
            monkeypatch.setattr(module, "Limiter", _DailyLimiter)
        for name in ("_FAILURES", "_NAMED", "_FROM_NETWORK", "_FROM_DEVICE", "_FROM_NEW"):
            monkeypatch.setattr(users, name, Rate(getattr(users, name).count, _DAY))
        monkeypatch.setattr(_sign_in, "_SIGN_OUT_RATE", Rate(_sign_in._SIGN_OUT_RATE.count, _DAY))
        monkeypatch.setattr(clients, "_LOOKUPS", Rate(clients._LOOKUPS.count, _DAY))
        monkeypatch.setattr(tickets, "_REDIRECT_RATE", Rate(tickets._REDIRECT_RATE.count, _DAY))


@pytest.fixture
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the cost of password hashes."""
    monkeypatch.setattr(users, "_ITERATIONS", 1)
    monkeypatch.setattr(users, "_MEMORY", 64)
    quick = users._hash("nobody")
    monkeypatch.setattr(users, "_unknown", lambda: quick)


@pytest.fixture(autouse=True)
def fast_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash passwords at a hundredth of the cost. `test_user_file.py` has a fixture of this name that doesn't."""
    monkeypatch.setattr(users, "_ITERATIONS", 1)
    monkeypatch.setattr(users, "_MEMORY", 1024)
