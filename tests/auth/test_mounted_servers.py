import json
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount

from auth_world import make_server
from cases import for_each
from issuer_world import ISSUER, claims, key_set, token
from millstream import auth
from wire import Reply, ask_asgi, request

ORIGIN = "https://mcp.example.com"
HOST = (b"host", b"mcp.example.com")
PING = request("ping", id=5)


def application() -> Starlette:
    """Return an application with two mounted servers, books and news."""

    def one(name: str) -> Any:
        method = auth.jwt(issuer=ISSUER, audience=f"{ORIGIN}/{name}/mcp", jwks=key_set())
        return make_server(method, allowed_hosts=["mcp.example.com"])

    return Starlette(routes=[Mount(f"/{name}", one(name)) for name in ("books", "news")])


async def ask(app: Any, method: str, path: str, credential: str | None = None) -> Reply:
    """Send a request with the public host name."""
    fields = [HOST, (b"content-type", b"application/json"), (b"accept", b"application/json, text/event-stream")]
    if credential is not None:
        fields.append((b"authorization", f"Bearer {credential}".encode()))
    return await ask_asgi(app, method, path, fields, json.dumps(PING).encode() if method == "POST" else b"")


async def test_tokens_are_bound_to_their_mounted_server() -> None:
    app = application()
    for own, other in (("books", "news"), ("news", "books")):
        found = token(claims(aud=f"{ORIGIN}/{own}/mcp"))
        assert (await ask(app, "POST", f"/{own}/mcp", found)).status == 200
        assert (await ask(app, "POST", f"/{other}/mcp", found)).status == 401


@for_each("name", ["books", "news"])
@for_each("credential", [None, "wrong"])
async def test_mounted_servers_reference_existing_metadata(name: str, credential: str | None) -> None:
    app = application()
    refused = await ask(app, "POST", f"/{name}/mcp", credential)
    assert refused.status == 401
    url = refused.headers[b"www-authenticate"].split(b'resource_metadata="')[1].split(b'"')[0].decode()
    assert url.startswith(f"{ORIGIN}/{name}/")
    told = await ask(app, "GET", url.removeprefix(ORIGIN))
    assert told.status == 200
    assert json.loads(told.body)["resource"] == f"{ORIGIN}/{name}/mcp"
