"""Parts: features that plug into a server, and the `PartHost` they open on.

A part has a name, lists the other parts that it needs, and registers its features on the host: routes, JSON-RPC
methods, capabilities, observers, gates, periodic work, and readiness checks. Features that no part registers add
nothing to a call.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

from msgspec import Struct

from millstream._config import Settings
from millstream._http.hosts import HostPolicy
from millstream._http.message import Handler, HttpRequest, Response, Sink, plain_problem
from millstream._protocol.revisions import Revision
from millstream._server.address import Address
from millstream._server.calls.call import Call
from millstream._server.calls.services import ObserveMessage, Services
from millstream._server.control import Gate
from millstream._server.dispatch import Dispatcher, Observe
from millstream._server.features.registry import Handler as MethodHandler
from millstream._server.features.registry import RegisteredExtension, Registry, RelayedServer
from millstream._server.features.resources import Resource
from millstream._server.sweep import Sweep
from millstream._server.worker_queries import WorkerQueries
from millstream._stores.health import StoreHealth
from millstream._stores.store import Store
from millstream._tasks import Tasks
from millstream._transports.open_streams import OpenStreams

if TYPE_CHECKING:
    from millstream._limits import StoreLimiter
    from millstream._server.observability.observer import Observer
    from millstream._telemetry.metrics import Metrics
    from millstream.auth._guard import AuthGuard
    from millstream.hub import Hub

T = TypeVar("T")
W = TypeVar("W", bound=Callable[..., object])
SocketHandler = Callable[[Any], Awaitable[None]]
"""Serves a WebSocket (`millstream._http.websocket.Socket`) from its handshake on."""
WATCH = "millstream:watch"
"""The scope for the server's statistics: the dashboard, its data, and metrics."""
PUBLISH = "millstream:publish"
"""The scope for publishing from outside, without an authorization hook."""


class Part(Protocol):
    """A feature that plugs into a server. See `definition.TABLE` and, for other authors' features,
    `millstream.extensions`.

    A server opens its parts each time it starts, once per event loop, and closes them in reverse order.
    """

    @property
    def name(self) -> str:
        """The name that other parts list in `needs`."""
        ...

    @property
    def needs(self) -> Collection[str]:
        """Names of the parts to open before this one."""
        ...

    async def open(self, host: "PartHost") -> None:
        """Register the part's features.

        Args:
            host: The running server.
        """

    async def close(self) -> None:
        """Release the resources that `open` acquired. Runs only if `open` succeeded."""


class Route(Struct, frozen=True):
    """The handlers of one path, and its access rules: ``host.routes.add("/up", Route({"GET": show}, public=True))``"""

    handlers: Mapping[str, Handler]
    """HTTP method -> handler."""
    stream: bool = False
    """Whether a GET opens a stream. Pages of other sites and WebSockets are rejected, and HEAD opens none."""
    public: bool = False
    """Whether callers need no sign-in."""
    scope: str = ""
    """The scope that signed-in callers need."""
    private: bool = False
    """Whether only programs on this machine can reach it if there is no sign-in."""
    local: bool = False
    """Whether only programs on this machine can reach it, even with sign-in."""
    charged: Literal["request", "message", ""] = "request"
    """What rate limits charge: each request before its handler; each message that a POST contains and each end of a
    session, by the transport that reads them; or nothing, for health checks, scrapes, files, and what pages poll.
    """
    message: str = ""
    """The message log's name for a request rejected because it came from another machine."""
    own: bool = False
    """Whether it's one of the program's own routes. A page may then use the sign-in cookie with any method."""
    reserved: bool = False
    """Whether the program's own pages can't replace it."""
    refuse: Callable[[HttpRequest, Response], Response] | None = None
    """Changes the response to a GET that isn't a stream, such as a refusal of the checks."""
    set_name: str = ""
    """Name of the set that it belongs to, if any."""


class UpstreamReports(Protocol):
    """The upstreams, for operators."""

    @property
    def has_all_lists(self) -> bool:
        """Whether this worker has the lists of each upstream."""
        ...

    def describe(self) -> list[dict[str, Any]]:
        """Return the state and statistics of each upstream on this worker."""
        ...

    async def ask_workers(self) -> None:
        """Get the reports of the other workers, which the following methods include."""

    def describe_all(self) -> list[dict[str, Any]]:
        """Return the state and statistics of each upstream, for all workers together."""
        ...

    def describe_states(self) -> list[dict[str, Any]]:
        """Return the facts that explain each upstream's state, for all workers together."""
        ...

    async def count_approvals(self) -> int | None:
        """Return how many calls wait for another person's approval, or None if no rule asks for one or the store
        doesn't respond.
        """
        ...

    def items(self, name: str) -> dict[str, Any] | None:
        """Return an upstream's tools and quarantined definitions on this worker, or None if it doesn't exist."""
        ...


