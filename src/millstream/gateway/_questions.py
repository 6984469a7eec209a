"""Questions of an upstream, forwarded to a client that may speak another revision.

`abilities_of` returns what the client of a call can be asked. `declare` announces it to an upstream, `project_question`
converts a question to the client's revision and rejects what wasn't declared, and `project_answer` converts the answer.
"""

import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Raw, Struct

from millstream import Message, ProtocolError, ToolError
from millstream._server.calls.questions import project, project_conversation
from millstream.gateway._results import Redactor
from millstream.parts import Call
from millstream.protocol import (
    INVALID_PARAMS,
    MALFORMED,
    MAX_MEMBERS,
    METHOD_NOT_FOUND,
    ElicitResult,
    ListRootsResult,
    Revision,
    declares,
    decoder,
    encode,
    exceeds_limits,
    members,
    repair_schema,
    too_many_members,
)

Json = dict[str, Any]

PROGRESS = "notifications/progress"
UI = "io.modelcontextprotocol/ui"
"""The only extension that passes a gateway unchanged: it only adds members to results and resources."""
_UI: Json = {"mimeTypes": ["text/html;profile=mcp-app"]}
"""Declared settings of this extension. Others aren't declared, because each would need its own connections."""
MAX_OPEN_QUESTIONS = 100
"""Maximum questions that an upstream may ask in one round of a call."""
MAX_QUESTION_BYTES = 1024 * 1024
"""Maximum bytes of the parameters of one question."""

ALL_ABILITIES = b'{"elicitation":{"form":{},"url":{}},"roots":{},"sampling":{"context":{},"tools":{}}}'
"""Abilities of a client that can be asked anything."""

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Maximum bytes of one answer."""
_SCHEMES = ("https://", "http://")
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode
_decode_object = decoder(dict[str, Any])
_decode_elicit = decoder(ElicitResult)
_decode_roots = decoder(ListRootsResult)
_decode_messages = decoder(list[Message])


def abilities_of(call: Call) -> bytes:
    """Return what the client of a call can be asked, as canonical JSON in the form of the newest revision.

    Empty for a client that can't be asked anything. Clients with equal abilities can share a connection to an upstream.
    """
    client = call.client.capabilities
    revision = call.revision
    if not client or (revision.handshake and call.session is None):
        return b""
    form = url = False
    if "elicitation/create" in revision.asks and isinstance(client.get("elicitation"), Mapping):
        modes = members(client["elicitation"])
        url = "url" in modes and "url" in revision.elicitation_modes
        form = "form" in modes or "url" not in modes
    samples = isinstance(client.get("sampling"), Mapping)
    sampling = members(client["sampling"]) if samples and revision.sampling_tools else {}
    forwarded = call.services.forwarded_extensions
    ui = "extensions" in client and declares(client, {"extensions": {UI: _UI}})
    return _encode_abilities(
        (form, url),
        (samples, "tools" in sampling, "context" in sampling),
        isinstance(client.get("roots"), Mapping),
        ui,
        _extensions_of(call, forwarded) if forwarded else b"",
    )


def _extensions_of(call: Call, forwarded: frozenset[str]) -> bytes:
    """Return the client's settings of forwarded extensions, as JSON; empty for none."""
    found = {name: value for name, value in call.client.extensions.items() if name in forwarded}
    return _encode_sorted(found) if found else b""


@lru_cache(256)
def _encode_abilities(
    elicitation: tuple[bool, bool], sampling: tuple[bool, bool, bool], roots: bool, ui: bool, extensions: bytes
) -> bytes:
    form, url = elicitation
    samples, tools, context = sampling
    found: Json = {}
    if form or url:
        found["elicitation"] = {name: {} for name, has in (("form", form), ("url", url)) if has}
    if samples:
        found["sampling"] = {name: {} for name, has in (("tools", tools), ("context", context)) if has}
    if roots:
        found["roots"] = {}
    if ui:
        found["extensions"] = {UI: _UI}
    if extensions:
        found["extensions"] = {**found.get("extensions", {}), **_decode_object(extensions)}
    return _encode_sorted(found) if found else b""


