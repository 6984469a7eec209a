"""Parked calls: they wait at an upstream for an answer, which comes in a later request from the client to any worker.

A client of the per-request era can't be asked while its call runs. The call to the upstream therefore continues as a
task, and the client's request ends with `InputRequired`. The sealed state identifies the worker, the call, and the
round. The client's retry resumes the call, on this worker or by messages to the worker that holds it. Each state can be
used once.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine, Mapping
from itertools import count
from typing import Any

import msgspec
from msgspec import Raw, Struct

from millstream import ProtocolError
from millstream._gateway.messages.router import COMPLETE, CallRecipient, NotificationQueue
from millstream._gateway.questions.questions import MAX_OPEN_QUESTIONS, ForwardedQuestion, Recipient, project_answer
from millstream._gateway.rules.results import call_error
from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._protocol.jsonrpc import decode_members
from millstream._protocol.principal import Share
from millstream._server.calls.context import call_binding
from millstream._server.calls.services import Services
from millstream._server.peers import PartMessage
from millstream._tasks import Tasks, cancel_all, cancel_reason, has_failed
from millstream.client import ClientError, RequestTimeout, ServerError
from millstream.protocol import INTERNAL_ERROR, INVALID_PARAMS, Json, Revision, decode_object, encode

CALL_OVER = "Invalid requestState: the call has ended or was already answered. Repeat the request without requestState"
CALL_LOST = "The server process that held this call has stopped, so the call was lost. Call again without requestState."
WORKER_UNREACHABLE = "The server process that holds this call can't be reached at the moment. Try again shortly."

MAX_BYTES = 64 * 1024 * 1024
"""Maximum total size of parked calls' requests, in bytes. One caller can use half of it."""
Notify = Callable[[str, bytes], object]


class TaggedRecord(Struct, array_like=True, tag=True):
    """Data that other workers or later requests decode: an array that begins with the name of its class."""


class ForwardedTicket(TaggedRecord):
    """Identifies the call that a retry resumes."""

    worker: str
    id: str
    round: int


class WakeCall(TaggedRecord, tag="wake"):
    """A client's answers to the questions of a forwarded call, which waits on the receiver."""

    number: int
    """The sender's number for the call, used by `CallUpdate`."""
    id: str
    round: int
    binding: bytes
    responses: bytes
    """JSON: answers by the keys of their questions."""


class CancelParkedCall(TaggedRecord, tag="leave"):
    """The client that resumed a call canceled it."""

    number: int


class _Notification(TaggedRecord):
    """Progress or a log message of the call."""

    method: str
    params: bytes


class _Result(TaggedRecord):
    body: bytes


class _Questions(TaggedRecord):
    """The call waits for answers to these questions, which are JSON by key."""

    ticket: ForwardedTicket
    questions: bytes


class _Failure(TaggedRecord):
    """The upstream's error, or without `data`, the error for a client request that doesn't match the call."""

    code: int
    message: str
    data: bytes = b""
    """JSON."""


class _NoResult(TaggedRecord):
    """The call to the upstream has failed."""

    message: str
    late: bool


class _LostCall(TaggedRecord):
    """The call was canceled, or its worker has stopped."""


_Outcome = _Result | _Questions | _Failure | _NoResult | _LostCall


class CallUpdate(TaggedRecord, tag="news"):
    """A message about a resumed call, for the worker with its client's request."""

    number: int
    news: _Notification | _Outcome


_ParkedCallMessage = WakeCall | CancelParkedCall | CallUpdate
_encode = msgspec.msgpack.encode
_decode_message = msgspec.msgpack.Decoder(_ParkedCallMessage).decode
_PART = "gateway"

Exchange = Callable[[Recipient], Coroutine[Any, Any, bytes]]


class _OpenQuestion(Struct):
    question: ForwardedQuestion
    answer: asyncio.Future[bytes]


