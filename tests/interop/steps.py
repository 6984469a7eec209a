"""The steps of a client of the official Python SDK with our examples, for both lines of the SDK.

Uses only method names that both lines have, and reads results as JSON. `hub` uses every feature of `examples/hub.py`,
`everything` the additional ones of `examples/everything.py`.
"""

import asyncio
import json
import time
import traceback
import urllib.request
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from patience import WAIT

ADDRESS = {"street": "1 Mill Lane", "city": "Bath", "speed": "express"}
MODEL_TEXT = "In short: all is well."
ROOT_URI = "file:///work"
HEARD = 1.0
"""Seconds that an attempt of `updates` waits; the next attempt gets updates that a late stream has missed."""

Stop = Callable[[Any, asyncio.Task[Any], int], Awaitable[None]]
"""Cancels a running call: receives the client, the task that waits for it, and the number of the request."""


def report_all(main: Callable[..., Coroutine[Any, Any, dict[str, Any]]], runs: str) -> str:
    """Run a client for each list of arguments in a JSON array, and return the reports as another."""
    reports: list[dict[str, Any]] = []
    for arguments in json.loads(runs):
        try:
            reports.append(asyncio.run(main(*arguments)))
        except Exception:
            reports.append({"failed": traceback.format_exc()[-4000:]})
    return json.dumps(reports)


def read(result: Any) -> dict[str, Any]:
    """Return a result as JSON."""
    return dict(result.model_dump(by_alias=True, mode="json", exclude_none=True))


def text(result: Any) -> str:
    """Return the first text of a tool's result."""
    return str(read(result)["content"][0]["text"])


async def hub(client: Any, types: Any, stop: Stop, health: str) -> dict[str, Any]:
    """Return one result for each feature."""
    steps: list[list[Any]] = []

    async def progress(value: float, total: float | None, message: str | None) -> None:
        steps.append([value, total, message])

    added = await client.call_tool("add_numbers", {"a": 2, "b": 3, "stream": True}, progress_callback=progress)
    prompt = read(await client.get_prompt("translate", {"text": "bonjour", "language": "Dutch"}))
    reference = types.PromptReference(type="ref/prompt", name="translate")
    completed = read(await client.complete(reference, {"name": "language", "value": "d"}))
    about = read(await client.read_resource("hub://about"))
    clock = read(await client.read_resource("time://Europe/Berlin"))
    templates = read(await client.list_resource_templates())["resourceTemplates"]
    return {
        "tools": sorted(tool.name for tool in (await client.list_tools()).tools),
        "resources": [str(item.uri) for item in (await client.list_resources()).resources],
        "templates": [item["uriTemplate"] for item in templates],
        "prompts": [prompt.name for prompt in (await client.list_prompts()).prompts],
        "sum": text(added),
        "progress": steps,
        "structured": read(await client.call_tool("get_server_info", {})).get("structuredContent"),
        "order": text(await client.call_tool("order_parcel", {"item": "flour"})),
        "summary": text(await client.call_tool("summarize", {"text": "A long story."})),
        "about": about["contents"][0]["text"],
        "clock": clock["contents"][0]["uri"],
        "prompt": prompt["messages"][0]["content"]["text"],
        "completion": completed["completion"]["values"],
        "wrong_arguments": await failure(client.call_tool("add_numbers", {"a": "two", "b": 3})),
        "unknown_tool": await failure(client.call_tool("no_such_tool", {})),
        "unknown_resource": await failure(client.read_resource("hub://nothing")),
        "cancel": await cancel(client, stop, health),
    }


async def failure(call: Awaitable[Any]) -> Any:
    """Return the code of a protocol error, or whether a result is an error."""
    try:
        result = read(await call)
    except Exception as exc:  # each line has its own error class
        return getattr(exc, "error", exc).code  # type: ignore[attr-defined]
    return {"isError": result.get("isError", False)}


async def cancel(client: Any, stop: Stop, health: str) -> str:
    """Cancel a long call after its first progress; the server drops it and serves the next."""
    begun = asyncio.Event()

    async def progress(value: float, total: float | None, message: str | None) -> None:
        begun.set()

    number = getattr(client, "_request_id", 0)
    arguments = {"steps": 1000, "seconds": 60}
    task = asyncio.ensure_future(client.call_tool("long_task", arguments, progress_callback=progress))
    async with asyncio.timeout(WAIT):
        await begun.wait()
        await stop(client, task, number)
        if health:
            await asyncio.to_thread(until_idle, health)
    return text(await client.call_tool("greet", {"name": "again"}))


def until_idle(health: str) -> None:
    """Wait until the server runs no call; open subscriptions count as calls."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        with urllib.request.urlopen(health, timeout=WAIT) as reply:  # noqa: S310  a loopback address of the test
            if json.load(reply)["calls"] == 0:
                return
        time.sleep(0.01)
    raise AssertionError("the server still runs the call that was canceled")


async def everything(client: Any) -> dict[str, Any]:
    """Return the results for features that the hub example doesn't have."""
    mixed = read(await client.call_tool("test_multiple_content_types", {}))
    return {
        "roots": text(await client.call_tool("test_input_required_result_list_roots", {})),
        "rounds": text(await client.call_tool("test_input_required_result_multiple_inputs", {})),
        "content": [block["type"] for block in mixed["content"]],
        "audio": read(await client.call_tool("test_audio_content", {}))["content"][0]["mimeType"],
        "tool_error": read(await client.call_tool("test_error_handling", {})).get("isError"),
        "binary": sorted(read(await client.read_resource("test://static-binary"))["contents"][0]),
        "image_prompt": read(await client.get_prompt("test_prompt_with_image", {}))["messages"][0]["content"]["type"],
    }


async def updates(client: Any, wait: Callable[[str], Awaitable[bool]]) -> bool:
    """Order until the update of a subscribed order arrives, because its stream may open late."""
    for _ in range(20):
        number = json.loads(text(await client.call_tool("order_parcel", {"item": "salt"})))["order"]
        if await wait(f"orders://{int(number) + 1}"):
            return True
    return False
