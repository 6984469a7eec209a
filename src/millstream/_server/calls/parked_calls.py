"""Parked calls of the per-request era: their functions wait, without a request, for the answers in the client's retry.

A call that may ask runs in a task of its own. When it asks, the client's request ends with the questions, and the task
waits. The sealed state has a `Ticket`, which identifies the worker, the call, and the round. The retry resumes the call
on this worker, or by messages to the worker that holds it.

If the call is gone, it runs again from the answers in its state, if its body hasn't started or its item allows that
(``replay=True``). Otherwise, the retry fails, so that the function doesn't start twice.
"""

import asyncio
import logging
import secrets
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw, Struct, structs

from millstream._confidential import Confidential
from millstream._copies import NotCopyable
from millstream._override import override
from millstream._protocol.errors import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    Cancelled,
    Declined,
    LocalError,
    ProtocolError,
    ToolError,
    ToolUnavailable,
)
from millstream._protocol.jsonrpc import Json, RequestId, decode_members, encode
from millstream._protocol.metadata import ClientInfo, ProgressToken
from millstream._protocol.principal import Principal, Share
from millstream._protocol.seal import InputRequired, Rounds, RoundState, Ticket
from millstream._server.calls.call import DEFERRED, Call, ReplyChannel, TaskStart
from millstream._server.peers import PartMessage
from millstream._tasks import Tasks, cancel_all, cancel_reason, has_failed
from millstream._text import pluralize

if TYPE_CHECKING:
    from millstream._server.calls.services import Services

logger = logging.getLogger("millstream")

ASKABLE = frozenset(("elicitation", "sampling", "roots"))
"""Capabilities of clients that can be asked."""
LOST = (
    "The server process that held this call has stopped, and what the call did may have taken effect. Check, and then "
    "call again."
)
ANSWERED = "Invalid requestState: the call has ended or was already answered. Start the request again without it."
FULL = "Too many questions are open, {} of them yours. Answer them, or try again later."
STOPPING = "The server is stopping, so it can't wait for the answer."
_NOT_SHARED = (
    "%s %s waited for an answer in a process that this one doesn't know. If several processes serve the same address, "
    "let them share a store, such as redis:// or nats://, or ask in a dependency, or mark the tool with replay=True."
)
MAX_BYTES = 64 * 1024 * 1024
"""Maximum total size of the arguments of parked calls. One caller can use half of it."""
MAX_THREADS = 200
"""Maximum threads of parked calls. One caller can use half of them."""
_LEAST = 4 * 1024
"""Bytes that a parked call counts as, in addition to its arguments."""
_MAX_ENDED = 2_000
"""Maximum ended calls whose results are kept for copies of their last request. One caller can use half of them."""
_MAX_KEPT = 4 * 1024
"""Maximum size of a result that is kept."""
_MAX_POSTPONED = 100
"""Maximum messages that a call sends with its next request. The size of their texts is limited to `_MAX_KEPT`."""
_PART = "calls"


class HolderUnreachable(ToolError):
    """The worker that holds a parked call can't be reached, so the call still waits."""


class _Question(Struct, eq=False):
    """Questions that a function waits for, answered together."""

    requests: Mapping[str, Any]
    read: Callable[[], Json]
    """Returns the answers, or raises `InputRequired` if some are missing, or `ProtocolError` for a wrong one."""
    answers: asyncio.Future[Json]


class _EndedCall(Struct, frozen=True):
    """How a call ended, for copies of its last request."""

    owner: str
    round: int
    answers: bytes
    outcome: bytes | ToolError | None
    """A small result, or the error of a tool."""


