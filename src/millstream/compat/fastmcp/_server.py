"""`FastMCP`: a program for the official SDK or for fastmcp writes against it, and our engine runs it."""

import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar, Unpack

import msgspec

from millstream._app.definition import Info
from millstream._app.server import Server
from millstream._app.tree import prefixed
from millstream._config import Settings
from millstream._protocol.content import Icon
from millstream._server.calls.changes import Change
from millstream.compat.fastmcp import _settings as door
from millstream.compat.fastmcp._calling import Calling
from millstream.compat.fastmcp._conversion import as_wire
from millstream.compat.fastmcp._given_sign_in import method_of
from millstream.compat.fastmcp._missing import ANYWAY, MISSING, refusal
from millstream.compat.fastmcp._openapi import client_of, offer_api
from millstream.compat.fastmcp._outer import Outer
from millstream.compat.fastmcp._providers import offer_of
from millstream.compat.fastmcp._proxy import Proxy, put_behind
from millstream.compat.fastmcp._registration import Offered, Registration
from millstream.compat.fastmcp._serving import Serving, SessionManager
from millstream.compat.fastmcp._settings import Options, settings_of
from millstream.compat.fastmcp._tools import Tool
from millstream.compat.fastmcp._transforming import StandaloneTool
from millstream.compat.fastmcp._ways import SDK, STANDALONE, Ways

logger = logging.getLogger("millstream")

LifespanT = TypeVar("LifespanT")

_MAX_SESSIONS = 10_000
"""Sessions whose state is kept; the one that was used longest ago makes room."""


