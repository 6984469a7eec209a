"""Usual messages, decoded once and strictly, for every transport.

For anything else, `read_usual` fails or `prepare` returns None. The exact path of the transport then reads the bytes
again, with `jsonrpc.read`, and reports each error.
"""

from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType

from millstream._protocol.jsonrpc import Json, decoder
from millstream._protocol.metadata import META_NAMES, ClientInfo, Implementation, LogLevel, ProgressToken
from millstream._server.features.registry import Registry
from millstream._server.features.tools import Tool


class UsualMeta(Struct, frozen=True, gc=False, rename=META_NAMES):
    version: str | UnsetType = UNSET
    """Present only in the per-request era."""
    capabilities: Json | UnsetType = UNSET
    client: Implementation | UnsetType = UNSET
    log_level: LogLevel | UnsetType = UNSET
    token: ProgressToken | UnsetType = UNSET


class UsualParams(
    Struct, frozen=True, gc=False, rename={"meta": "_meta", "responses": "inputResponses", "state": "requestState"}
):
    meta: UsualMeta = UsualMeta()
    name: str = ""
    arguments: Raw = Raw(b"{}")
    responses: dict[str, Raw] | UnsetType = UNSET
    state: UnsetType = UNSET
    """Never present: a state must be verified first, on the exact path."""


class UsualMessage(Struct, gc=False):
    jsonrpc: Literal["2.0"]
    method: str
    id: int | str | UnsetType = UNSET
    """Missing in a notification."""
    params: UsualParams = UsualParams()
    result: UnsetType = UNSET
    """Never present: a message with it isn't a request. The same applies to `error`."""
    error: UnsetType = UNSET


read_usual = decoder(UsualMessage)
"""Return a request or notification of any era, or raise one of `MALFORMED`."""


def prepare(registry: Registry, params: UsualParams, client: ClientInfo) -> tuple[Tool, Any] | None:
    """Return the tool of a call with its decoded arguments, or None if the call needs more checks."""
    tool = registry.tools.get(params.name)
    if tool is None or not tool.plain or (tool.task is not None and "extensions" in client.capabilities):
        return None
    try:
        return tool, tool.decode(params.arguments)
    except Exception:  # Includes errors of validators, which the exact path reports.
        return None
