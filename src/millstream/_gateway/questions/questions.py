"""Questions of upstreams: what a client can be asked, and their conversion between revisions.

`abilities_of` returns the kinds of questions that the client of a call can answer. `declare` announces it to an
upstream, `project_question` converts a question to the client's revision and rejects what wasn't declared, and
`project_answer` converts the answer.
"""

import secrets
from collections.abc import Collection, Iterable, Sequence

import msgspec
from msgspec import Raw, Struct

from millstream import Message, ProtocolError, ToolError
from millstream._gateway.questions.abilities import QUESTIONS, decode_abilities
from millstream._gateway.rules.results import Redactor
from millstream._protocol.jsonrpc import MAX_MEMBERS, RequestId, exceeds_limits, too_many_members
from millstream._protocol.metadata import LOG_LEVELS
from millstream._protocol.notifications import ListRootsResult
from millstream._protocol.revisions import project_conversation, project_form
from millstream._server.calls.call import Call
from millstream._transports.connection import ClientConnection
from millstream.protocol import (
    INVALID_PARAMS,
    MALFORMED,
    METHOD_NOT_FOUND,
    Json,
    Revision,
    decode_object,
    decoder,
    encode,
    is_array,
    is_object,
    members,
    repair_schema,
)

PROGRESS = "notifications/progress"
MAX_OPEN_QUESTIONS = 100
"""Maximum questions that an upstream may ask in one round of a call."""
MAX_QUESTION_BYTES = 1024 * 1024
"""Maximum size of a question's parameters, in bytes."""


MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Maximum size of an answer, in bytes."""
_SCHEMES = ("https://", "http://")
_decode_roots = decoder(ListRootsResult)
_decode_messages = decoder(list[Message])


def check_declared(method: str, abilities: bytes, allowed: Collection[str] | None = None) -> Json:
    """Return the settings of the capability that a question needs.

    Args:
        method: Method of the question.
        abilities: The questions that the client can answer, and the policy allows.
        allowed: Kinds of questions that the policy allows, or None if it isn't known which of both lacks one.

    Raises:
        ProtocolError: The abilities don't include it.
    """
    kind = _CAPABILITY.get(method, "")
    try:
        return members(decode_abilities(abilities)[kind])
    except KeyError:
        text = f"The client didn't declare support for {method}"
        if allowed is None:
            text += ", or the gateway's policy doesn't allow it"
        elif kind and kind not in allowed:
            text = describe_refused((kind,))
        raise ProtocolError(METHOD_NOT_FOUND, text) from None


def describe_refused(kinds: Iterable[str]) -> str:
    """Return why an upstream can't ask some kinds of questions."""
    return f"The gateway's policy doesn't allow its questions ({', '.join(kinds)})."


class ForwardedQuestion(Struct, frozen=True):
    """A question in the client's revision, and how to convert its answer."""

    method: str
    params: Json
    original: Json
    """Parameters as the upstream sent them."""

    @property
    def request(self) -> Json:
        """The question as a member of `inputRequests`."""
        return {"method": self.method, "params": self.params}


MAX_REDACTED = 64 * 1024
"""Maximum size of a message if it has to be redacted, in bytes, which takes time on the event loop."""


class ProgressStep(Struct, omit_defaults=True):
    """Progress of a call."""

    progress: float
    total: float | None = None
    message: str | None = None


