"""The playground of the chat page: a model selected by the operator uses this server's tools.

A conversation lasts as long as its WebSocket, so it stays on one worker. Its calls go through the dispatcher with the
caller's principal, scopes, and limits. The model's key stays on the server.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from functools import partial
from typing import Any, Literal, Self

import msgspec
from msgspec import Struct

from millstream import Principal, ProtocolError
from millstream._http.message import HttpRequest, Response
from millstream._http.websocket import TRY_AGAIN_LATER, Socket
from millstream._parts import PartHost
from millstream._protocol.jsonrpc import check_text
from millstream._server.dispatch import Dispatcher
from millstream._tasks import Tasks
from millstream._transports.connection import ClientConnection, MemoryPipe
from millstream._web.live import reply
from millstream.agent import (
    Agent,
    AgentError,
    Approval,
    Configuration,
    ConfigurationError,
    Event,
    LanguageModel,
    Limits,
    ModelAuthError,
    ServerConfig,
    ToolEnd,
    ToolStart,
)
from millstream.client import ClientError, ElicitAnswer, Listener, Question
from millstream.client._transports.memory import MemoryTransport
from millstream.protocol import Json, encode

logger = logging.getLogger("millstream")

PATH = "/chat/playground"
SOCKET_PATH = "/chat/playground/talk"
CHAT = "millstream:chat"
"""Scope required for the playground if callers sign in, because it spends the operator's tokens."""
LIMITS = Limits(
    max_model_requests=12, max_tokens=200_000, max_result=20_000, max_parallel=4, max_attempts=3, longest_wait=20.0
)
MAX_TEXT = 16_000
"""Maximum characters per message."""
MAX_TURNS = 50
MAX_MESSAGES = 1024 * 1024
"""Maximum size of a conversation, in bytes, as sent to the model."""
MAX_CONVERSATIONS = 32
MAX_CONVERSATIONS_EACH = 3
"""Maximum open conversations per caller."""

Decision = Literal["approve", "always", "decline"]


class SendText(Struct, frozen=True, tag="say"):
    """A message from the user."""

    text: str


class AnswerApproval(Struct, frozen=True, tag="decide"):
    """The user's decision on a call."""

    id: str
    decision: Decision


class AnswerForm(Struct, frozen=True, tag="fill"):
    """The user's form values. None declines."""

    id: str
    values: Json | None = None


class StopAnswer(Struct, frozen=True, tag="stop"):
    """The user's request to stop the answer."""


_decode = msgspec.json.Decoder(SendText | AnswerApproval | AnswerForm | StopAnswer).decode


class CallerTarget(Struct, frozen=True, eq=False):
    """This server as the target of an in-process client that acts for one caller."""

    dispatcher: Dispatcher
    _peer: HttpRequest

    def running(self) -> AbstractAsyncContextManager[Self]:
        """Return this target, because the server is already running."""
        return nullcontext(self)

    def new_transport(self, listener: Listener, background: Tasks) -> MemoryTransport:
        """Return a transport that calls with the caller's principal and headers."""
        peer = self._peer
        pipe = partial(
            MemoryPipe, principal=peer.principal, peer=peer.peer, headers=peer.headers, transport="playground"
        )
        return MemoryTransport(self, listener, background, pipe=pipe)


class Playground:
    """The handlers of the playground and its conversations, one instance for each running server."""

    def __init__(self, host: PartHost, name: str, server: Mapping[str, str]) -> None:
        """Create it. The first message reads the configuration of the model, and connects.

        Args:
            host: The running server, which executes the calls.
            server: Its ``title`` and ``version``, for display.
        """
        self._host = host
        self._name = name
        self._server = server
        self._open_counts: Counter[str] = Counter()

    def model(self) -> LanguageModel:
        """Return the configured language model.

        Raises:
            ConfigurationError: No model is configured.
        """
        return Configuration.load(".env", os.environ).model()

    async def status(self, request: HttpRequest) -> Response:
        """Handle `GET`: return ``state`` (``ready``, ``off``, or ``forbidden``), and ``model`` or ``reason``."""
        here = self._host.guard is None
        found: Json
        if not here and (request.principal is None or not request.principal.has({CHAT})):
            found = {"state": "forbidden", "reason": f"Your key or account needs the scope {CHAT}."}
        else:
            try:
                model = self.model()
            except ConfigurationError as exc:
                found = {"state": "off", "reason": str(exc) if here else "The operator hasn't configured a model."}
            else:
                found = {"state": "ready", "model": model.name}
        found["server"] = self._server
        return reply(found)

    async def admit(self, request: HttpRequest) -> Principal | Response | None:
        """Return the caller of a WebSocket handshake, or the response that rejects it."""
        guard = self._host.guard
        if guard is None:
            if not self._host.is_local(request.peer, request.headers, request.is_http_1_0):
                return Response(b"Sign-in is required for the playground.\n", 403, b"content-type: text/plain\r\n")
            return None
        outcome = await guard(request)
        if isinstance(outcome, Principal) and not outcome.has({CHAT}):
            return guard.challenges.insufficient(request, {CHAT})
        return outcome

    def open(self, connection: ClientConnection, outbox: Socket, peer: HttpRequest) -> "PlaygroundConversation":
        """Begin a conversation on a socket, or close the socket if too many conversations are open."""
        owner = peer.owner
        target = CallerTarget(self._host.dispatcher, peer)
        full = self._open_counts[owner] >= MAX_CONVERSATIONS_EACH or self._open_counts.total() >= MAX_CONVERSATIONS
        if full:
            outbox.end(TRY_AGAIN_LATER, "You have too many conversations open. Close one first.")

        def on_close() -> None:
            self._open_counts -= Counter([owner])  # removes zero counts

        self._open_counts[owner] += 1
        server = ServerConfig(target, name=self._name)
        return PlaygroundConversation(server, self.model, outbox, on_close)


