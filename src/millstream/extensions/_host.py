"""`Host`: the interface of the running server for extensions."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Raw, Struct

from millstream._config import Settings
from millstream._http.message import HttpRequest, Response, respond_with_tag
from millstream._limits import concurrency_limits, hash_key
from millstream._parts import PartHost, Route
from millstream._protocol.admission import HeaderParam, require_capabilities
from millstream._protocol.errors import CustomResult, LocalError
from millstream._protocol.handlers import (
    Handler,
    NotificationFilter,
    result_object,
    with_decoded_params,
)
from millstream._protocol.jsonrpc import decoder, encode, notification_message
from millstream._protocol.metadata import SUBSCRIPTION_KEY
from millstream._protocol.notifications import InputResponseRequestParams
from millstream._protocol.principal import Principal
from millstream._protocol.revisions import BY_DATE, NEWEST
from millstream._protocol.seal import Rounds, RoundState
from millstream._server.calls.call import RUNNING, Call
from millstream._server.calls.services import Broadcast
from millstream._server.features.registry import RegisteredExtension as Registered
from millstream._server.features.resources import Prompt, Resource, Template
from millstream._server.features.tools import Tool
from millstream._server.handlers import take_rounds
from millstream._server.peers import ExtensionBroadcast
from millstream._stores.base import Bus, Log, Map
from millstream._stores.rates import ConcurrencySlot
from millstream._troubles import Troubles
from millstream.extensions._calls import (
    CallContext,
    CallRun,
    LimitReached,
    PendingCall,
    ReportChannel,
    SavedCall,
    SlotLimit,
    Slots,
)
from millstream.protocol import NotCopyable

if TYPE_CHECKING:
    from millstream.hub import Hub

T = TypeVar("T")
_logger = logging.getLogger("millstream")
_decode_rounds = decoder(InputResponseRequestParams)


class ListenSubscription(Struct, NotCopyable, eq=False):
    """An open `subscriptions/listen` with an extension's member in its filter."""

    _call: Call
    _push: Callable[[bytes], bool]
    closes: list[Callable[[], None]] = []
    """Called when the subscription ends."""

    def push(self, method: str, params: Mapping[str, Any] | None = None) -> bool:
        """Send a notification with the id of the subscription. Return False if the subscription has ended.

        Args:
            method: Method of the notification.
            params: Its parameters, an object.
        """
        members: Mapping[str, Any] = params or {}
        meta = {**members.get("_meta", {}), SUBSCRIPTION_KEY: self._call.id}
        return self._push(notification_message(method, {**members, "_meta": meta}))

    def end(self) -> None:
        """Call `closes`. Called by the server when the subscription ends."""
        closes, self.closes = self.closes, []
        for close in closes:
            close()


Item = Tool | Prompt | Resource | Template
OpenFilter = Callable[[Any, ListenSubscription, CallContext], Awaitable[Any]]
"""``open(wanted, subscription, ctx)`` returns the accepted filter as JSON, or None to reject it."""


def _kind_of(item: object) -> str:
    kinds = {Tool: "tools", Prompt: "prompts", Resource: "resources", Template: "templates"}
    return next(kind for cls, kind in kinds.items() if isinstance(item, cls))


