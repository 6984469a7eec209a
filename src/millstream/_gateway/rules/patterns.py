"""Patterns of names and URIs, and every spelling of a URI that an upstream may treat as the same resource.

Patterns are case-sensitive: ``*`` is any text, ``?`` any character.
"""

import ipaddress
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from fnmatch import translate
from functools import lru_cache
from itertools import accumulate
from urllib.parse import unquote

from millstream._protocol.compose import compose, has_long_runs
from millstream._protocol.uri import find_problem, normalize_uri

_MAX_MATCHERS = 16_384
_MAX_URI_FORMS = 4
_MAX_LETTERS = 1024
"""Maximum length of a URI with characters outside ASCII that's compared with rules. Some become 18 others."""
_BROWSER_SCHEMES = frozenset(("ftp", "http", "https", "ws", "wss"))
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
_DRIVE = re.compile(r"file:/*[a-z][:|]", re.IGNORECASE)
_ODD_NAME = re.compile(r"[:|]|[. ]([/\\]|$)")
"""Names of files on Windows that mean others: streams, and names that end with a period or space."""
_SHORT_NAME = re.compile(r"[^~]+~\d+")
_LONGEST_SHORT_NAME = 8
_DEVICE = re.compile(r"[/\\]{2}[?.][/\\]")
_OVERLONG = re.compile("%c[01]%[89ab][0-9a-f]", re.IGNORECASE)
"""Bytes that valid UTF-8 doesn't contain. Some decoders take them for ASCII."""
_SLASHES = str.maketrans(dict.fromkeys("\u2044\u2215\u2216\u29f5\u29f8", "/"))
"""Characters that Windows converts to slashes for programs that don't use Unicode."""


Matcher = Callable[[str], re.Match[str] | None]


@lru_cache(_MAX_MATCHERS)
def matcher(patterns: tuple[str, ...]) -> Matcher:
    """Return a function that returns a false value for text that none of the patterns matches."""
    # Patterns of URIs are also compared in normal form.
    every = dict.fromkeys((*patterns, *map(normalize_uri, patterns)))
    literal = (each.replace("[", "[[]") for each in every)  # `fnmatch` also has sets of characters
    source = "|".join(map(translate, literal)) or "(?!)"
    exact, folded = re.compile(source).match, re.compile(source, re.IGNORECASE).match
    # Windows, which has drives, ignores case.
    return lambda text: (folded if _DRIVE.match(text) else exact)(text)


def is_unmistakable(uri: str) -> bool:
    """Return whether a URI has one meaning for programs that parse it as browsers do, and for those that don't.

    Browsers drop line breaks and spaces around a URI, take a backslash for a slash, add missing slashes, and know
    several notations of a host (https://url.spec.whatwg.org/#concept-basic-url-parser). So do servers of the official
    SDKs. Others cut parameters from a path, decode invalid UTF-8, or convert wide characters.
    """
    if not uri.isprintable() or find_problem(uri):
        return False
    for each in spellings(uri):
        if (
            not is_comparable(each)
            or "\0" in each
            or _OVERLONG.search(each)
            or _is_odd_path(_without_file_host(each))
            or _segments(each) != _segments(_fold(each))
        ):
            return False
    scheme, _, rest = uri.partition(":")
    if scheme.lower() not in _BROWSER_SCHEMES:
        # Some programs resolve dot segments together with the host.
        return scheme.lower() == "file" or not any(map(_climbs, spellings(uri)))
    place = re.split("[/?#]", rest[2:], maxsplit=1)[0].rpartition("@")[2].lower()
    host = place if place.endswith("]") else re.sub(r":\d*$", "", place)
    if host.startswith("[") or _NUMBER.fullmatch(host.rpartition(".")[2]):
        with suppress(ValueError):
            address = ipaddress.ip_address(host.strip("[]"))
            return str(address) == host.strip("[]") and not getattr(address, "ipv4_mapped", None)
        return False
    return not host.endswith(".") and "%" not in host and compose("NFKC", host) == host


def _is_odd_path(uri: str) -> bool:
    """Return whether a URI has another spelling of a path on Windows, such as one relative to a drive's folder."""
    if (drive := _DRIVE.match(uri)) is not None:
        rest = uri[drive.end() :]
        stems = [each.partition(".")[0] for each in re.split(r"[/\\]", rest)]
        if (
            drive[0].endswith("|")
            or not rest.startswith(("/", "\\"))
            or _ODD_NAME.search(rest)
            or any(len(each) <= _LONGEST_SHORT_NAME and _SHORT_NAME.fullmatch(each) for each in stems)
        ):
            return True
    return uri[:5].lower() == "file:" and _DEVICE.search(uri) is not None


