"""A two-way connection for complete messages, shared by stdio, HTTP+SSE, and in-memory transports.

The era is decided per message: a message with the per-request envelope is served on its own, and all others belong to
the connection's handshake session. A 2025-03-26 batch is an array of messages, decoded here. Each transport has its own
framing and its own replies to batches.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from msgspec import UNSET, Struct, field

from millstream._confidential import Confidential
from millstream._http.message import Callback, Headers, peer_network
from millstream._override import override
from millstream._protocol import revisions
from millstream._protocol.admission import (
    admit_per_request,
    check_notification,
    per_request_revision,
    read_initialize,
)
from millstream._protocol.errors import INVALID_REQUEST, ProtocolError
from millstream._protocol.jsonrpc import (
    Envelope,
    check_text,
    notification_message,
    read,
    refusal_message,
    result_message,
    split_batch,
)
from millstream._protocol.principal import Principal
from millstream._protocol.revisions import ASSUMED, Revision
from millstream._server.calls.call import (
    UNKNOWN_CLIENT,
    Call,
    ReplyChannel,
    handshake_call,
    notification_call,
    per_request_call,
)
from millstream._server.calls.services import SESSION_OVER, ServerChange, session_messages
from millstream._server.calls.sessions import Session, SessionRecord
from millstream._server.dispatch import Dispatcher
from millstream._server.features.registry import RelayedServer
from millstream._tasks import has_failed, is_canceled
from millstream._transports.usual import LISTEN, is_unread, open_usual, read_usual

Write = Callable[[bytes], bool]
"""Queues one message without waiting. Returns False if the peer has disconnected or was cut for reading too slowly."""
Drain = Callable[[], Awaitable[None]]


class ClientConnection(Confidential, Struct, eq=False):
    """A client on one connection, and the `ReplyChannel` of all its calls."""

    _dispatcher: Dispatcher
    _write: Write
    _drain: Drain
    principal: Principal | None = None
    peer: str = ""
    headers: Headers | None = None
    transport: str = ""
    open_reply: Callable[[Call], ReplyChannel] | None = None
    """Opens a channel for the messages of one call, if the transport says which call a message belongs to."""
    id: str = field(default_factory=partial(secrets.token_hex, 16))
    session: Session | None = None
    asks: bool = True
    cancel: Callable[[str], object] | None = None
    """Always None: a connection carries many calls, so only a call's task can be stopped."""
    _gone: bool = False
    _tasks: dict[asyncio.Task[None], Call | None] = {}
    """Running tasks, each with its call, or None for a batch."""
    _stop_watching: Callback | None = None
    _ends: set[Callback] = set()
    """Functions that end the connection's subscriptions with their results."""

    # Reply channel

    async def send(self, message: bytes) -> None:
        """Send one message to the client."""
        self._write(message)
        await self._drain()

    def push(self, message: bytes) -> bool:
        """Send one message without waiting."""
        return self._write(message)

    def on_close(self, callback: Callback) -> Callback:
        """Call `callback` when `finish` is called. When the connection closes, its calls stop."""
        self._ends.add(callback)
        return partial(self._ends.discard, callback)

    async def interrupt(self, retry_ms: int | None) -> bool:
        """Return False, because such a connection can't be closed and resumed."""
        return False

    async def keep_alive(self) -> None:
        """Do nothing, because the connection stays open during silent calls."""

    def ends_call(self) -> bool:
        """Return whether the client has disconnected. See `Origin`."""
        return self._gone

    # Received messages

    def receive(self, data: bytes) -> None:
        """Process one message. Requests run as tasks of this connection. Never raises."""
        if self._receive_usual(data):
            return
        message: Envelope | None = None
        try:
            check_text(data)
            if is_batch(data):
                self.start(self._batch(data))
                return
            message = read(data)
            call = self._open(message)
        except ProtocolError as exc:
            self._write(self._refuse(self._charge() or exc, message))
            return
        if call is not None:
            self.start(self._answer(call), call)

    def _receive_usual(self, data: bytes) -> bool:
        """Process a usual message, or return False."""
        dispatcher, found, session = self._dispatcher, read_usual(data), self.session
        if found is None:
            return False
        message, sender = found
        sender = sender or (self._revision(), session, UNKNOWN_CLIENT if session is None else session.client)
        if message.id is UNSET:
            # This one begins the reports of changes.
            if message.method == "notifications/initialized" or not is_unread(dispatcher, message.method, data):
                return False
            self._note(message.method)
            return True
        call = open_usual(dispatcher, message, data, sender, self, self.open_reply)
        if call is None:
            return False
        call.transport = self.transport
        if self.open_reply is None:
            call.reply_channel = self
        dispatcher.by_id.setdefault((self.id, call.id), call)
        self.start(self._answer(call), call)
        return True

    def start(self, work: Coroutine[Any, Any, None], call: Call | None = None) -> asyncio.Task[None]:
        """Run a call, or a batch of them, as a task that ends with the connection."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = call
        task.add_done_callback(self._tasks.pop)
        return task

    async def _answer(self, call: Call) -> None:
        answer = await self._run(call)
        if not answer:
            return
        self._write(answer)
        if call.method == LISTEN:
            # The server ended the call, so it must send an error:
            # https://modelcontextprotocol.io/specification/2026-07-28/basic
            self._notify(notification_message("notifications/cancelled", {"requestId": call.id}))
        await self._drain()

    async def _run(self, call: Call) -> bytes:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  each call of a connection has one
        call.stop = task.cancel
        return await self._dispatcher.call(call, self.id)

    def _open(self, message: Envelope) -> Call | None:
        """Return the call for a message, or None if it needs no response."""
        dispatcher = self._dispatcher
        if message.is_answer:
            dispatcher.services.questions.answer(message, self.id)
            self._charge()
            self._note("response")
            return None
        if message.id is None:
            check_notification(message)
            self._charge()
            self._note(message.method)
            kept = dispatcher.services.notification_filters.filter_incoming(message, self.principal)
            if kept is None:
                return None
            if kept.method == "notifications/initialized" and self._stop_watching is None and self.session is not None:
                self._stop_watching = dispatcher.services.changes.watch(
                    self._forward_change, dispatcher.address.name, self.session
                )
            dispatcher.control.notify(kept, self.id)
            if dispatcher.registry.notification_handler(kept.method) is not None:
                named = per_request_revision(message)
                session, revision = (None, named) if named else (self.session, self._revision())
                dispatcher.notify(notification_call(kept, session, revision, **self._way()))
            return None
        per_request = per_request_revision(message) is not None
        if message.method == "initialize" and not per_request:
            # Not in a task, because later messages of the same read already belong to the session.
            if answer := self._initialize(message):
                self._write(answer)
            return None
        if per_request:
            registry = dispatcher.registry
            admitted = admit_per_request(
                message, serves=registry.admits, requires=registry.requires, header_params=registry.header_params
            )
            call = per_request_call(admitted, message, **self._way())
        else:
            call = handshake_call(message, self.session, self._revision(), **self._way())
        try:
            dispatcher.load.admit(call, call.method)
            dispatcher.load.take(call, len(call.params))
        except ProtocolError as exc:
            raise revisions.error(exc, call.revision) from exc
        dispatcher.by_id.setdefault((self.id, call.id), call)  # before the call runs, so that it can be canceled
        return call

    def _way(self) -> dict[str, Any]:
        return {
            "reply_channel": None if self.open_reply else self,
            "open_reply": self.open_reply,
            "origin": self,
            "transport": self.transport,
            "principal": self.principal,
            "headers": self.headers,
        }

    def _revision(self) -> Revision:
        return ASSUMED if self.session is None else self.session.revision

    def _initialize(self, message: Envelope) -> bytes:
        assert message.id is not None  # noqa: S101  only requests are answered
        try:
            if (refused := self._charge()) is not None:
                raise refused
            opening = read_initialize(message.params)
            session = self.session
            if session is None:
                owner = peer_network(self.peer) if self.principal is None else self.principal.id
                session = Session(self.id, opening.revision, opening.client, record=SessionRecord(), owner=owner)
                self._dispatcher.services.client_memory.resize(session, session.size)
            elif not opening.repeats(session.revision, session.client):
                raise ProtocolError(INVALID_REQUEST, "Invalid request: this connection is already initialized")
        except ProtocolError as exc:
            return self._refuse(exc, message)
        self.session = session
        self._note("initialize")
        if (relayed := self._dispatcher.registry.relayed) is not None:
            self.start(self._answer_initialize(message, relayed))
            return b""
        return result_message(message.id, self._dispatcher.announcement.initialize(opening.revision, self))

    async def _answer_initialize(self, message: Envelope, relayed: RelayedServer) -> None:
        """Respond to `initialize` after another component has opened a session or rejected the client."""
        session = self.session
        assert session is not None and message.id is not None  # noqa: S101, PT018  the caller has set both
        try:
            result = await relayed.open_session(handshake_call(message, session, session.revision, **self._way()))
        except ProtocolError as exc:
            self.session = None
            self._write(self._refuse(exc, message))
        else:
            result = result or self._dispatcher.announcement.initialize(session.revision, self)
            self._write(result_message(message.id, result))
        await self._drain()

    async def _batch(self, data: bytes) -> None:
        """Respond to a 2025-03-26 batch with an array."""
        try:
            if not self._revision().batches:
                raise refuse_batch(f"revision {self._revision().date} has no batches")
            messages = read_batch(data)
        except ProtocolError as exc:
            self._write(self._refuse(self._charge() or exc))
            return
        del data  # each call has its own part, and can run for a day
        work = [self._one(message) for message in messages]
        messages.clear()
        answers = await asyncio.gather(*work)
        body = b",".join(answer for answer in answers if answer)
        if body:
            self._write(b"[%b]" % body)
            await self._drain()

    async def _one(self, message: Envelope | ProtocolError) -> bytes:
        if isinstance(message, ProtocolError):
            return self._refuse(self._charge() or message)
        try:
            call = self._open(message)
        except ProtocolError as exc:
            return self._refuse(self._charge() or exc, message)
        answer = b"" if call is None else await self._run(call)
        await settle_task()
        return answer

    def _refuse(self, exc: ProtocolError, message: Envelope | None = None) -> bytes:
        """Return the error for a message, or for bytes that aren't one."""
        method, id = ("", None) if message is None else (message.method or "response", message.id)
        self._note(method, str(exc.code))
        return refusal_message(id, exc)

    def _charge(self) -> ProtocolError | None:
        """Charge a message that doesn't become a call. See `RequestLimits.charge`."""
        return self._dispatcher.services.request_limits.charge(self.principal, self.peer)

    def _note(self, method: str, status: str = "") -> None:
        services = self._dispatcher.services
        services.note(method, self.transport, self.session, status, principal=self.principal)

    # Changes

    def _forward_change(self, change: ServerChange, message: bytes) -> None:
        session = self.session
        assert session is not None  # noqa: S101  watched only in a session
        assert session.record is not None  # noqa: S101  sessions of connections have one
        reports = partial(self._dispatcher.registry.reports, self)
        for each in session_messages(change, message, session.client, session.record.subscriptions, reports):
            self._notify(each)

    def _notify(self, message: bytes) -> None:
        if message := self._dispatcher.services.notification_filters.filter_outgoing(message, self.principal):
            self._write(message)

    def finish(self, then: Callback) -> None:
        """End the subscriptions and call `then` when their results are written. A second call before that doesn't
        wait.
        """
        ends, self._ends = self._ends, set()
        for end in ends:
            end()
        last = [each for each, call in self._tasks.items() if ends and call and call.long_lived]
        if last:
            asyncio.gather(*last, return_exceptions=True).add_done_callback(lambda _: then())
        else:
            then()

    async def leave(self, end: Callback) -> None:
        """End the subscriptions, wait until every request received so far is answered, and call `end`."""
        self.finish(lambda: None)
        await self.settle()
        end()

    async def settle(self) -> None:
        """Wait until every request received so far is answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Stop all work. Called when the client has disconnected."""
        self._gone = True
        if self._stop_watching is not None:
            self._stop_watching()
            self._stop_watching = None
        if self.session is not None:
            self._note(SESSION_OVER)
            self._dispatcher.services.end_session(self.session.id)
            self._dispatcher.services.changes.source.follow(self.session.id, self.session.owner, {})
            self._dispatcher.services.client_memory.release(self.session)
        tasks = dict(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            done, _ = await asyncio.wait(tasks)  # unlike `gather`, this can stop while one task still runs
            for task in done:
                has_failed(task)  # no caller is left to receive its error
        for call in tasks.values():
            if call is not None and not call.over:
                self._dispatcher.abandon(call, self.id)


_MAX_WAITING = 10_000
"""Maximum number of unread messages before a client is disconnected."""


class _CallChannel(ReplyChannel):
    """The messages of one call on a `MemoryPipe`."""

    asks = True

    def __init__(self, connection: ClientConnection, take: Callable[[bytes, int], bool], call: Call) -> None:
        self._connection = connection
        self._take = take
        self._id = call.id if isinstance(call.id, int) else 0

    @override
    async def send(self, message: bytes) -> None:
        self._take(message, self._id)

    @override
    def push(self, message: bytes) -> bool:
        return self._take(message, self._id)

    @override
    def on_close(self, callback: Callback) -> Callback:
        return self._connection.on_close(callback)


class MemoryPipe:
    """An in-memory connection: `send` a message to the server, and `receive` its messages.

    Use it for tests and embedding: client and server run in one process and event loop.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        principal: Principal | None = None,
        peer: str = "",
        headers: Headers | None = None,
        transport: str = "memory",
    ) -> None:
        """Open a connection in this process.

        Args:
            dispatcher: Runs the calls.
            principal: The caller, or None for an anonymous one.
            peer: The caller's address.
            headers: Headers of the caller's request.
            transport: The transport name of calls. ``memory`` has full access; any other name needs scopes.
        """
        self._connection = ClientConnection(
            dispatcher, self._take, self._no_wait, principal=principal, peer=peer, headers=headers, transport=transport
        )
        self._connection.open_reply = partial(_CallChannel, self._connection, self._take)
        self._messages = asyncio.Queue[tuple[bytes, int]](_MAX_WAITING)
        self.closed = False

    def _take(self, message: bytes, request_id: int = 0) -> bool:
        if self.closed or self._messages.full():
            return False
        self._messages.put_nowait((message, request_id))
        return True

    async def _no_wait(self) -> None:
        return None

    def send(self, message: bytes) -> None:
        """Pass a message or batch to the server."""
        self._connection.receive(message)

    async def receive(self) -> bytes:
        """Return the next message from the server. Waits until there is one."""
        return (await self._messages.get())[0]

    async def receive_with_id(self) -> tuple[bytes, int]:
        """Return the next message, and the id of the request that it's about, or 0 if it's about none."""
        return await self._messages.get()

    async def close(self) -> None:
        """Disconnect the client."""
        self.closed = True
        await self._connection.close()


MAX_ITEMS = 50


async def settle_task() -> None:
    """Consume a cancellation that a function left behind for its task, so the task can still return its result."""
    if is_canceled():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


def is_batch(body: bytes) -> bool:
    """Return whether a body is a JSON array."""
    return body.lstrip(b" \t\r\n")[:1] == b"["


def refuse_batch(why: str) -> ProtocolError:
    """Return the error for an array that isn't an allowed batch."""
    return ProtocolError(INVALID_REQUEST, f"Invalid request: {why}", status=400)


def read_batch(body: bytes) -> list[Envelope | ProtocolError]:
    """Return the messages in a batch, or an error for each invalid one.

    Raises:
        ProtocolError: The batch is empty or too large, or it contains `initialize` or a message of another era.
    """
    messages: list[Envelope | ProtocolError] = []
    for item in split_batch(body, MAX_ITEMS):
        try:
            message = read(item)
        except ProtocolError as exc:
            messages.append(exc)
            continue
        if message.method == "initialize":
            raise refuse_batch("initialize must not be in a batch")
        if message.method and per_request_revision(message):
            raise refuse_batch("this revision has no batches")
        messages.append(message)
    return messages
