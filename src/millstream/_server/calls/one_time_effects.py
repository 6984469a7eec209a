"""Effects that happen once although their round arrives twice: claimed in the store before they run.

A claim names its worker and holds as long as that one has its lease. When it dies in the middle, another copy of the
round claims the effect and runs it: nobody can know how far it came, so an effect that must not happen twice even then
needs a key of its own where it happens.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from millstream._protocol.errors import ToolError
from millstream._server.calls.services import Services

_RUNNING = b"\x00"
"""Begins a claim, which its worker's name follows. No JSON value looks like this."""
_TOPIC = "once:"
_LOOK_AGAIN = 1.0


async def once_stored(services: Services, name: str, run: Callable[[], Awaitable[bytes]]) -> bytes:
    """The value of an effect, run by whoever claims it first; everybody else waits for it.

    Args:
        services: of the server.
        name: of the effect, the same wherever it must not happen twice.
        run: gives the value as JSON. When it raises, the effect counts as not done, and may be tried again.

    Raises:
        ToolError: another copy of the call claimed it, and gives no value within the time that a call has.
    """
    kv, ttl = services.store.kv, services.settings.state_ttl
    claim = _RUNNING + services.store.workers.me.encode()
    limit = asyncio.timeout(ttl)
    try:
        async with limit:
            seen: bytes | None = None
            while seen is None or seen[:1] == _RUNNING:
                if await kv.compare_and_set(name, seen, claim, ttl):
                    limit.reschedule(None)  # a tool has a time limit of its own
                    return await _run(services, name, claim, run)
                seen = await _settled(services, name)
    except TimeoutError:
        if not limit.expired():
            raise
        raise ToolError("A copy of this call is still running. Try again later.") from None
    return seen


async def _run(services: Services, name: str, claim: bytes, run: Callable[[], Awaitable[bytes]]) -> bytes:
    kv, ttl = services.store.kv, services.settings.state_ttl
    try:
        done = await run()
        # Where another worker holds the claim by now, this one was stopped for so long that it counted as dead.
        await kv.compare_and_set(name, claim, done, ttl)
    except BaseException:
        await kv.compare_and_set(name, claim, None, 1.0)
        raise
    finally:
        await services.store.bus.publish(_TOPIC + name, b"")
    return done


async def _settled(services: Services, name: str) -> bytes | None:
    """The value of an effect, once it has one; or the claim of a worker that died, or None, for whoever takes it."""
    store = services.store
    changed = asyncio.Event()
    stop = store.bus.subscribe(_TOPIC + name, lambda _: changed.set(), interrupted=changed.set)
    try:
        while True:
            value = await store.kv.get(name)
            if value is None or value[:1] != _RUNNING:
                return value
            worker = value[1:].decode()
            if worker != store.workers.me and not await store.workers.alive(worker):
                return value
            with suppress(TimeoutError):  # what the bus says is a hint, and may be lost
                async with asyncio.timeout(_LOOK_AGAIN):
                    await changed.wait()
            changed.clear()
    finally:
        stop()
