"""Patterns of names and URIs, and the text in which a URI is compared with them.

In a pattern, ``*`` is any text, and ``?`` any character. Case matters, except in the scheme and host of a URI, and in
the URI of a file on a Windows drive.
"""

import ipaddress
import re
from collections.abc import Callable
from contextlib import suppress
from fnmatch import translate
from functools import lru_cache
from itertools import accumulate
from urllib.parse import unquote

from millstream._protocol.compose import compose, has_long_runs
from millstream._protocol.uri import find_problem, normalize_uri

_MAX_MATCHERS = 16_384
_MAX_DECODINGS = 4
_MAX_KEYS = 1024
_MAX_LONG_KEYS = 64
_MAX_LETTERS = 1024
"""Maximum length of a URI with characters outside ASCII that's compared with rules. Some become 18 others."""
_MAX_URI = 8192
_BROWSER_SCHEMES = frozenset(("ftp", "http", "https", "ws", "wss"))
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
_DRIVE = re.compile(r"file:/*[a-z][:|]", re.IGNORECASE)
_ODD_NAME = re.compile(r"[:|]|[. ]([/\\]|$)")
"""Names of files on Windows that mean others: streams, and names that end with a period or space."""
_SHORT_NAME = re.compile(r"[^~]+~\d+")
_LONGEST_SHORT_NAME = 8
_DEVICE = re.compile(r"[/\\]{2}[?.][/\\]")
_ODD_BYTES = re.compile(r"\0|%c[01]%[89ab][0-9a-f]|%25(?:2[3af]|3f|5c)", re.IGNORECASE)
"""A null character, bytes that valid UTF-8 doesn't contain, which some decoders take for ASCII, and delimiters that are
encoded twice.
"""
_ENCODED_DELIMITER = re.compile("%(?=2[35af]|3f|5c)", re.IGNORECASE)
_DOTS = re.compile(r"[/\\]\.{1,2}(?=[/\\;?#&%]|$)")
_ODD_PLACE = re.compile(
    r"[^:/?#%]*+%|[^:]*+:(?:/*+[;?#]|/?%(?:2f|5c)|//(?:[^/?#%]|%(?!2[3f]|3[af]|40|5c))*+(?:%|[?#][^/]*@))"
    r"|file://(?:[a-z](?:[:|]|%7c)|[^/?#]*+[?#])",
    re.IGNORECASE,
)
"""A scheme and host that are others once they're decoded."""
_ODD_BESIDE_DOTS = re.compile(r"//|[^!-~]|[%;@\\]")
_PLACE = re.compile(r"(//)?((?(1)[^/?#]*))((?s:.*))")
_SLASHES = str.maketrans(dict.fromkeys("\\\u2044\u2215\u2216\u29f5\u29f8", "/"))
"""Backslashes, and characters that Windows converts to slashes for programs that don't use Unicode."""


Matcher = Callable[[str], re.Match[str] | None]


@lru_cache(_MAX_MATCHERS)
def matcher(patterns: tuple[str, ...], *, of_keys: bool = False) -> Matcher:
    """Return a function that returns a false value for text that none of the patterns matches.

    Args:
        patterns: The patterns. Those of URIs are also compared in normal form.
        of_keys: Whether to compare them with keys (see `uri_key`).
    """
    every = dict.fromkeys((*patterns, *map(normalize_uri, patterns), *(map(_pattern_key, patterns) if of_keys else ())))
    literal = (each.replace("[", "[[]") for each in every)  # `fnmatch` also has sets of characters
    source = "|".join(map(translate, literal)) or "(?!)"
    exact, folded = re.compile(source).match, re.compile(source, re.IGNORECASE).match
    # Windows, which has drives, ignores case.
    return lambda text: (folded if _DRIVE.match(text) else exact)(text)


def uri_key(uri: str, *, is_listed: bool = False) -> str:
    """Return the text that's compared instead of a URI, or an empty string if programs read the URI differently.

    Browsers and servers of the official SDKs drop line breaks and spaces around a URI, take a backslash for a slash,
    add missing slashes, and know several notations of a host (https://url.spec.whatwg.org/#concept-basic-url-parser).
    Others decode a URI again, decode invalid UTF-8, or convert wide characters. Send the URI as it came.

    Args:
        uri: The URI, or a template.
        is_listed: Whether an upstream lists it, so that it means that item, however it's written.
    """
    if len(uri) > _MAX_URI:
        return ""
    return (_remembered if len(uri) <= _MAX_LETTERS else _remembered_long)(uri, is_listed)


