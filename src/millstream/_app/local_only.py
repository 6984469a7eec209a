"""Restriction of private paths to this machine, if callers don't sign in: the pages, `/publish`, `/metrics`.

A loopback address isn't sufficient, because a proxy on the same machine has one, too, and its clients may be anywhere.
A request counts as local only if the server is bound to a loopback address (or its address is unknown), the peer has
one, no header says that the request was forwarded, and its Host is a loopback name.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from millstream._http.hosts import is_loopback, parse_authority
from millstream._http.message import TEXT_HEAD, Handler, HttpRequest, Response, Sink
from millstream._server.calls.services import ObserveMessage

if TYPE_CHECKING:
    from millstream._http.server.guard import ServerState

_FORWARDED = frozenset({b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip"})
_PREFIX = b"x-forwarded"
_REFUSED = Response(
    b"This page is for programs on the server's own machine, because nobody has to sign in here. Open it there at a "
    b"loopback address such as http://127.0.0.1:8000, on a server bound to one, and not through a proxy.\n",
    403,
    TEXT_HEAD,
)


class Bind(Struct, frozen=True):
    """Where the server listens, as far as known."""

    loopback: bool | None = None
    """Whether only this machine can reach it; None if its address is unknown."""
    state: "ServerState | None" = None
    """State of our own HTTP server; None under another one."""
    seats: Collection[object] = ()
    """State of each worker for `/health`, with several workers."""


class LocalOnly:
    """Distinguishes programs on this machine from others."""

    def __init__(self, bind: Bind, note: ObserveMessage) -> None:
        self._bind = bind
        self._note = note

    def allows(self, peer: str, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether a request comes directly from a program on this machine.

        Args:
            peer: Address of the peer.
            headers: Headers of the request, with names in lower case.
        """
        if self._bind.loopback is False or not is_loopback(peer):
            return False
        if any(name in _FORWARDED or name.startswith(_PREFIX) for name in headers):
            return False
        host = parse_authority(headers.get(b"host", b""))
        return host is not None and host.loopback

    def guard(self, handler: Handler, *, message: str = "") -> Handler:
        """Wrap a handler to accept only programs on this machine.

        `message` describes a refused request for message logs.
        """

        async def check_peer(request: HttpRequest) -> Response | Sink | None:
            if self.allows(request.peer, request.headers):
                return await handler(request)
            if message:
                self._note(message, "http", status="403", address=request.peer)
            return _REFUSED

        return check_peer
