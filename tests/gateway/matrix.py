"""Tests of each forwarded feature, with a client and an upstream of different revisions.

`FEATURES` contains the tests. `EXCLUSIONS` lists the features that a pair of revisions can't have, and why; the tests
then check the substitute.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

from gateway import matrix_world as world
from millstream._gateway.names import Names
from millstream.client import Client, Options, ServerError
from millstream.client._questions import Question
from millstream.client._server_messages import LogMessage
from patience import WAIT

Json = dict[str, Any]

R1, R2, R3, R4, R5 = DATES = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
TRANSPORTS = {
    "stdio": DATES,
    "http": DATES[1:],
    "sse": DATES[:-1],
    "websocket": DATES,
    "memory": DATES,
}
"""Transport -> its revisions."""


class Exclusion(NamedTuple):
    """Features that a pair of revisions can't have."""

    features: tuple[str, ...]
    since: str
    """Both sides need this revision."""
    reason: str


EXCLUSIONS = (
    Exclusion(("audio",), R2, "2024-11-05 has no audio, so audio becomes an embedded resource"),
    Exclusion(("progress text",), R2, "2024-11-05 has no text in progress notifications, so only the numbers pass"),
    Exclusion(
        ("structured object", "resource link"),
        R3,
        "Before 2025-06-18, there were no structured results or resource links, so both become text",
    ),
    Exclusion(
        (
            "form",
            "form with choices",
            "several questions at once",
            "question that a prompt asks",
            "question that a resource asks",
        ),
        R3,
        "Before 2025-06-18, servers couldn't ask the user, so an upstream that asks gets an error",
    ),
    Exclusion(
        ("URL to open", "sampling with tools"),
        R4,
        "Before 2025-11-25, there was no URL elicitation and no sampling with tools, so an upstream that uses one of "
        "them gets an error",
    ),
    Exclusion(
        ("structured value of any type",),
        R5,
        "Before 2026-07-28, structured results had to be objects. Other values are wrapped as `result`, or become text",
    ),
)


@dataclass
class Person:
    """The client of a pair, with its answers to questions, and a record of questions and log messages."""

    client: Client = field(init=False)
    questions: list[str] = field(default_factory=list)
    logs: list[LogMessage] = field(default_factory=list)

    def elicit(self, question: Question) -> Any:
        """Answer a form or a URL question."""
        upstream, _, message = question.message.partition("] ")
        assert upstream.startswith("[")
        self.questions.append(message)
        if question.mode == "url":
            return True
        if message == "choices":
            fields = (question.requested_schema or {})["properties"]
            return {"color": "g", "sizes": ["m"] if fields["sizes"]["type"] == "array" else "m"}
        return {"x": len(message), "y": 1}

    def sample(self, params: Any) -> str:
        """Answer a sampling request."""
        self.questions.append("sampling")
        return f"{len(params.messages)} messages, {len(params.tools or ())} tools"


def make_person(target: Any, revision: str) -> Person:
    """Return a client of a revision that isn't connected yet."""
    made = Person()
    level = "info" if revision == R5 else ""
    options = Options(extra_capabilities={"sampling": {"tools": {}}}, log_level=level, cache=False)
    made.client = Client(
        target,
        revision=revision,
        elicit=made.elicit,
        sample=made.sample,
        roots=["file:///work"],
        on_log=made.logs.append,
        timeout=WAIT,
        options=options,
    )
    return made


@dataclass(frozen=True)
class Pair:
    """One client and one upstream of a gateway."""

    person: Person
    prefix: str
    down: str
    up: str
    label: str

    def both(self, since: str) -> bool:
        """Return whether both sides have at least a revision."""
        return min(self.down, self.up) >= since

    def has(self, feature: str) -> bool:
        """Return whether the pair can have a feature."""
        return all(self.both(each.since) for each in EXCLUSIONS if feature in each.features)

    def uri(self, uri: str) -> str:
        """Return an upstream's URI as it is on the gateway."""
        return Names(self.prefix).uri(uri)

    async def request(self, method: str, params: Json, **options: Any) -> Json:
        """Return the raw result of a request."""
        return await self.person.client.request(method, params, **options)

    async def call(self, tool: str, arguments: Json | None = None, meta: Json | None = None, **options: Any) -> Json:
        """Return the raw result of a tool."""
        params: Json = {"name": f"{self.prefix}_{tool}", "arguments": arguments or {}}
        return await self.request("tools/call", {**params, "_meta": meta} if meta else params, **options)

    async def text(self, tool: str, **arguments: Any) -> str:
        """Return the text of a tool's result."""
        return str((await self.call(tool, arguments))["content"][0]["text"])

    async def expect_error(self, tool: str) -> None:
        """Check that a tool ends with a tool error or a protocol error."""
        code, result = await self.code(tool)
        assert code in (-32602, -32603, -32601) or result["isError"], (code, result)

    async def code(self, tool: str, arguments: Json | None = None) -> tuple[int, Json]:
        """Return the code of an error, or 0 and the result."""
        try:
            return 0, await self.call(tool, arguments)
        except ServerError as exc:
            return exc.code, {}


