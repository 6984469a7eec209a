"""Hashes of passwords, by Argon2id (RFC 9106): the one module that imports argon2.

A check takes some 50 ms of a core and 64 MiB, so it runs in a thread, two at a time. A name that nobody has takes as
long as a wrong password.
"""

import asyncio
import secrets
from functools import cache

from millstream._protocol.errors import MissingExtra
from millstream.auth._issuing.ways import SignInFailed

try:
    from argon2 import PasswordHasher
    from argon2.exceptions import InvalidHashError, VerificationError
except ImportError:
    raise MissingExtra("Signing in with a password", "auth") from None

_AT_ONCE = 2
_MAX_WAITING = 64
MIN_PASSWORD = 8
MAX_PASSWORD = 1024


@cache
def _hasher() -> PasswordHasher:
    return PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=1)


@cache
def _nobodys() -> str:
    return _hasher().hash(secrets.token_urlsafe(16))


def hash_password(password: str) -> str:
    """What is kept of a password.

    Raises:
        ValueError: it is too short to be one, or too long.
    """
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise ValueError(f"A password has {MIN_PASSWORD} to {MAX_PASSWORD} characters.")
    return _hasher().hash(_bytes_of(password))


def verify_password(password: str, kept: str | None) -> bool:
    """Whether this is the password of which that was kept; without one, the same work for nothing."""
    try:
        _hasher().verify(kept or _nobodys(), _bytes_of(password[:MAX_PASSWORD]))
    except (VerificationError, InvalidHashError):
        return False
    return kept is not None and len(password) <= MAX_PASSWORD


def _bytes_of(password: str) -> bytes:
    """What is hashed. A form, or a terminal, may have sent bytes that aren't UTF-8."""
    return password.encode("utf-8", "surrogatepass")


class Checks:
    """Checks passwords, few at a time."""

    def __init__(self) -> None:
        self._turns: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}
        self._waiting = 0

    async def __call__(self, password: str, kept: str | None) -> bool:
        """See `verify_password`.

        Raises:
            SignInFailed: too many wait already.
        """
        if self._waiting >= _MAX_WAITING:
            raise SignInFailed("Too many people are signing in just now. Try again in a minute.")
        loop = asyncio.get_running_loop()
        for each in [each for each in self._turns if each.is_closed()]:
            del self._turns[each]
        self._waiting += 1
        try:
            async with self._turns.setdefault(loop, asyncio.Semaphore(_AT_ONCE)):
                return await asyncio.to_thread(verify_password, password, kept)
        finally:
            self._waiting -= 1
