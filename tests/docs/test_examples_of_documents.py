import asyncio
import importlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx2
import pytest
import yaml
from standardwebhooks import Webhook
from websockets.asyncio.client import connect as websocket

import http_peer
from examples import compat_bookshop, events, fastapi_orders, watch_payments
from examples.rooms import may_use, mcp
from extensions.receiver import new_secret
from millstream import Principal
from millstream.compat.memory import create_connected_server_and_client_session
from millstream.testing import connect
from patience import WAIT
from processes import ROOT, SharedServer, free_port, run_command, run_server, share_server
from seeds.programs import running


async def test_chat_rooms_keep_messages() -> None:
    async with connect(mcp) as client:
        assert (await client.call("say", room="den", text="hello", name="Ada")).text == "Sent to 0 on this worker."
        assert (await client.call("announce", text="closing")).text == "Announced."
        assert (await client.call("whisper", client_id="ada", text="psst")).text == "Sent."
        assert (await client.call("recent", room="den")).data == ['{"name":"Ada","text":"hello"}']
        assert (await client.call("who", room="den")).data == []


def test_only_the_program_can_publish_announcements() -> None:
    assert may_use(None, "subscribe", "announcements")
    assert may_use(None, "publish", "room.den")
    assert not may_use(None, "publish", "announcements")


async def test_program_prints_the_payments_that_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    async with http_peer.serve(events.mcp) as served, connect(events.mcp) as client, asyncio.timeout(WAIT):
        url, before = f"http://127.0.0.1:{served.port}/mcp", events.mcp.hub.stats().subscribers
        waiting = asyncio.create_task(watch_payments.watch(url, "ada"))
        while events.mcp.hub.stats().subscribers == before:  # noqa: ASYNC110  until it waits
            await asyncio.sleep(0)
        for order, customer in (("o6", "bob"), ("o7", "ada")):
            await client.call("pay", order=order, customer=customer, total=12.5)
        printed = ""
        while "12.5" not in printed:
            await asyncio.sleep(0)
            printed += capsys.readouterr().out
        waiting.cancel()
        await events.mcp.stop()
    assert printed == "Waiting for payments by ada\no7 is paid: 12.5\n"
    page = (ROOT / "docs" / "guides" / "events.md").read_text("utf-8")
    assert all(f"```text\n{line}\n```" in page for line in printed.splitlines())


def test_refunds_reach_only_the_customer_who_asked_for_that_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADA_KEY", "key-of-ada-0123456789")
    monkeypatch.setenv("BOB_KEY", "key-of-bob-0123456789")
    events = importlib.import_module("examples.refunds")
    ada, bob = Principal("ada"), Principal("bob")
    refund, wanted = events.Refunded("7", "ada", 5), events.AtLeast(4)
    assert events.is_own(refund, wanted, ada)
    assert not events.is_own(refund, wanted, bob)
    assert not events.is_own(refund, events.AtLeast(6), ada)


async def test_webhook_receiver_accepts_only_recent_signed_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    secret, now = new_secret(), datetime.now(UTC)
    monkeypatch.setenv("WEBHOOK_SECRET", secret)
    app = importlib.import_module("examples.webhook_receiver").app

    async def post(body: str, key: str = secret, *, sent: datetime = now, first: str = "") -> httpx2.Response:
        headers = {
            "webhook-id": "msg_1",
            "webhook-timestamp": str(int(sent.timestamp())),
            "webhook-signature": first + Webhook(key).sign("msg_1", sent, body),
        }
        return await http.post("/hook", content=body, headers=headers)

    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="https://localhost") as http:
        assert (await post('{"type":"verification","challenge":"x"}')).json() == {"challenge": "x"}
        event = '{"name":"order.paid","data":{}}'
        assert (await post(event)).status_code == 204
        assert (await post(event, first="v1,b3RoZXI= ")).status_code == 204
        assert (await post(event, new_secret())).status_code == 401
        assert (await http.post("/hook", content=event)).status_code == 401
        assert (await post(event, first="v1 ")).status_code == 401
        assert (await post(event, sent=now - timedelta(minutes=6))).status_code == 401


