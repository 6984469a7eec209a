"""A webhook receiver over TLS that checks messages with the verifier of the Standard Webhooks project."""

import asyncio
import base64
import json
import secrets
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook

from client.certificates import self_signed
from patience import WAIT


def new_secret() -> str:
    """Return a new signing secret."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


class Message:
    """A received request."""

    def __init__(self, headers: dict[str, str], body: bytes) -> None:
        self.headers = headers
        self.body = body
        self.data: dict[str, Any] = json.loads(body)

    @property
    def id(self) -> str:
        """Id of the message, the same for each attempt."""
        return self.headers["webhook-id"]

    def signed_with(self, secret: str) -> bool:
        """Return whether the verifier accepts the signature."""
        try:
            Webhook(secret).verify(self.body, self.headers)
        except Exception:
            return False
        return True


class Receiver:
    """Receives messages at ``https://localhost:PORT/…``, and answers challenges."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.tls = tls
        """Client context that trusts the receiver's certificate."""
        self.port = 0
        self.secrets: list[str] = []
        self.challenges: list[Message] = []
        self.messages: list[Message] = []
        """All attempts, in order of arrival."""
        self.answer: Callable[[Message], int | str] = lambda message: 200
        """Returns the status for a message, or the location of a redirect as text."""
        self.echoes = True
        self.document: tuple[int, str] = 404, ""
        """Status and body of the document that declares which paths accept webhooks."""
        self.documents = 0
        """Number of requests for it."""
        self.replies = asyncio.Event()
        """While it's cleared, only challenges are answered."""
        self.replies.set()
        self.challenge_replies = asyncio.Event()
        """While it's cleared, challenges aren't answered."""
        self.challenge_replies.set()
        self._arrival = asyncio.Event()

    def url(self, path: str = "/hook") -> str:
        """Return the URL of the receiver."""
        return f"https://localhost:{self.port}{path}"

    def secret(self) -> str:
        """Return a new secret that the receiver accepts."""
        self.secrets.append(new_secret())
        return self.secrets[-1]

    async def wait_until(self, enough: Callable[[], bool]) -> None:
        """Wait until a condition on the received messages holds."""
        async with asyncio.timeout(WAIT):
            while not enough():
                self._arrival.clear()
                await self._arrival.wait()

    async def wait_for_messages(self, count: int) -> list[Message]:
        """Wait for a number of attempts, and return all messages."""
        await self.wait_until(lambda: len(self.messages) >= count)
        return self.messages

    async def handle_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            if head[0].startswith("GET "):
                assert head[0] == "GET /.well-known/mcp-webhook-receiver.json HTTP/1.1"
                self.documents += 1
                status, body = self.document
                length = f"location: {self.url()}\r\ncontent-length: {len(body)}\r\n"
                writer.write(f"HTTP/1.1 {status} Status\r\n{length}connection: close\r\n\r\n{body}".encode())
                await writer.drain()
                return
            assert head[0].startswith("POST ")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            message = Message(headers, await reader.readexactly(int(headers["content-length"])))
            status, body, extra = self._reply(message)
            await (self.challenge_replies if message.data.get("type") == "verification" else self.replies).wait()
            length = f"content-length: {len(body)}\r\n"
            writer.write(f"HTTP/1.1 {status} Status\r\n{extra}{length}connection: close\r\n\r\n{body}".encode())
            await writer.drain()
        finally:
            writer.close()

    def _reply(self, message: Message) -> tuple[int, str, str]:
        assert any(message.signed_with(secret) for secret in self.secrets), "signed with an unknown secret"
        self._arrival.set()
        if message.data.get("type") == "verification":
            self.challenges.append(message)
            return 200, json.dumps({"challenge": message.data["challenge"] if self.echoes else "?"}), ""
        self.messages.append(message)
        answer = self.answer(message)
        return (307, "", f"location: {answer}\r\n") if isinstance(answer, str) else (answer, "", "")


@asynccontextmanager
async def run_receiver(folder: Path) -> AsyncGenerator[Receiver]:
    """Run a receiver for the duration of the block. Receivers with the same folder share a certificate."""
    if not (folder / "c.pem").exists():
        self_signed(folder)
    certificate, key = str(folder / "c.pem"), str(folder / "k.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    receiver = Receiver(ssl.create_default_context(cafile=certificate))
    server = await asyncio.start_server(receiver.handle_connection, "localhost", 0, ssl=context)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
