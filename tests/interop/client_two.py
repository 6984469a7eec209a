"""The 2.x line of the official Python SDK against a server.

`client_two.py [[TRANSPORT, HUB, EVERYTHING, HEALTH, MODE], …]` prints a JSON report for each list of
arguments. HUB and EVERYTHING are URLs, or files for stdio; MODE is `legacy`, `auto`, or a revision.
"""

import asyncio
import sys
import warnings
from typing import Any

import mcp_types as types
import steps
from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client

warnings.simplefilter("ignore")  # for methods that the newest revision has removed


async def elicit(context: Any, params: Any) -> types.ElicitResult:
    wanted = set(params.requested_schema["properties"])
    return types.ElicitResult(action="accept", content=steps.ADDRESS if "street" in wanted else {"name": "Ada"})


async def sample(context: Any, params: Any) -> types.CreateMessageResult:
    content = types.TextContent(type="text", text=steps.MODEL_TEXT)
    return types.CreateMessageResult(role="assistant", content=content, model="toy")


async def roots(context: Any) -> types.ListRootsResult:
    return types.ListRootsResult(roots=[types.Root(uri=steps.ROOT_URI)])


def connect(transport: str, target: str, mode: str, updated: asyncio.Queue[str]) -> Client:
    async def take(message: Any) -> None:
        if isinstance(message, types.ResourceUpdatedNotification):
            updated.put_nowait(str(message.params.uri))

    server: Any = target
    if transport == "sse":
        server = sse_client(target)
    elif transport == "stdio":
        program, *arguments = target.split()
        server = StdioServerParameters(command=program, args=arguments)
    return Client(
        server,
        mode=mode,
        elicitation_callback=elicit,
        sampling_callback=sample,
        list_roots_callback=roots,
        message_handler=take,
    )


async def stop(client: Any, task: asyncio.Task[Any], number: int) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def main(transport: str, hub: str, everything: str, health: str, mode: str) -> dict[str, Any]:
    updated: asyncio.Queue[str] = asyncio.Queue()
    async with connect(transport, hub, mode, updated) as client:
        report = await steps.hub(client, types, stop, health)
        report["revision"] = revision = client.protocol_version
        report["server"] = client.server_info.name if client.server_info else ""
        handshake = mode == "legacy"
        if handshake:
            await client.send_ping()

        async def subscribed(uri: str) -> bool:
            await client.subscribe_resource(uri)
            await client.call_tool("order_parcel", {"item": "yeast"})
            try:
                async with asyncio.timeout(steps.HEARD):
                    return await updated.get() == uri
            except TimeoutError:
                return False

        async def listened(uri: str) -> bool:
            async with client.listen(resource_subscriptions=[uri]) as subscription:
                await client.call_tool("order_parcel", {"item": "yeast"})
                async with asyncio.timeout(steps.WAIT):
                    async for event in subscription:
                        return str(getattr(event, "uri", "")) == uri
            return False

        report["updates"] = await steps.updates(client, subscribed if handshake else listened)
    async with connect(transport, everything, mode, updated) as client:
        report["everything"] = await steps.everything(client)
        if handshake:
            report["reconnected"] = steps.text(await client.call_tool("test_reconnection", {}))
        assert client.protocol_version == revision
    return report


if __name__ == "__main__":
    sys.stdout.write(steps.report_all(main, sys.argv[1]))
