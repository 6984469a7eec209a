"""The built-in parts. `definition.TABLE` lists them.

The small ones are here: the lifespans, the program's own paths, MCP over Streamable HTTP and HTTP+SSE, limits, the
observer of calls, and REST. The other parts have their own modules, so a server without them doesn't import them.
"""

import asyncio
import logging
import sys
from collections import ChainMap
from collections.abc import Collection
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from millstream._app.definition import LIFESPANS, Definition
from millstream._override import override
from millstream._parts import PartHost
from millstream._server.dispatch import Dispatcher, Instruction
from millstream._server.features.sources import Item
from millstream._server.observability.observer import load_spans

if TYPE_CHECKING:
    from millstream._app.throttle import Throttle

logger = logging.getLogger("millstream")


class OwnPart:
    """A part that's created for each start of a server. The host's exit stack closes what the part opens."""

    needs: Collection[str] = ()

    def __init__(self, definition: Definition) -> None:
        self.definition: Definition = definition

    async def close(self) -> None:
        """Do nothing."""


class HttpPart(OwnPart):
    """A part that only serves paths. It adds them when HTTP starts, because the lifespan may register some."""

    async def open(self, host: PartHost) -> None:
        """Call `serve` when HTTP starts."""
        host.on_http(lambda: self.serve(host))

    def serve(self, host: PartHost) -> None:
        """Add the part's paths to the host's routes."""


_LAST_SECONDS = 1.0
"""Seconds for a canceled lifespan to end."""


class LifespanPart(OwnPart):
    """Runs the lifespans of the server and of mounted servers, in this order, around the parts that open later.

    The hub is already open, so they can publish. They are entered and left in their own task, because task groups and
    cancel scopes belong to the task that enters them. If a lifespan ends while the server runs, because a task in its
    group failed, `/readyz` and `/health` report it.
    """

    name: str = "lifespan"

    async def open(self, host: PartHost) -> None:
        """Enter the lifespans, which may register items and set the instructions.

        Raises:
            ValueError: A registered item can't work.
        """
        if self.definition.has_lifespan():
            self._values: dict[Definition, Any] = {}
            host.services.lifespan_of = self._find_value
            self._failed = ""
            host.check_ready(lambda: self._failed, serves=False)
            self._leave = asyncio.Event()
            self._seconds = host.settings.drain_timeout
            self._entered = entered = asyncio.get_running_loop().create_future()
            host.lifespan = self._task = asyncio.create_task(self._run(entered))
            host.stack.push_async_callback(self._end)
            await asyncio.wait((self._task, entered), return_when=asyncio.FIRST_COMPLETED)
            if not entered.done():
                await self._task  # raises the lifespan's error
            self._task.add_done_callback(self._report)
        host.dispatcher.instruct((Instruction(self.definition.instructions),))
        self.definition.registry.check_completers()

    def _find_value(self, home: Definition) -> Any:
        return next((self._values[each] for each in home.around() if each in self._values), None)

    async def _run(self, entered: asyncio.Future[None]) -> None:
        LIFESPANS.set((*LIFESPANS.get(), self._task))
        async with AsyncExitStack() as stack:
            await self._enter(self.definition, stack)
            entered.set_result(None)
            await self._leave.wait()

    async def _enter(self, definition: Definition, stack: AsyncExitStack) -> None:
        if definition.lifespan is not None and definition not in self._values:
            self._values[definition] = await stack.enter_async_context(definition.lifespan())
        for mounted in definition.mounted:
            await self._enter(mounted, stack)

    def _report(self, task: asyncio.Task[None]) -> None:
        """Report a lifespan that ended before the server."""
        if not self._leave.is_set() and not task.cancelled():
            self._failed = "the lifespan ended with an error"
            logger.error(
                "The lifespan of %r ended while the server was running, so calls may fail. Restart the server.",
                self.definition.name,
                exc_info=task.exception(),
            )

    async def _end(self) -> None:
        """Exit the lifespans. If they haven't been entered, cancel them. Their own cleanup has the drain time."""
        task, ended_before = self._task, self._task.done()
        self._leave.set()
        if ended_before:
            return
        if not self._entered.done():
            task.cancel()
        try:
            await asyncio.wait([task], timeout=self._seconds)
            if not task.done():
                logger.error(
                    "The lifespan of %r is still running after %g s, and is left behind.",
                    self.definition.name,
                    self._seconds,
                )
        finally:
            if not task.done():
                task.cancel()
        await asyncio.wait([task], timeout=_LAST_SECONDS)
        if task.done() and not task.cancelled():
            task.result()  # raises the lifespan's error