Feature = Callable[[Pair], Awaitable[None]]
FEATURES: dict[str, Feature] = {}


def feature(name: str) -> Callable[[Feature], Feature]:
    """Register the test of a feature."""

    def register(function: Feature) -> Feature:
        FEATURES[name] = function
        return function

    return register


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# Results


@feature("text, images, and embedded resources")
async def contents(pair: Pair) -> None:
    blocks = (await pair.call("contents"))["content"]
    assert blocks[0] == {"type": "text", "text": "Grüße, 世界 \u2028"}
    assert blocks[1] == {"type": "image", "data": encode_base64(world.PNG), "mimeType": "image/png"}
    inside = {"uri": pair.uri("note://text"), "mimeType": "text/plain", "text": "inside"}
    assert blocks[4] == {"type": "resource", "resource": inside}
    data = {
        "uri": pair.uri("note://bytes"),
        "mimeType": "application/octet-stream",
        "blob": encode_base64(world.BINARY),
    }
    assert blocks[5] == {"type": "resource", "resource": data}


@feature("audio")
async def audio(pair: Pair) -> None:
    block = (await pair.call("contents"))["content"][2]
    if pair.has("audio"):
        assert block == {"type": "audio", "data": encode_base64(world.WAV), "mimeType": "audio/wav"}
    else:
        assert block["type"] == "resource"
        assert block["resource"]["blob"] == encode_base64(world.WAV)


@feature("resource link")
async def resource_link(pair: Pair) -> None:
    block = (await pair.call("contents"))["content"][3]
    if pair.has("resource link"):
        assert block == {"type": "resource_link", "uri": pair.uri("note://text"), "name": "text", "title": "A note"}
        read = await pair.request("resources/read", {"uri": block["uri"]})
        assert read["contents"][0]["text"] == "a note"
    else:
        assert block["type"] == "text"
        assert block["text"].startswith("A note: ")


@feature("structured object")
async def structured(pair: Pair) -> None:
    result = await pair.call("point", {"x": 5})
    tools = {each["name"]: each for each in (await pair.request("tools/list", {}))["tools"]}
    described = tools[f"{pair.prefix}_point"]
    if pair.has("structured object"):
        assert result["structuredContent"] == {"x": 5, "y": 2}
        assert described["outputSchema"]["type"] == "object"
    else:
        assert "structuredContent" not in result
        assert "outputSchema" not in described
    assert '"x":5' in result["content"][0]["text"]


@feature("structured value of any type")
async def numbers(pair: Pair) -> None:
    result = await pair.call("numbers")
    if pair.has("structured value of any type"):
        assert result["structuredContent"] == [1, 2, 3]
    elif pair.has("structured object"):
        assert result["structuredContent"] == {"result": [1, 2, 3]}
    else:
        assert "structuredContent" not in result


@feature("tool errors")
async def tool_error(pair: Pair) -> None:
    result = await pair.call("fails")
    assert result["isError"] is True
    assert result["content"][0]["text"] == "Sold out."


@feature("errors with code and data")
async def protocol_error(pair: Pair) -> None:
    with pytest.raises(ServerError) as caught:
        await pair.call("refuses")
    assert (caught.value.code, caught.value.message) == (world.CODE, "Not today")
    assert caught.value.data == {"until": "Monday"}


@feature("arguments, and errors in them")
async def arguments(pair: Pair) -> None:
    assert await pair.text("add", a=1, b=2) == "3"
    code, result = await pair.code("add", {"a": "one"})
    assert code == -32602 if pair.up < R4 else result["isError"]


@feature("`_meta`")
async def meta(pair: Pair) -> None:
    result = await pair.call("about", meta={"example.com/there": {"n": 1}})
    assert result["_meta"]["example.com/back"] == {"n": 1}


# While it runs


@feature("progress")
async def progress(pair: Pair) -> None:
    heard: list[Any] = []
    await pair.call("steps", progress=lambda *step: heard.append(step))
    assert [step[:2] for step in heard] == [(1, 3), (2, 3), (3, 3)]


@feature("progress text")
async def progress_text(pair: Pair) -> None:
    heard: list[Any] = []
    await pair.call("steps", progress=lambda *step: heard.append(step))
    assert [step[2] for step in heard] == (
        ["step 1", "step 2", "step 3"] if pair.has("progress text") else [None, None, None]
    )


@feature("log messages, by level")
async def logs(pair: Pair) -> None:
    logs = pair.person.logs
    if pair.down != R5:
        await pair.person.client.set_log_level("info")
    logs.clear()
    await pair.call("says")
    assert [(log.level, log.data) for log in logs] == [("info", {"n": 1}), ("error", "loud")]


@feature("cancellation")
async def cancellation(pair: Pair) -> None:
    task = asyncio.create_task(pair.call("waits", {"key": pair.label}))
    assert await pair.text("awaited", key=pair.label, text="began") == "began"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await pair.text("awaited", key=pair.label, text="ended") == "ended"


# Questions


@feature("form")
async def form(pair: Pair) -> None:
    if not pair.has("form"):
        await pair.expect_error("asks")
        return
    pair.person.questions.clear()
    assert await pair.text("asks") == "5 6"
    assert pair.person.questions == ["first", "second"]


