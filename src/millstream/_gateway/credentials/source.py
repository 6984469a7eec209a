"""The credentials of one upstream on one worker, and how its connections use them.

A connection belongs to a link key. Calls with equal keys carry the same credentials and the same forwarded headers, so
a caller's credentials don't appear on another caller's connection.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from hashlib import sha256
from typing import TypeVar
from weakref import WeakValueDictionary

from msgspec import Struct

from millstream._gateway.errors import NoCredentials
from millstream._gateway.options.credentials import Secret
from millstream._gateway.rules.results import call_error
from millstream._http.client.pool import guard_dial, is_public, is_this_machine
from millstream._http.client.url import Url
from millstream._oauth import SCOPE
from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._recent import Recent
from millstream._server.calls.call import Call
from millstream.client import AccessDenied, Auth, ClientError, TargetError
from millstream.client._endpoint import check_headers
from millstream.client._oauth.endpoints import Outbound, read_challenges
from millstream.protocol import Confidential

T = TypeVar("T")
logger = logging.getLogger("millstream.gateway")
_MAX_CALLERS = 16_384
_MAX_SCOPES_TEXT = 200
_NEVER_FORWARDED = frozenset(
    {
        "accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "cookie",
        "expect", "host", "http2-settings", "keep-alive", "last-event-id", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "set-cookie", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Headers that belong to one connection or message (RFC 9110 §7.6.1), and cookies, which belong to this server."""
_PRIVATE_NAMES = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".intranet", ".corp", ".private")
_SENT = ContextVar[Mapping[str, str]]("millstream_sent_credentials")
"""Credentials of this task's request. Another request on the same connection may have newer ones."""


class LinkCaller(Confidential, Struct, eq=False, weakref=True):
    """The callers with one link key."""

    owner: str = ""
    """The link key without forwarded headers, which identifies the caller's credentials."""
    token: str = ""
    """Most recent access token of the caller, if it's exchanged."""
    until: float = 0.0
    """Expiry of that token, in Unix time."""
    headers: Mapping[str, str] = {}
    """Forwarded headers."""


