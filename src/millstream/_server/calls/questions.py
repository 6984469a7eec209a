"""The questions that a server asks a client, for every revision: `Elicit`, `ElicitUrl`, `Sample`, and `Roots`.

Each question has the capability that it needs, its parameters for a revision, and a decoder of its answer.

Handshake era: a question is a request on the call's reply channel, and `PendingQuestions` matches it with the answer,
which arrives as another message of the session. Per-request era: the client's request ends with the
question, and the function waits for the next one (see `parked_calls`).

A form (``requestedSchema``) is one flat object of strings, numbers, booleans, and choices (MCP 2025-11-25,
client/elicitation). Other types are rejected before the question is sent. Constraints that a form can't express
(``pattern``, exclusive bounds) are checked on the answer.

The conversation of a sampling request is validated before it's sent: tool uses and results must balance, and a message
with results has no other content. The function that asks gets the error for a conversation that breaks these rules
(https://modelcontextprotocol.io/specification/2025-11-25/client/sampling#message-content-constraints).
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeGuard, cast, get_args

import msgspec
from msgspec import Meta, Struct

from millstream._protocol.admission import require_capabilities
from millstream._protocol.content import (
    BLOCKS,
    Content,
    Message,
    SamplingContent,
    ToolResultBlock,
    ToolUse,
)
from millstream._protocol.errors import (
    INVALID_PARAMS,
    URL_ELICITATION_REQUIRED,
    Cancelled,
    Declined,
    ProtocolError,
    ToolError,
)
from millstream._protocol.foreign import foreign_decoder
from millstream._protocol.json_schema import Schema, drop_null, is_array, is_integral, is_object, members
from millstream._protocol.jsonrpc import (
    MALFORMED,
    MAX_MEMBERS,
    Json,
    decode_members,
    decode_object,
    too_many_members,
)
from millstream._protocol.metadata import declares
from millstream._protocol.notifications import (
    CreateMessageRequestParams,
    ElicitRequestParams,
    ElicitResult,
    ListRootsResult,
    Params,
    SampleResult,
)
from millstream._protocol.revisions import Revision, project_conversation, project_form
from millstream._protocol.seal import InputRequired, Rounds, digest
from millstream._server.calls.call import Call
from millstream._server.calls.pending_questions import OVER, PendingQuestions
from millstream._server.functions.engine import VALUE, engine_of_type, read_messages
from millstream._server.functions.msgspec_engine import Engine, once_per_type
from millstream._server.functions.parameters import may_be_type, what_to_write
from millstream._server.functions.patterns import matcher_of, search
from millstream._server.functions.problems import Problem, explain, find_problems
from millstream._text import shorten

TEXTS = ("type", "title", "description", "default")
KEYWORDS = {
    "string": (*TEXTS, "minLength", "maxLength", "format", "enum", "enumNames", "oneOf"),
    "integer": (*TEXTS, "minimum", "maximum"),
    "number": (*TEXTS, "minimum", "maximum"),
    "boolean": TEXTS,
    "array": (*TEXTS, "minItems", "maxItems", "items"),
}
"""The keywords for each kind of field, from the specification's PrimitiveSchemaDefinition."""
FORMATS = frozenset(("email", "uri", "date", "date-time"))
FIELDS = "a form can contain only strings, numbers, booleans, dates, choices of strings, and lists of such choices"


class Form(Struct, frozen=True, eq=False):
    """The form for a type, and the decoder of its answers."""

    schema: Schema
    engine: Engine
    plain: bool
    """Whether the form asks for a single value, such as a `str` or enum, in the field `VALUE`."""


def form_of(answer: Any) -> Form:
    """Return the form for a type: a dataclass, Struct, TypedDict, or pydantic model, a single value, or choices (see
    `_type_of_choices`).

    Raises:
        TypeError: The type isn't flat, or it isn't a type. The text identifies the field or suggests a replacement.
    """
    kind = _type_of_choices(answer)
    if answer is None or not may_be_type(kind):
        raise TypeError(f"A form can't ask for {answer!r}: {what_to_write(answer)}.")
    return _form_of_type(kind)


