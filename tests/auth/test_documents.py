import asyncio
import json
import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from auth_world import ALICE, BOB, make_server, run_guarded
from examples import archive, limits, nightly, tokens
from issuer_world import claims, run_issuer, token
from issuing_world import KnownUsers
from millstream import Server, auth
from millstream._app.argument_checks import check_auth
from patience import WAIT
from processes import free_port
from programs import needs
from scripts.docs import ROOT
from wire import request

AUDIENCE = "https://mcp.example.com/mcp"


def protect(server: Server, *methods: Any) -> Server:
    """Return the server of an example with these auth methods."""
    server.definition.auth = check_auth(methods)
    server.definition.configure()
    return server


async def test_keys_page_shows_real_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "guides" / "authentication-with-keys.md").read_text("utf-8")
    monkeypatch.setattr(archive.mcp.definition, "auth", ())
    keys = auth.keys(named_keys={"alice": (ALICE, ["notes:write"]), "bob": BOB})
    async with run_guarded(protect(archive.mcp, keys)) as world:
        for key in (None, "wrong"):
            assert (await world.post(key, request("ping"))).body.decode() in page
        assert (await world.call(BOB, "write", {"name": "a", "text": "b"})).status == 403
        assert (await world.call(ALICE, "write", {"name": "a", "text": "b"})).status == 200
        assert "b (alice)" in (await world.call(BOB, "read", {"name": "a"})).body.decode()


async def test_tokens_page_shows_the_real_challenge(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "guides" / "accept-tokens.md").read_text("utf-8")
    monkeypatch.setattr(tokens.mcp.definition, "auth", tokens.mcp.definition.auth)
    async with run_issuer() as issuer:
        implied = {"orders:write": ["orders:read"]}
        method = auth.oidc(issuer.url, audience=AUDIENCE, scopes=["orders:read"], scope_includes=implied)
        async with run_guarded(protect(tokens.mcp, method)) as world:
            missing = await world.post(None, request("ping"))
            assert missing.headers[b"www-authenticate"].decode() in page
            good = token(claims(iss=issuer.url, scope="orders:write"))
            reply = await world.call(good, "order", {"isbn": "9780261103573"})
            assert reply.message["result"]["content"][0]["text"] == "9780261103573 is on its way to ada."
            reader = token(claims(iss=issuer.url, scope="orders:read"))
            assert (await world.call(reader, "order", {"isbn": "9780261103573"})).status == 403


async def test_tokens_page_examples_work() -> None:
    async with run_issuer() as issuer:
        said = claims(iss=issuer.url, scope="orders:write", aud=AUDIENCE)
        issuer.answers["/introspect"] = lambda request: json_answer({"active": b"opaque" in request, **said})
        good, other = token(said), token({**said, "aud": "https://other.example"})
        async with run_guarded(make_server(tokens.by_the_keys(issuer.url))) as world:
            assert (await world.call(good, "who")).message["result"]["content"][0]["text"] == "ada"
            assert (await world.call(other, "who")).status == 401
        async with run_guarded(make_server(tokens.by_asking(issuer.url, "a-secret"))) as world:
            assert (await world.call("opaque", "who")).message["result"]["content"][0]["text"] == "ada"
            assert (await world.call("another", "who")).status == 401


@pytest.mark.server
@needs("openssl")
async def test_authorization_server_page_commands_work(
    tmp_path: Path,
) -> None:
    page = (ROOT / "docs" / "guides" / "authorization-server.md").read_text("utf-8")
    for command in re.findall(r"^\$ (openssl .*)$", page, re.MULTILINE):
        run = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True, timeout=WAIT)
        await asyncio.to_thread(run, command.split())
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    client = nightly.nightly(tmp_path / "nightly.pub")
    async with run_guarded(make_server(auth.issuer(url, users=KnownUsers(), clients=[client])), port=port):
        assert await nightly.order(f"{url}/mcp", tmp_path / "nightly.pem") == "ordered 9780261103573"


def json_answer(value: Any) -> bytes:
    """Return a complete HTTP response."""
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def test_limits_page_example_works() -> None:
    async with run_guarded(limits.mcp) as world:
        statuses = [(await world.call(None, "crawl", {"url": "x"})).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        statuses = [(await world.call(None, "summarize", {"text": "x"})).status for _ in range(6)]
        assert statuses == [200] * 5 + [429]


def test_pages_quote_real_messages() -> None:
    pages = "".join((ROOT / "docs" / "guides" / f"{name}.md").read_text("utf-8") for name in (
        "authentication-with-keys", "accept-tokens", "rate-limits-and-quotas", "audit-log", "behind-a-proxy",
    ))  # fmt: skip
    functions, variables = re.findall(r"auth\.(\w+)\(", pages), re.findall(r"MILLSTREAM_(\w+)", pages)
    assert "keys" in functions
    assert set(functions) <= set(auth.__all__)
    settings = {field.upper() for field in json.loads(json.dumps(Server("x").settings.__struct_fields__))}
    assert variables
    assert set(variables) <= settings
