"""Questions to the client and their answers, in both eras.

Handshake era: a question is a request on the call's reply channel, and `PendingQuestions` matches it with the answer,
which arrives as another message of the session. Per-request era: the function stops with `InputRequired` and runs
again.
"""

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec

from millstream._protocol.admission import require_capabilities
from millstream._protocol.errors import (
    INVALID_PARAMS,
    URL_ELICITATION_REQUIRED,
    Cancelled,
    Declined,
    ProtocolError,
    ToolError,
)
from millstream._protocol.jsonrpc import MAX_MEMBERS, too_many_members
from millstream._protocol.metadata import declares
from millstream._protocol.sealed import InputRequired, Rounds, digest
from millstream._server.calls.call import Call
from millstream._server.calls.pending_questions import OVER, PendingQuestions
from millstream._server.calls.questions import (
    ElicitUrl,
    Question,
    capability_of,
    method_of,
    params_of,
    read_answer,
)

_CALL_CANCELLED = "The call was canceled, so the client can't answer. Let the function end when it's canceled."
_SERVER_STOPPING = "The server is stopping, so it can't wait for the answer. Let the function end when it's canceled."


async def ask_by_request(call: Call, question: Question, open_questions: PendingQuestions) -> Any:
    """Ask a handshake client on the call's reply channel.

    Raises:
        ProtocolError: URL_ELICITATION_REQUIRED, if the channel can't carry the question but the error can.
        ToolError: The revision, client, or channel doesn't support the question, or the call is over.
    """
    if call.over:
        raise ToolError(OVER)
    if call.cancelled:
        raise ToolError(_SERVER_STOPPING if call.halted else _CALL_CANCELLED)
    method = method_of(question)
    revision = call.revision
    elicitation_id = (question.id or secrets.token_urlsafe(16)) if isinstance(question, ElicitUrl) else ""
    if method not in revision.asks or (isinstance(question, ElicitUrl) and "url" not in revision.elicitation_modes):
        raise ToolError(f"This needs {method}, which protocol revision {revision.date} doesn't have.")
    params = params_of(question, revision, elicitation_id=elicitation_id)
    if not call.open_reply_channel().asks:
        if isinstance(question, ElicitUrl) and revision.url_error:
            raise ProtocolError(URL_ELICITATION_REQUIRED, question.message, {"elicitations": [params]})
        if call.session is None:
            raise ToolError(f"This needs {method}, which needs a session. Send initialize first, then the session id.")
        raise ToolError(f"This needs {method}, which needs a streamed reply. Accept text/event-stream.")
    if not declares(call.client.capabilities, capability_of(question)):
        raise ToolError(f"This needs {method}, but the client didn't declare {_names(capability_of(question))}.")
    scope = "" if call.session is None else call.session.id
    asked = call.question_ids = set() if call.question_ids is None else call.question_ids
    raw = await open_questions.ask(call.send_to_caller, method, params, owner=call.owner, scope=scope, asked=asked)
    try:
        return read_answer(question, raw)
    except ProtocolError as exc:  # The client's mistake is in its answer, not in the request that is being answered.
        raise ToolError(exc.message) from exc


def _names(capability: Mapping[str, Any]) -> str:
    name, inner = next(iter(capability.items()))
    return f"{name}.{next(iter(inner))}" if inner else name


def ask_by_round(call: Call, replay: Rounds, questions: Mapping[str, tuple[str | None, Question]]) -> dict[str, Any]:
    """Return the answers for a per-request call, from this round or earlier ones.

    Args:
        questions: The caller's name of each question -> its explicit key or None, and the question.

    Raises:
        InputRequired: Some questions have no answer yet.
        ProtocolError: The client lacks a capability, or an answer has the wrong shape.
    """
    found: dict[str, bytes] = {}
    pending: dict[str, Any] = {}
    for name, (key, question) in questions.items():
        method, params = method_of(question), params_of(question, call.revision)
        slot, mark = replay.slot(key), digest(method, params)
        wire_key = replay.wire_key(slot, key, mark)
        raw = replay.find_settled(slot, mark)
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


def resolve_group(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the exception that a failed `asyncio.TaskGroup` of user code stands for: its one failure, or the questions
    of all its tasks. If all failures are messages for the model, return the first.
    """
    requests: dict[str, Any] = {}
    failures: list[BaseException] = []
    for leaf in _leaves(group):
        if isinstance(leaf, InputRequired):
            requests.update(leaf.requests)
        else:
            failures.append(leaf)
    if not failures:
        return InputRequired(requests)
    if len(failures) == 1 or all(isinstance(each, ToolError | Declined | Cancelled) for each in failures):
        return failures[0]
    return group


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for each in cast("BaseExceptionGroup[BaseException]", exc).exceptions:
            yield from _leaves(each)
    else:
        yield exc


def check_answer(question: Question, raw: bytes) -> None:
    """Check the shape of an answer before it's stored. Declining is an answer.

    Raises:
        ProtocolError: INVALID_PARAMS.
    """
    with contextlib.suppress(Declined, Cancelled):
        read_answer(question, raw)


def read_responses(raw: bytes) -> dict[str, msgspec.Raw]:
    """Return `inputResponses` with undecoded values.

    Raises:
        ProtocolError: INVALID_PARAMS, if it isn't an object or has more members than questions can have been asked.
    """
    if too_many_members(raw):
        raise ProtocolError(INVALID_PARAMS, f"Invalid inputResponses: more than {MAX_MEMBERS:,} members")
    try:
        return msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid inputResponses: {exc}") from exc
