"""Client notifications that an extension handles. Each runs as a task, within the limits of calls."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from millstream._protocol.errors import ProtocolError, ToolError
from millstream._server.calls.call import Call
from millstream._server.calls.services import Services
from millstream._server.features.registry import Registry
from millstream._server.load import Load

_logger = logging.getLogger("millstream")


class Notifications:
    """The running handlers of one server.

    A notification isn't answered. One that exceeds a limit is dropped and logged at debug level.
    """

    __slots__ = ("_load", "_owners", "_registry", "_services", "_tasks")

    def __init__(self, registry: Registry, services: Services, load: Load) -> None:
        self._registry = registry
        self._services = services
        self._load = load
        self._tasks: set[asyncio.Task[None]] = set()
        self._owners: Counter[str] = Counter()
        """Caller (see `Call.owner`) -> number of its running handlers."""

    def take(self, call: Call, gate: Callable[[Call], Awaitable[None] | None] | None) -> None:
        """Start the handler of a notification, unless too many are running or `gate` refuses it."""
        load, owner = self._load, call.owner
        if len(self._tasks) >= load.max_calls or self._owners.get(owner, 0) >= load.max_each:
            _logger.debug("Dropped a client's %s: too many notifications are being handled.", call.method)
            return
        self._owners[owner] += 1
        task = asyncio.get_running_loop().create_task(self._run(call, gate))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._end(done, owner))

    def _end(self, task: asyncio.Task[None], owner: str) -> None:
        self._tasks.discard(task)
        self._owners[owner] -= 1
        if not self._owners[owner]:
            del self._owners[owner]

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
