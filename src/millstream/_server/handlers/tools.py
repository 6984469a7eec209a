"""`tools/list` and `tools/call`."""

from collections.abc import Mapping
from typing import Any

import msgspec

from millstream._protocol.admission import require_capabilities
from millstream._protocol.errors import INVALID_PARAMS, REQUIRES_CAPABILITIES, ProtocolError, ToolError
from millstream._protocol.jsonrpc import MALFORMED, decoder, encode
from millstream._protocol.metadata import declares
from millstream._protocol.notifications import CallToolRequestParams
from millstream._protocol.param_headers import check
from millstream._server.calls.access import check_scopes
from millstream._server.calls.call import Call, params_of
from millstream._server.calls.context import call_binding
from millstream._server.calls.services import Services
from millstream._server.dispatch import Handler
from millstream._server.features.registry import Registry
from millstream._server.features.tools import Tool, run_with_timeout
from millstream._server.functions.arguments import ArgumentError
from millstream._server.handlers.list_pages import list_page, sees
from millstream._server.handlers.params import read, take_rounds

_call_decoder = msgspec.json.Decoder(CallToolRequestParams)
_MAX_KEPT_PARAMS = 16 * 1024
"""Maximum bytes of parameters that a call keeps while its tool runs."""
_decode_object = decoder(dict[str, Any])


class ToolHandlers:
    """Handlers of the tool methods."""

    def __init__(self, registry: Registry, services: Services) -> None:
        self._registry = registry
        self._services = services
        self._timeout = services.settings.tool_timeout

    def table(self) -> Mapping[str, Handler]:
        return {"tools/list": self.list, "tools/call": self.call}

    async def list(self, call: Call) -> bytes:
        return list_page(self._registry, "tools", call)

    async def call(self, call: Call) -> bytes:
        """Run a tool. Prepared calls skip this handler."""
        tool = self._open(call)
        tasks = self._services.tasks
        if tool.task is not None and tasks is not None and (task := tasks(call, tool, self._run)) is not None:
            return await task
        return await self._run(call, tool)

    async def _run(self, call: Call, tool: Tool) -> bytes:
        """Run a tool whose arguments are read."""
        if self._services.attach_stream is not None:
            self._services.attach_stream(call)
        if len(call.params) > _MAX_KEPT_PARAMS:
            if not call.revision.handshake:
                call_binding(call)  # while the arguments are still available
            # The arguments have been read, and the tool can take long.
            call.params = b'{"_meta":%b}' % (bytes(params_of(call).meta) or b"{}")
        timeout = self._timeout if tool.timeout is None else tool.timeout
        if timeout:
            value = await run_with_timeout(tool.run, call, call.arguments, timeout)
        else:
            value = await tool.run(call.arguments, call)
        return tool.encode(value, call)

    def _open(self, call: Call) -> Tool:
        """Find the tool and decode its arguments.

        Raises:
            ProtocolError: The tool is unknown, headers differ from the arguments, or (older revisions) the arguments
                are invalid.
            ToolError: The arguments are invalid. The text tells the model what to fix.
        """
        params = read(_call_decoder, call)
        tool = self._registry.tools.get(params.name)
        call.name = params.name if tool is not None else params.name[:128]
        if tool is None or not sees(call, tool):
            call.name = call.name[:128]
            raise ProtocolError(INVALID_PARAMS, f"Unknown tool: {call.name!r}")
        check_scopes(
            call, tool.scopes
        )  # before the arguments are read, because an error about them would reveal the schema
        if tool.requires and call.revision.handshake and not declares(call.client.capabilities, tool.requires):
            raise ToolError(f"{REQUIRES_CAPABILITIES} {', '.join(tool.requires)}.")
        if tool.visible is not None and not call.revision.handshake and tool.requires:
            require_capabilities(call.client.capabilities, tool.requires)
        take_rounds(call, params)
        raw = bytes(params.arguments) or b"{}"
        if raw == b"null":
            raw = b"{}"
        if self._services.attach_stream is not None and b'"client_id"' in raw:
            raw = _take_client_id(tool, call, raw)
        if tool.headers and call.revision.routing_headers and call.headers is not None:
            check(tool.headers, call.headers, _object(raw))
        if call.arguments is None:  # otherwise REST has already read them, to tell invalid arguments from a failed tool
            call.arguments = self._arguments(tool, raw, call)
        return tool

    @staticmethod
    def _arguments(tool: Tool, raw: bytes, call: Call) -> Any:
        try:
            return tool.read(raw)
        except ArgumentError as exc:
            text = str(exc)
        if call.revision.argument_errors_in_result:
            raise ToolError(text)
        raise ProtocolError(INVALID_PARAMS, text)


def _take_client_id(tool: Tool, call: Call, raw: bytes) -> bytes:
    """Return the arguments without the client id of a streamed call, if the tool has no such parameter."""
    if "stream" not in tool.parameters or "client_id" in tool.parameters:
        return raw
    arguments = _object(raw)
    client_id = arguments.pop("client_id", None)
    if isinstance(client_id, str) and not call.client_id:
        call.client_id = client_id
    return encode(arguments)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        return _decode_object(raw)
    except MALFORMED as exc:
        raise ProtocolError(INVALID_PARAMS, f"Invalid params: arguments must be an object ({exc})") from exc
