"""The last 1.x release of the official Python SDK against a server, in an environment of its own.

`client_one.py [[TRANSPORT, HUB, EVERYTHING, HEALTH], …]` prints a JSON report for each list of
arguments. HUB and EVERYTHING are URLs, or files for stdio.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import steps
from mcp import ClientSession, StdioServerParameters, types
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client
from mcp.shared.message import ClientMessageMetadata


async def elicit(context: Any, params: Any) -> types.ElicitResult:
    wanted = set(params.requestedSchema["properties"])
    return types.ElicitResult(action="accept", content=steps.ADDRESS if "street" in wanted else {"name": "Ada"})


async def sample(context: Any, params: Any) -> types.CreateMessageResult:
    content = types.TextContent(type="text", text=steps.MODEL_TEXT)
    return types.CreateMessageResult(role="assistant", content=content, model="toy")


async def roots(context: Any) -> types.ListRootsResult:
    return types.ListRootsResult(roots=[types.Root(uri=steps.ROOT_URI)])


@asynccontextmanager
async def connect(transport: str, target: str, updated: asyncio.Queue[str]) -> AsyncIterator[tuple[Any, Any]]:
    async def take(message: Any) -> None:
        root = getattr(message, "root", None)
        if isinstance(root, types.ResourceUpdatedNotification):
            updated.put_nowait(str(root.params.uri))

    async with AsyncExitStack() as stack:
        if transport == "stdio":
            program, *arguments = target.split()
            opening: Any = stdio_client(StdioServerParameters(command=program, args=arguments))
        else:
            opening = {"http": streamablehttp_client, "sse": sse_client}[transport](target)
        streams = await stack.enter_async_context(opening)
        session = ClientSession(
            *streams[:2],
            elicitation_callback=elicit,
            sampling_callback=sample,
            list_roots_callback=roots,
            message_handler=take,
        )
        await stack.enter_async_context(session)
        yield session, streams


async def stop(session: Any, task: asyncio.Task[Any], number: int) -> None:
    params = types.CancelledNotificationParams(requestId=number)
    await session.send_notification(types.ClientNotification(types.CancelledNotification(params=params)))
    await session.send_ping()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def resume(url: str) -> dict[str, Any]:
    """Disconnect during a call, and read the rest on another connection."""
    tokens: list[str] = []
    begun = asyncio.Event()

    async def note(token: str) -> None:
        tokens.append(token)
        if len(tokens) == 3:  # a priming event and two steps
            begun.set()

    arguments = {"steps": 5, "seconds": 0.5}
    params = types.CallToolRequestParams(name="long_task", arguments=arguments, _meta={"progressToken": 7})
    request = types.ClientRequest(types.CallToolRequest(params=params))
    async with (
        streamablehttp_client(url, terminate_on_close=False) as (reading, writing, session_id),
        ClientSession(reading, writing) as first,
    ):
        opened = await first.initialize()
        metadata = ClientMessageMetadata(on_resumption_token_update=note)
        task = asyncio.ensure_future(first.send_request(request, types.CallToolResult, metadata=metadata))
        async with asyncio.timeout(steps.WAIT):
            await begun.wait()
        known = session_id()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    cut = tokens[-1]
    seen: list[float] = []

    async def take(message: Any) -> None:
        if isinstance(message, types.ServerNotification) and isinstance(message.root, types.ProgressNotification):
            seen.append(message.root.params.progress)

    headers = {"mcp-session-id": known or "", "mcp-protocol-version": str(opened.protocolVersion)}
    async with (
        streamablehttp_client(url, headers=headers) as (reading, writing, _),
        ClientSession(reading, writing, message_handler=take) as second,
    ):
        metadata = ClientMessageMetadata(resumption_token=cut, on_resumption_token_update=note)
        result = await second.send_request(request, types.CallToolResult, metadata=metadata)
    return {"text": steps.text(result), "progress": seen}


async def main(transport: str, hub: str, everything: str, health: str) -> dict[str, Any]:
    updated: asyncio.Queue[str] = asyncio.Queue()
    async with connect(transport, hub, updated) as (session, _):
        opened = steps.read(await session.initialize())
        report = await steps.hub(session, types, stop, health)
        report["revision"], report["server"] = opened["protocolVersion"], opened["serverInfo"]["name"]
        await session.send_ping()

        async def wait(uri: str) -> bool:
            await session.subscribe_resource(uri)
            await session.call_tool("order_parcel", {"item": "yeast"})
            try:
                async with asyncio.timeout(steps.HEARD):
                    return await updated.get() == uri
            except TimeoutError:
                return False

        report["updates"] = await steps.updates(session, wait)
    async with connect(transport, everything, updated) as (session, _):
        await session.initialize()
        report["everything"] = await steps.everything(session)
        report["reconnected"] = steps.text(await session.call_tool("test_reconnection", {}))
    if transport == "http":
        report["resumed"] = await resume(hub)
    return report


if __name__ == "__main__":
    sys.stdout.write(steps.report_all(main, sys.argv[1]))