class FastMCP(Registration, Calling, Serving, Generic[LifespanT]):
    """A server as the official SDK's 1.x has it.

    Args:
        name: what clients show.
        instructions: how to use the server, for the client's model.
        website_url: a page about the server, for people.
        icons: pictures of the server, for people.
        auth_server_provider: issues tokens; needs ``auth=AuthSettings(…)``.
        token_verifier: tells whose a token is; needs ``auth=AuthSettings(…)``.
        event_store: accepted, but not needed: streams can be resumed anyway.
        retry_interval: accepted, but not used.
        options: see `millstream.compat.fastmcp._settings.Options`.

    Raises:
        TypeError: an unknown option.
        ValueError: sign-in is half configured.
    """

    ways: Ways = SDK
    _called = "FastMCP"

    def __init__(  # noqa: PLR0917  in the order of the SDK
        self,
        name: str | None = None,
        instructions: str | None = None,
        website_url: str | None = None,
        icons: Sequence[Any] | None = None,
        auth_server_provider: Any = None,
        token_verifier: Any = None,
        event_store: Any = None,
        retry_interval: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        unknown = options.keys() - Options.__optional_keys__
        if unknown:
            raise TypeError(refusal(min(unknown)))
        self.settings: door.Settings = settings_of(options)
        self.icons: list[Any] | None = list(icons) if icons else None
        self.website_url = website_url
        self.strict: bool = bool(options.get("strict_input_validation"))
        self.mask_error_details: bool = bool(options.get("mask_error_details"))
        self._middleware = list(options.get("middleware") or ())
        self._mounted: list[tuple[Calling, str]] = []
        self._custom_routes = []
        self.proxies: list[Proxy] = []
        self._session_manager: SessionManager | None = None
        self._states: OrderedDict[str, dict[str, Any]] = OrderedDict()
        lifespan = options.get("lifespan")
        self.engine: Server = Server(
            name or ("FastMCP" if self.ways.keeps_first else f"{self._called}-{secrets.token_hex(2)}"),
            version=str(options.get("version") or ""),
            instructions=instructions or "",
            info=Info(
                title=options.get("title"),
                description=options.get("description"),
                website_url=website_url,
                icons=[msgspec.convert(as_wire(each), Icon) for each in icons] if icons else None,
            ),
            lifespan=None if lifespan is None else lambda _: self._lifespan(lifespan),
            auth=method_of(options.get("auth"), token_verifier, auth_server_provider),
            settings=Settings.load(None, **self.settings.ours(), **_page_size(options)),
        )
        """Our server, which runs it all."""
        self.engine.definition.hooks = Outer(self, self.engine.definition, self._middleware).hooks()
        self.offered: Offered = Offered(self, self.engine, self.ways, _ways_of_duplicates(options))
        self.engine.registry.completes_choices = False  # the door's arguments have none: only a handler completes
        for capability in ("tools", "resources", "prompts"):
            self.engine.registry.offer(capability)  # with nothing in it, too
        self.offered.include_tags = set(options.get("include_tags") or ()) or None
        self.offered.exclude_tags = set(options.get("exclude_tags") or ())
        self._look_at_lists()
        for tool in options.get("tools") or ():
            self.add_tool(tool)
        for resource in options.get("resources") or ():
            self.add_resource(resource)

    @property
    def __millstream_server__(self) -> Server:
        """What ``millstream run`` serves: everything but middleware of the program's ASGI application."""
        self.configure()
        return self.engine

    @property
    def name(self) -> str:
        """What clients show."""
        return self.engine.name

    @property
    def title(self) -> str | None:
        """For people."""
        return self.engine.definition.info.title

    @property
    def version(self) -> str:
        """Of the server."""
        return self.engine.version

    @property
    def instructions(self) -> str | None:
        """How to use the server."""
        return self.engine.definition.instructions or None

    @instructions.setter
    def instructions(self, value: str | None) -> None:
        self.engine.definition.instructions = value or ""

    @property
    def dependencies(self) -> list[str]:
        """Packages that the program said it needs."""
        return self.settings.dependencies

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def __getattr__(self, name: str) -> Any:
        """What isn't here, and what to do instead. Raises AttributeError, whatever the name."""
        instead = f": {MISSING[name]}" if name in MISSING else ""
        raise AttributeError(f"{type(self).__name__} has no {name!r} here{instead}")

    def _lifespan(self, lifespan: Any) -> AbstractAsyncContextManager[Any]:
        made: AbstractAsyncContextManager[Any] = lifespan(self)
        return made

    # Composition

    def mount(self, server: Any, prefix: Any = None, namespace: str | None = None, **more: Any) -> None:
        """Offer what another server has as part of this one: tool ``buy`` as ``prefix_buy``, now and later.

        Raises:
            ValueError: it's this server itself.
        """
        if isinstance(server, str):
            server, prefix = prefix, server  # fastmcp 2 took the prefix first
        if server is self:
            raise ValueError("Cannot mount a server onto itself")
        name = namespace or prefix or ""
        if self.mask_error_details and not server.mask_error_details:
            logger.warning("%s: mask_error_details isn't set for %s, which is mounted on it", self.name, server.name)
        server.configure()
        self.engine.definition.mount(server.engine.definition, name, first_wins=not self.ways.keeps_first)
        self._warn_of_twins(server, name)
        self._mounted.append((server, name))
        self.offered.screen()
        if server.offered.completion is not None:
            self.offered.complete()

    def _warn_of_twins(self, server: Any, prefix: str) -> None:
        """Say which names of a server that is being mounted are here already."""
        for kind in ("tools", "resources", "templates", "prompts"):
            here = {each.key for each in self._items(kind)}
            for item in server._items(kind):
                if (key := prefixed(kind, item.key, prefix)) in here:
                    logger.warning("Duplicate of the %s: %s of %s is here already", kind, key, server.name)

    async def import_server(self, server: Any, prefix: Any = None) -> None:
        """Take what another server has now into this one."""
        if isinstance(server, str):
            server, prefix = prefix, server
        self.mount(server, prefix)

    def add_middleware(self, middleware: Any) -> None:
        """Let a `Middleware` stand around calls."""
        self._middleware.append(middleware)
        self._look_at_lists()

    def _look_at_lists(self) -> None:
        if self._middleware or self.lists_fail:
            self.engine.registry.lists = self.run_list

    # What contexts need

    def emit(self, change: Change) -> None:
        """Tell clients of a change."""
        self.engine.definition.emit(change)

    def session_state(self, session: str) -> dict[str, Any]:
        """What functions have kept for a session."""
        state = self._states.setdefault(session, {})
        self._states.move_to_end(session)
        if len(self._states) > _MAX_SESSIONS:
            self._states.popitem(last=False)
        return state


def _page_size(options: Options) -> dict[str, int]:
    """How long lists are, where the program says so.

    Raises:
        ValueError: it says something that cannot be.
    """
    size = options.get("list_page_size")
    if size is None:
        return {}
    if size <= 0:
        raise ValueError("list_page_size must be a positive integer")
    return {"page_size": size}


def _ways_of_duplicates(options: Options) -> dict[str, str]:
    """Kind -> what happens to the second item of one name."""
    made: dict[str, str] = {}
    for kind, name in (
        ("tools", "tools"),
        ("resources", "resources"),
        ("templates", "resources"),
        ("prompts", "prompts"),
    ):
        told = options.get(f"on_duplicate_{name}") or options.get("on_duplicate")
        warns = options.get(f"warn_on_duplicate_{name}", True)
        made[kind] = str(told) if told else "keep" if warns else "quiet"
    return made


class MCPServer(FastMCP[LifespanT]):
    """A server as the official SDK's 2.x has it: title and description are the second and third argument."""

    def __init__(
        self,
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        instructions: str | None = None,
        website_url: str | None = None,
        icons: Sequence[Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            name or "mcp-server", instructions, website_url, icons, title=title, description=description, **options
        )


_OF_AN_API = ("route_maps", "route_map_fn", "mcp_component_fn", "mcp_names", "tags", "validate_output")


class StandaloneFastMCP(FastMCP[LifespanT]):
    """A server as the package fastmcp has it; `millstream.compat.fastmcp.standalone.FastMCP`."""

    ways = STANDALONE
    _kind_of_tool = StandaloneTool

    @classmethod
    def as_proxy(cls, backend: Any, **settings: Any) -> "StandaloneFastMCP[Any]":
        """A server that offers what another one offers: a URL, a command, a script, a configuration or a server.

        Raises:
            TargetError: the backend names no server.
        """
        settings.pop("mode", None)  # the revision is agreed upon on each side
        return FastMCPProxy(backend, **settings)

    from_client = as_proxy

    def put_behind(self, target: Any) -> None:
        """Let it offer what the target of a proxy offers.

        Raises:
            TargetError: it names no server.
        """
        put_behind(self, target, lambda name, part: FastMCPProxy[Any](part, name=name))

    def add_provider(self, provider: Any, *, namespace: str = "") -> None:
        """Offer what an `OpenAPIProvider` or a `ProxyProvider` has, with the namespace before its names.

        Raises:
            TypeError: it's a provider of another kind.
        """
        server = StandaloneFastMCP[Any](namespace) if namespace else self
        offer_of(provider, server)
        if namespace:
            self.mount(server, namespace)

    @classmethod
    def from_openapi(
        cls, openapi_spec: Any, client: Any = None, name: str = "OpenAPI Server", **options: Any
    ) -> "StandaloneFastMCP[Any]":
        """A server whose tools are the operations of an API.

        Args:
            openapi_spec: the OpenAPI document, as a dict.
            client: an `AsyncClient` of httpx2 or httpx; without one, the document says where the API is.
            name: what clients show.
            options: `route_maps`, `route_map_fn`, `mcp_component_fn`, `mcp_names`, `tags`, `validate_output`; the
                others are those of the constructor.

        Raises:
            ValueError: that's no OpenAPI document.
        """
        own = {key: options.pop(key) for key in _OF_AN_API if key in options}
        made = cls(name, **options)
        offer_api(made, openapi_spec, client, **own)
        return made

    @classmethod
    def from_fastapi(
        cls, app: Any, name: str | None = None, *, httpx_client_kwargs: Any = None, **options: Any
    ) -> "StandaloneFastMCP[Any]":
        """A server whose tools are the operations of a FastAPI application in this process; see `from_openapi`."""
        client = client_of(app, httpx_client_kwargs)
        return cls.from_openapi(app.openapi(), client, name or app.title, **options)


class FastMCPProxy(StandaloneFastMCP[LifespanT]):
    """`FastMCP.as_proxy` by the name of a class: ``FastMCPProxy(client_factory=lambda: ProxyClient(url))``.

    Args:
        client: where it leads.
        client_factory: a function that says it.
        settings: those of a server; and with ``provider_error_strategy="raise"``, lists are errors while the server
            behind can't be reached.
    """

    _called = "FastMCPProxy"

    def __init__(self, client: Any = None, *, client_factory: Callable[[], Any] | None = None, **settings: Any) -> None:
        strategy = settings.pop("provider_error_strategy", "warn")
        if strategy not in ("warn", "raise"):
            raise ValueError(f"provider_error_strategy must be 'warn' or 'raise', not {strategy!r}")
        self.lists_fail: bool = strategy == "raise"
        own = {name: value for name, value in settings.items() if ANYWAY.get(name, self) != value}
        super().__init__(**own)
        self.client_factory: Callable[[], Any] = client_factory or (lambda: client)
        self.put_behind(client if client_factory is None else client_factory)


def create_proxy(target: Any, **settings: Any) -> StandaloneFastMCP[Any]:
    """The same as `FastMCP.as_proxy`.

    Example:
        ``create_proxy("https://example.com/mcp", name="Bridge").run()``
    """
    return StandaloneFastMCP.as_proxy(target, **settings)


__all__ = ["FastMCP", "FastMCPProxy", "MCPServer", "StandaloneFastMCP", "Tool", "create_proxy"]
