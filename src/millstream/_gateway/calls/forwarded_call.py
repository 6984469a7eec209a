"""One call on its way: its questions, its task, and its answer."""

import asyncio
import contextlib
from collections.abc import Awaitable, Collection, Mapping
from functools import partial
from time import monotonic
from typing import Any

import msgspec
from msgspec import Raw, Struct, structs

from millstream import Cancelled, Declined, ProtocolError, ToolError
from millstream._gateway.calls.failures import no_response_error
from millstream._gateway.errors import InUse
from millstream._gateway.messages.route import Way
from millstream._gateway.messages.router import CallRecipient
from millstream._gateway.questions.abilities import QUESTIONS, declare
from millstream._gateway.questions.questions import (
    MAX_OPEN_QUESTIONS,
    ForwardedQuestion,
    Recipient,
    describe_refused,
    name_sender,
    project_answer,
    project_question,
)
from millstream._gateway.rules.results import call_error
from millstream._gateway.upstreams.links import Link
from millstream._gateway.upstreams.mcp import McpUpstream
from millstream._protocol.errors import (
    HEADER_MISMATCH,
    MISSING_CLIENT_CAPABILITY,
    REQUIRES_CAPABILITIES,
    RESOURCE_NOT_FOUND,
    UNSUPPORTED_VERSION,
    URL_ELICITATION_REQUIRED,
)
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.metadata import declares
from millstream._protocol.notifications import ElicitResult, EmptyResult, InputRequest, InputRequiredResult
from millstream._protocol.seal import InputRequired
from millstream._server.calls.call import Call
from millstream._server.dispatch import RelayedError
from millstream._tasks import retry_delay
from millstream.client import (
    AccessDenied,
    ClientError,
    InvalidResponse,
    RequestTimeout,
    ServerError,
    Task,
)
from millstream.client._endpoint import redact_error
from millstream.client._transports import get_secrets
from millstream.client.lowlevel import RawRequest
from millstream.protocol import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    MALFORMED,
    NEWEST_HANDSHAKE,
    Json,
    Revision,
    decoder,
    encode,
    members,
)

_CALL_OVER = "Invalid requestState: it belongs to another server. Repeat the request without requestState"
_MAX_SAVED_RESULT = 16 * 1024
"""Maximum size of a result that is saved while its call asks another question, in bytes."""
_MAX_KEPT = 4096
"""Maximum characters of a method or name by which a policy keeps its redactor."""
_RUN_BY_NAME = frozenset(("tools/call", "prompts/get", "resources/read"))
_FIRST_WAIT = 0.05
_LONGEST_WAIT = 5.0
INPUT_REQUIRED, _TASK_MARKER = b'"input_required"', b'"task"'
_decode_type = foreign_decoder(EmptyResult)
_decode_required = foreign_decoder(InputRequiredResult)
_decode_task = foreign_decoder(Task)
_decode_elicit = decoder(ElicitResult)


class _TaggedRecord(Struct, array_like=True, tag=True):
    """Data that later requests decode: an array that begins with the name of its class."""


class _Rounds(_TaggedRecord):
    """State that a per-request-era upstream expects back."""

    state: str | None
    keys: list[str]


class _Urls(_TaggedRecord):
    """Questions that ask the user to open URLs, by key."""

    questions: Json


class SavedResult(_TaggedRecord):
    result: Raw


class StoredTask(_TaggedRecord):
    """An upstream's task, stored between two client requests or two runs of the gateway's own task."""

    id: str
    asked_keys: list[str]
    """Keys of the questions that the client has received."""


_State = _Rounds | _Urls | StoredTask | SavedResult


class _Elicitations(Struct):
    """Data of an error that asks the user to open URLs."""

    elicitations: list[Json]


_decode_state = msgspec.json.Decoder(tuple[str, _State]).decode
"""Decodes the upstream's name and the state of a forwarded call, which are sealed between its client's requests."""


