"""Paths that a program adds: pages and webhooks of its own (``@mcp.route``) and folders of files (``mcp.static``).

They are requests, responses and files of Starlette, behind our checks of Host and Origin, our limits, and the guard
where callers sign in. This module loads Starlette, so it's imported for the first one that is added.
"""

import asyncio
import inspect
import logging
import re
from collections.abc import Callable, Collection, Iterable
from functools import partial
from secrets import token_hex
from typing import Any, Final

from msgspec import Struct
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.exceptions import HTTPException
from starlette.requests import Request as PageRequest
from starlette.responses import Response as PageResponse
from starlette.routing import compile_path

from millstream._http.asgi.hosted_application import Application, BrokenReply, HostedApplication
from millstream._http.message import Handler, HttpRequest, Response, Sink, refusal
from millstream._parts import Route, RouteRegistry
from millstream._server.calls.threads import Threads
from millstream._telemetry.user_frames import shown_error, with_user_frames

logger = logging.getLogger("millstream")

_TAKEN = frozenset(
    (
        "/sse", "/messages/", "/messages", "/message", "/health", "/livez", "/readyz", "/events", "/publish", "/ws",
        "/openapi.json", "/docs", "/connect", "/dashboard", "/chat", "/inspect", "/metrics", "/sign-in",
        "/sign-out", "/mcp",
    )
)  # fmt: skip
"""What Millstream serves itself, or would with one more part or setting."""
_TAKEN_BELOW = (
    "/mcp/",
    "/tools/",
    "/assets/",
    "/connect/",
    "/dashboard/",
    "/chat/",
    "/inspect/",
    "/.well-known/oauth-",
)
METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_threads = Threads(40)
"""For plain functions. Starlette's own threads would keep a process that ends until their function does, too."""
MAX_RANGES: Final = 8
"""Ranges that one request for a file may ask for; with more it gets the whole file."""


class UserRoute(Struct, frozen=True, eq=False):
    """One path, or all below one."""

    path: str
    methods: frozenset[str]
    public: bool
    pattern: re.Pattern[str] | None
    """What fits, where the path has parameters."""
    below: bool
    """Everything below the path, too."""
    make: Callable[[str, Callable[[], bool]], Handler]
    """``make(path, show_errors)``: the handler, with what stands before the path where its server is mounted."""
    fixed: bool = False
    """Mounting doesn't move it. It replaces a page of Millstream's own, but not MCP or a path to sign in. Of two with
    the same path, the first one stays."""


