"""`ServerHost`: the running server, as an extension sees it."""

from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from millstream._config import Settings
from millstream._parts import Host
from millstream._protocol.admission import require_capabilities
from millstream._protocol.errors import CustomResult, LocalError
from millstream._protocol.handlers import Handler, result_object, typed
from millstream._protocol.jsonrpc import encode, notification_message
from millstream._protocol.messages import InputResponseRequestParams
from millstream._protocol.metadata import SUBSCRIPTION_KEY
from millstream._protocol.principal import Principal
from millstream._protocol.revisions import ALL
from millstream._server.calls.call import Call
from millstream._server.calls.changes import Broadcast
from millstream._server.features.registry import RegisteredExtension as Registered
from millstream._server.handlers.params import take_rounds
from millstream._server.peer_messages import ExtensionBroadcast
from millstream._stores.base import Log, Map
from millstream.extensions._context import CallContext

if TYPE_CHECKING:
    from millstream.hub import Hub

T = TypeVar("T")
EVERY_REVISION: Final = frozenset(revision.date for revision in ALL)
_decode_rounds = msgspec.json.Decoder(InputResponseRequestParams).decode


class Subscription:
    """One open `subscriptions/listen` whose filter has a member of an extension."""

    __slots__ = ("_call", "_push", "closes")

    def __init__(self, call: Call, push: Callable[[bytes], bool]) -> None:
        self._call = call
        self._push = push
        self.closes: list[Callable[[], None]] = []
        """Called when the subscription ends."""

    def push(self, method: str, params: Mapping[str, Any] | None = None) -> bool:
        """Send a notification with the id of the subscription. Return False if the subscription is over."""
        given: Mapping[str, Any] = params or {}
        meta = {**given.get("_meta", {}), SUBSCRIPTION_KEY: self._call.id}
        return self._push(notification_message(method, {**given, "_meta": meta}))

    def end(self) -> None:
        """Call `closes`. The server does this when the subscription ends."""
        closes, self.closes = self.closes, []
        for close in closes:
            close()


OpenFilter = Callable[[Any, Subscription, CallContext], Awaitable[Any]]
"""``open(wanted, subscription, ctx)`` returns what the server agrees to, as JSON; None for nothing."""


