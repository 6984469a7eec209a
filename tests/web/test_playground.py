import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from agent.shop import make as make_shop
from agent_world import KEY as MODEL_KEY
from agent_world import ScriptedModel, calls, hangs, refuses, repeats, says
from http_peer import NO_TRUST, prepare, serve
from millstream import Context, Server, ToolAnnotations, auth
from millstream._web.playground import MAX_CONVERSATIONS_EACH, MAX_TEXT
from patience import WAIT

ALL, READER, PLAIN = "key-that-may-do-all-0123456789", "key-that-reads-0123456789", "key-without-chat-0123456789"
OTHERS = [name for name in os.environ if "API" in name or name in ("DEFAULT_MODEL", "OPENAI_MODEL")]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """``api(script…)``: the environment names a model that follows the script."""
    monkeypatch.chdir(tmp_path)
    for name in OTHERS:
        monkeypatch.delenv(name)

    def start(*script: Any) -> ScriptedModel:
        model = ScriptedModel(*script)
        model.__enter__()
        started.append(model)
        for name, value in {"API_URL": model.url, "API_KEY": MODEL_KEY, "DEFAULT_MODEL": "test-model"}.items():
            monkeypatch.setenv(name, value)
        return model

    started: list[ScriptedModel] = []
    yield start
    for each in started:
        each.__exit__()


def shop(methods: Any = None) -> Server:
    """The shop of the agents with pages, and a tool that says who calls it."""
    mcp = Server("shop", serve="web", auth=methods)
    mcp.mount(make_shop())

    @mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
    async def who(ctx: Context) -> str:
        """Say who calls."""
        return ctx.principal.subject if ctx.principal else "nobody"

    @mcp.tool(scopes=["orders:write"], annotations=ToolAnnotations(read_only_hint=True))
    async def order() -> str:
        """Order a book."""
        return "ordered"

    return mcp


@asynccontextmanager
async def running(mcp: Server) -> AsyncIterator[str]:
    """The address of a server that runs, without its scheme."""
    async with mcp.running() as runtime:
        prepare(mcp, runtime)
        async with serve(mcp, lane=True) as served:
            yield f"127.0.0.1:{served.port}"


@asynccontextmanager
async def talking(address: str, **headers: str) -> AsyncIterator[ClientConnection]:
    """A conversation."""
    async with connect(f"ws://{address}/chat/playground/talk", additional_headers=headers, proxy=None) as socket:
        yield socket


async def send(socket: ClientConnection, **message: Any) -> None:
    """Send a message."""
    await socket.send(json.dumps(message))


async def until(socket: ClientConnection, kind: str) -> list[dict[str, Any]]:
    """Return what comes, up to the first message of a kind."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(WAIT):
        while not found or found[-1]["type"] != kind:
            found.append(json.loads(await socket.recv()))
    return found


def one(kind: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the only message of a kind."""
    [found] = [each for each in messages if each["type"] == kind]
    return found


async def test_model_uses_the_tools_and_each_call_shows_its_duration(api: Any) -> None:
    api(calls(("price", '{"isbn": "9780"}')), repeats("It costs "))
    async with running(shop()) as address, talking(address) as socket:
        await send(socket, type="say", text="How much?")
        heard = await until(socket, "idle")
    assert one("tool_start", heard)["arguments"] == {"isbn": "9780"}
    assert (one("tool_end", heard)["text"], one("tool_end", heard)["outcome"]) == ("4", "done")
    assert one("tool_end", heard)["milliseconds"] >= 0
    assert len([each for each in heard if each["type"] == "delta"]) > 1
    assert one("assistant_message", heard)["text"] == "It costs 4"


async def test_tool_that_may_change_something_runs_only_with_approval(api: Any) -> None:
    burn = calls(("burn", '{"isbn": "1"}'))
    api(burn, repeats(""), burn, repeats(""), burn, repeats(""))
    async with running(shop()) as address, talking(address) as socket:
        for decision, outcome in (("decline", "refused"), ("always", "done")):
            await send(socket, type="say", text="Burn it")
            asked = one("approval", await until(socket, "approval"))
            assert (asked["tool"], asked["arguments"], asked["description"]) == ("burn", {"isbn": "1"}, "Burn a book.")
            await send(socket, type="decide", id=asked["id"], decision=decision)
            assert one("tool_end", await until(socket, "idle"))["outcome"] == outcome
        await send(socket, type="say", text="Once more")
        heard = await until(socket, "idle")
        assert one("tool_end", heard)["outcome"] == "done"
        assert "approval" not in {each["type"] for each in heard}


async def test_user_fills_in_a_form_from_the_server(api: Any) -> None:
    api(calls(("deliver", "{}")), repeats("To "))
    async with running(shop()) as address, talking(address) as socket:
        await send(socket, type="say", text="Deliver it")
        asked = one("question", await until(socket, "question"))
        assert (asked["message"], set(asked["schema"]["properties"])) == ("Where to?", {"street", "copies"})
        await send(socket, type="fill", id=asked["id"], values={"street": "Mill Lane"})
        assert one("assistant_message", await until(socket, "idle"))["text"] == "To Mill Lane, 1"


async def test_users_can_stop_an_answer_and_continue_the_conversation(api: Any) -> None:
    model = api(hangs("Once upon"), says("Yes."))
    async with running(shop()) as address, talking(address) as socket:
        await send(socket, type="say", text="A story")
        await until(socket, "delta")
        await send(socket, type="say", text="Too early")
        assert "is still answering" in one("failed", await until(socket, "failed"))["reason"]
        await send(socket, type="stop")
        one("stopped", await until(socket, "idle"))
        await send(socket, type="say", text="Still there?")
        assert one("assistant_message", await until(socket, "idle"))["text"] == "Yes."
    assert [each["role"] for each in model.requests[-1].body["messages"]][-3:] == ["user", "assistant", "user"]


