import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

from auth.issuing.test_sign_in_end_to_end import Person, serving
from auth.test_tls import make
from issuing_world import query_of
from millstream._http.client import pool as fetch
from patience import WAIT

pytestmark = pytest.mark.server
BACK = "http://127.0.0.1:8765/callback"


class Kept:
    """The client's storage."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


class Program:
    """A program that uses the official client, and its user."""

    def __init__(self, url: str, document: str | None = None, person: str = "ada") -> None:
        self.kept = Kept()
        self.person = Person(person)
        self.came = ""
        about = OAuthClientMetadata(client_name="Official", redirect_uris=[BACK])  # type: ignore[list-item]  a URL
        self.auth = OAuthClientProvider(
            f"{url}/mcp", about, self.kept, self._go, self._came, client_metadata_url=document
        )
        self.url = url

    async def _go(self, url: str) -> None:
        self.came = await self.person.visit(url)

    async def _came(self) -> AuthorizationCodeResult:
        answer = {name: values[0] for name, values in query_of(self.came).items()}
        return AuthorizationCodeResult(**answer)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """Yield the connected client."""
        async with (
            httpx2.AsyncClient(auth=self.auth, follow_redirects=True, timeout=WAIT) as http,
            Client(streamable_http_client(f"{self.url}/mcp", http_client=http)) as client,
        ):
            yield client


def text(result: Any) -> str:
    """Return the text of a tool's result."""
    return str(result.content[0].text)


async def test_official_client_registers_steps_up_and_refreshes() -> None:
    async with serving(scopes=["shop:use"]) as url:
        program = Program(url)
        async with program.connected() as client:
            assert text(await client.call_tool("who", {})) == "ada shop:use"
            assert program.person.visits == 1
            assert text(await client.call_tool("order", {})) == "ordered"
            assert program.person.visits == 2
            assert text(await client.call_tool("who", {})) == "ada orders:write shop:use"
        first = program.kept.tokens
        assert first is not None
        program.auth.context.token_expiry_time = 1.0
        async with program.connected() as client:
            assert text(await client.call_tool("who", {})).startswith("ada")
        second = program.kept.tokens
        assert second is not None
        assert second.refresh_token != first.refresh_token
        visits = program.person.visits
        async with httpx2.AsyncClient(timeout=WAIT) as http:
            assert program.kept.client is not None
            form = {"client_id": program.kept.client.client_id, "token": second.refresh_token or ""}
            form["client_secret"] = program.kept.client.client_secret or ""
            assert (await http.post(f"{url}/revoke", data=form)).status_code == 200
        async with program.connected() as client, asyncio.timeout(WAIT):
            while program.person.visits == visits:  # the token becomes invalid within a second
                assert text(await client.call_tool("who", {})).startswith("ada")


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a certificate for localhost that this process trusts."""
    cert, key = make(tmp_path, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", cert)
    fetch.tls.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    yield context
    monkeypatch.undo()
    fetch.tls.cache_clear()


async def test_official_client_signs_in_with_a_metadata_document(trusted: ssl.SSLContext) -> None:
    """MCP 2025-11-25, basic/authorization."""
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readuntil(b"\r\n\r\n")
        about = {"client_id": document, "client_name": "Official", "redirect_uris": [BACK],
                 "grant_types": ["authorization_code"], "token_endpoint_auth_method": "none"}  # fmt: skip
        body = json.dumps(about).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=trusted)
    document = f"https://localhost:{server.sockets[0].getsockname()[1]}/client.json"
    async with server, serving() as url:
        program = Program(url, document)
        async with program.connected() as client:
            assert text(await client.call_tool("who", {})).startswith("ada")
    assert (asked, program.person.visits) == (1, 1)
    assert program.kept.client is not None
    assert program.kept.client.client_id == document
