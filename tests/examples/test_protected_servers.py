"""The examples of the guides about protecting and running a server."""

import asyncio
import hashlib
import hmac
import json
import re
from pathlib import Path

import httpx2
import pytest

from account_parts import KeyFile
from auth_world import make_server, run_guarded
from examples import carded, keyed, serverless, shop_pages
from millstream.client import BlockingClient
from processes import free_port, run_command, run_server
from wire import request

DESK, ROBOT, SECRET = (f"a-key-of-the-{name}-for-this-test" for name in ("desk", "robot", "bank"))


@pytest.fixture
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("DESK_KEY", DESK)
    monkeypatch.setenv("ROBOT_KEY", ROBOT)


@pytest.mark.usefixtures("_keys")
async def test_named_keys_have_their_scopes() -> None:
    async with run_guarded(make_server(keyed.named())) as world:
        assert (await world.call(DESK, "who")).message["result"]["content"][0]["text"] == "desk"
        assert (await world.call(ROBOT, "who")).message["result"]["content"][0]["text"] == "robot"
        assert (await world.call("another", "who")).status == 403


@pytest.mark.usefixtures("_keys")
async def test_keys_in_a_file_and_in_code_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    in_file = KeyFile(path).add("ada", (), 0.0, None)
    server = keyed.from_file(str(path))
    async with run_guarded(server) as world:
        for key, status in ((in_file, 200), (DESK, 200), ("another", 403)):
            assert (await world.post(key, request("ping"))).status == status


def test_serverless_example_answers_in_a_new_event_loop_each_time() -> None:
    async def call() -> httpx2.Response:
        transport = httpx2.ASGITransport(serverless.mcp)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            message = request("tools/call", {"name": "price", "arguments": {"isbn": "123"}})
            return await http.post("/mcp", json=message, headers={"accept": "application/json, text/event-stream"})

    for _ in range(2):
        reply = asyncio.run(call())
        assert reply.headers["content-type"] == "application/json"
        assert reply.json()["result"]["content"][0]["text"] == "300"


@pytest.mark.server
def test_traced_example_prints_the_call_and_its_child_span(tmp_path: Path) -> None:
    port, output = free_port(), tmp_path / "log"
    with run_server(run_command("examples/traced.py", port), port, output):
        url = f"http://127.0.0.1:{port}/mcp"
        with BlockingClient(url) as client:
            assert client.call("price", isbn="123").data == 300
    text = output.read_text("utf-8")  # a stopping program writes what's waiting
    spans = {
        each["name"]: each for each in map(json.loads, re.findall(r"^\{\n.*?^\}$", text, re.MULTILINE | re.DOTALL))
    }
    assert spans["look up"]["parent_id"] == spans["tools/call price"]["context"]["span_id"]
    assert spans["tools/call price"]["attributes"]["gen_ai.operation.name"] == "execute_tool"


async def test_shop_webhook_checks_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"order":"7"}'
    unset, right = (hmac.new(secret, body, hashlib.sha256).hexdigest() for secret in (b"", SECRET.encode()))
    transport = httpx2.ASGITransport(shop_pages.mcp)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        assert (await http.post("/hooks/bank", content=body, headers={"x-signature": unset})).status_code == 403
        monkeypatch.setattr(shop_pages, "SECRET", SECRET)
        for signature, status in (("", 403), ("0" * 64, 403), (right, 200)):
            reply = await http.post("/hooks/bank", content=body, headers={"x-signature": signature})
            assert reply.status_code == status
        assert shop_pages.paid == ["7"]
        assert "stranger" in (await http.get("/account")).text
    await shop_pages.mcp.stop()


async def test_example_card_describes_the_server() -> None:
    transport = httpx2.ASGITransport(carded.mcp)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        card = (await http.get("/mcp/server-card")).json()
    assert (card["title"], card["description"]) == ("Book shop", "Search books, and order them.")
    await carded.mcp.stop()
