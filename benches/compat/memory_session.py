"""One of our servers behind the streams that the official client reads and writes, in one loop."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from millstream._transports.memory import MemoryPipe


@asynccontextmanager
async def streams_of(engine: Any, message_type: Any, read: Any, dump: Any) -> AsyncGenerator[tuple[Any, Any]]:
    """Run a server and connect to it.

    Args:
        engine: our server.
        message_type: makes the client's message of a parsed one.
        read: parses JSON.
        dump: makes JSON of the client's message.
    """
    to_client, from_server = anyio.create_memory_object_stream[Any](100)
    to_server, from_client = anyio.create_memory_object_stream[Any](100)
    runtime = await engine.start(supervised=True)
    pipe = MemoryPipe(runtime.dispatcher)

    async def speak() -> None:
        while True:
            await to_client.send(message_type(read(await pipe.receive())))

    async def listen() -> None:
        async for message in from_client:
            pipe.send(dump(message))

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(speak)
            group.start_soon(listen)
            try:
                yield from_server, to_server
            finally:
                group.cancel_scope.cancel()
    finally:
        await pipe.close()
        await engine.stop()
