"""The definition of a server before it runs: its name, settings, registered items, mounted servers, and parts.

A `Definition` is a node in the tree of mounted servers. Items registered on it are also registered, with a prefix,
wherever it's mounted. A change reaches the runtimes of these servers. Definitions don't depend on an event loop.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import Struct

from millstream._config import Settings
from millstream._protocol.content import Icon
from millstream._protocol.errors import LocalError, ToolError
from millstream._server.address import Address
from millstream._server.calls.services import ServerChange
from millstream._server.features import Hooks, hooks_of
from millstream._server.features.registry import Registry
from millstream._server.features.sources import Completer
from millstream._server.functions.description import MountOptions, check_options
from millstream._server.peers import ItemRemoval, ItemSwitch
from millstream._suggestions import SuggestionMeta, suggest

if TYPE_CHECKING:
    from asyncio import Task

    from millstream._app.user_routes import UserRoute
    from millstream._gateway.files.live import LiveConfig
    from millstream._gateway.options.sets import SetConfig
    from millstream._gateway.options.upstream import UpstreamConfig
    from millstream._http.server.guard import ServerState
    from millstream._parts import Part
    from millstream.auth._method import AnyAuthMethod
    from millstream.hub._subscriber import Authorize


class PartEntry(Struct, frozen=True):
    """A built-in part."""

    place: str
    """Module and class. The class is called with the definition of the server."""
    when: "Callable[[Definition], bool] | None" = lambda it: True
    """Returns whether a server with this definition has the part. None for parts that ``serve=`` names."""
    brings: Collection[str] = ()
    """Further parts that ``serve=`` adds with this one."""
    extension: bool = False
    """Whether the class is an `Extension`, which is called without arguments."""


TABLE: dict[str, PartEntry] = {
    "metrics": PartEntry("millstream._app.parts.operations:MetricsPart", None),
    "auth": PartEntry("millstream._app.parts.auth:AuthPart", lambda it: it.protected or bool(it.mounted)),
    "provider_tokens": PartEntry(
        "millstream._gateway.credentials.provider_tokens:ProviderTokensPart", lambda it: it.keeps_provider_tokens
    ),
    # Its gate and that of approvals must precede the limits' gate.
    "search": PartEntry("millstream._gateway.catalog.search:SearchPart", lambda it: it.settings.tool_search),
    "resource_tools": PartEntry(
        "millstream._gateway.catalog.resource_tools:ResourceToolsPart", lambda it: it.settings.resource_tools != "off"
    ),
    "approvals": PartEntry("millstream._gateway.approvals:ApprovalsPart", lambda it: "/approvals" in it.pages),
    "limits": PartEntry("millstream._app.parts:LimitsPart"),
    "hub": PartEntry("millstream._app.parts.hub:HubPart", None),
    "lifespan": PartEntry("millstream._app.parts:LifespanPart"),
    "tasks": PartEntry(
        "millstream.extensions.tasks:TasksExtension",
        lambda it: bool(it.upstreams) or any(tool.task is not None for tool in it.registry.tools.values()),
        extension=True,
    ),  # before the upstreams' tools are registered
    "results": PartEntry("millstream._app.parts:ResultsPart"),  # before upstreams offer the same tool beside theirs
    "gateway": PartEntry("millstream._gateway.live_part:LiveGatewayPart", lambda it: bool(it.upstreams)),
    "sets": PartEntry("millstream._gateway.catalog.sets:SetsPart", lambda it: bool(it.sets) or it.live is not None),
    "observation": PartEntry("millstream._app.parts:ObservationPart"),
    "mcp": PartEntry("millstream._app.parts:McpPart"),
    "probes": PartEntry("millstream._app.parts.operations:ProbesPart"),
    "rest": PartEntry("millstream._app.parts:RestPart", None),
    "web": PartEntry("millstream._app.parts.web:WebPart", None, ("hub", "rest", "metrics")),
    "cards": PartEntry("millstream.extensions.cards:Cards", lambda it: bool(it.settings.card_url), extension=True),
    "paths": PartEntry("millstream._app.parts:PathsPart"),
    "audit": PartEntry("millstream._app.parts.operations:AuditPart", lambda it: bool(it.settings.audit_log)),
}
"""Name -> part. Parts open in this order, each after the parts that it needs."""
SERVABLE = tuple(name for name, entry in TABLE.items() if entry.when is None)
"""Valid values of ``serve=``."""


def choose_parts(serve: str | Collection[str]) -> frozenset[str]:
    """Return the parts that a ``serve`` value names, and those that they add.

    Raises:
        ValueError: A part is unknown.
    """
    names = serve.replace(",", " ").split() if isinstance(serve, str) else list(serve)
    if "all" in names:
        return frozenset(SERVABLE)
    unknown = [name for name in names if name not in SERVABLE]
    if unknown:
        raise ValueError(f"Unknown part {unknown[0]!r} in serve. Use {', '.join(SERVABLE)}, or all.")
    return frozenset(names).union(*(TABLE[name].brings for name in names))


def make_parts(definition: "Definition") -> "list[Part]":
    """Return the parts that a server's `Definition` asks for. Extensions come last."""
    made: list[Part] = []
    for name, entry in TABLE.items():
        if name in definition.parts if entry.when is None else entry.when(definition):
            module, _, kind = entry.place.partition(":")
            part = getattr(import_module(module), kind)
            if entry.extension:
                from millstream.extensions._extension import ExtensionPart  # noqa: PLC0415  few servers have some

                made.append(ExtensionPart(part()))
            else:
                made.append(part(definition))
    return [*made, *definition.extensions]


