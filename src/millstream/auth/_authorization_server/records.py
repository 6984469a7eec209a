"""Code that the authorization server's modules share: records, responses, parameters, and redirect URIs.

Client secrets, codes, and refresh tokens are stored only as SHA-256 hashes. They consist of 32 random bytes, so a plain
hash is sufficient.

Redirect URIs are checked when a client registers them and when a request uses them (RFC 8252, RFC 9700 §2.1). They're
compared as strings. Only the port of a loopback address can differ, because programs listen on any free port.

An app's private-use scheme should be a reversed domain name (RFC 8252 §7.1), but editors use a plain word followed by a
host: ``cursor://anysphere.cursor-mcp/oauth/callback``, ``vscode://publisher.extension/callback``. Neither proves
ownership, so the user is always asked for consent, and PKCE makes an intercepted code useless.
"""

import hmac
import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from msgspec import Struct

from millstream._http.message import JSON_HEAD, HttpRequest, Response, media_type
from millstream._protocol.jsonrpc import encode
from millstream._server.calls.vault import digest

CODE, REFRESH, CLIENT = "authorization_code", "refresh_token", "client_credentials"
"""Grant types (RFC 6749 §1.3)."""
METHODS = ("none", "client_secret_basic", "client_secret_post", "private_key_jwt")
"""Client authentication methods of the token endpoint (RFC 7591 §2)."""
CALLBACK = "/sign-in/callback/"
"""Path prefix of redirect URIs for other providers. The provider's name follows."""


class OAuthClient(Struct, frozen=True, omit_defaults=True):
    """A client: a program that requests tokens."""

    id: str
    name: str = ""
    redirect_uris: tuple[str, ...] = ()
    method: str = "none"
    """Client authentication method: ``none``, ``client_secret_basic``, ``client_secret_post``, or ``private_key_jwt``.
    """
    secret_hash: str = ""
    grant_types: tuple[str, ...] = (CODE, REFRESH)
    scopes: tuple[str, ...] = ()
    """Allowed scopes when the client acts for itself."""
    keys: Mapping[str, Any] | None = None
    """Public key set (RFC 7517), for ``private_key_jwt``."""
    keys_url: str = ""
    """URL of the key set, instead of `keys`."""
    source: str = "given"
    """Source of the client: configured by the operator (``given``), described at its URL (``document``), or
    ``registered``.
    """


class AuthorizationRequest(Struct, frozen=True, omit_defaults=True):
    """A valid authorization request."""

    client: str
    redirect_uri: str
    challenge: str
    resources: tuple[str, ...]
    scopes: tuple[str, ...] = ()
    state: bytes | None = None
    named_redirect: bool = True
    """Whether the request contained the redirect URI. If so, the token request can't use another one."""
    prompt: tuple[str, ...] = ()
    user: str | None = None
    """Subject of the user that the consent page names. Only this user may submit it."""

    @property
    def renewal(self) -> str:
        """The required prompt: ``login``, ``select_account``, both separated by a space, or empty (OpenID Connect Core
        §3.1.2.1).
        """
        return " ".join(each for each in ("login", "select_account") if each in self.prompt)


class Code(Struct, frozen=True, omit_defaults=True):
    """The record of an authorization code."""

    authorization: AuthorizationRequest
    id: str
    """Id of the grant."""
    grant: "Grant"
    """The grant that it can be exchanged for, without a refresh token."""
    until: float
    used: bool = False


class Grant(Struct, frozen=True, omit_defaults=True):
    """A user's permission for a client, until it's revoked."""

    client: str
    subject: str
    name: str
    login: str
    """Login method of the user."""
    scopes: tuple[str, ...]
    resources: tuple[str, ...]
    proof: str = ""
    """Hash of the secret in the refresh tokens, or empty without refresh tokens."""
    since: float = 0.0
    """`User.since` at the time of the grant."""
    generation: int = 0
    """Generation of the current refresh token."""
    rotated_at: float = 0.0


def fits(secret: str, kept: str) -> bool:
    """Return whether a secret matches its stored form."""
    return bool(kept) and hmac.compare_digest(digest(secret), kept)


NO_STORE = b"cache-control: no-store\r\npragma: no-cache\r\n"
MAX_FORM = 64 * 1024
_MAX_FIELDS = 40
_REPEATED = ("resource",)
"""Parameters that may be repeated (RFC 8707 §2)."""


