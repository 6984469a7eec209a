"""The atomic scripts that Redis runs. They are files of this package, and no values are ever inserted into them."""

from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).parent / "lua"


class Script(NamedTuple):
    """A script and its SHA-1 digest, by which Redis caches it."""

    text: bytes
    digest: str


@cache
def script(name: str) -> Script:
    """Return the script in the file of this name."""
    text = (_FOLDER / "shared.lua").read_bytes() + (_FOLDER / f"{name}.lua").read_bytes()
    return Script(text, sha1(text, usedforsecurity=False).hexdigest())