KINDS = ("tools", "resources", "templates", "prompts")


LIFESPANS: ContextVar[tuple["Task[Any]", ...]] = ContextVar("lifespans", default=())
"""The tasks of the lifespans that the code runs in, or that started its task. Every worker runs them."""


class OneWorkerOnly(LocalError, ToolError):
    """An item was registered on only one of several workers. If a tool did that, the caller sees the message."""


class Info(Struct, frozen=True, omit_defaults=True, rename="camel", metaclass=SuggestionMeta):
    """Information about a server for people: ``Server("shop", info=Info(title="The shop"))``."""

    title: str | None = None
    description: str | None = None
    website_url: str | None = None
    icons: list[Icon] | None = None


class Bind(Struct, frozen=True):
    """How clients reach the server: over HTTP, or over stdio."""

    loopback: bool | None = None
    """Whether only this machine can reach it, or None if its address is unknown."""
    state: "ServerState | None" = None
    """State of our own HTTP server, or None under another server."""
    workers: Collection[object] = ()
    """State of each worker for `/health`, with several workers."""
    one_client: bool = False
    """Whether one client has the server to itself, over stdio."""


class DefinitionListener(Protocol):
    """A running instance of a server."""

    @property
    def shared(self) -> bool:
        """Whether other workers also run the server."""
        ...

    def emit(self, change: ServerChange) -> None:
        """Handle a change to the server's definition."""

    def on_change(self, kind: str, key: str, how: str) -> None:
        """Handle an item that this worker's program has ``added``, removed, or switched ``on`` or ``off``."""


def prefix_name(kind: str, key: str, prefix: str) -> str:
    """Return the name of a mounted item: ``prefix_name`` for tools and prompts, ``scheme://prefix/rest`` for URIs."""
    if not prefix:
        return key
    if kind in {"tools", "prompts"}:
        return f"{prefix}_{key}"
    scheme, separator, rest = key.partition("://")
    return f"{scheme}://{prefix}/{rest}" if separator else f"{prefix}+{key}"


