"""`GET /metrics`: the registry as Prometheus text."""

from millstream.http import Request, Response
from millstream.telemetry.metrics import CONTENT_TYPE, Registry

_HEAD = b"content-type: %b\r\ncache-control: no-store\r\n" % CONTENT_TYPE


class MetricsHttp:
    """The handler of the metrics path."""

    __slots__ = ("_registry",)

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def get(self, request: Request) -> Response:
        """All metrics as they are now."""
        return Response(self._registry.render(), 200, _HEAD)
