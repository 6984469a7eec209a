import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from re import search
from typing import Any
from urllib.parse import urlencode, urlsplit

from msgspec.structs import replace

from auth_world import run_guarded
from issuing_world import FORM, KnownUsers
from millstream import Client, Context, Server, Settings, auth
from millstream.client import Options
from millstream.client._oauth import MemoryTokenStore
from millstream.client._oauth.endpoints import fetch
from millstream.client._oauth.flow import OAuth
from patience import WAIT
from processes import free_port


def shop(url: str, people: KnownUsers, **options: Any) -> Server:
    """Return a server that issues its own tokens."""
    server = Server("shop", auth=auth.issuer(url, users=people, **options), settings=Settings())

    @server.tool
    async def who(ctx: Context) -> str:
        """Return the caller's subject and client."""
        assert ctx.principal is not None
        return f"{ctx.principal.subject} {' '.join(sorted(ctx.principal.scopes))}"

    @server.tool(scopes=["orders:write"])
    async def order() -> str:
        """Order a book."""
        return "ordered"

    server.add_set("/mcp/buyers", allow=["who"], scopes=["orders:write"])
    return server


@asynccontextmanager
async def serving(people: KnownUsers | None = None, **options: Any) -> AsyncIterator[str]:
    """Run the shop, and yield its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with run_guarded(shop(url, people or KnownUsers(), **options), port=port):
        yield url


class Person:
    """The browser of a person, who is Ada by default."""

    def __init__(self, name: str = "ada") -> None:
        self.name = name
        self.visits = 0
        self.cookies: dict[str, str] = {}

    async def visit(self, url: str) -> str:
        """Open a link, sign in, and consent; return the redirect."""
        self.visits += 1
        page = await fetch("GET", url, headers=self._headers())
        if page.status == 303:
            return page.header(b"location")
        self._keep(page.header(b"set-cookie"))
        text = page.body.decode()
        found = search(r'name="ticket" value="([^"]*)"', text)
        assert found, text
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        form = {"ticket": unescape(found[1]), "answer": "allow"}
        if 'name="password"' in text:
            form |= {"name": self.name, "password": "correct horse"}
        headers = {**self._headers(), "content-type": FORM, "origin": origin}
        reply = await fetch("POST", f"{origin}/authorize", headers=headers, body=urlencode(form).encode())
        self._keep(reply.header(b"set-cookie"))
        return reply.header(b"location")

    def _headers(self) -> dict[str, str]:
        return {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())} if self.cookies else {}

    def _keep(self, line: str) -> None:
        name, _, rest = line.partition("=")
        if name:
            self.cookies[name] = rest.partition(";")[0]


def said(result: Any) -> str:
    """Return the text of a tool's result."""
    return str(result.content[0].text)


async def test_client_registers_signs_in_steps_up_and_refreshes() -> None:
    """MCP 2026-07-28, basic/authorization."""
    person, kept = Person(), MemoryTokenStore()
    async with serving(scopes=["shop:use"]) as url:
        oauth = OAuth(store=kept, redirect_handler=person.visit)
        async with Client(f"{url}/mcp", options=Options(auth=oauth)) as client:
            assert said(await client.call("who")) == "ada shop:use"
            assert said(await client.call("order")) == "ordered"
            assert person.visits == 2
            (tokens,) = kept.load().tokens.values()
            kept.load().tokens[f"{url}/mcp"] = replace(tokens, expires_at=1.0)
            assert said(await client.call("who")) == "ada orders:write shop:use"
            (renewed,) = kept.load().tokens.values()
            assert renewed.refresh_token != tokens.refresh_token
            form = {"client_id": kept.load().registrations[url].client_id, "token": renewed.refresh_token}
            assert (
                await fetch("POST", f"{url}/revoke", headers={"Content-Type": FORM}, body=urlencode(form).encode())
            ).status == 200
            async with asyncio.timeout(WAIT):
                while person.visits == 2:  # the token becomes invalid within a second
                    assert said(await client.call("who")).startswith("ada")
