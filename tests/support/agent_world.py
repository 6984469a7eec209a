"""A scripted OpenAI-compatible API on a real socket, in its own thread.

It rejects requests that such APIs reject: invalid tool names, missing results of calls, and arguments that aren't JSON.
The response is 400, so the test fails.
"""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

from millstream.agent import Event, LanguageModel
from patience import WAIT

KEY = "sk-right"
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass
class Answer:
    """One reply of the API."""

    status: int = 200
    pieces: list[bytes] = field(default_factory=list[bytes])
    headers: dict[str, str] = field(default_factory=dict[str, str])
    media: str = "text/event-stream"
    then: str = "end"
    """How the reply ends: ``end``, ``cut`` (the connection breaks), or ``hang``."""


Step = Answer | Callable[[dict[str, Any]], Answer]


def event(choices: list[Any], **more: Any) -> bytes:
    body = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def delta(content: dict[str, Any], stop: str | None = None) -> bytes:
    return event([{"index": 0, "delta": content, "finish_reason": stop}])


def usage(tokens: int) -> list[bytes]:
    counts = {"prompt_tokens": tokens - 1, "completion_tokens": 1, "total_tokens": tokens}
    return [event([], usage=counts), b"data: [DONE]\n\n"]


def says(text: str, *, tokens: int = 10, stop: str = "stop", pieces: int = 3) -> Answer:
    """Return a reply with text in chunks."""
    size = max(1, -(-len(text) // pieces))
    parts = [delta({"content": text[at : at + size]}) for at in range(0, len(text), size)]
    return Answer(pieces=[delta({"role": "assistant", "content": ""}), *parts, delta({}, stop), *usage(tokens)])


def calls(*wanted: tuple[str, str], text: str = "", tokens: int = 10) -> Answer:
    """Return a reply with tool calls, whose arguments come in two chunks, like OpenAI's."""
    pieces = [delta({"role": "assistant", "content": text or None})]
    for index, (name, arguments) in enumerate(wanted):
        half = len(arguments) // 2
        head = {"index": index, "id": f"call_{index}_{name[:20]}", "type": "function"}
        pieces.append(delta({"tool_calls": [{**head, "function": {"name": name, "arguments": ""}}]}))
        halves = arguments[:half], arguments[half:]
        pieces += [delta({"tool_calls": [{"index": index, "function": {"arguments": part}}]}) for part in halves]
    return Answer(pieces=[*pieces, delta({}, "tool_calls"), *usage(tokens)])


def repeats(before: str) -> Callable[[dict[str, Any]], Answer]:
    """Return a reply with the text of the last tool result."""
    return lambda body: says(before + body["messages"][-1]["content"])


def refuses(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    """Return an error in OpenAI's format."""
    body = json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode()
    return Answer(
        status, [body], {name.replace("_", "-"): value for name, value in headers.items()}, "application/json"
    )


RATE_LIMITED = refuses(429, "Come back tomorrow.", retry_after="86400")


def breaks_off(text: str) -> Answer:
    """Return a reply with some text before a lost connection."""
    return Answer(pieces=[delta({"content": text})], then="cut")


def hangs(text: str) -> Answer:
    """Return a reply with some text that never ends."""
    return Answer(pieces=[delta({"content": text})], then="hang")


@dataclass
class ApiRequest:
    """One request to the API."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def last(self) -> dict[str, Any]:
        return self.body["messages"][-1]

    @property
    def tools(self) -> list[str]:
        return [tool["function"]["name"] for tool in self.body.get("tools", ())]


class ScriptedModel:
    """``with ScriptedModel(says("Hello")) as api``: responds to requests with the replies of its script, in order."""

    def __init__(self, *script: Step, key: str = KEY) -> None:
        self._script = list(script)
        self._key = key
        self.requests: list[ApiRequest] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._never = asyncio.Event()  # an unreferenced task would be garbage-collected
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()

        async def start() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]

        asyncio.run_coroutine_threadsafe(start(), self._loop).result(WAIT)
        return self

    def __exit__(self, *exc: object) -> None:
        async def stop() -> None:
            assert self._server is not None
            self._server.close()
            while rest := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in rest:
                    task.cancel()
                await asyncio.wait(rest)
            await asyncio.sleep(0)  # transports close in the loop's next round

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(WAIT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(await _read(reader), writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, asked: ApiRequest, writer: asyncio.StreamWriter) -> None:
        self.requests.append(asked)
        answer = self._choose(asked)
        head = [f"HTTP/1.1 {answer.status} X", f"content-type: {answer.media}", "transfer-encoding: chunked"]
        head += ["connection: close", *(f"{name}: {value}" for name, value in answer.headers.items())]
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n")
        for piece in answer.pieces:
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
        if answer.then == "hang":
            await self._never.wait()
        if answer.then == "end":
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    def _choose(self, asked: ApiRequest) -> Answer:
        if asked.headers.get("authorization") != f"Bearer {self._key}" and asked.headers.get("api-key") != self._key:
            return refuses(401, f"Incorrect API key provided: {asked.headers.get('authorization')}")
        problem = problem_of(asked.body)
        if problem:
            return refuses(400, problem)
        if not self._script:
            return refuses(400, "the script is over")
        step = self._script.pop(0)
        return step(asked.body) if callable(step) else step


def problem_of(body: dict[str, Any]) -> str:
    """Return why an API would reject a request, or an empty string."""
    if not body.get("model") or body.get("stream") is not True or not body.get("messages"):
        return "model, messages and stream are required"
    for tool in body.get("tools", []):
        if not NAME.fullmatch(tool["function"]["name"]) or tool["function"]["parameters"].get("type") != "object":
            return f"invalid tool {tool['function']['name']}"
        if {"allOf", "anyOf", "oneOf"} & tool["function"][
            "parameters"
        ].keys():  # as Claude's API (anthropics/claude-code#58841)
            return "input_schema does not support oneOf, allOf, or anyOf at the top level"
    return problem_of_messages(body["messages"])


def problem_of_messages(messages: list[dict[str, Any]]) -> str:
    """Check that roles alternate, and that each call has one result."""
    if any(first["role"] == second["role"] == "user" for first, second in pairwise(messages)):
        return "roles must alternate"
    open_calls: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls or not isinstance(message["content"], str):
                return f"unexpected result of {message['tool_call_id']}"
            open_calls.remove(message["tool_call_id"])
            continue
        if open_calls:
            return f"no result of {sorted(open_calls)}"
        for call in message.get("tool_calls", []):
            json.loads(call["function"]["arguments"])
            if not NAME.fullmatch(call["function"]["name"]):
                return f"invalid name {call['function']['name']}"
            open_calls.add(call["id"])
    return f"no result of {sorted(open_calls)}" if open_calls else ""


async def _read(reader: asyncio.StreamReader) -> ApiRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return ApiRequest(first.split()[1], headers, json.loads(body or b"{}"))


def model(api: ScriptedModel, name: str = "test-model", key: str = KEY) -> LanguageModel:
    """Return a client of the API."""
    return LanguageModel(name, key=key, url=api.url)


async def collect(events: AsyncIterator[Event]) -> list[Event]:
    """Return all events of an answer."""
    async with asyncio.timeout(WAIT):
        return [each async for each in events]


def of(kind: type[Any], events: list[Event]) -> list[Any]:
    """Return the events of one type."""
    return [each for each in events if isinstance(each, kind)]