def _type_of_choices(answer: Any) -> Any:
    """Return the type for choices in fastmcp's notation, or any other answer unchanged.

    ``["a", "b"]`` offers strings, ``{"a": {"title": "An A"}}`` strings with titles, and a list that contains one of
    these allows several choices.
    """
    if is_array(answer) and answer and all(isinstance(each, str) for each in answer):
        return Literal[tuple(answer)]
    if is_array(answer) and len(answer) == 1 and (is_array(answer[0]) or is_object(answer[0])):
        inner = _type_of_choices(answer[0])
        return answer if inner is answer[0] else list[inner]  # type: ignore[valid-type]  # a value here
    if _has_titles(answer):
        titled = [{"const": name, "title": about.get("title", name)} for name, about in answer.items()]
        return Annotated[Literal[tuple(answer)], Meta(extra_json_schema={"oneOf": titled})]
    return answer


def _has_titles(answer: Any) -> TypeGuard[dict[str, Json]]:
    return (
        is_object(answer)
        and bool(answer)
        and all(is_object(about) and about.keys() <= {"title"} for about in answer.values())
    )


@once_per_type
def _form_of_type(answer: Any) -> Form:
    engine = engine_of_type(answer)
    schema: Schema = engine.input_schema["properties"][VALUE]
    plain = schema.get("type") != "object"
    schema = engine.input_schema if plain else schema
    properties = {name: _form_field(name, node) for name, node in schema.get("properties", {}).items()}
    return Form({"type": "object", "properties": properties, "required": schema.get("required", [])}, engine, plain)


def requested_schema(answer: Any) -> Schema:
    """Return the form for a type, or a schema unchanged. Raises the errors of `form_of`, and `PatternError`."""
    if not _is_schema(answer):
        return form_of(answer).schema
    for node in members(answer.get("properties")).values():
        if "pattern" in members(node):
            matcher_of(node["pattern"])
    found: Schema = answer
    return found


def _is_schema(answer: Any) -> bool:
    return is_object(answer) and ("properties" in answer or answer.get("type") == "object")


def _form_field(name: str, node: Schema) -> Schema:
    node = drop_null(node)
    if "const" in node:
        node = {**node, "enum": [node["const"]]}
    kind = node.get("type")
    problem = f"a form can't contain the field {name!r}: {FIELDS}"
    if not isinstance(kind, str) or kind not in KEYWORDS or ("enum" in node and kind != "string"):
        raise TypeError(problem)
    choices = _choices_of(node.get("items")) if kind == "array" else {}
    if choices is None:
        raise TypeError(problem)
    if node.get("format", "date") not in FORMATS or "contentEncoding" in node:
        raise TypeError(problem)
    field = {key: value for key, value in _inclusive(node).items() if key in KEYWORDS[kind]}
    if field.get("default", 0) is None:
        del field["default"]  # `x: str = None`: optional, and null isn't text
    if choices:
        field["items"] = choices
    elif "oneOf" in field:
        field.pop("enum", None)
    return field


def _choices_of(items: Any) -> Schema | None:
    """Return the items of a multi-selection: titled constants or an enum of strings. Return None for anything else."""
    if not is_object(items):
        return None
    titled = items.get("oneOf") or items.get("anyOf")
    if titled and all(isinstance(members(each).get("const"), str) for each in titled):
        return {"anyOf": titled}  # includes a pydantic field's `json_schema_extra`
    if items.get("type") != "string" or "enum" not in items:
        return None
    return {"anyOf": titled} if titled else {"type": "string", "enum": items["enum"]}


def _inclusive(node: Schema) -> Schema:
    """Replace exclusive bounds of integers with inclusive ones."""
    if node["type"] != "integer":
        return node
    bounds: Schema = {}
    if "exclusiveMinimum" in node:
        bounds["minimum"] = node["exclusiveMinimum"] + 1
    if "exclusiveMaximum" in node:
        bounds["maximum"] = node["exclusiveMaximum"] - 1
    return bounds | node


def parse_answer(content: Json, answer: Any) -> Any:
    """Return the answer as the requested type, or for a schema as JSON data, with 2.0 as 2 and a lone text as a list.

    Raises:
        ProtocolError: The answer doesn't match the form.
    """
    schema = requested_schema(answer)
    properties: dict[str, Schema] = schema.get("properties", {})
    content = {
        name: [value]
        if properties.get(name, {}).get("type") == "array" and isinstance(value, str)
        else is_integral(value)
        for name, value in content.items()
    }
    if _is_schema(answer):
        if problems := find_problems(schema, content, matches=search):
            raise _wrong_answer(problems, schema)
        return content
    form = form_of(answer)
    values = content if form.plain else {VALUE: content}
    try:
        found = getattr(form.engine.convert(values), VALUE)
    except msgspec.ValidationError as error:
        problems = form.engine.problems(error, values)
        if not form.plain:
            problems = [each._replace(path=each.path[1:]) for each in problems]
        raise _wrong_answer(problems, schema) from error
    # Choices may be in the schema of a single field.
    chosen = {name: content[name] for name in content.keys() & properties if "items" in properties[name]}
    if problems := list(find_problems({"properties": properties}, chosen)):
        raise _wrong_answer(problems, schema)
    return found


