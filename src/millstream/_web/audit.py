"""The newest records of the audit log for the dashboard, filtered."""

import asyncio
from pathlib import Path

from millstream._http.message import JSON_HEAD, HttpRequest, Response, query_value
from millstream._protocol.jsonrpc import encode
from millstream._telemetry.audit import newest

_MAX_WORDS = 200


class AuditRecords:
    """The handler of `GET /dashboard/audit`."""

    def __init__(self, path: str) -> None:
        """Create the handler. `path` is the log file; empty if there's no audit log."""
        self._path = path

    async def get(self, request: HttpRequest) -> Response:
        """Return ``{"kept": bool, "records": [...]}``, the newest record first.

        ``?q=`` selects records that contain all of its words, ``?failed=1`` selects failures.
        """
        records = []
        if self._path:
            words, failed = query_value("q", request.query)[:_MAX_WORDS], query_value("failed", request.query) == "1"
            records = await asyncio.to_thread(newest, Path(self._path), words=words, failed=failed)
        body = encode({"kept": bool(self._path), "records": records})
        return Response(body, 200, JSON_HEAD + b"cache-control: no-store\r\n")