class ParkedCall(NotCopyable):
    """A call that may outlive its request."""

    def __init__(self, call: Call, table: "ParkedCalls", size: int, *, replay: bool, begun: bool) -> None:
        self.id = ""
        """Set when the call first waits."""
        self.call = call
        """The first request. The function's contexts refer to it, and it takes on the properties of each retry."""
        self.owner = ""
        self.size: int = _LEAST + 3 * (size or len(call.params or call.body))
        """Bytes that it counts as. A forwarded call keeps its arguments three times."""
        self.replay = replay
        self.begun = begun
        """Whether the body of the function has started, so that it may have had an effect."""
        self.round = 0
        self.wait = 0.0
        """Maximum seconds to wait for an answer."""
        self.threads = 0
        """Threads that wait for an answer."""
        self.lent = 0
        """Threads whose slots others use meanwhile."""
        self.timer: asyncio.TimerHandle | None = None
        """Fires when the time for an answer is over. None while a request is open."""
        self.admitted = self.in_thread = self.over = False
        self.answers = b""
        """Hash of the latest answers. Only a request with the same ones is a copy."""
        self.outcome: asyncio.Future[tuple[bytes, Rounds | None, Mapping[str, Any]]] | None = None
        """The outcome of the latest request. Copies of the request also wait for it."""
        self.task: asyncio.Task[bytes]
        self._table = table
        self._questions: list[_Question] = []
        self._postponed: list[Callable[[], Awaitable[None]]] = []
        self._postponed_bytes = 0
        self._news: asyncio.Future[None] | None = None

    @property
    def may_run_again(self) -> bool:
        """Whether nothing is lost if the process ends while the call waits."""
        return self.replay or not self.begun

    def can_wait(self) -> bool:
        """Return whether the call can wait, or can't run again."""
        return not self.may_run_again or (not self.over and self._table.admits(self))

    async def ask(self, requests: Mapping[str, Any], read: Callable[[], Json]) -> Json:
        """Return the answers from a later request.

        Args:
            requests: The questions by key.
            read: Returns the answers from the latest request. See `_Question`.

        Raises:
            ToolError: No answer will arrive, or too many questions are open.
            ProtocolError: There were too many rounds.
            InputRequired: The call gives its space back, and runs again when the answers arrive.
        """
        if self.over:
            raise ToolError("The call has ended, so the client can't answer.")
        self.call.get_rounds().check(self.call.services.settings.max_rounds)
        self._table.admit(self)
        question = _Question(requests, read, asyncio.get_running_loop().create_future())
        self._questions.append(question)
        self._wake()
        try:
            return await question.answers
        finally:
            self._questions.remove(question)

    def stop(self, reason: BaseException) -> None:
        """End the questions of a call that nobody will answer."""
        self.over = True
        for each in self._open():
            each.answers.set_exception(reason)

    def postpone(self, send: Callable[[], Awaitable[None]], size: int) -> None:
        """Keep a message until the next request, if there's room. See `Call.postpone`."""
        fits = len(self._postponed) < _MAX_POSTPONED and self._postponed_bytes + size <= _MAX_KEPT
        if self.timer is not None and not self.over and fits:
            self._postponed.append(send)
            self._postponed_bytes += size

    async def send_postponed(self) -> None:
        """Send the messages that waited for a request."""
        postponed, self._postponed, self._postponed_bytes = self._postponed, [], 0
        for send in postponed:
            await send()

    def requests(self) -> Json:
        """Return the open questions."""
        return {key: request for each in self._open() for key, request in each.requests.items()}

    async def next(self) -> Json | None:
        """Return the next questions, or None when the function has ended."""
        while not self.task.done():
            if self._questions:
                await asyncio.sleep(0)  # questions that arrive together are asked together
                await asyncio.sleep(0)
                if self._open() and not self.task.done():
                    return self.requests()
            if self._news is None:
                self.task.add_done_callback(self._wake)
            if self.task.done():
                break
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        return None

    def read(self, call: Call) -> list[tuple[_Question, Json | Exception]]:
        """Return the answers in a retry, which is empty if a question has none. The call still waits.

        Raises:
            ProtocolError: An answer is wrong.
        """
        own = self.call
        rounds, client = own.get_rounds(), own.client
        rounds.take(call.responses or {})
        own.client = call.client
        found: list[tuple[_Question, Json | Exception]] = []
        try:
            for each in self._open():
                try:
                    found.append((each, each.read()))
                except InputRequired as exc:
                    each.requests = exc.requests
                except (Declined, Cancelled) as exc:
                    found.append((each, exc))
        finally:
            own.client = client
        return found

    @staticmethod
    def give(answers: Iterable[tuple[_Question, Json | Exception]]) -> None:
        """Let the function continue with answers from `read`."""
        for question, answer in answers:
            if question.answers.done():
                continue
            if isinstance(answer, Exception):
                question.answers.set_exception(answer)
            else:
                question.answers.set_result(answer)

    def _open(self) -> list[_Question]:
        return [each for each in self._questions if not each.answers.done()]

    def _wake(self, _: object = None) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


