"""Clients that send credentials to an attacker's authorization server (CVE-2026-104850, CVE-2026-115563): credentials
of one issuer are never sent to another, whatever issuer a server's metadata names.
"""

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from cases import for_each
from client.misbehaving_servers import DONE, MisbehavingServer, ReceivedRequest, misbehaving, with_discovery
from millstream import Client
from millstream.client import AccessDenied, MemoryTokenStore, OAuth, Options

SECRET = "the-secret-that-only-one-issuer-knows"


class World:
    """A server with variable metadata, and an issuer. Both record their requests."""

    def __init__(self) -> None:
        self.issuer = ""
        self.authorize: dict[str, str] = {}
        """Parameters that the issuer adds to its response."""

    async def resource(self, asked: ReceivedRequest) -> None:
        """Serve the MCP server."""
        if asked.path.startswith("/.well-known/"):
            url = f"http://{asked.headers['host']}/mcp"
            await asked.reply(json.dumps({"resource": url, "authorization_servers": [self.issuer]}).encode())
        elif asked.headers.get("authorization") == "Bearer good":
            await with_discovery(lambda asked: asked.result(DONE))(asked)
        else:
            await asked.reply(b"", status="401 Unauthorized", more="WWW-Authenticate: Bearer\r\n")

    async def issue(self, asked: ReceivedRequest) -> None:
        """Serve the authorization server."""
        origin = f"http://{asked.headers['host']}"
        path = asked.path.partition("?")[0]
        if path.startswith("/.well-known/"):
            about = {
                "issuer": origin,
                "authorization_endpoint": f"{origin}/authorize",
                "token_endpoint": f"{origin}/token",
                "registration_endpoint": f"{origin}/register",
                "code_challenge_methods_supported": ["S256"],
            }
            await asked.reply(json.dumps(about).encode())
        elif path == "/register":
            await asked.reply(b'{"client_id": "registered-at-%b"}' % asked.headers["host"].encode())
        else:
            await asked.reply(b'{"access_token": "good", "refresh_token": "renews", "token_type": "Bearer"}')

    async def visit(self, url: str) -> str:
        """Approve a request, and return the redirect."""
        query = parse_qs(urlsplit(url).query)
        more = "".join(f"&{name}={value}" for name, value in self.authorize.items())
        return f"{query['redirect_uri'][0]}?code=c&state={query['state'][0]}{more}"


def origin(server: MisbehavingServer) -> str:
    """Return a server's origin."""
    return server.url.removesuffix("/mcp")


def told(server: MisbehavingServer) -> str:
    """Return everything that was sent to a server."""
    return " ".join(f"{asked.path} {asked.headers} {asked.body.decode()}" for asked in server.requests)


async def call(server: MisbehavingServer, auth: OAuth) -> None:
    """Sign in and call a tool."""
    async with Client(server.url, options=Options(auth=auth)) as client:
        await client.call("x")


@for_each("given", [{"client_credentials": True}, {}])
async def test_secrets_are_sent_only_to_their_issuer(given: dict[str, Any]) -> None:
    world = World()
    async with (
        misbehaving(world.resource) as server,
        misbehaving(world.issue) as good,
        misbehaving(world.issue) as evil,
    ):
        auth = OAuth(
            store=MemoryTokenStore(), client_id="me", client_secret=SECRET, redirect_handler=world.visit, **given
        )
        world.issuer = origin(good)
        await call(server, auth)
        assert len(good.requests) >= 2
        auth._store.save(MemoryTokenStore().load())  # as after a revocation of its tokens
        world.issuer = origin(evil)
        with pytest.raises(AccessDenied, match="these credentials are for"):
            await call(server, auth)
        assert SECRET not in told(evil)
        assert {asked.path.partition("/oauth")[0] for asked in evil.requests} <= {"/.well-known"}


async def test_configured_issuer_cannot_be_replaced() -> None:
    world = World()
    async with misbehaving(world.resource) as server, misbehaving(world.issue) as evil:
        world.issuer = origin(evil)
        options: dict[str, Any] = {"client_id": "me", "client_secret": SECRET, "client_credentials": True}
        with pytest.raises(AccessDenied, match=r"bank\.example"):
            await call(server, OAuth(store=MemoryTokenStore(), **options).for_issuer("https://bank.example"))
        assert "me" not in [asked.headers.get("authorization") for asked in evil.requests]
        assert SECRET not in told(evil)
        assert "POST" not in {asked.verb for asked in evil.requests}


async def test_registrations_and_refresh_tokens_are_kept_per_issuer() -> None:
    world, store = World(), MemoryTokenStore()
    async with (
        misbehaving(world.resource) as server,
        misbehaving(world.issue) as good,
        misbehaving(world.issue) as evil,
    ):
        auth = OAuth(store=store, redirect_handler=world.visit)
        world.issuer = origin(good)
        await call(server, auth)
        kept = store.load()
        for token in kept.tokens.values():
            token.access_token = "bad"
        store.save(kept)
        world.issuer = origin(evil)
        await call(server, auth)
        assert "renews" not in told(evil)
        assert f"registered-at-{urlsplit(good.url).netloc}" not in told(evil)
        assert set(store.load().registrations) == {origin(good), origin(evil)}


async def test_responses_from_another_issuer_are_rejected() -> None:
    """RFC 9207 §2.4."""
    world = World()
    world.authorize = {"iss": "https://evil.example"}
    async with misbehaving(world.resource) as server, misbehaving(world.issue) as good:
        world.issuer = origin(good)
        with pytest.raises(AccessDenied, match=r"evil\.example"):
            await call(server, OAuth(store=MemoryTokenStore(), redirect_handler=world.visit))
        assert "/token" not in {asked.path for asked in good.requests}


async def test_tokens_are_not_sent_to_another_server() -> None:
    world = World()
    async with misbehaving(world.resource) as server, misbehaving(world.issue) as good:
        world.issuer = origin(good)
        auth = OAuth(store=MemoryTokenStore(), redirect_handler=world.visit)
        await call(server, auth)
        async with misbehaving(with_discovery(lambda asked: asked.result(DONE))) as other:
            await call(other, auth)
            assert not any("authorization" in asked.headers for asked in other.requests)