class RouteRegistry:
    """The paths that parts serve."""

    def __init__(self) -> None:
        self.exact: dict[str, Route] = {}
        """Path -> route."""
        self.prefixes: dict[str, Route] = {}
        """Prefix -> route for all paths that start with it. The first match is used."""
        self.patterns: list[tuple[re.Pattern[str], Route]] = []
        """Patterns of paths with parameters, matched after exact paths and before prefixes."""
        self.home: tuple[str, Handler] | None = None
        """A page, and the handler that serves it at ``/`` or redirects there, unless that path is taken."""
        self.watchers: list[Callable[[], None]] = []
        """Called in order when routes have changed since HTTP is served."""

    def add(self, path: str, route: Route) -> None:
        """Serve a path.

        Raises:
            ValueError: Another part serves it.
        """
        self._add(self.exact, path, route)

    def add_prefix(self, prefix: str, route: Route) -> None:
        """Serve all paths with a prefix, except paths with an exact route.

        Raises:
            ValueError: Another part serves it.
        """
        self._add(self.prefixes, prefix, route)

    def notify(self) -> None:
        """Call the watchers."""
        for watcher in self.watchers:
            watcher()

    def remove(self, set_name: str) -> None:
        """Stop serving the paths of a set."""
        for routes in self.exact, self.prefixes:
            for path in [path for path, route in routes.items() if route.set_name == set_name]:
                del routes[path]

    @staticmethod
    def _add(routes: dict[str, Route], path: str, route: Route) -> None:
        if path in routes:
            raise ValueError(f"Two parts of the server serve {path!r}. Give one of them another path.")
        routes[path] = route


class ServedSets(Protocol):
    """Sets of a server's items at addresses of their own."""

    def check(self, configs: Sequence[Any]) -> None:
        """Raise ValueError if a running server can't change to other configurations of its sets."""
        ...

    def use(self, configs: Sequence[Any]) -> None:
        """Use other configurations."""
        ...

    def instruct(self) -> None:
        """Use the instructions of the main address that are about a set's upstreams."""
        ...


