"""Password hashes with Argon2id (RFC 9106), in the PHC string format.

A check takes about 50 ms of CPU time and 64 MiB, so checks run in threads, two at a time. Unknown names and wrong
passwords take the same time.
"""

import asyncio
import secrets
from functools import cache

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from millstream.auth._authorization_server.login_methods import SignInFailed

MIN_PASSWORD = 8
MAX_PASSWORD = 1024
_ITERATIONS, _MEMORY, _LANES = 3, 64 * 1024, 1
"""Cost parameters of a hash; memory in KiB."""
_MAX_CONCURRENT_CHECKS = 2
_MAX_WAITING = 64


def hash_password(password: str) -> str:
    """Return the hash of a password, with its parameters and salt.

    Raises:
        ValueError: the password is too short or too long.
    """
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise ValueError(f"A password must have {MIN_PASSWORD} to {MAX_PASSWORD} characters.")
    return _hash(password)


def verify_password(password: str, kept: str | None) -> bool:
    """Return whether `kept` is the hash of this password. Without a hash, do the same work and return False."""
    try:
        Argon2id.verify_phc_encoded(_bytes_of(password[:MAX_PASSWORD]), kept or _unknown())
    except (InvalidKey, ValueError):
        return False
    return kept is not None and len(password) <= MAX_PASSWORD


def _hash(password: str) -> str:
    salt = secrets.token_bytes(16)
    function = Argon2id(salt=salt, length=32, iterations=_ITERATIONS, lanes=_LANES, memory_cost=_MEMORY)
    return function.derive_phc_encoded(_bytes_of(password))


@cache
def _unknown() -> str:
    """Return a hash that matches no password, for checks of unknown names."""
    return _hash(secrets.token_urlsafe(16))


def _bytes_of(password: str) -> bytes:
    # Forms and terminals may send bytes that aren't UTF-8.
    return password.encode("utf-8", "surrogatepass")


class Checks:
    """Checks passwords in threads, with limited concurrency."""

    def __init__(self) -> None:
        self._semaphores: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}
        self._waiting = 0

    async def __call__(self, password: str, kept: str | None) -> bool:
        """See `verify_password`.

        Raises:
            SignInFailed: too many checks are waiting.
        """
        if self._waiting >= _MAX_WAITING:
            raise SignInFailed("Too many people are signing in at the moment. Try again in a minute.")
        loop = asyncio.get_running_loop()
        for each in [each for each in self._semaphores if each.is_closed()]:
            del self._semaphores[each]
        self._waiting += 1
        try:
            async with self._semaphores.setdefault(loop, asyncio.Semaphore(_MAX_CONCURRENT_CHECKS)):
                return await asyncio.to_thread(verify_password, password, kept)
        finally:
            self._waiting -= 1