class OAuthError(Exception):
    """An OAuth error (RFC 6749): a code for programs, and a description for people."""

    def __init__(self, error: str, text: str, status: int = 400, head: bytes = b"") -> None:
        super().__init__(text)
        self.error = error
        self.status = status
        self.head = head

    def response(self) -> Response:
        """Return the HTTP response."""
        return reply({"error": self.error, "error_description": str(self)}, self.status, self.head)


def reply(body: Mapping[str, Any], status: int = 200, head: bytes = b"") -> Response:
    """Return a JSON response that must not be cached."""
    return Response(encode(body), status, JSON_HEAD + NO_STORE + head)


class Parameters:
    """The parameters of a query or form."""

    def __init__(self, raw: bytes) -> None:
        """Parse the parameters. Bytes that aren't UTF-8 become surrogates.

        Raises:
            OAuthError: There are too many parameters.
        """
        text = raw.decode("utf-8", "surrogateescape")
        try:
            self._values = parse_qs(text, keep_blank_values=True, errors="surrogateescape", max_num_fields=_MAX_FIELDS)
        except ValueError:
            raise OAuthError("invalid_request", "There are too many parameters.") from None
        self.repeated = sorted(
            name for name, values in self._values.items() if len(values) > 1 and name not in _REPEATED
        )

    def get(self, name: str) -> str:
        """Return a parameter's value, or an empty string if it's missing or repeated (RFC 6749 §3.1)."""
        values = self._values.get(name, [])
        return values[0] if len(values) == 1 else ""

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def values(self) -> dict[str, str]:
        """Return the parameters that aren't repeated."""
        return {name: values[0] for name, values in self._values.items() if len(values) == 1}

    def all(self, name: str) -> tuple[str, ...]:
        """Return all nonempty values of a parameter."""
        return tuple(value for value in self._values.get(name, []) if value)


def form_of(request: HttpRequest) -> Parameters:
    """Parse the form in a request's body.

    Raises:
        OAuthError: The body isn't a form, is too large, or has a repeated parameter.
    """
    if media_type(request.headers) != b"application/x-www-form-urlencoded":
        raise OAuthError("invalid_request", "Send a form as application/x-www-form-urlencoded.", 415)
    if len(request.body) > MAX_FORM:
        raise OAuthError("invalid_request", "The form is too large.", 413)
    form = Parameters(request.body)
    if form.repeated:
        raise OAuthError("invalid_request", "A parameter is repeated.")
    return form


def see(url: str) -> Response:
    """Redirect the browser to GET a URL, whatever the current method (RFC 9700 §4.12)."""
    head = b"location: %b\r\n%breferrer-policy: no-referrer\r\n" % (url.encode("ascii"), NO_STORE)
    return Response(b"", 303, head)


def fingerprint(scopes: Iterable[str], *said: str) -> float:
    """Return a number that changes with scopes and other texts: 48 bits, which are exact in a float."""
    return float(int.from_bytes(sha256(" ".join((*said, *sorted(scopes))).encode()).digest()[:6]))


LOOPBACK = ("127.0.0.1", "[::1]", "localhost")
_MAX = 2000
_SCHEME = re.compile(r"[a-z][a-z0-9+-]*(\.[a-z0-9+-]+)+")
"""A private-use scheme that is a reversed domain name (RFC 8252 §7.1)."""
_WORD = re.compile(r"[a-z][a-z0-9+-]{2,39}")
"""A private-use scheme that is a plain word, as used by editors."""
_LIKE_WEB = re.compile(r"s?h[tx]+ps?([^a-z].*)?|https?.*|.*https?|www\..*")
"""Schemes that look like or open web pages: some browsers open ``x-safari-https://host`` as a page."""
_BROWSERS = frozenset((
    "about", "blob", "brave", "chrome", "chrome-extension", "content", "data", "devtools", "edge", "feed",
    "feeds", "file", "filesystem", "firefox", "firefox-focus", "firefox-private", "ftp", "ftps",
    "googlechrome", "googlechromes", "gopher", "ipfs", "ipns", "its", "jar", "javascript", "livescript", "mhtml",
    "mocha", "moz-extension", "opera", "res", "resource", "safari-extension", "vbscript", "view-source", "vivaldi",
    "ws", "wss", "wyciwyg",
))  # fmt: skip
"""Schemes that browsers handle themselves, by running, showing, or fetching something."""
_SYSTEMS = frozenset((
    "afp", "android-app", "app-prefs", "app-settings", "apt", "bitcoin", "callto", "cid", "cifs", "dav", "ethereum",
    "facetime", "geo", "git", "hcp", "help", "imap", "intent", "ipp", "irc", "ircs", "itms", "jdbc", "jnlp", "jnlps",
    "ldap", "ldapi", "ldaps", "macappstore", "magnet", "mailto", "maps", "market", "mid", "mms", "news",
    "nfs", "nntp", "otpauth", "payto", "pop", "powershell", "prefs", "rdp", "rlogin", "rtsp", "search", "search-ms",
    "secondlife", "sftp", "shell", "shortcuts", "sip", "sips", "skype", "smb", "sms", "ssh", "steam", "svn", "tel",
    "telnet", "telnets", "tftp", "tn3270", "udp", "upi", "urn", "vnc", "webcal", "wsl", "x-man-page",
    "xmpp",
))  # fmt: skip
"""Schemes that the operating system or other well-known programs handle."""
_BEGINNINGS = ("ms-", "microsoft-", "web+", "ext+", "itms", "x-apple", "res+", "view-")
"""Prefixes of system and browser schemes."""
_ANSWERS = frozenset(("code", "state", "iss", "error", "error_description", "error_uri", "response"))
"""Response parameters. A client's query must not contain them, because many programs read the first of two values."""
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


