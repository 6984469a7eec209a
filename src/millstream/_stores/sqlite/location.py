"""Parsing of ``sqlite:///relative.db`` and ``sqlite:////absolute.db`` URLs, with their durability option."""

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

from millstream._protocol.errors import LocalError

_SHAPE = "Use sqlite:///file.db for a file in the working directory, or sqlite:////folder/file.db for an absolute path."


class Location(Struct, frozen=True):
    """The parts of a URL."""

    path: Path
    """The absolute path of the file."""
    full: bool = False
    """Whether acknowledged writes survive a power loss. If not, they survive only the end of the process."""

    @property
    def url(self) -> str:
        """The normalized URL, independent of the working directory."""
        return f"sqlite:///{self.path.as_posix().replace('%', '%25').replace('?', '%3F').replace('#', '%23')}" + (
            "?durability=full" if self.full else ""
        )


def locate(url: str) -> Location:
    """Parse a URL.

    Raises:
        LocalError: the URL is invalid. The message doesn't repeat parts that may be a password.
    """
    parts = urlsplit(url)
    if parts.netloc:
        raise LocalError(f"The URL of a SQLite file must have three slashes. {_SHAPE}")
    name = unquote(parts.path[1:])
    if not name or name.endswith("/") or "\0" in name:
        raise LocalError(f"The URL has no file name. {_SHAPE}")
    full = False
    for option, value in parse_qsl(parts.query, keep_blank_values=True):
        if option != "durability" or value not in ("normal", "full"):
            raise LocalError(
                "The only option of a SQLite store is ?durability=normal (acknowledged data survives a crash of "
                "the program) or ?durability=full (it survives a power loss)."
            )
        full = value == "full"
    return Location(Path(name).absolute(), full)
