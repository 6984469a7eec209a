"""Messages from an upstream about forwarded calls, passed to clients that may speak another revision.

`MessageRouter` receives the messages on one connection to an upstream and finds the call of each. A `CallRecipient`
passes them to the client of one call. If the transport doesn't say which call a message belongs to, the only running
call receives it, unless another caller could have caused it: an upstream may continue a canceled call, and ask or log
later. Otherwise, questions are rejected, and log messages from a process go to the gateway's own log. A question
outside calls belongs to the connection, and is asked if the connection has one client.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any, TypeVar

from msgspec import Raw, Struct

from millstream import Context, Declined, ProtocolError, ToolError
from millstream._gateway.log import logger
from millstream._gateway.questions.abilities import abilities_in, declare, limit_abilities
from millstream._gateway.questions.questions import (
    MAX_OPEN_QUESTIONS,
    MAX_REDACTED,
    PROGRESS,
    ForwardedQuestion,
    ProgressStep,
    Recipient,
    check_declared,
    project_answer,
    project_question,
)
from millstream._gateway.rules.results import Redactor
from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._protocol.jsonrpc import RequestId
from millstream._protocol.notifications import NOTIFICATIONS
from millstream._protocol.principal import Share
from millstream._protocol.seal import InputRequired, digest
from millstream._recent import Recent
from millstream._server.calls.call import Call
from millstream._server.calls.pending_questions import ClientRefusal
from millstream._server.calls.questions import pause_deadline
from millstream._server.calls.services import LIST_CHANGED, UPDATED
from millstream._server.calls.sessions import Session
from millstream.client.lowlevel import Conversation, Notification
from millstream.protocol import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    MALFORMED,
    METHOD_NOT_FOUND,
    SUBSCRIPTION_KEY,
    Json,
    Revision,
    decode_object,
    decoder,
    encode,
    is_array,
    members,
    notification_message,
)

T = TypeVar("T")

LOG = "notifications/message"
COMPLETE = "notifications/elicitation/complete"
CHANGES = {method: kind for kind, method in LIST_CHANGED.items()} | {UPDATED: ""}
"""Notification of a change -> the kind of the list, or empty for a resource."""
MAX_QUEUED_BYTES = 1024 * 1024
"""Maximum bytes of the notifications per call that wait for a slow client."""
_ENTRY_BYTES = 250
"""Memory that a waiting notification takes in addition to its parameters."""
_MAX_ENDED = 64
"""Maximum calls per session whose late progress is passed on."""
_MAX_TOKEN = 256
"""Maximum characters of a progress token to remember after its call."""
_MAX_URLS, _MAX_URL_ID = 256, 256
"""Maximum URLs per connection whose completion is passed on, and maximum characters of their ids."""
_MOMENT = 1.0
"""Seconds in which a question that was sent to all connections reaches the one with its call."""
_MAX_MOMENTS = 300
"""Maximum moments that a question without a call waits while another connection's client is asked the same."""
REJECTED_CODE = -1
"""Error code for a sampling request that the user or client rejected."""


class _Details(Struct, rename="camel"):
    """Members of a notification: a log message, or the completion of a URL elicitation."""

    level: str = ""
    elicitation_id: str | None = None


class _Progress(Struct, rename="camel"):
    progress_token: int


_decode_token = decoder(_Progress)
_decode_step = decoder(ProgressStep)
_decode_details = decoder(_Details)


def message_for_client(method: str, params: bytes) -> bytes:
    """Return an upstream's notification. Most servers leave out parameters that are empty."""
    return notification_message(method, Raw(params) if params != b"{}" else None)


