"""`FastMCP`: the interface of the official SDK, backed by our server."""

import inspect
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Generic, TypeVar, cast

import msgspec
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from millstream import Icon, Info, Server, ToolResult
from millstream import Settings as EngineSettings
from millstream._app.server_process import check_not_importing, launch
from millstream._app.user_routes import route_of
from millstream._copies import NotCopyable
from millstream._http.hosts import is_loopback
from millstream._protocol.notifications import CompleteRequestParams, Completion
from millstream._server.calls.call import Call
from millstream._server.functions.dependencies import warn_author
from millstream.compat import types
from millstream.compat.fastmcp._auth import ProviderTokenVerifier, Settings, VerifierMethod, settings_of
from millstream.compat.fastmcp._context import Context, LifespanT
from millstream.compat.fastmcp._items import (
    FunctionResource,
    Prompt,
    ReadResourceContents,
    Resource,
    ResourceTemplate,
    Tool,
)
from millstream.compat.fastmcp._outputs import ResourceError, ToolError, current, signature_of, to_wire, tool_errors
from millstream.protocol import Json

logger = logging.getLogger("millstream")

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel)

_TRANSPORTS = ("stdio", "sse", "streamable-http")
_MAX_COMPLETIONS = 100


EventCallback = Callable[["EventMessage"], Awaitable[None]]


@dataclass
class EventMessage:
    """A message of a stream."""

    message: Any
    event_id: str | None = None


class EventStore:
    """The base class of event stores, which are never called: streams can be resumed without them."""


