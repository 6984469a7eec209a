"""A folder of files over HTTP: Starlette's, without what begins with a dot, and with a bound on ranges.

Starlette resolves the path and refuses what lies outside of the folder, symbolic links included; it has entity tags,
``Last-Modified``, ``index.html`` and ``404.html``, and ranges (RFC 9110 §14).
"""

from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles


class Files:
    """An ASGI application."""

    __slots__ = ("_files", "_kept", "_max_ranges")

    def __init__(self, folder: str, *, max_age: int, max_ranges: int, shared: bool) -> None:
        """Serve a folder.

        Args:
            folder: of the files; everybody who may ask gets all of it.
            max_age: seconds for which clients keep a file without asking again.
            max_ranges: that one request may ask for.
            shared: caches on the way may keep them for others, too.

        Raises:
            ValueError: there is no such folder.
        """
        place = Path(folder).absolute()
        if not place.is_dir():
            raise ValueError(f"There is no folder {folder!r}, seen from {Path.cwd()}")
        self._files = StaticFiles(directory=place, html=True)
        whose = b"public" if shared else b"private"
        self._kept = b"%b, max-age=%d" % (whose, max_age) if max_age else b"%b, no-cache" % whose
        self._max_ranges = max_ranges

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3."""
        inside = scope["path"].removeprefix(scope["root_path"])
        # A file has one name here: another one might begin otherwise than the path that is guarded.
        if "//" in inside or any(part.startswith(".") for part in inside.replace("\\", "/").split("/")):
            raise HTTPException(404)
        headers = scope["headers"]
        if any(name == b"range" and value.count(b",") >= self._max_ranges for name, value in headers):
            scope = {**scope, "headers": [pair for pair in headers if pair[0] != b"range"]}

        async def noted(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(b"x-content-type-options", b"nosniff")]
                if message["status"] in (200, 206, 304):
                    more.append((b"cache-control", self._kept))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self._files(scope, receive, noted)
