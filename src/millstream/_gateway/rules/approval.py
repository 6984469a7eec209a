"""Approval of tool calls: before the upstream receives a call, the person at the client is asked.

An answer counts once, for one question that this server asked. In the handshake era, the question is a request that
waits for its answer. In the per-request era, the call waits (see `_server/calls/parked_calls.py`), and the answer
arrives with the state of the request that asked, which is sealed and bound to the caller, the tool, and the caller's
arguments. The round has to have asked the question, whose mark is a digest of the arguments as the upstream receives
them. If the call runs again, only one request can continue its round, on any worker, because the round is claimed in
the store. That includes each later round of an approved call.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from hashlib import sha256
from typing import Any

from msgspec import Raw, json

from millstream import Cancelled, Declined, ProtocolError, ToolError
from millstream._gateway.options.policy import ApprovalPolicy
from millstream._gateway.rules.patterns import Matcher, matcher, without_hidden
from millstream._gateway.rules.requests import ApprovalRequests
from millstream._protocol.admission import require_capabilities
from millstream._protocol.compose import MAX_COMPOSED, escape_unseen
from millstream._protocol.redaction import REDACTED, is_secret
from millstream._protocol.seal import InputRequired, Rounds
from millstream._server.calls.call import RUNNING, Call
from millstream._server.calls.questions import (
    Elicit,
    ask_by_request,
    capability_of,
    params_of,
    pause_deadline,
    read_answer,
    wait_for_answers,
)
from millstream._server.calls.services import APPROVAL
from millstream._server.features import Run
from millstream._server.features.tools import Tool
from millstream.protocol import MALFORMED, Json, decode_object, encode, is_array, is_object
from millstream.stores import share_for

_KEY, _BY = "millstream.gateway/approve", "millstream.gateway/approved_by"
_TRUTH = {"true": ("1", "t", "y", "yes", "on"), "false": ("0", "f", "n", "no", "off")}
_NO_FIELDS: Json = {"type": "object", "properties": {}}
_DECISION: Json = {
    "type": "object",
    "properties": {"answer": {"type": "string", "title": "Answer", "enum": ["approve", "decline"]}},
    "required": ["answer"],
}
_MAX_TEXT, _MAX_BEGINNING, _MAX_END = 600, 400, 150
"""Maximum characters of a text that's shown whole, and of the two ends of a longer one."""
_MAX_COMPARED, _ELEMENT = 64 * 1024, 64
"""Maximum characters of a value that are compared with a pattern, and how many each element of a list counts as."""
_MAX_SHOWN = 8 * 1024
"""Maximum characters of a question."""
_TOO_LONG = "There are too many arguments to show. Send fewer, or shorter lists."
_CHANGED = "The rules for this tool changed before the answer, so the call wasn't sent. Call it again."
_REFUSED = "A person has to approve this call, so it wasn't sent."
_APPROVER = (
    "The caller {} asks for your approval. The arguments are what a program wants to send. They aren't instructions to "
    "you.\n{}"
)
_ON_PAGE = "Nothing was decided. You can also answer on the page /approvals of this server."
_USED = "The answer was already used, because an answer counts for one call. Call the tool again, without requestState."


def with_approval(
    tool: Tool, approvals: Sequence[ApprovalPolicy], hidden: Collection[str], names: Mapping[str, str]
) -> Run:
    """Return a tool's `run` that first asks a person about some calls. It gets the upstream's arguments.

    Args:
        approvals: The calls to ask about.
        hidden: Names of the arguments that the operator has fixed at each address.
        names: Name of an argument as callers see it -> the tool's own, where these differ.
    """
    run, upstream = tool.run, getattr(tool, "upstream", None)
    source = [tool.origin, "" if upstream is None else upstream.config.address, getattr(tool, "own_name", tool.name)]

    async def run_if_approved(arguments: Any, call: Call) -> Any:
        sent = arguments
        if not is_object(arguments):  # encoded again, because a program may read repeated members in another way
            try:
                arguments = Raw(encode(sent := decode_object(arguments or b"{}")))
            except MALFORMED as exc:
                raise ToolError("The arguments must be a JSON object.") from exc
        matching = [each for each in approvals if _matches_values(each.arguments, sent)]
        if not matching:
            return await run(arguments, call)
        called = None if call.dispatcher is None else call.dispatcher.registry.tools.get(call.name)
        fixed = () if called is None else called.fixed
        secrets = {*hidden, *(names.get(each, each) for each in fixed)}
        # A store that has lost its data has also lost the claims.
        mark = sha256(encode([source, sent, call.services.store.epoch])).hexdigest()
        shown = {name: REDACTED if name in secrets and is_secret(name) else each for name, each in sent.items()}
        if others := [each for each in matching if each.by]:
            version = tool.version if called is None else called.version
            return await _run_if_others_approve(call, others, version, mark, shown, partial(run, arguments, call))
        await _require(call, mark, shown)
        return await run(arguments, call)

    return run_if_approved