def check_redirect(uri: str, *, web: bool = False) -> None:
    """Check that a client is allowed to register a redirect URI.

    Args:
        uri: Redirect URI.
        web: Whether the client's metadata says that it's a web application.

    Raises:
        ValueError: The URI isn't allowed. The message gives the reason.
    """
    if not 0 < len(uri) <= _MAX or not uri.isascii() or not uri.isprintable() or re.search(r"[\s\"'<>\\^`{|}*#]", uri):
        raise ValueError("A redirect URI must be a URL of up to 2000 characters, without a fragment or wildcard.")
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        raise ValueError("A redirect URI must be a URL.") from None
    if not _ANSWERS.isdisjoint(parse_qs(parts.query, keep_blank_values=True)):
        raise ValueError("A redirect URI's query must not contain response parameters, such as code or state.")
    if not is_app(uri):
        authority = _AUTHORITY.fullmatch(parts.netloc)
        if authority is None:
            raise ValueError("A redirect URI must have a plain host name, without a user name.")
        if parts.scheme == "http" and authority[1].lower() not in LOOPBACK:
            raise ValueError("A redirect URI must be https, or http with a loopback address.")
    elif not _is_of_app(parts):
        raise ValueError(
            "A redirect URI must be https, http with a loopback address, or use an app's scheme, such as "
            "com.example.app:/back or editor://name/back."
        )
    if web and parts.scheme != "https":
        raise ValueError("The redirect URI of a web application must be https.")


def _is_of_app(parts: SplitResult) -> bool:
    """Return whether a URI opens an app by a private-use scheme."""
    scheme = parts.scheme
    if scheme in _BROWSERS | _SYSTEMS or scheme.startswith(_BEGINNINGS) or _LIKE_WEB.fullmatch(scheme):
        return False
    if _SCHEME.fullmatch(scheme):
        return True
    return bool(_WORD.fullmatch(scheme) and _AUTHORITY.fullmatch(parts.netloc))


def is_loopback(uri: str) -> bool:
    """Return whether a URI is an http URL on the user's own machine."""
    parts = urlsplit(uri)
    return parts.scheme == "http" and _host(parts) in LOOPBACK


def is_identified(uri: str) -> bool:
    """Return whether only the owner of a domain receives the redirect. Any local program can listen on a port or
    register a scheme.
    """
    return urlsplit(uri).scheme == "https"


def named_by(registered: tuple[str, ...], asked: str) -> bool:
    """Return whether a request can use this redirect URI."""
    return any(asked == each or _portless(asked) == _portless(each) != "" for each in registered)


def _portless(uri: str) -> str:
    """Return a loopback URI without its port, or an empty string for other URIs."""
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


def is_app(uri: str) -> bool:
    """Return whether a URI opens an app by a private-use scheme."""
    return urlsplit(uri).scheme not in ("http", "https")


def shown_host(uri: str) -> str:
    """Return the host or scheme of a URI, to show to the user."""
    parts = urlsplit(uri)
    if not is_app(uri):
        return parts.netloc
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else f"{parts.scheme}:"
