"""Paths of the program: pages and webhooks (``@mcp.route``), and folders of files (``mcp.static``).

They use Starlette's requests, responses, and files, behind our checks of Host and Origin, our limits, and the guard if
callers have to sign in. This module loads Starlette, so `Server` imports it only when a path is added.
"""

import asyncio
import inspect
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

from msgspec import Struct
from msgspec.structs import replace
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.exceptions import HTTPException
from starlette.requests import Request as PageRequest
from starlette.responses import FileResponse
from starlette.responses import Response as PageResponse
from starlette.routing import compile_path

from millstream._app.routes import KNOWN_PATHS
from millstream._http.asgi import Application, BrokenReply, HostedApplication
from millstream._http.hosts import EXEMPT
from millstream._http.message import (
    Handler,
    HttpRequest,
    Response,
    Sink,
    peer_network,
    plain_problem,
    refusal,
    wants_page,
)
from millstream._parts import Route, RouteRegistry
from millstream._protocol.principal import Principal
from millstream._server.pool import Threads, ThreadsBusy
from millstream._server.refusals import REFUSED, find_refusal
from millstream._tasks import Tasks
from millstream._telemetry.logs import shown_error, with_user_frames
from millstream._web.error_pages import error_page
from millstream.files import open_file


def _files(folder: str, *, max_age: int, shared: bool) -> Application:
    """Return an ASGI application that serves a folder, without hidden files, and with a limit on ranges.

    Starlette finds the file, and supports entity tags, ``Last-Modified``, ``index.html`` and ``404.html``, and ranges
    (RFC 9110 §14). It's opened by `open_file`, so links that lead outside the folder aren't followed.

    Args:
        folder: Folder of the files. Permitted callers can read all that aren't hidden.
        max_age: Seconds that clients cache a file without revalidation.
        shared: Whether shared caches may store the files.

    Raises:
        ValueError: The folder doesn't exist.
    """
    from starlette.staticfiles import StaticFiles  # noqa: PLC0415  only for programs with files of their own

    place = Path(folder).absolute()
    if not place.is_dir():
        raise ValueError(f"There is no folder {folder!r} in {Path.cwd()}.")
    files = StaticFiles(directory=place, html=True)
    whose = b"public" if shared else b"private"
    kept = b"%b, max-age=%d" % (whose, max_age) if max_age else b"%b, no-cache" % whose

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        inside = scope["path"].removeprefix(scope["root_path"])
        # Each file has one path. Another spelling could bypass the guarded prefix.
        if "//" in inside or any(part.startswith(".") for part in inside.replace("\\", "/").split("/")):
            raise HTTPException(404)
        headers = scope["headers"]
        if any(name == b"range" and value.count(b",") >= MAX_RANGES for name, value in headers):
            scope = {**scope, "headers": [pair for pair in headers if pair[0] != b"range"]}

        async def add_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(b"x-content-type-options", b"nosniff")]
                if message["status"] in (200, 206, 304):
                    more.append((b"cache-control", kept))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        reply, file = await _find(files, place, scope)
        with file or nullcontext():
            await reply(scope, receive, add_headers)

    return serve


_ATTEMPTS = 3
"""Attempts to open a file, because it may be replaced after it was found."""


async def _find(files: Any, folder: Path, scope: Any) -> tuple[PageResponse, BinaryIO | None]:
    """Return the reply of Starlette, and the file that it sends.

    Raises:
        HTTPException: There is no such file.
    """
    for _ in range(_ATTEMPTS):
        reply = await files.get_response(files.get_path(scope), scope)
        if not isinstance(reply, FileResponse):
            return reply, None
        file = await asyncio.to_thread(open_file, folder, Path(reply.path))
        if file is not None:
            _use(reply, file)
            return reply, file
    raise HTTPException(404)


def _use(reply: FileResponse, file: BinaryIO) -> None:
    """Send an open file instead of the one that's now at its path."""
    own = f"/dev/fd/{file.fileno()}"
    if os.path.exists(own):  # noqa: PTH110  not on Windows, where the path is opened again
        reply.path = own
    reply.stat_result = status = os.fstat(file.fileno())
    for name in ("content-length", "last-modified", "etag"):
        del reply.headers[name]
    reply.set_stat_headers(status)


logger = logging.getLogger("millstream")

_TAKEN = {
    *EXEMPT,
    *KNOWN_PATHS,
    "/sse",
    "/messages",
    "/message",
    "/sign-in",
    "/sign-in/account",
    "/sign-out",
    "/mcp",
} - {"/tools"}
"""Paths that Millstream serves itself, or would with another part or setting. `/tools` has only paths below it."""
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
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_threads = Threads(40)
"""Threads for plain functions. Starlette's own threads would delay the exit of the process until their functions
end.
"""
MAX_RANGES = 8
"""Maximum ranges per request for a file. With more, the whole file is sent."""


