"""Client notifications that an extension handles. Each runs as a task, within the limits of calls."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from millstream._protocol.errors import ProtocolError, ToolError
from millstream._protocol.principal import Share
from millstream._server.calls.call import Call
from millstream._server.calls.services import Services
from millstream._server.features.registry import Registry
from millstream._server.load import Load

_logger = logging.getLogger("millstream")


class Notifications:
    """The running handlers of one server.

    A notification isn't answered. One that exceeds a limit is dropped and logged at debug level.
    """

    def __init__(self, registry: Registry, services: Services, load: Load) -> None:
        self._registry = registry
        self._services = services
        self._tasks: set[asyncio.Task[None]] = set()
        self._share = Share(load.max_calls, each=load.max_each)

    def take(self, call: Call, gate: Callable[[Call], Awaitable[None] | None] | None) -> None:
        """Start the handler of a notification, unless too many are running or `gate` refuses it."""
        owner = call.owner
        if not self._share.take(owner):
            _logger.debug("Dropped a client's %s: too many notifications are being handled.", call.method)
            return
        task = asyncio.get_running_loop().create_task(self._run(call, gate))
        self._tasks.add(task)

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._share.leave(owner)

        task.add_done_callback(end)

    async def _run(self, call: Call, gate: Callable[[Call], Awaitable[None] | None] | None) -> None:
        call.services = self._services
        try:
            if gate is not None and (gated := gate(call)) is not None:
                await gated
            handler = self._registry.notification_handlers.get(call.method)
            if handler is not None:
                await handler(call)
        except (ProtocolError, ToolError) as exc:
            _logger.debug("Refused a client's %s: %s", call.method, exc)
        except Exception:
            _logger.exception("The handler of %s failed.", call.method)
        finally:
            call.over = True
            if call.release is not None:
                call.release()

    def close(self) -> None:
        """Stop the running handlers."""
        for task in self._tasks:
            task.cancel()