def _start(work: Coroutine[Any, Any, bytes]) -> asyncio.Task[bytes]:
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
    return asyncio.get_running_loop().create_task(work)


def _adopt(own: Call, call: Call) -> None:
    """Give the call that a function knows the properties of the request that now waits for it."""
    own.id, own.token, own.log_level, own.client = call.id, call.token, call.log_level, call.client
    own.principal, own.headers, own.origin, own.transport = call.principal, call.headers, call.origin, call.transport
    own.client_id, own.tee, own.progress, own.task = call.client_id, call.tee, call.progress, call.task
    own.reply_channel = None
    own.open_reply = lambda _: call.open_reply_channel()
    own.over = own.cancelled = own.expired = own.halted = False
    own.failure = None
    call.rounds = own.rounds


def _hash_answers(responses: Mapping[str, Raw]) -> bytes:
    return sha256(_encode(sorted((key, bytes(raw)) for key, raw in responses.items()))).digest()[:16]


class ParkedCalls:
    """The parked calls of one worker."""

    def __init__(self, services: "Services") -> None:
        """Create an empty table. Questions have the same limits as questions to handshake clients."""
        self._services = services
        self._calls: dict[str, ParkedCall] = {}
        self._ended: dict[str, _EndedCall] = {}
        self._share = Share(services.settings.max_pending_inputs)
        self._bytes = Share(MAX_BYTES)
        self._threads = Share(MAX_THREADS)
        self._ended_share = Share(_MAX_ENDED)
        self._stopping = self._warned = False
        self.replaying = 0
        """Number of connections that let calls run again, where they may, instead of waiting. Tests use it."""
        self._others = _OtherWorkers(services, self)

    def __len__(self) -> int:
        return self._share.used

    @staticmethod
    def may_ask(call: Call) -> bool:
        """Return whether the function of a call can ask its client in rounds, or become a task."""
        return not call.revision.handshake and (
            call.task == DEFERRED or not ASKABLE.isdisjoint(call.client.capabilities)
        )

    async def run(
        self,
        call: Call,
        work: Callable[[], Coroutine[Any, Any, bytes]],
        *,
        asks: bool = True,
        replay: bool | None,
        begun: bool = True,
        size: int = 0,
        wait: float = 0,
    ) -> bytes:
        """Return what `work` returns, or continue the call that the request's state identifies.

        Args:
            call: The request.
            work: Runs the item.
            asks: Whether the item may ask the client.
            replay: Whether it may run again, if the process that waits for an answer is gone. With None, the setting
                decides.
            begun: Whether its first question is in the body of the function, not in what runs before.
            size: Size of the request, if the call no longer has it.
            wait: Maximum seconds to wait for an answer, instead of the setting.

        Raises:
            InputRequired: The function asks.
            ProtocolError: The call has ended.
            ToolError: The call is gone, and can't run again.
        """
        if call.parked is not None:  # inside a function that waits itself
            call.parked.begun = call.parked.begun or begun
            return await work()
        ticket = None if call.rounds is None else call.rounds.ticket
        wait = wait or self._services.settings.input_timeout
        if ticket is not None and (result := await self._find(call, ticket, wait)) is not None:
            return result
        if not (asks and self.may_ask(call)):
            return await work()
        if replay is None:
            replay = self._services.settings.replay
        call.parked = parked = ParkedCall(call, self, size, replay=replay, begun=begun)
        parked.wait = wait
        if ticket is not None:  # copies of this request join it
            self._register(parked, ticket.id)
            parked.round, parked.answers = ticket.round, _hash_answers(call.responses or {})
        parked.task = _start(work())
        if parked.id or not parked.task.done():
            return await self._follow(parked, call)
        return parked.task.result()

    async def _find(self, call: Call, ticket: Ticket, wait: float) -> bytes | None:
        """Continue a call, here or on another worker. Return None if it has to run again from the answers so far."""
        if (parked := self._calls.get(ticket.id)) is not None:
            return await self.resume(parked, call, ticket, wait)
        if ticket.id in self._ended:
            return self.repeat(call.responses or {}, ticket)
        is_mine = self._services.peers.is_me(ticket.worker)
        if not is_mine and (news := await self._others.resume(call, ticket, wait)) is not None:
            return _read_news(call, news)
        if not (is_mine or self._services.peers.shared or self._warned):
            self._warned = True
            logger.warning(_NOT_SHARED, call.method, call.name)
        if not ticket.again:
            raise ProtocolError(INVALID_PARAMS, ANSWERED) if is_mine else ToolUnavailable(LOST)
        if not is_mine:
            text = "%s %s runs again from its start, because the process that held it is gone."
            logger.info(text, call.method, call.name)
        call.get_rounds().ticket = None
        return None

    def _register(self, parked: ParkedCall, parked_id: str) -> None:
        parked.id, parked.owner = parked_id, parked.call.owner
        parked.outcome = asyncio.get_running_loop().create_future()
        self._calls[parked_id] = parked

    @property
    def forwarded(self) -> int:
        """Number of requests that wait for another worker."""
        return len(self._others)

    def find(self, ticket: Ticket) -> ParkedCall | None:
        """Return the call that a ticket identifies, if it's here."""
        return self._calls.get(ticket.id)

    def has_ended(self, ticket: Ticket) -> bool:
        """Return whether the call has ended here."""
        return ticket.id in self._ended

    def repeat(self, responses: Mapping[str, Raw], ticket: Ticket) -> bytes:
        """Return the result of a call that has ended, for a copy of its last request.

        Raises:
            ProtocolError: It's another request, or the result wasn't kept.
            ToolError: The tool failed.
        """
        ended = self._ended[ticket.id]
        if ended.outcome is None or ticket.round != ended.round or ended.answers != _hash_answers(responses):
            raise ProtocolError(INVALID_PARAMS, ANSWERED)
        if isinstance(ended.outcome, ToolError):
            raise ToolError(str(ended.outcome))
        return ended.outcome

    async def resume(self, parked: ParkedCall, call: Call, ticket: Ticket, wait: float) -> bytes:
        """Continue a call with the answers in a retry. See `run`."""
        if ticket.round == parked.round and parked.timer is not None:
            answers = parked.read(call)
            if not answers and (requests := parked.requests()):  # the round stays the same
                raise InputRequired(requests, parked.call.get_rounds().snapshot(ticket))
            parked.timer.cancel()
            parked.timer, parked.answers = None, _hash_answers(call.responses or {})
            outcome = parked.outcome = asyncio.get_running_loop().create_future()
            try:
                for _ in range(parked.lent):
                    await self._services.threads.take_back(parked.owner)
                    parked.lent -= 1
            except BaseException as exc:  # the call still waits
                outcome.set_exception(ToolError(str(exc)))
                outcome.exception()
                self._wait_for_retry(parked)
                raise
            parked.call.get_rounds().rounds += 1
            _adopt(parked.call, call)
            parked.wait = wait
            return await self._follow(parked, call, answers)
        copied = parked.round - (parked.timer is not None)
        if parked.outcome is None or ticket.round != copied or parked.answers != _hash_answers(call.responses or {}):
            raise ProtocolError(INVALID_PARAMS, ANSWERED)
        result, rounds, asked = await asyncio.shield(parked.outcome)  # a copy of the request that's running
        if rounds is not None:
            raise InputRequired(asked, rounds)
        return result

    async def _follow(
        self, parked: ParkedCall, call: Call, answers: Iterable[tuple[_Question, Json | Exception]] | None = None
    ) -> bytes:
        own = parked.call
        try:
            if answers is not None:
                await parked.send_postponed()
                parked.give(answers)
            asked = await parked.next()
        except BaseException as exc:  # the client canceled
            parked.over = own.cancelled = True
            parked.task.cancel(cancel_reason(exc))
            await asyncio.wait([parked.task])
            parked.task.add_done_callback(has_failed)
            self._end(parked, exc)
            raise
        if asked is None:
            call.meta, call.failure, call.rounds = own.meta, own.failure, own.rounds
            try:
                result = parked.task.result()
            except InputRequired as exc:  # it couldn't wait
                if parked.outcome is not None and not parked.outcome.done():
                    parked.outcome.set_result((b"", own.rounds, exc.requests))
                self._forget(parked)
                raise InputRequired(exc.requests, own.rounds) from None
            except BaseException as exc:
                self._end(parked, exc)
                raise
            self._end(parked, result)
            return result
        parked.round += 1
        ticket = Ticket(self._services.store.workers.me, parked.id, parked.round, parked.may_run_again)
        rounds = own.get_rounds().snapshot(ticket)
        own.over = True
        self._wait_for_retry(parked)
        parked.lent = parked.threads
        for _ in range(parked.lent):
            self._services.threads.lend(parked.owner)
        if not asked:
            self._settle(parked, start := TaskStart(rounds))
            raise start
        if parked.outcome is not None and not parked.outcome.done():
            parked.outcome.set_result((b"", rounds, asked))
        raise InputRequired(asked, rounds)

    def _wait_for_retry(self, parked: ParkedCall) -> None:
        parked.timer = asyncio.get_running_loop().call_later(parked.wait, self._expire, parked)

    def _settle(self, parked: ParkedCall, outcome: bytes | BaseException) -> None:
        """Give copies of the latest request its outcome."""
        if parked.outcome is None or parked.outcome.done():
            return
        if isinstance(outcome, bytes):
            parked.outcome.set_result((outcome, None, {}))
            return
        if isinstance(outcome, TaskStart):
            outcome = ProtocolError(INVALID_PARAMS, ANSWERED)
        parked.outcome.set_exception(outcome if isinstance(outcome, Exception) else ToolError("The call was canceled."))
        parked.outcome.exception()

    def _end(self, parked: ParkedCall, outcome: bytes | BaseException) -> None:
        parked.over = True
        if parked.id:
            self._settle(parked, outcome)
            self._forget(parked)
            self._keep(parked, outcome)

    def _keep(self, parked: ParkedCall, outcome: bytes | BaseException) -> None:
        kept: bytes | ToolError | None = None
        if isinstance(outcome, bytes):
            kept = outcome if len(outcome) <= _MAX_KEPT else None
        elif isinstance(outcome, ToolError | Declined | Cancelled) and len(text := str(outcome)) <= _MAX_KEPT:
            kept = ToolError(text)
        owner, share = parked.owner, self._ended_share
        while not share.take(owner):
            of_owner = (key for key, each in self._ended.items() if each.owner == owner)
            oldest = next(of_owner, "") or next(iter(self._ended))
            share.leave(self._ended.pop(oldest).owner)
        self._ended[parked.id] = _EndedCall(owner, parked.round, parked.answers, kept)

    def _forget(self, parked: ParkedCall) -> None:
        if self._calls.pop(parked.id, None) is not None:
            if parked.admitted:
                self._share.leave(parked.owner)
                self._bytes.leave(parked.owner, parked.size)
            if parked.in_thread:
                self._threads.leave(parked.owner)
        if parked.timer is not None:
            parked.timer.cancel()

    # Limits

    def admits(self, parked: ParkedCall) -> bool:
        """Count a call that waits, if there's room."""
        if self.replaying:
            return False
        try:
            self.admit(parked)
        except ToolError:
            return False
        return True

    def admit(self, parked: ParkedCall) -> None:
        """Count a call that waits. The oldest of its owner that may run again makes room.

        Raises:
            ToolError: There's no room, or the server is stopping.
        """
        if self._stopping:
            raise ToolError(STOPPING)
        owner, size = parked.owner or parked.call.owner, parked.size
        if not parked.admitted:
            self._make_room(owner, lambda: self._share.has_room(owner) and self._bytes.has_room(owner, size))
            if not parked.id:
                self._register(parked, secrets.token_hex(16))
            parked.admitted = True
            self._share.take(owner)
            self._bytes.take(owner, size)
        if parked.threads and not parked.in_thread:
            self._make_room(owner, lambda: self._threads.has_room(owner), threads=True)
            parked.in_thread = self._threads.take(owner)

    def _make_room(self, owner: str, has_room: Callable[[], bool], *, threads: bool = False) -> None:
        while not has_room():
            for each in self._calls.values():
                waits = each.timer is not None and (each.in_thread or not threads)
                if waits and each.may_run_again and each.owner == owner:
                    self._unwind(each, InputRequired({}))
                    break
            else:
                raise ToolError(FULL.format(self._share.count(owner)))

    # Ends without a request

    def _unwind(self, parked: ParkedCall, reason: BaseException) -> None:
        """End a call that waits. Its function gets the error at its question, and cleans up without a request."""
        for _ in range(parked.lent):
            self._services.threads.take_back_now(parked.owner)
        parked.lent = 0
        parked.stop(reason)
        self._forget(parked)
        if isinstance(reason, ToolError):
            self._keep(parked, InputRequired({}))
        parked.task.add_done_callback(has_failed)

    def _expire(self, parked: ParkedCall) -> None:
        seconds = pluralize(parked.wait, "second")
        self._unwind(parked, ToolError(f"The client didn't respond within {seconds}."))

    def cancel(self, parked_id: str) -> None:
        """End a call that waits, because its task was canceled."""
        if (parked := self._calls.get(parked_id)) is not None and parked.timer is not None:
            self._unwind(parked, ToolError("The task was canceled, so the client can't answer."))

    def end_of(self, is_gone: Callable[[str], bool]) -> None:
        """End the calls of owners who have lost access, or whose rights have changed."""
        for each in list(self._calls.values()):
            if each.timer is not None and each.owner and is_gone(each.owner):
                self._unwind(each, ToolError("Your rights have changed, so no answer counts. Call again."))

    async def drain(self, seconds: float) -> None:
        """End all calls that wait, and let their functions clean up."""
        self._stopping = True
        waiting = [each for each in self._calls.values() if each.timer is not None]
        for each in waiting:
            self._unwind(each, InputRequired({}) if each.may_run_again else ToolError(STOPPING))
        if waiting:
            await asyncio.wait([each.task for each in waiting], timeout=seconds)

    async def close(self) -> None:
        """End all calls."""
        await self.drain(1.0)
        await cancel_all(*(each.task for each in self._calls.values()))
        await self._others.close()