async def test_applications_publish_on_a_mounted_hub() -> None:
    transport = httpx2.ASGITransport(fastapi_orders.app)
    async with fastapi_orders.app.router.lifespan_context(fastapi_orders.app):
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            reply = (await http.post("/orders/9780261103573")).json()
            assert (await http.get("/readyz")).text == "ok\n"
        (event,) = await fastapi_orders.mcp.hub.history("orders")
        assert (event.id, event.data) == (reply["event"], b'{"isbn":"9780261103573"}')


@pytest.mark.server
async def test_prometheus_example_scrapes_the_metrics(tmp_path: Path) -> None:
    (job,) = yaml.safe_load((ROOT / "examples" / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8000"]}]
    port = free_port()
    with run_server(run_command("examples/hub.py", port), port, tmp_path / "log"):
        async with running("curl", "-s", f"http://127.0.0.1:{port}{job['metrics_path']}") as program:
            assert (await program.line()).startswith("# HELP ")


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """`examples/hub.py`, started."""
    with share_server(partial(run_command, "examples/hub.py"), tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def hub_port(shared_hub: SharedServer) -> int:
    """The port of `examples/hub.py`."""
    return shared_hub.port()


@pytest.mark.server
async def test_documented_http_sse_messages_match_the_wire(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "explanation" / "eras.md").read_text("utf-8")
    messages = re.findall(r"""(?:-d '|POST `)(\{.*\})(?:'|`)""", page)
    assert [json.loads(each)["method"] for each in messages] == ["initialize", "tools/call", "tools/call"]
    port = free_port()
    with run_server(run_command("examples/greet.py", port), port, tmp_path / "log"):
        async with (
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=WAIT) as client,
            client.stream("GET", "/sse") as stream,
        ):
            for name in ("content-type", "cache-control", "x-accel-buffering", "transfer-encoding"):
                assert f"\n{name}: {stream.headers[name]}\n" in page
            lines = stream.aiter_lines()
            assert f"\n{await anext(lines)}\n" in page
            path = (await anext(lines)).removeprefix("data: ")
            assert path.startswith("/messages/?session_id=")
            for message in messages[:2]:
                posted = await client.post(path, content=message, headers={"content-type": "application/json"})
                assert (posted.status_code, posted.text) == (202, "Accepted")
                assert await anext(lines) == ""
                event = f"{await anext(lines)}\n{await anext(lines)}"
                assert f"\n{event}\n" in page
            direct = await client.post("/mcp", content=messages[2], headers={"content-type": "application/json"})
            assert f"\n\n{direct.text}\n```" in page


def as_documented(text: str) -> str:
    """Return a pattern for text in which … stands for what differs."""
    return re.escape(text).replace("…", ".+")


@pytest.mark.server
async def test_documented_websocket_messages_are_exchanged(hub_port: int) -> None:
    page = (ROOT / "docs" / "reference" / "websocket.md").read_text("utf-8")
    lines = re.findall(r"^([<>]) (\{.*\})$", page, re.MULTILINE)
    assert {side for side, _ in lines} == {"<", ">"}
    async with asyncio.timeout(WAIT), websocket(f"ws://127.0.0.1:{hub_port}/ws") as socket:
        for side, message in lines:
            if side == ">":
                await socket.send(message)
            else:
                assert re.fullmatch(as_documented(message), str(await socket.recv()))


@pytest.mark.server
async def test_documented_routes_respond_as_documented(hub_port: int) -> None:
    page = (ROOT / "docs" / "reference" / "routes.md").read_text("utf-8")
    examples = re.findall(r"^\$ curl -s http://127\.0\.0\.1:8000(/\w+)\n(.+)$", page, re.MULTILINE)
    assert len(examples) == 3
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{hub_port}", timeout=WAIT) as client:
        for path, text in examples:
            assert re.fullmatch(as_documented(text), (await client.get(path)).text.strip())


async def test_program_with_changed_imports_serves_its_tool() -> None:
    async with create_connected_server_and_client_session(compat_bookshop.mcp) as session:
        result = await session.call_tool("price", {"isbn": "9780261103573"})
    assert result.structuredContent == {"result": 9.99}
