"""Side effects that happen once even if their round arrives twice. They're claimed in the store before they run.

A claim names its worker and is valid as long as that worker has its lease. If the worker dies, another copy of the
round claims the effect and runs it again, because its progress is unknown. An effect that must not happen twice even
then needs an idempotency key where it happens.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from millstream._protocol.errors import ToolError
from millstream._server.calls.services import Services

_CLAIM_PREFIX = b"\x00"
"""The first byte of a claim, followed by the worker's name. No JSON value starts with it."""
_TOPIC = "once:"
_LOOK_AGAIN = 1.0


async def once_stored(services: Services, name: str, run: Callable[[], Awaitable[bytes]]) -> bytes:
    """Return the value of an effect. The first caller runs it, and all others wait.

    Args:
        services: The server's services.
        name: The name that identifies the effect.
        run: Returns the value as JSON. If it raises, the effect doesn't count as done and can be retried.

    Raises:
        ToolError: Another copy of the call claimed the effect and returned no value within the time limit of calls.
    """
    kv, ttl = services.store.kv, services.settings.input_timeout
    claim = _CLAIM_PREFIX + services.store.workers.me.encode()
    limit = asyncio.timeout(ttl)
    try:
        async with limit:
            seen: bytes | None = None
            while seen is None or seen[:1] == _CLAIM_PREFIX:
                if await kv.compare_and_set(name, seen, claim, ttl):
                    limit.reschedule(None)  # the tool's own time limit applies
                    return await _run(services, name, claim, run)
                seen = await _wait_for_value(services, name)
    except TimeoutError:
        if not limit.expired():
            raise
        raise ToolError("A copy of this call is still running. Try again later.") from None
    return seen


async def _run(services: Services, name: str, claim: bytes, run: Callable[[], Awaitable[bytes]]) -> bytes:
    kv, ttl = services.store.kv, services.settings.input_timeout
    try:
        done = await run()
        # If another worker holds the claim, this one was paused for so long that it counted as dead.
        await kv.compare_and_set(name, claim, done, ttl)
    except BaseException:
        await kv.compare_and_set(name, claim, None, 1.0)
        raise
    finally:
        await services.store.bus.publish(_TOPIC + name, b"")
    return done


async def _wait_for_value(services: Services, name: str) -> bytes | None:
    """Return the value of an effect once it has one, or a claim that can be taken: one of a dead worker, or None."""
    store = services.store
    changed = asyncio.Event()
    stop = store.bus.subscribe(_TOPIC + name, lambda _: changed.set(), interrupted=changed.set)
    try:
        while True:
            value = await store.kv.get(name)
            if value is None or value[:1] != _CLAIM_PREFIX:
                return value
            worker = value[1:].decode()
            if worker != store.workers.me and not await store.workers.alive(worker):
                return value
            with suppress(TimeoutError):  # messages of the bus can be lost
                async with asyncio.timeout(_LOOK_AGAIN):
                    await changed.wait()
            changed.clear()
    finally:
        stop()
