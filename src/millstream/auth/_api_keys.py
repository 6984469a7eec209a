"""API keys as a method: keys that the program gives, and those of a file, which may change while the server runs."""

import logging
import time
from collections.abc import Callable
from hmac import compare_digest
from math import inf

from millstream._protocol.errors import LocalError
from millstream._protocol.principal import Principal
from millstream.auth._key_file import KeyFile, StoredKey, digest_of
from millstream.auth._method import AuthMethod, Identity

logger = logging.getLogger("millstream")

_BELIEVED = 3600.0
"""Seconds for which a key is believed; what is revoked is heard of within a second (`refresh`)."""
_TOLD = 10.0
"""Seconds in which every guard that has this method looks at it."""


class KeyMethod(AuthMethod):
    """The keys of one server."""

    def __init__(
        self, given: tuple[StoredKey, ...], file: KeyFile | None, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Read the file.

        Raises:
            LocalError: it cannot be used.
        """
        self._given = given
        self._file = file
        self._clock = clock
        self._epoch = 0
        """How often the file, or what is valid, has changed."""
        self._names = frozenset[str]()
        """Of the keys that are valid, as of the last look."""
        self._taken: dict[str, float] = {}
        """Names of which a key was taken away or given an end just now -> when. The name may have another."""
        if file is not None:
            file.load()
        self.epoch()

    async def identify(self, credential: str) -> Identity | None:
        """The key's holder. Every key is looked at, each in the same time, whether or not one fits."""
        digest, now = digest_of(credential), self._clock()
        found: StoredKey | None = None
        for each in self._all():
            if compare_digest(each.hash, digest) and each.valid(now):
                found = each
        if found is None:
            return None
        left = _BELIEVED if found.expires is None else min(_BELIEVED, found.expires - now)
        until = inf if found.expires is None else found.expires
        return Identity(Principal(found.name, client=found.name, scopes=frozenset(found.scopes), until=until), left)

    def _all(self) -> tuple[StoredKey, ...]:
        return self._given if self._file is None else (*self._given, *self._file.keys)

    def holds(self, id: str) -> bool:
        """Whether there is a valid key of this name. When one of several was taken away, all that the name has opened
        ends: who has another key comes back.
        """
        return id in self._names and id not in self._taken

    def epoch(self) -> int:
        """Changes with the file, and when the time of a key is over."""
        file, now = self._file, self._clock()
        self._taken = {name: at for name, at in self._taken.items() if abs(now - at) < _TOLD}
        if file is not None and file.changed():
            before = file.keys
            self._epoch += self._read(file)
            self._taken |= {each.name: now for each in before if each not in file.keys}
        names = frozenset(each.name for each in self._all() if each.valid(now))
        if names != self._names:
            self._names = names
            self._epoch += 1
        return self._epoch

    @staticmethod
    def _read(file: KeyFile) -> bool:
        """Read the file again. One that cannot be read takes its keys away: they may have been revoked."""
        try:
            file.load()
        except LocalError as exc:
            if not file.keys:
                return False
            logger.error("%s Until then, none of its keys works.", exc)
            file.keys = ()
        return True
