"""The person's part: a browser at the authorization server, and a page of this machine to come back to (RFC 8252)."""

import asyncio
import html
import logging
import webbrowser
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, urlsplit

from millstream.client._errors import AccessDenied

_logger = logging.getLogger(__name__)

Visit = Callable[[str], Awaitable[str]]
"""Opens a URL for the person, and gives the URL that the browser was sent back to."""

_PATIENCE = 300.0
"""Seconds that the person has."""
_PAGE = "<!doctype html><meta charset=utf-8><title>Millstream</title><p>{}</p>"


class Loopback:
    """Waits at a port of this machine for the browser to come back."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._came: asyncio.Future[str] | None = None
        self._connected: set[asyncio.StreamWriter] = set()

    async def open(self) -> str:
        """Listen; the redirect URI."""
        self._came = asyncio.get_running_loop().create_future()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=16 * 1024)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/callback"

    async def visit(self, url: str) -> str:
        """Open the browser and wait.

        Raises:
            AccessDenied: nobody came back.
        """
        assert self._came is not None  # noqa: S101  it was opened
        if await asyncio.to_thread(webbrowser.open, url) is False:
            _logger.warning("No browser opens here. Open this address yourself, on this machine: %s", url)
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._came
        except TimeoutError as exc:
            raise AccessDenied(f"Nobody logged in within {_PATIENCE:g} seconds.", 401) from exc

    async def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            for each in self._connected:
                each.transport.abort()  # browsers keep some for later, and Python 3.12 waits for them
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connected.add(writer)
        try:
            async with asyncio.timeout(10):
                words = (await reader.readline()).decode("latin-1").split()
            target = words[1] if len(words) == 3 and words[0] == "GET" else ""
            ours = urlsplit(target).path == "/callback"
            text = "You can close this page." if ours else "There is nothing here."
            body = _PAGE.format(html.escape(text)).encode()
            status = "200 OK" if ours else "404 Not Found"
            head = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
            await writer.drain()
            if ours and self._came is not None and not self._came.done():
                self._came.set_result(target)
        except (TimeoutError, ValueError, ConnectionError):
            pass  # whoever that was, it wasn't the browser
        finally:
            self._connected.discard(writer)
            writer.close()


def answer_of(url: str) -> dict[str, str]:
    """The parameters that the browser came back with.

    Raises:
        AccessDenied: one of them is there twice, or it isn't a URL.
    """
    try:
        found = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    except ValueError as exc:
        raise AccessDenied("The browser came back with something that isn't a URL.", 401) from exc
    if len({name for name, _ in found}) != len(found):
        raise AccessDenied("The authorization server answered with a parameter twice.", 401)
    return dict(found)