def _wrong_answer(problems: list[Problem], schema: Schema) -> ProtocolError:
    why = shorten(explain(problems, schema))
    return ProtocolError(INVALID_PARAMS, f"The answer doesn't match the form: {why}")


def check_conversation(messages: Sequence[Message]) -> None:
    """Check the rules that hold in every revision.

    Raises:
        ValueError: A message breaks a rule. The message identifies it and suggests a fix.
    """
    asked: Counter[str] = Counter()
    for number, message in enumerate(messages, 1):
        uses, results = _tools_of(message, f"Message {number} of the conversation")
        if results != asked:
            raise ValueError(
                f"Message {number} of the conversation must contain results for the previous message's "
                f"tool uses ({_ids(asked)}), but has results for ({_ids(results)}). The user's next message must "
                "contain exactly one tool result per tool use and nothing else."
            )
        asked = uses
    if asked:
        raise ValueError(f"The conversation ends before the tool uses {_ids(asked)} have tool results. Add them.")


_NOT_FOR_MODELS = tuple(each for each in BLOCKS if each not in get_args(SamplingContent))


def _tools_of(message: Message, where: str) -> tuple[Counter[str], Counter[str]]:
    """Return the ids of a message's tool uses and tool results."""
    blocks = message.blocks
    for block in blocks:
        if isinstance(block, _NOT_FOR_MODELS):
            kind = type(block).__name__
            raise ValueError(f"{where} contains content of the type {kind}, which models don't read. Write it as text.")
        speaker = "assistant" if isinstance(block, ToolUse) else "user"
        if isinstance(block, ToolUse | ToolResultBlock) and message.role != speaker:
            raise ValueError(f"{where} contains a {type(block).__name__}, so its role must be {speaker!r}.")
    uses = Counter(block.id for block in blocks if isinstance(block, ToolUse))
    results = Counter(block.tool_use_id for block in blocks if isinstance(block, ToolResultBlock))
    if results and results.total() != len(blocks):
        raise ValueError(f"{where} mixes tool results with other content. Put the other content into a later message.")
    return uses, results


def _ids(counted: Counter[str]) -> str:
    return ", ".join(map(repr, counted.elements())) or "none"


class Elicit(Struct, frozen=True):
    """A form for the user: ``Elicit("Where to?", Address)``.

    `answer` is a dataclass, Struct, TypedDict, or pydantic model with flat primitive fields, or a JSON Schema object.
    The result is a value of that type, or a dict for a schema.
    """

    message: str
    answer: Any


class ElicitUrl(Struct, frozen=True):
    """A URL for the user to open, for secrets and payments: ``ElicitUrl("Please pay", url)``.

    Accepting means consent to open it, not completion.
    """

    message: str
    url: str
    id: str = ""
    """The id of the question, for revisions that have one. The default is random."""


Messages = str | Message | Content | Sequence[str | Message | Content]
"""The conversation that a model continues: text and content blocks from the user, and messages."""


class Sample(Struct, frozen=True):
    """A conversation for the client's model to continue: ``Sample("Say hello", max_tokens=50)``."""

    messages: Messages
    max_tokens: int = 1024
    system: str | None = None
    temperature: float | None = None
    stop_sequences: Sequence[str] | None = None
    preferences: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None


class Roots(Struct, frozen=True):
    """A request for the folders that the user opened: ``await ctx.ask(folders=Roots())``."""


Question = Elicit | ElicitUrl | Sample | Roots


_METHODS: Mapping[type, str] = {
    Elicit: "elicitation/create",
    ElicitUrl: "elicitation/create",
    Sample: "sampling/createMessage",
    Roots: "roots/list",
}


def method_of(question: Question) -> str:
    """Return the method of a question."""
    return _METHODS[type(question)]


