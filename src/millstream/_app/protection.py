"""Which paths stand behind the guard, and which are open.

Every path stands behind it, but for those that are open by name. Where nobody signs in, what is nobody else's business
answers on the server's own machine only (`here_only`).
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from millstream._app.here_only import HereOnly
from millstream._config import Settings
from millstream._http.hosts import EXEMPT, HostPolicy
from millstream._http.message import Handler, Request, Response
from millstream._protocol.errors import LocalError
from millstream._protocol.principal import Principal
from millstream._server.calls.services import Services

if TYPE_CHECKING:
    from millstream._app.added import AddedPaths
    from millstream._app.definition import Definition
    from millstream.auth._guard import Guard

WATCH = "millstream:watch"
"""The scope for the figures of the server: the dashboard, what it reads, and metrics."""
PUBLISH = "millstream:publish"
"""The scope for publishing from outside, where no hook says who may publish."""


_PRIVATE = {
    "/publish": PUBLISH,
    "/dashboard": WATCH,
    "/dashboard/audit": WATCH,
    "/dashboard/calls": WATCH,
    "/dashboard/events": WATCH,
    "/dashboard/history": WATCH,
    "/dashboard/readers": WATCH,
    "/metrics": WATCH,
    "/chat": "",
    "/chat/members": "",
    "/inspect": "",
}
"""Path -> the scope that it takes. Where nobody signs in, these answer on this machine only."""
_ALWAYS_HERE = ("/inspect/servers", "/inspect/sign-in/", "/inspect/via/", "/inspect/callback")
"""These answer on this machine only, also where callers sign in: they reach what this machine reaches."""
_COMING_BACK = "/inspect/callback"
"""People come here from another site, and so without the cookie by which they are signed in: it knows them itself."""
_LOOKS = ("/assets/tokens.css", "/assets/base.css", "/assets/sign-in.css")
"""The style sheets of the pages of an authorization server."""
Paths = Mapping[str, Mapping[str, Handler]]
"""Path -> handlers by method."""
_NOTED = {"/publish": "hub/publish"}
"""What a refused request would have been, for those who log messages."""
_OPEN = ("/assets/", "/.well-known/oauth-", "/sign-in", "/sign-out")
"""What anybody may have: how the pages look, where to get a token, and the form to sign in."""


class Protection:
    """Puts every path of a running server behind what it takes."""

    __slots__ = ("_guard", "_here_only", "_hooked", "_served", "added", "own")

    def __init__(
        self,
        guard: "Guard | None",
        here_only: HereOnly,
        served: Collection[str],
        *,
        hooked: bool,
        own: Paths,
        added: "AddedPaths | None" = None,
    ) -> None:
        """Prepare it.

        Args:
            guard: in front of every path, where callers sign in.
            here_only: in front of some, where nobody does.
            served: the paths where MCP is served, which may be below those that anybody may have.
            hooked: the program says who may publish, so that no scope is needed for it.
            own: the paths by which callers sign in: they have no credential yet, so nothing stands before these.
            added: the paths of the program's own.

        Raises:
            ValueError: one of these is a path by which callers sign in.
        """
        self.added: AddedPaths | None = added
        if added is not None:
            added.yield_to(own.keys())
        taken = set[str]() if added is None else own.keys() & added.exact.keys()
        if taken:
            raise ValueError(
                f"{min(taken)!r} is a path by which callers sign in here. Use another one for your own route"
            )
        if added is not None and guard is not None:
            added.protect(lambda handlers: _guarded(guard, handlers))
        self.own: Paths = own
        self._served = frozenset(each.rstrip("/") for each in served)
        self._guard = guard
        self._here_only = here_only
        self._hooked = hooked

    def policy(self, settings: Settings, *, loopback_bind: bool | None) -> HostPolicy:
        """Which Host and Origin may talk to the server."""
        hosts, origins = settings.allowed_hosts, settings.allowed_origins
        shared: frozenset[str] = frozenset()
        if self._guard is not None:
            from millstream.auth._method import Serving  # noqa: PLC0415  only where somebody has to sign in

            shared = shared.union(*(each.shared_paths() for each in self._guard.methods if isinstance(each, Serving)))
        return HostPolicy(hosts, origins, loopback_bind=loopback_bind, shared=shared)

    def protect(self, path: str, handlers: Mapping[str, Handler]) -> Mapping[str, Handler]:
        """The handlers of a path, or of those that begin so, behind what it takes."""
        if self.added is not None and path in self.added.exact:
            guard = None if self.added.is_public(path) else self._guard
            return handlers if guard is None else _guarded(guard, handlers)
        if path.rstrip("/") not in self._served and (path in EXEMPT or path in self.own or path.startswith(_OPEN)):
            return handlers
        if path in _ALWAYS_HERE:
            handlers = {method: self._here_only.guard(handler) for method, handler in handlers.items()}
        guard, private = self._guard if path != _COMING_BACK else None, _PRIVATE.get(path)
        if guard is not None:
            scope = "" if private == PUBLISH and self._hooked else private or ""
            return _guarded(guard, handlers, scope)
        if private is None:
            return handlers
        message = _NOTED.get(path, "")
        return {method: self._here_only.guard(handler, message=message) for method, handler in handlers.items()}

    def may_publish(self, principal: Principal | None, address: str, headers: Mapping[bytes, bytes]) -> bool:
        """Whether somebody may publish on a socket, where the hub's own rules allow it."""
        if self._guard is None:
            return self._here_only.allows(address, headers)
        return self._hooked or (principal is not None and principal.has((PUBLISH,)))


