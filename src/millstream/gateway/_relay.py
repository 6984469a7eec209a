"""Messages of an upstream about a forwarded call, passed to the client: questions, progress, and log messages.

`Relays` receives the messages of one connection to an upstream and finds the call of each. A `Relay` passes them to the
client of one call. If the transport doesn't say which call a message belongs to, the only running call receives it,
provided that no other caller can have caused it: an upstream may go on with a canceled call, and ask or log later. Else
questions are refused, and log messages of a process go to the gateway's own log.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from msgspec import Raw, Struct, field

from millstream import Context, Declined, ProtocolError, ToolError
from millstream._override import override
from millstream._server.calls.pending_questions import ClientRefusal
from millstream.client._conversation import Conversation
from millstream.client._server_messages import Notification
from millstream.gateway._questions import (
    PROGRESS,
    ForwardedQuestion,
    ProgressStep,
    Recipient,
    check_declared,
    declare,
    project_answer,
    project_question,
)
from millstream.gateway._results import Redactor
from millstream.parts import Call
from millstream.protocol import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    LOG_LEVELS,
    MALFORMED,
    METHOD_NOT_FOUND,
    NOTIFICATIONS,
    Revision,
    decoder,
    encode,
    notification_message,
)

logger = logging.getLogger("millstream.gateway")

LOG = "notifications/message"
COMPLETE = "notifications/elicitation/complete"
MAX_QUEUED = 256
"""Maximum notifications of one call waiting for a slow client; beyond that, the oldest are dropped."""
MAX_QUEUED_BYTES = 1024 * 1024
"""Maximum bytes of these notifications together."""
MAX_REDACTED = 64 * 1024
"""Maximum bytes of one of them if it has to be redacted, which takes time on the event loop."""
REJECTED_CODE = -1
"""Error code of a sampling request that the user or client refused."""


class _Level(Struct):
    level: str


class _Complete(Struct):
    elicitation_id: str = field(name="elicitationId")


_decode_step = decoder(ProgressStep)
_decode_level = decoder(_Level)
_decode_complete = decoder(_Complete)


class Backlog:
    """A bounded queue of notifications that drops the oldest."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._size = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, method: str, params: bytes) -> None:
        """Add a notification."""
        self._waiting.append((method, params))
        self._size += len(params)
        while len(self._waiting) > MAX_QUEUED or self._size > MAX_QUEUED_BYTES:
            self.take()

    def take(self) -> tuple[str, bytes]:
        """Remove and return the oldest notification."""
        method, params = self._waiting.popleft()
        self._size -= len(params)
        return method, params


class NotificationQueue(Backlog):
    """Sends notifications about one call in the background, in order."""

    def __init__(self, send: Callable[[str, bytes], Awaitable[None]]) -> None:
        """Create an empty queue.

        Args:
            send: Sends the method and parameters of one notification, waiting while its receiver is slow.
        """
        super().__init__()
        self._send = send
        self._sender: asyncio.Task[None] | None = None

    @override
    def put(self, method: str, params: bytes) -> None:
        """Queue a notification. If the queue is full, the oldest one is dropped."""
        super().put(method, params)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self:
            await self._send(*self.take())

    async def settle(self) -> None:
        """Wait until everything is sent, so that the result follows it."""
        if self._sender is not None and not self._sender.done():
            try:
                await asyncio.wait([self._sender])
            finally:
                self._sender.cancel()

    def stop(self) -> None:
        """Drop what isn't sent yet."""
        if self._sender is not None:
            self._sender.cancel()


class Relay(Recipient):
    """The client of a call that runs on this worker."""

    __slots__ = ("_call", "_min_level", "_outbox", "_urls", "level")

    def __init__(self, call: Call, abilities: bytes, level: str, redactor: Redactor | None) -> None:
        """Create a relay.

        Args:
            call, abilities, redactor: See `Recipient`.
            level: Minimum level of log messages that the client wants; empty for none.
        """
        super().__init__(call, abilities, redactor)
        self._call = call
        self.level: str = level
        self._min_level = LOG_LEVELS.index(level) if level else len(LOG_LEVELS)
        self._outbox: NotificationQueue | None = None
        self._urls: set[str] = set()
        """Ids of the URLs that the client was asked to open."""

    @override
    def notify(self, method: str, params: bytes) -> None:
        """Pass on progress, a log message, or the completion of a URL elicitation."""
        try:
            if not self._wants(method, params):
                return
            if self.redactor is not None:
                if len(params) > MAX_REDACTED:
                    return
                params = _redact(self.redactor, method, params)
        except MALFORMED:
            return
        if self._outbox is None:
            self._outbox = NotificationQueue(self._send)
        self._outbox.put(method, params)

    def _wants(self, method: str, params: bytes) -> bool:
        if method == LOG:
            level = _decode_level(params).level
            return level in LOG_LEVELS and LOG_LEVELS.index(level) >= self._min_level
        if method == COMPLETE:
            return _decode_complete(params).elicitation_id in self._urls
        return method == PROGRESS or not self._call.services.forwarded_extensions.isdisjoint(
            self._call.client.extensions
        )

    async def _send(self, method: str, params: bytes) -> None:
        if method == PROGRESS:
            step = _decode_step(params)
            await Context(self._call).progress(step.progress, step.total, step.message)
        else:
            await self._call.send_to_caller(notification_message(method, Raw(params)))

    async def settle(self) -> None:
        """Wait until pending notifications are sent, so that the result follows them."""
        if self._outbox is not None:
            await self._outbox.settle()

    def stop(self) -> None:
        """Stop sending."""
        if self._outbox is not None:
            self._outbox.stop()

    @override
    async def ask(self, question: ForwardedQuestion) -> bytes:
        """Ask the client on the stream of its call, and return the raw answer.

        Raises:
            ProtocolError: The client can't be asked, refused, or didn't respond.
        """
        call = self._call
        if call.over or call.cancelled:
            raise ProtocolError(INVALID_REQUEST, "The call that asked has ended.")
        if not call.open_reply_channel().asks:
            raise ProtocolError(METHOD_NOT_FOUND, "The client has no open stream that can carry a question.")
        if self.revision.elicitation_ids and "elicitationId" in question.params:
            self._urls.add(str(question.params["elicitationId"]))
        ids = call.question_ids = set() if call.question_ids is None else call.question_ids
        try:
            return await call.services.questions.ask(
                call.send_to_caller, question.method, question.params, owner=call.owner, scope=self.session, asked=ids
            )
        except Declined as exc:
            raise ProtocolError(REJECTED_CODE, str(exc)) from None
        except ClientRefusal as exc:
            raise ProtocolError(exc.code, exc.reason) from None
        except ToolError as exc:
            raise ProtocolError(INTERNAL_ERROR, str(exc)) from None