class UserRoutes(RouteRegistry):
    """The paths of a server and of what is mounted on it."""

    __slots__ = ("_fixed",)

    def __init__(
        self, routes: Iterable[tuple[str, UserRoute]], *, served: Collection[str], show_errors: Callable[[], bool]
    ) -> None:
        """Register them.

        Args:
            routes: each with what stands before its path.
            served: the paths where MCP is served.
            show_errors: whether callers see what failed.

        Raises:
            ValueError: two of them, or one and MCP, have the same path and method.
        """
        super().__init__()
        self._fixed: set[str] = set()
        """The exact paths that replace pages of Millstream's own."""
        mcp = {each.rstrip("/") for each in served}
        for before, each in routes:
            made = Route(
                dict.fromkeys(sorted(each.methods), each.make("" if each.fixed else before, show_errors)),
                public=each.public,
            )
            if not each.fixed:
                self._put(before, each, made, mcp)
            elif each.path.rstrip("/") not in mcp:
                self._put_fixed(each, made)

    def join(self, routes: RouteRegistry) -> None:
        """Add these paths to those of the parts.

        Raises:
            ValueError: a part serves one of them.
        """
        for path, route in self.exact.items():
            known = routes.exact.get(path)
            # The program decides whether a path is public, so it must not be one of ours.
            if known is not None and path not in self._fixed:
                raise ValueError(f"{path!r} is a path of Millstream's own here. Use another one for your own route")
            if known is None or not known.reserved:
                routes.exact[path] = route
        routes.patterns += self.patterns
        for prefix in sorted(self.prefixes, key=len, reverse=True):
            routes.add_prefix(prefix, self.prefixes[prefix])

    def _put(self, before: str, each: UserRoute, made: Route, mcp: Collection[str]) -> None:
        whole = before + each.path
        check_path(whole + "/" if each.below and each.path != "/" else whole)
        if whole.rstrip("/") in mcp:
            raise ValueError(f"{whole!r} is where MCP is served. Use another path, or serve MCP elsewhere")
        if each.pattern is not None:
            self.patterns.append((re.compile(re.escape(before) + each.pattern.pattern.lstrip("^")), made))
            return
        known = self.exact.get(whole)
        if known is not None and known.handlers.keys() & made.handlers.keys():
            raise ValueError(f"{whole!r} was added twice")
        if known is not None and known.public is not made.public:
            raise ValueError(f"{whole!r} is public for one method and not for another: split the path")
        self.exact[whole] = made if known is None else _both(made, known)
        if each.below:
            self.add_prefix(whole.rstrip("/") + "/", made)

    def _put_fixed(self, each: UserRoute, made: Route) -> None:
        known = self.exact.get(each.path)
        if each.pattern is not None:
            self.patterns.append((each.pattern, made))
        elif known is None or known.public is made.public:
            self.exact[each.path] = made if known is None else _both(made, known)
            self._fixed.add(each.path)


def _both(route: Route, first: Route) -> Route:
    """Return one route with the methods of two, where those of the first one stay."""
    return Route({**route.handlers, **first.handlers}, public=first.public)


def route_of(
    path: str, function: Callable[..., Any], *, methods: Collection[str], public: bool, fixed: bool = False
) -> UserRoute:
    """A function that answers requests to a path: ``f(request) -> Response``, of Starlette.

    Raises:
        ValueError: the path or a method cannot be, or Millstream serves the path itself.
        TypeError: one method without a list.
    """
    (check_form if fixed else check_path)(path)
    if isinstance(methods, str):
        raise TypeError(f"route({path!r}): methods is a list: methods=[{methods!r}]")
    chosen = frozenset(each.upper() for each in methods)
    if not chosen or chosen - METHODS:
        raise ValueError(f"route({path!r}): methods are {', '.join(sorted(METHODS))}, not {sorted(chosen) or 'none'}")
    pattern, _, convertors = compile_path(path)

    def make(before: str, show_errors: Callable[[], bool]) -> Handler:
        def parameters(request: HttpRequest) -> dict[str, Any]:
            found = pattern.match(request.path.removeprefix(before))
            values = {} if found is None else found.groupdict()
            return {name: convertors[name].convert(each) for name, each in values.items()}

        hosted = HostedApplication(_page(function), parameters=parameters if convertors else None)
        return _watched(hosted.serve, show_errors)

    if "GET" in chosen:
        chosen |= {"HEAD"}
    return UserRoute(path, chosen, public, pattern if convertors else None, False, make, fixed)


def static_of(path: str, folder: str, *, max_age: int, public: bool) -> UserRoute:
    """A folder of files below a path.

    Raises:
        ValueError: Millstream serves the path itself, or there is no such folder.
    """
    from millstream._app.files import Files  # noqa: PLC0415  only for programs with files of their own

    check_path(path.rstrip("/") + "/" if path != "/" else "/")
    if "{" in path:
        raise ValueError(f"static({path!r}): the path can't have parameters")
    files = Files(folder, max_age=max_age, max_ranges=MAX_RANGES, shared=public)

    def make(before: str, show_errors: Callable[[], bool]) -> Handler:
        return _watched(HostedApplication(files, below=before + path.rstrip("/")).serve, show_errors)

    return UserRoute(path.rstrip("/") or "/", frozenset(("GET", "HEAD")), public, None, True, make)


