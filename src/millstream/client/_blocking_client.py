"""`BlockingClient` is a client for programs without `async`."""

import asyncio
import copy
import inspect
import threading
from collections.abc import Callable
from typing import Any, Self, Unpack

from millstream._override import override
from millstream.client._client import Client, ClientArguments, create_client
from millstream.client._errors import ClientError
from millstream.client._targets import Target


class BlockingClient:
    """A blocking `Client`: ``with BlockingClient("shop.py") as c: print(c.call("add", a=1, b=2).text)``.

    It has the methods of `Client`, and each one blocks until its result is available. Lists are returned in full.
    Handlers run in another thread. Use `Client` for `watch`, `tasks`, and `events`.

    Args:
        target: A URL, a command, a script, a `Server`, or a configuration with `mcpServers`.
        more: Keyword arguments for `Client`.
    """

    def __init__(self, target: Target, **more: Unpack[ClientArguments]) -> None:
        self._client = Client(target, **more)
        self._loop: asyncio.AbstractEventLoop | None = None
        """Runs in the thread inside the block."""
        self._depth = 0
        self._thread = threading.Thread()

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return (create_client, (type(self), *self._client.__reduce__()[1][1:]))

    def __deepcopy__(self, memo: object) -> Self:
        """Return a client that isn't open, with the same target, handlers, and options: they aren't copied."""
        return copy.copy(self)

    def __enter__(self) -> Self:
        if self._loop is None:
            runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
            self._loop = runner.get_loop()
            self._thread = threading.Thread(target=_run, args=(runner,), name="millstream-client", daemon=True)
            self._thread.start()
        try:
            self._wait(self._client.__aenter__)
        except BaseException:
            self._stop()
            raise
        self._depth += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        try:
            self._wait(self._client.__aexit__, *exc)
        finally:
            self._stop()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found

        def method(*args: Any, **kwargs: Any) -> Any:
            return self._wait(found, *args, **kwargs)

        return method

    def _wait(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        async def result() -> Any:
            found = work(*args, **kwargs)
            return await found if inspect.isawaitable(found) else found

        if self._loop is None:
            raise ClientError("The client isn't connected. Use `with BlockingClient(…) as client:`.")
        return asyncio.run_coroutine_threadsafe(result(), self._loop).result()

    def _stop(self) -> None:
        if self._loop is not None and not self._depth:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop = None


def _run(runner: asyncio.Runner) -> None:
    with runner:  # cancels calls that Ctrl-C interrupted
        runner.get_loop().run_forever()