def _matches_values(patterns: Mapping[str, str], values: Mapping[str, Any]) -> bool:
    for wanted, pattern in patterns.items():
        given = values.get(wanted)
        if given is None or (isinstance(given, str) and given.strip() == "null"):  # see `_matches_value`
            continue  # an upstream that tells names apart by case uses its default, whatever the other names have
        # Many programs ignore case in names.
        found = [each for name, each in values.items() if name.casefold() == wanted.casefold() and each is not None]
        if not _matches_value(pattern, found):
            return False
    return True


def _matches_value(pattern: str, value: Any) -> bool:
    """Return whether a value or one of its elements matches, or there's too much of it to compare."""
    exact, folded = _matchers(pattern)
    pending, left = [value], _MAX_COMPARED
    while pending:
        each = pending.pop()
        left -= _ELEMENT
        if is_array(each) or is_object(each):
            if len(each) * _ELEMENT > left:
                return True
            pending += each
            pending += each.values() if is_object(each) else ()
            continue
        text = each if isinstance(each, str) else encode(each).decode()
        left -= len(text)
        if left < 0 or len(text) > MAX_COMPOSED:
            return True
        if text.lstrip().startswith(("[", "{")):  # servers of the official SDK for Python decode it for some parameters
            try:
                pending.append(json.decode(text))
            except MALFORMED:
                return True  # their decoder takes more than ours
        if exact(text) is not None or any(map(folded, _notations(without_hidden(text).casefold()))):
            return True
    return False


@lru_cache(1024)
def _matchers(pattern: str) -> tuple[Matcher, Matcher]:
    """Return the matchers of a pattern for text as it is, and for notations of text."""
    return matcher((pattern,)), matcher(tuple(_notations(pattern.casefold())))


def _notations(text: str) -> list[str]:
    """Return text, a number in it in decimal notation, and whether it's true or false for pydantic
    (https://docs.pydantic.dev/latest/api/standard_library_types/#booleans).
    """
    number = _decimal(text)
    return [text, number, *(name for name, words in _TRUTH.items() if number in words)]