async def test_calls_run_as_the_caller_and_the_model_key_stays_on_the_server(api: Any) -> None:
    keys = auth.keys(ALL, named_keys={"grace": (READER, ["millstream:chat"]), "eve": (PLAIN, ["books:read"])})
    api(calls(("who", "{}"), ("order", "{}")), says("So."), refuses(401, f"Incorrect API key provided: {MODEL_KEY}"))
    async with running(shop(keys)) as address:
        grace = {"authorization": f"Bearer {READER}"}
        async with talking(address, **grace) as socket:
            await send(socket, type="say", text="Who am I?")
            heard = await until(socket, "idle")
            results = {each["tool"]: each for each in heard if each["type"] == "tool_end"}
            assert results["who"]["text"] == "grace"
            assert results["order"]["outcome"] in ("error", "invalid")
            await send(socket, type="say", text="Again")
            failed = await until(socket, "failed")
            assert "rejected this server's API key" in failed[-1]["reason"]
            assert MODEL_KEY not in json.dumps(heard + failed)
        async with httpx2.AsyncClient(base_url=f"http://{address}", verify=NO_TRUST) as client:
            states = {
                key: (await client.get("/chat/playground", headers={"authorization": f"Bearer {key}"})).json()["state"]
                for key in (ALL, READER, PLAIN)
            }
        assert states == {ALL: "ready", READER: "ready", PLAIN: "forbidden"}
        for headers, status in (({}, 401), ({"authorization": f"Bearer {PLAIN}"}, 403)):
            with pytest.raises(InvalidStatus) as refused:
                async with talking(address, **headers):
                    pass
            assert refused.value.response.status_code == status


async def test_playground_without_sign_in_works_only_on_this_machine(api: Any) -> None:
    mcp = shop()
    async with running(mcp) as address, httpx2.AsyncClient(base_url=f"http://{address}", verify=NO_TRUST) as client:
        state = (await client.get("/chat/playground")).json()
        assert state["state"] == "off"
        assert "DEFAULT_MODEL" in state["reason"]
        assert (await client.get("/chat/playground", headers={"x-forwarded-for": "192.0.2.1"})).status_code == 403
        with pytest.raises(InvalidStatus) as refused:
            async with talking(address, **{"x-forwarded-for": "192.0.2.1"}):
                pass
        assert refused.value.response.status_code == 403


async def test_sizes_and_conversations_are_bounded(api: Any) -> None:
    api(says("Yes."))
    async with running(shop()) as address:
        sockets = [
            await connect(f"ws://{address}/chat/playground/talk", proxy=None) for _ in range(MAX_CONVERSATIONS_EACH)
        ]
        await send(sockets[0], type="say", text="x" * (MAX_TEXT + 1))
        assert "at most 16,000" in (await until(sockets[0], "failed"))[-1]["reason"]
        await sockets[0].send('{"type": "dance"}')
        assert "malformed" in (await until(sockets[0], "failed"))[-1]["reason"]
        async with talking(address) as further:
            with pytest.raises(ConnectionClosed) as closed:
                await further.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, "too many conversations" in closed.value.rcvd.reason) == (1013, True)
        await sockets[1].close()
        await send(sockets[0], type="say", text="Still there?")
        assert one("assistant_message", await until(sockets[0], "idle"))["text"] == "Yes."
        for each in sockets:
            await each.close()


async def test_each_conversation_reads_the_env_file(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [api(says("first"), says("first again")), api(says("second"))]
    for name in ("API_URL", "API_KEY", "DEFAULT_MODEL"):
        monkeypatch.delenv(name)

    async def answer(socket: ClientConnection) -> str:
        await send(socket, type="say", text="Hello")
        return str(one("assistant_message", await until(socket, "idle"))["text"])

    async with running(shop()) as address, talking(address) as before:
        await send(before, type="say", text="Hello")
        assert "No model is configured" in one("failed", await until(before, "idle"))["reason"]
        write_env_file(models[0])
        assert await answer(before) == "first"
        write_env_file(models[1])
        async with talking(address) as after:
            assert await answer(after) == "second"
        assert await answer(before) == "first again"


def write_env_file(model: ScriptedModel) -> None:
    """Name a model in the file of the working directory."""
    Path(".env").write_text(f"API_URL={model.url}\nAPI_KEY={MODEL_KEY}\nDEFAULT_MODEL=test-model\n")


async def test_conversation_without_messages_ends_without_an_error(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    api()
    async with running(shop()) as address, talking(address):
        pass
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []


async def test_upstream_tools_marked_read_only_still_require_approval(api: Any) -> None:
    api(calls(("price", '{"isbn": "9780"}')), says("Well"), calls(("safe", "{}")), repeats("It said "))
    mcp = Server("office", serve="web")
    mcp.upstream("books", make_shop(), prefix="")

    @mcp.tool(annotations=ToolAnnotations(read_only_hint=True, destructive_hint=False))
    async def safe() -> str:
        """Only read."""
        return "yes"

    async with running(mcp) as address, talking(address) as socket:
        await send(socket, type="say", text="How much?")
        approval = (await until(socket, "approval"))[-1]
        assert (approval["tool"], approval["upstream"]) == ("price", "books")
        await send(socket, type="decide", id=approval["id"], decision="decline")
        assert one("tool_end", await until(socket, "idle"))["outcome"] == "refused"
        await send(socket, type="say", text="Is it safe?")
        assert one("tool_end", await until(socket, "idle"))["text"] == "yes"