class ServerHost:
    """The running server, as an extension can change it. See `Extension.open`."""

    def __init__(self, host: Host, name: str, revisions: Collection[str], *, experimental: bool) -> None:
        self._host = host
        self._name = name
        self._experimental = experimental
        self._revisions = frozenset(revisions or EVERY_REVISION)
        self._required: dict[str, Any] = {"extensions": {name: {}}}
        host.services.peers.on(ExtensionBroadcast, self._broadcast_here, own=True)

    # What the server has

    @property
    def settings(self) -> Settings:
        """The settings of the server."""
        return self._host.settings

    @property
    def map(self) -> Map:
        """Values by key, each with a time to live, that all workers share. Begin keys with a kind of your own."""
        return self._host.store.kv

    @property
    def log(self) -> Log:
        """Streams of entries that all workers share. Begin names with a kind of your own."""
        return self._host.store.log

    @property
    def now(self) -> Callable[[], float]:
        """The clock of the store, in seconds since 1970: all workers compare with it."""
        return self._host.services.clock

    @property
    def shared(self) -> bool:
        """Whether other workers may share the store."""
        return self._host.store.shared

    @property
    def worker(self) -> str:
        """The name of this worker in the store."""
        return self._host.store.workers.me

    @property
    def hub(self) -> "Hub":
        """The hub of the server, for an extension that has ``hub`` in `Extension.needs`.

        Raises:
            LocalError: the server serves no hub.
        """
        if self._host.hub is None:
            raise LocalError(f"The extension {self._name!r} needs the hub: add hub to its needs")
        return self._host.hub

    def seal(self, value: bytes, bound: str) -> bytes:
        """Encrypt a value for the store with the keys of the server. Only `unseal` with the same `bound` reads it."""
        services = self._host.services
        return services.ring.seal(self._name.encode(), value, services.nonce(), bound.encode()).encode()

    def unseal(self, sealed: bytes, bound: str) -> bytes | None:
        """Return the value that `seal` encrypted; None if the server has other keys now, or it was changed."""
        return self._host.services.ring.open(self._name.encode(), sealed.decode("latin-1"), bound.encode())

    def has_credential(self, principal: Principal) -> bool:
        """Return whether a principal may still have a valid credential.

        False once its key was revoked or has expired. Tokens of an issuer only end at `Principal.until`: not every
        worker knows of their revocation.
        """
        guard = self._host.guard
        return guard is None or bool(principal.issuer) or guard.holds(principal.id)

    async def alive(self, worker: str) -> bool:
        """Return whether a worker of that name runs."""
        return await self._host.store.workers.alive(worker)

    @property
    def private(self) -> bool:
        """Whether callers sign in: what one of them gets mustn't be cached for others."""
        return self._host.registry.private

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """What the server announces in the newest revision."""
        return self._host.registry.capabilities(ALL[-1])

    # The protocol

    def method(
        self,
        name: str,
        handler: Handler,
        *,
        revisions: Collection[str] = (),
        header: str = "",
        declared: bool = False,
    ) -> None:
        """Answer a request. The arguments are those of the decorator `method`.

        Raises:
            ValueError: MCP or another extension has the method.
            TypeError: the handler takes something else than params and a context.
        """
        run, required = typed(handler, CallContext), self._required

        async def answer(call: Call) -> bytes:
            if declared:
                self._check_declared(call, required)
            if not call.revision.handshake and call.params:
                take_rounds(call, _decode_rounds(call.params))
            result = result_object(await run(call.params, CallContext(call)))
            if "resultType" in result:
                raise CustomResult(result)
            if (meta := result.pop("_meta", None)) is not None:
                call.meta = {**(call.meta or {}), **meta}
            return encode(result)[1:-1]

        named = {name: header} if header else {}
        self._host.extend(Registered("", {}, {name: answer}, self._chosen(revisions), named=named))

    def notification(self, name: str, handler: Handler, *, revisions: Collection[str] = ()) -> None:
        """Handle a notification of clients. The arguments are those of the decorator `notification`.

        Raises:
            ValueError: MCP or another extension has it.
            TypeError: the handler takes something else than params and a context.
        """
        run, chosen = typed(handler, CallContext), self._chosen(revisions)

        async def hear(call: Call) -> None:
            if call.revision.date in chosen:
                await run(call.params, CallContext(call))

        self._host.extend(Registered("", {}, {}, chosen, notifications={name: hear}))

    def capability(
        self, value: Mapping[str, Any], *, name: str = "", member: str = "extensions", revisions: Collection[str] = ()
    ) -> None:
        """Announce a capability beside `Extension.settings`, which is announced anyway.

        Args:
            value: what clients read there.
            name: of the capability; by default that of the extension.
            member: of the server's capabilities: ``extensions``, ``experimental``, or empty for the top level.
            revisions: dates of the revisions that announce it; by default those of the extension.
        """
        key = name or self._name
        chosen = self._chosen(revisions)
        self._host.extend(
            Registered(member, {key: value}, {}, chosen) if member else Registered(key, {**value}, {}, chosen)
        )

    def listen(self, member: str, open: OpenFilter, *, declared: bool = True) -> None:
        """Serve a member of the filter of `subscriptions/listen`, such as ``taskIds``.

        Args:
            member: of the filter.
            open: ``await open(wanted, subscription, ctx)`` returns what the server agrees to; None for nothing.
            declared: refuse clients that don't declare the extension, with error -32021.

        Raises:
            ValueError: another extension has the member.
        """

        async def serve(wanted: Any, call: Call, push: Callable[[bytes], bool]) -> tuple[Any, Callable[[], None]]:
            if declared:
                self._check_declared(call, self._required)
            subscription = Subscription(call, push)
            agreed = await open(wanted, subscription, CallContext(call))
            return agreed, subscription.end

        self._host.extend(Registered("", {}, {}, self._revisions, filters={member: serve}))

    def broadcast(self, method: str, params: Any = None, *, everyone: bool = False) -> None:
        """Send a notification to the sessions of handshake revisions, on every worker, without waiting.

        It travels on the stand-alone stream of Streamable HTTP, on HTTP+SSE, stdio, and WebSockets. Clients of
        per-request revisions have no session: see `listen` and `CallContext.stream`.

        Args:
            method: of the notification.
            params: an object.
            everyone: also to clients that didn't declare the extension.
        """
        peers, name = self._host.services.peers, self._name
        message = ExtensionBroadcast(name, "" if everyone else name, notification_message(method, params))
        if peers.shared:
            peers.tell_soon(message)
        else:
            self._broadcast_here(message, "")

    @property
    def listeners(self) -> int:
        """How many sessions and streams of changes are open on this worker. Without any, a broadcast is lost here."""
        return len(self._host.services.changes)

    def _broadcast_here(self, message: ExtensionBroadcast, worker: str) -> None:
        if message.source == self._name:
            self._host.services.changes.emit(Broadcast("broadcast", "", message.to, message.message))

    def _chosen(self, revisions: Collection[str]) -> frozenset[str]:
        return frozenset(revisions) if revisions else self._revisions

    def _check_declared(self, call: Call, required: Mapping[str, Any]) -> None:
        if self._experimental and self._name in call.client.experimental:
            return
        require_capabilities(call.client.capabilities, required)

    # Time

    def every_second(self, work: Callable[[float], None]) -> None:
        """Call ``work(now)`` once a second, with a monotonic time. It must not block."""
        self._host.every_second(work)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside the server. It's cancelled when the server closes."""
        self._host.run(work)

    async def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter a context that the server leaves when it closes, such as an `asyncio.TaskGroup`."""
        return await self._host.stack.enter_async_context(context)

    def on_drain(self, drain: Callable[[float], Awaitable[None]]) -> None:
        """Await ``drain(seconds)`` when the server stops: end what is open within that time."""
        self._host.on_drain(drain)

    def on_close(self, close: Callable[[], object]) -> None:
        """Call `close` when the server closes."""
        self._host.on_close(close)

    def on_change(self, hear: Callable[[str], None]) -> None:
        """Call ``hear(kind)`` when the list of tools, resources, or prompts changes. Any thread may do so."""
        self._host.on_change(hear)
