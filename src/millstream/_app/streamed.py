"""``stream: true``: progress and result of a call also go to the stream of a client, ``/mcp/sse/{client_id}``.

The caller names its client id by the header ``X-Client-Id``, the query ``?client_id=``, the argument ``client_id``, or
``_meta.clientId``; the first that is given counts. Without any one is made, and the reply's ``_meta`` says which, and
where to listen. The client's mailbox keeps what comes before it listens.
"""

import logging
import secrets
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec
from msgspec import Struct, field

from millstream._http.message import Request
from millstream._protocol.errors import INTERNAL_ERROR, INVALID_PARAMS, LocalError, ProtocolError
from millstream._protocol.jsonrpc import error_message
from millstream._server.calls.call import Call
from millstream.hub._channels import check_client_id
from millstream.hub._limits import InvalidName, TooLarge

if TYPE_CHECKING:
    from millstream.hub import Hub

logger = logging.getLogger("millstream.hub")

HEADER = b"x-client-id"


class _Meta(Struct, rename={"client_id": "clientId"}):
    client_id: str = ""


class _Params(Struct):
    meta: _Meta = field(default_factory=_Meta, name="_meta")


_decode = msgspec.json.Decoder(_Params).decode


class Streamed:
    """Attaches the stream of a client to the calls that ask for it."""

    __slots__ = ("_hub",)

    def __init__(self, hub: "Hub") -> None:
        self._hub = hub

    def attach(self, call: Call) -> None:
        """Mirror a call to its client's stream, if its arguments say ``stream: true``.

        Raises:
            ProtocolError: INVALID_PARAMS for a client id that cannot be one; it says where the id stands.
        """
        if getattr(call.arguments, "stream", False) is not True:
            return
        place, client_id = self._named(call)
        try:
            check_client_id(client_id)
        except InvalidName as exc:
            raise ProtocolError(INVALID_PARAMS, f"Invalid client id in {place}: {exc}", status=400) from exc
        call.tee = _Mirror(self._hub, client_id, call).send
        root = call.origin.root_path if isinstance(call.origin, Request) else ""
        url = f"{root}/mcp/sse/{quote(client_id, safe='')}"
        call.meta = {**(call.meta or {}), "clientId": client_id, "streamUrl": url}

    @staticmethod
    def _named(call: Call) -> tuple[str, str]:
        """Where the caller's client id stands, and the id; a caller without one gets a new one."""
        header = (call.headers or {}).get(HEADER, b"").decode("utf-8", "replace").strip()
        argument = getattr(call.arguments, "client_id", "")
        try:
            meta = _decode(call.params or b"{}").meta.client_id
        except msgspec.DecodeError:
            meta = ""
        given = (
            ("X-Client-Id", header),
            ("client_id", call.client_id or (argument if isinstance(argument, str) else "")),
            ("_meta.clientId", meta),
        )
        return next((each for each in given if each[1]), ("", secrets.token_hex(16)))


class _Mirror:
    """Sends what a call says to a client's stream, as far as the hub takes it: the caller's own reply comes first."""

    __slots__ = ("_client_id", "_hub", "_principal", "_request_id")

    def __init__(self, hub: "Hub", client_id: str, call: Call) -> None:
        # Not the call, which refers to what is made here.
        self._hub = hub
        self._client_id = client_id
        self._principal = call.principal
        self._request_id = call.id

    async def send(self, message: bytes) -> None:
        if not message:
            return
        try:
            too_large = await self._send(message)
            if too_large:
                text = f"The result is in the reply only: {too_large}"
                await self._send(error_message(self._request_id, INTERNAL_ERROR, text))
        except LocalError:
            logger.exception("The stream of %s did not get a message", self._client_id)

    async def _send(self, message: bytes) -> str:
        """Send, and say why a message is too large for that."""
        try:
            await self._hub.send(self._client_id, message.decode(), principal=self._principal)
        except TooLarge as exc:
            return str(exc)
        return ""