def _decimal(text: str) -> str:
    """Return a number in decimal notation, without an exponent if it's whole, or other text unchanged."""
    readers: tuple[Callable[[str], int | float], ...] = int, lambda digits: int(digits, 0), float
    for read in readers:
        with suppress(ValueError):
            number = read(text)
            return str(int(number) if number == number // 1 else number)
    return text


async def _run_if_others_approve(
    call: Call,
    rules: Sequence[ApprovalPolicy],
    version: str,
    mark: str,
    shown: Mapping[str, Any],
    run: Callable[[], Awaitable[Any]],
) -> Any:
    """Run a call that another person has approved, or a later round of it.

    Raises:
        ToolError, Declined: It isn't approved, or was already sent.
    """
    mark, rounds = f"{version}{mark}", call.rounds
    if rounds is not None and (approver := rounds.find_settled(_BY, mark)) is not None:
        if call.task != RUNNING:
            await _claim(call, rounds)
        call.approver = approver.decode()
        return await run()

    of_set = f" of the set {call.dispatcher.address.name}" if call.dispatcher.address.name else ""
    word = partial(_word_question, f"{call.name}{of_set}", shown)
    async with ApprovalRequests(call.services).use(call, rules, version, mark, word):
        if not call.revision.handshake:
            call.get_rounds().settle(_BY, mark, call.approver.encode("utf-8", "replace"))
        return await run()


async def _require(call: Call, mark: str, shown: Mapping[str, Any]) -> None:
    """Ask the person at the client whether to call a tool, unless the call was approved in an earlier round.

    Args:
        call: The client's call.
        mark: A digest of the tool and the arguments as the upstream receives them.
        shown: The arguments for the person.

    Raises:
        InputRequired: The client answers with its next request.
        Declined, Cancelled: The person didn't approve the call.
        ProtocolError, ToolError: The client can't ask, or the answer was already used.
    """
    outcome = "accepted"
    error: Exception | None = None
    try:
        question = Elicit(_word_question(call.name, shown), _NO_FIELDS)
        asked_for = _find_tool(call)
        with pause_deadline(call):
            if call.revision.handshake:
                await ask_by_request(call, question, call.services.questions)
            elif await _ask_by_round(call, question, mark) is None:
                return
        if _find_tool(call) is not asked_for:
            raise ToolError(_CHANGED)
    except Declined:
        outcome, error = "declined", Declined("The user declined this call, so it wasn't sent.")
    except Cancelled:
        outcome, error = "canceled", Cancelled("The user dismissed the question about this call, so it wasn't sent.")
    except ProtocolError as exc:
        text = f"{_REFUSED} {exc.message}"
        outcome, error = "refused", ProtocolError(exc.code, text, exc.data, status=exc.status, head=exc.head)
    except ToolError as exc:
        text = str(exc)
        outcome, error = "refused", ToolError(text if text == _CHANGED else f"{_REFUSED} {text}")
    peer = "" if call.origin is None else call.origin.peer
    call.services.note(
        APPROVAL,
        call.transport,
        call.session,
        outcome,
        target=call.item or call.name,
        principal=call.principal,
        address=peer,
    )
    if error is not None:
        raise error


async def answer_approval(id: str, call: Call) -> str:
    """Ask the person at an approver's client about a request of another caller, save the answer, and return it. A model
    can't answer, because the decision isn't an argument.

    Args:
        id: The request.
        call: The approver's call.

    Raises:
        ToolError: The approver can't answer the request, or didn't.
    """
    requests = ApprovalRequests(call.services)
    *_, request = await requests.find(id, call.principal)
    caller = " at ".join(encode(each).decode() for each in (request.caller.subject, request.caller.issuer) if each)
    question = Elicit(escape_unseen(_APPROVER.format(caller, request.question)), _DECISION)
    try:
        with pause_deadline(call):
            if call.revision.handshake:
                fields = await ask_by_request(call, question, call.services.questions)
            else:
                fields = await _ask_by_round(call, question, id)
    except (Declined, Cancelled, ProtocolError, ToolError) as exc:
        text = exc.message if isinstance(exc, ProtocolError) else str(exc)
        raise ToolError(text if text == _USED else f"{_ON_PAGE} {text}") from exc
    if fields is None:
        raise ToolError(_USED)
    approve, dispatcher, transport = fields["answer"] == "approve", call.dispatcher, call.transport
    return await requests.answer(id, call.principal, dispatcher, approve=approve, transport=transport)


def _find_tool(call: Call) -> Any:
    """Return the tool that the call's name means now, for its caller. It's another one after its rules have changed."""
    return None if call.dispatcher is None else call.dispatcher.registry.find("tools", call.name, call)


async def _ask_by_round(call: Call, question: Elicit, mark: str) -> Json | None:
    """Return the fields of the person's answer in this round, or None if they answered earlier.

    Raises:
        InputRequired: The question isn't answered yet.
        Declined, Cancelled, ProtocolError, ToolError: See `_require`.
    """
    rounds = call.get_rounds()
    if rounds.find_settled(_KEY, mark) is not None:
        if call.task != RUNNING:  # a task runs once, by its own record
            await _claim(call, rounds)
        return None
    if call.task == RUNNING:
        raise ToolError("The approval is no longer valid. Call the tool again.")

    answers: list[bytes] = []

    def read() -> Json:
        raw = rounds.response(_KEY, _KEY, mark) if rounds.has_asked(_KEY, mark) else None
        if raw is None:
            require_capabilities(call.client.capabilities, capability_of(question))
            rounds.pend(_KEY, mark)
            params = params_of(question, call.revision)
            raise InputRequired({_KEY: {"method": "elicitation/create", "params": params}})
        answers.append(raw)
        fields: Json = read_answer(question, raw)
        rounds.settle(_KEY, mark, b"true")
        return fields

    try:
        return await wait_for_answers(call, read)
    finally:
        if answers:  # declining is an answer, too
            await _claim(call, rounds)


async def _claim(call: Call, rounds: Rounds) -> None:
    """Continue a round of a call, as the only request that does.

    Raises:
        ToolError: Another request continued it.
    """
    services = call.services
    owner = "" if call.principal is None else call.owner  # without sign-in, a state is valid at each network address
    name = f"approval:{share_for(owner)}.{rounds.id}.{rounds.rounds}"
    seconds = services.settings.input_timeout + 2 * services.leeway + 1  # longer than the state can be opened
    if not await services.store.kv.compare_and_set(name, None, b"1", seconds):
        raise ToolError(_USED)


def _shorten(value: Any) -> Any:
    """Return a value with both ends of each long text in it."""
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        return f"{value[:_MAX_BEGINNING]} […{len(value) - _MAX_BEGINNING - _MAX_END:,} characters…] {value[-_MAX_END:]}"
    if is_array(value):
        return [_shorten(each) for each in value]
    return {name: _shorten(each) for name, each in value.items()} if is_object(value) else value


def _word_question(tool: str, arguments: Mapping[str, Any]) -> str:
    """Return the text of a question. It's measured before each step that makes it longer.

    Raises:
        ToolError: It's too long to show.
    """
    text = encode(_shorten(arguments)).decode()
    if len(text) + len(tool) <= _MAX_SHOWN:
        text = f"Allow {tool} with these arguments?\n{json.format(text.encode(), indent=2).decode()}"
        if len(text) <= _MAX_SHOWN and len(shown := escape_unseen(text)) <= _MAX_SHOWN:
            return shown
    raise ToolError(_TOO_LONG)
