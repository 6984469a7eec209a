"""One URL of a server, with fixed headers, credentials, and redirects within the origin."""

import os
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import Struct, structs

from millstream._http.client.connection import HttpReply
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.request import add_body, encode_headers, encode_request, encode_start
from millstream._http.client.url import Url
from millstream._protocol.foreign import charset_of, decode_text
from millstream._protocol.json_schema import is_array, is_object
from millstream._protocol.jsonrpc import MALFORMED, exceeds_limits
from millstream._protocol.redaction import (
    environment_secrets,
    find_query_secrets,
    find_secrets,
    leave_out,
    redact,
    redact_bytes,
    redact_value,
    secret_parts,
)
from millstream._text import INVISIBLE, pluralize
from millstream._version import __version__
from millstream.client._errors import AccessDenied, ClientError, NotMcp, ServerError, TargetError

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEPS_METHOD = frozenset({307, 308})
_NO_HEADERS: Mapping[str, str] = {}
_MAX_REDIRECTS = 3
_PLAIN_HEADERS = frozenset({b"content-length", b"content-type", b"date", b"retry-after"})
"""Headers of an error that the client reads, and that don't quote a request."""
_MAX_DETAIL = 300
_MAX_COOKIES = 4096
_CLIENT_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept", "content-type"})


def check_headers(headers: Mapping[str, str]) -> None:
    """Reject headers that are malformed or set by the client: ``check_headers({"X-Shop": "1"})``.

    Args:
        headers: Value of each header.

    Raises:
        TargetError: A header isn't allowed. The message identifies it.
    """
    for name, value in headers.items():
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise TargetError(f"{name!r} isn't a valid header name.")
        if name.lower() in _CLIENT_HEADERS:
            raise TargetError(f"The client sets the header {name} itself. Remove it.")
        if not all(letter == "\t" or (" " <= letter <= "\xff" and letter != "\x7f") for letter in value):
            raise TargetError(f"The header {name} contains characters that aren't allowed in headers.")


class Auth(Protocol):
    """A source of credentials that change over time. Use plain headers for fixed ones."""

    async def headers(self, url: Url, method: str, target: str) -> Mapping[str, str]:
        """Return the credentials for the next request.

        Args:
            url: URL of the server.
            method: HTTP method.
            target: Path and query of the request.
        """
        ...

    def learn_nonce(self, url: Url, nonce: str, challenge: str) -> bool:
        """Store the nonce from a reply (`DPoP-Nonce`). Return True if only the nonce was wrong, so the request can be
        sent again.

        Args:
            url: URL of the server.
            nonce: Value of the header.
            challenge: The `WWW-Authenticate` header.
        """
        ...

    async def handle_challenge(self, url: Url, status: int, challenge: str) -> bool:
        """Get better credentials after a request was rejected. Return False if there aren't any.

        Args:
            url: URL of the request.
            status: 401 or 403.
            challenge: The `WWW-Authenticate` header.
        """
        ...


class PostHead(Struct, frozen=True):
    """The head of POST requests that differ only in their bodies, from `Endpoint.encode_post`."""

    url: Url
    lines: str
    """Header lines, without credentials from `auth`."""
    start: bytes