def capability_of(question: Question) -> Json:
    """Return the client capabilities that a question needs, as a ClientCapabilities object."""
    if isinstance(question, Elicit):
        return {"elicitation": {"form": {}}}
    if isinstance(question, ElicitUrl):
        return {"elicitation": {"url": {}}}
    if isinstance(question, Sample):
        return {"sampling": {"tools": {}} if _with_tools(question) else {}}
    return {"roots": {}}


def _with_tools(question: Sample) -> bool:
    blocks = (block for message in read_messages(question.messages) for block in message.blocks)
    return bool(question.tools or question.tool_choice) or any(isinstance(b, ToolUse | ToolResultBlock) for b in blocks)


def params_of(question: Question, revision: Revision, *, elicitation_id: str = "") -> Params:
    """Return the parameters of a question for a revision.

    Args:
        revision: The client's revision.
        elicitation_id: The id for URL questions, in revisions that have one.

    Raises:
        TypeError: The form isn't flat.
        ValueError: The conversation breaks the rules of sampling.
        ToolError: The revision doesn't support the question.
    """
    if isinstance(question, Elicit):
        schema = project_form(requested_schema(question.answer), revision)
        mode = "form" if "url" in revision.elicitation_modes else None
        return ElicitRequestParams(mode=mode, message=question.message, requested_schema=schema)
    if isinstance(question, ElicitUrl):
        known = elicitation_id if revision.elicitation_ids else None
        return ElicitRequestParams(mode="url", message=question.message, url=question.url, elicitation_id=known)
    if isinstance(question, Roots):
        return Params()
    messages = read_messages(question.messages)
    check_conversation(messages)
    if _with_tools(question) and not revision.sampling_tools:
        raise ToolError(f"This requires sampling with tools, which protocol revision {revision.date} doesn't support.")
    return CreateMessageRequestParams(
        messages=project_conversation(messages, revision),
        max_tokens=question.max_tokens,
        system_prompt=question.system,
        temperature=question.temperature,
        stop_sequences=question.stop_sequences,
        model_preferences=question.preferences,
        metadata=question.metadata,
        tools=question.tools,
        tool_choice=question.tool_choice,
    )


_decode_elicit = foreign_decoder(ElicitResult)
_decode_sample = foreign_decoder(SampleResult)
_decode_roots = foreign_decoder(ListRootsResult)


def read_answer(question: Question, raw: bytes) -> Any:
    """Return the answer to a question.

    Raises:
        Declined: The user declined.
        Cancelled: The user dismissed the question.
        ProtocolError: INVALID_PARAMS, for an answer with the wrong shape.
    """
    try:
        if isinstance(question, Sample):
            return _decode_sample(raw)
        if isinstance(question, Roots):
            return _decode_roots(raw).roots
        result = _decode_elicit(raw)
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid answer to {method_of(question)}: {shorten(str(exc))}") from exc
    if result.action in ("decline", "reject"):  # its name in drafts of 2025-06-18
        raise Declined("The user declined to answer.")
    if result.action == "cancel":
        raise Cancelled("The user dismissed the question.")
    if result.action != "accept":
        raise ProtocolError(INVALID_PARAMS, "Invalid answer: action must be accept, decline, or cancel")
    if isinstance(question, ElicitUrl):
        return None
    raw = bytes(result.content)
    if too_many_members(raw):
        raise ProtocolError(INVALID_PARAMS, f"Invalid answer: content has more than {MAX_MEMBERS:,} members")
    try:
        content = decode_object(b"{}" if raw in (b"", b"null") else raw)
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid answer: content must be an object ({exc})") from exc
    return parse_answer(content, question.answer)


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
        raise ToolError(f"This requires {method}, which protocol revision {revision.date} doesn't support.")
    params = params_of(question, revision, elicitation_id=elicitation_id)
    if not call.open_reply_channel().asks:
        if isinstance(question, ElicitUrl) and revision.url_error:
            raise ProtocolError(URL_ELICITATION_REQUIRED, question.message, {"elicitations": [params]})
        if call.session is None:
            raise ToolError(
                f"This requires {method}, which needs a session. Send initialize first, then the session id."
            )
        raise ToolError(f"This requires {method}, which needs a streamed reply. Accept text/event-stream.")
    if not declares(call.client.capabilities, capability_of(question)):
        raise ToolError(f"This requires {method}, but the client didn't declare {_names(capability_of(question))}.")
    scope = "" if call.session is None else call.session.id
    asked = call.question_ids = set() if call.question_ids is None else call.question_ids
    raw = await open_questions.ask(call.send_to_caller, method, params, owner=call.owner, scope=scope, asked=asked)
    try:
        return read_answer(question, raw)
    except ProtocolError as exc:  # The mistake is in the client's answer, not in the request that is in progress.
        raise ToolError(exc.message) from exc