# Other workers


class SentRetry(Confidential, Struct, array_like=True, tag="retry"):
    """A retry, for the worker that holds its call."""

    number: int
    """The sender's number for the retry."""
    ticket: Ticket
    id: RequestId
    responses: bytes
    client: ClientInfo
    principal: Principal | None
    transport: str
    token: ProgressToken | None
    log_level: str
    task: str
    wait: float


class RetryNews(Confidential, Struct, array_like=True, tag="news"):
    """A notification, or how a retry ended."""

    number: int
    kind: str
    """``note``, ``result``, ``asks``, ``task``, ``tool_error``, ``unavailable``, ``error``, or ``gone``."""
    body: bytes = b""
    more: bytes = b""
    """The `_meta` of a result, the state of questions, or the data of an error."""
    code: int = 0
    begun: bool = True
    """Whether the function of a call that runs once has started."""


class CancelRetry(Struct, array_like=True, tag="cancel"):
    """The client of a retry has left."""

    number: int


_encode = msgspec.msgpack.encode
_decode_state = msgspec.msgpack.Decoder(RoundState).decode
_decode = msgspec.msgpack.Decoder(SentRetry | RetryNews | CancelRetry).decode


def _read_news(call: Call, news: RetryNews) -> bytes:
    """Return the result from another worker, or raise its error or its questions."""
    body, more = news.body, news.more
    if call.claim is not None:
        call.claim.begun = news.begun
    match news.kind:
        case "result":
            call.meta = msgspec.json.decode(more) if more else None
            return body
        case "asks":
            raise InputRequired(msgspec.json.decode(body), Rounds.from_state(_decode_state(more)))
        case "task":
            raise TaskStart(Rounds.from_state(_decode_state(more)))
        case "tool_error":
            raise ToolError(body.decode())
        case "unavailable":
            raise ToolUnavailable(body.decode())
        case _:
            raise ProtocolError(news.code, body.decode(), msgspec.json.decode(more) if more else None)


