"""One two-way connection that carries whole messages: stdio, HTTP+SSE and in-memory share it.

The era is chosen for each message: one with the per-request envelope is served by itself, the others belong to the
connection's handshake session. Nothing here knows how bytes are framed or carried.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from msgspec import UNSET

from millstream.protocol.admission import admit_per_request, check_notification, is_per_request
from millstream.protocol.errors import INTERNAL_ERROR, INVALID_REQUEST, ProtocolError
from millstream.protocol.handshake import read_initialize
from millstream.protocol.jsonrpc import Envelope, check_text, error_message, read, result_message
from millstream.protocol.metadata import Client
from millstream.protocol.principal import Principal
from millstream.protocol.revisions import ASSUMED, Revision
from millstream.server.calls.call import Call
from millstream.server.calls.changes import Change
from millstream.server.calls.services import SESSION_OVER
from millstream.server.calls.sessions import Record, Session
from millstream.server.dispatch import Dispatcher
from millstream.server.inbox import progress_token, take_notification
from millstream.transports.batches import is_batch, read_batch, refuse_batch

Write = Callable[[bytes], bool]
"""Take one whole message without waiting; False when the other side is gone or was cut for reading too slowly."""
Drain = Callable[[], Awaitable[None]]

_NOBODY = Client()


class Connection:
    """One client on one connection. It is also the `Line` of every call on it."""

    __slots__ = (
        "_dispatcher", "_drain", "_headers", "_principal", "_stop_watching", "_tasks", "_transport", "_write",
        "asks", "id", "session",
    )  # fmt: skip

    def __init__(
        self,
        dispatcher: Dispatcher,
        write: Write,
        drain: Drain,
        *,
        principal: Principal | None = None,
        headers: Mapping[bytes, bytes] | None = None,
        transport: str = "",
    ) -> None:
        # Configuration
        self._dispatcher = dispatcher
        self._write = write
        self._drain = drain
        self._principal = principal
        self._headers = headers
        self._transport = transport
        # Connection
        self.id = secrets.token_hex(16)
        self.session: Session | None = None
        self.asks = True
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop_watching: Callable[[], None] | None = None

    # The line

    async def send(self, message: bytes) -> None:
        """Send one message to the client."""
        self._write(message)
        await self._drain()

    def push(self, message: bytes) -> bool:
        """Send one message without waiting."""
        return self._write(message)

    async def interrupt(self, retry_ms: int | None) -> bool:
        """A connection of this kind cannot be left and taken up again."""
        return False

    # What arrives

    def receive(self, data: bytes) -> None:
        """Take one message as it came. Requests run as tasks of this connection; nothing is raised."""
        message: Envelope | None = None
        try:
            check_text(data, self._dispatcher.services.settings.max_depth)
            if is_batch(data):
                self._start(self._batch(data))
                return
            message = read(data)
            coroutine = self._open(message)
        except ProtocolError as exc:
            self._note("" if message is None else message.method or "response", str(exc.code))
            self._write(error_message(message.id if message is not None else None, exc.code, exc.message, exc.data))
            return
        if coroutine is not None:
            self._start(self._answer(coroutine))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, work: Coroutine[Any, Any, bytes]) -> None:
        answer = await work
        if answer:
            self._write(answer)
            await self._drain()

    def _open(self, message: Envelope) -> Coroutine[Any, Any, bytes] | None:
        """What a message asks for: a coroutine that gives the response, or nothing to wait for."""
        dispatcher = self._dispatcher
        if message.is_answer:
            dispatcher.answer(message, self.id)
            self._note("response")
            return None
        if message.id is None:
            check_notification(message)
            if message.method == "notifications/initialized":
                self._watch()
            take_notification(dispatcher, message, self.id)
            self._note(message.method)
            return None
        services = dispatcher.services
        if dispatcher.running >= services.settings.max_calls:
            raise ProtocolError(INTERNAL_ERROR, "Too many calls are running: try again later")
        if message.method == "initialize" and not is_per_request(message):
            # At once, not as a task: what follows in the same read belongs to the session already.
            self._write(self._initialize(message))
            return None
        call = self._per_request(message) if is_per_request(message) else self._handshake(message)
        dispatcher.enter(call, self.id)
        return dispatcher.call(call, self.id)

    def _per_request(self, message: Envelope) -> Call:
        registry = self._dispatcher.registry
        admitted = admit_per_request(message, offers=registry.offers, requires=registry.requires)
        meta = admitted.meta
        assert message.id is not None  # noqa: S101  only requests become calls
        return Call(
            revision=admitted.revision,
            id=message.id,
            method=message.method,
            client=admitted.client,
            line=self,
            transport=self._transport,
            principal=self._principal,
            headers=self._headers,
            name=admitted.name,
            params=message.params,
            token=None if meta.progress_token is UNSET else meta.progress_token,
            log_level=meta.log_level or "",
        )

    def _handshake(self, message: Envelope) -> Call:
        session = self.session
        assert message.id is not None  # noqa: S101  only requests become calls
        return Call(
            revision=self._revision(),
            id=message.id,
            method=message.method,
            client=_NOBODY if session is None else session.client,
            line=self,
            transport=self._transport,
            session=session,
            principal=self._principal,
            headers=self._headers,
            params=message.params,
            token=progress_token(message.params),
        )

    def _revision(self) -> Revision:
        return ASSUMED if self.session is None else self.session.revision

    def _initialize(self, message: Envelope) -> bytes:
        assert message.id is not None  # noqa: S101  only requests are answered
        try:
            if self.session is not None:
                raise ProtocolError(INVALID_REQUEST, "Invalid request: this connection is initialized already")
            opening = read_initialize(message.params)
        except ProtocolError as exc:
            self._note("initialize", str(exc.code))
            return error_message(message.id, exc.code, exc.message, exc.data)
        self.session = Session(self.id, opening.revision, opening.client, record=Record())
        self._note("initialize")
        return result_message(message.id, self._dispatcher.announcement.initialize(opening.revision))

    async def _batch(self, data: bytes) -> None:
        """Answer a batch of 2025-03-26 by an array."""
        try:
            if not self._revision().batches:
                raise refuse_batch(f"revision {self._revision().date} has no batches")
            messages = read_batch(data, self._dispatcher.services.settings.max_batch)
        except ProtocolError as exc:
            self._note("", str(exc.code))
            self._write(error_message(None, exc.code, exc.message, exc.data))
            return
        answers = await asyncio.gather(*(self._one(message) for message in messages))
        body = b",".join(answer for answer in answers if answer)
        if body:
            self._write(b"[%b]" % body)
            await self._drain()

    async def _one(self, message: Envelope | ProtocolError) -> bytes:
        if isinstance(message, ProtocolError):
            self._note("", str(message.code))
            return error_message(None, message.code, message.message)
        try:
            work = self._open(message)
        except ProtocolError as exc:
            self._note(message.method, str(exc.code))
            return error_message(message.id, exc.code, exc.message, exc.data)
        return b"" if work is None else await work

    def _note(self, method: str, status: str = "") -> None:
        services = self._dispatcher.services
        services.note(method, self._transport, self.session, status, principal=self._principal)

    # Changes

    def _watch(self) -> None:
        if self._stop_watching is None and self.session is not None:
            self._stop_watching = self._dispatcher.services.changes.watch(self._changed)

    def _changed(self, change: Change, message: bytes) -> None:
        session = self.session
        assert session is not None  # noqa: S101  watched only in a session
        assert session.record is not None  # noqa: S101  sessions of connections have one
        if change.kind != "updated" or change.uri in session.record.subscriptions:
            self._write(message)

    async def settle(self) -> None:
        """Wait until every request taken so far is answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """The client is gone: stop what it asked for."""
        if self._stop_watching is not None:
            self._stop_watching()
            self._stop_watching = None
        if self.session is not None:
            self._note(SESSION_OVER)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
