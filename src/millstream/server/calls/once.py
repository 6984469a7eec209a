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
    store, settings = services.store, services.settings
    if await store.kv.compare_and_set(name, None, _RUNNING, settings.state_ttl):
        try:
            done = await run()
            await store.kv.put(name, done, settings.state_ttl)
        except BaseException:
            await store.kv.delete(name)
            raise
        finally:
            await store.bus.publish(_TOPIC + name, b"")
        return done
    settled = asyncio.Event()
    unsubscribe = store.bus.subscribe(_TOPIC + name, lambda _: settled.set())
    try:
        async with asyncio.timeout(settings.state_ttl):
            while (value := await store.kv.get(name)) == _RUNNING:
                with suppress(TimeoutError):  # what the bus says is a hint, and may be lost
                    async with asyncio.timeout(_LOOK_AGAIN):
                        await settled.wait()
                settled.clear()
    except TimeoutError:
        raise ToolError("A copy of this call is still running. Try again later.") from None
    finally:
        unsubscribe()
    return await once_stored(services, name, run) if value is None else value
