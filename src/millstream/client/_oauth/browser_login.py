"""Login in a browser, with a redirect to a local port (RFC 8252)."""

import asyncio
import html
import logging
import webbrowser
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, urlsplit

from millstream.client._errors import AccessDenied

_logger = logging.getLogger(__name__)

Visit = Callable[[str], Awaitable[str]]
"""Opens a URL in the user's browser, and returns the URL that the browser was redirected to."""

_LOGIN_TIMEOUT = 300.0
"""Seconds to wait for the login."""
_PAGE = "<!doctype html><meta charset=utf-8><title>Millstream</title><p>{}</p>"


class Loopback:
    """A local HTTP server that receives the redirect."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._redirect: asyncio.Future[str] | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> str:
        """Start listening, and return the redirect URI."""
        self._redirect = asyncio.get_running_loop().create_future()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=16 * 1024)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/callback"

    async def visit(self, url: str) -> str:
        """Open the browser and wait for the redirect.

        Raises:
            AccessDenied: the login wasn't completed in time.
        """
        assert self._redirect is not None  # noqa: S101  set in `open`
        if await asyncio.to_thread(webbrowser.open, url) is False:
            _logger.warning("The browser couldn't be opened. Open this address in a browser on this machine: %s", url)
        try:
            async with asyncio.timeout(_LOGIN_TIMEOUT):
                return await self._redirect
        except TimeoutError as exc:
            raise AccessDenied(
                f"The login wasn't completed within {_LOGIN_TIMEOUT:g} seconds. Try again.", 401
            ) from exc

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            for each in self._writers:
                each.transport.abort()  # browsers keep idle connections open, and Python 3.12 waits for them
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
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
            if ours and self._redirect is not None and not self._redirect.done():
                self._redirect.set_result(target)
        except (TimeoutError, ValueError, ConnectionError):
            pass  # another program connected
        finally:
            self._writers.discard(writer)
            writer.close()


def answer_of(url: str) -> dict[str, str]:
    """Return the query parameters of the redirect.

    Raises:
        AccessDenied: a parameter is repeated, or the URL is malformed.
    """
    try:
        found = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    except ValueError as exc:
        raise AccessDenied("The browser was redirected to an invalid URL.", 401) from exc
    if len({name for name, _ in found}) != len(found):
        raise AccessDenied("The authorization server sent a parameter twice.", 401)
    return dict(found)