def can_ask(abilities: bytes) -> bool:
    """Return whether a client with these abilities can be asked anything."""
    return any(b'"%b":' % name in abilities for name in (b"elicitation", b"roots", b"sampling"))


@lru_cache(256)
def limit_abilities(abilities: bytes, questions: frozenset[str]) -> bytes:
    """Return abilities with only some kinds of questions."""
    found = _decode_abilities(abilities)
    kept = {name: value for name, value in found.items() if name in questions or name == "extensions"}
    return _encode_sorted(kept) if kept else b""


@lru_cache(256)
def _decode_abilities(abilities: bytes) -> Json:
    return _decode_object(abilities) if abilities else {}


def declare(abilities: bytes, revision: Revision) -> Json:
    """Return abilities as client capabilities of an upstream's revision."""
    declared: Json = dict(_decode_abilities(abilities))
    modes = members(declared.pop("elicitation", None))
    supported: Json = {mode: {} for mode in modes if mode in revision.elicitation_modes}
    if supported and "elicitation/create" in revision.asks:
        declared["elicitation"] = supported if "url" in revision.elicitation_modes else {}
    if "sampling" in declared and not revision.sampling_tools:
        declared["sampling"] = {}
    return declared


def check_declared(method: str, abilities: bytes) -> Json:
    """Return the settings of the capability that a question needs.

    Raises:
        ProtocolError: The abilities don't include it.
    """
    try:
        return members(_decode_abilities(abilities)[_CAPABILITY[method]])
    except KeyError:
        text = f"The client did not declare support for {method}, or the gateway's policy refuses it"
        raise ProtocolError(METHOD_NOT_FOUND, text) from None


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


class ProgressStep(Struct, omit_defaults=True):
    """Progress of a call."""

    progress: float
    total: float | None = None
    message: str | None = None


class Recipient:
    """The client of one forwarded call, as seen by a connection to an upstream."""

    __slots__ = ("abilities", "owner", "redactor", "revision", "session", "signed_in")

    def __init__(self, call: Call, abilities: bytes, redactor: Redactor | None) -> None:
        """Store what's known of the client.

        Args:
            call: The client's call.
            abilities: What the client can be asked, see `abilities_of`.
            redactor: Redacts the upstream's messages, if the policy says so.
        """
        self.abilities: bytes = abilities
        self.redactor: Redactor | None = redactor
        self.revision: Revision = call.revision
        self.session: str = "" if call.session is None else call.session.id
        """Id of the client's session; empty without one."""
        self.signed_in: bool = call.principal is not None
        """Whether the owner is a principal."""
        self.owner: str = call.owner if self.signed_in else self.session or call.owner
        """The caller: the id of its principal, else of its session, else its address."""

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """Pass on progress as the client expects it."""
        self.notify(PROGRESS, encode(ProgressStep(progress, total, message)))

    def notify(self, method: str, params: bytes) -> None:
        """Pass on progress or a log message."""
        raise NotImplementedError

    async def ask(self, question: ForwardedQuestion) -> bytes:
        """Ask the client, and return its raw answer.

        Raises:
            ProtocolError: There was no answer.
        """
        raise NotImplementedError


def with_name(upstream: str, message: object) -> str:
    """Return the text of a question with the name of the upstream that asks it."""
    return f"[{upstream}] {message}"