@dataclass(eq=False)
class Definition:
    """A server's definition, which exists before the server runs and can change while it runs."""

    name: str
    version: str
    instructions: str
    info: Info
    store: str
    lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None
    parts: frozenset[str]
    authorize_channel: "Authorize | None"
    settings: Settings
    auth: "tuple[AnyAuthMethod, ...]" = ()
    middleware: Sequence[object] = ()
    extensions: "Sequence[Part]" = ()
    """Parts that open the extensions."""
    named: bool = True
    """Whether the operator chose the name. If not, a gateway with one upstream uses the upstream's name."""

    def __post_init__(self) -> None:
        self.store = self.store or self.settings.store or "memory://"
        self.registry: Registry = self.make_registry()
        self.registry.on_change = lambda kind: self.emit(ServerChange(kind))
        self.hooks: Hooks | None = hooks_of(self.middleware, self) if self.middleware else None
        """Middleware, if there is any."""
        self.upstreams: list[UpstreamConfig] = []
        """Servers behind this one."""
        self.live: LiveConfig | None = None
        """The configuration file that describes the upstreams."""
        self.connected: bool = False
        """Whether a gateway has registered the upstreams' items."""
        self.sets: list[SetConfig] = []
        """Choices of items with addresses of their own."""
        self.mounted: list[Definition] = []
        self._mounted_on: list[tuple[Definition, str, MountOptions]] = []
        """The servers that this one is mounted on, each with the prefix and the options."""
        self.user_routes: list[UserRoute] = []
        """The program's own paths."""
        self.overrides: dict[Callable[..., Any], Callable[..., Any]] = {}
        """Replacements for dependencies in tests."""
        self.listeners: set[DefinitionListener] = set()
        """Open runtimes, which receive each change."""
        self.removed: dict[ItemRemoval, None] = {}
        self.switched: dict[tuple[str, str], ItemSwitch] = {}
        """Changes while running, for workers that start later."""

    def make_registry(self) -> Registry:
        """Return an empty registry with the server's settings."""
        registry = Registry(page_size=self.settings.page_size, list_ttl_ms=self.settings.list_ttl_ms)
        registry.private = self.protected
        return registry

    @property
    def addresses(self) -> list[Address]:
        """The main address, or that of the set that's served there instead, then the addresses of other sets."""
        main = Address.main(self.settings)
        if not self.sets:
            return [main]
        from millstream._gateway.catalog.sets import find_addresses  # noqa: PLC0415  few servers have sets

        return find_addresses(self.sets, main)

    def configure(self, *, serve: str | Collection[str] = (), **changes: object) -> None:
        """Override the program's options with the command line's, before the server runs.

        Args:
            serve: Parts to serve instead; empty keeps the program's.
            changes: Settings by name.

        Raises:
            ValueError: A part is unknown, or a setting is invalid.
        """
        if serve:
            self.parts = choose_parts(serve)
        values: dict[str, Any] = {**msgspec.structs.asdict(self.settings), **changes}
        self.settings = Settings(**values)
        self.registry.private = self.protected

    @property
    def title(self) -> str:
        """Display title."""
        return self.info.title or self.name

    @property
    def keeps_provider_tokens(self) -> bool:
        """Whether users sign in with a provider whose tokens tools use."""
        logins = [each for method in self.auth for each in getattr(method, "logins", {}).values()]
        return any(getattr(each, "token_scopes", ()) for each in logins)

    @property
    def protected(self) -> bool:
        """Whether callers have to sign in."""
        return bool(self.auth or self.settings.auth_key or self.settings.auth_keys)

    @property
    def pages(self) -> frozenset[str]:
        """Paths of the pages that users of the upstreams need."""
        return frozenset[str]().union(*(each.pages for each in self.upstreams))

    @property
    def limited(self) -> bool:
        """Whether there are any rate limits."""
        settings = self.settings
        return bool(
            settings.limit_requests
            or settings.limit_calls
            or settings.limit_address
            or settings.limit_quota
            or settings.limit_concurrency
            or any(each.limit for each in self.sets)
        ) or any(tool.limit or tool.concurrency for tool in self.registry.tools.values())

    def describe(self) -> dict[str, Any]:
        """Return name, version, and information in the form of the newest revision."""
        return {"name": self.name, "version": self.version or "0", **msgspec.to_builtins(self.info)}

    # Registration

    def add(self, kind: str, key: str, item: Any) -> None:
        """Register an item here, and wherever this server is mounted.

        Raises:
            ValueError: The name is taken in one of these places. In that case, it's registered in none.
            LocalError: The running server shares its store with other workers, and only this one would have the item.
        """
        self._check_everywhere(key)
        self._check_free(kind, key)
        if kind == "tools" and item.result_tokens:
            from millstream._gateway.rules.results import limit_result  # noqa: PLC0415  few tools have a limit

            item.run = limit_result(item)
        self._put(kind, key, item, on=item.enabled)
        if not LIFESPANS.get():
            for listener in list(self.listeners):
                listener.on_change(kind, key, "added")

    def remove(self, kind: str, key: str) -> None:
        """Remove an item here, and wherever this server is mounted, also on other workers. Raises KeyError if it
        doesn't exist.
        """
        for place, name in self._places(kind, key):
            place.registry.remove(kind, name)
            for listener in list(place.listeners):
                listener.on_change(kind, name, "removed")

    def switch(self, kind: str, key: str, *, on: bool) -> None:
        """Enable or disable an item here, and wherever this server is mounted, also on other workers.

        Raises:
            KeyError: The item doesn't exist.
        """
        for place, name in self._places(kind, key):
            registry = place.registry
            offered, disabled = registry.items[kind], registry.disabled[kind]
            if name not in offered and name not in disabled:
                raise KeyError(f"There is no {name!r}; {suggest(name, [*offered, *disabled])}")
            if on == (name in disabled):
                (registry.enable if on else registry.disable)(kind, name)
            for listener in list(place.listeners):
                listener.on_change(kind, name, "on" if on else "off")

    def kind_of(self, noun: str, key: str) -> str:
        """Return the registry's kind for ``tool``, ``prompt``, or ``resource``.

        Raises:
            TypeError: The noun is unknown.
        """
        if noun == "resource":
            registry = self.registry
            return "templates" if key in registry.templates or key in registry.disabled["templates"] else "resources"
        if noun not in ("tool", "prompt"):
            raise TypeError(f"{noun!r} isn't a kind: use 'tool', 'resource', or 'prompt'.")
        return f"{noun}s"

    def items(self) -> "Iterator[tuple[str, str, Any, bool]]":
        """Yield kind, name, and item, and whether it's enabled."""
        for kind in KINDS:
            for on, items in ((True, self.registry.items[kind]), (False, self.registry.disabled[kind])):
                yield from ((kind, key, item, on) for key, item in items.items())

    def complete(self, reference: str, argument: str, function: Completer) -> None:
        """Register a completion function for a prompt's or template's argument.

        Raises:
            ValueError: The prompt or template has no such argument.
        """
        for place, name in self._places("templates" if "{" in reference else "prompts", reference):
            place.registry.check_argument(name, argument)
            place.registry.completers[(name, argument)] = function
            place.registry.announce("completions")

    def _check_everywhere(self, what: str) -> None:
        several = any(runtime.shared for each in self.around() for runtime in each.listeners)
        if several and not LIFESPANS.get():
            raise OneWorkerOnly(
                f"{what!r} would be registered on one worker only, because the server is running and shares its store "
                "with other workers. Register it before the server runs, in its lifespan, or in a task that the "
                "lifespan starts."
            )

    def _places(self, kind: str, key: str) -> "Iterator[tuple[Definition, str]]":
        """Yield this server and each server that it's mounted on, with the item's name there."""
        yield self, key
        for parent, prefix, _ in self._mounted_on:
            yield from parent._places(kind, prefix_name(kind, key, prefix))

    def _check_free(self, kind: str, key: str) -> None:
        for place, name in self._places(kind, key):
            place.registry.check_free(kind, name)

    def _put(self, kind: str, key: str, item: Any, *, on: bool) -> None:
        if self.hooks is not None:
            item = item.within(self.hooks)
        self.registry.add(kind, key, item)
        if not on:
            self.registry.disable(kind, key)
        for parent, prefix, options in self._mounted_on:
            parent._take(kind, key, item, prefix, options, on=on)

    def _take(self, kind: str, key: str, item: Any, prefix: str, options: MountOptions, *, on: bool) -> None:
        name = prefix_name(kind, key, prefix)
        item = item.restrict(options) if options else item
        self._put(kind, name, item.with_name(name) if prefix else item, on=on)

    def add_upstream(self, config: "UpstreamConfig") -> None:
        """Add an upstream.

        Raises:
            LocalError: The server is running, or is mounted on another one.
        """
        self._check_addable(f"the upstream {config.name!r}")
        self.upstreams.append(config)

    def add_set(self, config: "SetConfig") -> None:
        """Serve a set of the items at an address of its own.

        Raises:
            ValueError: Another set has the name, or the path is taken.
            LocalError: The server is running, or is mounted on another one.
        """
        self._check_addable(f"the set {config.name!r}")
        if any(each.name == config.name for each in self.sets):
            raise ValueError(f"There is already a set {config.name!r}. Rename one.")
        self.sets.append(config)
        try:
            if self.addresses and any(self.paths()):
                self._check_paths()
        except ValueError:
            self.sets.remove(config)
            raise

    def admit_extension(self, name: str, hooks: object | None) -> None:
        """Check that an extension can be added now, and add its hooks inside the existing ones, for items that are
        registered later.

        Args:
            name: Name of the extension.
            hooks: The object with its hooks, or None if it has none.

        Raises:
            LocalError: The server is running, is mounted on another one, or already has middleware and items.
        """
        self._check_addable(f"the extension {name!r}")
        if hooks is None:
            return
        if self.hooks is not None and any(self.registry.items[kind] for kind in KINDS):
            raise LocalError(
                f"The extension {name!r} was added after the items that its hooks wrap. Add it when the "
                f"server is created: Server({self.name!r}, extensions=[…])"
            )
        self.middleware = (*self.middleware, hooks)
        self.hooks = hooks_of(self.middleware, self)

    def _check_addable(self, what: str) -> None:
        if self._runs():
            raise LocalError(f"The server is already running. Add {what} before it runs.")
        for parent, *_ in self._mounted_on:
            raise LocalError(f"{self.name!r} is mounted on {parent.name!r}. Add {what} there.")

    # Mounting

    def mount(self, other: "Definition", prefix: str, options: MountOptions) -> None:
        """Offer the items of another server as part of this one, now and later.

        Args:
            other: The other server.
            prefix: Prefix of its items' names here.
            options: Conditions for its items here.

        Raises:
            TypeError: An option is unknown or invalid.
            ValueError: A server can't contain itself, a name is taken, or the other server has a lifespan while this
                one is already running.
            LocalError: The running server shares its store with other workers, and only this one would have the items.
        """
        check_options("mount", options, MountOptions)
        self._check_mounted(other)
        items = list(other.items())
        for kind, key, *_ in items:
            self._check_free(kind, prefix_name(kind, key, prefix))
        self._join(other, prefix, options)
        for kind, key, item, on in items:
            self._take(kind, key, item, prefix, options, on=on)
        for (reference, argument), completer in other.registry.completers.items():
            kind = "templates" if "{" in reference else "prompts"
            self.complete(prefix_name(kind, reference, prefix), argument, completer)

    def _check_mounted(self, other: "Definition") -> None:
        if other.extensions:
            raise ValueError(
                f"{other.name!r} has extensions, which can't run in a mounted server. Pass them to "
                f"{self.name!r} instead, as Server(…, extensions=[…])."
            )
        if other.upstreams:
            raise ValueError(
                f"{other.name!r} has upstreams, which can't run in a mounted server. Add them to {self.name!r} "
                "instead, with upstream(…)."
            )
        if other in self.around():
            raise ValueError(f"{other.name!r} can't be mounted on {self.name!r}, because it would contain itself.")
        self._check_everywhere(other.name)
        features = {
            "a lifespan": other.has_lifespan(),
            "middleware for messages or lists": other.has_wide_hooks(),
            "routes": any(other.paths()),
        }
        for what, exists in features.items():
            if exists and self._runs():
                raise ValueError(
                    f"{other.name!r} has {what}, but {self.name!r} is already running. Mount it before, or in a "
                    "lifespan."
                )

    def _join(self, other: "Definition", prefix: str, options: MountOptions) -> None:
        """Link two servers, unless their paths conflict."""
        self.mounted.append(other)
        other._mounted_on.append((self, prefix, options))
        if any(other.paths()):
            try:
                self._check_paths()
            except ValueError:
                self.mounted.remove(other)
                other._mounted_on.remove((self, prefix, options))
                raise

    # Used by other servers of the tree

    def add_path(self, added: "UserRoute") -> None:
        """Serve one of the program's own paths here, and wherever this server is mounted.

        Raises:
            ValueError: The path is taken.
            LocalError: The server is running.
        """
        if self._runs():
            raise LocalError(f"The server is already running. Add the route {added.path!r} before it runs.")
        self.user_routes.append(added)
        try:
            self._check_paths()
        except ValueError:
            self.user_routes.remove(added)
            raise

    @property
    def mcp_paths(self) -> list[str]:
        """Paths where MCP is served over HTTP."""
        return [path for each in self.addresses for path in each.paths]

    def paths(self, before: str = "") -> "Iterator[tuple[str, UserRoute]]":
        """Yield the program's own paths, and the paths of mounted servers with their prefixes."""
        yield from ((before, each) for each in self.user_routes)
        for part in dict.fromkeys(self.mounted):
            for parent, prefix, _ in part._mounted_on:
                if parent is self:
                    yield from part.paths(f"{before}/{prefix}" if prefix else before)

    def _check_paths(self) -> None:
        """Raise ValueError if two of the program's own paths are the same, here or where this server is mounted."""
        from millstream._app.user_routes import UserRoutes  # noqa: PLC0415  only for programs with pages of their own

        UserRoutes(self.paths(), served=self.mcp_paths, show_errors=bool)
        for parent, *_ in self._mounted_on:
            parent._check_paths()

    def around(self) -> "Iterator[Definition]":
        """Yield this server, then the servers that it's mounted on, nearest first."""
        found = [self]
        for each in found:
            yield each
            found += [parent for parent, *_ in each._mounted_on]

    def _inside(self) -> "Iterator[Definition]":
        """Yield this server and all servers that are mounted on it."""
        yield self
        for each in self.mounted:
            yield from each._inside()

    def _runs(self) -> bool:
        return any(each.listeners for each in self.around())

    def has_lifespan(self) -> bool:
        """Return whether this server, or one mounted on it, has a lifespan."""
        return any(each.lifespan is not None for each in self._inside())

    def has_wide_hooks(self) -> bool:
        """Return whether this server, or one mounted on it, has middleware around messages or lists."""
        return any(each.hooks is not None and each.hooks.wide for each in self._inside())

    def all_overrides(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        """Return the dependency overrides that apply to this server: its own and its ancestors'."""
        found = self.overrides
        for parent, *_ in self._mounted_on:
            found = {**found, **parent.all_overrides()}
        return found

    # Changes

    def emit(self, change: ServerChange) -> None:
        """Pass a change to the runtimes of this server, and a resource update also to its ancestors', where
        registrations change by themselves.
        """
        change.uri.encode()  # an unencodable URI is the caller's error
        for place, uri in self._places("resources", change.uri) if change.uri else ((self, ""),):
            for listener in list(place.listeners):
                listener.emit(ServerChange(change.kind, uri))
