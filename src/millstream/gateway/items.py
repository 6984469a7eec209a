"""What an upstream offers, as items of the registry. Arguments and results pass through as bytes."""

from collections.abc import Awaitable
from typing import Any

import msgspec
from msgspec import Raw

from millstream._protocol import projection
from millstream._protocol.jsonrpc import encode
from millstream._protocol.metadata import SERVER_KEY
from millstream._protocol.param_headers import find_annotations
from millstream._server.calls.call import Call
from millstream._server.features.sources import Item, Source
from millstream._server.features.tools import Tool
from millstream._server.functions.reading import ArgumentError
from millstream.client._errors import BadAnswer
from millstream.client._tool_headers import headers_of
from millstream.gateway.bridge import forward, unanswered
from millstream.gateway.catalog import Description
from millstream.gateway.upstream import Upstream

_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_meta = msgspec.json.Decoder(dict[str, Any]).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def raw_object(raw: Any) -> Raw:
    """Return arguments as they came.

    Raises:
        ArgumentError: they aren't an object.
    """
    data = bytes(raw).lstrip()
    if data[:1] != b"{":
        raise ArgumentError("The arguments must be an object.")
    return Raw(data)


class UpstreamTool(Tool):
    """A tool of an upstream."""

    __slots__ = ("_call_head", "own_name", "upstream")

    def __init__(self, upstream: Upstream, name: str, own_name: str, description: Description) -> None:
        """A tool as an upstream lists it.

        Args:
            upstream: which has it.
            name: of the tool here.
            own_name: its name there.
            description: as it's listed here.

        Raises:
            ValueError: an ``x-mcp-header`` annotation breaks a rule for which clients drop the tool.
        """
        schema = description.get("inputSchema")
        if not isinstance(schema, dict):
            schema = {"type": "object"}
        headers = find_annotations(schema)
        source = Source(name, self._run, raw_object, schema=schema, headers=headers, decode=raw_object)
        Item.__init__(self, name, source, None, {})
        self.upstream: Upstream = upstream
        self.own_name: str = own_name
        self._call_head = b'{"name":%b,"arguments":' % encode(own_name)
        self.code = None
        self.headers = headers
        self.timeout = None
        self.limit = ""
        self.concurrency = 0
        self.limited = False
        self.cost = 1.0
        self.requires = {}
        self.struct = None
        self.decode = raw_object
        self.plain = not headers and "stream" not in self.parameters
        self._output = None
        output = description.get("outputSchema")
        self.wraps = isinstance(output, dict) and output.get("type") != "object"
        self._simple = str
        self.unclear = ""
        self._described = {"inputSchema": {"type": "object", "properties": {}}, **description, "name": name}

    def _run(self, arguments: Any, call: Call) -> Awaitable[Any]:
        policy = self.upstream.config.policy
        if policy is not None and policy.arguments is not None:
            arguments = policy.arguments(self.own_name, arguments, call)
        params = b"%b%b}" % (self._call_head, arguments)
        if self.headers:
            headers = headers_of(self.headers, _decode_object(arguments))
            answer = forward(call, self.upstream, "tools/call", params, self.own_name, headers=headers)
        else:
            answer = forward(call, self.upstream, "tools/call", params, self.own_name)
        if policy is not None and policy.result is not None:
            return self._rewritten(answer, call)
        return answer

    async def _rewritten(self, answer: Awaitable[bytes], call: Call) -> bytes:
        policy = self.upstream.config.policy
        assert policy is not None  # noqa: S101  `_run` looked
        assert policy.result is not None  # noqa: S101  as above
        return await policy.result(self.own_name, await answer, call)

    def encode(self, value: Any, call: Call) -> bytes:
        """Return the members of the result for the call's revision.

        Raises:
            ToolError: the upstream's result can't be read.
        """
        if type(value) is not bytes:
            return super().encode(value, call)
        members = members_of(value, call, self.upstream)
        return (
            members if fits(self.upstream, call) else projection.tool_result(members, call.revision, wraps=self.wraps)
        )


def fits(upstream: Upstream, call: Call) -> bool:
    """Return whether results of an upstream are right for the caller's revision as they are."""
    return upstream.catalog.revision <= call.revision.date


def members_of(result: bytes, call: Call, upstream: Upstream) -> bytes:
    """Return the members of an upstream's result, without those that each hop writes itself. `_meta` goes to the call.

    Raises:
        ToolError, ProtocolError: it can't be read.
    """
    try:
        found = _decode_members(result)
        found.pop("resultType", None)
        raw = found.pop("_meta", None)
        if raw is not None:
            meta = _decode_meta(raw)
            meta.pop(SERVER_KEY, None)
            if meta:
                call.meta = meta
    except (ValueError, RecursionError) as exc:
        raise unanswered(call, upstream, BadAnswer(f"The result has the wrong shape: {exc}.")) from None
    return encode(found)[1:-1]
