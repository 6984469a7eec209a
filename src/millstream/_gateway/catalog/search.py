"""Tool search: clients list `search_tools`, `call_tool`, and tools with the tag `listed`, and models search the rest.

``Settings(tool_search=True)`` turns it on, with or without upstreams. SQLite's full-text index ranks by BM25
(docs/decisions/0036). A call through `call_tool` becomes a call of the tool itself before gates see it, so scopes,
limits, middleware, timeouts, and the audit log apply as to a direct call.
"""

import asyncio
import re
import sqlite3
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any
from weakref import finalize

import msgspec
from msgspec import Raw, Struct

from millstream import ProtocolError, ToolError, ToolResult
from millstream._parts import PartHost
from millstream._protocol.admission import target_name
from millstream._protocol.jsonrpc import decode_members
from millstream._server.calls.call import Call, granted_scopes
from millstream._server.features.sources import ItemSource
from millstream._server.features.tools import Tool
from millstream._server.functions.plan import ArgumentError
from millstream._server.handlers import redirect
from millstream._server.pool import Threads
from millstream.protocol import INVALID_PARAMS, MALFORMED, Json, decoder, encode, members

SEARCH, CALL = "search_tools", "call_tool"
LISTED_TAG = "listed"
"""Tag of tools that stay in the list."""
MAX_RESULTS = 20
_DEFAULT_RESULTS = 5
_MAX_QUERY = 1000
_MAX_WORDS = 32
_MAX_TEXT = 4000
"""Maximum characters of a description, or of all arguments, that are indexed."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+|\d+")
"""Words, including the parts of ``camelCase`` and ``snake_case``."""
_STOP_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "by", "for", "from", "i", "in", "is", "it", "me", "my", "of", "on", "or",
    "that", "the", "this", "to", "with", "you",
))  # fmt: skip
_SHOWN = ("name", "title", "description", "inputSchema")
"""Members of a tool's description that are returned."""
_WEIGHTS = "8.0, 4.0, 2.0, 1.0"
"""Weights of name, title, description, and arguments."""


class SearchArguments(Struct, frozen=True):
    """Arguments of `search_tools`."""

    query: str
    limit: int = _DEFAULT_RESULTS


class CallArguments(Struct, frozen=True):
    """Arguments of `call_tool`."""

    name: str
    arguments: Raw = Raw(b"{}")


SEARCH_DESCRIPTION: Json = {
    "description": "Find tools by what they do. Returns the best matches with their input schemas; call one of them "
    f"with {CALL}.",
    "inputSchema": {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "Words that describe what the tool should do"},
            "limit": {"type": "integer", "minimum": 1, "maximum": MAX_RESULTS, "default": _DEFAULT_RESULTS},
        },
        "required": ["query"],
    },
}
CALL_DESCRIPTION: Json = {
    "description": f"Call a tool that {SEARCH} returned.",
    "inputSchema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "Name of the tool"},
            "arguments": {"type": "object", "description": "Arguments that fit the tool's input schema"},
        },
        "required": ["name"],
    },
}


class ToolIndex:
    """A BM25 index of tool descriptions.

    Args:
        tools: Name -> description as listed.
    """

    def __init__(self, tools: Mapping[str, Mapping[str, Any]]) -> None:
        self._names = list(tools)
        self._table = sqlite3.connect(":memory:", check_same_thread=False)
        finalize(self, self._table.close)
        self._table.execute(
            "CREATE VIRTUAL TABLE tools USING fts5(name, title, about, arguments, tokenize='porter unicode61')"
        )
        self._table.executemany(
            "INSERT INTO tools(rowid, name, title, about, arguments) VALUES (?, ?, ?, ?, ?)",
            ((number, *_texts(name, tools[name])) for number, name in enumerate(self._names)),
        )

    def search(self, query: str) -> list[str]:
        """Return the names of the tools that contain a word of the query, best match first."""
        every = dict.fromkeys(word.lower() for word in _WORD.findall(query[:_MAX_QUERY]))
        found = [word for word in every if word not in _STOP_WORDS][:_MAX_WORDS]
        if not found:
            return []
        rows = self._table.execute(
            f"SELECT rowid FROM tools WHERE tools MATCH ? ORDER BY bm25(tools, {_WEIGHTS}), rowid",  # noqa: S608  only constants
            (" OR ".join(f'"{word}"' for word in found),),
        )
        return [self._names[number] for (number,) in rows]


def _texts(name: str, description: Mapping[str, Any]) -> tuple[str, ...]:
    properties = members(members(description.get("inputSchema")).get("properties"))
    arguments = " ".join(f"{each} {members(schema).get('description', '')}" for each, schema in properties.items())
    texts = name, description.get("title") or "", description.get("description") or "", arguments
    return tuple(" ".join(_WORD.findall(str(text)[:_MAX_TEXT])) for text in texts)