def _guarded(guard: "Guard", handlers: Mapping[str, Handler], scope: str = "") -> Mapping[str, Handler]:
    return {method: guard.protect(handler, scope=scope) for method, handler in handlers.items()}


def added_paths(definition: "Definition") -> "AddedPaths | None":
    """The paths of the program's own, if it has some.

    Raises:
        ValueError: one of them is where MCP is served.
    """
    if not any(definition.paths()):
        return None
    from millstream._app.added import AddedPaths  # noqa: PLC0415  only for programs with pages of their own

    return AddedPaths(
        definition.paths(), served=definition.settings.mcp_paths, show_errors=lambda: definition.settings.show_errors
    )


def own_paths(guard: "Guard | None", definition: "Definition", services: Services) -> Paths:
    """The paths by which callers sign in.

    Raises:
        LocalError: nobody signs in here, and a server that is mounted on this one wants it.
    """
    if guard is None:
        _check_mounted(definition)
        return {}
    own: dict[str, Mapping[str, Handler]] = {
        path: {"GET": handler} for path, handler in _metadata(guard, definition).items()
    }
    if "rest" in definition.parts:
        own |= _sign_in(guard, definition, services)
    return {**own, **_issuing(guard)}


def _check_mounted(definition: "Definition") -> None:
    """A guard stands in front of a whole server: what is mounted can't have one of its own."""
    for each in definition.mounted:
        if each.auth:
            raise LocalError(
                f"{each.name!r} has auth=…, and is mounted on {definition.name!r}, which has none: anybody could call "
                f"its tools there. Give {definition.name!r} the same auth=…"
            )
        _check_mounted(each)


def _metadata(guard: "Guard", definition: "Definition") -> Mapping[str, Handler]:
    """Where to get a token; none where no authorization server gives any."""
    if not any(each.issuers for each in guard.methods):
        return {}
    from millstream.auth._asking_issuers import ask_issuer  # noqa: PLC0415
    from millstream.auth._resource import ResourceMetadata  # noqa: PLC0415

    registry = definition.registry
    return ResourceMetadata(guard.methods, definition.title, lambda: registry.scopes, ask_issuer).paths(
        definition.settings.path
    )


def _sign_in(guard: "Guard", definition: "Definition", services: Services) -> Paths:
    """Where people sign in to the pages."""
    from millstream.auth._sign_in import OUT_PATH, PATH, SignIn  # noqa: PLC0415

    pages = {"/docs", "/dashboard", "/chat", "/inspect"} if "web" in definition.parts else {"/docs"}
    sign_in = SignIn(guard, pages, lambda: services.ring, services.nonce, store=services.store, server=definition.title)
    guard.ambient, guard.challenges.form = sign_in.ambient, sign_in.page
    return {PATH: {"GET": sign_in.show, "POST": sign_in.take}, OUT_PATH: {"POST": sign_in.leave}}


def _issuing(guard: "Guard") -> Paths:
    """The paths of an authorization server that is part of this one, and what its pages look like."""
    from millstream.auth._method import Serving  # noqa: PLC0415  only where somebody has to sign in

    found: dict[str, Mapping[str, Handler]] = {}
    for each in guard.methods:
        if isinstance(each, Serving):
            paths = each.paths()
            below = {path.removesuffix("/authorize") for path in paths if path.endswith("/authorize")}
            found |= {prefix + name: {"GET": _look(name)} for prefix in below for name in _LOOKS}
            found |= paths
    return found


def _look(name: str) -> Handler:
    """The handler of a style sheet, wherever it is."""
    from millstream._web.pages import asset  # noqa: PLC0415  only where there are pages

    async def get(request: Request) -> Response:
        return asset(name, query=request.query, known=request.headers.get(b"if-none-match", b""))

    return get
