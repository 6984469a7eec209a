"""A decoder per tool for complete `tools/call` messages of the per-request era.

The transport finds it by the `Mcp-Name` header. It accepts exactly the well-formed common case. For anything else the
decoder fails, and `protocol.admission` returns the exact error.
"""

from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from millstream._protocol.metadata import (
    CAPABILITIES_KEY,
    CLIENT_KEY,
    LOG_LEVEL_KEY,
    LOG_LEVELS,
    VERSION_KEY,
    Implementation,
    ProgressToken,
)
from millstream._protocol.revisions import NEWEST
from millstream._server.features.tools import Tool
from millstream._server.functions.msgspec_engine import dec_hook


class _Meta(
    Struct,
    gc=False,
    rename={
        "version": VERSION_KEY,
        "capabilities": CAPABILITIES_KEY,
        "client": CLIENT_KEY,
        "log_level": LOG_LEVEL_KEY,
        "token": "progressToken",
    },
):
    version: Literal[NEWEST.date]  # type: ignore[name-defined]  # dates belong in revisions.py only
    capabilities: dict[str, Any]
    client: Implementation | UnsetType = UNSET
    log_level: Literal[*LOG_LEVELS] | UnsetType = UNSET  # type: ignore[valid-type]  # one list of levels
    token: ProgressToken | UnsetType = UNSET


class _HandshakeMeta(Struct, frozen=True, gc=False, rename={"version": VERSION_KEY, "token": "progressToken"}):
    version: Raw | UnsetType = UNSET
    """Present only in the other era."""
    token: ProgressToken | UnsetType = UNSET


class _HandshakeParams(Struct, gc=False, rename={"meta": "_meta"}):
    name: str
    arguments: Raw = Raw(b"{}")
    meta: _HandshakeMeta = _HandshakeMeta()


class _HandshakeCall(Struct, gc=False):
    jsonrpc: Literal["2.0"]
    id: int | str
    method: Literal["tools/call"]
    params: _HandshakeParams
    result: UnsetType = UNSET
    """Never present: a message with it isn't a request. The same applies to `error`."""
    error: UnsetType = UNSET


decode_handshake_call = msgspec.json.Decoder(_HandshakeCall).decode
"""A complete `tools/call` of the handshake era, with undecoded arguments."""


class _RequestParams(Struct, gc=False, rename={"meta": "_meta"}):
    meta: _Meta


class _Request(Struct, gc=False):
    jsonrpc: Literal["2.0"]
    id: int | str
    method: str
    params: Raw
    result: UnsetType = UNSET
    error: UnsetType = UNSET


decode_request = msgspec.json.Decoder(_Request).decode
"""A complete request of the per-request era, with undecoded parameters."""
decode_request_params = msgspec.json.Decoder(_RequestParams).decode
"""Parameters, decoded down to `_meta`."""


class _RawParams(Struct, gc=False, rename={"meta": "_meta", "responses": "inputResponses", "state": "requestState"}):
    name: str
    meta: _Meta
    arguments: Raw = Raw(b"{}")
    responses: dict[str, Raw] | UnsetType = UNSET
    state: UnsetType = UNSET
    """A state must be verified first, on the exact path."""


class _RawCall(Struct, gc=False):
    jsonrpc: Literal["2.0"]
    id: int | str
    method: Literal["tools/call"]
    params: _RawParams
    result: UnsetType = UNSET
    error: UnsetType = UNSET


_decode_raw_call = msgspec.json.Decoder(_RawCall).decode
"""A complete `tools/call` of any tool, with undecoded arguments. An upstream can have thousands of tools, and a decoder
for each would take a millisecond to create.
"""


class PreparedCall:
    """The decoder for calls of one tool."""

    __slots__ = ("decode", "tool")

    def __init__(self, tool: Tool, decode: Any) -> None:
        self.tool = tool
        self.decode = decode
        """bytes -> struct with `id` and `params`. Raises msgspec.DecodeError for everything but the common case."""

    @staticmethod
    def of(tool: Tool) -> "PreparedCall | None":
        """Return the fast path of a tool, or None if its calls need checks that a typed decoder can't do."""
        if not tool.plain:
            return None
        arguments: Any = tool.struct
        if arguments is None:  # a decoder alone can't read them
            decode = _in_two_steps(tool)
            return PreparedCall(tool, _without_task(decode) if tool.task is not None else decode)
        fields: list[Any] = [
            ("name", Literal[tool.name]),
            ("meta", _Meta, msgspec.field(name="_meta")),
        ]
        if any(field.required for field in msgspec.structs.fields(arguments)):
            fields.append(("arguments", arguments))
        else:
            fields.append(("arguments", arguments, msgspec.field(default_factory=arguments)))
        fields.append(("responses", dict[str, Raw] | UnsetType, msgspec.field(default=UNSET, name="inputResponses")))
        fields.append(("state", UnsetType, msgspec.field(default=UNSET, name="requestState")))
        params = msgspec.defstruct("Params", fields, gc=False)
        envelope = msgspec.defstruct(
            "Envelope",
            [
                ("jsonrpc", Literal["2.0"]),
                ("id", int | str),
                ("method", Literal["tools/call"]),
                ("params", params),
                ("result", UnsetType, UNSET),
                ("error", UnsetType, UNSET),
            ],
            gc=False,
        )
        decode = msgspec.json.Decoder(envelope, dec_hook=dec_hook).decode
        return PreparedCall(tool, _without_task(decode) if tool.task is not None else decode)


def _without_task(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Wrap a decoder to reject calls that may become tasks, because they aren't the common case."""

    def decode_plain(body: bytes) -> Any:
        envelope = decode(body)
        if "extensions" in envelope.params.meta.capabilities:
            raise msgspec.DecodeError("The client declares extensions.")
        return envelope

    return decode_plain


def _in_two_steps(tool: Tool) -> Callable[[bytes], Any]:
    name, decode_arguments = tool.name, tool.decode

    def decode_both(body: bytes) -> Any:
        envelope = _decode_raw_call(body)
        params = envelope.params
        if params.name != name:
            raise msgspec.DecodeError("The header names another tool.")
        params.arguments = decode_arguments(params.arguments)
        return envelope

    return decode_both
