"""Redirect URIs: which a client may have, and which of them a request names (RFC 8252, RFC 9700 §2.1).

A URI is compared as a string. Only the port of a loopback address is free, since a program takes the one it gets.
"""

import re
from urllib.parse import SplitResult, urlsplit

LOOPBACK = ("127.0.0.1", "[::1]", "localhost")
_MAX = 2000
_SCHEME = re.compile(r"[a-z][a-z0-9+-]*(\.[a-z0-9+-]+)+")
"""A private-use scheme: the reverse of a domain name (RFC 8252 §7.1), so that it belongs to somebody."""
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


def check_redirect(uri: str, *, native: bool | None = None) -> None:
    """See whether a client may have this.

    Args:
        uri: what it names.
        native: whether it says that it runs on the person's device; None where it says nothing.

    Raises:
        ValueError: it must not; the text says why.
    """
    parts = _split(uri)
    if parts.scheme in ("http", "https"):
        authority = _AUTHORITY.fullmatch(parts.netloc)
        if authority is None:
            raise ValueError("A redirect URI has a plain host name, without a user name.")
        if parts.scheme == "http" and authority[1].lower() not in LOOPBACK:
            raise ValueError("A redirect URI is https, or http of a loopback address.")
        if parts.scheme == "http" and native is False:
            raise ValueError("The redirect URI of a web application is https.")
    elif not _SCHEME.fullmatch(parts.scheme):
        raise ValueError(
            "A redirect URI is https, http of a loopback address, or has a scheme such as com.example.app."
        )
    elif native is False:
        raise ValueError("The redirect URI of a web application is https.")


def _split(uri: str) -> SplitResult:
    if not 0 < len(uri) <= _MAX or not uri.isascii() or not uri.isprintable() or re.search(r"[\s\"'<>\\^`{|}*#]", uri):
        raise ValueError("A redirect URI is a URI of up to 2000 characters, without a fragment or wildcard.")
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        raise ValueError("A redirect URI is a URI.") from None
    return parts


def is_loopback(uri: str) -> bool:
    """Whether it leads to a program on the person's own machine by http."""
    parts = urlsplit(uri)
    return parts.scheme == "http" and _host(parts) in LOOPBACK


def is_identified(uri: str) -> bool:
    """Whether only the owner of a name gets what is sent there. Any program can listen on a port or take a scheme."""
    return urlsplit(uri).scheme == "https"


def named_by(registered: tuple[str, ...], asked: str) -> bool:
    """Whether a request may name this one."""
    return any(asked == each or _portless(asked) == _portless(each) != "" for each in registered)


def _portless(uri: str) -> str:
    """A loopback URI without its port; empty for others."""
    if not is_loopback(uri):
        return ""
    try:
        check_redirect(uri)
    except ValueError:
        return ""
    parts = urlsplit(uri)
    return f"{_host(parts)} {uri[len('http://') + len(parts.netloc) :]}"


def _host(parts: SplitResult) -> str:
    match = _AUTHORITY.fullmatch(parts.netloc)
    return match[1].lower() if match else ""


def form_target(uri: str) -> str:
    """What a Content-Security-Policy calls the place where a form may end up."""
    parts = urlsplit(uri)
    # A policy has no notation for IPv6 addresses.
    web = parts.scheme in ("http", "https") and not parts.netloc.startswith("[")
    return f"{parts.scheme}://{parts.netloc}" if web else f"{parts.scheme}:"


def shown_host(uri: str) -> str:
    """Where the person is sent, in few words."""
    parts = urlsplit(uri)
    return parts.netloc if parts.scheme in ("http", "https") else f"{parts.scheme}:"