class Endpoint:
    """Sends requests to one URL: ``await endpoint.send("GET", {"accept": "text/plain"}, repeatable=True)``.

    It removes the credentials that it sends from errors, which often quote the request.

    Args:
        url: The URL.
        headers: Headers for every request.
        pool: Connections to the URL's origin.
        auth: Source of changing credentials.
        waiting: Returns a context manager that is entered during a login.
        query: Credentials in the query of each request.
        check_redirect: Called with the path and query that a reply redirects to, and raises an error to refuse them.
    """

    def __init__(
        self,
        url: Url,
        headers: Mapping[str, str],
        pool: ConnectionPool,
        auth: Auth | None = None,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
        query: Mapping[str, str] = {},
        *,
        check_redirect: Callable[[str], None] = lambda target: None,
    ) -> None:
        check_headers(headers)
        self.url = url
        self._headers = headers
        self._query = query
        self._check_redirect = check_redirect
        self._sent: Mapping[str, str] = {}
        """Credentials from `auth` in the last request."""
        self._sent_before: Mapping[str, str] = {}
        """The credentials that they replaced, which concurrent requests may have."""
        self._auth = auth
        names = {name.lower() for name in headers}
        self._has_auth = auth is not None or "authorization" in names
        self._has_cookies = "cookie" in names
        self._waiting = waiting
        """Context manager that is entered during a login."""
        agent = {} if "user-agent" in names else {"User-Agent": f"millstream/{__version__}"}
        self._fixed_headers = encode_headers({"Host": url.authority, **agent, **headers})
        self.pool: ConnectionPool = pool

    @property
    def secrets(self) -> set[str]:
        """The credentials in requests."""
        found = find_secrets(self._headers, environment_secrets(os.environ)) | find_query_secrets(self.url.target)
        for values in (self._query, self._sent, self._sent_before, self.pool.proxy_headers):
            found = found.union(*map(secret_parts, values.values()))
        return found

    def encode_post(self, headers: Mapping[str, str]) -> PostHead:
        """Return the head of POST requests with these headers, for `send`. It's valid until `url` changes.

        Raises:
            UnsendableRequest: A header or the target has characters that aren't allowed there.
        """
        lines = self._fixed_headers + encode_headers(headers)
        return PostHead(self.url, lines, encode_start("POST", self.url.target, lines))

    async def send(
        self, method: str, headers: Mapping[str, str] | PostHead, body: bytes = b"", *,
        repeatable: bool, target: str = "", owner: str = "", said: bytes = b"",
    ) -> HttpReply:  # fmt: skip
        """Send a request and return the reply, after redirects within the origin and at most one retry with new
        credentials.

        Args:
            method: HTTP method.
            headers: Headers of this request, or for POST, the result of `encode_post`.
            body: Request body.
            repeatable: Whether it's safe for the request to reach the server twice.
            target: Another path and query of the same origin.
            owner: See `ConnectionPool.send`.
            said: See `leave_out`.

        Raises:
            UnsendableRequest: A header or the target has characters that aren't allowed there.
            AccessDenied: The server responded with 401 or 403.
            ClientError: There was no response.
        """
        auth = self._auth
        retried = nonce_retried = False
        redirects = 0
        url = structs.replace(self.url, target=target) if target else self.url
        try:
            while True:
                credentials = _NO_HEADERS if auth is None else await auth.headers(self.url, method, url.target)
                if credentials != self._sent:
                    self._sent, self._sent_before = credentials, self._sent
                data = self._encode(method, url, headers, credentials, body)
                reply = await self.pool.send(data, repeatable=repeatable, owner=owner)
                challenge = "" if reply.status < 400 else reply.header(b"www-authenticate")
                nonce = "" if auth is None else reply.header(b"dpop-nonce")
                wrong_nonce = auth is not None and nonce and auth.learn_nonce(self.url, nonce, challenge)
                if wrong_nonce and reply.status == 401 and not nonce_retried:
                    nonce_retried = True
                elif reply.status in (401, 403):
                    if retried or not await self._reauthorize(reply.status, challenge):
                        self._redact(reply, said)
                        denied = with_reply(self._access_denied(reply, reply.header(b"www-authenticate")), reply)
                        denied.reply = reply
                        raise denied
                    retried = True
                elif reply.status in _REDIRECTS and b"location" in reply.headers:
                    redirects += 1
                    url = _redirect_target(url, method, reply, redirects)
                    self._check_redirect(url.target)
                else:
                    if redirects:
                        reply.final_url = url
                    if reply.status >= 300:
                        self._redact(reply, said)
                    return reply
                reply.discard()
        except ClientError as exc:
            redact_error(exc, leave_out(said, self.secrets))
            raise

    def _encode(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str] | PostHead,
        credentials: Mapping[str, str],
        body: bytes,
    ) -> bytes:
        if not isinstance(headers, PostHead):
            lines = self._fixed_headers + encode_headers(headers)
        elif headers.url is url and not credentials:
            return add_body(headers.start, body)
        else:
            lines = headers.lines
        return encode_request(method, url.target, lines + encode_headers(credentials), body)

    def _redact(self, reply: HttpReply, said: bytes) -> None:
        """Remove the credentials from an error, in the charset of its readers."""
        secrets, charset = leave_out(said, self.secrets), charset_of(reply.header(b"content-type"))
        data = decode_text(reply.body, charset).encode() if charset else reply.body
        if (body := redact_bytes(data, secrets)) is not data:
            reply.body = body
            reply.headers[b"content-type"] = reply.media_type.encode("latin-1")
        reply.headers = {
            name: value if name in _PLAIN_HEADERS else redact_bytes(value, secrets)
            for name, value in reply.headers.items()
        }

    def cookies(self, reply: HttpReply) -> Mapping[str, str]:
        """Return the header that sends a reply's cookies back, if there are any.

        Load balancers set cookies so that the requests of a session reach the same server.
        """
        cookies = reply.header(b"set-cookie")
        if self._has_cookies or len(cookies) > _MAX_COOKIES or not (cookies.isascii() and "=" in cookies):
            return {}
        kept: dict[str, str] = {}
        for cookie in cookies.split("\n"):
            pair, _, attributes = cookie.partition(";")
            name, sign, value = pair.strip().partition("=")
            if sign:
                kept[name] = value
            if _is_expired(attributes):
                kept.pop(name, None)
        return {"Cookie": "; ".join(map("=".join, kept.items()))} if kept else {}

    async def _reauthorize(self, status: int, challenge: str) -> bool:
        """Get new credentials. Return False if there aren't any."""
        if self._auth is None:
            return False
        with self._waiting():
            return await self._auth.handle_challenge(self.url, status, challenge)

    def _access_denied(self, reply: HttpReply, challenge: str) -> AccessDenied:
        """Return the error for a 401 or 403, with what to do about it."""
        url = self.url
        if reply.status == 401:
            if not self._has_auth:
                remedy = "Send credentials: set auth or headers."
                text = f"{url} requires credentials (401){problem_detail(reply)}."
                return AccessDenied(text, reply.status, challenge, remedy=remedy)
            text = f"{url} rejected these credentials (401){challenge_reason(challenge) or problem_detail(reply)}."
        elif "insufficient_scope" in challenge:
            scope = re.search(r'scope="([^"]*)', challenge)
            text = f"{url} requires more permissions than these credentials have (403)"
            text += f": {brief(scope[1])}." if scope else "."
        else:
            reason = problem_detail(reply)
            what = "rejected the request" if reason else "rejected these credentials, or this host or origin"
            text = f"{url} {what} (403){reason}."
        return AccessDenied(text, reply.status, challenge)

    async def close(self) -> None:
        """Close the connections."""
        await self.pool.close()