def project_question(method: str, raw: bytes, asked: Recipient, source: Revision, upstream: str) -> ForwardedQuestion:
    """Convert an upstream's question to the client's revision, and say who asks.

    Args:
        method: Method of the question.
        raw: Its parameters.
        asked: The client.
        source: Revision of the upstream.
        upstream: Name of the upstream.

    Raises:
        ProtocolError: The client can't be asked this, or the question is invalid.
    """
    if len(raw) > MAX_QUESTION_BYTES or too_many_members(raw) or exceeds_limits(raw):
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: the question of {method} is too large")
    declared, target = check_declared(method, asked.abilities), asked.revision
    try:
        original = _decode_object(raw or b"{}")
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: {exc}") from exc
    params = {key: value for key, value in original.items() if key not in _CONNECTION_MEMBERS}
    if asked.redactor is not None:
        params = asked.redactor.members(params)
    if method == "elicitation/create":
        params = _project_form(params, declared, target)
        params["message"] = with_name(upstream, params.get("message", ""))
    elif method == "sampling/createMessage":
        params = _project_sampling(params, declared, source, target)
        origin = f"This request comes from the server {upstream!r}."
        params["systemPrompt"] = f"{origin}\n\n{params['systemPrompt']}" if params.get("systemPrompt") else origin
    else:
        params = {}
    return ForwardedQuestion(method, params, original)


_CAPABILITY: Mapping[str, str] = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}
_CONNECTION_MEMBERS = frozenset({"_meta", "task"})
"""Members that belong to the upstream's connection, not to the client's."""


def _project_form(params: Json, modes: Json, target: Revision) -> Json:
    mode = params.get("mode") or "form"
    if not isinstance(mode, str) or mode not in modes:
        raise ProtocolError(INVALID_PARAMS, f"The client did not declare elicitation.{str(mode)[:16]}.")
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
    params["requestedSchema"] = repair_schema(params["requestedSchema"])
    if "url" in target.elicitation_modes:
        params["mode"] = "form"
    else:
        params.pop("mode", None)
    if not target.rich_forms:
        try:
            params["requestedSchema"] = project(params["requestedSchema"], rich_enums=False, defaults_all=False)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise ProtocolError(INVALID_PARAMS, "Invalid params: requestedSchema is not a flat form") from exc
    return params


def _project_sampling(params: Json, declared: Json, source: Revision, target: Revision) -> Json:
    if "tools" not in declared and (params.get("tools") or params.get("toolChoice")):
        raise ProtocolError(INVALID_PARAMS, "The client did not declare sampling.tools.")
    if "context" not in declared and target.sampling_tools:
        params.pop("includeContext", None)
    if source.content <= target.content and source.sampling_tools <= target.sampling_tools:
        return params
    try:
        messages = _decode_messages(encode(params.get("messages")))
        return {**params, "messages": project_conversation(messages, target)}
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


_ACTIONS = frozenset({"accept", "decline", "cancel"})


def _read_form(question: ForwardedQuestion, raw: bytes) -> Raw:
    result = _decode_elicit(raw)
    if result.action not in _ACTIONS:
        raise ProtocolError(INVALID_PARAMS, "Invalid answer: action must be accept, decline, or cancel")
    if bytes(result.content)[:1] not in (b"", b"{", b"n"):
        raise ProtocolError(INVALID_PARAMS, "Invalid answer: content must be an object")
    fields = members(members(question.original.get("requestedSchema")).get("properties"))
    lists = {name for name, field in fields.items() if members(field).get("type") == "array"}
    if not lists or result.action != "accept" or not bytes(result.content):
        return Raw(raw)
    # A form of an older revision had a single choice where the upstream allows several.
    content = _decode_object(result.content)
    if not any(isinstance(content.get(name), str) for name in lists):
        return Raw(raw)
    answer = _decode_object(raw)
    answer["content"] = {
        name: [value] if name in lists and isinstance(value, str) else value for name, value in content.items()
    }
    return Raw(encode(answer))


class _Sample(Struct):
    content: Raw


_decode_sample = decoder(_Sample)
_decode_blocks = decoder(list[dict[str, Any]])


def _read_sample(raw: bytes, source: Revision) -> Raw:
    content = bytes(_decode_sample(raw).content)
    if source.sampling_tools or not content.startswith(b"["):
        return Raw(raw)
    # Answers of older revisions have one block.
    blocks = _decode_blocks(content)
    texts = [block["text"] for block in blocks if isinstance(block.get("text"), str)]
    one: Json = blocks[0] if len(blocks) == 1 else {"type": "text", "text": "\n".join(texts)}
    return Raw(encode({**_decode_object(raw), "content": one}))
