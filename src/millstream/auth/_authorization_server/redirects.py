"""Redirect URIs: which a client may have, and which of them a request names (RFC 8252, RFC 9700 §2.1).

A URI is compared as a string. Only the port of a loopback address is free, since a program takes the one it gets.

An app's own scheme should be a domain name in reverse (RFC 8252 §7.1), but editors register a plain word with a host
behind it: ``cursor://anysphere.cursor-mcp/oauth/callback``, ``vscode://publisher.extension/callback``. Neither proves
who owns it, so both are treated alike: the person is always asked, and PKCE makes a code that was caught worthless.
"""

import re
from urllib.parse import SplitResult, parse_qsl, urlsplit

LOOPBACK = ("127.0.0.1", "[::1]", "localhost")
_MAX = 2000
_SCHEME = re.compile(r"[a-z][a-z0-9+-]*(\.[a-z0-9+-]+)+")
"""A private-use scheme that is the reverse of a domain name (RFC 8252 §7.1)."""
_WORD = re.compile(r"[a-z][a-z0-9+-]{2,39}")
"""One that is a plain word, as editors have it."""
_LIKE_WEB = re.compile(r"s?h[tx]+ps?([^a-z].*)?|https?.*|.*https?|www\..*")
"""What a person could take for the web, or leads there: some browsers open ``x-safari-https://host`` as a page."""
_BROWSERS = frozenset((
    "about", "blob", "brave", "chrome", "chrome-extension", "content", "data", "devtools", "edge", "feed",
    "feeds", "file", "filesystem", "firefox", "firefox-focus", "firefox-private", "ftp", "ftps",
    "googlechrome", "googlechromes", "gopher", "ipfs", "ipns", "its", "jar", "javascript", "livescript", "mhtml",
    "mocha", "moz-extension", "opera", "res", "resource", "safari-extension", "vbscript", "view-source", "vivaldi",
    "ws", "wss", "wyciwyg",
))  # fmt: skip
"""What browsers read themselves: they run, show or fetch something, or open a page of any host."""
_SYSTEMS = frozenset((
    "afp", "android-app", "app-prefs", "app-settings", "apt", "bitcoin", "callto", "cid", "cifs", "dav", "ethereum",
    "facetime", "geo", "git", "hcp", "help", "imap", "intent", "ipp", "irc", "ircs", "itms", "jdbc", "jnlp", "jnlps",
    "ldap", "ldapi", "ldaps", "macappstore", "magnet", "mailto", "maps", "market", "mid", "mms", "news",
    "nfs", "nntp", "otpauth", "payto", "pop", "powershell", "prefs", "rdp", "rlogin", "rtsp", "search", "search-ms",
    "secondlife", "sftp", "shell", "shortcuts", "sip", "sips", "skype", "smb", "sms", "ssh", "steam", "svn", "tel",
    "telnet", "telnets", "tftp", "tn3270", "udp", "upi", "urn", "vnc", "webcal", "wsl", "x-man-page",
    "xmpp",
))  # fmt: skip
"""What leads to something that the system, or any program, does with what it is given."""
_BEGINNINGS = ("ms-", "microsoft-", "web+", "ext+", "itms", "x-apple", "res+", "view-")
"""What schemes of a system or browser begin with."""
_ANSWERS = frozenset(("code", "state", "iss", "error", "error_description", "error_uri", "response"))
"""Parameters of an answer: in a client's own address, they would be there twice, and many take the first."""
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
    if _ANSWERS & {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}:
        raise ValueError("The query of a redirect URI has none of the names of an answer, such as code or state.")
    if parts.scheme in ("http", "https"):
        authority = _AUTHORITY.fullmatch(parts.netloc)
        if authority is None:
            raise ValueError("A redirect URI has a plain host name, without a user name.")
        if parts.scheme == "http" and authority[1].lower() not in LOOPBACK:
            raise ValueError("A redirect URI is https, or http of a loopback address.")
        if parts.scheme == "http" and native is False:
            raise ValueError("The redirect URI of a web application is https.")
    elif not _is_of_app(parts):
        raise ValueError(
            "A redirect URI is https, http of a loopback address, or has the scheme of an app, such as "
            "com.example.app:/back or editor://name/back."
        )
    elif native is False:
        raise ValueError("The redirect URI of a web application is https.")


def _is_of_app(parts: SplitResult) -> bool:
    """Whether a URI opens an app by a scheme of its own, and nothing else."""
    scheme = parts.scheme
    if scheme in _BROWSERS | _SYSTEMS or scheme.startswith(_BEGINNINGS) or _LIKE_WEB.fullmatch(scheme):
        return False
    if _SCHEME.fullmatch(scheme):
        return True
    return bool(_WORD.fullmatch(scheme) and _AUTHORITY.fullmatch(parts.netloc))


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
    try:
        check_redirect(uri)
    except ValueError:
        return ""
    if not is_loopback(uri):
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


def is_app(uri: str) -> bool:
    """Whether it opens an app by a scheme of its own."""
    return urlsplit(uri).scheme not in ("http", "https")


def shown_host(uri: str) -> str:
    """Where the person is sent, in few words."""
    parts = urlsplit(uri)
    if not is_app(uri):
        return parts.netloc
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else f"{parts.scheme}:"
