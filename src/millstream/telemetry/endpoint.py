"""`GET /metrics`: the registry as Prometheus text."""

from collections.abc import Awaitable, Callable

from millstream.http.message import Request, Response
from millstream.telemetry.metrics import CONTENT_TYPE, Metrics

_HEAD = b"content-type: %b\r\ncache-control: no-store\r\n" % CONTENT_TYPE


class MetricsHttp:
    """The handler of the metrics path."""

    __slots__ = ("_measure", "_registry")

    def __init__(self, registry: Metrics, *, measure: Callable[[], Awaitable[object]] | None = None) -> None:
        """`measure` is awaited before the metrics are read: for what is known only by asking."""
        self._registry = registry
        self._measure = measure

    async def get(self, request: Request) -> Response:
        """All metrics as they are now."""
        if self._measure is not None:
            await self._measure()
        return Response(self._registry.render(), 200, _HEAD)