class UserRoute(Struct, frozen=True, eq=False):
    """A route: one path, or all paths below it."""

    path: str
    methods: frozenset[str]
    public: bool
    pattern: re.Pattern[str] | None
    """Compiled pattern, if the path has parameters."""
    below: bool
    """Whether it includes everything below the path."""
    host: Callable[[str], HostedApplication]
    """Returns the application behind it, given the prefix of its mounted server."""
    fixed: bool = False
    """Whether mounting leaves the path unchanged. Such a route replaces a built-in page, but not MCP or a sign-in path.
    Of two with the same path, the first one wins.
    """
    files: bool = False
    """Whether it serves a folder, which rate limits don't charge."""

    def serves(self, path: str, before: str = "") -> bool:
        """Return whether this is the route of a path, with the prefix of its mounted server."""
        if not path.startswith(before):
            return False
        path = path[len(before) :]
        if self.pattern is not None:
            return self.pattern.match(path) is not None
        return path == self.path or (self.below and path.startswith(self.path.rstrip("/") + "/"))


class UserRoutes(RouteRegistry):
    """The paths of a server and its mounted servers."""

    def __init__(
        self, routes: Iterable[tuple[str, UserRoute]], *, served: Collection[str], show_errors: Callable[[], bool]
    ) -> None:
        """Register the paths.

        Args:
            routes: Routes, each with its prefix.
            served: Paths of MCP.
            show_errors: Whether callers see the cause of failures.

        Raises:
            ValueError: Two routes, or one and MCP, have the same path and method.
        """
        super().__init__()
        self._fixed: set[str] = set()
        """The exact paths that replace built-in pages."""
        mcp = {each.rstrip("/") for each in served}
        for before, each in routes:
            prefix = "" if each.fixed else before
            handler = _report_failures(each.host(prefix).serve, show_errors)
            made = Route(
                dict.fromkeys(sorted(each.methods), handler),
                public=each.public,
                charged="" if each.files else "request",
                own=True,
            )
            self._put(prefix, each, made, mcp)

    def join(self, routes: RouteRegistry) -> None:
        """Add these paths to the parts' paths.

        Raises:
            ValueError: A part serves one of them.
        """
        for path, route in self.exact.items():
            known = routes.exact.get(path)
            # The program decides whether its paths are public, so they must not be built-in ones.
            if known is not None and path not in self._fixed:
                raise ValueError(f"{path!r} is one of Millstream's own paths. Use another path for your route.")
            if known is None or not known.reserved:
                routes.exact[path] = route
        routes.patterns += self.patterns
        for prefix in sorted(self.prefixes, key=len, reverse=True):
            routes.add_prefix(prefix, self.prefixes[prefix])

    def _put(self, before: str, each: UserRoute, made: Route, mcp: Collection[str]) -> None:
        whole = before + each.path
        known, is_mcp = self.exact.get(whole), whole.rstrip("/") in mcp
        differs = known is not None and known.public is not made.public
        if each.fixed:
            if is_mcp or differs:
                return
            self._fixed.add(whole)
        else:
            check_path(whole + "/" if each.below and each.path != "/" else whole)
            if is_mcp:
                raise ValueError(f"{whole!r} is the MCP path. Use another path, or serve MCP elsewhere.")
            if known is not None and known.handlers.keys() & made.handlers.keys():
                raise ValueError(f"{whole!r} was added twice.")
            if differs:
                raise ValueError(
                    f"{whole!r} is public for one method and not for another. Use a separate path for each."
                )
        if each.pattern is not None:
            self.patterns.append((re.compile(re.escape(before) + each.pattern.pattern.lstrip("^")), made))
            return
        if known is not None:  # prefer the first
            made = Route({**made.handlers, **known.handlers}, public=known.public, own=True)
        self.exact[whole] = made
        if each.below:
            self.add_prefix(whole.rstrip("/") + "/", made)


def route_of(
    path: str, function: Callable[..., Any], *, methods: Collection[str], public: bool, fixed: bool = False
) -> UserRoute:
    """Return the route of a function: ``f(request) -> Response``, with Starlette's types.

    Raises:
        ValueError: The path or a method is invalid, or Millstream serves the path itself.
        TypeError: The methods are a string instead of a list.
    """
    (check_form if fixed else check_path)(path)
    if isinstance(methods, str):
        raise TypeError(f"route({path!r}): methods must be a list, such as methods=[{methods!r}].")
    chosen = frozenset(each.upper() for each in methods)
    if not chosen or chosen - METHODS:
        raise ValueError(
            f"route({path!r}): methods must be {', '.join(sorted(METHODS))}, not {sorted(chosen) or 'none'}."
        )
    pattern, _, convertors = compile_path(path)

    def host(before: str) -> HostedApplication:
        def parameters(request: HttpRequest) -> dict[str, Any]:
            found = pattern.match(request.path.removeprefix(before))
            values = {} if found is None else found.groupdict()
            return {name: convertors[name].convert(each) for name, each in values.items()}

        return HostedApplication(_page(function), parameters=parameters if convertors else None)

    if "GET" in chosen:
        chosen |= {"HEAD"}
    return UserRoute(path, chosen, public, pattern if convertors else None, False, host, fixed)


