"""The tools of several servers, as a model sees and calls them.

Tools are renamed for the model's API, which accepts up to 64 letters, digits, ``_``, and ``-``. The model's text
becomes a call, and the outcome becomes text for the model. Errors also become text for the model and don't end the
conversation.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from msgspec import Struct

from millstream.agent._configuration import Approval, ConnectedServer, Person
from millstream.agent._context import Part, cut, show_result
from millstream.agent._events import Emit, Limits, Outcome, ToolEnd, ToolProgress, ToolStart
from millstream.agent._model import ToolCall
from millstream.client import ClientError
from millstream.protocol import (
    MALFORMED,
    ORIGIN_KEY,
    Json,
    ToolDescription,
    encode,
    is_array,
    is_object,
    members,
    repair_schema,
)

_UNFIT = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST = 64
_COMBINATIONS = ("allOf", "anyOf", "oneOf")
"""Keywords at the top level of a schema for which APIs reject all tools."""
_INTO_COMBINATION = re.compile(rb'"\$ref":"#/(allOf|anyOf|oneOf)/')


class AgentTool(Struct, frozen=True, eq=False):
    """A tool, its server, and its name for the model."""

    name: str
    server: ConnectedServer
    description: ToolDescription


class Toolbox(list[AgentTool]):
    """The tools of a round: ``[tool.name for tool in agent.tools]``."""

    def __init__(self, found: Sequence[tuple[ConnectedServer, Sequence[ToolDescription]]]) -> None:
        names = set[str]()
        for server, tools in found:
            for tool in tools:
                name = free = fit(f"{server.name}__{tool.name}" if len(found) > 1 else tool.name)
                number = 2
                while free in names:
                    free, number = f"{name[: _LONGEST - 4]}_{number}", number + 1
                names.add(free)
                self.append(AgentTool(free, server, tool))
        self.specs: list[Json] = [_spec(tool) for tool in self]
        """Tools in the format of the API."""


def fit(name: str) -> str:
    """Return a name of a length and characters that APIs accept. Truncated names end with a digest of the full name."""
    short = _UNFIT.sub("_", name) or "_"
    if len(short) <= _LONGEST:
        return short
    return f"{short[: _LONGEST - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _spec(tool: AgentTool) -> Json:
    described = tool.description
    # APIs reject all tools for one odd schema, and some reject tools without `properties`.
    parameters: Json = {"type": "object", "properties": {}, **_flatten(repair_schema(described.input_schema))}
    parameters.pop("$schema", None)
    about = described.description or described.title or described.name
    return {"type": "function", "function": {"name": tool.name, "description": about, "parameters": parameters}}


def _flatten(schema: Json) -> Json:  # noqa: C901  one loop over the parts
    """Return a schema without combinations and references at the top level. The server checks what they require.

    If a part can't be found, or describes parameters without naming them, the schema stays as it is, so that no
    parameter is lost.
    """
    if not schema.keys() & {*_COMBINATIONS, "$ref"}:
        return schema
    found: dict[str, list[Any]] = {}
    required: dict[str, None] = {}
    rest = Json()
    parts, seen = [(schema, True, True)], {id(schema)}
    for part, is_certain, is_top in parts:  # grows
        try:
            target = _find(schema, part["$ref"]) if "$ref" in part else None
        except (LookupError, ValueError):
            return schema
        combined = [(each, key == "allOf", False) for key in _COMBINATIONS for each in part.get(key, ())]
        for each, is_all, is_whole in [(target, True, is_top), *combined]:
            if is_object(each) and id(each) not in seen:
                seen.add(id(each))
                parts.append((each, is_certain and is_all, is_whole))
        for name, value in members(part.get("properties")).items():
            known = found.setdefault(name, [])
            if value not in known:
                known.append(value)
        if is_certain:
            required |= dict.fromkeys(part.get("required", ()))
        if is_top:
            rest = {**part, **rest}
        elif part.get("patternProperties") or is_object(part.get("additionalProperties")):
            return schema
    own = members(schema.get("properties"))
    properties = {name: each[0] if name in own or len(each) == 1 else {"anyOf": each} for name, each in found.items()}
    rest = {key: value for key, value in rest.items() if key not in _COMBINATIONS and key != "$ref"}
    return _with_targets({**rest, "properties": properties, "required": [*required]}, schema)


def _with_targets(flat: Json, schema: Json) -> Json:
    """Return a flattened schema with the combinations that it refers to among its definitions."""
    if not _INTO_COMBINATION.search(encode(flat)):
        return flat
    moved = {key: {key: schema[key]} for key in _COMBINATIONS if key in schema}
    flat["$defs"] = {**members(flat.get("$defs")), **moved}
    made: Json = json.loads(_INTO_COMBINATION.sub(rb'"$ref":"#/$defs/\1/\1/', encode(flat)))
    return made


def _find(schema: Json, reference: str) -> Any:
    """Return the part of a schema that a pointer leads to (RFC 6901, section 6).

    Raises:
        LookupError: There's no such part.
        ValueError: There's no such part.
    """
    start, *names = unquote(reference).split("/")
    if start != "#":
        raise LookupError(reference)
    found: Any = schema
    for name in names:
        key = name.replace("~1", "/").replace("~0", "~")
        found = found[int(key)] if is_array(found) else members(found)[key]
    return found


_SHOWN = 200
"""Maximum characters of malformed arguments shown to the model."""


class CallOutcome(Struct):
    """The outcome of a call."""

    text: str
    outcome: Outcome = "done"
    parts: list[Part] = []
    arguments: str = "{}"
    """Arguments for the conversation, always a JSON object because some APIs decode them."""


class ToolCaller(Struct, frozen=True):
    """Executes the tool calls of an answer."""

    toolbox: Toolbox
    person: Person
    limits: Limits
    emit: Emit
    room: asyncio.Semaphore
    """Limits concurrent calls."""

    async def call(self, call: ToolCall) -> CallOutcome:
        """Execute a call. If it can't be executed, the outcome's text gives the reason."""
        tool = next((each for each in self.toolbox if each.name == call.name), None)
        called = await self._execute(call, tool)
        server = "" if tool is None else tool.server.name
        name = call.name if tool is None or called.outcome == "invalid" else tool.description.name
        await self.emit(ToolEnd(call.id, server, name, called.text, called.outcome))
        return called

    async def _execute(self, call: ToolCall, tool: AgentTool | None) -> CallOutcome:
        if tool is None:
            names = ", ".join(each.name for each in self.toolbox) or "none"
            return CallOutcome(f"There is no tool {call.name!r}. The tools are: {names}.", "invalid")
        arguments = read_arguments(call.arguments)
        if isinstance(arguments, str):
            return CallOutcome(f"{arguments} Call {call.name} again.", "invalid")
        encoded = encode(arguments).decode()
        if not await self._is_allowed(tool, arguments):
            text = "The user didn't allow this call. Don't try again unless they ask for it."
            return CallOutcome(text, "refused", arguments=encoded)

        async def progress(value: float, total: float | None, message: str | None) -> None:
            await self.emit(ToolProgress(call.id, value, total, message))

        name, limit = tool.description.name, self.limits.max_result
        async with self.room:
            await self.emit(ToolStart(call.id, tool.server.name, name, arguments))
            try:
                result = await tool.server.client.call(name, arguments, progress=progress, raise_on_error=False)
            except ClientError as exc:
                return CallOutcome(cut(f"The call failed: {exc}", limit), "error", arguments=encoded)
        text, parts = show_result(result, limit)
        if result.is_error:
            return CallOutcome(f"The tool reported an error: {text}", "error", parts, encoded)
        return CallOutcome(text, "done", parts, encoded)

    async def _is_allowed(self, tool: AgentTool, arguments: Json) -> bool:
        described = tool.description
        origin = members(described.meta).get(ORIGIN_KEY)
        upstream = next((str(each) for each in origin), "") if is_array(origin) else ""
        # The hints come from the server, so connect an agent only to servers that you trust.
        read_only = described.annotations is not None and described.annotations.read_only_hint is True
        trusts = tool.server.trusts_hints
        trusted = read_only and (not upstream if trusts is None else trusts(described.name))
        return trusted or await self.person.allows(
            Approval(
                kind="tool",
                server=tool.server.name,
                tool=described.name,
                description=described.description or described.title or "",
                arguments=arguments,
                upstream=upstream,
                read_only=read_only,
            )
        )


def read_arguments(text: str) -> Json | str:
    """Return the decoded arguments, or a message for the model if they can't be decoded. Blank text and null mean no
    arguments."""
    try:
        found: Any = json.loads(text.strip() or "null")
        if isinstance(found, str):  # some models encode the arguments twice
            found = json.loads(found)
    except MALFORMED as exc:
        return f"The arguments aren't JSON ({exc}): {text[:_SHOWN]!r}."
    if found is None:
        return {}
    if not is_object(found):
        return f"The arguments must be a JSON object, not {text[:_SHOWN]!r}."
    try:
        encode(found)
    except MALFORMED as exc:
        return f"The arguments contain a character that can't be encoded ({exc})."
    return found
