"""The examples of the guides about protecting and running a server."""

import asyncio
import hashlib
import hmac
import json
import re
from pathlib import Path

import httpx2
import pytest

from auth_world import make_server, run_guarded
from examples import carded, keyed, serverless, shop_pages
from millstream.auth._key_file import KeyFile
from millstream.client import BlockingClient
from processes import free_port, run_command, run_server
from wire import request


async def test_named_keys_have_their_scopes() -> None:
    async with run_guarded(make_server(keyed.named())) as world:
        assert (await world.call(keyed.DESK_KEY, "who")).message["result"]["content"][0]["text"] == "desk"
        assert (await world.call(keyed.ROBOT_KEY, "who")).message["result"]["content"][0]["text"] == "robot"
        assert (await world.call("another", "who")).status == 403


async def test_keys_in_a_file_and_in_code_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    in_file = KeyFile(path).add("ada", (), 0.0, None)
    server = keyed.from_file(str(path))
    async with run_guarded(server) as world:
        for key, status in ((in_file, 200), (keyed.DESK_KEY, 200), ("another", 403)):
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
def test_traced_example_prints_the_call_and_its_part(tmp_path: Path) -> None:
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


async def test_webhook_of_shop_pages_checks_the_signature() -> None:
    body = b'{"order":"7"}'
    right = hmac.new(shop_pages.SECRET.encode(), body, hashlib.sha256).hexdigest()
    transport = httpx2.ASGITransport(shop_pages.mcp)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        for signature, status in (("", 403), ("0" * 64, 403), (right, 200)):
            reply = await http.post("/hooks/bank", content=body, headers={"x-signature": signature})
            assert reply.status_code == status
        assert shop_pages.paid == ["7"]
        assert "stranger" in (await http.get("/account")).text
    await shop_pages.mcp.stop()


async def test_card_of_the_example_describes_the_server() -> None:
    transport = httpx2.ASGITransport(carded.mcp)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        card = (await http.get("/mcp/server-card")).json()
    assert (card["title"], card["description"]) == ("Book shop", "Search books, and order them.")
    await carded.mcp.stop()