class PlaygroundConversation(Struct, eq=False):
    """One conversation: receives the browser's messages and sends events."""

    _server: ServerConfig
    _model: Callable[[], LanguageModel]
    _outbox: Socket
    _on_close: Callable[[], None]
    _agent: Agent | None = None
    _task: asyncio.Task[None] | None = None
    _turns: int = 0
    _last_id: int = 0
    _open_questions: dict[str, asyncio.Future[Any]] = {}
    """Questions to the user: id -> future of the decision or the values."""
    _always: set[tuple[str, str]] = set()
    _start_times: dict[str, float] = {}
    """Running calls: id -> start time."""

    async def take(self, data: bytes) -> None:
        """Handle one message from the browser."""
        try:
            check_text(data)
            message = _decode(data)
        except (ProtocolError, msgspec.MsgspecError) as exc:
            self._fail(f"The message is malformed. {exc}")
            return
        if isinstance(message, SendText):
            self._start_answer(message.text)
        elif isinstance(message, StopAnswer):
            if self._task is not None:
                self._task.cancel()
        else:
            waiting = self._open_questions.pop(message.id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message.decision if isinstance(message, AnswerApproval) else message.values)

    async def close(self) -> None:
        """End the conversation after the socket was closed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        agent, self._agent = self._agent, None
        try:
            if agent is not None:
                await agent.__aexit__(None, None, None)
        finally:
            self._on_close()

    def _start_answer(self, text: str) -> None:
        reason = self._rejection_reason(text)
        if reason:
            self._fail(reason)
            return
        self._turns += 1
        self._task = asyncio.create_task(self._answer(text))

    def _rejection_reason(self, text: str) -> str:
        if self._task is not None and not self._task.done():
            return "The model is still answering. Wait, or stop the answer."
        if not text.strip():
            return "The message is empty. Enter a question."
        if len(text) > MAX_TEXT:
            return f"A message has at most {MAX_TEXT:,} characters."
        messages = [] if self._agent is None else self._agent.messages
        if self._turns >= MAX_TURNS or len(encode(messages)) > MAX_MESSAGES:
            return "This conversation is full. Start a new one."
        return ""

    async def _answer(self, text: str) -> None:
        try:
            if self._agent is None:
                agent = Agent(self._model(), [self._server], approve=self._approve, elicit=self._elicit, limits=LIMITS)
                self._agent = await agent.__aenter__()
            async with aclosing(self._agent.say(text)) as events:
                async for event in events:
                    self._send_event(event)
                    await self._outbox.drain()
        except asyncio.CancelledError:
            self._send({"type": "stopped"})
        except ModelAuthError:
            # The API's error may quote the key.
            logger.warning("The playground's model API rejected its key")
            self._fail("The model's API rejected this server's API key.")
        except (AgentError, ClientError) as exc:
            self._fail(str(exc))
        except Exception:
            logger.exception("The playground failed to answer")
            self._fail("The server failed. See its log.")
        finally:
            self._open_questions.clear()
            self._start_times.clear()
            self._send({"type": "idle"})

    def _send_event(self, event: Event) -> None:
        if isinstance(event, ToolStart):
            self._start_times[event.id] = time.monotonic()
        if isinstance(event, ToolEnd):
            seconds = time.monotonic() - self._start_times.pop(event.id, time.monotonic())
            self._send({**msgspec.to_builtins(event), "milliseconds": round(seconds * 1000, 1)})
        else:
            self._outbox.answer(encode(event))

    async def _approve(self, request: Approval) -> bool:
        key = request.kind, request.tool
        if key in self._always:
            return True
        decision = await self._ask("approval", msgspec.to_builtins(request))
        if decision == "always":
            self._always.add(key)
        return decision in ("approve", "always")

    async def _elicit(self, server: str, question: Question) -> ElicitAnswer:
        fields = {"message": question.message, "url": question.url, "schema": question.requested_schema}
        values = await self._ask("question", fields)
        if question.url:
            return values is not None
        return "decline" if values is None else values

    async def _ask(self, kind: str, fields: Mapping[str, Any]) -> Any:
        self._last_id += 1
        id = str(self._last_id)
        waiting = self._open_questions[id] = asyncio.get_running_loop().create_future()
        self._send({**fields, "type": kind, "id": id})
        return await waiting

    def _fail(self, reason: str) -> None:
        self._send({"type": "failed", "reason": reason})

    def _send(self, message: Mapping[str, Any]) -> None:
        self._outbox.answer(encode(message))
