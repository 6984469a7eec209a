"""Results that were too large for their caller, stored temporarily so that the same caller can read them as resources.

The store key is a hash of the caller and a random id, so no other caller can read a result, even with its link.
"""

import secrets
from hashlib import sha256
from typing import Any

from millstream._protocol.content import EmbeddedResource, ResourceContents
from millstream._protocol.json_schema import is_array, is_object
from millstream._protocol.jsonrpc import decoder, encode
from millstream._server.calls.call import Call
from millstream._server.features.resources import Template
from millstream._server.features.sources import ItemSource
from millstream._stores.base import Map, StoreFull, StoreUnavailable
from millstream._stores.rates import share_for
from millstream.gateway._names import Names

URI = "result://{id}"
_decode_object = decoder(dict[str, Any])


class StoredResults:
    """Stores results under keys that only their callers can compute.

    Args:
        kv: key-value store.
        names: names of the upstream that the results come from.
    """

    def __init__(self, kv: Map, names: Names) -> None:
        self._kv = kv
        self._names = names

    async def save(self, call: Call, result: bytes, seconds: float) -> dict[str, Any] | None:
        """Store a result, and return the content that links to it; None if it doesn't fit in the store.

        Args:
            call: call of the result.
            result: JSON of the result.
            seconds: lifetime of the link.
        """
        id = (f"{share_for(call.owner)}." if call.owner else "") + secrets.token_urlsafe(18)
        try:
            await self._kv.put(_key(call, id), result, seconds, lossy=True)
        except (StoreFull, StoreUnavailable):
            return None
        if "resource_link" not in call.revision.content:
            return {"type": "text", "text": f"The whole result: {self._names.uri(f'result://{id}')}"}
        return {
            "type": "resource_link",
            "uri": f"result://{id}",
            "name": f"Result of {call.name}",
            "description": f"The whole result. It can be read for {seconds:,.0f} seconds.",
            "mimeType": "application/json",
            "size": len(result),
        }

    def template(self) -> Template:
        """Return the resource template for stored results."""

        async def read(values: dict[str, Any], call: Call) -> list[EmbeddedResource] | None:
            found = await self._kv.get(_key(call, str(values["id"])))
            uri = self._names.uri(f"result://{values['id']}")
            return None if found is None else _contents(uri, found)

        schema = {"properties": {"id": {"type": "string"}}}
        description = "A result that was too large for its call. Results link to it."
        return Template(
            self._names.uri(URI), ItemSource("result", read, _identity, description=description, schema=schema)
        )


def _identity(values: Any) -> Any:
    return values


def _key(call: Call, id: str) -> str:
    owner = b"" if call.principal is None else call.principal.binding
    name = sha256(b"%b %b" % (owner, id.encode("utf-8", "surrogatepass"))).hexdigest()
    share, dot, _ = id.partition(".")
    return f"result:{share}.{name}" if dot else f"result:{name}"


def _contents(uri: str, result: bytes) -> list[EmbeddedResource]:
    """Return a result as resource contents: its structured value, or else its content."""
    decoded = _decode_object(result)
    if "structuredContent" in decoded:
        text = encode(decoded["structuredContent"]).decode()
        return [EmbeddedResource(resource=ResourceContents(uri, "application/json", text=text))]
    blocks = decoded.get("content")
    texts = [
        each["text"]
        for each in (blocks if is_array(blocks) else ())
        if is_object(each) and each.get("type") == "text" and isinstance(each.get("text"), str)
    ]
    if is_array(blocks) and len(texts) == len(blocks):
        return [EmbeddedResource(resource=ResourceContents(uri, "text/plain", text="\n".join(texts)))]
    return [EmbeddedResource(resource=ResourceContents(uri, "application/json", text=result.decode()))]