class PathsPart(HttpPart):
    """Adds the routes of ``@mcp.route`` and ``mcp.static`` to the paths of earlier parts."""

    name: str = "paths"

    @override
    def serve(self, host: PartHost) -> None:
        """Add the paths of the user's routes."""
        definition = self.definition
        if any(definition.paths()):
            from millstream._app.user_routes import UserRoutes  # noqa: PLC0415  it loads Starlette

            user = UserRoutes(
                definition.paths(), served=definition.mcp_paths, show_errors=lambda: definition.settings.show_errors
            )
            user.join(host.routes)


class LimitsPart(OwnPart):
    """Charges calls and other requests to their callers. Without limits, `Throttle` isn't imported."""

    name: str = "limits"

    async def open(self, host: PartHost) -> None:
        """Add the gate if there are any limits. A tool that is added later may have the first one."""
        throttle: Throttle | None = None

        def begin(kind: str) -> None:
            nonlocal throttle
            if throttle is None and kind == "tools" and self.definition.limited:
                from millstream._app.throttle import Throttle  # noqa: PLC0415  only where something is limited

                throttle = Throttle(host)
                host.gate(throttle.gate())
                if throttle.limits_requests:
                    host.services.request_limits = throttle

        host.at_each_address(lambda _: begin("tools"))
        host.on_change(begin)
        if host.metrics is not None:
            read = host.metrics.read
            read(
                "counter",
                "millstream_rate_limited_total",
                "Calls and requests rejected by a limit.",
                lambda: {(policy,): count for policy, count in throttle.refused.items()} if throttle else {},
                ("policy",),
            )
            text, services = "Rejected keys, tokens, and passwords.", host.services
            read("counter", "millstream_failed_sign_ins_total", text, lambda: {(): services.failed_sign_ins})
            why = "The store is unavailable, so this worker enforces its share of the limits alone."
            read(
                "gauge",
                "millstream_rate_limits_degraded",
                why,
                lambda: {(): int(host.open_pool is not None and host.open_pool.outage.lasts)},
                merge="max",
            )


class ResultsPart(OwnPart):
    """Offers stored results, and `read_resource`, beside the server's own tools whose results can be shortened."""

    name: str = "results"
    needs: Collection[str] = ("lifespan",)

    async def open(self, host: PartHost) -> None:
        """Offer them if there is such a tool. A tool that is added later may be the first one.

        Raises:
            ValueError: The server has a resource template of its own with their URI.
        """

        def offer(kind: str) -> None:
            if kind == "tools" and any(tool.result_tokens for tool in host.registry.tools.values()):
                self._offer(host)

        offer("tools")
        host.on_change(offer)

    def _offer(self, host: PartHost) -> None:
        from millstream._gateway.catalog.resource_tools import make_companion  # noqa: PLC0415  few tools have a limit
        from millstream._gateway.names import Names  # noqa: PLC0415
        from millstream._gateway.rules.results import READ_RESOURCE, StoredResults  # noqa: PLC0415

        registry, template = host.registry, StoredResults(host.store.kv, Names("")).template()
        found = registry.templates.get(template.name)
        if found is not None and found.companion_of is not None:  # this one, or an upstream's
            for each in (found, registry.tools.get(READ_RESOURCE)):
                if each is not None and each.companion_of and "" not in each.companion_of:
                    each.companion_of = ("", *each.companion_of)
            return
        items: list[tuple[str, Item]] = [("templates", template)]
        if not registry.has("tools", READ_RESOURCE):
            items.append(("tools", make_companion(READ_RESOURCE)))
        for kind, item in items:
            item.companion_of = ("",)
            registry.add(kind, item.name, item)
            host.on_close(partial(registry.exchange, kind, (item.name,), {}))


