"""A third-party OpenID provider in its own process, and users who sign in there with a browser.

The provider is the npm package oidc-provider, run by tests/interop/identity.mjs. The browser is an HTTP client.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx2

from patience import WAIT
from processes import NODE, ROOT, SharedServer, free_port, share_server

_STEPS = 12


class Identity:
    """The OpenID provider."""

    def __init__(self, running: SharedServer, other: Callable[[], int]) -> None:
        self._running = running
        self._other = other

    @property
    def url(self) -> str:
        """The issuer that behaves like Google."""
        return f"http://127.0.0.1:{self._running.port()}"

    @property
    def strict(self) -> str:
        """The issuer that returns email addresses only from its userinfo endpoint."""
        self._running.port()
        return f"http://127.0.0.1:{self._other()}"

    def register(self, *redirect_uris: str, at: str = "", **more: Any) -> tuple[str, str]:
        """Register a client and return its id and secret."""
        about = {"redirect_uris": redirect_uris, "response_types": ["code"] if redirect_uris else [],
                 "grant_types": ["authorization_code" if redirect_uris else "client_credentials"], **more}  # fmt: skip
        reply = httpx2.post(f"{at or self.url}/reg", json=about, timeout=WAIT)
        assert reply.status_code == 201, reply.text
        return reply.json()["client_id"], reply.json().get("client_secret", "")

    def token(self, client: tuple[str, str], resource: str, scope: str = "orders:write") -> str:
        """Return an access token by the client credentials grant."""
        form = {"grant_type": "client_credentials", "resource": resource, "scope": scope}
        reply = httpx2.post(f"{self.url}/token", data=form, auth=client, timeout=WAIT)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["access_token"])

    def rotate(self) -> None:
        """Replace all signing keys."""
        httpx2.post(f"{self.url}/rotate", timeout=WAIT)

    def count_requests(self, path: str, at: str = "") -> int:
        """Return how often a path was requested."""
        return int(httpx2.get(f"{at or self.url}/asked", timeout=WAIT).json().get(path, 0))


@contextmanager
def identity(folder: Path) -> Iterator[Identity]:
    """Run the provider for the length of the block. It starts on first use."""
    ports: list[int] = []

    def command(port: int) -> list[str]:
        ports.append(free_port())
        return [NODE, str(ROOT / "tests" / "interop" / "identity.mjs"), str(port), str(ports[-1])]

    with share_server(command, folder) as running:
        yield Identity(running, lambda: ports[-1])


def browser() -> httpx2.AsyncClient:
    """Return an HTTP client that keeps cookies and doesn't follow redirects."""
    # An idle connection may have timed out at the other side while the machine was suspended.
    return httpx2.AsyncClient(timeout=WAIT, follow_redirects=False, limits=httpx2.Limits(max_keepalive_connections=0))


async def sign_in_at(url: str, login: str, back: str, *, agrees: bool = True) -> str:
    """Sign in at the provider, accept or decline, and return the redirect URL, which starts with `back`."""
    async with browser() as window:
        page = await window.get(url)
        for _ in range(_STEPS):
            if page.status_code in (302, 303):
                url = urljoin(url, page.headers["location"])
                if url.startswith(back):
                    return url
                page = await window.get(url)
                continue
            action, prompt = (
                re.search(each, page.text) for each in (r'action="([^"]+)"', r'name="prompt" value="(\w+)"')
            )
            assert action, page.text
            assert prompt, page.text
            url = urljoin(url, unescape(action[1]))
            if not agrees and prompt[1] == "consent":
                url = f"{url}/abort"
                page = await window.get(url)
            else:
                page = await window.post(url, data={"prompt": prompt[1], "login": login, "password": "any"})
    raise AssertionError(f"no redirect to the client after {_STEPS} steps: {url}")


class Visitor:
    """A user with an account at the provider, who opens links of programs."""

    def __init__(self, login: str, way: str) -> None:
        self.login = login
        self.way = way
        self.pages: list[str] = []
        """Pages that our server has shown."""

    async def visit(self, url: str) -> str:
        """Open a link, sign in at the provider, and return the final redirect URL."""
        async with browser() as window:
            self.pages.append((await window.get(url)).text)
            ticket = re.search(r'name="ticket" value="([^"]+)"', self.pages[-1])
            assert ticket, self.pages[-1]
            here = urljoin(url, "/")
            form = {"ticket": unescape(ticket[1]), "way": self.way}
            page = await window.post(f"{here}authorize", data=form, headers={"origin": here.rstrip("/")})
            back = await sign_in_at(find_continue_link(page.text), self.login, f"{here}sign-in/callback/{self.way}?")
            reply = await window.get(back)
            self.pages.append(reply.text)
            return str(reply.headers.get("location", ""))


def find_continue_link(page: str) -> str:
    """Return the link with which our page continues."""
    found = re.search(r'content="0;url=([^"]+)"', page)
    assert found, page
    return unescape(found[1])
