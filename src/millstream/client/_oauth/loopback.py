"""A local HTTP server for the redirect of a sign-in in a browser (RFC 8252 §7.3)."""

import asyncio
import html
import webbrowser
from contextlib import suppress
from urllib.parse import parse_qsl, urlsplit

from msgspec import Struct, field

from millstream.client._errors import AccessDenied, client_logger

_logger = client_logger(__name__)
_LOGIN_TIMEOUT = 300.0
"""Seconds to wait for the login."""
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{0}</title>
<style>:root {{ color-scheme: light dark; font: .875rem/1.5 "Inter Variable", Inter, system-ui, sans-serif }}
body {{ display: grid; min-height: 100dvh; margin: 0; padding: 1rem; box-sizing: border-box; place-items: center;
  background: light-dark(#f6f7f7, #0c1110); color: light-dark(#141b1a, #e5ebea) }}
main {{ box-sizing: border-box; width: min(27rem, 100%); padding: 1rem; overflow-wrap: anywhere;
  border: 1px solid light-dark(#e0e5e4, #28322f); border-top: 3px solid light-dark(#0f766e, #2dd4bf);
  border-radius: .625rem; background: light-dark(#ffffff, #131918); box-shadow: 0 1px 2px #0d201e0f }}
h1 {{ margin: .75rem 0; font-size: 1.25rem; line-height: 1.25 }} p {{ margin: 0 }} svg {{ display: block }}</style>
<main><svg width="40" height="40" viewBox="0 0 32 32" aria-hidden="true"><path fill="none" stroke="#14a394"
  stroke-width="4" stroke-linecap="round" d="M3 11c4-5 9-5 13 0s9 5 13 0M3 21c4-5 9-5 13 0s9 5 13 0"/></svg>
<h1>{0}</h1><p>{1}</p></main>
"""
"""The last page, in the colors of the server's pages (`tokens.css`), which may be on another machine."""
_PAGE_SECONDS = 2.0
"""Seconds for a browser to fetch the last page."""


class Loopback(Struct, eq=False):
    """A local HTTP server that receives the redirect."""

    _server: asyncio.Server | None = None
    _redirect: asyncio.Future[str] = field(default_factory=asyncio.Future[str])
    _writers: set[asyncio.StreamWriter] = set()
    _state: str = ""
    """The state of the request. A redirect without it is ignored, because any page can send the browser here."""
    _outcome: asyncio.Future[str] = field(default_factory=asyncio.Future[str])
    """Why the user isn't signed in, or empty if they are. The browser waits for it."""
    _shown: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self) -> str:
        """Start listening and return the redirect URI."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=16 * 1024)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/callback"

    async def visit(self, url: str) -> str:
        """Open the browser and wait for the redirect.

        Raises:
            AccessDenied: The login wasn't completed in time.
        """
        self._state = parse_redirect(url).get("state", "")
        opening = asyncio.ensure_future(asyncio.to_thread(webbrowser.open, url))
        try:
            async with asyncio.timeout(_LOGIN_TIMEOUT):
                # A text browser runs in the terminal until the user quits it.
                await asyncio.wait((opening, self._redirect), return_when=asyncio.FIRST_COMPLETED)
                if opening.done() and opening.result() is False:
                    text = "The browser couldn't be opened. Open this address in a browser on this machine: %s"
                    _logger.warning(text, url)
                return await self._redirect
        except TimeoutError as exc:
            raise AccessDenied(f"The sign-in wasn't completed within {_LOGIN_TIMEOUT:g} seconds. Try again.") from exc

    async def close(self, problem: str = "") -> None:
        """Stop listening after the browser's last page.

        Args:
            problem: Why the user isn't signed in, or empty if they are.
        """
        if self._server is not None:
            self._server.close()
            if self._redirect.done() and not self._outcome.done():
                self._outcome.set_result(problem)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PAGE_SECONDS):
                        await self._shown.wait()
            for each in self._writers:
                each.transport.abort()  # browsers keep idle connections open, and Python 3.12 waits for them
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            async with asyncio.timeout(10):
                words = (await reader.readline()).decode("latin-1").split()
            target = words[1] if len(words) == 3 and words[0] == "GET" else ""
            path, query = urlsplit(target).path, dict(parse_qsl(urlsplit(target).query))
            ours = path == "/callback" and query.get("state", "") == self._state
            if ours and not self._redirect.done():
                self._redirect.set_result(target)
            problem = await self._outcome if ours else "There is nothing here."
            title = "You aren't signed in" if problem else "You're signed in"
            text = problem or "Go back to your program. You can close this page."
            body = _PAGE.format(title, html.escape(text)).encode()
            status = "200 OK" if ours else "404 Not Found"
            head = f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
            await writer.drain()
            if ours:
                self._shown.set()
        except (TimeoutError, ValueError, ConnectionError):
            pass  # another program connected
        finally:
            self._writers.discard(writer)
            writer.close()


def parse_redirect(url: str) -> dict[str, str]:
    """Return the query parameters of a redirect: ``parse_redirect("/callback?code=…&state=…")``.

    Args:
        url: The URL that the browser was redirected to.

    Raises:
        AccessDenied: A parameter is repeated, or the URL is malformed.
    """
    try:
        found = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    except ValueError as exc:
        raise AccessDenied("The browser was redirected to an invalid URL.") from exc
    if len({name for name, _ in found}) != len(found):
        raise AccessDenied("The authorization server sent a parameter twice.")
    return dict(found)
