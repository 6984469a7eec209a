"""Responses to callers without access: RFC 6750 §3, RFC 9728 §5.1, and problem details for people.

Responses don't depend on the credential, so they reveal nothing about it.
"""

from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from millstream._http.message import HttpRequest, Response, plain_problem
from millstream._protocol.errors import INSUFFICIENT_SCOPE, ProtocolError

METADATA_PATH = "/.well-known/oauth-protected-resource"
_NO_STORE = b"cache-control: no-store\r\n"


class ChallengeResponses:
    """The challenges and refusals of one server."""

    def __init__(
        self,
        *,
        resource: str = "",
        oauth: bool = False,
        scopes: Collection[str] = (),
    ) -> None:
        """Prepare the responses.

        Args:
            resource: audience of tokens, if they come from an authorization server.
            oauth: whether clients can get tokens from one. Invalid tokens then get a 401, so clients request another.
            scopes: scopes that every caller needs.
        """
        self._resource = resource
        self._metadata = metadata_url(resource) if resource else ""
        self._oauth = oauth
        self.form: Callable[[HttpRequest], Response | None] = lambda request: None
        """Returns the sign-in form for browsers; None for other clients."""
        self.scopes: frozenset[str] = frozenset(scopes)

    def set_mount_path(self, root: str) -> None:
        """Set the path at which an application mounts the server, since the application doesn't serve our well-known
        paths.
        """
        if self._resource and urlsplit(self._resource).path.startswith(f"{root}/"):
            self._metadata = metadata_url(self._resource, root)

    def for_missing(self, request: HttpRequest) -> Response:
        """Respond to a request without a credential."""
        text = "Sign in: send the header Authorization: Bearer, followed by your key or token."
        page = self.form(request)
        head = self._challenge("", self.scopes)
        return (
            plain_problem(401, text, head + _NO_STORE) if page is None else Response(page.body, 401, page.head + head)
        )

    def wrong(self) -> Response:
        """Respond to an invalid credential. The status is 403 if there are only API keys, because clients can't request
        a new one.
        """
        if self._oauth:
            return plain_problem(401, "The token is invalid or has expired.", self._head("invalid_token", ()))
        return plain_problem(403, "The key is invalid or has been removed.", _NO_STORE)

    def for_malformed(self, text: str) -> Response:
        """Respond to a malformed credential."""
        return plain_problem(400, text, self._head("invalid_request", ()))

    def unavailable(self, text: str) -> Response:
        """Respond while credentials can't be verified."""
        return plain_problem(503, text, b"retry-after: 5\r\n" + _NO_STORE)

    @staticmethod
    def too_many_failures(head: bytes) -> Response:
        """Respond to an address with too many invalid credentials."""
        return plain_problem(
            429, "Too many failed sign-ins from your address. Wait a minute, then try again.", head + _NO_STORE
        )

    def insufficient(self, needed: Collection[str]) -> Response:
        """Respond to a valid credential with insufficient scope."""
        return plain_problem(403, _missing_scope_text(needed), self._head("insufficient_scope", needed))

    def refuse(self, needed: Collection[str]) -> ProtocolError:
        """Return the error for one MCP method, with all scopes that the client should request."""
        wanted = " ".join(sorted(self.scopes.union(needed)))
        return ProtocolError(
            INSUFFICIENT_SCOPE,
            _missing_scope_text(needed),
            {"error": "insufficient_scope", "scope": wanted},
            status=403,
            head=self._head("insufficient_scope", self.scopes.union(needed)),
        )

    def _head(self, error: str, scopes: Collection[str]) -> bytes:
        return self._challenge(error, scopes) + _NO_STORE

    def _challenge(self, error: str, scopes: Collection[str]) -> bytes:
        parts = {"error": error, "scope": " ".join(sorted(scopes)), "resource_metadata": self._metadata}
        said = ", ".join(f'{name}="{value}"' for name, value in parts.items() if value)
        return f"www-authenticate: Bearer{' ' if said else ''}{said}\r\n".encode()


def _missing_scope_text(needed: Collection[str]) -> str:
    names = " and ".join(sorted(needed))
    return f"Your key or token lacks a required scope: {names}."


def metadata_url(resource: str, root: str = "") -> str:
    """Return the URL of a resource's metadata. The well-known path precedes the resource's path (RFC 9728 §3), and
    follows `root` for a mounted server.
    """
    parts = urlsplit(resource)
    return f"{parts.scheme}://{parts.netloc}{root}{METADATA_PATH}{parts.path.removeprefix(root).rstrip('/')}"