class Recipient:
    """The client of one forwarded call, as seen by a connection to an upstream."""

    allowed: Collection[str] = QUESTIONS
    """Kinds of questions that the policy allows."""
    verbatim: bool = False
    """Whether the upstream's messages are passed on unchanged, because the client speaks its revision."""

    def __init__(self, call: Call, abilities: bytes, level: str, redactor: Redactor | None) -> None:
        """Store the client's properties.

        Args:
            call: The client's call.
            abilities: The questions that the client can answer (see `abilities_of`).
            level: Minimum level of log messages that the client wants, or empty for none.
            redactor: Redacts the upstream's messages, if the policy requires it.
        """
        self.abilities: bytes = abilities
        self.redactor: Redactor | None = redactor
        self.level: str = level
        self.levels: Sequence[str] = LOG_LEVELS[LOG_LEVELS.index(level) :] if level else ()
        """Levels of the log messages that the client wants."""
        self.revision: Revision = call.revision
        self.session: str = "" if call.session is None else call.session.id
        """Id of the client's session, or empty without one."""
        self.signed_in: bool = call.principal is not None
        """Whether the owner is a principal."""
        self.token: RequestId | None = call.token
        """The client's token for progress."""
        self.wants_progress: bool = call.token is not None or call.tee is not None
        who = call.principal
        self.owner: str = self.session or call.owner if who is None else who.binding.hex()
        """The caller: its issuer, subject, and client, or else its session, or else its address. One person's programs
        don't trust each other.
        """
        connection = call.origin.id if isinstance(call.origin, ClientConnection) else ""
        self.client: str = self.session or connection or (self.owner if self.signed_in else "")
        """Identifies the client among others with the same owner, or empty if the owner may be several people."""
        self.caller: object = self.owner if self.signed_in else self.client or object()
        """Who may have caused what the upstream sends later. Without sign-in, session, or connection, it differs for
        each call: people behind one proxy have the same address.
        """

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """Pass on progress as the client expects it."""
        if self.verbatim:  # `MessageRouter` passes on the whole notification
            return
        if message and self.redactor is not None:
            if len(message) > MAX_REDACTED:
                return
            message = self.redactor.text(message)
        self.notify(PROGRESS, encode(ProgressStep(progress, total, message)))

    def notify(self, method: str, params: bytes) -> None:
        """Pass on progress or a log message."""
        raise NotImplementedError

    async def ask(self, question: ForwardedQuestion) -> bytes:
        """Ask the client and return its raw answer.

        Raises:
            ProtocolError: There was no answer.
        """
        raise NotImplementedError


def name_sender(upstream: str, message: str) -> str:
    """Return a message to the user that begins with the name of the upstream, if the client has several."""
    return f"[{upstream}] {message}" if upstream else message


def project_question(method: str, raw: bytes, asked: Recipient, source: Revision, upstream: str) -> ForwardedQuestion:
    """Convert an upstream's question to the client's revision, and name the upstream.

    Args:
        method: Method of the question.
        raw: Its parameters.
        asked: The client.
        source: Revision of the upstream.
        upstream: Name of the upstream, if the client has several.

    Raises:
        ProtocolError: The client can't be asked this, or the question is invalid.
    """
    if len(raw) > MAX_QUESTION_BYTES or too_many_members(raw) or exceeds_limits(raw):
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: the {method} question is too large")
    declared, target = check_declared(method, asked.abilities, asked.allowed), asked.revision
    try:
        original = decode_object(raw or b"{}")
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc
    params = {key: value for key, value in original.items() if key not in _CONNECTION_MEMBERS}
    if asked.redactor is not None:
        params = asked.redactor.members(params)
    if method == "elicitation/create":
        params = _project_form(params, declared, target)
        params["message"] = name_sender(upstream, params.get("message", ""))
    elif method == "sampling/createMessage":
        params = _project_sampling(params, declared, source, target)
        if upstream:
            origin = f"This request comes from the server {upstream!r}."
            params["systemPrompt"] = f"{origin}\n\n{params['systemPrompt']}" if params.get("systemPrompt") else origin
    else:
        params = {}
    return ForwardedQuestion(method, params, original)


_CAPABILITY = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}
_CONNECTION_MEMBERS = frozenset({"_meta", "task"})
"""Members that belong to the upstream's connection, not to the client's."""


