"""Who may sign in by an upstream, as the operator says: ``allow=["@example.com"]``, or ``["*"]`` for everybody.

An upstream gives the names that it vouches for, such as a verified e-mail address, its domain or a login. The first
entry that is one of them decides. Names are compared in ASCII lower case, and as a whole.
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
"""An e-mail address, or all those of a domain."""

Allow = Names | Mapping[str, Names]
"""Who may sign in; with the scopes that they may hand on to a client, or without any."""


class Entry(Struct, frozen=True):
    """By which somebody may sign in."""

    scopes: tuple[str, ...]
    number: float
    """Another one for another entry, other scopes, or another place to sign in."""


class Allowlist:
    """Those who may sign in."""

    def __init__(self, given: Allow, at: str, *, form: str, examples: str) -> None:
        """`at` is where they sign in, `form` is the pattern of an entry, and `examples` says what is possible.

        Raises:
            ValueError: nobody is named, or an entry is nothing that the upstream could say.
            TypeError: it's a text.
        """
        if isinstance(cast("object", given), str):
            raise TypeError(f"allow is a list: allow=[{given!r}]")
        if not given:
            raise ValueError(f"Say who may sign in: {examples}.")
        pairs = cast("Mapping[str, Names]", given if isinstance(given, Mapping) else dict.fromkeys(given, ()))
        self._entries: dict[str, Entry] = {}
        for name, scopes in pairs.items():
            if name != EVERYBODY and not re.fullmatch(form, name):
                raise ValueError(f"allow can't have {name!r}. Possible are {examples}.")
            if isinstance(cast("object", scopes), str):
                raise TypeError(f"The scopes of {name!r} are a list: [{scopes!r}]")
            self._entries[lower(name)] = _entry(at, lower(name), check_scopes(tuple(scopes)))
        self._numbers = {each.number for each in self._entries.values()}

    def find(self, names: Collection[str], shown: str) -> Entry:
        """The first entry that is one of the names; `shown` is what we call the person.

        Raises:
            SignInFailed: there's none.
        """
        known = {EVERYBODY, *map(lower, names)}
        for name, entry in self._entries.items():
            if name in known:
                return entry
        raise SignInFailed(f"{shown} may not sign in here. Use another account, or ask whoever runs this server.")

    def still(self, number: float) -> bool:
        """Whether the entry of this number is still there, with the same scopes."""
        return number in self._numbers

    def some(self, beginning: str = "", containing: str = "") -> bool:
        """Whether there are entries of a kind."""
        return any(each.startswith(beginning) and containing in each for each in self._entries)


def _entry(at: str, name: str, scopes: tuple[str, ...]) -> Entry:
    said = " ".join((at, name, *sorted(scopes))).encode()
    return Entry(scopes, float(int.from_bytes(sha256(said).digest()[:6])))  # 48 bits: exact in a float


def lower(name: str) -> str:
    """A name as it is compared. Letters beyond ASCII stay what they are: some become ASCII in lower case."""
    return name.lower() if name.isascii() else name
