"""The addresses of MCP: each is described by its own URL (RFC 9728 §3.3), and tokens for one are valid at all."""

import json
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.routing import Mount

from auth.issuing.test_server_paths import shop, signed_in
from auth_world import GuardedServer, make_server, run_guarded
from cases import for_each
from issuer_world import ISSUER, claims, key_set, token
from millstream import auth
from wire import Reply, ask_asgi, request

HOST = "mcp.example.com"
ORIGIN = f"https://{HOST}"
PING = json.dumps(request("ping", id=5)).encode()
JSON = {"content_type": "application/json", "accept": "application/json, text/event-stream"}
ADDRESSES = {"/mcp": "POST", "/mcp/": "POST", "/sse": "GET", "/ws": "GET"}


def server(resource: str = f"{ORIGIN}/mcp", **options: Any) -> Any:
    """Return a server whose tokens come from an issuer."""
    method = auth.jwt(issuer=ISSUER, audience=resource, jwks=key_set())
    return make_server(method, allowed_hosts=[HOST], **options)


def metadata_url(reply: Reply) -> str:
    """Return the URL of the metadata in a challenge."""
    return reply.headers[b"www-authenticate"].split(b'resource_metadata="')[1].split(b'"')[0].decode()


async def described(world: GuardedServer, method: str, path: str, *, prefix: str = "", **headers: str) -> str:
    """Return the resource that the challenge of an address leads to, through a proxy that removes `prefix`."""
    refused = await world.ask(None, method, path, PING if method == "POST" else b"", host=HOST, **JSON, **headers)
    assert refused.status == 401
    url = metadata_url(refused)
    assert url.startswith(f"{ORIGIN}/.well-known/oauth-protected-resource")
    found = await world.ask(None, "GET", urlsplit(url).path, host=HOST)
    assert found.status == 200
    return str(found.message["resource"])


async def test_each_address_is_described_by_its_own_url() -> None:
    async with run_guarded(server()) as world:
        for path, method in ADDRESSES.items():
            assert await described(world, method, path) == ORIGIN + path
        root = await world.ask(None, "GET", "/.well-known/oauth-protected-resource", host=HOST)
        assert root.message["resource"] == f"{ORIGIN}/mcp"


async def test_metadata_for_the_messages_path_names_the_sse_path() -> None:
    async with run_guarded(server()) as world:
        assert await described(world, "POST", "/messages/") == f"{ORIGIN}/sse"


async def test_metadata_contains_the_path_prefix_of_a_proxy() -> None:
    async with run_guarded(server(f"{ORIGIN}/vault/mcp")) as world:
        for path, method in ADDRESSES.items():
            assert await described(world, method, path) == f"{ORIGIN}/vault{path}"


async def test_addresses_at_the_root_are_described() -> None:
    async with run_guarded(server(ORIGIN, path="/")) as world:
        assert await described(world, "POST", "/") == ORIGIN
        assert await described(world, "GET", "/sse") == f"{ORIGIN}/sse"


@for_each("resource", [ORIGIN, f"{ORIGIN}/tools-for-all", f"{ORIGIN}/tools/"])
async def test_metadata_for_every_address_contains_a_configured_resource(resource: str) -> None:
    async with run_guarded(server(resource)) as world:
        for path, method in ADDRESSES.items():
            assert await described(world, method, path) == resource


async def test_mounted_addresses_are_described_with_their_mount_path() -> None:
    app = Starlette(routes=[Mount("/books", server(f"{ORIGIN}/books/mcp"))])
    for path, method in (("/mcp", "POST"), ("/sse", "GET")):
        fields = [(b"host", HOST.encode()), *((k.replace("_", "-").encode(), v.encode()) for k, v in JSON.items())]
        body = PING if method == "POST" else b""
        url = metadata_url(await ask_asgi(app, method, f"/books{path}", fields, body))
        assert url == f"{ORIGIN}/books/.well-known/oauth-protected-resource{path}"
        found = await ask_asgi(app, "GET", url.removeprefix(ORIGIN), [(b"host", HOST.encode())], b"")
        assert json.loads(found.body)["resource"] == f"{ORIGIN}/books{path}"


async def test_tokens_for_one_address_are_valid_at_every_address() -> None:
    async with run_guarded(server()) as world:
        for audience in ADDRESSES:
            found = token(claims(aud=ORIGIN + audience))
            for path in ("/mcp", "/mcp/"):
                assert (await world.ask(found, "POST", path, PING, host=HOST, **JSON)).status == 200


@for_each("audience", [f"{ORIGIN}/other", f"{ORIGIN}/mcp/sse", f"{ORIGIN}:8443/sse", "http://mcp.example.com/sse",
                       "https://other.example.com/sse", f"{ORIGIN}/SSE", ORIGIN, "/sse", ""])  # fmt: skip
async def test_tokens_for_other_addresses_are_rejected(audience: str) -> None:
    async with run_guarded(server()) as world:
        found = token(claims(aud=audience))
        assert (await world.ask(found, "POST", "/mcp", PING, host=HOST, **JSON)).status == 401


async def test_configured_resource_is_described_for_every_host() -> None:
    async with run_guarded(make_server(auth.jwt(issuer=ISSUER, audience=f"{ORIGIN}/mcp", jwks=key_set()))) as world:
        for host in ("localhost", "127.0.0.1", "[::1]"):
            refused = await world.ask(None, "GET", "/sse", host=host, x_forwarded_host="evil.example")
            assert metadata_url(refused) == f"{ORIGIN}/.well-known/oauth-protected-resource/sse"


async def test_codes_for_any_address_yield_tokens_for_all_addresses() -> None:
    async with run_guarded(shop()) as world:
        for path in ADDRESSES:
            found = await signed_in(world, resource=ORIGIN + path)
            for other in ("/mcp", "/mcp/"):
                assert (await world.ask(found, "POST", other, PING, host=HOST, **JSON)).status == 200
            stream = await world.send(found, "GET", "/sse", host=HOST, accept="text/event-stream")
            assert (await stream.reply(head_only=True))[0] == 200
            stream.close()
