"""``stream: true``: progress and result of a call also go to the stream of a client, ``/mcp/sse/{client_id}``.

The caller names its client id by the header ``X-Client-Id``, the query ``?client_id=``, the argument ``client_id``, or
``_meta.clientId``; the first that is given counts. Without any one is made, and the reply's ``_meta`` says which, and
where to listen. The client's mailbox keeps what comes before it listens.
"""

import secrets
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, field

from millstream.server.call import Call

if TYPE_CHECKING:
    from millstream.hub import Hub

HEADER = b"x-client-id"


class _Meta(Struct, rename={"client_id": "clientId"}):
    client_id: str = ""


class _Params(Struct):
    meta: _Meta = field(default_factory=_Meta, name="_meta")


_decode = msgspec.json.Decoder(_Params).decode


class Streamed:
    """Attaches the stream of a client to the calls that ask for it."""

    __slots__ = ("_hub", "_path")

    def __init__(self, hub: "Hub", path: str) -> None:
        self._hub = hub
        self._path = path.rstrip("/")

    def attach(self, call: Call) -> None:
        """Mirror a call to its client's stream, if its arguments say ``stream: true``."""
        if getattr(call.arguments, "stream", False) is not True:
            return
        client_id = self._named(call) or secrets.token_hex(16)
        hub = self._hub

        async def mirror(message: bytes) -> None:
            if message:
                await hub.send(client_id, message.decode())

        call.mirror = mirror
        call.meta = {**(call.meta or {}), "clientId": client_id, "streamUrl": f"/mcp/sse/{client_id}"}

    @staticmethod
    def _named(call: Call) -> str:
        header = (call.headers or {}).get(HEADER, b"").decode("latin-1").strip()
        argument = getattr(call.arguments, "client_id", "")
        try:
            meta = _decode(call.params or b"{}").meta.client_id
        except msgspec.DecodeError:
            meta = ""
        return header or call.client_id or (argument if isinstance(argument, str) else "") or meta
