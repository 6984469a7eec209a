"""A blocking client for scripts and notebooks: the same methods as `Client`, without `await`."""

import asyncio
import inspect
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from millstream.client._client import Client
from millstream.client._negotiation import Options
from millstream.client._questions import Elicit, Roots, Sample
from millstream.client._server_messages import OnChange, OnLog
from millstream.client._targets import Target

if TYPE_CHECKING:
    from millstream.client._extensions import ClientExtension


class _ClientArguments(TypedDict, total=False):
    """Keyword arguments that `Client` takes besides its target."""

    revision: str | None
    headers: Mapping[str, str] | None
    timeout: float
    elicit: Elicit | None
    sample: Sample | None
    roots: Roots | None
    on_log: OnLog | None
    on_change: OnChange | None
    options: Options | None
    extensions: "Sequence[ClientExtension]"


class BlockingClient:
    """A blocking `Client`: ``with BlockingClient("shop.py") as c: print(c.call("add", a=1, b=2).text)``.

    It has every method of `Client`, and each blocks until its result is available. Lists are returned in full. Handlers
    run in another thread. Use `Client` for `watch` and anything else that stays open.

    Args:
        target: A URL, a command, a script, a `Server`, or a configuration with `mcpServers`.
        more: The keywords of `Client`.
    """

    def __init__(self, target: Target, **more: Unpack[_ClientArguments]) -> None:
        self._client = Client(target, **more)
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._run, name="millstream-client", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._wait(self._client.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        try:
            self._wait(self._client.__aexit__(kind, error, t))
        finally:
            self._stop()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found

        def method(*args: Any, **kwargs: Any) -> Any:
            return self._wait(found(*args, **kwargs))

        return method

    def _wait(self, work: Any) -> Any:
        async def result() -> Any:
            return await work if inspect.isawaitable(work) else work

        return asyncio.run_coroutine_threadsafe(result(), self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        with self._runner:  # cancels calls that Ctrl-C interrupted
            self._loop.run_forever()