def _redirect_target(url: Url, method: str, reply: HttpReply, count: int) -> Url:
    """Return the target of a redirect.

    Raises:
        NotMcp: The redirect goes to another origin, loops, or drops the POST.
        TargetError: The redirect target isn't a URL.
    """
    target = url.join(reply.header(b"location"))
    if target.origin != url.origin:
        refused = NotMcp(f"{url} redirects to {target}.", remedy="If you trust that server, use its URL.")
    elif count > _MAX_REDIRECTS or (method not in ("GET", "HEAD") and reply.status not in _KEEPS_METHOD):
        refused = NotMcp(f"{url} redirects to {target} in a way that drops the message.", remedy="Check the path.")
    else:
        return target
    refused.reply = reply
    raise refused


_E = TypeVar("_E", bound=ClientError)
_MAX_READ = 16 * 1024
"""Maximum size to read of an error's body, in bytes."""
_WORDS = "detail", "message", "error_description", "error", "title", "reason", "msg"
"""Members of JSON bodies that contain the reason for an error, such as ``detail`` (RFC 9457)."""
_MARKUP = re.compile(r"(?is)<(script|style|svg)\b.*?(?:</\1>|\Z)|<!--.*?(?:-->|\Z)|<[^<>]*+>")
"""Matches markup. Unclosed elements and comments extend to the end of the text, so matching never takes quadratic
time."""


