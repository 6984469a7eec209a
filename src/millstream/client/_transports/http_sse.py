"""HTTP+SSE, the transport of 2024-11-05: one event stream from the server, and a POST for each message to it.

https://modelcontextprotocol.io/specification/2024-11-05/basic/transports#http-with-sse
"""

import asyncio

from millstream._http.client.connection import HttpReply
from millstream._override import override
from millstream._protocol.revisions import Revision
from millstream._tasks import Tasks
from millstream.client._endpoint import Endpoint
from millstream.client._errors import ClientError, ConnectFailed, ConnectionLost, NotMcp
from millstream.client._transports import DuplexTransport, EventReader, Listener


class HttpSseTransport(DuplexTransport):
    """One event stream, which announces the address for POSTs."""

    name = "http+sse"

    def __init__(
        self,
        endpoint: Endpoint,
        listener: Listener,
        background: Tasks,
        max_bytes: int,
        timeout: float,
    ) -> None:
        super().__init__(listener, background)
        self._endpoint = endpoint
        self._max = max_bytes
        self._timeout = timeout
        self._messages = ""
        """Path and query for POSTs."""
        self._revision: Revision | None = None

    @override
    async def open(self) -> None:
        """Open the stream and wait for the address.

        Raises:
            NotMcp: There's no stream, or it doesn't announce an address.
            ConnectFailed: The server didn't respond in time.
        """
        url = self._endpoint.url
        reply = None
        named: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._endpoint.send("GET", "Accept: text/event-stream\r\n", repeatable=True)
                if reply.is_temporary:
                    raise ConnectionLost(f"The server at {url.origin} failed with status {reply.status}.")
                if reply.stream is None or reply.status != 200:
                    raise NotMcp(f"{url} has no event stream: it responded with status {reply.status}.")
                if reply.final_url is not None:
                    self._endpoint.url = reply.final_url
                self._background.spawn(self._read(reply, named))
                await named
        except TimeoutError as exc:
            if reply is None:
                raise ConnectFailed(f"{url.origin} didn't respond within {self._timeout:g} seconds.") from exc
            raise NotMcp(f"{url} opens an event stream, but it doesn't send the endpoint event of MCP.") from exc

    async def _read(self, reply: HttpReply, named: asyncio.Future[None]) -> None:
        reader = EventReader(self._max, self.skip)
        assert reply.stream is not None  # noqa: S101  checked in `open`
        reader.attach(reply.stream)
        try:
            while (event := await reader.event()) is not None:
                if event.event == "endpoint" and not self._messages:
                    self._set_messages_target(event.data, named)
                elif event.event == "message" and event.data:
                    self.receive(event.data.encode())
                if self.fault is not None:
                    break
        except ClientError as exc:
            self.end(exc)
            if not named.done():
                named.set_exception(exc)
        finally:
            self.end(ConnectionLost("The server closed the event stream."))
            reader.close()
            if not named.done():
                named.set_exception(NotMcp(f"{self._endpoint.url} closes its event stream immediately."))
                named.exception()

    def _set_messages_target(self, reference: str, named: asyncio.Future[None]) -> None:
        url = self._endpoint.url
        try:
            target = url.join(reference)
            if target.origin != url.origin:  # credentials are only sent to this origin
                raise NotMcp(f"{url} requests messages to be sent to another server, {target.origin}.")
        except ClientError as exc:
            if not named.done():
                named.set_exception(exc)
            self.end(exc)
            return
        self._messages = target.target
        if not named.done():
            named.set_result(None)

    @override
    def set_revision(self, revision: Revision) -> None:
        """Send the version header from now on, if the revision has one."""
        self._revision = revision

    @override
    async def _write(self, message: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        extra = "Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\n"
        if self._revision is not None and self._revision.header:
            extra += f"MCP-Protocol-Version: {self._revision.date}\r\n"
        reply = await self._endpoint.send("POST", extra, message, repeatable=False, target=self._messages)
        if reply.stream is not None:
            reply.stream.close()
        if reply.status >= 300:
            raise ConnectionLost(f"The server rejected a message with status {reply.status}.")

    @override
    async def close(self) -> None:
        """Close the stream, which ends the session."""
        self.end(ConnectionLost("The client was closed."))
        await self._endpoint.close()
