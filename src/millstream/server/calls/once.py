"""Effects that happen once although their round arrives twice: reserved in the store before they run."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from millstream.protocol.errors import ToolError
from millstream.server.calls.services import Services

_RUNNING = b"\x00"
"""Reserved: the effect runs, or ran on a worker that died. No JSON value looks like this."""
_TOPIC = "once:"
_LOOK_AGAIN = 1.0


async def once_stored(services: Services, name: str, run: Callable[[], Awaitable[bytes]]) -> bytes:
    """The value of an effect, run by whoever reserves it first; everybody else waits for it.

    Args:
        services: of the server.
        name: of the effect, the same wherever it must not happen twice.
        run: gives the value as JSON. When it raises, the effect counts as not done, and may be tried again.

    Raises:
        ToolError: another copy of the call reserved it, and gives no value within the time that a call has.
    """
    kv, seconds = services.store.kv, services.settings.state_ttl
    while not await kv.compare_and_set(name, None, _RUNNING, seconds):
        value = await _settled(services, name)
        if value is not None:
            return value
    try:
        done = await run()
        await kv.put(name, done, seconds)
    except BaseException:
        await kv.delete(name)
        raise
    finally:
        await services.store.bus.publish(_TOPIC + name, b"")
    return done


async def _settled(services: Services, name: str) -> bytes | None:
    """Wait for the copy that runs the effect: its value, or None when it failed and the next may try."""
    store, settled = services.store, asyncio.Event()
    unsubscribe = store.bus.subscribe(_TOPIC + name, lambda _: settled.set())
    try:
        async with asyncio.timeout(services.settings.state_ttl):
            while (value := await store.kv.get(name)) == _RUNNING:
                with suppress(TimeoutError):  # what the bus says is a hint, and may be lost
                    async with asyncio.timeout(_LOOK_AGAIN):
                        await settled.wait()
                settled.clear()
            return value
    except TimeoutError:
        raise ToolError("A copy of this call is still running. Try again later.") from None
    finally:
        unsubscribe()
