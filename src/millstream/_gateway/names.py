"""Names and URIs of upstream items as clients of the gateway see them."""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

from millstream._protocol.compose import compose
from millstream._protocol.uri_template import UriTemplate
from millstream._server.features.tools import PROPERTY_NAME
from millstream.protocol import MALFORMED, ORIGIN_KEY, Json, is_array, members

_MAX_DEPTH, _MAX_NAME = 8, 64
PREFIX = re.compile(r"[A-Za-z0-9_.-]{0,64}")
"""Allowed prefixes."""
PREFIX_RULE = "use up to 64 ASCII letters, digits, underscores, hyphens and dots"
_SEPARATOR = "://"
_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*:")
_KINDS_WITH_URI = ("resources", "templates")


_CAPITALS = str.maketrans("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧАВЕКМНОРСТУХІЈЅ", "ABEZHIKMNOPTYXABEKMHOPCTYXIJS")  # noqa: RUF001  alike
_LETTERS = str.maketrans(
    "аеорсхуіјѕһԁԛԝкмтвнгпьӏαοριντκυχγηωμβεօսոհıɑɡ0i1",  # noqa: RUF001  as above
    "aeopcxyljshdqwkmtbhrnblaoplvtkuxynwubeounhlagoll",
)


def fold(name: str) -> str:
    """Return a name without details that readers overlook: case, width, accents, separators, and look-alike letters."""
    text = compose("NFKC", name).translate(_CAPITALS).casefold()
    return "".join(filter(str.isalnum, compose("NFD", text))).translate(_LETTERS) or text


def unused_name(name: str, taken: Collection[str]) -> str:
    """Return a name, with a number if it's taken. The number is nearly always the first free one, without trying all
    smaller ones."""
    if name not in taken:
        return name
    step = next(step for step in map(partial(pow, 2), count()) if f"{name}_{1 + step}" not in taken)
    return f"{name}_{2 + bisect_left(range(2, 1 + step), 1, key=lambda n: f'{name}_{n}' not in taken)}"


def ascii_name(text: str, allowed: str) -> str:
    """Return a name for a text: without accents, and with an underscore for each character outside a set."""
    plain = compose("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(f"[^{allowed}]+", "_", plain).strip("_")


def fit_name(name: str) -> str:
    """Return a tool's name as the APIs of models accept it. A rejected name is cut and gets a hash of the whole, so
    that other tools don't change it.
    """
    if _FITTING_NAME.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{ascii_name(name, 'A-Za-z0-9_-')[:55] or 'tool'}_{digest[:8]}"


_FITTING_NAME = re.compile("[A-Za-z0-9_-]{1,64}")


def safe_names(schema: object, hidden: Collection[str] = ()) -> dict[str, str]:
    """Return replacements for argument names that some models' APIs reject: replacement -> the tool's own name.

    Args:
        schema: The tool's input schema.
        hidden: Arguments that callers don't see.
    """
    properties = members(members(schema).get("properties"))
    found: dict[str, str] = {}
    taken = set(properties)
    for own in properties:
        if own not in hidden and not PROPERTY_NAME.fullmatch(own):
            name = unused_name(ascii_name(own, "A-Za-z0-9_.-")[:60] or "value", taken)
            taken.add(name)
            found[name] = own
    return found


def with_safe_names(schema: Json, names: Mapping[str, str]) -> Json:
    """Return a tool's input schema with replaced argument names.

    Args:
        names: The result of `safe_names`.
    """
    if not names:
        return schema
    safe = {own: name for name, own in names.items()}
    changed = {**schema, "properties": {safe.get(own, own): each for own, each in schema["properties"].items()}}
    if is_array(schema.get("required")):
        changed["required"] = [safe.get(own, own) for own in schema["required"]]
    return changed


def with_origin(meta: object, upstream: str) -> Json:
    """Return an upstream's `_meta` with its origin added. An upstream can't claim another origin, because its own
    entries are only appended to its name, as for a gateway.
    """
    found = members(meta)
    inner = found.get(ORIGIN_KEY)
    path = [each[:_MAX_NAME] for each in inner if isinstance(each, str)] if is_array(inner) else []
    return {**found, ORIGIN_KEY: [upstream, *path][:_MAX_DEPTH]}


class Names:
    """The names of one upstream. Without a prefix, they are unchanged.

    A prefix is added to names (``files_read``) and to URIs (``file://files/…``, ``files+urn:…``). Both can be reversed
    without a table, so any worker can resolve names that another one listed.
    """

    def __init__(self, prefix: str) -> None:
        """Create the mapping.

        Args:
            prefix: Prefix of names, or empty for none.
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

    def uri(self, uri: str) -> str:
        """Return the URI of a resource or template for clients of the gateway."""
        if not self.prefix:
            return uri
        scheme, separator, rest = uri.partition(_SEPARATOR)
        if separator:
            return f"{scheme}{self._in_uri}{rest}"
        # Some clients reject a list that has a URI without a scheme.
        return f"{self._scheme}{uri}" if _SCHEME.match(uri) else f"{self._scheme}:{uri}"

    def qualify(self, kind: str, name: str) -> str:
        """Return an item's name or URI for clients of the gateway."""
        return self.uri(name) if kind in _KINDS_WITH_URI else self._name + name

    def original(self, kind: str, name: str) -> str | None:
        """Return the upstream's own name or URI of an item, or None if the item isn't one of this upstream."""
        if kind in _KINDS_WITH_URI:
            return self.original_uri(name)
        return name.removeprefix(self._name) if name.startswith(self._name) else None

    def original_uri(self, uri: str) -> str | None:
        """Return the upstream's own URI, or None if the URI isn't one of this upstream."""
        if not self.prefix:
            return uri
        scheme, separator, rest = uri.partition(self._in_uri)
        if separator and _SEPARATOR not in scheme:
            return f"{scheme}{_SEPARATOR}{rest}"
        # A URI with an authority carries the prefix there, so no two upstreams claim the same one.
        if _SEPARATOR in uri or not uri.startswith(self._scheme):
            return None
        return uri[len(self._scheme) :].removeprefix(":")


class MatchedUri(dict[str, Any]):
    """The variables of a URI, and the URI in the upstream's spelling."""

    uri: str = ""


class UpstreamPattern:
    """The URI pattern of a template on this server."""

    def __init__(self, uri: str) -> None:
        """See `UriTemplate`; a malformed template matches nothing."""
        self.variables: tuple[str, ...] = ()
        self._template: UriTemplate | None = None
        self._start = uri.partition("{")[0]
        with suppress(*MALFORMED):
            self._template = UriTemplate(uri)
            self.variables = self._template.variables

    def match(self, uri: str) -> Json | None:
        """See `Pattern`."""
        template = self._template
        found = None if template is None else template.match(uri)
        if template is None or found is None:
            return None
        matched = MatchedUri(found)
        matched.uri = uri
        if not uri.startswith(self._start):
            matched.uri = self._start + template.expand(found)[len(UriTemplate(self._start).expand({})) :]
        return matched
