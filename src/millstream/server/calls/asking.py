"""How a question reaches the client and its answer comes back, in both eras.

Handshake era: a request on the call's own line; `OpenQuestions` pairs it with the answer, which arrives as another
message of the same session. Per-request era: the function stops with `InputRequired` and is run again.
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from millstream.protocol.admission import require_capabilities
from millstream.protocol.errors import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    URL_ELICITATION_REQUIRED,
    Cancelled,
    Declined,
    ProtocolError,
    ToolError,
)
from millstream.protocol.jsonrpc import Envelope, request_message
from millstream.protocol.metadata import declares
from millstream.protocol.rounds import InputRequired, Rounds, digest
from millstream.server.calls.call import Call
from millstream.server.questions.questions import (
    ElicitUrl,
    Question,
    Sample,
    capability_of,
    method_of,
    params_of,
    read_answer,
)


class _PeerError(msgspec.Struct):
    code: int = INTERNAL_ERROR
    message: str = ""


_decode_error = msgspec.json.Decoder(_PeerError).decode


class OpenQuestions:
    """Requests to handshake clients that wait for an answer. Bounded; each ends with its call at the latest."""

    __slots__ = ("_by_owner", "_open", "_timeout", "max_open", "max_per_owner", "worker")

    def __init__(self, *, max_open: int, max_per_owner: int, timeout: float) -> None:
        self._by_owner: Counter[str] = Counter()
        self._open: dict[str, tuple[str, asyncio.Future[bytes]]] = {}
        self._timeout = timeout
        self.max_open = max_open
        self.max_per_owner = max_per_owner
        self.worker = secrets.token_hex(4)
        """Part of every question's id: the worker on which the call waits."""

    def __len__(self) -> int:
        return len(self._open)

    async def ask(self, call: Call, method: str, params: Mapping[str, Any]) -> bytes:
        """Send a request on the call's line and wait for the result.

        Returns:
            The raw JSON of the result.

        Raises:
            ToolError: the client answered with an error, took too long, or too many questions are open.
        """
        owner = call.principal.id if call.principal is not None else ""
        if len(self._open) >= self.max_open or self._by_owner[owner] >= self.max_per_owner:
            raise ToolError("Too many questions are open. Try again later.")
        question_id = f"{self.worker}-{secrets.token_hex(16)}"
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        scope = call.session.id if call.session is not None else ""
        self._open[question_id] = (scope, future)
        self._by_owner[owner] += 1
        try:
            await call.open_line().send(request_message(question_id, method, params))
            async with asyncio.timeout(self._timeout):
                return await future
        except TimeoutError:
            raise ToolError(f"The client did not answer {method} in {self._timeout:g} seconds.") from None
        finally:
            del self._open[question_id]
            self._by_owner[owner] -= 1
            if not self._by_owner[owner]:
                del self._by_owner[owner]

    def answer(self, message: Envelope, scope: str) -> bool:
        """Give an answer to whoever waits; False when nobody of this session asked that."""
        entry = self._open.get(message.id) if isinstance(message.id, str) else None
        if entry is None or entry[0] != scope or entry[1].done():
            return False
        future = entry[1]
        if message.error:
            future.set_exception(_peer_error(message.error))
        else:
            future.set_result(message.result)
        return True

    def end(self, scope: str) -> None:
        """The client of a session or connection is gone for good: whoever waits for its answers is told."""
        for asked, future in list(self._open.values()):
            if asked == scope and not future.done():
                future.set_exception(ToolError("The client has gone away and cannot answer."))


def _peer_error(raw: bytes) -> Exception:
    try:
        error = _decode_error(raw)
    except msgspec.DecodeError:
        return ToolError("The client answered with an error.")
    if error.code == -1:
        return Declined(error.message or "The person declined.")
    if error.code == METHOD_NOT_FOUND:
        return ToolError(f"The client does not support this: {error.message}")
    return ToolError(f"The client answered with an error: {error.message} ({error.code})")


async def ask_by_request(call: Call, question: Question, open_questions: OpenQuestions) -> Any:
    """Ask a handshake client on the call's line.

    Raises:
        ProtocolError: URL_ELICITATION_REQUIRED where the line cannot carry the question but the error can.
        ToolError: the revision, client or line cannot do it.
    """
    method = method_of(question)
    revision = call.revision
    elicitation_id = secrets.token_urlsafe(16) if isinstance(question, ElicitUrl) else ""
    known = method in revision.asks and not (
        isinstance(question, ElicitUrl) and "url" not in revision.elicitation_modes
    )
    if not known:
        raise ToolError(f"This needs {method}, which protocol revision {revision.date} does not have.")
    if isinstance(question, Sample) and (question.tools or question.tool_choice) and not revision.sampling_tools:
        raise ToolError(f"This needs sampling with tools, which protocol revision {revision.date} does not have.")
    params = params_of(question, revision, elicitation_id=elicitation_id)
    if not call.open_line().asks:
        if isinstance(question, ElicitUrl) and revision.url_error:
            raise ProtocolError(URL_ELICITATION_REQUIRED, question.message, {"elicitations": [params]})
        if call.session is None:
            raise ToolError(f"This needs {method}, which needs a session: initialize, and send the session's id.")
        raise ToolError(f"This needs {method}, which needs a reply that can be a stream: accept text/event-stream.")
    if not declares(call.client.capabilities, capability_of(question)):
        raise ToolError(f"This needs {method}: the client did not declare {_names(capability_of(question))}.")
    return read_answer(question, await open_questions.ask(call, method, params))


def _names(capability: Mapping[str, Any]) -> str:
    name, inner = next(iter(capability.items()))
    return f"{name}.{next(iter(inner))}" if inner else name


def ask_by_round(call: Call, replay: Rounds, questions: Mapping[str, tuple[str | None, Question]]) -> dict[str, Any]:
    """Answers of a per-request call, from this round or earlier ones.

    Args:
        questions: by the caller's own name, each with its explicit key or None.

    Raises:
        InputRequired: some are not answered yet.
        ProtocolError: the client lacks a capability, or an answer has the wrong shape.
    """
    found: dict[str, bytes] = {}
    pending: dict[str, Any] = {}
    for name, (key, question) in questions.items():
        method, params = method_of(question), params_of(question, call.revision)
        slot, mark = replay.slot(key), digest(method, params)
        wire_key = replay.wire_key(slot, key, mark)
        raw = replay.settled(slot, mark)
        if raw is None:
            raw = replay.response(slot, wire_key, mark)
            if raw is not None:
                check_answer(question, raw)
                replay.settle(slot, mark, raw)
        if raw is None:
            require_capabilities(call.client.capabilities, capability_of(question))
            pending[wire_key] = {"method": method, "params": params}
            replay.pend(slot, mark)
        else:
            found[name] = raw
    if pending:
        raise InputRequired(pending)
    return {name: read_answer(questions[name][1], raw) for name, raw in found.items()}


def check_answer(question: Question, raw: bytes) -> None:
    """Refuse an answer of the wrong shape before it is kept; declining is an answer.

    Raises:
        ProtocolError: INVALID_PARAMS.
    """
    with contextlib.suppress(Declined, Cancelled):
        read_answer(question, raw)


def read_responses(raw: bytes) -> dict[str, msgspec.Raw]:
    """`inputResponses` with their values still raw.

    Raises:
        ProtocolError: INVALID_PARAMS when it is no object.
    """
    try:
        return msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid inputResponses: {exc}") from exc