class ParkedForwardedCall(Recipient):
    """A call to an upstream that continues after its client's request has ended."""

    admitted: bool = False
    """Whether there's space to park it."""
    binding: bytes = b""
    """Hash of principal, method, name, and arguments."""
    round: int = 0
    """Number of question rounds so far."""
    timer: asyncio.TimerHandle | None = None
    """Ends the call if the client doesn't answer, or None while a client request is waiting for the call."""

    def __init__(
        self, recipient: CallRecipient, source: Revision, size: int, exchange: Exchange, calls: "ParkedForwardedCalls"
    ) -> None:
        """Start the call to the upstream.

        Args:
            recipient: The client's call.
            source: Revision of the upstream.
            size: Bytes of the request to the upstream.
            exchange: Runs the call, with the `Recipient` of the upstream's messages.
            calls: The parked calls of this worker.
        """
        super().__init__(recipient.call, recipient.abilities, recipient.level, recipient.redactor)
        self.allowed = recipient.allowed
        self.id: str = secrets.token_hex(16)
        self.source: Revision = source
        self.size: int = 2 * size  # counted twice: the parameters, and the message that contains them
        self._calls = calls
        self._keys = count(1)
        self._open: dict[str, _OpenQuestion] = {}
        self._change = asyncio.Event()
        self._notify: Notify | None = recipient.notify
        call = recipient.call
        self.memory_owner: str = call.owner
        """See `Call.owner`."""
        self.name: str = call.name
        """Name of the called item."""
        self.backlog: NotificationQueue = NotificationQueue(call.services.client_memory.bytes, call.owner, call.name)
        """Notifications that arrived while no client request was waiting."""
        self.task: asyncio.Task[bytes] = asyncio.get_running_loop().create_task(exchange(self))
        self.task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[bytes]) -> None:
        self._change.set()
        has_failed(task)  # otherwise, asyncio logs its error

    # Messages from the upstream

    @override
    def notify(self, method: str, params: bytes) -> None:
        """Pass on progress or a log message, or keep it while no client request is waiting."""
        if method == COMPLETE:
            return  # not in the per-request era
        if self._notify is not None:
            self._notify(method, params)
        else:
            self.backlog.put(method, params)

    @override
    async def ask(self, question: ForwardedQuestion) -> bytes:
        """Return the answer from a later request.

        Raises:
            ProtocolError: Too many questions are open.
        """
        if len(self._open) >= MAX_OPEN_QUESTIONS:
            raise ProtocolError(INTERNAL_ERROR, "Too many questions are open. Try again later.")
        self._calls.admit(self)
        key = f"q{next(self._keys)}"
        pending = self._open[key] = _OpenQuestion(question, asyncio.get_running_loop().create_future())
        self._change.set()
        try:
            return await pending.answer
        finally:
            del self._open[key]

    # Requests of the client

    async def next(self) -> Json | None:
        """Wait for questions, which end the client's request. Return them by key, or None when the call has ended."""
        try:
            while not self.task.done():
                if self._open_questions():
                    await asyncio.sleep(0)  # questions that arrived together are asked together
                    self.round += 1
                    return self._open_questions()
                self._change.clear()
                await self._change.wait()
            return None
        finally:
            self._notify = None

    def _open_questions(self) -> Json:
        return {key: each.question.request for key, each in self._open.items() if not each.answer.done()}

    def wake(self, number: int, bound: bytes, responses: Mapping[str, Any], notify: Notify) -> None:
        """Pass on the answers in a request, which now waits for the call and receives its notifications.

        Raises:
            ProtocolError: The request belongs to another call or an earlier round, or an answer is malformed.
        """
        if self.timer is None or number != self.round or bound != self.binding:
            raise ProtocolError(INVALID_PARAMS, CALL_OVER)
        answers = [(self._open[key], bytes(raw)) for key, raw in responses.items() if key in self._open]
        for asked, raw in answers:
            project_answer(asked.question, raw, self.source)
        for asked, raw in answers:
            if not asked.answer.done():
                asked.answer.set_result(raw)
        self.timer.cancel()
        self.timer = None
        self._notify = notify
        while self.backlog:
            notify(*self.backlog.take())


class _Remote(Struct):
    """A call on another worker, resumed by a request on this one."""

    worker: str
    notify: Notify
    outcome: asyncio.Future[_Outcome]

    def lose(self) -> None:
        """End the wait for the call."""
        if not self.outcome.done():
            self.outcome.set_result(_LostCall())


