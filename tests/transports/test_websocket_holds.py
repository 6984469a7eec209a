import asyncio
import gc
import tracemalloc
from collections.abc import Iterator

import pytest

from cases import for_each
from socket_world import TEXT, frame, world

LARGE = b'{"type":"ping","x":"%b"}' % (b"a" * 500_000)
SOCKETS = 6


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    """Memory is counted, and only counts of references free it."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


async def test_messages_are_freed_after_the_reply() -> None:
    async with world() as app:
        sockets = [await app.raw() for _ in range(SOCKETS)]
        before = tracemalloc.get_traced_memory()[0]
        for socket in sockets:
            await socket.send(frame(TEXT, LARGE))
            assert (await socket.message())["type"] == "pong"
        assert tracemalloc.get_traced_memory()[0] - before < 2 * len(LARGE)


@for_each("sent", [frame(TEXT, LARGE, fin=False), frame(TEXT, LARGE)[:-5]], ids=["fragment", "part"])
async def test_truncated_message_is_freed_with_its_connection(sent: bytes) -> None:
    async with world() as app:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(SOCKETS):
            socket = await app.raw()
            await socket.send(sent)
            await asyncio.sleep(0.02)
            socket.peer.close()
        for _ in range(200):
            if tracemalloc.get_traced_memory()[0] - before < 2 * len(LARGE):
                break
            await asyncio.sleep(0.05)
        assert tracemalloc.get_traced_memory()[0] - before < 2 * len(LARGE)