def _names(capability: Mapping[str, Any]) -> str:
    name, inner = next(iter(capability.items()))
    return f"{name}.{next(iter(inner))}" if inner else name


@contextlib.contextmanager
def pause_deadline(call: Call) -> Generator[None]:
    """Stop the time limit of a tool while its function waits for answers."""
    deadline, time = call.deadline, asyncio.get_running_loop().time
    call.open_questions += 1
    if deadline is not None and call.open_questions == 1 and (at := deadline.when()) is not None:
        call.time_left = at - time()
        deadline.reschedule(None)
    try:
        yield
    finally:
        call.open_questions -= 1
        if deadline is not None and not (call.open_questions or deadline.expired()):
            with contextlib.suppress(RuntimeError):  # the tool has ended
                deadline.reschedule(time() + call.time_left)


async def ask_in_rounds(call: Call, questions: Mapping[str, tuple[str | None, Question]]) -> Json:
    """Return the answers for a per-request call: from earlier requests, or from the next one if the call can wait.

    Raises:
        InputRequired: The call can't wait, and runs again with the answers.
    """
    replay = call.get_rounds()
    asked = [
        _Asked(name, replay.label(key), key, question, call.revision) for name, (key, question) in questions.items()
    ]
    return await wait_for_answers(call, lambda: _ask_by_round(call, replay, asked))


async def wait_for_answers(call: Call, read: Callable[[], Json]) -> Json:
    """Return what `read` returns, once the client of a per-request call has answered.

    Args:
        call: The call.
        read: Returns the answers, or raises `InputRequired` if some are missing, or `ProtocolError` for a wrong one.

    Raises:
        InputRequired: The call can't wait, and runs again with the answers.
    """
    parked = call.parked
    try:
        return read()
    except InputRequired as exc:
        if parked is None or not parked.can_wait():
            raise
        waits, requests = parked, exc.requests
    found: Json = await waits.ask(requests, read)
    return found


class _Asked:
    """A question of a per-request call, as it's sent."""

    def __init__(self, name: str, label: str, key: str | None, question: Question, revision: Revision) -> None:
        self.name, self.label, self.key, self.question = name, label, key, question
        self.method, self.params = method_of(question), params_of(question, revision)
        self.mark = digest(self.method, self.params)


def _ask_by_round(call: Call, replay: Rounds, questions: Iterable[_Asked]) -> Json:
    """Return the answers for a per-request call, from this round or earlier ones.

    Raises:
        InputRequired: Some questions have no answer yet.
        ProtocolError: The client lacks a capability, or an answer has the wrong shape.
    """
    found: dict[str, Any] = {}
    pending: Json = {}
    for each in questions:
        label, mark = each.label, each.mark
        wire_key = replay.wire_key(label, each.key, mark)
        settled = replay.find_settled(label, mark)
        raw = replay.response(label, wire_key, mark) if settled is None else settled
        if raw is None:
            require_capabilities(call.client.capabilities, capability_of(each.question))
            pending[wire_key] = {"method": each.method, "params": each.params}
            replay.pend(label, mark)
            continue
        try:
            found[each.name] = read_answer(each.question, raw)  # an answer of the wrong shape isn't stored
        except (Declined, Cancelled) as exc:
            found[each.name] = exc
        if settled is None:
            replay.settle(label, mark, raw)
    if pending:
        raise InputRequired(pending)
    for answer in found.values():
        if isinstance(answer, Declined | Cancelled):
            raise answer
    return found


def resolve_group(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the exception to raise in place of a group from an `asyncio.TaskGroup` of user code.

    This is the only failure, the first one if all are messages for the model, the questions from all tasks if nothing
    failed, or else the group.
    """
    requests: Json = {}
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


def read_responses(raw: bytes) -> dict[str, msgspec.Raw]:
    """Return `inputResponses` with undecoded values.

    Raises:
        ProtocolError: INVALID_PARAMS, if it isn't an object or has more members than questions can have been asked.
    """
    if too_many_members(raw):
        raise ProtocolError(INVALID_PARAMS, f"Invalid inputResponses: more than {MAX_MEMBERS:,} members")
    try:
        return decode_members(raw)
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid inputResponses: {exc}") from exc
