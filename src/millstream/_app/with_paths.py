"""The part of `Server` that serves paths and folders of the program's own."""

from collections.abc import Awaitable, Callable
from os import PathLike, fspath
from typing import TYPE_CHECKING, TypeVar, Unpack

from millstream._app.definition import Definition
from millstream._protocol.suggesting import suggesting
from millstream._server.features.resources import ResourceLabels
from millstream._server.functions.description import Names

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    Page = Callable[[Request], Response | Awaitable[Response]]

P = TypeVar("P", bound="Page")


class WithPaths:
    """A server with pages, webhooks and files beside MCP."""

    definition: Definition

    @suggesting
    def route(self, path: str, *, methods: Names = ("GET",), public: bool = False) -> "Callable[[P], P]":
        """Answer requests to a path: a page, a webhook, an API of your own.

        The function takes a `starlette.requests.Request` and returns a `starlette.responses.Response`, which may be a
        stream. A `def` function runs in a worker thread. Host, Origin and the size of the body are checked as for
        every path of the server; where callers sign in they have to for this path too, and ``request.state.principal``
        is who asks.

        Args:
            path: may have parameters, as in ``/hooks/{name}``: ``request.path_params["name"]``.
            methods: of HTTP; GET brings HEAD.
            public: nobody has to sign in for it.

        Raises:
            ValueError: Millstream or another route has the path.
            LocalError: the server runs already.

        Example:
            ``@mcp.route("/hooks/payments", methods=["POST"], public=True)``
        """

        def register(function: P) -> P:
            from millstream._app.added import route_of  # noqa: PLC0415  only for programs with pages of their own

            self.definition.add_path(route_of(path, function, methods=methods, public=public))
            return function

        return register

    @suggesting
    def static(self, path: str, folder: str | PathLike[str], *, max_age: int = 0, public: bool = False) -> None:
        """Serve the files of a folder below a path, ``index.html`` for a folder, and ``404.html`` for what isn't there.

        Nothing outside of the folder is served, and nothing whose name begins with a dot.

        Args:
            path: ``/app``, or ``/`` for whatever has no other path.
            folder: relative to the current directory.
            max_age: seconds for which clients keep a file without asking again; else they ask each time, by entity tag.
            public: nobody has to sign in for it.

        Raises:
            ValueError: Millstream or another route has the path, or there is no such folder.
            LocalError: the server runs already.

        Example:
            ``mcp.static("/app", "dist", public=True)``
        """
        from millstream._app.added import static_of  # noqa: PLC0415  only for programs with files of their own

        self.definition.add_path(static_of(path, fspath(folder), max_age=max_age, public=public))

    def files(self, uri: str, folder: str | PathLike[str], **options: "Unpack[ResourceLabels]") -> None:
        """Offer the files of a folder as resources: ``docs://`` lists them, ``docs://guide/start.md`` is one of them.

        Clients complete the path. Nothing outside of the folder is read, also not through a symbolic link, and nothing
        whose name begins with a dot; a file has up to 10 MiB.

        Args:
            uri: what the URIs begin with: a scheme, and perhaps a path, with a slash at the end.
            folder: relative to the current directory.
            options: as of ``@mcp.resource``, for the list and for the files.

        Raises:
            ValueError: there is no such folder, or the URI can't be one.

        Example:
            ``mcp.files("docs://", "docs")``
        """
        from millstream._app.folder import offer  # noqa: PLC0415  only for programs with files of their own

        offer(self.definition, uri, fspath(folder), options)