class NotificationQueue:
    """Notifications about one call that wait for its client, and are sent in the background, in order.

    A program can write thousands before the client gets the first one, so not their number is limited, but their bytes:
    by `MAX_QUEUED_BYTES`, and by the owner's share of the memory for all clients. Beyond that, the oldest progress is
    dropped first, because later progress replaces it, and then the oldest of the others.
    """

    _size = 0
    """Length of the methods and parameters."""
    _sender: asyncio.Task[None] | None = None

    def __init__(
        self, memory: Share, owner: str, name: str, send: Callable[[str, bytes], Awaitable[None]] | None = None
    ) -> None:
        """Create an empty queue.

        Args:
            memory: Counts the bytes of clients.
            owner: Owner of the call (see `Call.owner`).
            name: Name of the called item, for the log.
            send: Sends the method and parameters of one notification, waiting while its receiver is slow. Without it,
                they wait until they're taken.
        """
        self._memory = memory
        self._owner = owner
        self._name = name
        self._send = send
        self._numbers = count()
        self._progress: deque[tuple[int, str, bytes]] = deque()
        self._others: deque[tuple[int, str, bytes]] = deque()
        self._lost: Counter[str] = Counter()
        """Kind (progress or messages) -> number of dropped notifications that haven't been logged."""

    def __len__(self) -> int:
        return len(self._progress) + len(self._others)

    def put(self, method: str, params: bytes) -> bool:
        """Queue a notification. Return False if there was no room for all, so some were dropped."""
        size, is_progress, complete = len(method) + len(params), method == PROGRESS, True
        while self._size + size > MAX_QUEUED_BYTES or not self._memory.take(self._owner, size + _ENTRY_BYTES):
            complete = False
            waiting = self._others if not self._progress and not is_progress else self._progress
            if not waiting or size > MAX_QUEUED_BYTES:
                self._count_loss(method)
                return False
            self._count_loss(self._remove(waiting)[0])
        (self._progress if is_progress else self._others).append((next(self._numbers), method, params))
        self._size += size
        if self._send is not None and (self._sender is None or self._sender.done()):
            self._sender = asyncio.get_running_loop().create_task(self._run())
        return complete

    def _count_loss(self, method: str) -> None:
        self._lost["progress" if method == PROGRESS else "messages"] += 1  # methods are the upstream's text

    def take(self) -> tuple[str, bytes]:
        """Remove and return the oldest notification."""
        progress, others = self._progress, self._others
        return self._remove(progress if progress and (not others or progress[0] < others[0]) else others)

    def _remove(self, waiting: deque[tuple[int, str, bytes]]) -> tuple[str, bytes]:
        _, method, params = waiting.popleft()
        size = len(method) + len(params)
        self._size -= size
        self._memory.leave(self._owner, size + _ENTRY_BYTES)
        return method, params

    async def _run(self) -> None:
        with suppress(LocalError, OSError):  # the store or the other worker doesn't respond
            while self._send is not None and self:
                await self._send(*self.take())

    async def settle_after(self, work: Awaitable[T]) -> T:
        """Return the result of `work`, after everything that was queued before it."""
        try:
            result = await work
        except (Exception, InputRequired):
            await self.settle()
            raise
        except BaseException:  # the client has disconnected
            self.stop()
            raise
        await self.settle()
        return result

    async def settle(self) -> None:
        """Wait until everything is sent, so that the result follows it."""
        if self._sender is not None and not self._sender.done():
            try:
                await asyncio.wait([self._sender])
            finally:
                self.stop()
        elif self._lost or self:
            self.stop()

    def stop(self) -> None:
        """Drop unsent notifications."""
        if self._sender is not None:
            self._sender.cancel()
        while self:
            self._remove(self._progress or self._others)
        if self._lost:
            logger.warning(
                "%.200s: dropped %s, because the client didn't read them in time",
                self._name,
                " and ".join(f"{number:,} {kind}" for kind, number in self._lost.items()),
            )
            self._lost.clear()


@contextmanager
def answer_errors() -> Generator[None]:
    """Raise a client's error response to a question as the error for the upstream."""
    try:
        yield
    except Declined as exc:
        raise ProtocolError(REJECTED_CODE, str(exc)) from None
    except ClientRefusal as exc:
        raise ProtocolError(exc.code, exc.reason) from None
    except ToolError as exc:
        raise ProtocolError(INTERNAL_ERROR, str(exc)) from None