class ForwardedCall(CallRecipient):
    """A call that's forwarded to an upstream, with the state that the client's retries carry."""

    previous: _State | None = None
    _link: Link

    def __init__(
        self,
        call: Call,
        upstream: McpUpstream,
        ask: RawRequest,
        *,
        level: str = "",
        source: Revision = NEWEST_HANDSHAKE,
        verbatim: bool = False,
    ) -> None:
        """Read the call's saved state.

        Args:
            call, upstream: See `forward`.
            ask: The request to the upstream.
            level: Minimum level of log messages for the client, or empty for none.
            verbatim: See `forward`.
            source: Revision of the connection. `run` replaces it.

        Raises:
            ProtocolError: The state belongs to another upstream.
        """
        redactor = upstream.policy.redactor(ask.method[:_MAX_KEPT], ask.name[:_MAX_KEPT])  # callers choose both
        super().__init__(call, upstream.abilities(call), level, redactor)
        self.verbatim, self.allowed = verbatim, upstream.policy.questions
        self._upstream = upstream
        self._ask = ask
        self.source = source
        self.replays: bool = call.parked is None or call.parked.may_run_again
        """Whether the call runs again, if it ends the client's request with questions."""
        self._slot = f"gateway {ask.method} {ask.name}"
        raw = call.saved_value(self._slot)
        self.has_response: bool = raw is not None
        """Whether the upstream has responded to the call, in this round or before."""
        if raw is not None:
            name, self.previous = _decode_state(raw)
            if name != upstream.name:
                raise ProtocolError(INVALID_PARAMS, _CALL_OVER)

    def _end_request(self, questions: Mapping[str, Any], state: _State) -> InputRequired:
        """Return the exception that ends the client's request with questions, sealing a state for its retry."""
        self._save(state)
        return InputRequired(questions)

    def finish(self, result: bytes) -> None:
        """Save the result of a finished call, because the tool may ask another question and then run again."""
        if self.previous is not None and len(result) <= _MAX_SAVED_RESULT:
            self._save(SavedResult(Raw(result)))

    def _save(self, state: _State) -> None:
        """Save a state for the next run of the call."""
        self.call.save_value(self._slot, encode((self._upstream.name, state)))

    def run(self, link: Link, way: Way) -> Awaitable[bytes]:
        """Return the raw result."""
        self._link, self.source = link, link.conversation.negotiated.revision
        self._send = partial(_send, link, self._ask)
        if isinstance(self.previous, _Urls):
            self._check_urls(self.previous)
        self.call.begin()
        if way in (Way.VERBATIM, Way.STREAM):
            return self._send(self)
        has_tasks = self._ask.method == "tools/call" and self._upstream.has_tasks
        return self._run_with_task(way) if has_tasks else self._run_rounds(way)

    def _answers(self, keys: Collection[str]) -> Json:
        """Return the client's answers to questions."""
        return {key: raw for key, raw in (self.call.responses or {}).items() if key in keys}

    def _check_urls(self, previous: _Urls) -> None:
        """Check that the user agreed to open every URL that the upstream requested."""
        answers = self.call.responses or {}
        for key, question in previous.questions.items():
            if key not in answers:
                raise self._end_request({key: question}, previous)
            try:
                action = _decode_elicit(bytes(answers[key])).action
            except MALFORMED as exc:
                raise ProtocolError(INVALID_PARAMS, f"Invalid answer to {question['method']}") from exc
            if action == "decline":
                raise Declined("The user declined to open the URL.")
            if action != "accept":
                raise Cancelled("The user dismissed the URL.")

    # Per-request-era upstreams

    async def _run_rounds(self, way: Way) -> bytes:
        """Forward a call in rounds.

        A client is asked on the stream of its call, or in the per-request era, by the call's result.
        """
        call, members, loop = self.call, self._earlier_rounds(), asyncio.get_running_loop()
        latest = loop.time() + self._upstream.config.timeout
        for number in range(1, call.services.settings.max_rounds + 1):
            result = await self._send(self, encode(members)[1:-1])
            self.has_response = True
            required = input_required(result)
            if required is None:
                return result
            if way is Way.PASS and self.replays:
                raise self.pass_on(required)
            members = {}
            if required.input_requests:
                questions = self._questions(required.input_requests)
                members["inputResponses"] = {key: await self._answer(each) for key, each in questions.items()}
                latest = loop.time() + self._upstream.config.timeout
            elif loop.time() > latest:
                raise RequestTimeout("The upstream postponed its response for too long.")
            else:
                await asyncio.sleep(retry_delay(number, _FIRST_WAIT, _LONGEST_WAIT))
            if required.request_state is not None:
                members["requestState"] = required.request_state
        raise InvalidResponse("The upstream asked too many times without returning a result.")

    def _earlier_rounds(self) -> Json:
        """Return the members of parameters that continue the earlier rounds of a client."""
        call, before = self.call, self.previous
        if not isinstance(before, _Rounds):
            return {"inputResponses": dict(call.responses)} if call.responses and not call.state else {}
        answers = self._answers(before.keys)
        members: Json = {"inputResponses": answers} if answers else {}
        return members if before.state is None else {**members, "requestState": before.state}

    async def _answer(self, question: ForwardedQuestion) -> Raw:
        try:
            return project_answer(question, await self.ask(question), self.source)
        except ProtocolError as exc:
            raise call_error(
                self.call, f"The server asked the client, but didn't get an answer: {exc.message}", ToolError
            ) from exc

    # Tasks of upstreams

    async def _run_with_task(self, way: Way) -> bytes:
        """Forward a call that may become a task of the upstream and wait for that task.

        A client that supports tasks gets a task of the gateway. It stores the id of the upstream's task, so it survives
        questions and can continue in another worker.
        """
        call = self.call
        if isinstance(task := self.previous, StoredTask):
            if answers := self._answers(task.asked_keys):
                await self._ask_task("tasks/update", task.id, {"inputResponses": answers})
            return await self._follow_task(task, way)
        result = await self._run_rounds(way)
        created = _created_task(result)
        if created is None:
            return result
        task = StoredTask(created.task_id, [])
        if call.can_start_task:
            self._save(task)
            call.start_task()
        return await self._follow_task(task, way)

    async def _follow_task(self, stored: StoredTask, way: Way) -> bytes:
        call, message, count = self.call, "", 0
        try:
            while True:
                task = _read_task(await self._ask_task("tasks/get", stored.id, {}))
                if task.over:
                    if task.status == "cancelled":
                        raise ToolError("The server canceled the task.")
                    try:
                        return task.raw_outcome()
                    except ServerError as exc:
                        redact_error(exc, get_secrets(self._link.conversation.transport))
                        raise
                if task.status_message and task.status_message != message:
                    message, count = task.status_message, count + 1
                    self.progress(count, None, message)
                new = {key: each for key, each in task.input_requests.items() if key not in stored.asked_keys}
                if new:
                    stored.asked_keys += new
                    questions = self._questions(new)
                    if way is Way.PASS and self.replays:
                        raise self._end_request({key: each.request for key, each in questions.items()}, stored)
                    answers = {key: await self._answer(each) for key, each in questions.items()}
                    await self._ask_task("tasks/update", stored.id, {"inputResponses": answers})
                await asyncio.sleep(task.pause)
        except asyncio.CancelledError:
            if not call.halted:  # the client canceled; a stopping worker leaves the task running
                with contextlib.suppress(ClientError, TimeoutError):
                    async with asyncio.timeout(_LONGEST_WAIT):
                        await self._ask_task("tasks/cancel", stored.id, {})
            raise

    def _ask_task(self, method: str, task_id: str, params: Mapping[str, Any]) -> Awaitable[bytes]:
        body, meta = encode({"taskId": task_id, **params}), self._ask.meta
        ask = RawRequest(method=method, params=body, name=task_id, meta=meta, repeatable=True, rounds=False)
        return self._link.conversation.requests.ask(ask)

    def pass_on(self, required: InputRequiredResult) -> InputRequired:
        """Return the exception that ends the client's request with the questions from an upstream's result."""
        questions = {key: each.request for key, each in self._questions(required.input_requests).items()}
        return self._end_request(questions, _Rounds(required.request_state, list(questions)))

    def _questions(self, requests: Mapping[str, InputRequest]) -> dict[str, ForwardedQuestion]:
        """Convert the upstream's questions to the client's revision.

        Raises:
            ToolError, ProtocolError: The upstream asks something that the client didn't declare.
        """
        if len(requests) > MAX_OPEN_QUESTIONS:
            raise InvalidResponse(f"The upstream asked {len(requests)} questions at once.")
        sender = self._upstream.sender
        try:
            return {
                key: project_question(each.method, bytes(each.params), self, self.source, sender)
                for key, each in requests.items()
            }
        except ProtocolError as exc:
            raise call_error(
                self.call, f"The server asked something that this client can't answer: {exc.message}", ToolError
            ) from exc

    def convert_error(self, exc: ServerError | AccessDenied) -> BaseException:
        """Return the upstream's own error in the client's revision."""
        call = self.call
        if isinstance(exc, AccessDenied):
            return no_response_error(call, self._upstream, exc)
        required = members(members(exc.data).get("requiredCapabilities"))
        refused = sorted((QUESTIONS & required.keys()).difference(self.allowed))
        if exc.code == MISSING_CLIENT_CAPABILITY and refused:
            text = f"The server {self._upstream.name!r} couldn't ask a question. {describe_refused(refused)}"
            return call_error(call, text, ToolError)
        if self.verbatim:
            return RelayedError(exc.code, exc.message, exc.data)
        if exc.code == MISSING_CLIENT_CAPABILITY and call.revision.handshake and call.method in _RUN_BY_NAME:
            # These revisions have no such error, and a server that speaks them fails while the item runs.
            is_tool = call.method == "tools/call" and required
            text = f"{REQUIRES_CAPABILITIES} {', '.join(required)}." if is_tool else exc.message
            return call_error(call, text, ToolError)
        if exc.code == URL_ELICITATION_REQUIRED:
            return self._convert_url_error(exc)
        if call.method == "resources/read" and exc.code == INVALID_PARAMS and not self.source.handshake:
            return ProtocolError(RESOURCE_NOT_FOUND, exc.message, exc.data)
        if exc.code in (HEADER_MISMATCH, UNSUPPORTED_VERSION):  # about the gateway's request, not about the client's
            return ProtocolError(INTERNAL_ERROR, exc.message)
        return ProtocolError(exc.code, exc.message, exc.data)

    def _convert_url_error(self, exc: ServerError) -> BaseException:
        """Return the error that asks the user to open URLs first."""
        call, policy, sender = self.call, self._upstream.policy, self._upstream.sender
        try:
            urls = msgspec.convert(exc.data, _Elicitations).elicitations[:MAX_OPEN_QUESTIONS]
        except msgspec.ValidationError:
            urls = []
        if "elicitation" not in policy.questions:
            return call_error(call, exc.message, ToolError)
        if call.revision.url_error:
            named = [{**each, "message": name_sender(sender, each.get("message", ""))} for each in urls]
            return ProtocolError(exc.code, exc.message, {"elicitations": named})
        declared = declare(self.abilities, call.revision)
        if not call.revision.handshake and self.replays and urls and declares(declared, {"elicitation": {"url": {}}}):
            try:
                questions = {
                    f"url{number}": project_question(
                        "elicitation/create", encode({**each, "mode": "url"}), self, call.revision, sender
                    ).request
                    for number, each in enumerate(urls, 1)
                }
            except ProtocolError:
                return no_response_error(call, self._upstream, exc)
            return self._end_request(questions, _Urls(questions))
        addresses = " ".join(str(each.get("url", "")) for each in urls)
        return call_error(call, f"{exc.message} Open this URL first, then try again: {addresses}".strip(), ToolError)