class Host(Struct, NotCopyable, eq=False):
    """The running server, where an extension adds methods, items, capabilities, and tasks. See `Extension.open`.

    All of them are removed when the server closes.
    """

    _host: PartHost
    _name: str
    _revisions: frozenset[str]
    _in_sets: bool = False

    def __post_init__(self) -> None:
        self._host.services.peers.on(ExtensionBroadcast, self._deliver_broadcast, own=True)

    # State of the server

    @property
    def settings(self) -> Settings:
        """The settings of the server."""
        return self._host.settings

    @property
    def map(self) -> Map:
        """Values by key, with times to live, shared by the workers of the store. Start keys with your own prefix.

        Values whose prefix is ``bus:``, ``inbox:``, ``member:``, or ``roster:`` are the server's, and don't survive a
        restart.
        """
        return self._host.store.kv

    @property
    def log(self) -> Log:
        """Append-only streams of entries, shared by the workers of the store. Start names with your own prefix."""
        return self._host.store.log

    @property
    def bus(self) -> Bus:
        """Messages between workers. Start topics with your own prefix. See also `on_workers_change`."""
        return self._host.store.bus

    @property
    def troubles(self) -> Troubles:
        """What fails on this worker, for `LogOnce`."""
        return self._host.store.troubles

    @property
    def now(self) -> Callable[[], float]:
        """The store's clock, in seconds since 1970. Use it to compare times between workers."""
        return self._host.services.clock

    @property
    def shared(self) -> bool:
        """Whether other workers can share the store."""
        return self._host.store.shared

    @property
    def worker(self) -> str:
        """The name of this worker in the store."""
        return self._host.store.workers.me

    @property
    def hub(self) -> "Hub":
        """The server's hub, for extensions with ``hub`` in `Extension.needs`.

        Raises:
            LocalError: The server has no hub.
        """
        if self._host.hub is None:
            raise LocalError(f"The extension {self._name!r} needs the hub: add hub to its needs.")
        return self._host.hub

    def seal(self, value: bytes, bound: str) -> bytes:
        """Encrypt a value with the server's keys, for example to store it. Only `unseal` with the same `bound` can
        decrypt it.

        Args:
            value: The value. Its length can be seen in the sealed text.
            bound: The value's context, such as a caller's id. It isn't stored.
        """
        services = self._host.services
        return services.ring.seal(self._name.encode(), value, services.nonce(), bound.encode()).encode()

    def unseal(self, sealed: bytes, bound: str) -> bytes | None:
        """Return the value that `seal` encrypted, or None if it was modified, is for another `bound`, or the server's
        keys have changed.

        Args:
            sealed: A value that `seal` returned.
            bound: The `bound` that was passed to `seal`.
        """
        return self._host.services.ring.open(self._name.encode(), sealed.decode("latin-1"), bound.encode())

    def has_credential(self, principal: Principal) -> bool:
        """Return whether a principal's key may still be valid.

        Return False when its key has been revoked or has expired, and for a moment after another key with its name has
        been revoked. For tokens, see `is_revoked` and `Principal.until`.

        Args:
            principal: The caller with the key.
        """
        guard = self._host.guard
        return guard is None or bool(principal.issuer) or guard.holds(principal.id)

    def revocation_id(self, principal: Principal) -> str:
        """Return an id for `is_revoked`, for a principal's token, or empty if this server can't look it up.

        Args:
            principal: The caller with the token.
        """
        guard = self._host.guard
        return "" if guard is None else guard.revocation_id(principal)

    async def is_revoked(self, revocation_id: str) -> bool:
        """Return whether a token of this server's own issuer was revoked before its expiry.

        Args:
            revocation_id: A value that `revocation_id` returned.

        Raises:
            StoreUnavailable: The store doesn't respond.
        """
        guard = self._host.guard
        return bool(revocation_id) and guard is not None and await guard.is_revoked(revocation_id)

    def on_revocation(self, callback: Callable[[], None]) -> None:
        """Call `callback` when keys or tokens may have been revoked, on any worker.

        Args:
            callback: A function without arguments, called in the event loop. It must not block.
        """
        if self._host.guard is not None:
            self._host.guard.on_revocation.append(callback)

    async def alive(self, worker: str) -> bool:
        """Return whether the worker with this name is running.

        Args:
            worker: Name of a worker.
        """
        return await self._host.store.workers.alive(worker)

    @property
    def stopping(self) -> bool:
        """Whether this worker is shutting down."""
        return self._host.dispatcher.stopping

    @property
    def about(self) -> Mapping[str, Any]:
        """The server's information about itself in the newest revision: name, version, title, and more."""
        return self._host.dispatcher.info

    @property
    def needs_key(self) -> bool:
        """Whether callers need a key from the operator, because no token issuer is configured."""
        guard = self._host.guard
        return guard is not None and not any(each.issuers for each in guard.methods)

    @property
    def private(self) -> bool:
        """Whether callers sign in, so that responses must not be cached for other callers."""
        return self._host.registry.private

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """The capabilities that the server announces in the newest revision."""
        return self._host.registry.capabilities(NEWEST)

    # The protocol

    def method(
        self,
        name: str,
        handler: Handler,
        *,
        revisions: Collection[str] = (),
        header: str = "",
        header_required: bool = True,
        declared: bool = False,
    ) -> None:
        """Answer a request. Takes the same arguments as the decorator `method`.

        Args:
            name: The method, such as ``com.example/stock``.
            handler: A function that takes the parameters, a `Context`, both, or neither.
            revisions: Dates of the revisions with the method, by default those of the extension.
            header: Member of the parameters that HTTP clients repeat in the header `Mcp-Name`.
            header_required: Whether to reject HTTP requests of the per-request era without that header. In that era, a
                header that differs from the parameters is always rejected.
            declared: Whether only clients that declare the extension can call it.

        Raises:
            ValueError: MCP or another extension already defines the method.
            TypeError: The handler has parameters other than params and a context.
        """
        names = {name: HeaderParam(header, header_required)} if header else {}
        dates = frozenset(revisions or self._revisions)
        answer = self._answer(handler, declared=declared)
        self._extend(Registered("", {}, {name: answer}, dates, header_params=names))

    def _answer(self, handler: Handler, *, declared: bool = False) -> Callable[[Call], Awaitable[bytes]]:
        run = with_decoded_params(handler, CallContext)

        async def answer(call: Call) -> bytes:
            if declared:
                self._check_declared(call)
            if not call.revision.handshake and call.params:
                take_rounds(call, _decode_rounds(call.params))
            result = result_object(await run(call.params, CallContext(call)))
            if "resultType" in result:
                raise CustomResult(result)
            if (meta := result.pop("_meta", None)) is not None:
                call.meta = {**(call.meta or {}), **meta}
            return encode(result)[1:-1]

        return answer

    def notification(self, name: str, handler: Handler, *, revisions: Collection[str] = ()) -> None:
        """Handle a client notification. Takes the same arguments as the decorator `notification`.

        Args:
            name: The method of the notification.
            handler: A function that takes the parameters, a `Context`, both, or neither.
            revisions: Dates of the revisions with the notification, by default those of the extension.

        Raises:
            ValueError: MCP or another extension already defines the notification.
            TypeError: The handler has parameters other than params and a context.
        """
        run, dates = with_decoded_params(handler, CallContext), frozenset(revisions or self._revisions)

        async def handle(call: Call) -> None:
            if call.revision.date in dates:
                await run(call.params, CallContext(call))

        self._extend(Registered("", {}, {}, dates, notifications={name: handle}))

    def _extend(self, extension: Registered) -> None:
        self._host.extend(extension, in_sets=self._in_sets)

    def filter_notifications(self, each: NotificationFilter) -> None:
        """Add ``each(message)`` as a filter of notifications. See `Extension.filter_notification`.

        Args:
            each: Returns the notification, a changed one, or None to drop it. It must not block.
        """
        filters = self._host.services.notification_filters
        filters.append(each)
        self.on_close(lambda: filters.remove(each))

    def capability(
        self, value: Mapping[str, Any], *, name: str = "", member: str = "extensions", revisions: Collection[str] = ()
    ) -> None:
        """Announce a capability in addition to `Extension.settings`.

        Args:
            value: Value of the capability.
            name: Name of the capability, by default the extension's.
            member: Member of the server's capabilities: ``extensions``, ``experimental``, or empty for the top level.
            revisions: Dates of the revisions that announce it, by default the extension's.
        """
        key, members = name or self._name, {**value}
        dates = frozenset(revisions or self._revisions)
        self._extend(Registered(member or key, {key: members} if member else members, {}, dates))

    def serves(self, method: str, revision: str = NEWEST.date) -> bool:
        """Return whether clients of a revision can call a method.

        Args:
            method: Name of the method.
            revision: Date of the revision, by default the newest.
        """
        return self._host.registry.serves(method, BY_DATE[revision])

    def serve_document(self, path: str, make: Callable[[], bytes], media_type: str) -> None:
        """Serve a public document with an entity tag, including to pages of other origins.

        If the path is taken, the server doesn't start.

        Args:
            path: Path of the document, such as ``/.well-known/catalog.json``.
            make: Function that returns the document. Called once, before HTTP is served.
            media_type: Media type of the document.
        """

        def register() -> None:
            head = f"content-type: {media_type}\r\ncache-control: public, max-age=3600\r\n"
            document = respond_with_tag(make(), f"{head}access-control-expose-headers: ETag\r\n".encode())

            async def answer(request: HttpRequest) -> Response:
                return document(request)

            self._host.routes.add(path, Route({"GET": answer}, public=True))

        self._host.shared_paths.add(path)
        self._host.on_http(register)

    def report(self, name: str, read: Callable[[], Any], *, limit: int | None = None) -> None:
        """Add a value and its limit to `/health`, unless `read` returns None. Only readers of the dashboard see it.

        Args:
            name: Name of the value in `/health`.
            read: Returns the current value.
            limit: The maximum value.
        """
        self._host.report(name, read, limit=limit)

    # Items

    def add_item(self, item: Item) -> None:
        """Add a tool, prompt, resource, or template from `millstream.items`, until the server closes.

        Args:
            item: The item.

        Raises:
            ValueError: Another item has the same name or URI.
        """
        kind, registry = _kind_of(item), self._host.registry
        registry.add(kind, item.name, item)

        def remove() -> None:
            if registry.items[kind].get(item.name) is item:
                registry.remove(kind, item.name)

        self.on_close(remove)

    def remove_item(self, item: Item) -> None:
        """Remove an item before the server closes.

        Args:
            item: An item that `add_item` added.

        Raises:
            KeyError: The server has no such item.
        """
        self._host.registry.remove(_kind_of(item), item.name)

    def find_resources(self, find: Callable[[str], Resource | None]) -> None:
        """Register a function that finds unlisted resources. The first match among all extensions is used.

        Args:
            find: ``find(uri)`` returns the resource for a URI that no item has, or None. It must not block.
        """
        self._host.registry.announce("resources")
        self._host.find_resources(find)

    def find_methods(self, find: Callable[[str, str], Handler | None]) -> None:
        """Register a function that finds handlers for other methods. The first match among all extensions is used.

        Args:
            find: ``find(method, revision)`` returns a handler as for `method`, or None. The revision is a date.
        """
        self._host.find_methods(
            lambda name, revision: None if (handler := find(name, revision.date)) is None else self._answer(handler)
        )

    def select_listed(self, select: Callable[[str, Mapping[str, Item]], Mapping[str, Item]]) -> None:
        """Choose which items to list, after the hooks of earlier extensions. Clients can still use the other items by
        name.

        Args:
            select: ``select(kind, items)`` returns the items to list. The kind is ``tools``, ``resources``,
                ``templates``, or ``prompts``. It's asked again when items change, not for each request.
        """
        self._host.select_listed(select)

    # Tool calls

    @property
    def has_task_tools(self) -> bool:
        """Whether any tool of the server has ``task=``."""
        return any(tool.task is not None for tool in self._host.registry.tools.values())

    def has_tool(self, name: str, set_name: str = "") -> bool:
        """Return whether the server has a tool.

        Args:
            name: Name of the tool.
            set_name: Name of a set, to look only there (see `Context.set_name`).
        """
        return self._find_tool(name, set_name) is not None

    def _find_tool(self, name: str, set_name: str) -> Tool | None:
        found = self._host.dispatcher.find_address(set_name)
        return None if found is None else found.registry.tools.get(name)

    def on_task_call(self, begin: Callable[[PendingCall], Awaitable[bytes] | None]) -> None:
        """Call ``begin(call)`` before each call of a tool with ``task=``.

        It returns None to let the call run as usual, or an awaitable that either returns the result of
        `PendingCall.run` or raises `CustomResult`. The first hook that returns an awaitable is used.

        Args:
            begin: The hook, a function of a `PendingCall`.
        """

        def begin_pending(
            call: Call, tool: Tool, run: Callable[[Call, Tool], Awaitable[bytes]]
        ) -> Awaitable[bytes] | None:
            return begin(PendingCall(call, tool, run)) if tool.task is not None and not call.task else None

        self._host.services.task_hooks.append(begin_pending)

    def run_call(
        self,
        saved: SavedCall,
        *,
        id: str,
        state: RoundState | None = None,
        responses: Mapping[str, bytes] | None = None,
        report: Callable[[bytes], object],
    ) -> CallRun:
        """Return a run of a saved call. Await `CallRun.outcome` to start it.

        The run is a `tools/call` without a connection. Scopes, middleware, timeouts, metrics, and the audit log apply.
        Rate limits don't apply again, because they applied to the original request. See also `acquire_slots`.

        Args:
            saved: The call.
            id: Id of the run, for logs and as its progress token.
            state: `RunOutcome.state` of the previous run.
            responses: Answers to the previous run's questions, as JSON by key.
            report: Called as ``report(message)`` with each of the function's progress and log notifications, as
                JSON-RPC.
        """
        answers = {key: Raw(answer) for key, answer in (responses or {}).items()}
        call = Call(
            revision=BY_DATE[saved.revision],
            id=id,
            method="tools/call",
            params=saved.params,
            responses=answers or None,
            rounds=None if state is None else Rounds(state, answers),
            token=id,
            log_level="info",
            client=saved.client,
            principal=saved.principal,
            transport=saved.transport,
            task=RUNNING,
            long_lived=True,
        )
        call.reply_channel = ReportChannel(report)
        dispatcher = self._host.dispatcher.find_address(saved.set_name)
        assert dispatcher is not None  # noqa: S101  `has_tool` has found its tool there, or the client has called it
        return CallRun(dispatcher, call, saved.owner)

    def end_waiting_call(self, waiting: str) -> None:
        """End a function on this worker that waits for an answer, because nobody will answer.

        Args:
            waiting: Id of the ticket in `RunOutcome.state`.
        """
        self._host.services.parked.cancel(waiting)

    async def acquire_slots(self, holder: str, limits: Sequence[SlotLimit], *, call: SavedCall | None = None) -> Slots:
        """Take one slot from every limit, or none. If the worker dies, its slots become free.

        Args:
            holder: Identifier that's unique among this worker's slots.
            limits: Limits of this extension.
            call: Also take the slots that this call would occupy as a request.

        Raises:
            LimitReached: A limit has no free slot.
        """
        all_limits = [(each.name, each.key, each.most) for each in limits]
        if call is not None and (tool := self._find_tool(call.tool, call.set_name)) is not None:
            most = self.settings.limit_concurrency
            all_limits += concurrency_limits(call.owner, most, tool.main_name or tool.name, tool.concurrency)
        slots = [ConcurrencySlot(hash_key(name, key), most, holder) for name, key, most in all_limits]
        decision = await self._host.pool.take(slots) if slots else None
        if decision is not None:
            for number, taken in enumerate(decision):
                if taken.wait > 0:
                    name, key, _ = all_limits[number]
                    raise LimitReached(name if number < len(limits) else "", key)
        return slots

    def release_slots(self, slots: Slots) -> None:
        """Release slots in the background.

        Args:
            slots: The slots that `acquire_slots` returned.
        """
        self._host.pool.leave(slots)

    # Streams

    def listen(self, member: str, open: OpenFilter, *, declared: bool = True) -> None:
        """Serve a member of the `subscriptions/listen` filter, such as ``taskIds``.

        See MCP 2026-07-28, basic/patterns/subscriptions.

        Args:
            member: Name of the member.
            open: ``await open(wanted, subscription, ctx)`` returns the accepted filter, or None to reject it.
            declared: Reject clients that don't declare the extension, with error -32021.

        Raises:
            ValueError: Another extension already handles the member.
        """

        async def serve(wanted: Any, call: Call, push: Callable[[bytes], bool]) -> tuple[Any, Callable[[], None]]:
            if declared:
                self._check_declared(call)
            subscription = ListenSubscription(call, push)
            return await open(wanted, subscription, CallContext(call)), subscription.end

        self._extend(Registered("", {}, {}, self._revisions, filters={member: serve}))

    def broadcast(self, method: str, params: Any = None) -> None:
        """Send a notification to all handshake-era sessions whose client declared the extension, without waiting.

        The workers send it on the stand-alone stream of Streamable HTTP, and on HTTP+SSE, stdio, and WebSockets.
        Clients of per-request revisions have no session: see `listen` and `CallContext.stream`.

        Args:
            method: Method of the notification.
            params: Params of the notification.
        """
        peers = self._host.services.peers
        message = ExtensionBroadcast(self._name, notification_message(method, params))
        if peers.shared:
            peers.broadcast_soon(message)
        else:
            self._deliver_broadcast(message, "")

    def _deliver_broadcast(self, message: ExtensionBroadcast, worker: str) -> None:
        if message.extension == self._name:
            self._host.services.changes.emit(Broadcast("broadcast", extension=self._name, message=message.message))

    def _check_declared(self, call: Call) -> None:
        require_capabilities(call.client.capabilities, {"extensions": {self._name: {}}})

    # Time

    def every_second(self, work: Callable[[float], None]) -> None:
        """Call ``work(now)`` once a second, with a monotonic time. It must not block.

        Args:
            work: A function that takes the time in seconds.
        """
        self._host.every_second(work)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background until it returns or the server closes.

        Args:
            work: The coroutine. It's canceled when the server closes.
        """
        self._host.run(work)

    async def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter a context, such as an `asyncio.TaskGroup`, that the server exits when it closes.

        Args:
            context: An async context manager.
        """
        return await self._host.stack.enter_async_context(context)

    def on_drain(self, drain: Callable[[float], Awaitable[None]]) -> None:
        """Await ``drain(seconds)`` once, when the server stops and its calls have ended. It should finish open work in
        that time, and is canceled after it. An error is logged, and doesn't keep the server from closing.

        Args:
            drain: An async function that takes the remaining seconds.
        """
        waiting = [drain]

        async def drain_once(seconds: float) -> None:
            while waiting:
                try:
                    async with asyncio.timeout(seconds):
                        await waiting.pop()(seconds)
                except Exception:
                    _logger.exception("A function that finishes work before the server closes failed.")

        self._host.on_drain(drain_once)

    def on_close(self, close: Callable[[], object]) -> None:
        """Call `close` when the server closes.

        Args:
            close: A function without arguments.
        """
        self._host.on_close(close)

    def on_workers_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` when workers join or leave, or when this worker's name changes.

        Args:
            changed: A function without arguments. It must not block.
        """
        self.on_close(self._host.store.workers.watch(changed))

    def on_change(self, callback: Callable[[str], None]) -> None:
        """Call ``callback(kind)`` when tools, resources, or prompts change, possibly from another thread.

        Args:
            callback: A function of ``tools``, ``resources``, or ``prompts``. It must not block.
        """
        self._host.on_change(callback)