class CallRecipient(Recipient):
    """The client of a call that runs on this worker."""

    source: Revision
    """Revision of the upstream."""
    _open_questions = 0

    def __init__(self, call: Call, abilities: bytes, level: str, redactor: Redactor | None) -> None:
        """See `Recipient`."""
        super().__init__(call, abilities, level, redactor)
        self.call: Call = call
        self.outbox: NotificationQueue = NotificationQueue(
            call.services.client_memory.bytes, call.owner, call.name, self._send_to_client
        )
        """Notifications to the client. Settle it before the result."""

    @override
    def notify(self, method: str, params: bytes) -> None:
        """Pass on progress, a log message, or the completion of a URL elicitation. `progress` redacts its message."""
        try:
            if not self._wants(method, params):
                return
            if self.redactor is not None and method != PROGRESS:
                if len(params) > MAX_REDACTED:
                    return
                params = self.redactor.json(params)
        except MALFORMED:
            return
        self.outbox.put(method, params)

    def _wants(self, method: str, params: bytes) -> bool:
        if self.verbatim:
            return True
        if method == LOG:
            return _decode_details(params).level in self.levels
        if method in (PROGRESS, COMPLETE):
            return True
        call = self.call
        return not call.services.forwarded_extensions.isdisjoint(call.client.extensions)

    @override
    async def ask(self, question: ForwardedQuestion) -> bytes:
        """Ask the client on the stream of its call, or in the per-request era, by its result. Return the raw answer.

        Raises:
            ProtocolError: The client can't be asked, declined, or didn't respond.
        """
        call = self.call
        if call.parked is not None:
            with answer_errors(), pause_deadline(call):
                return await self._ask_later(question)
        if call.over or call.cancelled:
            raise ProtocolError(INVALID_REQUEST, "The call that asked this question has ended.")
        if not call.open_reply_channel().asks:
            raise ProtocolError(METHOD_NOT_FOUND, "The client has no open stream that can carry a question.")
        ids = call.question_ids = set() if call.question_ids is None else call.question_ids
        with answer_errors(), pause_deadline(call):
            return await call.services.questions.ask(
                call.send_to_caller, question.method, question.params, owner=call.owner, scope=self.session, asked=ids
            )

    async def _ask_later(self, question: ForwardedQuestion) -> bytes:
        """Return the answer from a later request."""
        if self._open_questions >= MAX_OPEN_QUESTIONS:
            raise ToolError("Too many questions are open. Try again later.")
        call, mark = self.call, digest(question.method, question.params)
        rounds = call.get_rounds()
        label = rounds.label(None)
        key = rounds.wire_key(label, None, mark)

        def read() -> Json:
            raw = rounds.find_settled(label, mark) or rounds.response(label, key, mark)
            if raw is None:
                rounds.pend(label, mark)
                raise InputRequired({key: question.request})
            project_answer(question, raw, self.source)
            rounds.settle(label, mark, raw)
            return {key: raw}

        self._open_questions += 1
        try:
            try:
                found = read()
            except InputRequired as exc:
                await self.outbox.settle()  # the questions end the client's request
                found = await call.parked.ask(exc.requests, read)
        except InputRequired:
            raise ToolError("The call no longer waits for the answer.") from None
        finally:
            self._open_questions -= 1
        raw: bytes = found[key]
        return raw

    async def _send_to_client(self, method: str, params: bytes) -> None:
        call = self.call
        if call.over:
            call.postpone(partial(self._send_to_client, method, params), len(params))
        elif method != PROGRESS:
            await call.send_to_caller(message_for_client(method, params))
        elif self.verbatim and call.token is not None:
            await call.send_to_caller(notification_message(method, _with_token(params, call.token)))
        else:
            step = _decode_step(params)
            await Context(call).progress(step.progress, step.total, step.message)


class SessionRecipient(Recipient):
    """The client of a session, which is asked outside its calls."""

    def __init__(
        self,
        session: Session,
        questions: frozenset[str],
        redactor: Redactor | None,
        ask: Callable[[str, Json], Awaitable[bytes]],
    ) -> None:
        """Store the client's properties.

        Args:
            questions: Kinds of questions that the policy allows.
            redactor: Redacts the questions, if the policy requires it.
            ask: ``ask(method, params)`` asks the client and returns its raw answer.
        """
        declared = abilities_in(session.client.capabilities, session.revision, {})
        self.abilities, self.allowed = limit_abilities(declared, questions), questions
        self.redactor = redactor
        self.revision = session.revision
        self.session = session.id
        self._ask = ask

    @override
    async def ask(self, question: ForwardedQuestion) -> bytes:
        """See `Recipient`."""
        with answer_errors():
            return await self._ask(question.method, question.params)


class ForwardedStream:
    """A client's `subscriptions/listen` that an upstream serves."""

    def __init__(self, call: Call, end: Callable[[], object]) -> None:
        """Create a stream; `notify` opens it.

        Args:
            call: The client's call.
            end: Ends the stream, so the client notices that it may have missed changes.
        """
        self._call = call
        self.end: Callable[[], object] = end
        self.outbox: NotificationQueue = NotificationQueue(
            call.services.client_memory.bytes, call.owner, call.method, self._send
        )

    def notify(self, method: str, params: Json) -> None:
        """Pass on a notification, with the client's id of the subscription."""
        if not self.outbox.put(method, encode({**params, "_meta": self.mark(params)})):
            self.end()

    def mark(self, message: Json) -> Json:
        """Return the `_meta` of a notification or result with the client's id of the subscription."""
        return {**members(message.get("_meta")), SUBSCRIPTION_KEY: self._call.id}

    async def _send(self, method: str, params: bytes) -> None:
        await self._call.send_to_caller(notification_message(method, Raw(params)))