async def _send(link: Link, ask: RawRequest, recipient: Recipient, extra: bytes = b"") -> bytes:
    """Send a request once, with `extra` members in its parameters."""
    requests, router, places, owner, answered = link.conversation.requests, link.router, link.places, ask.owner, False
    params = ask.params
    if extra:
        params = b"%b%b%b}" % (params[:-1], b"" if params == b"{}" else b",", extra)
    if places is not None and not await places.acquire(owner):
        raise InUse(places, owner)
    request_id = next(requests.ids)
    router.recipients[request_id] = recipient
    link.calls += 1
    try:
        progress = recipient.progress if recipient.wants_progress else None
        result = await requests.ask(structs.replace(ask, params=params, progress=progress, id=request_id))
        answered = True
        return result
    except ServerError as exc:
        answered = True
        if exc.code == URL_ELICITATION_REQUIRED:
            router.note_urls(recipient, exc.data)
        raise
    finally:
        router.leave(request_id, answered=answered)
        if places is not None:
            places.leave(owner)
        link.calls -= 1
        link.last_used = monotonic()


def input_required(result: bytes) -> InputRequiredResult | None:
    """Return the questions in a result, or None if there aren't any.

    Raises:
        InvalidResponse: The result is malformed.
    """
    try:
        if INPUT_REQUIRED not in result or _decode_type(result).result_type != "input_required":
            return None
        found = _decode_required(result)
    except MALFORMED as exc:
        raise InvalidResponse("The upstream sent a malformed question.") from exc
    if not found.input_requests and found.request_state is None:
        raise InvalidResponse("The upstream requires input, but sent neither questions nor a state.")
    return found


def _created_task(result: bytes) -> Task | None:
    """Return the task that a call became, or None for every other result.

    Raises:
        InvalidResponse: It can't be read.
    """
    try:
        return _read_task(result) if _TASK_MARKER in result and _decode_type(result).result_type == "task" else None
    except MALFORMED:
        return None


def _read_task(result: bytes) -> Task:
    """Return the task in a result.

    Raises:
        InvalidResponse: It can't be read.
    """
    try:
        return _decode_task(result)
    except MALFORMED as exc:
        raise InvalidResponse(f"The upstream's task can't be read: {exc}.") from exc
