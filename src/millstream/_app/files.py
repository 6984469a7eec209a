"""Static files: Starlette's implementation, without hidden files, and with a limit on ranges.

Starlette resolves paths and refuses those outside of the folder, including symbolic links. It supports entity tags,
``Last-Modified``, ``index.html`` and ``404.html``, and ranges (RFC 9110 §14).
"""

from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles


class Files:
    """An ASGI application that serves a folder."""

    def __init__(self, folder: str, *, max_age: int, max_ranges: int, shared: bool) -> None:
        """Create the application.

        Args:
            folder: Folder of the files, all of which are accessible to every permitted caller.
            max_age: Seconds for which clients cache a file without revalidation.
            max_ranges: Maximum ranges per request.
            shared: Whether shared caches may store the files.

        Raises:
            ValueError: The folder doesn't exist.
        """
        place = Path(folder).absolute()
        if not place.is_dir():
            raise ValueError(f"There is no folder {folder!r}, relative to {Path.cwd()}")
        self._files = StaticFiles(directory=place, html=True)
        whose = b"public" if shared else b"private"
        self._kept = b"%b, max-age=%d" % (whose, max_age) if max_age else b"%b, no-cache" % whose
        self._max_ranges = max_ranges

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3."""
        inside = scope["path"].removeprefix(scope["root_path"])
        # A file has one path here. Another spelling could bypass the prefix that is guarded.
        if "//" in inside or any(part.startswith(".") for part in inside.replace("\\", "/").split("/")):
            raise HTTPException(404)
        headers = scope["headers"]
        if any(name == b"range" and value.count(b",") >= self._max_ranges for name, value in headers):
            scope = {**scope, "headers": [pair for pair in headers if pair[0] != b"range"]}

        async def add_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(b"x-content-type-options", b"nosniff")]
                if message["status"] in (200, 206, 304):
                    more.append((b"cache-control", self._kept))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self._files(scope, receive, add_headers)
