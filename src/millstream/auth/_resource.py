"""Protected resource metadata: where clients get a token for this server (RFC 9728).

Clients of revision 2025-03-26 instead request the authorization server's metadata at this server's origin, and get a
copy. Both documents are public, for all origins.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from urllib.parse import urlsplit

from millstream._http.message import JSON_HEAD, Handler, HttpRequest, Response, plain_problem
from millstream._protocol.jsonrpc import encode
from millstream.auth._discovery import Discovery
from millstream.auth._guard import METADATA_PATH
from millstream.auth._method import AuthMethod, Unavailable

SERVER_METADATA_PATH = "/.well-known/oauth-authorization-server"
_HEAD = JSON_HEAD + b"cache-control: public, max-age=300\r\n"


class ResourceMetadata:
    """The metadata handlers of one server."""

    def __init__(self, methods: Sequence[AuthMethod], name: str, known: Callable[[], Collection[str]]) -> None:
        """Prepare the handlers.

        Args:
            methods: Auth methods; at least one has an issuer.
            name: Display name of the server.
            known: Returns all scopes that the server currently uses.
        """
        self._methods = [each for each in methods if each.issuers]
        self._name = name
        self._known = known
        self._resource = next((each.resource for each in self._methods if each.resource), "")
        self._discovery = Discovery(self._methods[0].issuers[0])

    def paths(self, endpoint: str) -> Mapping[str, Handler]:
        """Return the GET handlers by path: at the root, and with the internal and the external path of the MCP
        endpoint.
        """
        outside = urlsplit(self._resource).path.rstrip("/")
        places = {METADATA_PATH, METADATA_PATH + endpoint.rstrip("/"), METADATA_PATH + outside}
        return {**dict.fromkeys(sorted(places), self.resource), SERVER_METADATA_PATH: self.server}

    async def resource(self, request: HttpRequest) -> Response:
        """Respond with the metadata of this server."""
        scopes = {scope for each in self._methods for scope in each.scopes} | set(self._known())
        members = {
            "resource": self._resource,
            "authorization_servers": list(dict.fromkeys(issuer for each in self._methods for issuer in each.issuers)),
            "scopes_supported": sorted(scopes - {"offline_access"}),
            "bearer_methods_supported": ["header"],
            "resource_name": self._name,
        }
        return Response(encode({name: value for name, value in members.items() if value}), 200, _HEAD)

    async def server(self, request: HttpRequest) -> Response:
        """Respond with the metadata of the authorization server."""
        try:
            return Response(encode(await self._discovery.metadata()), 200, _HEAD)
        except Unavailable as exc:
            return plain_problem(503, str(exc), b"retry-after: 10\r\n")