class _Notifications(ReplyChannel):
    """Sends the messages of a resumed call to the worker with its request."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._send = send

    @override
    async def send(self, message: bytes) -> None:
        await self._send(message)


class _OtherWorkers:
    """Retries that arrived at another worker than the one that holds their call."""

    def __init__(self, services: "Services", table: ParkedCalls) -> None:
        self._services = services
        self._table = table
        self._numbers = count(1)
        self._sent: dict[int, tuple[str, Call, asyncio.Future[RetryNews]]] = {}
        self._received: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._tasks = Tasks()
        services.peers.on(PartMessage, self._receive)
        services.peers.on_workers(self._drop_dead)

    def __len__(self) -> int:
        return len(self._sent)

    async def close(self) -> None:
        await self._tasks.close()

    async def resume(self, call: Call, ticket: Ticket, wait: float) -> RetryNews | None:
        """Let another worker continue a call. Return None if it's gone there.

        Raises:
            ToolError: The worker can't be reached.
        """
        if not self._services.peers.shared:
            return None
        number, worker = next(self._numbers), ticket.worker
        future: asyncio.Future[RetryNews] = asyncio.get_running_loop().create_future()
        self._sent[number] = worker, call, future
        retry = SentRetry(
            number=number,
            ticket=ticket,
            id=call.id,
            responses=encode({key: Raw(bytes(raw)) for key, raw in (call.responses or {}).items()}),
            client=call.client,
            principal=call.principal,
            transport=call.transport,
            token=call.token,
            log_level=call.log_level,
            task=call.task,
            wait=wait,
        )
        try:
            worker = await self._services.store.workers.find(worker)
            self._sent[number] = worker, call, future
            if not (worker and await self._deliver(worker, retry, call.owner)):
                return None
            news = await future
        except (LocalError, OSError) as exc:
            self._send_soon(worker, CancelRetry(number))
            raise HolderUnreachable("The server process that holds this call can't be reached. Try again.") from exc
        except asyncio.CancelledError:
            self._send_soon(worker, CancelRetry(number))
            raise
        finally:
            del self._sent[number]
        return None if news.kind == "gone" else news

    async def _deliver(self, worker: str, message: SentRetry | RetryNews, owner: str) -> bool:
        return await self._services.peers.deliver(worker, PartMessage(_PART, _encode(message)), owner)

    def _send_soon(self, worker: str, message: RetryNews | CancelRetry) -> None:
        self._tasks.spawn(self._send(worker, message))

    async def _send(self, worker: str, message: RetryNews | CancelRetry) -> None:
        with suppress(LocalError, OSError):
            await self._services.peers.send(worker, PartMessage(_PART, _encode(message)))

    def _receive(self, letter: PartMessage, worker: str) -> None:
        if letter.part != _PART:
            return
        message: SentRetry | RetryNews | CancelRetry = _decode(letter.body)
        match message:
            case SentRetry():
                task = self._received[worker, message.number] = self._tasks.spawn(self._run(message, worker))
                task.add_done_callback(lambda _: self._received.pop((worker, message.number), None))
            case CancelRetry(number):
                if (received := self._received.get((worker, number))) is not None:
                    received.cancel()
            case RetryNews(number, kind, body):
                sender, call, future = self._sent.get(number, ("", None, None))
                if call is None or future is None or sender != worker:
                    return
                if kind == "note":
                    self._tasks.spawn(call.send_to_caller(body))
                elif not future.done():
                    future.set_result(message)

    async def _run(self, retry: SentRetry, worker: str) -> None:
        """Resume a call for a request to another worker, and send it the outcome."""
        parked = self._table.find(retry.ticket)
        claim = None if parked is None else parked.call.claim
        try:
            news = await self._outcome(retry, worker)
        except InputRequired as exc:
            state = b"" if exc.rounds is None else _encode(exc.rounds.state(0))
            news = RetryNews(retry.number, "asks", encode(exc.requests), state)
        except ProtocolError as exc:
            data = encode(exc.data) if exc.data else b""
            news = RetryNews(retry.number, "error", exc.message.encode(), data, exc.code)
        except (ToolError, Declined, Cancelled) as exc:
            kind = "unavailable" if isinstance(exc, ToolUnavailable) else "tool_error"
            news = RetryNews(retry.number, kind, str(exc).encode())
        except asyncio.CancelledError:
            news = RetryNews(retry.number, "gone")
        except Exception:
            logger.exception("A call that another worker resumed has failed.")
            news = RetryNews(retry.number, "unavailable", b"Internal error. The log of the server has the details.")
        news.begun = claim is None or claim.begun
        owner = "" if retry.principal is None else retry.principal.id
        try:
            await self._deliver(worker, news, owner)
        except (LocalError, OSError) as exc:
            self._send_soon(worker, RetryNews(retry.number, "error", str(exc).encode(), code=INTERNAL_ERROR))

    async def _outcome(self, retry: SentRetry, worker: str) -> RetryNews:
        number, ticket, responses = retry.number, retry.ticket, decode_members(retry.responses)
        parked = self._table.find(ticket)
        if parked is None:
            if not self._table.has_ended(ticket):
                return RetryNews(number, "gone")
            return RetryNews(number, "result", self._table.repeat(responses, ticket))
        call = self._request(retry, parked, responses, worker)
        try:
            result = await self._table.resume(parked, call, ticket, retry.wait)
        except TaskStart as exc:
            return RetryNews(number, "task", b"", _encode((exc.rounds or call.get_rounds()).state(0)))
        finally:
            call.over = True
        return RetryNews(number, "result", result, encode(call.meta) if call.meta else b"")

    def _request(self, retry: SentRetry, parked: ParkedCall, responses: Mapping[str, Raw], worker: str) -> Call:
        """Return the request to another worker as a call of this one."""
        return structs.replace(
            parked.call,
            id=retry.id,
            responses=responses,
            client=retry.client,
            principal=retry.principal,
            transport=retry.transport,
            token=retry.token,
            log_level=retry.log_level,
            task=retry.task,
            reply_channel=_Notifications(lambda note: self._send(worker, RetryNews(retry.number, "note", note))),
            parked=None,
            tee=None,
            progress=None,
            meta=None,
            over=False,
            cancelled=False,
        )

    async def _drop_dead(self) -> None:
        """End what depends on workers that have stopped."""
        alive = self._services.store.workers.alive
        senders = {worker for worker, _ in self._received}
        for worker in senders | {worker for worker, _, _ in self._sent.values()}:
            if await alive(worker):
                continue
            for each, _, future in self._sent.values():
                if each == worker and not future.done():
                    future.set_result(RetryNews(0, "gone"))
            for (each, _), task in list(self._received.items()):
                if each == worker:
                    task.cancel()
