"""`Server`: what a person writes against. Decorators register, and the object is the ASGI application."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar, overload

from msgspec import to_builtins

from millstream.app.info import Info
from millstream.app.parts import chosen, no_hub
from millstream.app.runtime import Runtime
from millstream.config import Settings
from millstream.http.hosts import is_loopback
from millstream.server.calls.changes import Change
from millstream.server.features.prompts import Prompt
from millstream.server.features.registry import Registry
from millstream.server.features.resources import Resource, Template
from millstream.server.features.tools import Tool
from millstream.stores.base import Store

if TYPE_CHECKING:
    from millstream.hub import Hub
    from millstream.hub.subscriber import Authorize

F = TypeVar("F", bound=Callable[..., Any])
Lifespan = Callable[["Server"], AbstractAsyncContextManager[Any]]
_KINDS = ("tools", "resources", "templates", "prompts")


class Server:
    """An MCP server: register functions, then run it, mount it or give it to any ASGI server.

    Args:
        name: what clients show.
        version: of your server, not of the protocol.
        instructions: how to use the server, for the client's model.
        info: title, description, icons and website.
        store: where streams and session records live: ``memory://``.
        lifespan: ``async with`` context around the time the server runs; its value is ``ctx.lifespan``.
        serve: what runs beside MCP: hub, rest, web, metrics, or all.
        authorize_channel: ``f(principal, "publish" or "subscribe", channel)`` says who may use a channel of the hub.
        settings: everything operational; by default from ``MILLSTREAM_…`` variables.

    Example:
        ``mcp = Server("shop")``, then ``@mcp.tool`` on a function, then ``mcp.run()``.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str = "",
        instructions: str = "",
        info: Info | None = None,
        store: str = "memory://",
        lifespan: Lifespan | None = None,
        serve: str | Collection[str] = (),
        authorize_channel: "Authorize | None" = None,
        settings: Settings | None = None,
    ) -> None:
        # Configuration
        self.name = name
        self.version = version
        self.instructions = instructions
        self.info = info or Info()
        self.auth: None = None
        self.store = store
        self.lifespan = lifespan
        self.parts = chosen(serve)
        self.authorize_channel = authorize_channel
        self.settings = settings if settings is not None else Settings.load()
        self.registry = Registry(page_size=self.settings.page_size, list_ttl_ms=self.settings.list_ttl_ms)
        self.registry.changed = self._changed
        self.mounted: list[Server] = []
        self._mounted_on: list[tuple[Server, str]] = []
        # Process
        self._runtimes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Runtime] = weakref.WeakKeyDictionary()
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Task[Runtime]] = {}
        self._current: Runtime | None = None
        self.stores: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Store] = weakref.WeakKeyDictionary()
        """The store of each loop: it outlives a runtime that closes when idle, and with it what sessions have."""
        self.loopback_bind: bool | None = None
        """Only this machine can reach the server; None while nobody has said what it is bound to."""
        self.connections: Collection[object] | None = None
        """The open connections, where our own HTTP server has them; None under a foreign one."""
        self.__millstream_lane__: Any = None

    def describe(self) -> dict[str, Any]:
        """Name, version and information as the newest revision has them."""
        return {"name": self.name, "version": self.version or "0", **to_builtins(self.info)}

    # Registration

    @overload
    def tool(self, function: F, /) -> F: ...
    @overload
    def tool(self, /, **options: Any) -> Callable[[F], F]: ...
    def tool(self, function: Any = None, /, **options: Any) -> Any:
        """Register a function as a tool, with or without parentheses. The function itself is returned.

        Keyword options: `name title description input_schema output_schema annotations icons meta timeout thread
        requires`, see `millstream.server.features.tools.Tool`.
        """
        return self._decorate(function, lambda each: self._add("tools", Tool(each, home=self, **options)))

    def resource(self, uri: str, **options: Any) -> Callable[[F], F]:
        """Register a function as a resource, or as a template when the URI has ``{variables}``.

        Keyword options: `name title description mime_type annotations icons size meta`.
        """
        if callable(uri):
            raise TypeError('resource needs its URI: @mcp.resource("book://{isbn}")')
        return lambda function: self._decorate(function, lambda each: self._add_resource(uri, each, options))

    def live(self, uri: str, **options: Any) -> Callable[[F], F]:
        """Register a resource whose changes are published: `resource_updated` reaches subscribers of every kind."""
        return self.resource(uri, **options)

    @overload
    def prompt(self, function: F, /) -> F: ...
    @overload
    def prompt(self, /, **options: Any) -> Callable[[F], F]: ...
    def prompt(self, function: Any = None, /, **options: Any) -> Any:
        """Register a function as a prompt. Keyword options: `name title description icons meta`."""
        return self._decorate(function, lambda each: self._add("prompts", Prompt(each, home=self, **options)))

    def complete(self, reference: str, argument: str) -> Callable[[F], F]:
        """Register a function that completes an argument: ``f(value, arguments) -> list[str]``, plain or async.

        Args:
            reference: name of a prompt, or URI template of a resource.
            argument: the argument or variable to complete.

        Raises:
            ValueError: the prompt or template has no such argument.
        """

        def register(function: F) -> F:
            self._complete(reference, argument, function)
            return function

        return register

    def _complete(self, reference: str, argument: str, function: Callable[..., Any]) -> None:
        self.registry.check_argument(reference, argument)
        self.registry.completers[(reference, argument)] = function
        self.registry.offer("completions")
        kind = "templates" if "{" in reference else "prompts"
        for parent, prefix in self._mounted_on:
            parent._complete(prefixed(kind, reference, prefix), argument, function)

    @staticmethod
    def _decorate(function: Any, register: Callable[[Any], None]) -> Any:
        def decorate(each: Any) -> Any:
            register(each)
            return each

        return decorate if function is None else decorate(function)

    def _add(self, kind: str, item: Tool | Prompt) -> None:
        self._check_free(kind, item.name)
        self._put(kind, item.name, item)

    def _add_resource(self, uri: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        kind, make = ("templates", Template) if "{" in uri else ("resources", Resource)
        item = make(uri, function, home=self, **options)
        self._check_free(kind, uri)
        self._put(kind, uri, item)

    def _check_free(self, kind: str, key: str) -> None:
        """Here and wherever this is mounted, so that a refused registration leaves nothing behind."""
        self.registry.check_free(kind, key)
        for parent, prefix in self._mounted_on:
            parent._check_free(kind, prefixed(kind, key, prefix))

    def _put(self, kind: str, key: str, item: Any) -> None:
        self.registry.add(kind, key, item)
        for parent, prefix in self._mounted_on:
            parent._take(kind, key, item, prefix)

    def remove_tool(self, name: str) -> None:
        """Take a tool away. Raises KeyError when there is none."""
        self._remove("tools", name)

    def remove_prompt(self, name: str) -> None:
        """Take a prompt away. Raises KeyError when there is none."""
        self._remove("prompts", name)

    def remove_resource(self, uri: str) -> None:
        """Take a resource or template away. Raises KeyError when there is none."""
        self._remove("templates" if uri in self.registry.templates else "resources", uri)

    def _remove(self, kind: str, key: str) -> None:
        self.registry.remove(kind, key)
        for parent, prefix in self._mounted_on:
            parent._remove(kind, prefixed(kind, key, prefix))

    # Composition

    def mount(self, other: "Server", *, prefix: str = "") -> None:
        """Offer what another server has as part of this one: tool ``buy`` as ``prefix_buy``, now and later.

        Its lifespan runs inside this server's, and ``ctx.lifespan`` of its functions is what that yields; without a
        lifespan of its own they see this server's.

        Raises:
            ValueError: the other is this server or has it mounted, has a name that is taken here, or has a lifespan
                while this server runs already.
        """
        if self._is_part_of(other):
            raise ValueError(f"{other.name!r} cannot be mounted on {self.name!r}: it would be a part of itself")
        if self._runs() and other._waits_for_start():
            raise ValueError(
                f"{other.name!r} has a lifespan, and {self.name!r} runs already: mount it before, or in a lifespan"
            )
        items = [(kind, key, item) for kind in _KINDS for key, item in getattr(other.registry, kind).items()]
        for kind, key, _ in items:
            self._check_free(kind, prefixed(kind, key, prefix))
        self.mounted.append(other)
        other._mounted_on.append((self, prefix))
        for kind, key, item in items:
            self._take(kind, key, item, prefix)
        for (reference, argument), completer in other.registry.completers.items():
            kind = "templates" if "{" in reference else "prompts"
            self._complete(prefixed(kind, reference, prefix), argument, completer)

    def _is_part_of(self, other: "Server") -> bool:
        return self is other or any(parent._is_part_of(other) for parent, _ in self._mounted_on)

    def _runs(self) -> bool:
        return bool(self._runtimes) or any(parent._runs() for parent, _ in self._mounted_on)

    def _waits_for_start(self) -> bool:
        return self.lifespan is not None or any(part._waits_for_start() for part in self.mounted)

    def nearest(self, values: "Mapping[Server, Any]") -> Any:
        """The value of this server, or of the nearest one with a value that it is mounted on."""
        around = [self]
        for server in around:
            if server in values:
                return values[server]
            around += [parent for parent, _ in server._mounted_on]
        return None

    def _take(self, kind: str, key: str, item: Any, prefix: str) -> None:
        name = prefixed(kind, key, prefix)
        self._put(kind, name, item.named(name) if prefix else item)

    # Changes

    def _changed(self, kind: str) -> None:
        self._emit(Change(kind))

    async def resource_updated(self, uri: str) -> None:
        """Tell every subscriber of a resource that it changed."""
        self._emit(Change("updated", uri))

    def _emit(self, change: Change) -> None:
        for loop, runtime in list(self._runtimes.items()):
            if loop is _running_loop():
                runtime.services.changes.emit(change)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(runtime.services.changes.emit, change)
        if change.uri:
            for parent, prefix in self._mounted_on:
                parent._emit(Change(change.kind, prefixed("resources", change.uri, prefix)))

    # Running

    async def start(self, *, supervised: bool = False) -> Runtime:
        """The runtime of this event loop, opened when there is none yet (single flight; a failure is tried again).

        Raises:
            ValueError: something registered cannot work.
        """
        loop = asyncio.get_running_loop()
        runtime = self._runtimes.get(loop)
        if runtime is None:
            task = self._opening.get(loop)
            if task is None:
                task = self._opening[loop] = loop.create_task(Runtime(self, supervised=supervised).open())
                task.add_done_callback(lambda _: self._opening.pop(loop, None))
            runtime = self._runtimes[loop] = await asyncio.shield(task)
        runtime.supervised = runtime.supervised or supervised
        return runtime

    def activate(self, runtime: Runtime) -> None:
        """Let a runtime whose HTTP side is built answer the requests of its loop."""
        self._current = runtime

    async def stop(self) -> None:
        """Close the runtime of this event loop, if there is one."""
        runtime = self._runtimes.pop(asyncio.get_running_loop(), None)
        if self._current is runtime:
            self._current = None
        if runtime is not None:
            await runtime.close()

    def close_idle(self, runtime: Runtime) -> None:
        """Close a runtime that has been idle; the next request opens another."""
        if self._runtimes.get(runtime.loop) is runtime:
            runtime.closing = runtime.loop.create_task(self.stop())

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Runtime, None]:
        """The server runs inside the ``async with`` block, in this event loop."""
        runtime = await self.start(supervised=True)
        try:
            yield runtime
        finally:
            await self.stop()

    @property
    def hub(self) -> "Hub":
        """The hub of the running server.

        Raises:
            LocalError: it does not run, or serves no hub.
        """
        runtime = self._running()
        if runtime is None or runtime.hub is None:
            raise no_hub()
        return runtime.hub

    def _running(self) -> Runtime | None:
        """The runtime of this loop, or the one that runs when this is no loop's thread."""
        loop = _running_loop()
        if loop is not None:
            return self._runtimes.get(loop)
        return self._current or next(iter(self._runtimes.values()), None)

    def reachable_from_outside(self, peer: str) -> bool:
        """Whether more than this machine can reach the server: by its bind, else by who has reached it."""
        return not (self.loopback_bind if self.loopback_bind is not None else is_loopback(peer))

    async def drain(self) -> None:
        """Stop taking work and let calls finish, up to the grace time of the settings."""
        runtime = self._running()
        if runtime is not None:
            await runtime.drain(self.settings.drain_timeout)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """ASGI 3: HTTP and lifespan."""
        runtime = self._current
        if (
            scope["type"] == "http"
            and runtime is not None
            # Its loop is the one that runs here. `asyncio.get_running_loop` makes a system call to say so.
            and runtime.thread == get_ident()
            and runtime.loop.is_running()
        ):
            await runtime.adapter.__call__(scope, receive, send)
        else:
            await self._slow_path(scope, receive, send)

    async def _slow_path(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        from millstream.app.serving import entry  # noqa: PLC0415  a stdio server does without

        await entry.serve(self, scope, receive, send)

    def run(self, transport: str | None = None, *, host: str = "127.0.0.1", port: int = 8000) -> None:
        """Serve until stopped.

        Args:
            transport: ``http`` or ``stdio``; by default stdio when standard input is a pipe, else HTTP.
            host: address to listen on.
            port: port to listen on.
        """
        from millstream.app.serving import launch  # noqa: PLC0415  loads an HTTP server only where one is wanted

        launch.launch(self, transport, host, port)


def prefixed(kind: str, key: str, prefix: str) -> str:
    """The name of a mounted item: ``prefix_name`` for tools and prompts, ``scheme://prefix/rest`` for URIs."""
    if not prefix:
        return key
    if kind in {"tools", "prompts"}:
        return f"{prefix}_{key}"
    scheme, separator, rest = key.partition("://")
    return f"{scheme}://{prefix}/{rest}" if separator else f"{prefix}+{key}"


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
