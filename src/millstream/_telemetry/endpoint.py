"""`GET /metrics`: Prometheus text."""

from collections.abc import Awaitable, Callable

from millstream._http.message import Request, Response
from millstream._telemetry.metrics import CONTENT_TYPE

_HEAD = b"content-type: %b\r\ncache-control: no-store\r\n" % CONTENT_TYPE


class MetricsHttp:
    """The handler of the metrics path."""

    __slots__ = ("_measure", "_render")

    def __init__(
        self, render: Callable[[], Awaitable[bytes]], *, measure: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        """`measure` is awaited before the metrics are rendered: for what is known only by asking."""
        self._render = render
        self._measure = measure

    async def get(self, request: Request) -> Response:
        """All metrics as they are now."""
        if self._measure is not None:
            await self._measure()
        return Response(await self._render(), 200, _HEAD)