class SearchPart:
    """Replaces the tool list of a server with `search_tools` and `call_tool`."""

    name: str = "search"
    needs: Collection[str] = ()

    def __init__(self, definition: object) -> None:
        """Create the part. The definition isn't used."""
        self._searches = Threads(1)
        self._indexes: dict[str, tuple[list[Tool], asyncio.Future[ToolIndex]]] = {}
        """Name of an address -> its tools, which a set changes on its own, and their index."""

    async def open(self, host: PartHost) -> None:
        """Register both tools and hide the others from the list.

        Raises:
            ValueError: The server has a tool with one of these names.
        """
        for name, run, decode, about in (
            (SEARCH, self._search, _decode_search, SEARCH_DESCRIPTION),
            (CALL, _reject_call, _decode_call, CALL_DESCRIPTION),
        ):
            text, schema = about["description"], about["inputSchema"]
            source = ItemSource(
                name, run, partial(read_arguments, decode, name), description=text, schema=schema, asks=False
            )
            annotations = {"readOnlyHint": True} if name == SEARCH else None
            tool = Tool(source, annotations=annotations)
            tool.companion_of = ()
            host.registry.add("tools", name, tool)
            host.on_close(partial(host.registry.remove, "tools", name))
        host.select_listed(_select_listed, _select_in_set)
        host.on_change(self._discard_index)
        host.gate(self._redirect)

    async def close(self) -> None:
        """Release the index and end the thread."""
        self._discard_index("tools")
        self._searches.close()

    def _discard_index(self, kind: str) -> None:
        if kind == "tools":
            self._indexes.clear()

    async def _search(self, arguments: SearchArguments, call: Call) -> ToolResult:
        registry, address = call.dispatcher.registry, call.dispatcher.address.name
        indexed, known = [*registry.tools.values()], self._indexes.get(address)
        if known is None or known[0] != indexed:
            tools = {name: each.describe() for name, each in registry.tools.items() if name not in (SEARCH, CALL)}
            # Converting thousands of an upstream's tools takes seconds.
            known = indexed, asyncio.get_running_loop().run_in_executor(None, ToolIndex, tools)
            self._indexes[address] = known
        index = await asyncio.shield(known[1])
        # It takes .1 s for thousands of tools, and SQLite searches one at a time.
        ranked = await self._searches.run(index.search, arguments.query, owner=call.owner)
        visible = registry.visible("tools", registry.audience("tools", call.principal, partial(granted_scopes, call)))
        matching = [visible[name] for name in ranked if name in visible]
        most, count = max(1, min(arguments.limit, MAX_RESULTS)), len(matching)
        if (around := call.dispatcher.around) is None:
            found = [tool.describe() for tool in matching[:most]]
        else:  # list hooks may hide tools, or change copies of their descriptions
            copies = msgspec.json.decode(encode([tool.describe() for tool in matching]))
            found = await around.filter_list("tools", copies, call)
            count, found = len(found), found[:most]
        result: Json = {
            "tools": [{key: each[key] for key in _SHOWN if key in each} for each in found],
            "matches": count,
        }
        if found:
            return ToolResult(encode(result).decode(), result)
        why = call.services.explain_missing(call, "")
        return ToolResult(f"No tool matches. {why or 'Try other words.'}", result)

    def _redirect(self, call: Call) -> None:
        """Turn a call of `call_tool` into a call of the tool that it names, before later gates see it."""
        if call.method != "tools/call" or call.tool is not None:
            return
        if (call.name or target_name(call.method, call.params)) != CALL:
            return
        try:
            params = decode_members(call.params)
            inner = _decode_call(params.get("arguments", Raw(b"{}")))
        except MALFORMED as exc:
            text = f"Invalid arguments for tool {CALL!r}: {exc}"
            raise (
                ToolError(text) if call.revision.argument_errors_in_result else ProtocolError(INVALID_PARAMS, text)
            ) from exc
        if inner.name == CALL:
            raise ToolError(f"{CALL} can't call itself. Pass the name of another tool.")
        redirect(call, params, inner.name, inner.arguments)


def _select_listed(kind: str, items: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the listed items. Of the tools, these two and the tools with the tag are listed."""
    if kind != "tools":
        return items
    return {name: item for name, item in items.items() if name in (SEARCH, CALL) or LISTED_TAG in item.tags}


def _select_in_set(kind: str, items: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the listed items of a set. If one search could return all of its tools, they're listed instead."""
    tools = {name: item for name, item in items.items() if kind != "tools" or name not in (SEARCH, CALL)}
    return tools if 0 < len(tools) <= MAX_RESULTS else _select_listed(kind, items)


async def _reject_call(arguments: Any, call: Call) -> Any:
    raise ToolError(f"{CALL} isn't available here. Call the tool directly.")


_decode_search = decoder(SearchArguments)
_decode_call = decoder(CallArguments)


def read_arguments(decode: Callable[[Any], Any], tool: str, raw: Any) -> Any:
    """Return the arguments of one of the gateway's own tools.

    Args:
        decode: Decodes the JSON.
        tool: Name of the tool.
        raw: The arguments as JSON.

    Raises:
        ArgumentError: They're invalid.
    """
    try:
        return decode(raw)
    except MALFORMED as exc:
        raise ArgumentError(f"Invalid arguments for tool {tool!r}: {exc}") from exc
