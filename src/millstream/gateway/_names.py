"""Mapping between an upstream's names and URIs and those that clients of the gateway see.

A prefix is added to names (``files_read``) and to URIs (``file://files/…``, ``files+urn:…``). Both can be reversed
without a table, so any worker can resolve names that another one listed.
"""

import re
import unicodedata
from typing import Any

from millstream._protocol.json_schema import is_array, members
from millstream._protocol.metadata import ORIGIN_KEY

_MAX_DEPTH, _MAX_NAME = 8, 64
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{0,64}")
PREFIX_RULE = "use up to 64 ASCII letters, digits, underscores, hyphens and dots"
_SEPARATOR = "://"


def is_prefix(text: str) -> bool:
    """Return whether every client can call tools whose names begin with this text."""
    return _PREFIX.fullmatch(text) is not None


_CAPITALS = str.maketrans("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧАВЕКМНОРСТУХІЈЅ", "ABEZHIKMNOPTYXABEKMHOPCTYXIJS")  # noqa: RUF001  alike
_LETTERS = str.maketrans(
    "аеорсхуіјѕһԁԛԝкмтвнгпьӏαοριντκυχγηωμβεօսոհıɑɡ0i1",  # noqa: RUF001  as above
    "aeopcxyljshdqwkmtbhrnblaoplvtkuxynwubeounhlagoll",
)


def fold(name: str) -> str:
    """Return a name without what readers overlook: case, width, accents, separators, and letters of other scripts."""
    text = unicodedata.normalize("NFKC", name).translate(_CAPITALS).casefold()
    return "".join(filter(str.isalnum, unicodedata.normalize("NFD", text))).translate(_LETTERS) or text


def with_origin(meta: object, upstream: str) -> dict[str, Any]:
    """Return the `_meta` of something that an upstream sent, with its origin.

    An upstream can't claim another origin: what it writes there only extends its own name, as a gateway does.
    """
    found = members(meta)
    inner = found.get(ORIGIN_KEY)
    path = [each[:_MAX_NAME] for each in inner if isinstance(each, str)] if is_array(inner) else []
    return {**found, ORIGIN_KEY: [upstream, *path][:_MAX_DEPTH]}


class Names:
    """The names of one upstream. Without a prefix, they are unchanged."""

    def __init__(self, prefix: str) -> None:
        """Create the mapping.

        Args:
            prefix: prefix of names; empty for none.
        """
        self.prefix: str = prefix
        self._name = f"{prefix}_" if prefix else ""
        self._in_uri = f"{_SEPARATOR}{self.host}/" if prefix else ""
        self._scheme = f"{self.host}+" if prefix else ""

    @property
    def host(self) -> str:
        """The prefix in the form used in URIs, unique among upstreams.

        It survives URI normalization by clients: hosts have no upper case, and schemes no underscores.
        """
        host = self.prefix.lower().replace("_", "-")
        return host if not host or host[0].isalpha() else f"u{host}"

    def name(self, name: str) -> str:
        """Return the name of a tool or prompt for clients of the gateway."""
        return self._name + name

    def uri(self, uri: str) -> str:
        """Return the URI of a resource or template for clients of the gateway."""
        if not self.prefix:
            return uri
        scheme, separator, rest = uri.partition(_SEPARATOR)
        return f"{scheme}{self._in_uri}{rest}" if separator else f"{self._scheme}{uri}"

    def has(self, name: str) -> bool:
        """Return whether a name belongs to this upstream, by its prefix."""
        return name.startswith(self._name)

    def original_uri(self, uri: str) -> str | None:
        """Return the upstream's own URI, or None if the URI isn't one of this upstream."""
        if not self.prefix:
            return uri
        scheme, separator, rest = uri.partition(self._in_uri)
        if separator and _SEPARATOR not in scheme:
            return f"{scheme}{_SEPARATOR}{rest}"
        # A URI with an authority carries the prefix there, so no two upstreams claim the same one.
        has_prefix = _SEPARATOR not in uri and uri.startswith(self._scheme)
        return uri[len(self._scheme) :] if has_prefix else None