class McpPart(HttpPart):
    """Serves the MCP paths."""

    name: str = "mcp"

    @override
    def serve(self, host: PartHost) -> None:
        """Add the paths of the MCP transports."""
        from millstream._transports.http_sse import HttpSse  # noqa: PLC0415  a server without HTTP does without these
        from millstream._transports.streamable import HttpSessions, StreamableEndpoint  # noqa: PLC0415
        from millstream._transports.streamable.get import SessionStreams  # noqa: PLC0415
        from millstream._transports.streamable.post import Streamable  # noqa: PLC0415

        streams = host.streams
        sessions = HttpSessions(host.services) if host.settings.sessions else None

        def serve(dispatcher: Dispatcher) -> None:
            address = dispatcher.address
            endpoint = StreamableEndpoint(dispatcher, streams, sessions)
            sse = HttpSse(dispatcher, streams)
            standing = SessionStreams(endpoint, first=sse.get)
            mcp = host.route_for(
                dispatcher,
                {"POST": Streamable(endpoint).post, "GET": standing.get, "DELETE": standing.delete},
                stream=True,
                charged="message",
                reserved=True,
            )
            messages = host.route_for(dispatcher, {"POST": sse.post}, charged="message", reserved=True)
            path, posts = address.path, address.messages
            routes = {
                path: mcp,
                path.rstrip("/") + "/": mcp,
                address.sse: host.route_for(dispatcher, {"GET": sse.get}, stream=True, reserved=True),
                posts: messages,
                posts.rstrip("/") or "/": messages,
            }
            if posts == "/messages/":
                routes.setdefault("/message", messages)  # the name used by other servers and documents
            for each, route in routes.items():
                host.routes.add(each, route)

        host.serve_each(serve)


class ObservationPart(OwnPart):
    """Observes calls and messages for metrics, the message log, and traces.

    It opens after the lifespan, which may set up traces.
    """

    name: str = "observation"
    needs: Collection[str] = ("lifespan",)

    async def open(self, host: PartHost) -> None:
        """Start observing, if metrics, the message log, or traces are on."""
        definition = self.definition
        access_log, spans = definition.settings.access_log, load_spans(definition.version)
        if not access_log and spans is None and host.metrics is None:
            return
        from millstream._server.observability.observer import Observer, Tracer  # noqa: PLC0415
        from millstream._telemetry.messages import MessageLog  # noqa: PLC0415

        host.observer = observer = Observer(
            host.registry.tools,
            log=MessageLog(sys.stderr) if access_log else None,
            tracing=Tracer(spans) if spans is not None else None,
            metrics=host.metrics,
            connections=host.streams.by_kind,
        )
        host.observe(observer.__call__)

        def watch_tools(dispatcher: Dispatcher) -> None:
            tools = [each.registry.tools for each in host.dispatcher.everywhere]
            observer.tools = tools[0] if len(tools) == 1 else ChainMap(*tools)
            dispatcher.begin = observer.begin

        host.at_each_address(watch_tools)
        host.observe_messages(observer.note)
        host.report("sessions", observer.sessions)
        host.on_close(observer.close)
        host.run(observer.lag.run())


class RestPart(HttpPart):
    """Serves tools as plain HTTP: a path for each tool, and their OpenAPI document and page."""

    name: str = "rest"

    @override
    def serve(self, host: PartHost) -> None:
        """Add the paths of REST and the API documentation."""
        from millstream._transports.rest import RestRoutes  # noqa: PLC0415  see the part of MCP
        from millstream._web.pages import add_pages, redirect_to_docs  # noqa: PLC0415

        routes = host.routes

        def serve(dispatcher: Dispatcher) -> None:
            address = dispatcher.address
            is_front = dispatcher is host.dispatcher.served[0]
            rest = RestRoutes(dispatcher, events=host.hub is not None and is_front)
            if is_front:
                routes.add("/mcp/tools/list", host.route_for(dispatcher, {"POST": rest.list_tools}, charged="message"))
                routes.add("/mcp/tools/call", host.route_for(dispatcher, {"POST": rest.call_tool}, charged="message"))
            routes.add(address.openapi, host.route_for(dispatcher, {"GET": rest.describe}))
            routes.add_prefix(address.tools, host.route_for(dispatcher, {"POST": rest.run_tool}, charged="message"))

        host.serve_each(serve)
        if "web" not in self.definition.parts:
            add_pages(routes, ("docs",), account=host.guard is not None)
            routes.home = "/docs", redirect_to_docs