class OwnSession(Struct, frozen=True):
    """The client session that a dedicated session at the upstream serves."""

    id: str
    capabilities: Json
    """Capabilities as the client declared them."""
    verbatim: bool
    """Whether messages are passed on unchanged."""
    names_calls: bool
    """Whether messages name the call that they belong to, apart from messages over HTTP+SSE."""
    hides: Callable[[bytes], bool]
    """Returns whether the policy hides the resource that the params of `resources/updated` name."""


class MessageRouter:
    """The calls that run on one connection, and the upstream's messages about them."""

    conversation: Conversation
    """Conversation with the upstream; set before it starts."""
    level: str = ""
    """Minimum log level requested from the upstream."""
    _warned = False
    _transport: object = None
    """The process or connection that `_users` used."""
    _ended: Recent[int, RequestId] | None = None
    """Id of a finished call -> its client's progress token."""
    _urls: Recent[tuple[str, str], None] | None = None
    """Ids of the URLs that clients were asked to open, each with the client's session."""

    def __init__(
        self,
        name: str,
        abilities: bytes,
        *,
        sender: Callable[[], str],
        in_process: bool,
        log: Callable[[str, int], object] | None,
        on_change: Callable[[str, bytes], None],
        own: OwnSession | None,
        send: Callable[[str, str, bytes], None],
        find_client: "Callable[[str, bool], Awaitable[SessionRecipient | None]] | None",
        open_questions: Counter[tuple[str, bytes]],
    ) -> None:
        """Create an empty table.

        Args:
            name: Name of the upstream, for the log.
            abilities: Capabilities that the connection declares (see `abilities_of`).
            sender: Returns the name that questions show (see `Upstream.sender`).
            in_process: Whether the upstream is a server of this process, which sends nothing about finished calls.
            log: For a process, writes a line of its output to the gateway's log.
            on_change: Called with the method and parameters of each announced change.
            own: The client session that the connection serves alone.
            send: ``send(session, method, params)`` sends a notification outside calls.
            find_client: ``find_client(session, waits)`` returns who answers questions outside calls, or None without
                waiting. None if several clients could.
            open_questions: The questions that clients are being asked now, on all connections to the upstream.
        """
        self._find_client = find_client
        self._open_questions = open_questions
        self._name = name
        self._abilities = abilities
        self._sender = sender
        self._in_process = in_process
        self._log = log
        self._on_change = on_change
        self._own = own
        self._send = send
        self.heard: bool = False
        """Whether the upstream has sent a notification. `McpUpstream` resets it."""
        self._users: set[object] = set()
        """Callers that may have caused a message: principals that have called, and others that gave up a call. Two are
        enough to know that the connection has several.
        """
        self.recipients: dict[int, Recipient] = {}
        """Request id -> the client that it's forwarded for."""
        self.streams: dict[int, ForwardedStream] = {}
        """Request id -> a client's subscription that the upstream serves."""
        self.plain_calls: dict[int, Call] = {}
        """Request id -> a call that expects no messages. It gets a recipient if there is one."""

    def capabilities(self, revision: Revision, more: Mapping[str, object]) -> Json:
        """Return the capabilities to declare in a revision."""
        own = self._own
        return dict(own.capabilities) if own is not None else declare(self._abilities, revision) | dict(more)

    def leave(self, request_id: int, *, answered: bool) -> None:
        """Remove a call that got its response, or that the client gave up and the upstream may still run."""
        recipient = self.recipients.pop(request_id)
        token = recipient.token
        if token is not None and recipient.verbatim and self._own is not None and len(str(token)) <= _MAX_TOKEN:
            if self._ended is None:
                self._ended = Recent(_MAX_ENDED)
            self._ended.keep(request_id, token)
        users = self._current_users()
        if len(users) < 2 and (recipient.signed_in or not answered) and not self._in_process:
            users.add(recipient.caller)

    def _current_users(self) -> set[object]:
        last = self.conversation.requests.last
        transport = None if last is None else last.transport
        if transport is not self._transport:  # a new process doesn't know earlier calls
            self._transport = transport
            self._users.clear()
        return self._users

    def find(self, request_id: int) -> Recipient | None:
        """Return the recipient of a question. Without a request, the only one that can have caused it.

        If one session has several calls, the oldest one.
        """
        if request_id:
            return self.recipients.get(request_id) or self._find_plain(request_id)
        found = self._find_all()
        return found[0] if len({each.session or each for each in found}) == 1 else None

    def _find_for(self, notification: Notification) -> Recipient | None:
        """Return the recipient of a log message or an extension's notification.

        If nothing identifies the call, and one client has several, the oldest that wants the message gets it.
        """
        if notification.request_id:
            return self.find(notification.request_id)
        found = self._find_all()
        if len({each.client or each for each in found}) != 1:
            return None
        try:
            level = _decode_details(notification.params).level if notification.method == LOG else ""
        except MALFORMED:
            return None
        return next((each for each in found if level in each.levels), found[0])

    def _find_all(self) -> list[Recipient]:
        """Return the running calls, or none of them if another caller's earlier call may have caused a message."""
        found = list(self.recipients.values())
        return [] if len(self._current_users() | {each.caller for each in found}) > 1 else found

    def _find_plain(self, request_id: int) -> Recipient | None:
        call = self.plain_calls.get(request_id)
        if call is None:
            return None
        recipient = self.recipients[request_id] = CallRecipient(call, b"", "", None)
        recipient.verbatim = True
        return recipient

    async def answer(self, method: str, params: bytes, request_id: int = 0) -> Any:
        """Forward a question to the client that made the call and return the answer.

        Raises:
            ProtocolError: The client is unknown or doesn't respond.
        """
        if method == "ping":
            return {}
        source, own = self.conversation.negotiated.revision, self._own
        while True:
            recipient = self._find_own(request_id) if own is not None else self.find(request_id)
            if self._find_client is not None and (recipient is None or (method == "roots/list" and not request_id)):
                # A call may end before its client answers. A question of the connection outlives it.
                waits = recipient is None
                recipient = await self._find_client("" if own is None else own.id, waits) or recipient
            if own is not None and own.verbatim and recipient is not None and recipient.revision is source:
                given = decode_object(params or b"{}")
                with self._note_question(method, params):
                    return Raw(await recipient.ask(ForwardedQuestion(method, given, given)))
            if recipient is None:
                await self._let_others_answer(method, params)
                raise self._unknown_client_error(method)
            question = project_question(method, params, recipient, source, self._sender())
            self._note_url(recipient, question.params)
            try:
                with self._note_question(method, params):
                    return project_answer(question, await recipient.ask(question), source)
            except ProtocolError:
                is_lasting = isinstance(recipient, SessionRecipient) or recipient in self.recipients.values()
                if request_id or not recipient.session or is_lasting:
                    raise
            # Its call has ended, but another call of the session is running, and may be the one that asks.
            if self.find(0) is None:
                raise ProtocolError(INVALID_REQUEST, "The call that asked this question has ended.")

    @contextmanager
    def _note_question(self, method: str, params: bytes) -> Generator[None]:
        self._open_questions[method, params] += 1
        try:
            yield
        finally:
            self._open_questions[method, params] -= 1
            if not self._open_questions[method, params]:
                del self._open_questions[method, params]

    async def _let_others_answer(self, method: str, params: bytes) -> None:
        """Wait while the client of another connection is asked the same question. Some bridges send each message to all
        connections, and take the first response.
        """
        if self._log is None and not (self.recipients or self._in_process):
            await asyncio.sleep(_MOMENT)
            for _ in range(_MAX_MOMENTS):
                if (method, params) not in self._open_questions:
                    break
                await asyncio.sleep(_MOMENT)

    def _unknown_client_error(self, method: str) -> ProtocolError:
        if not self.recipients:
            return ProtocolError(INVALID_REQUEST, "No call is running, so no client can be asked.")
        text = f"The server {self._name!r} serves several calls, and its question doesn't identify one of them."
        if self._log is not None:
            check_declared(method, self._abilities)  # another isolation can't override the policy
            text += ' Set isolation = "per_principal" for it in the gateway, or "per_session" without sign-in.'
        if not self._warned:
            self._warned = True
            logger.warning("Rejected a question. %s", text)
        return ProtocolError(INVALID_REQUEST, text)

    def receive(self, notification: Notification) -> None:  # noqa: C901  a case for each kind
        """Pass a notification to the client of its call."""
        self.heard = True
        method, params = notification.method, bytes(notification.params)
        if method == PROGRESS:
            self._receive_progress(params)
        elif self.streams and (stream := self._find_stream(params)) is not None:
            stream[0].notify(method, stream[1])
            if method in CHANGES:
                self._on_change(method, params)
        elif method == COMPLETE and not (self._own is not None and self._own.verbatim):
            found = self.find(notification.request_id) if notification.request_id else None
            if found is not None and found.revision.elicitation_ids:  # the stream of its call names the client
                found.notify(method, params)
            else:
                self._receive_completion(params)
        elif self._own is not None and (self._own.verbatim or method not in CHANGES):
            self._receive_own(self._own, notification)
        elif method in CHANGES:
            self._on_change(method, params)
            found = self.find(notification.request_id) if notification.request_id else None
            if found is not None and found.verbatim:
                found.notify(method, params)
        elif method == LOG or method not in NOTIFICATIONS:  # a log message, or one of an extension
            found = self._find_for(notification)
            if found is not None:
                found.notify(method, params)
            elif method == LOG and self._log is not None:
                self._log(params.decode("utf-8", "replace"), 0)

    def _find_stream(self, params: bytes) -> tuple[ForwardedStream, Json] | None:
        """Return the subscription that a notification belongs to, and its parameters."""
        try:
            found = decode_object(params)
        except MALFORMED:
            return None
        number = members(found.get("_meta")).get(SUBSCRIPTION_KEY)
        stream = self.streams.get(number) if isinstance(number, int) else None
        return None if stream is None else (stream, found)

    def _receive_progress(self, params: bytes) -> None:
        """Pass on progress of a call unchanged, even if the call has ended. `Recipient.progress` converts the rest."""
        own = self._own
        try:
            token = _decode_token(params).progress_token
        except MALFORMED:  # for no request of this connection, because their tokens are numbers
            if own is not None and own.verbatim:
                self._send(own.id, PROGRESS, params)
            return
        recipient = self.recipients.get(token)
        if recipient is not None:
            if recipient.verbatim:
                recipient.notify(PROGRESS, params)
        elif own is not None and self._ended is not None and token in self._ended:
            self._send(own.id, PROGRESS, encode(_with_token(params, self._ended[token])))

    def note_urls(self, recipient: Recipient, data: Any) -> None:
        """Remember which URLs a client has to open, from the data of the error that its call ended with."""
        found = members(data).get("elicitations")
        if is_array(found):
            for each in found[:MAX_OPEN_QUESTIONS]:
                self._note_url(recipient, members(each))

    def _note_url(self, recipient: Recipient, question: Json) -> None:
        url = question.get("elicitationId")
        if not (recipient.session and recipient.revision.elicitation_ids and isinstance(url, str)):
            return
        if len(url) <= _MAX_URL_ID:
            self._urls = self._urls or Recent(_MAX_URLS)
            self._urls.keep((url, recipient.session), None)

    def _receive_completion(self, params: bytes) -> None:
        """Pass the completion of a URL to the clients that were asked to open it. Their calls may have ended."""
        try:
            completed = _decode_details(params).elicitation_id
        except MALFORMED:
            return
        for url, session in list(self._urls or ()):
            if url != completed:
                continue
            found = next((each for each in self.recipients.values() if each.session == session), None)
            if found is not None:
                found.notify(COMPLETE, params)
            else:
                self._send(session, COMPLETE, params)

    def _find_own(self, request_id: int) -> Recipient | None:
        """Return the call of a message on a dedicated session, or None if it's outside calls."""
        if not request_id and self._own is not None and self._own.names_calls:
            requests = self.conversation.requests
            connection = requests.connection or requests.last  # None for what it says before it's ready
            if connection is None or connection.transport.name != "http+sse":
                return None
        return self.find(request_id)

    def _receive_own(self, own: OwnSession, notification: Notification) -> None:
        """Pass a notification to the connection's only client, on the stream of its call if it has one."""
        method, params = notification.method, bytes(notification.params)
        if method in CHANGES:
            self._on_change(method, params)
        if method == "notifications/cancelled":  # about a question, which the connection handles
            return
        if method == UPDATED and own.hides(params):
            return
        found = self._find_own(notification.request_id)
        if found is not None:
            found.notify(method, params)
        else:
            self._send(own.id, method, params)


def _with_token(params: bytes, token: RequestId) -> Json:
    return {**decode_object(params), "progressToken": token}
