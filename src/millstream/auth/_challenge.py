"""What is said to a caller that does not get in: RFC 6750 §3, RFC 9728 §5.1, and problem details for people.

Every reply of one kind is the same bytes, whoever asks and whatever they sent, so that it tells nothing.
"""

from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from millstream._http.message import HttpRequest, Response
from millstream._http.problems import plain_problem
from millstream._protocol.errors import INSUFFICIENT_SCOPE, ProtocolError

METADATA_PATH = "/.well-known/oauth-protected-resource"
_NO_STORE = b"cache-control: no-store\r\n"


class Challenges:
    """The refusals of one server."""

    __slots__ = ("_metadata", "_oauth", "_resource", "form", "scopes")

    def __init__(
        self,
        *,
        resource: str = "",
        oauth: bool = False,
        scopes: Collection[str] = (),
    ) -> None:
        """Prepare them.

        Args:
            resource: the URL that tokens are for, where they come from an authorization server.
            oauth: clients can get a token from such a server: one that is not valid is 401, so that they get another.
            scopes: what everybody needs.
        """
        self._resource = resource
        self._metadata = metadata_url(resource) if resource else ""
        self._oauth = oauth
        self.form: Callable[[HttpRequest], Response | None] = lambda request: None
        """Gives people who open a page a place to sign in."""
        self.scopes: frozenset[str] = frozenset(scopes)

    def mounted(self, root: str) -> None:
        """The server is mounted below this path of an application, which serves nothing of ours at its own root."""
        if self._resource and urlsplit(self._resource).path.startswith(f"{root}/"):
            self._metadata = metadata_url(self._resource, root)

    def missing(self, request: HttpRequest) -> Response:
        """There is no credential."""
        text = "Sign in: send Authorization: Bearer and your key or token."
        page = self.form(request)
        head = self._challenge("", self.scopes)
        return (
            plain_problem(401, text, head + _NO_STORE) if page is None else Response(page.body, 401, page.head + head)
        )

    def wrong(self) -> Response:
        """There is one, and it is not valid. Where there are only keys, the person has to find the right one: 403."""
        if self._oauth:
            return plain_problem(401, "The token isn't valid here, or not any more.", self._head("invalid_token", ()))
        return plain_problem(403, "The key isn't valid here, or not any more.", _NO_STORE)

    def malformed(self, text: str) -> Response:
        """What was sent cannot be a credential."""
        return plain_problem(400, text, self._head("invalid_request", ()))

    def unavailable(self, text: str) -> Response:
        """Nobody can tell now."""
        return plain_problem(503, text, b"retry-after: 5\r\n" + _NO_STORE)

    @staticmethod
    def slow(head: bytes) -> Response:
        """Too many wrong ones came from there."""
        return plain_problem(429, "Too many failed sign-ins from your address. Wait, then try again.", head + _NO_STORE)

    def insufficient(self, needed: Collection[str]) -> Response:
        """The credential is valid and does not cover this."""
        return plain_problem(403, _lacking(needed), self._head("insufficient_scope", needed))

    def refuse(self, needed: Collection[str]) -> ProtocolError:
        """The same for one method of MCP, with all scopes that a client should ask for now."""
        wanted = " ".join(sorted(self.scopes.union(needed)))
        return ProtocolError(
            INSUFFICIENT_SCOPE,
            _lacking(needed),
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


def _lacking(needed: Collection[str]) -> str:
    names = " and ".join(sorted(needed))
    return f"Your key or token doesn't cover this: it needs the scope {names}."


def metadata_url(resource: str, root: str = "") -> str:
    """Where the metadata of a protected resource is found: the well-known path stands before its own (RFC 9728 §3),
    behind `root`, where a server is mounted.
    """
    parts = urlsplit(resource)
    return f"{parts.scheme}://{parts.netloc}{root}{METADATA_PATH}{parts.path.removeprefix(root).rstrip('/')}"