def _without_file_host(uri: str) -> str:
    return f"file:///{uri[7:].partition('/')[2]}" if uri[:7].lower() == "file://" else uri


def _fold(uri: str) -> str:
    return re.sub(r";[^/\\?#]*", "", without_hidden(uri).translate(_SLASHES))


def _segments(uri: str) -> list[str]:
    """Return the dot segments of a URI in their places."""
    return [each if each in (".", "..") else "" for each in re.split(r"[/\\]", uri)]


def _climbs(uri: str) -> bool:
    """Return whether the dot segments of a URI leave its host."""
    depths = accumulate(
        {"..": -1, ".": 0, "": 0}.get(each, 1) for each in re.split(r"[/\\]", uri.partition("://")[2])[1:]
    )
    return min(depths, default=0) < 0


def folded_forms(uris: Collection[str]) -> list[str]:
    """Return what's left of URIs for programs that ignore user information, the host of a file, parameters of a path,
    width, or invisible characters.
    """
    found: list[str] = []
    for uri in map(_without_file_host, map(_fold, uris)):
        scheme, separator, rest = uri.partition("://")
        host, slash, path = rest.partition("/")
        found.append(f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}")
        if uri.startswith("file:"):
            found.append(re.split("[?#]", uri, maxsplit=1)[0])
    return [*found, *map(_without_dots, found)]


def uri_forms(uri: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Return every spelling of a URI that an upstream may treat as the same resource, without case, width, and
    invisible characters.

    Each has a path, and the parts that follow it: many upstreams ignore a query, a fragment, or the host of a file.
    Windows ignores a period at the end.
    """
    found = spellings(_without_hidden_in(uri), decode=lambda text: _without_hidden_in(unquote(text)))
    found += normal_forms(found)
    found += [_without_file_host(each) for each in found if each.startswith("file://")]
    return {each.casefold(): _split(each.casefold()) for each in found}


def _split(uri: str) -> tuple[str, frozenset[str]]:
    path, *parts = re.split(r"[?#;&\0]", uri)
    return _without_dots(path).rstrip("."), frozenset(filter(None, parts))


def is_comparable(uri: str) -> bool:
    """Return whether one spelling of a URI can be compared with rules in linear time."""
    return uri.isascii() or (len(uri) <= _MAX_LETTERS and not has_long_runs(uri))


def _without_hidden_in(uri: str) -> str:
    """Return a URI without width and invisible characters, or an empty string if it isn't comparable."""
    return without_hidden(uri) if is_comparable(uri) else ""


def without_hidden(text: str) -> str:
    """Return text without width and invisible characters. It may end at a null character."""
    shown = "".join(each for each in text if each == "\0" or (each.isprintable() and not each.isspace()))
    return compose("NFKC", shown)


def canonical_uri(uri: str) -> str:
    """Return the one spelling of a URI: its normal form, decoded."""
    plain = normalize_uri(_without_hidden_in(uri))
    last = spellings(plain, decode=lambda text: _without_hidden_in(unquote(text)))[-1]
    return (normal_forms([last]) or [last])[0]


def spellings(uri: str, decode: Callable[[str], str] = unquote) -> list[str]:
    """Return a URI with its decoded and dot-resolved variants."""
    found = [uri]
    for _ in range(_MAX_URI_FORMS):
        decoded = decode(found[-1])
        if decoded == found[-1]:
            break
        found.append(decoded)
    else:
        found.append("")  # repeatedly encoded: passes only a policy that allows everything
    return list(dict.fromkeys(form for each in found for form in (each, _without_dots(each))))


def normal_forms(uris: Collection[str]) -> list[str]:
    """Return the normal forms of URIs (see `normalize_uri`), encoded and decoded, and file URIs in one form, which some
    have by mistake.
    """
    found: list[str] = []
    for uri in uris:
        scheme, colon, rest = uri.partition(":")
        scheme = scheme.lower()
        host, slash, path = rest.removeprefix("//").partition("/") if rest.startswith("//") else ("", "", "")
        if scheme == "file":
            own = host.lower() in ("", "localhost") and bool(slash)
            path = path if own else rest.lstrip("/")
            found.append(f"file:///{path.lstrip('/')}")
        elif slash:
            found.append(f"{scheme}://{host.lower()}/{path}")
        else:
            found.append(f"{scheme}{colon}{rest}")
        found += [normal := normalize_uri(uri), unquote(normal)]
    return list(dict.fromkeys(each for each in found if each not in uris))


def _without_dots(uri: str) -> str:
    scheme, separator, rest = uri.replace("\\", "/").partition("://")
    path = rest if separator else scheme
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[max(1, len(parts) - 1) :]
        elif part not in (".", "") or not parts:
            parts.append(part)
    return f"{scheme}{separator}{'/'.join(parts)}" if separator else "/".join(parts)