def _is_expired(attributes: str) -> bool:
    """Return whether the attributes of a cookie delete it: a `Max-Age` of 0 or less, else a past `Expires`.

    See RFC 6265 §5.2.
    """
    pairs = (each.partition("=") for each in attributes.lower().split(";"))
    values = {name.strip(): value.strip() for name, _, value in pairs}
    age = values.get("max-age", "")
    if age.lstrip("-").isdecimal():
        return age.startswith("-") or not age.strip("0")
    try:
        return parsedate_to_datetime(values.get("expires", "")).timestamp() < time()
    except (ValueError, OverflowError):
        return False


def redact_error(exc: ClientError, secrets: Collection[str]) -> None:
    """Remove secrets that the texts of an error may quote: ``redact_error(exc, endpoint.secrets)``.

    Args:
        exc: The error.
        secrets: See `redact`.
    """
    if secrets:
        exc.args = tuple(redact_value([*exc.args], secrets))
        exc.message, exc.remedy, exc.detail = (redact(each, secrets) for each in (exc.message, exc.remedy, exc.detail))
        if isinstance(exc, AccessDenied):
            exc.challenge = redact(exc.challenge, secrets)
        elif isinstance(exc, ServerError):
            exc.data = redact_value(exc.data, secrets)


def with_reply(exc: _E, reply: HttpReply) -> _E:
    """Return an error with the status, reason, and `Retry-After` of the response that caused it."""
    exc.status, exc.detail, exc.retry_after = reply.status, error_detail(reply), reply.retry_after
    return exc


def try_again(exc: ClientError) -> str:
    """Return the sentence about when to try again, or an empty string if the server didn't specify it."""
    return "" if exc.retry_after is None else f"Try again in {pluralize(round(exc.retry_after), 'second')}."


def error_detail(reply: HttpReply) -> str:
    """Return the reason in the body of an error, shortened."""
    body, media = reply.body[:_MAX_READ].lstrip(), reply.media_type
    if body[:1] in (b"{", b"[", b'"') and len(reply.body) <= _MAX_READ and not exceeds_limits(body):
        try:
            value = msgspec.json.decode(body)
            return brief(_find_words(value) or (body.decode("utf-8", "replace") if value else ""))
        except MALFORMED:
            pass
    if media and not media.startswith("text/") and not media.endswith(("json", "xml")):
        return ""
    text = body.decode("utf-8", "replace")
    return brief(_MARKUP.sub(" ", text) if media == "text/html" or text.startswith("<") else text)


def _find_words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if is_array(value):
        return next((found for found in map(_find_words, value) if found), "")
    if not is_object(value):
        return ""
    return next((found for name in _WORDS if (found := _find_words(value.get(name)))), "")


def problem_detail(reply: HttpReply) -> str:
    """Return the reason in the body of an error as the end of a sentence."""
    detail = error_detail(reply)
    return f": {detail}" if detail else ""


def challenge_reason(challenge: str) -> str:
    """Return the reason in a `WWW-Authenticate` header (RFC 6750 §3) as the end of a sentence."""
    said = re.search(r'error_description="([^"]*)', challenge)
    return f": {brief(said[1])}" if said else ""


def brief(text: str) -> str:
    """Shorten a server's text for use in a sentence."""
    return INVISIBLE.sub(" ", " ".join(text.split())[:_MAX_DETAIL]).rstrip(". ")