class UpstreamCredentials:
    """The credentials of one upstream. This class forwards headers; subclasses add the upstream's `auth`."""

    personal: bool = False
    """Whether the upstream can't be used without a user."""
    lists_from: str = ""
    """Id of the only principal whose account or token can read the lists, or empty if any can."""
    query: Mapping[str, str] = {}
    """Parameters in the query of each request to an API."""
    account: str = "each caller's, by the forwarded headers"
    """Whose credentials the upstream gets, for the operator."""
    ended_count: int = 0
    """Number of users' accounts that have ended without their users since the last one was connected."""

    def __init__(self, upstream: str, forward: Sequence[str]) -> None:
        """Create the credentials without any I/O.

        Args:
            upstream: Name of the upstream, for errors.
            forward: Names of headers to forward, in lower case. See `check_forwarded`.
        """
        self.upstream: str = upstream
        self._forward = forward
        self.on_change: Callable[[str], None] = lambda link_key: None
        """Called with a link key after a user has connected or disconnected, to end the connections of that key."""
        self._callers: WeakValueDictionary[str, LinkCaller] = WeakValueDictionary()
        """The callers with open connections, and the callers in `_recent`."""
        self._recent: Recent[str, LinkCaller] = Recent(_MAX_CALLERS)

    # Used by calls

    def link_key(self, call: Call) -> str:
        """Return the part of a connection's key that identifies its credentials, before each call.

        Raises:
            ToolError: The upstream needs to identify the caller, who hasn't signed in.
        """
        headers = self.forwarded_headers(call)
        caller = self._identify(call)
        values = "\n".join(f"{name}:{value}" for name, value in headers.items())
        key = f"{caller.owner}\n{digest_of(values)}" if headers else caller.owner
        existing = self._callers.get(key)
        if existing is None:
            self._callers[key] = caller
            self._recent.keep(key, caller)
            caller.headers = headers
        elif caller.until > existing.until or caller.token != existing.token:
            existing.token, existing.until = caller.token, caller.until
        return key

    def auth(self, link_key: str) -> Auth:
        """Return the source of headers for a new connection. The empty key has no caller's credentials or headers."""
        return LinkAuth(self, self._callers.get(link_key) or LinkCaller(link_key.partition("\n")[0]))

    def headers_for_link(self, link_key: str) -> Mapping[str, str]:
        """Return the headers of callers that each request of a connection repeats."""
        caller = self._callers.get(link_key)
        return {} if caller is None else caller.headers

    async def lister(self) -> str:
        """Return the link key of the connection that reads lists, waiting for credentials if necessary."""
        return ""

    async def has_lister(self) -> bool:
        """Return whether `lister` returns immediately."""
        return True

    def avoid_lister(self, link_key: str) -> None:
        """Prefer other connections for the next lists. Called when this one couldn't read them."""

    async def prepare(self, call: Call) -> None:
        """Ensure that a call has credentials, asking the user for them if necessary.

        Raises:
            ToolError, ProtocolError, InputRequired: The call has no credentials yet.
        """

    async def recover(self, call: Call, denied: AccessDenied) -> bool:
        """Return whether to retry a call that the upstream denied, after asking the user.

        Raises:
            ToolError, ProtocolError, InputRequired: The user has to act first.
        """
        if denied.status == 403 and "insufficient_scope" in denied.challenge:
            raise call_error(
                call,
                f"The server {self.upstream!r} behind this gateway requires more permissions than the gateway has: "
                f"{scopes_in(denied.challenge)}. Its operator can request them with scope.",
            )
        return False

    async def close(self) -> None:
        """Release resources."""

    # For subclasses

    def _identify(self, call: Call) -> LinkCaller:
        """Return the caller of a call, without forwarded headers."""
        return LinkCaller()

    async def headers_of(self, caller: LinkCaller, method: str, url: str) -> Mapping[str, str]:
        """Return the credentials for one request, without forwarded headers.

        Raises:
            ClientError: There are no credentials at the moment.
        """
        return {}

    async def replace_refused(self, caller: LinkCaller, sent: Mapping[str, str]) -> bool:
        """Replace credentials that the upstream has rejected and return whether there are new ones."""
        return False

    def learn_nonce(self, url: Url, nonce: str, challenge: str) -> bool:
        """Store a nonce for proofs. See `Auth.learn_nonce`."""
        return False

    def forwarded_headers(self, call: Call) -> dict[str, str]:
        """Return the headers of a call to forward."""
        headers = call.headers
        if not self._forward or not headers:
            return {}
        return {name: headers[raw].decode("latin-1") for name in self._forward if (raw := name.encode()) in headers}