def _project_form(params: Json, modes: Json, target: Revision) -> Json:
    mode = params.get("mode") or "form"
    if not isinstance(mode, str) or mode not in modes:
        raise ProtocolError(INVALID_PARAMS, f"The client didn't declare elicitation.{str(mode)[:16]}.")
    if mode == "url":
        url = params.get("url")
        if not isinstance(url, str) or not url.lower().startswith(_SCHEMES):
            raise ProtocolError(INVALID_PARAMS, "Invalid params: url must begin with https:// or http://")
        if target.elicitation_ids:
            params.setdefault("elicitationId", secrets.token_urlsafe(16))
        else:
            params.pop("elicitationId", None)
        return params
    if not isinstance(params.get("requestedSchema"), dict) or not isinstance(params.get("message"), str):
        raise ProtocolError(INVALID_PARAMS, "Invalid params: a form needs message and requestedSchema")
    if "url" in target.elicitation_modes:
        params["mode"] = "form"
    else:
        params.pop("mode", None)
    try:
        params["requestedSchema"] = project_form(repair_schema(params["requestedSchema"]), target)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise ProtocolError(INVALID_PARAMS, "Invalid params: requestedSchema isn't a flat form") from exc
    return params


def _project_sampling(params: Json, declared: Json, source: Revision, target: Revision) -> Json:
    if "tools" not in declared and (params.get("tools") or params.get("toolChoice")):
        raise ProtocolError(INVALID_PARAMS, "The client didn't declare sampling.tools.")
    if "context" not in declared and target.sampling_tools:
        params.pop("includeContext", None)
    if source.content <= target.content and source.sampling_tools <= target.sampling_tools:
        return params
    try:
        return {**params, "messages": project_conversation(_decode_messages(encode(params.get("messages"))), target)}
    except (msgspec.ValidationError, RecursionError) as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc
    except ToolError as exc:
        raise ProtocolError(INVALID_PARAMS, str(exc)) from exc


def project_answer(question: ForwardedQuestion, raw: bytes, source: Revision) -> Raw:
    """Convert a client's answer to the revision of the upstream.

    Raises:
        ProtocolError: INVALID_PARAMS for a malformed answer.
    """
    if len(raw) > MAX_ANSWER_BYTES or too_many_members(raw):
        raise ProtocolError(INVALID_PARAMS, f"Invalid answer to {question.method}: more than {MAX_MEMBERS:,} members")
    try:
        if question.method == "elicitation/create":
            return _read_form(question, raw)
        if question.method == "roots/list":
            _decode_roots(raw)
            return Raw(raw)
        return _read_sample(raw, source)
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid answer to {question.method}") from exc


_ACTIONS = ("accept", "decline", "cancel")


def _read_form(question: ForwardedQuestion, raw: bytes) -> Raw:
    answer = decode_object(raw)
    action, content = answer.get("action"), answer.get("content")
    if action not in _ACTIONS:
        raise ProtocolError(INVALID_PARAMS, "Invalid answer: action must be accept, decline, or cancel")
    if not (content is None or is_object(content)):
        raise ProtocolError(INVALID_PARAMS, "Invalid answer: content must be an object")
    fields = members(members(question.original.get("requestedSchema")).get("properties"))
    lists = {name for name, field in fields.items() if members(field).get("type") == "array"}
    if action != "accept" or not content or lists.isdisjoint(content):
        return Raw(raw)
    # A form of an older revision had a single choice where the upstream allows several.
    answer["content"] = {
        name: [value] if name in lists and isinstance(value, str) else value for name, value in content.items()
    }
    return Raw(encode(answer))


def _read_sample(raw: bytes, source: Revision) -> Raw:
    sample = decode_object(raw)
    if "content" not in sample:
        raise ValueError
    content = sample["content"]
    if source.sampling_tools or not is_array(content):
        return Raw(raw)
    # Answers of older revisions have one block.
    blocks = msgspec.convert(content, list[Json])
    texts = [block["text"] for block in blocks if isinstance(block.get("text"), str)]
    one: Json = blocks[0] if len(blocks) == 1 else {"type": "text", "text": "\n".join(texts)}
    return Raw(encode({**sample, "content": one}))