def application_at(path: str, application: Application, *, methods: Collection[str], below: bool) -> UserRoute:
    """A path of an ASGI application that stands before the check of credentials, as the application serves it.

    Args:
        path: as Starlette writes it, with parameters.
        application: gets the whole path.
        methods: of HTTP; none means all.
        below: everything below the path, too.
    """
    pattern: re.Pattern[str] | None = compile_path(path)[0]
    if below:
        pattern = re.compile(f"^{re.escape(path.rstrip('/'))}(?:/.*)?$")
    elif "{" not in path:
        pattern = None

    def make(before: str, show_errors: Callable[[], bool]) -> Handler:
        return _watched(HostedApplication(application).serve, show_errors)

    chosen = frozenset(methods) & METHODS or METHODS
    return UserRoute(path, chosen, True, pattern, False, make, True)


def check_form(path: str) -> None:
    """Make sure that this is a path.

    Raises:
        ValueError: it isn't one.
    """
    if not path.startswith("/") or not path.isascii() or any(each in path for each in "?#% \r\n\0\\"):
        raise ValueError(
            f"{path!r} isn't a path: write one that begins with / and has no query, as in '/hooks/payments'"
        )


def check_path(path: str) -> None:
    """Make sure that a program can have a path.

    Raises:
        ValueError: it cannot.
    """
    check_form(path)
    if path.rstrip("/") in _TAKEN or path in _TAKEN or path.startswith(_TAKEN_BELOW):
        raise ValueError(f"{path!r} is a path of Millstream's own. Use another one, such as '/my{path}'")


def _page(function: Callable[..., Any]) -> Application:
    awaited = inspect.iscoroutinefunction(function)
    later: set[asyncio.Task[None]] = set()
    """What goes on behind a reply: nothing else holds these tasks."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        request: PageRequest = PageRequest(scope, receive, send)
        if not awaited and _threads.full:
            raise HTTPException(503, "Too many requests are under way. Try again later.", {"Retry-After": "1"})
        response = await function(request) if awaited else await _threads.run(function, request)
        if not isinstance(response, PageResponse):
            raise TypeError(
                f"{function.__name__} gave a {type(response).__name__}; a route returns a response, such as "
                "starlette.responses.JSONResponse"
            )
        background, response.background = response.background, None
        try:
            await response(scope, receive, send)
            if background is not None:
                task = asyncio.create_task(_finish(background))
                later.add(task)
                task.add_done_callback(later.discard)
        finally:
            # A stream whose reader has gone is left where it waits: what it opened is to be closed now.
            end: Any = getattr(getattr(response, "body_iterator", None), "aclose", None)
            if end is not None:
                await end()

    return answer


async def _finish(background: Any) -> None:
    """Do what goes on behind a reply: blocking functions in threads that hold up no server that ends."""
    if isinstance(background, BackgroundTasks):
        for each in background.tasks:
            await _finish(each)
    elif isinstance(background, BackgroundTask) and not background.is_async:
        await _threads.run_anyway(partial(background.func, *background.args, **background.kwargs))
    else:
        await background()


def _watched(handler: Handler, show_errors: Callable[[], bool]) -> Handler:
    """A handler whose failures show as those of tools do."""

    async def watched(request: HttpRequest) -> Response | Sink | None:
        try:
            return await handler(request)
        except HTTPException as exc:
            given = {name.lower().replace("-", "_"): value for name, value in (exc.headers or {}).items()}
            return refusal(exc.status_code, exc.detail, **given)
        except BrokenReply as exc:
            raise with_user_frames(exc)  # noqa: B904  it's the same one
        except Exception as exc:
            incident = token_hex(8)
            error = with_user_frames(exc)
            logger.error("%s %a failed [incident %s]", request.method, request.path, incident, exc_info=error)
            text = f"Internal error. The server's log has the details under incident {incident}."
            return refusal(500, shown_error(error) if show_errors() else text)

    return watched