class LinkAuth(Struct, eq=False):
    """The headers of a connection (the client's `Auth`)."""

    credentials: UpstreamCredentials
    caller: LinkCaller

    async def headers(self, url: Url, method: str, target: str) -> Mapping[str, str]:
        """Return the headers for the next request."""
        sent = await self._await(self.credentials.headers_of(self.caller, method, url.origin + target))
        _SENT.set(sent)
        return sent

    def learn_nonce(self, url: Url, nonce: str, challenge: str) -> bool:
        """See `Auth.learn_nonce`."""
        return self.credentials.learn_nonce(url, nonce, challenge)

    async def handle_challenge(self, url: Url, status: int, challenge: str) -> bool:
        """Replace rejected credentials once. Granting more scopes is up to the user."""
        return status == 401 and await self._await(self.credentials.replace_refused(self.caller, _SENT.get()))

    async def _await(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except (AccessDenied, NoCredentials):
            raise
        except ClientError as exc:
            raise NoCredentials(
                f"There are no credentials for {self.credentials.upstream!r} at the moment. {exc}"
            ) from exc

    @override
    def __repr__(self) -> str:
        return f"LinkAuth({self.credentials.upstream!r})"


class FixedCredentials(UpstreamCredentials):
    """Secret headers, the same for all callers."""

    account = "the gateway's key"

    def __init__(
        self,
        upstream: str,
        forward: Sequence[str],
        secrets: Mapping[str, Secret],
        prefix: str = "",
        query: Mapping[str, Secret] = {},
    ) -> None:
        """Create the credentials and read the secrets.

        Args:
            upstream: Name of the upstream.
            forward: See `UpstreamCredentials`.
            secrets: Secrets by header.
            prefix: Prefix of each value.
            query: Secrets by parameter (see `UpstreamCredentials.query`).

        Raises:
            LocalError: A secret is missing, or can't be sent.
        """
        super().__init__(upstream, forward)
        self._secrets = secrets
        self._prefix = prefix
        self._query = query
        self._headers = self._read()

    def _read(self) -> dict[str, str]:
        found = {name: self._prefix + each.read(self.upstream) for name, each in self._secrets.items()}
        try:
            check_headers(found)
        except TargetError as exc:
            raise LocalError(f"The credentials of the upstream {self.upstream!r} can't be sent: {exc}") from None
        self.query = {name: each.read(self.upstream) for name, each in self._query.items()}  # for the next request
        return found

    @override
    async def headers_of(self, caller: LinkCaller, method: str, url: str) -> Mapping[str, str]:
        """Return the configured headers, the same for every caller."""
        return self._headers

    @override
    async def replace_refused(self, caller: LinkCaller, sent: Mapping[str, str]) -> bool:
        """Read the files again, in case a secret was rotated."""
        try:
            found = self._read()
        except LocalError:
            return False
        self._headers = found
        return found != sent


def check_forwarded(
    upstream: str, names: Sequence[str], configured: Collection[str], key_header: str = ""
) -> tuple[str, ...]:
    """Return the names of headers to forward, in lower case.

    Args:
        upstream: Name of the upstream, for errors.
        names: The operator's list.
        configured: Names of headers that the upstream's own configuration sets.
        key_header: The header in which callers may send their key for this server.

    Raises:
        LocalError: A header must not be forwarded.
    """
    configured_names = {each.lower() for each in configured}
    found = tuple(dict.fromkeys(each.lower() for each in names))
    for name in found:
        where = f"forward_headers of the upstream {upstream!r}"
        if name in _NEVER_FORWARDED or name.startswith(("mcp-", "sec-", "proxy-")):
            raise LocalError(
                f"{where} can't contain {name!r}: it belongs to one connection or message, not to the caller."
            )
        if name in configured_names:
            raise LocalError(f"{where} can't contain {name!r}: the upstream's own configuration sets it.")
        try:
            check_headers({name: ""})
        except TargetError as exc:
            raise LocalError(f"{where}: {exc}") from None
    for name in {"authorization", key_header.lower()}.intersection(found):
        logger.warning(
            "forward_headers of the upstream %r contains %s: that server receives each caller's credential for this "
            "server, and can impersonate the caller here. Forward it only to servers that you run yourself.",
            upstream,
            name,
        )
    return found


def scopes_in(challenge: str) -> str:
    """Return the scopes that a challenge names, for an error."""
    named = read_challenges(challenge).parameters.get("scope", "").split()
    return " ".join(each for each in named if SCOPE.fullmatch(each))[:_MAX_SCOPES_TEXT] or "unspecified scopes"


def outbound_for(url: Url, *, private_addresses: bool) -> Outbound:
    """Return the connection settings for an upstream's authorization servers.

    The upstream specifies them, so they must be on the public Internet unless the URL that the operator configured
    isn't. Only the host in the URL matters: a public name that resolves to a private address doesn't grant access.
    """
    return (
        Outbound() if private_addresses or _is_private(url.host.rstrip(".")) else Outbound(dial=guard_dial(is_public))
    )


def _is_private(host: str) -> bool:
    try:
        return not is_public(host)
    except ValueError:  # a host name
        return is_this_machine(host) or host.endswith(_PRIVATE_NAMES) or "." not in host


def digest_of(text: str) -> str:
    """Return a hash to use in place of text that can be long or secret."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
