"""Data for the connect page beyond MCP: the endpoint, and how callers sign in."""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from millstream._config import Settings
from millstream._http.message import JSON_HEAD, HttpRequest, Response
from millstream._protocol.jsonrpc import encode

if TYPE_CHECKING:
    from millstream.auth._guard import AuthGuard


class ConnectFacts:
    """The handler of `GET /connect/server`."""

    def __init__(
        self,
        settings: Settings,
        guard: "AuthGuard | None",
        pages: Collection[str],
        *,
        public: Collection[str],
        is_local: Callable[[str, Mapping[bytes, bytes]], bool],
    ) -> None:
        """Prepare both responses.

        Args:
            settings: settings of the server.
            guard: guard in front of every path; None if callers don't sign in.
            pages: names of the pages that this server serves.
            public: names of the pages that other machines can reach without sign-in.
            is_local: returns whether a peer address and headers belong to a program on this machine.
        """
        methods = () if guard is None else guard.methods
        resource = next((each.resource for each in methods if each.resource), "")
        facts: dict[str, Any] = {
            "path": settings.path,
            "url": resource if resource.endswith(settings.path) else "",
            "keys": any(not each.issuers for each in methods),
            "oauth": any(each.issuers for each in methods),
        }
        open_pages = pages if guard is not None else [each for each in pages if each in public]
        self._is_local = is_local
        self._local_response = _reply(facts | {"pages": list(pages)})
        self._remote_response = _reply(facts | {"pages": list(open_pages)})

    async def get(self, request: HttpRequest) -> Response:
        """Return the ``path`` of the MCP endpoint, its public ``url`` if sign-in is for that URL only, whether ``keys``
        and ``oauth`` are accepted, and the ``pages`` that the caller can reach.
        """
        return self._local_response if self._is_local(request.peer, request.headers) else self._remote_response


def _reply(facts: dict[str, Any]) -> Response:
    return Response(encode(facts), 200, JSON_HEAD + b"cache-control: no-store\r\n")