class ParkedForwardedCalls:
    """The parked calls of one worker."""

    def __init__(self, services: Services) -> None:
        """Create an empty table. Questions have the same limits as questions to handshake clients."""
        self._services = services
        self._calls: dict[str, ParkedForwardedCall] = {}
        self._share = Share(services.settings.max_pending_inputs)
        self._bytes = Share(MAX_BYTES)
        self._numbers = count(1)
        self._remote: dict[int, _Remote] = {}
        """Calls on other workers, by the number that this worker gave them."""
        self._followed: dict[tuple[str, int], ParkedForwardedCall] = {}
        """Calls resumed by requests on other workers, by worker and its number."""
        self._tasks = Tasks()
        peers = services.peers
        peers.on(PartMessage, self._receive)
        peers.on_interruption(self._on_interruption)
        peers.on_workers(self._drop_calls_of_dead_workers)

    def __len__(self) -> int:
        return self._share.used

    async def close(self) -> None:
        """End all calls."""
        running = list(self._calls.values())
        for parked in running:
            self._drop(parked)
        await self._tasks.close()
        await cancel_all(*(parked.task for parked in running))

    # On this worker

    async def run(self, parked: ParkedForwardedCall, recipient: CallRecipient) -> bytes:
        """Wait for the result of a call to an upstream. Its questions end the client's request with a ticket.

        Args:
            parked: The call to the upstream.
            recipient: The client's call. The caller settles its outbox.

        Raises:
            InputRequired: The upstream asks a question.
            ClientError: There's no result.
        """
        self._calls[parked.id] = parked
        asked = await self._follow(parked)
        if asked is None:
            return parked.task.result()
        parked.binding = call_binding(recipient.call)
        raise recipient.end_request(*asked)

    async def resume(self, recipient: CallRecipient, ticket: ForwardedTicket) -> bytes:
        """Continue a call with the answers in a retry. It raises the same errors as `run`.

        Raises:
            ProtocolError: The call has ended, or was already answered.
            ToolError: The worker that held it has stopped.
        """
        if ticket.worker != self._services.store.workers.me:
            return await self._resume_there(recipient, ticket)
        parked = self._find(ticket.id)
        parked.wake(ticket.round, call_binding(recipient.call), recipient.call.responses or {}, recipient.notify)
        return await self.run(parked, recipient)

    def _find(self, parked_id: str) -> ParkedForwardedCall:
        parked = self._calls.get(parked_id)
        if parked is None:
            raise ProtocolError(INVALID_PARAMS, CALL_OVER)
        return parked

    async def _follow(self, parked: ParkedForwardedCall) -> tuple[Json, ForwardedTicket] | None:
        """Return a call's next questions and the ticket that resumes it, or None when the call has ended."""
        try:
            asks = await parked.next()
        except BaseException as exc:  # the client canceled
            self._drop(parked, cancel_reason(exc))
            raise
        if asks is None:
            self._drop(parked)
            return None
        loop, services = asyncio.get_running_loop(), self._services
        parked.timer = loop.call_later(services.settings.input_timeout, self._drop, parked)
        return asks, ForwardedTicket(services.store.workers.me, parked.id, parked.round)

    def admit(self, parked: ParkedForwardedCall) -> None:
        """Park a call if there's space.

        Raises:
            ProtocolError: Too many calls are parked, for this owner or in total.
        """
        if parked.admitted:
            return
        if not self._bytes.has_room(parked.owner, parked.size) or not self._share.take(parked.owner):
            yours = self._share.count(parked.owner)
            text = f"Too many questions are open, {yours} of them yours. Answer them, or try again later."
            raise ProtocolError(INTERNAL_ERROR, text)
        self._bytes.take(parked.owner, parked.size)
        parked.admitted = True

    def _drop(self, parked: ParkedForwardedCall, reason: str = "") -> None:
        """Remove a call and cancel it at the upstream if it's running."""
        parked.task.cancel(reason)
        parked.backlog.stop()
        if parked.timer is not None:
            parked.timer.cancel()
        if self._calls.pop(parked.id, None) is not None and parked.admitted:
            self._share.leave(parked.owner)
            self._bytes.leave(parked.owner, parked.size)

    # On another worker

    async def _resume_there(self, recipient: CallRecipient, ticket: ForwardedTicket) -> bytes:
        # If the client disconnects, the call must end on the other worker: a state works only once, so no later
        # request could resume it.
        call, number, worker = recipient.call, next(self._numbers), ticket.worker
        remote = self._remote[number] = _Remote(worker, recipient.notify, asyncio.get_running_loop().create_future())
        responses = encode({key: Raw(raw) for key, raw in (call.responses or {}).items()})
        try:
            wake = WakeCall(number, ticket.id, ticket.round, call_binding(call), responses)
            if not await self._deliver(worker, wake, call.owner):
                raise call_error(call, CALL_LOST)
            outcome = await remote.outcome
        except (LocalError, OSError) as exc:
            self._send_soon(worker, CancelParkedCall(number))
            raise call_error(call, WORKER_UNREACHABLE) from exc
        except asyncio.CancelledError:
            self._send_soon(worker, CancelParkedCall(number))
            raise
        finally:
            del self._remote[number]
            remote.outcome.cancel()
        match outcome:
            case _Result():
                return outcome.body
            case _Questions():
                raise recipient.end_request(decode_object(outcome.questions), outcome.ticket)
            case _LostCall():
                raise call_error(call, CALL_LOST)
            case _NoResult():
                raise (RequestTimeout if outcome.late else ClientError)(outcome.message)
            case _Failure(code, message, b""):
                raise ProtocolError(code, message)
            case _Failure(code, message, data):
                raise ServerError(code, message, msgspec.json.decode(data))

    async def _deliver(self, worker: str, message: WakeCall | CallUpdate, owner: str) -> bool:
        return await self._services.peers.deliver(worker, PartMessage(_PART, _encode(message)), owner)

    def _send_soon(self, worker: str, message: CancelParkedCall | CallUpdate) -> None:
        async def send() -> None:
            with contextlib.suppress(LocalError, OSError):
                await self._services.peers.send(worker, PartMessage(_PART, _encode(message)))

        self._tasks.spawn(send())

    def _receive(self, letter: PartMessage, worker: str) -> None:
        if letter.part != _PART:
            return
        message: _ParkedCallMessage = _decode_message(letter.body)
        match message:
            case WakeCall():
                self._on_wake_call(message, worker)
            case CancelParkedCall(number):
                if (parked := self._followed.get((worker, number))) is not None:
                    self._drop(parked)
            case CallUpdate(number, news):
                remote = self._remote.get(number)
                if remote is None or remote.worker != worker or remote.outcome.done():
                    return
                if isinstance(news, _Notification):
                    remote.notify(news.method, news.params)
                else:
                    remote.outcome.set_result(news)

    def _on_interruption(self) -> None:
        """End the calls on other workers. Called when messages with their results may have been lost."""
        for number, remote in self._remote.items():
            remote.lose()
            self._send_soon(remote.worker, CancelParkedCall(number))

    async def _drop_calls_of_dead_workers(self) -> None:
        """Drop calls that depend on workers that have stopped."""
        alive = self._services.store.workers.alive
        for worker in {remote.worker for remote in self._remote.values()} | {each for each, _ in self._followed}:
            if not await alive(worker):
                for remote in self._remote.values():
                    if remote.worker == worker:
                        remote.lose()
                for (each, _), parked in self._followed.items():
                    if each == worker:
                        self._drop(parked)

    # For another worker

    def _on_wake_call(self, message: WakeCall, worker: str) -> None:
        number = message.number

        async def report(news: _Notification | _Outcome) -> None:
            if not await self._deliver(worker, CallUpdate(number, news), parked.owner):
                raise LocalError("The worker that resumed a call has stopped.")

        try:
            parked = self._find(message.id)
            outbox = NotificationQueue(
                self._services.client_memory.bytes,
                parked.memory_owner,
                parked.name,
                lambda method, params: report(_Notification(method, params)),
            )
            parked.wake(message.round, message.binding, decode_members(message.responses), outbox.put)
        except ProtocolError as exc:
            self._send_soon(worker, CallUpdate(number, _Failure(exc.code, exc.message)))
            return

        async def follow() -> None:
            try:
                asked = await outbox.settle_after(self._follow(parked))
                await report(outcome_of(parked.task) if asked is None else _Questions(asked[1], encode(asked[0])))
            except (LocalError, OSError) as exc:
                self._drop(parked)
                self._send_soon(worker, CallUpdate(number, _Failure(INTERNAL_ERROR, str(exc))))
            finally:
                del self._followed[worker, number]
                outbox.stop()

        # One follower for each parked call, so the owner's share of parked calls bounds its followers.
        self._followed[worker, number] = parked
        self._tasks.spawn(follow())


def outcome_of(task: asyncio.Task[bytes]) -> _Outcome:
    """Return the outcome of a call to an upstream, for another worker."""
    if task.cancelled():
        return _LostCall()
    exc = task.exception()
    if exc is None:
        return _Result(task.result())
    if isinstance(exc, ServerError):
        return _Failure(exc.code, exc.message, encode(exc.data))
    return _NoResult(str(exc), isinstance(exc, RequestTimeout))
