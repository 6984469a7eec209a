"""What a caller learns from the credentials that the gateway removes from an upstream's errors."""

import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from client.misbehaving_servers import GREETING, OFFER, ReceivedRequest, misbehaving, refuse
from millstream import Client, Server
from millstream.client import ServerError
from millstream.gateway import OpenApi, ToolPolicy, UpstreamPolicy
from patience import WAIT

TOKEN = "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiJvcGVyYXRvciJ9.signature-4711-of-the-operator"
REVISIONS = "2026-07-28", "2025-11-25"
PROGRAM = """
import os
from millstream import ProtocolError, Server, ToolError
mcp = Server("up")
@mcp.tool
def weather(city: str, key: str = "") -> str:
    raise ToolError(f"I know no city {city} {key} {os.environ['DB_PASSWORD']} {os.environ['UP_TOKEN']}")
@mcp.tool
def fail(city: str) -> str:
    raise ProtocolError(-32000, f"I know no city {city}")
mcp.run("stdio")
"""
SECRETS = {"DB_PASSWORD": "sommer2024", "UP_TOKEN": TOKEN, "KEY": "operator-key-4711"}


@pytest.mark.server
async def test_redaction_does_not_tell_a_caller_which_of_its_words_is_a_secret(tmp_path: Path) -> None:
    (tmp_path / "up.py").write_text(PROGRAM)
    front = Server("front")
    policy = UpstreamPolicy(tools={"weather": ToolPolicy(hidden={"key": SECRETS["KEY"]})})
    command = [sys.executable, str(tmp_path / "up.py")]
    front.upstream("up", command, prefix="", env=SECRETS, policy=policy, start_timeout=WAIT, timeout=WAIT)
    words = "winter2024 sommer2024 berlin2024"
    for revision in REVISIONS:
        async with Client(front, timeout=WAIT, revision=revision) as client:
            plain = (await client.call("weather", city="Rome", raise_on_error=False)).text
            assert plain == "I know no city Rome [redacted] [redacted] [redacted]"
            guess = (await client.call("weather", city=words, raise_on_error=False)).text
            assert guess == f"I know no city {words} [redacted] sommer2024 [redacted]"
            begun = (await client.call("weather", city=TOKEN[:60], raise_on_error=False)).text
            assert TOKEN not in begun
            assert "signature" not in begun
            with pytest.raises(ServerError, match=f"I know no city {words}"):
                await client.call("fail", city=words)


async def quote_city(asked: ReceivedRequest) -> None:
    """Refuse a call with its own words and the gateway's key, in an HTTP error."""
    results = {"tools/list": {"tools": [{"name": "weather", "inputSchema": {"type": "object"}}]}}
    if asked.method in ("server/discover", "initialize") or asked.method in results:
        greeting = GREETING if asked.method == "initialize" else OFFER
        await asked.result(results.get(asked.method, greeting))  # type: ignore[arg-type]
    elif asked.path.startswith("/api") or asked.method == "tools/call":
        city = unquote(asked.path.partition("city=")[2]) or asked.message["params"]["arguments"]["city"]
        text = f"I know no city {city} {asked.headers.get('x-api-key')}"
        await asked.reply(text.encode(), status="422 No", type="text/plain")
    else:
        await refuse(asked)


async def test_callers_words_stay_in_http_errors_of_apis_catalogs_and_relays() -> None:
    parameter = {"name": "city", "in": "query", "schema": {"type": "string"}}
    operation = {"operationId": "weather", "parameters": [parameter], "responses": {"200": {"description": "ok"}}}
    document = {"openapi": "3.1.0", "info": {"title": "up", "version": "1"}, "paths": {"/w": {"get": operation}}}
    async with misbehaving(quote_city) as up:
        for way in ("api", "catalog", "relay"):
            front, headers = Server("front"), {"X-Api-Key": "sommer2024"}
            api = OpenApi(document=document, base_url=up.url.replace("/mcp", "/api"))
            target = {"openapi": api} if way == "api" else {"target": up.url}
            front.upstream("up", prefix="" if way == "relay" else "up", start_timeout=WAIT, headers=headers, **target)
            name = "weather" if way == "relay" else "up_weather"
            for revision in REVISIONS:
                async with Client(front, timeout=WAIT, revision=revision) as client:
                    plain = (await client.call(name, city="Rome", raise_on_error=False)).text
                    assert "I know no city Rome [redacted]" in plain, way
                    guess = (await client.call(name, city="winter2024 sommer2024", raise_on_error=False)).text
                    assert "I know no city winter2024 sommer2024 sommer2024" in guess, way
