"""The official Python SDK, 1.x or 2.x, signs in at one MCP address: ``sign_in_at.py ORIGIN PATH``.

Uses HTTP+SSE if the path is the stream's. Prints the tool's result, and the resource that the client requested.
``SIGN_IN_CLIENT`` is the id of a client that the issuer knows; without it, the client registers itself.
"""

import asyncio
import json
import os
import sys
from importlib.metadata import version
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import mcp.client.streamable_http as http
from mcp import ClientSession
from mcp.client.auth import OAuthClientProvider
from mcp.client.sse import sse_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata
from person import visit

ONE = version("mcp").startswith("1.")
BACK = "http://127.0.0.1:8765/callback"


class Kept:
    """The client's storage, and its user."""

    def __init__(self) -> None:
        self.tokens: Any = None
        known = os.environ.get("SIGN_IN_CLIENT")
        made = {"client_id": known, "redirect_uris": [BACK], "token_endpoint_auth_method": "none"}
        self.client: Any = OAuthClientInformationFull.model_validate(made) if known else None
        self.resource = ""
        self.answer: dict[str, str] = {}

    async def get_tokens(self) -> Any:
        return self.tokens

    async def set_tokens(self, tokens: Any) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> Any:
        return self.client

    async def set_client_info(self, client_info: Any) -> None:
        self.client = client_info

    async def visit(self, url: str) -> None:
        """Sign in and consent."""
        self.resource = dict(parse_qsl(urlsplit(url).query)).get("resource", "")
        redirect = await asyncio.to_thread(visit, url, BACK)
        self.answer = dict(parse_qsl(urlsplit(redirect).query))

    async def came(self) -> Any:
        """Return what the redirect brought."""
        if ONE:
            return self.answer["code"], self.answer["state"]
        from mcp.client.auth import AuthorizationCodeResult  # noqa: PLC0415  line 2 only

        return AuthorizationCodeResult(**self.answer)


async def main(origin: str, path: str) -> None:
    """Sign in, and call a tool."""
    kept = Kept()
    about = OAuthClientMetadata(client_name="Official", redirect_uris=[BACK])  # type: ignore[list-item]  a URL
    auth: Any = OAuthClientProvider(origin + path, about, kept, kept.visit, kept.came)
    opening: Any
    if path.endswith("/sse"):
        opening = sse_client(origin + path, auth=auth)
    elif ONE:
        opening = http.streamablehttp_client(origin + path, auth=auth)  # type: ignore[attr-defined]
    else:
        import httpx2  # noqa: PLC0415  line 2 only

        opening = http.streamable_http_client(origin + path, http_client=httpx2.AsyncClient(auth=auth))
    async with opening as streams, ClientSession(*streams[:2]) as session:
        await session.initialize()
        said: Any = (await session.call_tool("who", {})).content[0]
    sys.stdout.write(json.dumps({"said": said.text, "resource": kept.resource}))


asyncio.run(main(*sys.argv[1:]))
