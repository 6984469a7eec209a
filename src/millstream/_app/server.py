"""`Server`: the interface for programs. Decorators register functions, and the object is the ASGI application."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from os import PathLike, fspath
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, Unpack, overload

from millstream._app.argument_checks import (
    check_arguments,
    check_auth,
    check_completer,
    check_middleware,
    check_parts,
    check_server,
)
from millstream._app.definition import Definition, Info
from millstream._app.hub_access import HubAccess, no_hub
from millstream._app.method_aliases import ServerAliases
from millstream._app.part_table import choose_parts
from millstream._app.runtimes import Runtimes
from millstream._config import Settings
from millstream._override import override
from millstream._protocol.errors import suggest_keywords
from millstream._server.calls.services import ServerChange
from millstream._server.features.dependency_resolver import completer_of
from millstream._server.features.registry import Registry
from millstream._server.features.resources import (
    Prompt,
    PromptOptions,
    ResourceLabels,
    ResourceOptions,
    prompt_of,
    resource_of,
)
from millstream._server.features.tools import Tool, ToolOptions, tool_of
from millstream._server.functions.description import Names

if TYPE_CHECKING:
    from types import TracebackType

    from starlette.requests import Request
    from starlette.responses import Response

    from millstream._app.runtime import Runtime
    from millstream._parts import Part
    from millstream.auth._method import AuthMethodOrUnbound
    from millstream.extensions import Extension
    from millstream.gateway._upstream import UpstreamOptions
    from millstream.hub._subscriber import Authorize

    Page = Callable[[Request], Response | Awaitable[Response]]

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound="Callable[[str, dict[str, str]], Sequence[str] | Awaitable[Sequence[str]]]")
P = TypeVar("P", bound="Page")
E = TypeVar("E", bound="Extension")
Kind = Literal["tool", "resource", "prompt"]
Transport = Literal["http", "stdio", "sse", "streamable-http"]
Lifespan = Callable[["Server"], AbstractAsyncContextManager[Any]]


@suggest_keywords
class Server(ServerAliases):
    """An MCP server: register functions, then run it, mount it, or pass it to any ASGI server.

    Args:
        name: name that clients show.
        version: version of your server, not of the protocol.
        instructions: instructions for the client's model on how to use the server.
        info: title, description, icons, and website.
        store: URL of the store for streams and sessions; by default that of the settings, or ``memory://``.
        lifespan: ``async with`` context around the time the server runs; its value is ``ctx.lifespan``.
        serve: what to serve in addition to MCP: hub, rest, web, metrics, or all.
        auth: how callers sign in, from `millstream.auth`: ``auth.keys(…)``, ``auth.issuer(…)``, or a list of them.
        authorize_channel: ``f(principal, "publish" or "subscribe", channel)`` decides who may use a channel of the hub.
        middleware: hooks around calls, reads, prompts, lists, and messages (`millstream.middleware`), outermost first.
        parts: additional features that are opened with the server: see `millstream._parts.Part`.
        extensions: MCP extensions, with methods and capabilities: see `millstream.extensions.Extension`.
        settings: operational settings; by default from ``MILLSTREAM_…`` variables.

    Example:
        ``mcp = Server("shop")``, then ``@mcp.tool`` on a function, then ``mcp.run()``.
    """

    _ELSEWHERE: ClassVar = {
        "debug": "Start it with `millstream run --dev`.",
        "description": "Write `info=Info(description=…)`.",
        "host": "Give it to the start: `mcp.run(host=…)`, or `millstream run --host`.",
        "json_response": "Write `settings=Settings(json_only=True)`.",
        "port": "Give it to the start: `mcp.run(port=…)`, or `millstream run --port`.",
        "stateless_http": "Write `settings=Settings(sessions=False)`.",
        "title": "Write `info=Info(title=…)`.",
        "tools": "Write `mcp.add_tool(function)`.",
    }

    def __init__(  # noqa: PLR0913  each is of the server itself, and named
        self,
        name: str,
        *,
        version: str = "",
        instructions: str = "",
        info: Info | None = None,
        store: str = "",
        lifespan: Lifespan | None = None,
        serve: str | Collection[str] = (),
        auth: "AuthMethodOrUnbound | Sequence[AuthMethodOrUnbound] | None" = None,
        authorize_channel: "Authorize | None" = None,
        middleware: Sequence[object] = (),
        parts: "Sequence[Part]" = (),
        extensions: "Sequence[Extension]" = (),
        settings: Settings | None = None,
    ) -> None:
        added: tuple[Extension, ...] = ()
        hooked: list[Extension] = []
        if extensions != ():
            from millstream.extensions._part import check_extensions, has_hooks  # noqa: PLC0415  few servers have some

            added = check_extensions(extensions)
            hooked = [each for each in added if has_hooks(each)]
        kinds: dict[str, tuple[Any, type]] = {"info": (info, Info), "settings": (settings, Settings)}
        check_arguments(name, lifespan, kinds, version=version, instructions=instructions, store=store)
        self.definition: Definition = Definition(
            name,
            version=version,
            instructions=instructions,
            info=info or Info(),
            store=store,
            lifespan=None if lifespan is None else partial(lifespan, self),
            parts=choose_parts(serve),
            authorize_channel=authorize_channel,
            settings=settings if settings is not None else Settings.load(),
            auth=check_auth(auth),
            middleware=(*check_middleware(middleware), *hooked),
            extra_parts=check_parts(parts),
        )
        """Definition of the server."""
        self.runtimes: Runtimes = Runtimes(self.definition)
        """Runtimes of the server."""
        self._extensions: list[Extension] = []
        for each in added:
            self._plug_in(each)

    def extend(self, extension: E) -> E:
        """Add an MCP extension before the server runs, and return it: ``stock = mcp.extend(Stock())``.

        Its hooks around tools, resources, and prompts apply to those that are registered afterwards.

        Raises:
            ValueError: an extension with that identifier exists.
            LocalError: the server is running, is mounted on another one, or already has middleware and items.
        """
        from millstream.extensions._part import check_extensions, has_hooks  # noqa: PLC0415  few servers have some

        check_extensions([*self._extensions, extension])
        self.definition.check_extensible(extension.name, hooks=has_hooks(extension))
        if has_hooks(extension):
            self.definition.add_middleware(extension)
        self._plug_in(extension)
        return extension

    def extension(self, kind: "type[E]") -> "E | None":
        """Return the extension of a class, or None: ``mcp.extension(Stock)``."""
        return next((each for each in self._extensions if isinstance(each, kind)), None)

    def _plug_in(self, extension: "Extension") -> None:
        from millstream.extensions._part import ExtensionPart  # noqa: PLC0415  as above

        self._extensions.append(extension)
        self.definition.extra_parts = (*self.definition.extra_parts, ExtensionPart(extension, self))
        extension.bind_server(self)

    @override
    def __repr__(self) -> str:
        kinds = ("tools", "resources", "templates", "prompts")
        return f"<Server {self.name!r}: {', '.join(f'{len(getattr(self.registry, each))} {each}' for each in kinds)}>"

    @property
    def name(self) -> str:
        """Name that clients show."""
        return self.definition.name

    @property
    def version(self) -> str:
        """Version of the server, not of the protocol."""
        return self.definition.version

    @property
    def settings(self) -> Settings:
        """Operational settings."""
        return self.definition.settings

    @property
    def registry(self) -> Registry:
        """Registered items."""
        return self.definition.registry

    @property
    def dependency_overrides(self) -> dict[Callable[..., Any], Callable[..., Any]]:
        """Replacements of dependencies in tests: ``mcp.dependency_overrides[database] = fake``."""
        return self.definition.overrides

    # Registration

    @overload
    def tool(self, function: F, /) -> F: ...
    @overload
    def tool(self, /, **options: Unpack[ToolOptions]) -> Callable[[F], F]: ...
    def tool(self, function: Any = None, /, **options: Unpack[ToolOptions]) -> Any:
        """Register a function as a tool: ``@mcp.tool``, or ``@mcp.tool(title="Add", timeout=5)``. Return the function.

        Keyword options: see `millstream._server.features.tools.ToolOptions`.
        """
        if self.settings.coerce_arguments:
            options.setdefault("coerce", True)
        return _decorate(function, lambda each: self._add("tools", tool_of(each, home=self.definition, **options)))

    def resource(self, uri: str, **options: Unpack[ResourceOptions]) -> Callable[[F], F]:
        """Register a function as a resource, ``@mcp.resource("book://{isbn}")``, or as a template if the URI has
        variables.

        Keyword options: see `millstream._server.features.resources.ResourceOptions`.
        """
        if callable(uri):
            raise TypeError('resource requires its URI: @mcp.resource("book://{isbn}")')
        return lambda function: _decorate(function, lambda each: self._add_resource(uri, each, options))

    def live(self, uri: str, **options: Unpack[ResourceOptions]) -> Callable[[F], F]:
        """Register a resource whose updates are published with `resource_updated`: ``@mcp.live("shop://stock")``."""
        return self.resource(uri, **options)

    @overload
    def prompt(self, function: F, /) -> F: ...
    @overload
    def prompt(self, /, **options: Unpack[PromptOptions]) -> Callable[[F], F]: ...
    def prompt(self, function: Any = None, /, **options: Unpack[PromptOptions]) -> Any:
        """Register a function as a prompt: ``@mcp.prompt``. Options: see `server.features.prompts.PromptOptions`."""
        return _decorate(function, lambda each: self._add("prompts", prompt_of(each, home=self.definition, **options)))

    def complete(self, reference: str, argument: str) -> Callable[[C], C]:
        """Register a completer, ``@mcp.complete("review", argument="tone")``, for ``def f(value, arguments) ->
        list[str]``.

        Args:
            reference: name of a prompt, or URI template of a resource.
            argument: argument or variable to complete.

        Raises:
            ValueError: the prompt or template has no such argument.
        """

        def register(function: C) -> C:
            check_completer(f"complete({reference!r}, {argument!r})", function)
            self.definition.complete(reference, argument, completer_of(function, home=self.definition))
            return function

        return register

    def _add(self, kind: str, item: Tool | Prompt) -> None:
        self.definition.add(kind, item.name, item)

    def _add_resource(self, uri: str, function: Callable[..., Any], options: ResourceOptions) -> None:
        item = resource_of(uri, function, home=self.definition, **options)
        self.definition.add("templates" if "{" in uri else "resources", uri, item)

    # While running

    def remove_tool(self, name: str) -> None:
        """Remove a tool: ``mcp.remove_tool("add")``. Raises KeyError if it doesn't exist."""
        self.definition.remove("tools", name)

    def remove_prompt(self, name: str) -> None:
        """Remove a prompt: ``mcp.remove_prompt("review")``. Raises KeyError if it doesn't exist."""
        self.definition.remove("prompts", name)

    def remove_resource(self, uri: str) -> None:
        """Remove a resource or template: ``mcp.remove_resource("shop://1")``. Raises KeyError if it doesn't exist."""
        self.definition.remove(self.definition.kind_of("resource", uri), uri)

    def disable(self, kind: Kind | None = None, name: str = "", *, tag: str = "") -> None:
        """Stop offering an item, on every worker, until it's enabled again. Running calls finish.

        Callers can't distinguish a disabled item from a missing one. Subscribed clients are notified that the list
        changed.

        Args:
            kind: kind of the item.
            name: name of the item, or URI of a resource or template.
            tag: instead of kind and name, disables all items with a tag, even if there are none.

        Raises:
            KeyError: the item doesn't exist.
            TypeError: neither a kind and a name nor a tag was passed.

        Example:
            ``mcp.disable("tool", "order")``, or ``mcp.disable(tag="beta")``.
        """
        self._switch(kind, name, tag, on=False)

    def enable(self, kind: Kind | None = None, name: str = "", *, tag: str = "") -> None:
        """Offer a disabled item again, at its old position. Arguments and errors are those of `disable`.

        Example:
            ``mcp.enable("tool", "order")``, or ``mcp.enable(tag="beta")``.
        """
        self._switch(kind, name, tag, on=True)

    def _switch(self, kind: Kind | None, name: str, tag: str, *, on: bool) -> None:
        definition = self.definition
        if (kind is not None and bool(name)) is bool(tag) or (kind is not None and not name):
            raise TypeError('pass either a kind and a name, as in ("tool", "order"), or tag="beta"')
        meant = definition.find_tagged(tag) if kind is None else [(definition.kind_of(kind, name), name)]
        for each, key in meant:
            definition.switch(each, key, on=on)

    # The program's own paths and folders

    @suggest_keywords
    def route(self, path: str, *, methods: Names = ("GET",), public: bool = False) -> "Callable[[P], P]":
        """Handle requests to a path: a page, a webhook, or your own API.

        The function takes a `starlette.requests.Request` and returns a `starlette.responses.Response`, which may be a
        stream. A `def` function runs in a worker thread. Host, Origin, and the size of the body are checked like on
        every path of the server. If callers have to sign in, this path requires it as well, and
        ``request.state.principal`` is the caller.

        Args:
            path: path, optionally with parameters, as in ``/hooks/{name}``: ``request.path_params["name"]``.
            methods: HTTP methods; GET includes HEAD.
            public: whether callers don't have to sign in for it.

        Raises:
            ValueError: Millstream or another route uses the path.
            LocalError: the server is already running.

        Example:
            ``@mcp.route("/hooks/payments", methods=["POST"], public=True)``
        """

        def register(function: P) -> P:
            from millstream._app.user_routes import route_of  # noqa: PLC0415  only for programs with pages of their own

            self.definition.add_path(route_of(path, function, methods=methods, public=public))
            return function

        return register

    @suggest_keywords
    def static(self, path: str, folder: str | PathLike[str], *, max_age: int = 0, public: bool = False) -> None:
        """Serve the files of a folder below a path, with ``index.html`` for a folder, and ``404.html`` for missing
        files.

        Files outside of the folder and hidden files aren't served.

        Args:
            path: ``/app``, or ``/`` for everything that has no other path.
            folder: path of the folder, relative to the current directory.
            max_age: seconds for which clients cache a file; by default they revalidate it each time, by entity tag.
            public: whether callers don't have to sign in for it.

        Raises:
            ValueError: Millstream or another route uses the path, or the folder doesn't exist.
            LocalError: the server is already running.

        Example:
            ``mcp.static("/app", "dist", public=True)``
        """
        from millstream._app.user_routes import static_of  # noqa: PLC0415  only for programs with files of their own

        self.definition.add_path(static_of(path, fspath(folder), max_age=max_age, public=public))

    def files(self, uri: str, folder: str | PathLike[str], **options: "Unpack[ResourceLabels]") -> None:
        """Offer the files of a folder as resources: ``docs://`` is their list, ``docs://guide/start.md`` one of them.

        Clients can complete the path. Files outside of the folder, even through symbolic links, and hidden files aren't
        read; a file may have up to 10 MiB.

        Args:
            uri: prefix of the URIs: a scheme, and optionally a path, ending with a slash.
            folder: path of the folder, relative to the current directory.
            options: options of ``@mcp.resource``, for the list and the files.

        Raises:
            ValueError: the folder doesn't exist, or the URI is invalid.

        Example:
            ``mcp.files("docs://", "docs")``
        """
        from millstream._app.folder import offer  # noqa: PLC0415  only for programs with files of their own

        offer(self.definition, uri, fspath(folder), options)

    # Composition

    @classmethod
    def from_openapi(cls, spec: Any, client: Any = None, *, name: str = "OpenAPI", **options: Any) -> "Server":
        """Return a server whose tools are the operations of an API: ``Server.from_openapi(spec, name="shop")``.

        Args:
            spec: the OpenAPI document, version 3.0 or 3.1, as a dict.
            client: an `AsyncClient` of httpx2 or httpx; by default one for the first server of the document.
            name: name that clients show.
            options: `routes`, a list of `millstream.gateway.RouteMap`, `names`, and `choose`.

        Raises:
            ValueError: the document is invalid, or has no server and `client` isn't given.
        """
        from millstream.gateway._openapi import register  # noqa: PLC0415  few servers use it

        made = cls(name)
        register(made.definition, spec, client, **options)
        return made

    @classmethod
    def from_fastapi(cls, app: Any, *, name: str = "", **options: Any) -> "Server":
        """Return a server whose tools are the operations of a FastAPI application: ``Server.from_fastapi(app)``.

        Args:
            app: the application.
            name: name that clients show; by default the application's title.
            options: options of `from_openapi`.
        """
        from millstream.gateway._openapi import client_of_app  # noqa: PLC0415  few servers use it

        return cls.from_openapi(app.openapi(), client_of_app(app), name=name or app.title, **options)

    def upstream(self, name: str, target: Any = None, **options: "Unpack[UpstreamOptions]") -> None:
        """Offer the items of another server as part of this one, in every revision and on every transport.

        It connects when this server starts, and again whenever the connection is lost. An unreachable upstream doesn't
        prevent the start: `/readyz` and `/health` report it.

        Args:
            name: name for logs, metrics, and pages, and prefix of its tools' names (``files_read``).
            target: a URL, a command as text or list, a file, an entry of `mcpServers`, or a server object.
            options: see `millstream.gateway.UpstreamConfig`; ``prefix=""`` leaves the names unchanged.

        Raises:
            TypeError: an option is unknown.
            LocalError: this server is already running, or is mounted on another one.

        Example:
            ``mcp.upstream("files", ["npx", "-y", "@modelcontextprotocol/server-filesystem", "."])``
        """
        from millstream.gateway._upstream import UpstreamConfig  # noqa: PLC0415  few servers are gateways

        self.definition.add_upstream(UpstreamConfig(name=name, target=target, **options))

    @suggest_keywords
    def mount(self, other: "Server", *, prefix: str = "") -> None:
        """Offer the items of another server, now and later: ``mcp.mount(books, prefix="books")`` adds ``books_buy``.

        Its lifespan runs inside this server's, and its functions see the yielded value as ``ctx.lifespan``; without its
        own lifespan, they see this server's.

        Raises:
            ValueError: a server can't contain itself, a name is taken, or the other has a lifespan and this one is
                running.
            TypeError: the other isn't a Server.
        """
        check_server(other, Server)
        self.definition.mount(other.definition, prefix)

    async def resource_updated(self, uri: str) -> None:
        """Notify all subscribers of a resource that it has changed: ``await mcp.resource_updated("shop://stock")``.

        Raises:
            UnicodeEncodeError: the URI can't be encoded, for example after ``os.fsdecode`` of a name that isn't UTF-8.
        """
        self.definition.emit(ServerChange("updated", uri))

    # Running

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None, None]:
        """Run the server inside the ``async with`` block; the ``lifespan`` for an application that it's mounted in.

        Example:
            ``app = FastAPI(lifespan=mcp.lifespan)``, then ``app.mount("/", mcp)``.
        """
        async with self.runtimes.running():
            yield

    def running(self) -> "AbstractAsyncContextManager[Runtime]":
        """Run the server inside the ``async with`` block, in this event loop, and yield its runtime."""
        return self.runtimes.running()

    async def start(self, *, supervised: bool = False) -> "Runtime":
        """See `Runtimes.start`."""
        return await self.runtimes.start(supervised=supervised)

    async def stop(self) -> None:
        """Stop the server in this event loop, if it's running."""
        await self.runtimes.stop()

    @property
    def hub(self) -> HubAccess:
        """The hub of the server: ``await mcp.hub.publish("news", {"n": 1})`` opens it if necessary.

        Raises:
            LocalError: the server has no hub.
        """
        if "hub" not in self.definition.parts:
            raise no_hub(self.name)
        return HubAccess(self.runtimes)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Handle HTTP and lifespan (ASGI 3)."""
        runtime = self.runtimes.current
        if (
            scope["type"] == "http"
            and runtime is not None
            # Compares threads because `asyncio.get_running_loop` makes a system call.
            and runtime.thread == get_ident()
            and runtime.loop.is_running()
        ):
            await runtime.adapter.__call__(scope, receive, send)
        else:
            from millstream._app.server_process import entry  # noqa: PLC0415  a stdio server does without

            await entry.serve(self, scope, receive, send)

    @suggest_keywords
    def run(
        self, transport: Transport | None = None, *, host: str | None = None, port: int | None = None, workers: int = 1
    ) -> None:
        """Serve until stopped: ``mcp.run()``, or ``mcp.run("http", port=9000)``.

        With several workers, each of them runs your program up to this call and then serves, supervised by this
        process.

        Args:
            transport: ``http`` or ``stdio``; by default stdio if standard input is a pipe, or else HTTP. ``sse`` and
                ``streamable-http`` mean ``http``, which serves both.
            host: address to listen on; by default ``MILLSTREAM_HOST``, or 127.0.0.1.
            port: port to listen on; by default ``MILLSTREAM_PORT``, or 8000.
            workers: number of processes that serve over HTTP.
        """
        from millstream._app.server_process import launch  # noqa: PLC0415  loads an HTTP server only where one is wanted

        launch.launch(self, transport, host, port, workers)

    @suggest_keywords
    async def run_async(
        self, transport: Transport = "http", *, host: str | None = None, port: int | None = None
    ) -> None:
        """Serve in the running loop, until stopped or canceled: ``await mcp.run_async(port=9000)``; see `run`."""
        from millstream._app.server_process import launch  # noqa: PLC0415  see `run`

        await launch.launch_here(self, transport, host, port)


def _decorate(function: Any, register: Callable[[Any], None]) -> Any:
    def decorate(each: Any) -> Any:
        try:
            register(each)
        except (TypeError, ValueError, ImportError) as error:
            # The error is about the line above, and is complete.
            raise error.with_traceback(_annotations(error.__traceback__)) from None
        return each

    return decorate if function is None else decorate(function)


def _annotations(trace: "TracebackType | None") -> "TracebackType | None":
    """Return the part of a traceback that begins in a function's annotations, which Python 3.14 evaluates lazily."""
    while trace is not None and trace.tb_frame.f_code.co_name != "__annotate__":
        trace = trace.tb_next
    return trace
