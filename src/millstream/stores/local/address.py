"""Where the parent listens, as text for an environment variable; a worker takes it out, so no program that it starts
finds it.
"""

import os
from typing import Final

from msgspec import Struct

VARIABLE: Final = "_MILLSTREAM_PARENT"
"""Set by the supervisor for its workers."""


class Address(Struct, frozen=True):
    """A UNIX socket in a private folder or, where there are none, a port of the loopback address with a secret."""

    path: str = ""
    port: int = 0
    secret: str = ""

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"tcp:{self.port}:{self.secret}"


def parse(text: str) -> Address:
    """What `str` made of an address."""
    kind, _, rest = text.partition(":")
    if kind == "unix":
        return Address(path=rest)
    port, _, secret = rest.partition(":")
    return Address(port=int(port), secret=secret)


class _Known:
    """What this process was told."""

    address: Address | None = None


def parent() -> Address | None:
    """Where the parent of this worker holds the stores; None in a process that is nobody's worker."""
    text = os.environ.pop(VARIABLE, "")
    if text:
        _Known.address = parse(text)
    return _Known.address
