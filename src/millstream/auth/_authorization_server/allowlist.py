"""The operator's list of upstream users who may sign in: ``allow=["@example.com"]``, or ``["*"]`` for everyone.

An upstream returns verified names, such as an e-mail address, its domain, or a login. The first entry that equals one
of them applies. Only whole names match, without regard to ASCII case.
"""

import re
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import cast

from msgspec import Struct

from millstream._server.functions.description import Names
from millstream.auth._authorization_server.login_methods import SignInFailed
from millstream.auth._key_file import check_scopes

EVERYBODY = "*"
_DOMAIN = r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+"
EMAIL = rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_DOMAIN}|@{_DOMAIN}"
"""Pattern of an e-mail address, or of a domain after ``@``."""

Allow = Names | Mapping[str, Names]
"""Entries of the list, or a mapping of entries to the scopes that their users may grant to clients."""


class AllowlistEntry(Struct, frozen=True):
    """An entry of the list."""

    scopes: tuple[str, ...]
    number: float
    """Hash of the entry, its scopes, and the upstream."""


class Allowlist:
    """The users who may sign in."""

    def __init__(self, given: Allow, at: str, *, form: str, examples: str) -> None:
        """Parse the list. `at` is the upstream's URL, `form` the pattern of an entry; `examples` is for error messages.

        Raises:
            ValueError: the list is empty, or an entry can't match any user of the upstream.
            TypeError: the list is a string.
        """
        if isinstance(cast("object", given), str):
            raise TypeError(f"allow must be a list: allow=[{given!r}]")
        if not given:
            raise ValueError(f"allow must list who may sign in: {examples}.")
        pairs = cast("Mapping[str, Names]", given if isinstance(given, Mapping) else dict.fromkeys(given, ()))
        self._entries: dict[str, AllowlistEntry] = {}
        for name, scopes in pairs.items():
            if name != EVERYBODY and not re.fullmatch(form, name):
                raise ValueError(f"allow can't contain {name!r}. Valid entries: {examples}.")
            if isinstance(cast("object", scopes), str):
                raise TypeError(f"The scopes of {name!r} must be a list: [{scopes!r}]")
            self._entries[lower(name)] = _entry(at, lower(name), check_scopes(tuple(scopes)))
        self._numbers = {each.number for each in self._entries.values()}

    def find(self, names: Collection[str], shown: str) -> AllowlistEntry:
        """Return the first entry that equals one of the names. `shown` is the user's name in error messages.

        Raises:
            SignInFailed: no entry matches.
        """
        known = {EVERYBODY, *map(lower, names)}
        for name, entry in self._entries.items():
            if name in known:
                return entry
        raise SignInFailed(
            f"{shown} may not sign in here. Use another account, or contact the operator of this server."
        )

    def has_entry(self, number: float) -> bool:
        """Return whether the entry with this number still exists, with the same scopes."""
        return number in self._numbers

    def some(self, beginning: str = "", containing: str = "") -> bool:
        """Return whether an entry starts with `beginning` and contains `containing`."""
        return any(each.startswith(beginning) and containing in each for each in self._entries)


def _entry(at: str, name: str, scopes: tuple[str, ...]) -> AllowlistEntry:
    said = " ".join((at, name, *sorted(scopes))).encode()
    return AllowlistEntry(scopes, float(int.from_bytes(sha256(said).digest()[:6])))  # 48 bits: exact in a float


def lower(name: str) -> str:
    """Return a name in the form for comparison. Only ASCII is lowercased, because some other letters become ASCII."""
    return name.lower() if name.isascii() else name
