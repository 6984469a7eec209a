"""Abilities: which questions a client can be asked, as canonical JSON in the form of the newest revision."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from millstream._protocol.metadata import declares
from millstream._server.calls.call import Call
from millstream.protocol import (
    Json,
    Revision,
    decode_object,
    members,
)

UI = "io.modelcontextprotocol/ui"
"""An extension without methods, which gateways pass on: it adds members to results and resources."""


_UI: Json = {"mimeTypes": ["text/html;profile=mcp-app"]}
"""Declared settings of this extension. Others aren't declared, because each would need its own connections."""


ALL_ABILITIES = b'{"elicitation":{"form":{},"url":{}},"roots":{},"sampling":{"context":{},"tools":{}}}'
"""Abilities of a client that can be asked anything."""


PLAIN_ABILITIES = b'{"elicitation":{},"roots":{},"sampling":{}}'
"""The same in the form of the oldest revisions, for servers that refuse members that they don't know."""


encode_sorted = msgspec.json.Encoder(order="deterministic").encode


def abilities_of(call: Call) -> bytes:
    """Return the questions that a call's client can be asked, as canonical JSON in the form of the newest revision.

    Empty for a client that can't be asked anything. Clients with equal abilities can share a connection to an upstream.
    """
    client = call.client.capabilities
    if not client or (call.revision.handshake and call.session is None):
        return b""
    extensions: Json = {}
    if "extensions" in client:
        forwarded = call.services.forwarded_extensions
        extensions = {UI: _UI} if declares(client, {"extensions": {UI: _UI}}) else {}
        extensions |= {name: value for name, value in call.client.extensions.items() if name in forwarded}
    return abilities_in(client, call.revision, extensions)


def abilities_in(capabilities: Mapping[str, Any], revision: Revision, extensions: Json) -> bytes:
    """Return the questions in a client's capabilities, and extensions, in the form of `abilities_of`."""
    found: Json = {}
    if isinstance(capabilities.get("elicitation"), Mapping):
        modes = members(capabilities["elicitation"]).keys() & {"form", "url"} or {"form"}  # no modes: it means forms
        if supported := modes & revision.elicitation_modes:
            found["elicitation"] = {mode: {} for mode in supported}
    if isinstance(capabilities.get("sampling"), Mapping):
        settings = members(capabilities["sampling"]) if revision.sampling_tools else {}
        found["sampling"] = {name: {} for name in ("context", "tools") if name in settings}
    if isinstance(capabilities.get("roots"), Mapping):
        found["roots"] = {}
    if extensions:
        found["extensions"] = extensions
    return encode_sorted(found) if found else b""


def capabilities_of(call: Call, questions: frozenset[str], *, is_relayed: bool) -> Json:
    """Return a client's declared capabilities, without questions that the policy refuses, and extensions that don't
    pass a catalog.
    """
    declared = dict(call.client.capabilities)
    if not is_relayed and declared.pop("extensions", None):
        passed = decode_abilities(abilities_of(call))
        declared |= {"extensions": passed["extensions"]} if "extensions" in passed else {}
    return {name: each for name, each in declared.items() if name not in QUESTIONS or name in questions}


def can_ask(abilities: bytes) -> bool:
    """Return whether a client with these abilities can be asked anything."""
    return any(b'"%b":' % name in abilities for name in (b"elicitation", b"roots", b"sampling"))


@lru_cache(256)
def limit_abilities(abilities: bytes, questions: frozenset[str]) -> bytes:
    """Return abilities with only some kinds of questions."""
    found = decode_abilities(abilities)
    kept = {name: value for name, value in found.items() if name in questions or name == "extensions"}
    return encode_sorted(kept) if kept else b""


@lru_cache(256)
def decode_abilities(abilities: bytes) -> Json:
    return decode_object(abilities) if abilities else {}


def declare(abilities: bytes, revision: Revision) -> Json:
    """Convert abilities to client capabilities in the upstream's revision."""
    declared: Json = dict(decode_abilities(abilities))
    modes = declared.pop("elicitation", None)
    supported: Json = {mode: {} for mode in members(modes) if mode in revision.elicitation_modes}
    if supported or modes == {}:
        declared["elicitation"] = supported if "url" in revision.elicitation_modes else {}
    if "sampling" in declared and not revision.sampling_tools:
        declared["sampling"] = {}
    return declared


QUESTIONS = frozenset(("elicitation", "sampling", "roots"))
"""Client capabilities for questions."""