@feature("form with choices")
async def choices(pair: Pair) -> None:
    if pair.has("form"):
        assert await pair.text("asks_choices") == "g ['m']"
    else:
        await pair.expect_error("asks_choices")


@feature("several questions at once")
async def several(pair: Pair) -> None:
    if pair.has("several questions at once"):
        assert await pair.text("asks_all") == "5 1 messages, 0 tools file:///work"
    else:
        await pair.expect_error("asks_all")


@feature("URL to open")
async def url(pair: Pair) -> None:
    if pair.has("URL to open"):
        assert await pair.text("asks_url") == "paid"
    else:
        await pair.expect_error("asks_url")


@feature("sampling")
async def sampling(pair: Pair) -> None:
    assert await pair.text("samples") == "2 messages, 0 tools"


@feature("sampling with tools")
async def sampling_with_tools(pair: Pair) -> None:
    if pair.has("sampling with tools"):
        assert await pair.text("samples_with_tools") == "1 messages, 1 tools"
    else:
        await pair.expect_error("samples_with_tools")


@feature("roots")
async def roots(pair: Pair) -> None:
    assert "file:///work" in await pair.text("lists_roots")


# Prompts, resources, and completion


@feature("prompts")
async def prompts(pair: Pair) -> None:
    found = await pair.request("prompts/get", {"name": f"{pair.prefix}_greet", "arguments": {"name": "Ada"}})
    assert found["messages"][0] == {"role": "user", "content": {"type": "text", "text": "Greet Ada"}}
    content = found["messages"][1]["content"]
    assert content["type"] == ("audio" if pair.both(R2) else "resource")


@feature("question that a prompt asks")
async def prompt_question(pair: Pair) -> None:
    params = {"name": f"{pair.prefix}_asking"}
    if pair.has("question that a prompt asks"):
        found = await pair.request("prompts/get", params)
        assert found["messages"][0]["content"]["text"] == "About 6"
    else:
        with pytest.raises(ServerError):
            await pair.request("prompts/get", params)


@feature("completion")
async def completion(pair: Pair) -> None:
    references = (
        ({"type": "ref/prompt", "name": f"{pair.prefix}_greet"}, "name", "A", ["Ada", "Alan"]),
        ({"type": "ref/resource", "uri": pair.uri("book://{isbn}/{page}")}, "isbn", "11", ["111", "112"]),
    )
    for reference, name, value, expected in references:
        params = {"ref": reference, "argument": {"name": name, "value": value}}
        assert (await pair.request("completion/complete", params))["completion"]["values"] == expected


@feature("resources and templates")
async def resources(pair: Pair) -> None:
    listed = {each["uri"] for each in (await pair.request("resources/list", {}))["resources"]}
    assert {pair.uri("note://text"), pair.uri("note://bytes")} <= listed
    found = (await pair.request("resources/read", {"uri": pair.uri("note://text")}))["contents"][0]
    assert (found["uri"], found["text"]) == (pair.uri("note://text"), "a note")
    found = (await pair.request("resources/read", {"uri": pair.uri("note://bytes")}))["contents"][0]
    assert found["blob"] == encode_base64(world.BINARY)
    found = (await pair.request("resources/read", {"uri": pair.uri("book://7/12")}))["contents"][0]
    assert found["text"] == "7 page 12"


@feature("missing resource")
async def missing(pair: Pair) -> None:
    with pytest.raises(ServerError) as caught:
        await pair.request("resources/read", {"uri": pair.uri("note://none")})
    assert caught.value.code == (-32602 if pair.down == R5 else -32002)


@feature("question that a resource asks")
async def resource_question(pair: Pair) -> None:
    params = {"uri": pair.uri("note://asking")}
    if pair.has("question that a resource asks"):
        found = await pair.request("resources/read", params)
        assert found["contents"][0]["text"] == "Place 5"
    else:
        with pytest.raises(ServerError):
            await pair.request("resources/read", params)


@feature("resource subscriptions")
async def subscriptions(pair: Pair) -> None:
    uri = pair.uri("order://7")
    async with pair.person.client.watch(uri) as changes:
        touching = asyncio.create_task(touch(pair))
        try:
            async for change in changes:
                if (change.kind, change.uri) == ("resource", uri):
                    break
        finally:
            touching.cancel()
            await asyncio.gather(touching, return_exceptions=True)


async def touch(pair: Pair) -> None:
    """Update the resource until the client is notified, because the gateway subscribes after its client."""
    while True:
        await pair.text("touch", uri="order://7")
        await asyncio.sleep(0.01)


@feature("list changes")
async def list_changes(pair: Pair) -> None:
    name = f"new{pair.label}"
    async with pair.person.client.watch(tools=True) as changes:
        await pair.text("grow", name=name)
        async for change in changes:
            if change.kind in ("tools", "again"):
                tools = (await pair.request("tools/list", {}))["tools"]
                if any(each["name"] == f"{pair.prefix}_{name}" for each in tools):
                    break
    assert await pair.text(name) == "new"
    await pair.text("shrink", name=name)