def _find_key(uri: str, is_listed: bool) -> str:
    if not (_is_bounded(uri) and uri.isprintable() and _has_plain_host(uri) and (is_listed or not find_problem(uri))):
        return ""
    text, raw = normalize_uri(uri), uri
    if any(map(_ODD_PLACE.match, (uri, text))) or _has_odd_dots(uri):
        return ""
    for _ in range(_MAX_DECODINGS):
        if _ODD_BYTES.search(raw) or (not is_listed and _is_odd_path(_without_file_host(raw.replace("\\", "/")))):
            return ""
        before, text, raw = (text, raw), without_hidden(unquote(text)), unquote(raw)
        if not (_is_bounded(text) and _is_bounded(raw)):
            return ""
        if before == (text, raw):
            key = _fold(text)
            slashes = raw.count("/") if raw.isascii() else without_hidden(raw).translate(_SLASHES).count("/")
            has_wide_slashes = slashes != raw.count("/") and not is_listed
            return "" if _DOTS.search(key) or has_wide_slashes else key
    return ""


_remembered = lru_cache(_MAX_KEYS)(_find_key)
_remembered_long = lru_cache(_MAX_LONG_KEYS)(_find_key)  # one message asks several times


def _is_bounded(text: str) -> bool:
    """Return whether text can be compared in linear time."""
    return len(text) <= (_MAX_URI if text.isascii() else _MAX_LETTERS) and not has_long_runs(text)


def _fold(text: str) -> str:
    """Return decoded text in lower case up to its path, with single slashes."""
    scheme, colon, rest = text.translate(_SLASHES).partition(":")
    scheme = scheme.lower()
    start, host, path = _PLACE.findall(rest)[0]
    if scheme == "file" and not start:
        start = "//"
    return f"{scheme}{colon}{start}{host.lower()}{re.sub('//+', '/', path)}"


def _pattern_key(pattern: str) -> str:
    """Return a pattern for keys. Encoded delimiters and wildcards stay encoded."""
    return _fold(without_hidden(unquote(_ENCODED_DELIMITER.sub("%25", normalize_uri(pattern)))))


def key_forms(key: str) -> list[str]:
    """Return a key, and what's left of it for programs that ignore a fragment, user information, the host of a file,
    parameters of a path, or a slash at the end.
    """
    bare = key.partition("#")[0].rstrip("?")
    found = [key, bare]
    for each in dict.fromkeys((key, bare)):
        scheme, separator, rest = re.sub(r";[^/?#]*", "", each).partition("://")
        host, slash, path = rest.partition("/")
        if scheme == "file":
            path, whole = (re.split("[?#]", one, maxsplit=1)[0] for one in (path, rest.lstrip("/")))
            found += [f"file:///{path}", f"file:///{whole}"]
        else:
            found.append(f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}")
    return list(dict.fromkeys((*found, *(each.rstrip("/") for each in found))))


def path_and_parts(key: str) -> tuple[str, frozenset[str]]:
    """Return the path in a key, and the parts that follow it, without case. Windows ignores a period at the end."""
    path, *parts = re.split("[?#;&]", key.casefold())
    return path.rstrip("./"), frozenset(filter(None, parts))


def _has_odd_dots(uri: str) -> bool:
    """Return whether a URI has dot segments that some programs resolve differently, or together with the host."""
    text = re.sub("%2e", ".", uri, flags=re.IGNORECASE)
    if _DOTS.search(text) is None:
        return False
    rest = text.partition(":")[2].removeprefix("//")
    depths = accumulate({"..": -1, ".": 0}.get(each, 1) for each in rest.partition("/")[2].split("/"))
    return _ODD_BESIDE_DOTS.search(rest.lstrip("/")) is not None or min(depths) < 0


def _has_plain_host(uri: str) -> bool:
    """Return whether each program finds the same host in a URI with a scheme that browsers know."""
    scheme, _, rest = uri.partition(":")
    if scheme.lower() not in _BROWSER_SCHEMES:
        return True
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


def without_hidden(text: str) -> str:
    """Return text without width and invisible characters. It may end at a null character."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    shown = "".join(each for each in text if each == "\0" or (each.isprintable() and not each.isspace()))
    return compose("NFKC", shown)
