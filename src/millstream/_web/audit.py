"""What the dashboard shows of the audit log: the newest records, filtered. It only reads; checking is a command."""

import asyncio
from pathlib import Path

from millstream._http.message import JSON_HEAD, HttpRequest, Response, query_value
from millstream._protocol.jsonrpc import encode
from millstream._telemetry.audit_tail import newest

_MAX_WORDS = 200


class AuditRecords:
    """The handler of `GET /dashboard/audit`."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        """`path` is that of the file; empty where no audit log is kept."""
        self._path = path

    async def get(self, request: HttpRequest) -> Response:
        """``{"kept": bool, "records": [...]}``, the newest record first.

        ``?q=`` has words that all have to be in a record, ``?failed=1`` leaves out what went well.
        """
        records = []
        if self._path:
            words, failed = query_value("q", request.query)[:_MAX_WORDS], query_value("failed", request.query) == "1"
            records = await asyncio.to_thread(newest, Path(self._path), words=words, failed=failed)
        body = encode({"kept": bool(self._path), "records": records})
        return Response(body, 200, JSON_HEAD + b"cache-control: no-store\r\n")
