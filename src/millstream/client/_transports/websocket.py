"""A server at a `ws://` or `wss://` URL: whole messages over one WebSocket with the subprotocol `mcp`."""

import asyncio
import os
from collections.abc import Collection, Mapping

from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException
from websockets.http11 import Response
from websockets.typing import Subprotocol

from millstream._http.client import Inflow
from millstream._http.client.url import Url
from millstream._http.client.websocket import ClientSocket, open_socket
from millstream._override import override
from millstream._protocol.redaction import environment_secrets, find_query_secrets, find_secrets, redact, secret_parts
from millstream._tasks import Tasks
from millstream._text import pluralize
from millstream.client._endpoint import challenge_reason, check_headers, redact_error
from millstream.client._errors import (
    AccessDenied,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    NotMcp,
)
from millstream.client._transports import DuplexTransport, Listener, Options

_CLOSE_TIMEOUT = 2.0
"""Seconds for the closing handshake."""


class WebSocketTransport(DuplexTransport):
    """One WebSocket."""

    name = "websocket"

    def __init__(
        self,
        url: Url,
        headers: Mapping[str, str],
        listener: Listener,
        background: Tasks,
        options: Options,
        inflow: Inflow,
    ) -> None:
        super().__init__(listener, background)
        self._url = url
        self._headers = headers
        self._options = options
        self._inflow = inflow
        self._socket: ClientSocket | None = None
        self._sent: Mapping[str, str] = {}
        """Credentials from `Options.auth` in the last handshake."""

    @property
    @override
    def secrets(self) -> Collection[str]:
        """The credentials in the handshake."""
        found = find_secrets(self._headers, environment_secrets(os.environ)) | find_query_secrets(self._url.target)
        return found.union(*map(secret_parts, self._sent.values()))

    @override
    async def open(self) -> None:
        """Connect. Retry once with new credentials if the server rejects the first ones.

        Raises:
            ClientError: There's no MCP WebSocket at this URL.
        """
        try:
            await self._set_credentials()
            try:
                await self._open()
            except AccessDenied as exc:
                auth = self._options.auth
                if auth is None or not await auth.handle_challenge(self._url, exc.status, exc.challenge):
                    raise
                await self._set_credentials()
                await self._open()
        except ClientError as exc:
            redact_error(exc, self.secrets)
            raise

    async def _set_credentials(self) -> None:
        """Set the credentials for the next handshake. If there are none, the error isn't the server's challenge."""
        if self._options.auth is not None:
            self._sent = await self._options.auth.headers(self._url, "GET", self._url.target)

    async def _open(self) -> None:
        url, headers, options = self._url, {**self._headers, **self._sent}, self._options
        check_headers(headers)
        try:
            socket = await open_socket(
                url, headers, inflow=self._inflow, max_bytes=options.max_bytes, timeout=options.connect_timeout,
                tls=options.tls, subprotocols=[Subprotocol("mcp")],
            )  # fmt: skip
        except InvalidStatus as exc:
            raise _refusal(url, exc.response, self.secrets) from exc
        except (InvalidHandshake, WebSocketException) as exc:
            raise NotMcp(f"{url} isn't a WebSocket: {exc}.", remedy=_path_hint(url)) from exc
        except TimeoutError as exc:  # also if the server responds with an event stream, as at /mcp
            what = f"{url.origin} didn't accept a WebSocket within {pluralize(options.connect_timeout, 'second')}."
            raise ConnectFailed(f"{what} {_path_hint(url)}".rstrip()) from exc
        if socket.subprotocol != "mcp":
            await socket.close()
            raise NotMcp(f"{url} isn't an MCP WebSocket: it doesn't accept the subprotocol mcp.")
        self._socket = socket
        self._background.spawn(self._read(socket))

    async def _read(self, socket: ClientSocket) -> None:
        now = asyncio.get_running_loop().time
        try:
            while self.fault is None:
                self.receive(await socket.receive())
                if pause := self._inflow.lines.take(2, now()):  # the same limit as for an event
                    await asyncio.sleep(pause)
        except ClientError as exc:
            self.end(exc)
        finally:
            self.end(ConnectionLost("The server closed the WebSocket."))
        await socket.close()

    @override
    async def _write(self, message: bytes) -> None:
        assert self._socket is not None  # noqa: S101  set in `open`
        try:
            await self._socket.send_text(message)
        except ConnectionLost as exc:
            await asyncio.sleep(0)  # let `_read` report the reason first
            self.end(exc)
            await self.send(message, "")

    @override
    async def close(self) -> None:
        """Close the socket."""
        self.end(ConnectionLost("The client was closed."))
        socket = self._socket
        if socket is not None:
            try:
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await socket.close()
            except TimeoutError:  # the server sends without reading
                socket.transport.abort()


def _refusal(url: Url, reply: Response, secrets: Collection[str]) -> ClientError:
    """Return the error for a response that doesn't open a WebSocket."""
    status = reply.status_code
    if status in (401, 403):
        challenge = reply.headers.get("WWW-Authenticate", "")
        reason = challenge_reason(redact(challenge, secrets))  # before it's shortened, which could divide a secret
        text = f"{url} rejected the connection ({status}){reason}. Check the credentials."
        return AccessDenied(text, status, challenge)
    if status >= 500 or status == 429:
        return ConnectionLost(f"The server at {url.origin} failed with status {status}.")
    return NotMcp(f"{url} isn't a WebSocket: it responded with status {status}.", remedy=_path_hint(url))


def _path_hint(url: Url) -> str:
    """Return a hint about the path, or for ``/ws`` about the server."""
    if url.target == "/ws":
        return "If it's a Millstream server, start it with --serve hub."
    return f"Check the path: with --serve hub, Millstream has a WebSocket at {url.origin}/ws."