def _redact(redactor: Redactor, method: str, params: bytes) -> bytes:
    if method != PROGRESS:
        return redactor.json(params)
    step = _decode_step(params)
    return encode(ProgressStep(step.progress, step.total, step.message and redactor.text(step.message)))


class Relays:
    """The calls that run on one connection, and the upstream's messages about them."""

    def __init__(
        self, name: str, abilities: bytes, *, in_process: bool, log: Callable[[str, int], object] | None
    ) -> None:
        """Create an empty table.

        Args:
            name: Name of the upstream, for the log.
            abilities: Capabilities that the connection declares, see `_questions.abilities_of`.
            in_process: Whether the upstream is a server of this process, which sends nothing about calls that are over.
            log: For a process, writes a line of its output to the gateway's log.
        """
        self._name = name
        self._abilities = abilities
        self._in_process = in_process
        self._log = log
        self._warned = False
        self._users: set[str] = set()
        """Owners that may have caused a message: principals that have called, and others that gave up a call. Two are
        enough to know that the connection has several.
        """
        self._transport: object = None
        """The process or connection that they used."""
        self.recipients: dict[int, Recipient] = {}
        """Request id -> the client that it's forwarded for."""
        self.level: str = ""
        """Minimum log level requested from the upstream."""
        self.conversation: Conversation
        """Conversation with the upstream; set before it starts."""

    def capabilities(self, revision: Revision, more: Mapping[str, object]) -> dict[str, Any]:
        """Return the capabilities to declare in a revision."""
        return declare(self._abilities, revision) | dict(more)

    def leave(self, request_id: int, *, answered: bool) -> None:
        """Remove a call that got its response, or that the client gave up and the upstream may still run."""
        recipient = self.recipients.pop(request_id)
        users = self._current_users()
        if len(users) < 2 and (recipient.signed_in or not answered) and not self._in_process:
            users.add(recipient.owner)

    def _current_users(self) -> set[str]:
        last = self.conversation.requests.last
        transport = None if last is None else last.transport
        if transport is not self._transport:  # a new process knows nothing of earlier calls
            self._transport = transport
            self._users.clear()
        return self._users

    def find(self, request_id: int) -> Recipient | None:
        """Return the recipient of a message; without a request, the only one that can have caused it.

        Of several calls of one session, it's the one that started first.
        """
        if request_id:
            return self.recipients.get(request_id)
        found = list(self.recipients.values())
        if not found or len(self._current_users() | {each.owner for each in found}) > 1:
            return None
        if len(found) > 1 and any(each.session != found[0].session or not each.session for each in found):
            return None
        return found[0]

    async def answer(self, method: str, params: bytes, request_id: int = 0) -> Any:
        """Forward a question to the client that made the call, and return the answer.

        Raises:
            ProtocolError: The client is unknown or doesn't respond.
        """
        if method == "ping":
            return {}
        source = self.conversation.negotiated.revision
        while True:
            recipient = self.find(request_id)
            if recipient is None:
                raise self._unknown_client_error(method)
            question = project_question(method, params, recipient, source, self._name)
            try:
                return project_answer(question, await recipient.ask(question), source)
            except ProtocolError:
                if request_id or not recipient.session or recipient in self.recipients.values():
                    raise
            # Its call has ended, but another call of the session is running, and may be the one that asks.
            if self.find(0) is None:
                raise ProtocolError(INVALID_REQUEST, "The call that asked has ended.")

    def _unknown_client_error(self, method: str) -> ProtocolError:
        if not self.recipients:
            return ProtocolError(INVALID_REQUEST, "No call is running, so no client can be asked.")
        text = f"The server {self._name!r} serves several calls, and its question doesn't say which one asks."
        if self._log is not None:
            check_declared(method, self._abilities)  # another isolation can't help where the policy refuses
            text += ' Set isolation = "per_principal" for it in the gateway, or "per_session" without sign-in.'
        if not self._warned:
            self._warned = True
            logger.warning("A question was refused. %s", text)
        return ProtocolError(INVALID_REQUEST, text)

    def receive(self, notification: Notification) -> None:
        """Pass a notification to the client of its call. Progress is matched by its token."""
        method, params = notification.method, bytes(notification.params)
        if method == COMPLETE:  # its id identifies the client
            for recipient in self.recipients.values():
                recipient.notify(COMPLETE, params)
        elif method == LOG or method not in NOTIFICATIONS:  # a log message, or one of an extension
            found = self.find(notification.request_id)
            if found is not None:
                found.notify(method, params)
            elif method == LOG and self._log is not None:
                self._log(params.decode("utf-8", "replace"), 0)
