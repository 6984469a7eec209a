"""Bridges between the hub and message buses, started after the hub and stopped before it."""

import asyncio
import logging
from collections.abc import Collection
from typing import Any

from millstream._app.parts import OwnPart
from millstream._override import override
from millstream._parts import Host
from millstream._stores.base import Store
from millstream.hub._bus import InboundBridge, OutboundBridge, backoff

_CLOSE: float = 5.0
"""Seconds for a broker to disconnect."""
logger = logging.getLogger("millstream.hub.bus")


class BusPart(OwnPart):
    """Runs the bridges declared with ``mcp.hub.from_bus`` and ``mcp.hub.to_bus``."""

    name: str = "bus"
    needs: Collection[str] = ("hub",)

    async def open(self, host: Host) -> None:
        """Connect in the background, so that the server starts even if a bus is down."""
        assert host.hub is not None  # noqa: S101  the part needs it
        waiting: dict[int, str] = {}
        host.check_ready(lambda: f"not connected to the message bus ({', '.join(waiting.values())})" if waiting else "")
        brokers: dict[int, Any] = {id(each.broker): each.broker for each in self.definition.bridges}
        runs: list[asyncio.Task[None]] = []
        for broker in brokers.values():
            mine = [each for each in self.definition.bridges if each.broker is broker]
            for each in mine:
                if isinstance(each, InboundBridge):
                    each.open(host.hub)
                else:
                    await each.open(host.store)
            waiting[id(broker)] = type(broker).__name__
            outbound = [each for each in mine if isinstance(each, OutboundBridge)]
            runs.append(asyncio.create_task(_run(broker, outbound, host.store, waiting)))

        async def stop(seconds: float) -> None:
            for each in runs:
                each.cancel()
            await asyncio.gather(*runs, return_exceptions=True)

        host.on_drain(stop)
        host.stack.push_async_callback(stop, 0)

    @override
    async def close(self) -> None:
        """Stop the bridges before the hub closes."""
        for each in self.definition.bridges:
            if isinstance(each, InboundBridge):
                each.open(None)


async def _run(broker: Any, outbound: list[OutboundBridge], store: Store, waiting: dict[int, str]) -> None:
    """Connect a broker, retrying until it succeeds, and send until canceled."""
    label = waiting[id(broker)]
    try:
        await _start(broker, label)
        del waiting[id(broker)]
        if outbound:
            async with asyncio.TaskGroup() as group:
                for each in outbound:
                    group.create_task(each.run(store))
        else:
            await asyncio.get_running_loop().create_future()
    except Exception:
        waiting[id(broker)] = label
        logger.exception("The bridges of %s have stopped. Restart the server.", label)
    finally:
        try:
            async with asyncio.timeout(_CLOSE):
                await broker.stop()
        except Exception:
            logger.warning("%s didn't stop in time. Its messages will be redelivered.", label, exc_info=True)


async def _start(broker: Any, label: str) -> None:
    attempt = 0
    while True:
        try:
            await broker.start()
        except Exception as error:
            log = logger.warning if not attempt else logger.debug
            log("%s can't connect. Retrying: %s", label, str(error)[:300] or type(error).__name__)
            await asyncio.sleep(backoff(attempt))
            attempt += 1
        else:
            if attempt:
                logger.warning("%s is connected.", label)
            return