class FastMCP(NotCopyable, Generic[LifespanT]):
    """A server with the interface of the official SDK's version 1.

    Args:
        name: Name of the server, which clients show.
        instructions: Instructions for the client's model on how to use the server.
        website_url: URL of a page about the server.
        icons: Icons of the server.
        auth_server_provider: Object that issues tokens; requires ``auth=AuthSettings(…)``.
        token_verifier: Object that verifies tokens; requires ``auth=AuthSettings(…)``.
        event_store: Ignored, because streams can be resumed without it.
        retry_interval: Ignored.
        tools: `Tool` objects to register.
        options: Fields of `Settings`, such as `host`, `port`, `auth`, or `lifespan`.

    Raises:
        TypeError: An option is unknown.
        ValueError: The auth settings are incomplete.
    """

    _COPY_ADVICE = "Create it in each process, for example at the top of a module that each process imports."

    def __init__(  # noqa: PLR0917  the SDK's order
        self,
        name: str | None = None,
        instructions: str | None = None,
        website_url: str | None = None,
        icons: Sequence[Any] | None = None,
        auth_server_provider: Any = None,
        token_verifier: Any = None,
        event_store: Any = None,
        retry_interval: int | None = None,
        *,
        tools: Sequence[Tool] = (),
        **options: Any,
    ) -> None:
        self.settings: Settings = settings_of(options)
        self.website_url = website_url
        self.icons: list[Any] | None = list(icons) if icons else None
        lifespan = options.get("lifespan")
        self.engine: Server = Server(
            name or "FastMCP",
            instructions=instructions or "",
            info=Info(
                website_url=website_url,
                icons=[msgspec.convert(to_wire(each), Icon) for each in icons] if icons else None,
            ),
            lifespan=None if lifespan is None else lambda _: lifespan(self),
            auth=_method_of(options.get("auth"), token_verifier, auth_server_provider),
            settings=EngineSettings.load(None, **self.settings.ours()),
        )
        """The underlying server."""
        registry = self.engine.registry
        registry.completes_choices = False  # only the program's handler completes arguments
        for capability in ("tools", "resources", "prompts"):
            registry.announce(capability)  # the SDK announces these capabilities even on an empty server
        self._items: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        """Kind, as in the registry -> name or URI -> `Tool`, `Resource`, `ResourceTemplate`, or `Prompt`."""
        self._custom_routes: list[Route] = []
        for tool in tools:
            self._add("tools", tool.name, tool)

    @property
    def _mcp_server(self) -> "FastMCP[LifespanT]":
        """The object that programs pass to `millstream.compat.memory`."""
        return self

    @property
    def __millstream_server__(self) -> Server:
        """The server that ``millstream run`` starts."""
        self._configure(is_app=False)
        return self.engine

    @property
    def name(self) -> str:
        """Name of the server."""
        return self.engine.name

    @property
    def instructions(self) -> str | None:
        """Instructions for the client's model."""
        return self.engine.definition.instructions or None

    def _configure(self, *, is_app: bool = True) -> None:
        self.engine.definition.configure(**self.settings.ours(is_app=is_app))

    # Registration

    def _add(self, kind: str, key: str, item: Any) -> None:
        """Register an item, unless one with the same name exists."""
        if key in self._items[kind]:
            if getattr(self.settings, f"warn_on_duplicate_{'resources' if kind == 'templates' else kind}"):
                logger.warning("%s already exists: %s", kind.capitalize().removesuffix("s"), key)
            return
        self._items[kind][key] = item
        registered = item.item(self)
        registered._described = item.describe()
        self.engine.definition.add(kind, key, registered)

    def _list(self, kind: str, model: type[M]) -> list[M]:
        return [model.model_validate(each.describe()) for each in self._items[kind].values()]

    def tool(  # noqa: PLR0917  the SDK's order
        self,
        name: Any = None,
        title: str | None = None,
        description: str | None = None,
        annotations: Any = None,
        icons: Sequence[Any] | None = None,
        meta: Json | None = None,
        structured_output: bool | None = None,
    ) -> Callable[[F], F]:
        """Register a function as a tool: ``@mcp.tool()``, ``@mcp.tool("name")``, or ``@mcp.tool``.

        Args:
            name: Name of the tool, by default that of the function.
            title: Title that clients show.
            description: Description for the model, by default the docstring.
            annotations: Hints for clients, as `ToolAnnotations`.
            icons: Icons that clients show.
            meta: Members of ``_meta`` in the list.
            structured_output: Whether results have structured content. By default, the return annotation decides.
        """

        def register(function: Any, name: str | None) -> Any:
            self.add_tool(
                function,
                name,
                title,
                description,
                annotations=annotations,
                icons=icons,
                meta=meta,
                structured_output=structured_output,
            )
            return function

        return cast("Callable[[F], F]", _decorate(name, register))

    def add_tool(self, fn: Callable[..., Any], name: str | None = None, *args: Any, **options: Any) -> None:
        """Register a function as a tool. Takes the same arguments as `tool`.

        Args:
            fn: The function.
            name: Name of the tool, by default that of the function.
            *args: The other arguments of `tool`, by position.
            **options: The other arguments of `tool`, by keyword.
        """
        tool = Tool.from_function(fn, name, *args, **options)
        self._add("tools", tool.name, tool)

    def remove_tool(self, name: str) -> None:
        """Remove a tool. Raises ToolError if it doesn't exist.

        Args:
            name: Name of the tool.
        """
        if self._items["tools"].pop(name, None) is None:
            raise ToolError(f"Unknown tool: {name}")
        self.engine.definition.remove("tools", name)

    def resource(self, uri: str, **options: Any) -> Callable[[F], F]:
        """Register a function as a resource, or as a template if the URI has ``{variables}``.

        Args:
            uri: URI of the resource.
            options: `name`, `title`, `description`, `mime_type`, `icons`, `annotations`, `meta`.
        """
        if callable(uri):
            raise TypeError(
                "The @resource decorator was used incorrectly. Did you forget to call it? "
                "Use @resource('uri') instead of @resource"
            )

        def decorate(function: Any) -> Any:
            signature = signature_of(function, options.get("name"))
            if "{" in uri or signature.parameters:
                template = ResourceTemplate.from_function(function, uri, **options)
                self._add("templates", uri, template)
            else:
                self.add_resource(FunctionResource.from_function(function, uri, **options))
            return function

        return decorate

    def add_resource(self, resource: Resource) -> None:
        """Register a resource.

        Args:
            resource: A resource, such as ``TextResource(uri="notes://today", text="…")``.
        """
        self._add("resources", str(resource.uri), resource)

    def prompt(
        self,
        name: Any = None,
        title: str | None = None,
        description: str | None = None,
        icons: Sequence[Any] | None = None,
    ) -> Callable[[F], F]:
        """Register a function as a prompt. `tool` shows the forms of the decorator.

        Args:
            name: Name of the prompt, by default that of the function.
            title: Title that clients show.
            description: Description for the model, by default the docstring.
            icons: Icons that clients show.
        """

        def register(function: Any, name: str | None) -> Any:
            self.add_prompt(Prompt.from_function(function, name, title, description, icons))
            return function

        return cast("Callable[[F], F]", _decorate(name, register))

    def add_prompt(self, prompt: Prompt) -> None:
        """Register a prompt.

        Args:
            prompt: A prompt, from `Prompt.from_function`.
        """
        self._add("prompts", prompt.name, prompt)

    def completion(self) -> Callable[[Any], Any]:
        """Register the completion handler, ``async def f(ref, argument, context) -> Completion | None``."""

        def decorate(function: Any) -> Any:
            registry = self.engine.registry

            async def complete(call: Call, params: CompleteRequestParams) -> Completion:
                ref = params.ref
                reference = (
                    types.PromptReference(name=ref.name)
                    if ref.type == "ref/prompt"
                    else types.ResourceTemplateReference(uri=ref.uri)
                )
                argument = types.CompletionArgument(name=params.argument.name, value=params.argument.value)
                known = params.context.arguments if params.context is not None else None
                values = (reference, argument, types.CompletionContext(arguments=dict(known)) if known else None)
                with tool_errors():
                    if inspect.iscoroutinefunction(function):
                        found = await function(*values)
                    else:
                        found = await Context(self, call).run_in_thread(lambda: function(*values))
                    if found is None:
                        return Completion([], 0, False)
                    wire = to_wire(found)
                    return msgspec.convert({**wire, "values": wire["values"][:_MAX_COMPLETIONS]}, Completion)

            registry.completes = complete
            registry.announce("completions")
            return function

        return decorate

    def custom_route(
        self, path: str, methods: Sequence[str], name: str | None = None, include_in_schema: bool = True
    ) -> Callable[[Any], Any]:
        """Add an HTTP route: ``async def f(request: starlette.requests.Request) -> Response``.

        The route doesn't require authentication.

        Args:
            path: Path, which may have ``{variables}``.
            methods: HTTP methods, such as ``["GET"]``.
            name: Name of the route in `streamable_http_app` and `sse_app`.
            include_in_schema: Whether Starlette lists the route in an OpenAPI schema.

        Raises:
            ValueError: The path or HTTP method is invalid.
            LocalError: The server is already running.
        """

        if "POST" in map(str.upper, methods) and find_spec("python_multipart") is None:
            warn_author(
                f"The route {path!r} can't read forms, which need python-multipart. The SDK installs it. Install it "
                "with pip install 'millstream[compat]'."
            )

        def decorate(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            self.engine.definition.add_path(route_of(path, function, methods=methods, public=True, fixed=True))
            route = Route(path, function, methods=list(methods), name=name, include_in_schema=include_in_schema)
            self._custom_routes.append(route)
            return function

        return decorate

    # Used by the program

    def get_context(self) -> Context[Any, Any, Any]:
        """Return the current call's context, or outside a call, a context without a request."""
        return current.get(None) or Context(self)

    async def list_tools(self) -> list[types.Tool]:
        """Return the tools as listed to clients."""
        return self._list("tools", types.Tool)

    async def list_resources(self) -> list[types.Resource]:
        """Return the resources as listed to clients."""
        return self._list("resources", types.Resource)

    async def list_resource_templates(self) -> list[types.ResourceTemplate]:
        """Return the resource templates as listed to clients."""
        return self._list("templates", types.ResourceTemplate)

    async def list_prompts(self) -> list[types.Prompt]:
        """Return the prompts as listed to clients."""
        return self._list("prompts", types.Prompt)

    async def call_tool(self, name: str, arguments: Json) -> Any:  # two shapes, as in the SDK
        """Call a tool. Return its content, or content and structured content if it has an output schema.

        Args:
            name: Name of the tool.
            arguments: JSON data for the arguments.

        Raises:
            ToolError: The tool doesn't exist or failed.
        """
        tool = self._items["tools"].get(name)
        if tool is None:
            raise ToolError(f"Unknown tool: {name}")
        result: ToolResult = await tool.run(arguments, self.get_context(), convert_result=True)
        return result.content if tool.output is None else (result.content, result.structured)

    async def read_resource(self, uri: Any) -> list[ReadResourceContents]:
        """Return the contents of a resource.

        Args:
            uri: URI of a resource, or one that matches a template.

        Raises:
            ResourceError: The resource doesn't exist or can't be read.
        """
        text, context = str(uri), self.get_context()
        try:
            found: Any = self._items["resources"].get(text)
            if found is not None:
                content = await found.read_for(context)
            else:
                matches = ((each, each.matches(text)) for each in self._items["templates"].values())
                found, values = next((each for each in matches if each[1] is not None), (None, None))
                if found is None:
                    raise ResourceError(f"Unknown resource: {text}")
                content = await found.read_for(values, context)
        except ValueError as error:
            raise ResourceError(str(error)) from error
        return [ReadResourceContents(content, found.mime_type, found.meta)]

    async def get_prompt(self, name: str, arguments: Json | None = None) -> types.GetPromptResult:
        """Return the messages of a prompt.

        Args:
            name: Name of the prompt.
            arguments: Values of the arguments, as text.

        Raises:
            ValueError: The prompt doesn't exist or failed.
        """
        prompt = self._items["prompts"].get(name)
        if prompt is None:
            raise ValueError(f"Unknown prompt: {name}")
        messages = await prompt.render(arguments, self.get_context())
        return types.GetPromptResult(
            description=prompt.description,
            messages=[types.PromptMessage(role=each.role, content=each.content) for each in messages],
        )

    # Serving

    @cached_property
    def session_manager(self) -> "SessionManager":
        """Runs the server inside a larger application."""
        return SessionManager(self.engine)

    def streamable_http_app(self) -> Starlette:
        """Return the server as a Starlette application with Streamable HTTP at `streamable_http_path`."""
        self._configure()
        return self._app(Route(self.settings.streamable_http_path, endpoint=self.engine))

    def sse_app(self, mount_path: str | None = None) -> Starlette:
        """Return the server as a Starlette application with HTTP+SSE.

        Args:
            mount_path: Path prefix for the URLs that clients receive.
        """
        if mount_path is not None:
            self.settings.mount_path = mount_path
        self._configure()
        return self._app(
            Route(self.settings.sse_path, endpoint=self.engine, methods=["GET"]),
            Mount(self.settings.message_path, app=self._serve_mounted),
        )

    async def _serve_mounted(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve under a path, restoring the prefix that Starlette removed."""
        root, outer = scope.get("root_path", ""), scope.get("app_root_path", "")
        await self.engine({**scope, "root_path": outer if root.startswith(outer) else root}, receive, send)

    def _app(self, *routes: Any) -> Starlette:
        definition = self.engine.definition
        paths: list[str] = []
        if definition.protected:
            paths = [path for each in definition.auth for path in getattr(each, "outer_paths", ())]
            paths.append("/.well-known/{rest:path}")
        return Starlette(
            debug=self.settings.debug,
            routes=[*routes, *(Route(path, endpoint=self.engine) for path in paths), *self._custom_routes],
            lifespan=lambda app: self.session_manager.run(),
        )

    def run(self, transport: str = "stdio", mount_path: str | None = None) -> None:
        """Serve until stopped.

        Args:
            transport: ``stdio``, ``streamable-http``, or ``sse``. Over HTTP, the server serves both HTTP transports.
            mount_path: Path prefix for the URLs that ``sse`` sends to clients.

        Raises:
            ValueError: The transport is unknown.
        """
        kind = self._prepare(transport, mount_path)
        launch.launch(self.engine, kind, self.settings.host, self.settings.port, 1)

    def _prepare(self, transport: str, mount_path: str | None = None) -> str:
        check_not_importing(self)
        if transport not in _TRANSPORTS:
            raise ValueError(f"Unknown transport: {transport}")
        if mount_path is not None:
            self.settings.mount_path = mount_path
        self._configure(is_app=False)
        if transport == "stdio":
            return "stdio"
        if not is_loopback(self.settings.host) and not self.engine.definition.protected:
            logger.warning(
                "The server listens on %s, where other machines can reach it, and requires no "
                "authentication. Pass auth=… to require it.",
                self.settings.host,
            )
        return "http"

    async def _run_async(self, transport: str, mount_path: str | None = None) -> None:
        kind = self._prepare(transport, mount_path)
        await launch.launch_here(self.engine, kind, self.settings.host, self.settings.port)

    async def run_stdio_async(self) -> None:
        """Serve stdio in the running event loop."""
        await self._run_async("stdio")

    async def run_sse_async(self, mount_path: str | None = None) -> None:
        """Serve HTTP+SSE in the running event loop.

        Args:
            mount_path: Path prefix for the URLs that clients receive.
        """
        await self._run_async("sse", mount_path)

    async def run_streamable_http_async(self) -> None:
        """Serve Streamable HTTP in the running event loop."""
        await self._run_async("streamable-http")


class SessionManager:
    """Runs the server inside ``async with mcp.session_manager.run():``. Blocks may overlap."""

    def __init__(self, engine: Server) -> None:
        self._engine = engine
        self._open = 0

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """Run the server inside the block."""
        await self._engine.start(supervised=True)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                await self._engine.stop()

    async def handle_request(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, as an ASGI application."""
        await self._engine(scope, receive, send)


def _method_of(auth: Any, verifier: Any, provider: Any) -> Any:
    """Return the auth method for a server's arguments, or None without authentication.

    Raises:
        ValueError: The configuration is incomplete, or the issuer is invalid.
    """
    if auth is None:
        if verifier is not None or provider is not None:
            raise ValueError("Cannot specify auth_server_provider or token_verifier without auth settings")
        return None
    if verifier is not None and provider is not None:
        raise ValueError("Cannot specify both auth_server_provider and token_verifier")
    if verifier is None and provider is None:
        raise ValueError("Must specify either auth_server_provider or token_verifier when auth is enabled")
    if verifier is not None:
        return VerifierMethod(verifier, auth)
    if not hasattr(provider, "authorize"):
        return VerifierMethod(ProviderTokenVerifier(provider), auth)
    # Imported here, because few programs issue tokens.
    from millstream.compat.fastmcp._authorization_server import ServedProvider  # noqa: PLC0415

    return ServedProvider(provider, auth)


def _decorate(first: Any, register: Callable[[Any, str | None], Any]) -> Any:
    """Return a decorator. If `first` is a function, apply it immediately."""
    if first is not None and not isinstance(first, str):
        return register(first, None)

    def decorate(function: Any) -> Any:
        return register(function, first)

    return decorate
