"""`Server`: the interface for programs. Decorators register functions, and the object is the ASGI application."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from os import PathLike, fspath
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Literal, Self, TypeVar, Unpack, overload

from millstream._app.argument_checks import check_arguments, check_auth, check_completer, check_middleware
from millstream._app.definition import KINDS, Definition, Info, choose_parts
from millstream._app.lifecycle import HubAccess, Runtimes, no_hub
from millstream._app.other_libraries import OTHER_KEYWORDS, OTHER_NAMES, RUN_KEYWORDS
from millstream._config import Settings
from millstream._copies import NotCopyable
from millstream._override import override
from millstream._server.calls.services import ServerChange
from millstream._server.features.registry import Registry
from millstream._server.features.resources import (
    Prompt,
    PromptOptions,
    ResourceLabels,
    ResourceOptions,
    prompt_of,
    resource_of,
)
from millstream._server.features.sources import completer_of
from millstream._server.features.tools import Tool, ToolOptions, tool_of
from millstream._server.functions.description import MountOptions, Names
from millstream._suggestions import no_attribute, suggest_keywords

if TYPE_CHECKING:
    from types import TracebackType

    from starlette.requests import Request
    from starlette.responses import Response

    from millstream._app.runtime import Runtime
    from millstream._gateway.options.sets import SetOptions
    from millstream._gateway.options.upstream import UpstreamOptions
    from millstream.auth._method import AnyAuthMethod
    from millstream.extensions import Extension
    from millstream.hub._subscriber import Authorize

    Page = Callable[[Request], Response | Awaitable[Response]]

F = TypeVar("F", bound=Callable[..., Any])

C = TypeVar("C", bound="Callable[Concatenate[str, dict[str, str], ...], Sequence[str] | Awaitable[Sequence[str]]]")
P = TypeVar("P", bound="Page")
E = TypeVar("E", bound="Extension")
Kind = Literal["tool", "resource", "prompt"]
Transport = Literal["http", "stdio", "sse", "streamable-http"]
Lifespan = Callable[["Server"], AbstractAsyncContextManager[Any]]


@suggest_keywords
class Server(NotCopyable):
    """An MCP server: register functions, then run it, mount it, or pass it to any ASGI server.

    Args:
        name: Name that clients show.
        version: Version of your server, not of the protocol.
        instructions: Instructions for the client's model on how to use the server.
        info: Title, description, icons, and website.
        store: URL of the store for streams and sessions, by default that of the settings, or ``memory://``.
        lifespan: An ``async with`` context that's open while the server runs. Its value is ``ctx.lifespan``.
        serve: What to serve in addition to MCP: hub, rest, web, metrics, several of them, or all.
        auth: Sign-in methods from `millstream.auth`: ``auth.keys(…)``, ``auth.issuer(…)``, or a list of them.
        authorize_channel: ``f(principal, "publish" or "subscribe", channel)`` decides who can use a channel of the hub.
            It must not block.
        middleware: Hooks around calls, reads, prompts, lists, and messages (`millstream.middleware`), outermost first.
        extensions: MCP extensions, with methods and capabilities: see `millstream.extensions.Extension`.
        settings: Operational settings, by default from ``MILLSTREAM_…`` variables.

    Raises:
        TypeError: An argument has the wrong type, or a keyword is unknown. The message identifies the right one.
        ValueError: `serve` names an unknown part.

    Example:
        ``mcp = Server("shop")``, then ``@mcp.tool`` on a function, then ``mcp.run()``.
    """

    _COPY_ADVICE = "Create it in each process, for example at the top of a module that each process imports."

    _ELSEWHERE: ClassVar = OTHER_KEYWORDS

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
        auth: "AnyAuthMethod | Sequence[AnyAuthMethod] | None" = None,
        authorize_channel: "Authorize | None" = None,
        middleware: Sequence[object] = (),
        extensions: "Sequence[Extension]" = (),
        settings: Settings | None = None,
    ) -> None:
        check_arguments(name, lifespan, info, settings, version=version, instructions=instructions, store=store)
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
            middleware=check_middleware(middleware),
        )
        """Definition of the server."""
        self.runtimes: Runtimes = Runtimes(self.definition)
        """Runtimes of the server."""
        self._extensions: list[Extension] = []
        if extensions != ():
            from millstream.extensions._extension import check_extensions  # noqa: PLC0415  few servers have some

            self._plug_in(check_extensions(extensions))

    def extend(self, extension: E) -> E:
        """Add an MCP extension before the server runs and return it: ``stock = mcp.extend(Stock())``.

        Its hooks apply to tools, resources, and prompts that are registered afterwards.

        Args:
            extension: An object of your subclass of `millstream.extensions.Extension`, or one that comes with
                Millstream.

        Raises:
            ValueError: An extension with that identifier exists.
            LocalError: The server is running, is mounted on another one, or already has middleware and items.
        """
        from millstream.extensions._extension import check_extensions  # noqa: PLC0415  few servers have some

        check_extensions([*self._extensions, extension])
        self._plug_in([extension])
        return extension

    def extension(self, kind: "type[E]") -> "E | None":
        """Return the extension of a class, or None: ``mcp.extension(Stock)``.

        Args:
            kind: The class. An extension of a subclass is also found.
        """
        return next((each for each in self._extensions if isinstance(each, kind)), None)

    def _plug_in(self, extensions: "Sequence[Extension]") -> None:
        from millstream.extensions._extension import ExtensionPart, has_hooks  # noqa: PLC0415  as above

        for each in extensions:  # their hooks exist before the items that they register
            self.definition.admit_extension(each.name, each if has_hooks(each) else None)
        for each in extensions:
            self._extensions.append(each)
            self.definition.extensions = (*self.definition.extensions, ExtensionPart(each))
            each.bind_server(self)

    @override
    def __repr__(self) -> str:
        return f"<Server {self.name!r}: {', '.join(f'{len(getattr(self.registry, each))} {each}' for each in KINDS)}>"

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
        """Replacements for dependencies in tests: ``mcp.dependency_overrides[database] = fake``."""
        return self.definition.overrides

    # Registration

    @overload
    def tool(self, function: F, /) -> F: ...
    @overload
    def tool(self, /, **options: Unpack[ToolOptions]) -> Callable[[F], F]: ...
    def tool(self, function: Any = None, /, *more: object, **options: Unpack[ToolOptions]) -> Any:
        """Register a function as a tool: ``@mcp.tool``, or ``@mcp.tool(title="Add", timeout=5)``. Return the function.

        The tool's name is the function's name, its description is the docstring, and its schemas come from the
        annotations (MCP 2025-11-25, server/tools).

        Args:
            function: The function. An ``async def`` function runs in the event loop, and a ``def`` function in a worker
                thread.
            more: Not allowed, because options are passed by name.
            options: Options of `millstream._server.features.tools.ToolOptions`, such as ``name``, ``title``,
                ``annotations``, ``timeout`` in seconds, ``scopes``, ``limit``, and ``task``.

        Raises:
            ValueError: The name is taken, or two options contradict each other.
            TypeError: An annotation has no schema, or an option is unknown.
            LocalError: Other workers are running.
        """
        if more:
            raise TypeError("mcp.tool takes one function. Write its options by name: @mcp.tool(name=…, description=…)")
        if self.settings.coerce_arguments:
            options.setdefault("coerce", True)
        return _decorate(function, lambda each: self._add("tools", tool_of(each, home=self.definition, **options)))

    def resource(self, uri: str, **options: Unpack[ResourceOptions]) -> Callable[[F], F]:
        """Register a function as a resource, ``@mcp.resource("book://{isbn}")``, or as a template if the URI has
        variables.

        Args:
            uri: The URI. A variable ``{name}`` matches one segment, and ``{name*}`` the rest of the path (RFC 6570, and
                MCP 2025-11-25, server/resources). Each variable is a parameter of the function.
            options: Options of `millstream._server.features.resources.ResourceOptions`, such as ``name``, ``title``,
                ``mime_type``, ``size`` in bytes, ``annotations``, and ``scopes``.

        Raises:
            ValueError: The URI is taken or malformed.
            TypeError: Its variables aren't the function's parameters, or an option is unknown.
        """
        if callable(uri):
            raise TypeError('resource requires its URI: @mcp.resource("book://{isbn}")')
        return lambda function: _decorate(function, lambda each: self._add_resource(uri, each, options))

    def live(self, uri: str, **options: Unpack[ResourceOptions]) -> Callable[[F], F]:
        """Register a resource whose updates are published with `resource_updated`: ``@mcp.live("shop://stock")``.

        Args:
            uri: The URI, as for `resource`.
            options: The options of `resource`.
        """
        return self.resource(uri, **options)

    @overload
    def prompt(self, function: F, /) -> F: ...
    @overload
    def prompt(self, /, **options: Unpack[PromptOptions]) -> Callable[[F], F]: ...
    def prompt(self, function: Any = None, /, **options: Unpack[PromptOptions]) -> Any:
        """Register a function as a prompt: ``@mcp.prompt``. Return the function.

        It returns text (a user message), a `Message`, or a list of them (MCP 2025-11-25, server/prompts).

        Args:
            function: The function. Clients send its arguments as strings.
            options: Options of `millstream._server.features.resources.PromptOptions`: ``name``, ``title``,
                ``description``, ``icons``, ``meta``, ``thread``, ``scopes``, ``tags``, ``enabled``,
                ``visible``, and ``groups``.

        Raises:
            ValueError: The name is taken.
            TypeError: An option is unknown.
        """
        return _decorate(function, lambda each: self._add("prompts", prompt_of(each, home=self.definition, **options)))

    def complete(self, reference: str, argument: str) -> Callable[[C], C]:
        """Register a completer, ``@mcp.complete("review", argument="tone")``, for ``def f(value, arguments) ->
        list[str]``.

        Clients call it while the user types (MCP 2025-11-25, server/utilities/completion).

        Args:
            reference: Name of a prompt, or URI template of a resource.
            argument: Argument or variable to complete.

        Raises:
            ValueError: The prompt or template has no such argument.
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
        """Remove a tool, also on other workers, and notify clients: ``mcp.remove_tool("add")``.

        Args:
            name: Its name.

        Raises:
            KeyError: It doesn't exist.
        """
        self.definition.remove("tools", name)

    def remove_prompt(self, name: str) -> None:
        """Remove a prompt, also on other workers, and notify clients: ``mcp.remove_prompt("review")``.

        Args:
            name: Its name.

        Raises:
            KeyError: It doesn't exist.
        """
        self.definition.remove("prompts", name)

    def remove_resource(self, uri: str) -> None:
        """Remove a resource or template, also on other workers, and notify clients:
        ``mcp.remove_resource("shop://1")``.

        Args:
            uri: Its URI, as registered.

        Raises:
            KeyError: It doesn't exist.
        """
        self.definition.remove(self.definition.kind_of("resource", uri), uri)

    def disable(self, kind: Kind | None = None, name: str = "", *, tag: str = "") -> None:
        """Stop offering an item, also on other workers, until it's enabled again. Running calls finish.

        Callers can't distinguish a disabled item from a missing one. Subscribed clients are notified that the list
        changed.

        Args:
            kind: Kind of the item: ``tool``, ``resource``, or ``prompt``.
            name: Name of the item, or URI of a resource or template.
            tag: Instead of kind and name, disables all items with a tag, even if there are none.

        Raises:
            KeyError: The item doesn't exist.
            TypeError: Neither a kind and a name nor a tag was passed.

        Example:
            ``mcp.disable("tool", "order")``, or ``mcp.disable(tag="beta")``.
        """
        self._switch(kind, name, tag, on=False)

    def enable(self, kind: Kind | None = None, name: str = "", *, tag: str = "") -> None:
        """Offer a disabled item again, at its old position. Raises the same errors as `disable`.

        Args:
            kind: Kind of the item: ``tool``, ``resource``, or ``prompt``.
            name: Name of the item, or URI of a resource or template.
            tag: Enables all items with this tag. Use it instead of `kind` and `name`.

        Example:
            ``mcp.enable("tool", "order")``, or ``mcp.enable(tag="beta")``.
        """
        self._switch(kind, name, tag, on=True)

    def _switch(self, kind: Kind | None, name: str, tag: str, *, on: bool) -> None:
        definition = self.definition
        if (kind is None) is not bool(tag) or (kind is not None and not name):
            raise TypeError('Pass either a kind and a name, as in ("tool", "order"), or tag="beta".')
        meant = (
            [(each, key) for each, key, item, _ in definition.items() if tag in item.tags]
            if kind is None
            else [(definition.kind_of(kind, name), name)]
        )
        for each, key in meant:
            definition.switch(each, key, on=on)

    # The program's own paths and folders

    @suggest_keywords
    def route(self, path: str, *, methods: Names = ("GET",), public: bool = False) -> "Callable[[P], P]":
        """Handle requests to a path: a page, a webhook, or your own API.

        The function takes a `starlette.requests.Request` and returns a `starlette.responses.Response`, which can be a
        stream. A `def` function runs in a worker thread. Host, Origin, and the size of the body are checked as on the
        server's other paths. If callers have to sign in, this path requires it as well, and ``request.state.principal``
        is the caller.

        Args:
            path: Path, optionally with parameters, as in ``/hooks/{name}``: ``request.path_params["name"]``.
            methods: HTTP methods; GET includes HEAD.
            public: Whether it's available without sign-in.

        Raises:
            ValueError: Millstream or another route uses the path.
            LocalError: The server is already running.

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
        """Serve a folder's files under a path, with ``index.html`` for folders and ``404.html`` for missing files.

        Files outside the folder and hidden files aren't served.

        Args:
            path: ``/app``, or ``/`` for all paths that aren't otherwise handled.
            folder: Path of the folder, relative to the current directory.
            max_age: Seconds that clients can cache a file. By default, they revalidate it each time by entity tag.
            public: Whether it's available without sign-in.

        Raises:
            ValueError: Millstream or another route uses the path, or the folder doesn't exist.
            LocalError: The server is already running.

        Example:
            ``mcp.static("/app", "dist", public=True)``
        """
        from millstream._app.user_routes import static_of  # noqa: PLC0415  only for programs with files of their own

        self.definition.add_path(static_of(path, fspath(folder), max_age=max_age, public=public))

    def files(self, uri: str, folder: str | PathLike[str], **options: "Unpack[ResourceLabels]") -> None:
        """Offer a folder's files as resources: ``docs://`` is the list, and ``docs://guide/start.md`` is one of the
        files.

        Clients can complete the path. Files outside the folder, even through symbolic links, and hidden files aren't
        read. A file may have up to 10 MiB.

        Args:
            uri: Prefix of the URIs: a scheme, and optionally a path, ending with a slash.
            folder: Path of the folder, relative to the current directory.
            options: Options of ``@mcp.resource``, for the list and the files.

        Raises:
            ValueError: The folder doesn't exist, or the URI is invalid.

        Example:
            ``mcp.files("docs://", "docs")``
        """
        from millstream._app.folder import add_folder  # noqa: PLC0415  only for programs with files of their own

        add_folder(self.definition, uri, fspath(folder), options)

    # Composition

    @classmethod
    def from_openapi(cls, spec: Any, client: Any = None, *, name: str = "OpenAPI", **options: Any) -> "Server":
        """Return a server with an API's operations as tools: ``Server.from_openapi(spec, name="shop")``.

        Args:
            spec: The OpenAPI document, version 2.0, 3.0, or 3.1, as a dict, or the path of its file in JSON or YAML.
            client: An httpx2 or httpx `AsyncClient`. By default, one whose base URL is the document's first server URL.
            name: Name that clients show.
            options: `routes`, a list of `millstream.gateway.RouteMap`, `names`, and `choose`. With
                `output_schemas`, tools have output schemas, taken from the document's responses. `hosts` are origins of
                other servers that operations can use.

        Raises:
            ValueError: The document is invalid, or has no server and `client` isn't given.
        """
        from millstream._gateway.apis.items import register  # noqa: PLC0415  few servers use it

        made = cls(name)
        register(made.definition.add, spec, client, **options)
        return made

    @classmethod
    def from_fastapi(cls, app: Any, *, name: str = "", **options: Any) -> "Server":
        """Return a server with a FastAPI application's operations as tools: ``Server.from_fastapi(app)``.

        The application's lifespan runs while the server runs, unless the server is mounted on the application.

        Args:
            app: The application.
            name: Name that clients show, by default the application's title.
            options: Options of `from_openapi`.
        """
        from millstream._gateway.apis.items import LocalApp  # noqa: PLC0415  few servers use it

        options, local = {"output_schemas": True, **options}, LocalApp(app)
        made = cls.from_openapi(app.openapi(), local.client(), name=name or app.title, **options)
        made.definition.lifespan = partial(local.lifespan, made)
        return made

    def upstream(self, name: str, target: Any = None, **options: "Unpack[UpstreamOptions]") -> None:
        """Offer the items of another server as part of this one, in this server's revisions and on its transports.

        It connects when this server starts, and again whenever the connection is lost. An unreachable upstream doesn't
        prevent the start: `/readyz` and `/health` report it.

        Args:
            name: Name for logs, metrics, and pages, and prefix for the tools' names (``files_read``).
            target: A URL, a command as text or list, a file, an entry of `mcpServers`, or a server object.
            options: See `millstream.gateway.UpstreamConfig`; ``prefix=""`` leaves the names unchanged.

        Raises:
            TypeError: An option is unknown, has the wrong type, or is out of range.
            LocalError: This server is already running, or is mounted on another one.

        Example:
            ``mcp.upstream("files", ["npx", "-y", "@modelcontextprotocol/server-filesystem", "."])``
        """
        from millstream._gateway.options.upstream import UpstreamConfig  # noqa: PLC0415  few servers are gateways

        self.definition.add_upstream(UpstreamConfig(name=name, target=target, **options))

    def add_set(self, path: str, **options: "Unpack[SetOptions]") -> None:
        """Serve a set of this server's items, its own and its upstreams', at another address.

        The set is a server of its own to its clients: other items don't exist there. It shares the connections,
        processes, and limits of the tools. It's also served over HTTP+SSE at ``PATH/sse`` and, if the server serves
        them, over WebSockets at ``PATH/ws`` and as REST at ``PATH/tools/NAME``.

        Args:
            path: Path of MCP, such as ``/mcp/interns``.
            options: See `millstream.gateway.SetConfig`: which items, under which names, and who can use them.

        Raises:
            ValueError: The path or name is taken, or an option is invalid.
            TypeError: An option is unknown.
            LocalError: This server is already running, or is mounted on another one.

        Example:
            ``mcp.add_set("/mcp/interns", allow=["files_read*", "add"], instructions="Read only.")``
        """
        from millstream._gateway.options.sets import SetConfig  # noqa: PLC0415  few servers have sets

        values: dict[str, Any] = {"path": path, **options}
        self.definition.add_set(SetConfig(**values))

    @suggest_keywords
    def mount(
        self,
        other: "Server",
        prefix: str = "",
        *,
        scopes: Names | None = None,
        groups: Names | None = None,
        tags: Names | None = None,
        limit: str | None = None,
    ) -> None:
        """Offer the items of another server: ``mcp.mount(books, prefix="books")`` adds ``books_buy``.

        Its lifespan runs inside this server's, and its functions see the yielded value as ``ctx.lifespan``; without its
        own lifespan, they see this server's.

        Args:
            other: The other server. It can be mounted on several servers.
            prefix: Prefix of its names: ``books_buy`` for a tool or prompt, ``shop://books/1`` for a URI. By default,
                names aren't changed.
            scopes: Scopes that callers of its items need, in addition to those of an item.
            groups: Groups of which they need one, by the claim ``groups``. For others, the items don't exist.
            tags: Tags that its items get in addition to their own.
            limit: Rate limit of each of its tools that has none, per caller: ``10/minute``.

        Raises:
            ValueError: A server can't contain itself, a name is taken, or the other server has a lifespan and this one
                is running.
            TypeError: The other object isn't a Server, or an option has the wrong type.
        """
        if not isinstance(other, Server):  # pyright: ignore[reportUnnecessaryIsInstance]  a call that isn't checked
            raise TypeError(
                f"mount takes a millstream.Server, not {other!r}. To serve MCP inside another application, mount this "
                'server there: app.mount("/", mcp)'
            )
        given = {"scopes": scopes, "groups": groups, "tags": tags, "limit": limit}
        options = MountOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]
        self.definition.mount(other.definition, prefix, options)

    async def resource_updated(self, uri: str) -> None:
        """Notify the subscribers of a resource that it has changed: ``await mcp.resource_updated("shop://stock")``.

        Clients then read it again. Several pending updates for a resource are combined (MCP 2025-11-25,
        server/resources, Subscriptions).

        Args:
            uri: The URI that clients subscribed to. For a template, the URI with its variables filled in.

        Raises:
            UnicodeEncodeError: The URI can't be encoded, for example after ``os.fsdecode`` of a name that isn't UTF-8.
        """
        self.definition.emit(ServerChange("updated", uri))

    # Running

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None]:
        """Run the server inside the ``async with`` block; the ``lifespan`` for an application that it's mounted in.

        Args:
            app: The application, which frameworks pass. It isn't used.

        Example:
            ``app = FastAPI(lifespan=mcp.lifespan)``, then ``app.mount("/", mcp)``.
        """
        async with self.runtimes.running(private=False):
            yield

    def running(self) -> "AbstractAsyncContextManager[Runtime]":
        """Run the server inside the ``async with`` block, in this event loop, and yield its runtime."""
        return self.runtimes.running()

    async def start(self, *, supervised: bool = False) -> "Runtime":
        """Start the server in this event loop, if it isn't running: ``await mcp.start(supervised=True)``.

        Use it in programs that can't use ``async with mcp.running()``.

        Args:
            supervised: Whether you will call `stop`. Otherwise, the end of the host's lifespan also stops the server.

        Raises:
            LocalError: The key for session ids is invalid.
            ValueError: A registered item can't work.
        """
        return await self.runtimes.start(supervised=supervised)

    async def stop(self) -> None:
        """Stop the server in this event loop, if it's running."""
        await self.runtimes.stop()

    @property
    def hub(self) -> HubAccess:
        """The hub of the server: ``await mcp.hub.publish("news", {"n": 1})`` opens it if necessary.

        Raises:
            LocalError: The server has no hub.
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
            # Compare threads, because `asyncio.get_running_loop` makes a system call.
            and runtime.thread == get_ident()
            and runtime.loop.is_running()
        ):
            await runtime.adapter.__call__(scope, receive, send)
        else:
            from millstream._app.server_process import asgi_application  # noqa: PLC0415  a stdio server does without

            await asgi_application.serve(self, scope, receive, send)

    @partial(suggest_keywords, elsewhere=RUN_KEYWORDS)
    def run(
        self, transport: Transport | None = None, *, host: str | None = None, port: int | None = None, workers: int = 1
    ) -> None:
        """Serve until stopped: ``mcp.run()``, or ``mcp.run("http", port=9000)``.

        With several workers, each of them runs your program up to this call and then serves, supervised by this
        process.

        Args:
            transport: ``http`` or ``stdio``, by default stdio if standard input is a pipe, or else HTTP. ``sse`` and
                ``streamable-http`` mean ``http``, which serves both.
            host: Address to listen on, by default ``MILLSTREAM_HOST``, or 127.0.0.1.
            port: Port to listen on, by default ``MILLSTREAM_PORT``, or 8000.
            workers: Number of processes that serve over HTTP.
        """
        from millstream._app.server_process import launch  # noqa: PLC0415  loads an HTTP server only where one is wanted

        launch.launch(self, transport, host, port, workers)

    @partial(suggest_keywords, elsewhere=RUN_KEYWORDS)
    async def run_async(
        self, transport: Transport = "http", *, host: str | None = None, port: int | None = None
    ) -> None:
        """Serve in the running loop, until stopped or canceled: ``await mcp.run_async(port=9000)``. See `run`.

        Args:
            transport: ``http`` or ``stdio``.
            host: Address to listen on, by default ``MILLSTREAM_HOST``, or 127.0.0.1.
            port: Port to listen on, by default ``MILLSTREAM_PORT``, or 8000.
        """
        from millstream._app.server_process import launch  # noqa: PLC0415  see `run`

        await launch.launch_here(self, transport, host, port)

    # Names in other libraries. New programs should use `tool`, `route`, and the server as the ASGI application.

    def add_tool(self, function: F, /, **options: Any) -> F:
        """Register a function as a tool, like ``@mcp.tool``: ``mcp.add_tool(order, title="Order")``.

        Args:
            function: The function.
            options: See `tool`.
        """
        return self.tool(**options)(function)

    def custom_route(self, path: str, methods: list[str], **options: Any) -> Callable[[F], F]:
        """Handle requests to a path, like ``@mcp.route``: ``@mcp.custom_route("/health", methods=["GET"])``.

        If callers have to sign in, this path requires it as well, unless ``public=True``.

        Args:
            path: The path.
            methods: Its HTTP methods.
            options: See `route`.
        """
        return self.route(path, methods=methods, **options)

    def http_app(self, path: str | None = None, *, transport: str = "http", **options: Any) -> Self:
        """Return the server, which is an ASGI application: ``app = mcp.http_app()`` is ``app = mcp``.

        It serves Streamable HTTP at /mcp and HTTP+SSE at /sse. To mount it: ``FastAPI(lifespan=mcp.lifespan)``.

        Args:
            path: Path of Streamable HTTP.
            transport: Ignored, because Streamable HTTP and HTTP+SSE are both served.
            options: Not supported. Use the settings of the server.

        Raises:
            TypeError: An option of another library was passed. See `Settings` for Millstream's.
        """
        if options:
            raise TypeError(
                f"http_app doesn't support {', '.join(options)}. Use Server(settings=Settings(…)); see Settings."
            )
        if path is not None:
            self.definition.configure(path="/" + path.strip("/"))
        return self

    def streamable_http_app(self) -> Self:
        """Return the server. See `http_app`: ``app = mcp.streamable_http_app()``."""
        return self

    def sse_app(self, mount_path: str | None = None) -> Self:
        """Return the server, which serves HTTP+SSE at /sse. See `http_app`: ``app = mcp.sse_app()``.

        Args:
            mount_path: Path at which other packages would serve it. It has no effect.
        """
        return self

    if not TYPE_CHECKING:  # type checkers would accept any attribute name

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, OTHER_NAMES)


def _decorate(function: Any, register: Callable[[Any], None]) -> Any:
    def decorate(each: Any) -> Any:
        try:
            register(each)
        except (TypeError, ValueError, ImportError) as error:
            # The error describes the line above, so omit this frame.
            raise error.with_traceback(_annotations(error.__traceback__)) from None
        return each

    return decorate if function is None else decorate(function)


def _annotations(trace: "TracebackType | None") -> "TracebackType | None":
    """Return the part of a traceback that begins in a function's annotations, which Python 3.14 evaluates lazily."""
    while trace is not None and trace.tb_frame.f_code.co_name != "__annotate__":
        trace = trace.tb_next
    return trace
