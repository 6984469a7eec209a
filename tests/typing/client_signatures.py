# pyright: strict
# mypy: disallow-any-generics, disallow-untyped-calls, disallow-untyped-defs, disallow-untyped-decorators
# mypy: warn-return-any, warn-unused-ignores, no-implicit-reexport, strict-equality
# ruff: noqa: T201
"""Documented signatures of clients and agents, once each. Type checkers find no mistake."""

import asyncio
import math
import os
from pathlib import Path
from typing import Any

from server_signatures import mcp

from millstream import Client, Message, Text
from millstream.agent import (
    Agent,
    Approval,
    AssistantMessage,
    Configuration,
    LanguageModel,
    Limits,
    ServerConfig,
    TextDelta,
    ToolStart,
)
from millstream.client import (
    ConnectFailed,
    FileTokenStore,
    MemoryTokenStore,
    OAuth,
    Options,
    Question,
    ServerError,
    ToolFailed,
)
from millstream.testing import connect


async def fill(question: Question) -> dict[str, Any] | None:
    return {"street": "a"} if question.message else None


def fill_now(question: Question) -> dict[str, Any]:
    return {"a": 1}


async def model(request: Any) -> str:
    return "a"


def show(message: Any) -> None:
    print(message.level, message.data, message.logger)


async def changed(change: Any) -> None:
    print(change)


async def on_progress(value: float, total: float | None, message: str | None) -> None:
    print(value, total, message)


async def main() -> None:
    async with Client(
        "http://127.0.0.1:8000/mcp",
        revision="2025-11-25",
        headers={"x-a": "b"},
        timeout=math.inf,
        elicit=fill,
        sample=model,
        roots=["/tmp"],
        on_log=show,
        on_change=changed,
        options=Options(
            name="a",
            version="1",
            connect_timeout=3,
            log_level="info",
            env={"A": "b"},
            cwd=Path("/tmp"),
            stderr=True,
            cache=False,
        ),
        extensions=[],
    ) as client:
        result = await client.call("quick", a=1, raise_on_error=False, progress=on_progress, timeout=3)
        print(result.text, result.data, result.is_error, result.content, result.structured_content, result.meta)
        number: int = await client.call("plain", a=1, result_type=int)
        await client.call_tool("quick", {"a": 1}, progress=lambda value, total, message: print(value))
        print(
            number,
            client.capabilities,
            client.instructions,
            client.revision,
            client.server,
            client.transport,
            client.server_extensions,
        )
        for tool in await client.tools():
            print(tool.name, tool.title, tool.description, tool.input_schema, tool.output_schema, tool.annotations)
        async for page_tool in client.tools():
            print(page_tool.name)
        for resource in await client.resources():
            print(resource.uri, resource.mime_type)
        for template in await client.templates():
            print(template.uri_template)
        for prompt in await client.prompts():
            print(prompt.name, prompt.arguments)
        print(
            await client.list_tools(),
            await client.list_resources(),
            await client.list_resource_templates(),
            await client.list_prompts(),
        )
        for content in await client.read("shop://about"):
            print(content.uri, content.text, content.mime_type)
        await client.read_resource("shop://about")
        got = await client.prompt("review", title="a")
        print(got.messages[0].role, got.description)
        await client.get_prompt("review", {"title": "a"})
        print(await client.complete("title", "a", prompt="review"))
        completed = await client.complete("isbn", "9", template="shop://books/{isbn}")
        print(completed.values, completed.total, completed.has_more)
        task = await client.tasks.start("report", {})
        print(
            client.tasks.supported,
            task.task_id,
            await client.tasks.get(task.task_id),
            await client.tasks.wait(task.task_id),
        )
        await client.tasks.cancel(task.task_id)
        await client.ping()
        await client.notify("com.example/sold", {"sku": "7"})
        print(await client.request("tools/list", {}))
        await client.roots_changed()
        await client.set_log_level("debug")
        async with client.watch("shop://stock") as changes:
            async for change in changes:
                print(change)
                break
        for skill in await client.skills():
            print((await client.read_skill(skill)).decode())


async def errors() -> None:
    try:
        async with Client(["python", "shop.py"], elicit=fill_now) as client:
            await client.call("raw", a=1)
    except ToolFailed as exc:
        print(exc.result.text)
    except ServerError as exc:
        print(exc.code, exc.message, exc.data)
    except ConnectFailed as exc:
        print(exc)
    oauth = OAuth(
        store=FileTokenStore(Path("tokens.json")), client_id="a", client_secret="b", scope="x", client_credentials=True
    )
    other = OAuth(store=MemoryTokenStore(), name="Me").for_issuer("https://login.example.com").with_dpop()
    Client("https://example.com/mcp", options=Options(auth=oauth))
    Client({"mcpServers": {"a": {"command": "x"}}}, options=Options(auth=other))


async def memory() -> None:
    async with connect(
        mcp,
        revision="2025-11-25",
        elicit=fill,
        sample=model,
        roots=["/tmp"],
        on_log=show,
        on_change=changed,
        timeout=3,
        options=Options(),
        scopes=["a"],
    ) as client:
        print(await client.call("quick"))


def approve(approval: Approval) -> bool:
    return approval.kind == "tool" and approval.read_only


async def fill_in(server: str, question: Question) -> dict[str, Any] | None:
    return None


async def agent() -> None:
    configuration = Configuration.load(Path(".env"), os.environ)
    for each in (LanguageModel("gpt", key="k", url="http://127.0.0.1/v1", timeout=3), configuration.model()):
        async with Agent(
            each,
            [ServerConfig("shop.py", "shop", headers={}, timeout=3), configuration.server() or "shop.py"],
            system="Be short.",
            approve=approve,
            elicit=fill_in,
            roots=["/tmp"],
            limits=Limits(max_model_requests=3, max_tokens=10),
        ) as bot:
            async for event in bot.say("hi"):
                match event:
                    case TextDelta(text=text):
                        print(text)
                    case AssistantMessage(text=text):
                        print(text)
                    case ToolStart(tool=tool, arguments=arguments):
                        print(tool, arguments)
                    case _:
                        pass
            async for event in bot.prompt("review", {"title": "a"}):
                print(event)
            await bot.read("shop", "shop://about")
            print(bot.servers, bot.messages, bot.model, bot.limits, [tool.name for tool in await bot.tools()])
            bot.transcript.save(Path("t.jsonl"))


print(Message("user", Text("a")))
asyncio.run(main())