class PartHost:
    """The running server, as parts can extend it: ``host.on_close(connection.close)``"""

    lifespan: asyncio.Task[None] | None = None
    """The task of the program's lifespans."""
    has_one_client: bool = False
    """Whether one client has the server to itself, over stdio."""
    sets_change: bool = False
    """Whether sets can be added, changed, and removed while the server runs."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        streams: OpenStreams,
        sweep: Sweep,
        store_health: StoreHealth,
        *,
        draining: Callable[[], bool],
        queries: WorkerQueries,
    ) -> None:
        # The server
        self.dispatcher: Dispatcher = dispatcher
        self.services: Services = dispatcher.services
        self.settings: Settings = dispatcher.services.settings
        self.store: Store = dispatcher.services.store
        self.store_health: StoreHealth = store_health
        self.registry: Registry = dispatcher.registry
        self.streams: OpenStreams = streams
        self.sweep: Sweep = sweep
        self.policy: HostPolicy
        """Allowed hosts and origins. Set before the callbacks of `on_http` run."""
        self.is_local: Callable[[str, Mapping[bytes, bytes], bool], bool]
        """Whether a peer address and headers belong to a program on this machine. Set with `policy`."""
        self.draining: Callable[[], bool] = draining
        """Whether the server has stopped accepting new work."""
        self.stack: AsyncExitStack = AsyncExitStack()
        """Closes the parts and their resources."""
        self.background: Tasks = Tasks()
        """Tasks of `run`, which end before the parts close."""
        self.queries: WorkerQueries = queries
        """Questions to all workers of this server."""
        self.open_pool: StoreLimiter | None = None
        """The limiter `pool`, or None if it hasn't been created."""
        # Services that parts offer to other parts
        self.metrics: Metrics | None = None
        """The registry of metrics, or None if none are served."""
        self.hub: Hub | None = None
        self.guard: AuthGuard | None = None
        """Authentication for paths that aren't public, or None without sign-in."""
        self.observer: Observer | None = None
        self.gateway: UpstreamReports | None = None
        """Describes the upstreams, or None without upstreams."""
        self.sets: ServedSets | None = None
        """The sets of items at other addresses, or None without sets."""
        # Items that parts register
        self.routes: RouteRegistry = RouteRegistry()
        self.sockets: dict[str, SocketHandler] = {}
        """Path -> function that serves the WebSockets there. It checks Host and Origin by `policy`, and
        credentials by `guard`.
        """
        self.shared_paths: set[str] = set()
        """Paths that pages of any origin can use, because cookies are ignored there."""
        self.http: list[Callable[[], None]] = []
        self.drains: list[Callable[[float], Awaitable[None]]] = []
        self.changes: list[Callable[[str], None]] = []
        self.reports: dict[str, Callable[[], Any]] = {}
        self.limits: dict[str, int] = {}
        """Figure of `/health` -> its limit."""
        self.readiness_checks: list[tuple[Callable[[], str], bool]] = []
        self._set_ups: list[Callable[[Dispatcher], None]] = []
        self._gates: list[Gate] = []
        self._observers: list[Observe] = []
        self._message_observers: list[ObserveMessage] = []

    # Addresses

    def at_each_address(self, set_up: Callable[[Dispatcher], None]) -> None:
        """Set up each address, now and when one is added while the server runs.

        Args:
            set_up: Called with the dispatcher of an address.
        """
        self._set_ups.append(set_up)
        for each in self.dispatcher.everywhere:
            set_up(each)

    def serve_each(self, serve: Callable[[Dispatcher], None]) -> None:
        """Serve each address that clients can reach, now and when one is added while the server runs.

        Args:
            serve: Adds the routes of a dispatcher.
        """
        self.at_each_address(lambda each: serve(each) if each.address in self.services.addresses else None)

    def add_address(self, registry: Registry, address: Address) -> Dispatcher:
        """Serve another address while the server runs. Return its dispatcher."""
        self.services.addresses.append(address)
        made = self.dispatcher.branch(registry, address)
        for set_up in self._set_ups:
            set_up(made)
        self.routes.notify()
        return made

    def change_address(self, dispatcher: Dispatcher, address: Address) -> None:
        """Change who can use an address with the same paths. Its clients connect again."""
        self.services.addresses[self.services.addresses.index(dispatcher.address)] = dispatcher.address = address
        for listener in self.changes:
            listener("tools")  # its limit may be the server's first one
        self.streams.end_at(address)

    def remove_address(self, dispatcher: Dispatcher) -> None:
        """Stop serving an address. Running calls go on, except those that wait for an answer, and streams end."""
        address = dispatcher.address
        self.dispatcher.everywhere.remove(dispatcher)
        self.services.addresses.remove(address)
        self.sockets.pop(address.websocket, None)
        self.routes.remove(address.name)
        self.routes.notify()
        self.streams.end_at(address)
        for call in self.dispatcher.calls:
            if call.dispatcher is dispatcher and call.session is not None:
                self.services.questions.end(call.session.id, "This address was removed, so no answer counts.")

    # Protocol

    def extend(self, extension: RegisteredExtension, *, in_sets: bool = False) -> None:
        """Add methods, notifications, and a capability until the server closes.

        Args:
            extension: The methods and the capability.
            in_sets: Whether to also add them at the addresses of sets.

        Raises:
            ValueError: MCP or another part has one of the methods.
        """
        self.registry.extend(extension)
        self.stack.callback(self.registry.retract, extension)
        if in_sets:
            self.at_each_address(lambda each: None if each is self.dispatcher else each.registry.extend(extension))

    # Calls

    def gate(self, gate: Gate) -> None:
        """Run a gate before each call.

        Args:
            gate: Called with each call. It raises `ProtocolError` to reject the call, directly or when awaited.
        """
        self._gates.append(gate)
        for each in self.dispatcher.everywhere:
            each.gate = gate if len(self._gates) == 1 else _chain_gates(tuple(self._gates))

    def observe(self, observer: Observe) -> Callable[[], None]:
        """Watch calls: ``host.observe(lambda call, seconds, answer: print(call.name, seconds))``

        Args:
            observer: Called after each call.

        Returns:
            A function that ends it before the server closes.
        """
        self._observers.append(observer)
        for each in self.dispatcher.everywhere:
            each.observe = _chain_observers(self._observers)

        def end() -> None:
            self._observers.remove(observer)
            self.dispatcher.observe = _chain_observers(self._observers) if self._observers else None

        return end

    def observe_messages(self, observer: ObserveMessage) -> None:
        """Watch messages that don't become calls.

        Args:
            observer: Called for each message.
        """
        self._message_observers.append(observer)
        self.services.note = _chain_observers(self._message_observers)

    # Items

    def relay(self, server: RelayedServer) -> None:
        """Let another server serve the clients, until this one closes.

        Args:
            server: Passes their calls on.
        """
        self.registry.relayed = server
        self.on_close(partial(setattr, self.registry, "relayed", None))

    def find_resources(self, find: Callable[[str], Resource | None]) -> None:
        """Find resources that aren't listed, until the server closes.

        Args:
            find: Returns the resource for a URI that no item has, or None.
        """
        self._hook(self.registry.resource_finders, find)

    def find_methods(self, find: Callable[[str, Revision], MethodHandler | None]) -> None:
        """Register a function that finds handlers for other methods, until the server closes.

        Args:
            find: Returns the handler for a method and revision, or None.
        """
        self._hook(self.registry.method_finders, find)

    def select_listed(
        self,
        select: Callable[[str, Mapping[str, Any]], Mapping[str, Any]],
        in_sets: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        """Choose which items to list, until the server closes.

        Args:
            select: Returns the items to list among the ones that the previous hooks chose.
            in_sets: Does so for sets. By default, it's `select`.
        """

        def set_up(dispatcher: Dispatcher) -> None:
            dispatcher.registry.list_selectors.append((in_sets or select) if dispatcher.address.name else select)
            dispatcher.registry.forget_lists()

        self.at_each_address(set_up)
        self.stack.callback(self.registry.forget_lists)
        self.stack.callback(self.registry.list_selectors.remove, select)

    def _hook(self, hooks: list[T], hook: T) -> None:
        hooks.append(hook)
        self.stack.callback(hooks.remove, hook)

    # HTTP

    def known_scopes(self, path: str = "") -> set[str]:
        """Return the scopes that the server currently uses, at all addresses or at the address with a path."""
        found = [each for each in self.dispatcher.served if path in ("", *each.address.endpoints)]
        return {scope for each in found for scope in each.registry.scopes | each.address.scopes}

    def route_for(self, dispatcher: Dispatcher, handlers: Mapping[str, Handler], **rules: Any) -> Route:
        """Return a route for callers who may use an address.

        Args:
            dispatcher: The dispatcher of the address.
            handlers: HTTP method -> handler.
            rules: Other fields of the route.
        """
        address = dispatcher.address
        if address.scopes or address.groups or (self.sets_change and address.name):
            handlers = {method: self._restrict(dispatcher, handler) for method, handler in handlers.items()}
        return Route(handlers, set_name=address.name, **rules)

    def _restrict(self, dispatcher: Dispatcher, handler: Handler) -> Handler:
        async def check(request: HttpRequest) -> Response | Sink | None:
            return self.refuse(dispatcher.address, request) or await handler(request)

        return check

    def refuse(self, address: Address, request: HttpRequest) -> Response | None:
        """Return the refusal of a caller who may not use an address, or None."""
        principal, guard = request.principal, self.guard
        if guard is None or principal is None or not principal.has(address.scopes):
            return None if guard is None else guard.challenges.insufficient(request, address.scopes)
        if not address.groups or principal.in_group(address.groups):
            return None
        needed = " or ".join(map(repr, address.groups))
        return plain_problem(403, f"This address is for members of the group {needed}, which you aren't.")

    def on_http(self, register: Callable[[], None]) -> None:
        """Prepare for HTTP.

        Args:
            register: Called once before HTTP is served. It can import modules that only HTTP needs.
        """
        self.http.append(register)

    # Time

    def every_second(self, work: Callable[[float], None]) -> Callable[[], None]:
        """Do periodic work.

        Args:
            work: Called once a second, with a monotonic time.

        Returns:
            A function that ends it before the server closes.
        """
        self.sweep.ticks.append(work)
        return partial(self.sweep.ticks.remove, work)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background.

        Args:
            work: The coroutine. When the server closes, it's canceled, and then has `drain_timeout` seconds to finish.
        """
        self.background.spawn(work)

    def on_change(self, callback: Callable[[str], None]) -> None:
        """Watch the server's lists.

        Args:
            callback: Called from any thread when a list changes, with its kind: tools, resources, or prompts.
        """
        self.changes.append(callback)

    def on_drain(self, drain: Callable[[float], Awaitable[None]]) -> None:
        """End open work when the server stops.

        Args:
            drain: Awaited with the seconds that are left for it.
        """
        self.drains.append(drain)

    def on_close(self, close: Callable[[], object]) -> None:
        """Clean up when the server closes.

        Args:
            close: Called before parts that were opened earlier close.
        """
        self.stack.callback(close)

    # Probes

    def report(self, name: str, read: Callable[[], Any], *, limit: int | None = None) -> None:
        """Show a figure in `/health`: ``host.report("orders", lambda: len(orders), limit=1000)``

        Args:
            name: Name of the figure.
            read: Returns the figure, or None to leave it out.
            limit: Its limit, if there's one.
        """
        self.reports[name] = read
        if limit is not None:
            self.limits[name] = limit

    def check_ready(self, check: Callable[[], str], *, serves: bool = True) -> None:
        """Report the server as degraded while a check returns a reason.

        `/readyz` and `/health` show the reason to callers with access to the dashboard.

        Args:
            check: Returns the reason, or an empty string.
            serves: Whether the server can still do its work. Otherwise `/health` returns 503.
        """
        self.readiness_checks.append((check, serves))

    def degraded_reasons(self, *, any_kind: bool = True) -> list[str]:
        """Return the reasons why the server is degraded.

        Args:
            any_kind: Whether to run all readiness checks, or only those that mean that the server can't do its work.
        """
        return [reason for check, serves in self.readiness_checks if (any_kind or not serves) and (reason := check())]

    # Shared services

    @property
    def pool(self) -> "StoreLimiter":
        """The limiter with rates in the store, created on first use."""
        if self.open_pool is None:
            from millstream._limits import StoreLimiter  # noqa: PLC0415  only where something is limited

            self.open_pool = StoreLimiter(self.store)
        return self.open_pool

    async def close(self) -> None:
        """Return all pending slots to the store. The runtime calls this after closing every part."""
        if self.open_pool is not None:
            await self.open_pool.close()


def order_parts(parts: Collection[Part], *, selectable: Collection[str] = ()) -> list[Part]:
    """Sort the parts so that each comes after the parts it needs and keep their order otherwise.

    Args:
        parts: Parts to open.
        selectable: Names that ``serve=`` accepts, for the error.

    Raises:
        ValueError: Two parts have the same name, a needed part is missing, or parts need each other.
    """
    named: dict[str, Part] = {}
    for part in parts:
        if part.name in named:
            raise ValueError(f"Two parts are named {part.name!r}. Rename one.")
        named[part.name] = part
    ordered: dict[str, Part] = {}

    def visit(part: Part, path: tuple[str, ...]) -> None:
        if part.name in path:
            circle = " needs ".join(repr(each) for each in (*path[path.index(part.name) :], part.name))
            raise ValueError(f"Parts depend on each other in a cycle: {circle}.")
        if part.name in ordered:
            return
        for name in part.needs:
            if name not in named:
                remedy = "add it to serve=" if name in selectable else "add it to extensions="
                raise ValueError(f"The part {part.name!r} needs {name!r}, which isn't served: {remedy}")
            visit(named[name], (*path, part.name))
        ordered[part.name] = part

    for part in parts:
        visit(part, ())
    return list(ordered.values())


def _chain_gates(gates: tuple[Gate, ...]) -> Gate:
    async def wait(first: Awaitable[None], rest: tuple[Gate, ...], call: Call) -> None:
        await first
        for gate in rest:
            if (decision := gate(call)) is not None:
                await decision

    def run(call: Call) -> Awaitable[None] | None:
        for number, gate in enumerate(gates, 1):
            if (decision := gate(call)) is not None:
                return wait(decision, gates[number:], call)
        return None

    return run


def _chain_observers(observers: list[W]) -> W:
    def observe(*seen: Any, **more: Any) -> None:
        for each in observers:
            each(*seen, **more)

    return cast("W", observe) if len(observers) > 1 else observers[0]