def static_of(path: str, folder: str, *, max_age: int, public: bool) -> UserRoute:
    """Return the route for a folder's files below a path.

    Raises:
        ValueError: Millstream serves the path itself, or the folder doesn't exist.
    """
    check_path(path.rstrip("/") + "/" if path != "/" else "/")
    if "{" in path:
        raise ValueError(f"static({path!r}): the path can't have parameters.")
    files, path = _files(folder, max_age=max_age, shared=public), path.rstrip("/")

    def host(before: str) -> HostedApplication:
        return HostedApplication(files, mount_path=before + path)

    return UserRoute(path or "/", frozenset(("GET", "HEAD")), public, None, True, host, files=True)


def application_at(path: str, application: Application, *, methods: Collection[str], below: bool) -> UserRoute:
    """Return the route of an ASGI application in front of the guard.

    Args:
        path: Path with parameters, in Starlette's syntax.
        application: Receives the whole path.
        methods: HTTP methods; none means all.
        below: Whether it includes everything below the path.
    """
    pattern: re.Pattern[str] | None = compile_path(path)[0]
    if below:
        pattern = re.compile(f"^{re.escape(path.rstrip('/'))}(?:/.*)?$")
    elif "{" not in path:
        pattern = None

    chosen = frozenset(methods) & METHODS or METHODS
    return UserRoute(path, chosen, True, pattern, False, lambda _: HostedApplication(application), True)


def check_form(path: str) -> None:
    """Check the syntax of a path.

    Raises:
        ValueError: It isn't a path.
    """
    if not path.startswith("/") or not path.isascii() or any(each in path for each in "?#% \r\n\0\\"):
        raise ValueError(
            f"{path!r} isn't a path. Write one that begins with / and has no query, as in '/hooks/payments'."
        )


def check_path(path: str) -> None:
    """Check that a program can use a path.

    Raises:
        ValueError: It can't.
    """
    check_form(path)
    if path.rstrip("/") in _TAKEN or path.startswith(_TAKEN_BELOW):
        raise ValueError(f"{path!r} is one of Millstream's own paths. Use another one, such as '/my{path}'.")


def _page(function: Callable[..., Any]) -> Application:
    awaited = inspect.iscoroutinefunction(function)
    later = Tasks()
    """Tasks that continue after a response."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        request: PageRequest = PageRequest(scope, receive, send)
        principal: Principal | None = request.state.principal
        owner = peer_network(request.client.host if request.client else "") if principal is None else principal.id
        try:
            response = await function(request) if awaited else await _threads.run(function, request, owner=owner)
        except ThreadsBusy as exc:
            raise HTTPException(503, "Too many requests are running. Try again later.", {"Retry-After": "1"}) from exc
        if not isinstance(response, PageResponse):
            raise TypeError(
                f"{function.__name__} returned a {type(response).__name__}, but a route must return a response, "
                "such as starlette.responses.JSONResponse."
            )
        if principal is not None:
            # Shared caches may keep a page that a cookie opened, unlike one for `Authorization` (RFC 9111 §3.5).
            response.headers.setdefault("cache-control", "private, no-cache")
        background, response.background = response.background, None
        try:
            await response(scope, receive, send)
            if background is not None:
                later.spawn(_finish(background))
        finally:
            # An abandoned stream stays suspended, so close what it opened.
            end: Any = getattr(getattr(response, "body_iterator", None), "aclose", None)
            if end is not None:
                await end()

    return answer


async def _finish(background: Any) -> None:
    """Run a response's background task, with blocking functions in threads that don't delay shutdown."""
    if isinstance(background, BackgroundTasks):
        for each in background.tasks:
            await _finish(each)
    elif isinstance(background, BackgroundTask) and not background.is_async:
        await _threads.run_anyway(partial(background.func, *background.args, **background.kwargs))
    else:
        await background()


def _refuse(request: HttpRequest, reply: Response) -> Response:
    if wants_page(request):
        return error_page(request, reply, links={"Start page": "/"})
    return replace(reply, head=reply.head + b"vary: accept\r\n")


def _report_failures(handler: Handler, show_errors: Callable[[], bool]) -> Handler:
    """Wrap a handler to report failures in the same way as for tools."""

    async def handle(request: HttpRequest) -> Response | Sink | None:
        try:
            return await handler(request)
        except HTTPException as exc:
            given = {name.lower().replace("-", "_"): value for name, value in (exc.headers or {}).items()}
            return _refuse(request, refusal(exc.status_code, exc.detail, **given))
        except REFUSED as exc:
            refused, text = find_refusal(exc)
            if refused.is_trouble:
                logger.error("%s %a couldn't use the store: %s", request.method, request.path, exc)
            return _refuse(request, plain_problem(refused.status, text, refused.head))
        except BrokenReply as exc:
            raise with_user_frames(exc)  # noqa: B904  it's the same one
        except Exception as exc:
            incident = token_hex(8)
            error = with_user_frames(exc)
            logger.error("%s %a failed [incident %s]", request.method, request.path, incident, exc_info=error)
            text = f"Internal error. The server's log has the details under incident {incident}."
            return _refuse(request, refusal(500, shown_error(error) if show_errors() else text))

    return handle
