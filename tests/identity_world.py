"""An OpenID provider of others in a process of its own, and people who sign in there with a browser.

The provider is the npm package oidc-provider, by tests/interop/identity.mjs. Its pages are opened and sent by HTTP.
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
    """The provider."""

    def __init__(self, running: SharedServer, other: Callable[[], int]) -> None:
        self._running = running
        self._other = other

    @property
    def url(self) -> str:
        """The issuer that is as Google is."""
        return f"http://127.0.0.1:{self._running.port()}"

    @property
    def strict(self) -> str:
        """The issuer that has addresses at its userinfo endpoint only."""
        self._running.port()
        return f"http://127.0.0.1:{self._other()}"

    def register(self, *redirect_uris: str, at: str = "", **more: Any) -> tuple[str, str]:
        """A client: its id and its secret."""
        about = {"redirect_uris": redirect_uris, "response_types": ["code"] if redirect_uris else [],
                 "grant_types": ["authorization_code" if redirect_uris else "client_credentials"], **more}  # fmt: skip
        reply = httpx2.post(f"{at or self.url}/reg", json=about, timeout=WAIT)
        assert reply.status_code == 201, reply.text
        return reply.json()["client_id"], reply.json().get("client_secret", "")

    def token(self, client: tuple[str, str], resource: str, scope: str = "orders:write") -> str:
        """An access token with which a client acts for itself."""
        form = {"grant_type": "client_credentials", "resource": resource, "scope": scope}
        reply = httpx2.post(f"{self.url}/token", data=form, auth=client, timeout=WAIT)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["access_token"])

    def rotate(self) -> None:
        """New keys, and none of the old."""
        httpx2.post(f"{self.url}/rotate", timeout=WAIT)

    def asked(self, path: str, at: str = "") -> int:
        """How often a path was asked."""
        return int(httpx2.get(f"{at or self.url}/asked", timeout=WAIT).json().get(path, 0))


@contextmanager
def identity(folder: Path) -> Iterator[Identity]:
    """The provider for the length of the block. It starts when it's first used."""
    ports: list[int] = []

    def command(port: int) -> list[str]:
        ports.append(free_port())
        return [NODE, str(ROOT / "tests" / "interop" / "identity.mjs"), str(port), str(ports[-1])]

    with share_server(command, folder) as running:
        yield Identity(running, lambda: ports[-1])


def browser() -> httpx2.AsyncClient:
    """A browser: it keeps cookies, and follows nothing by itself."""
    # A connection that waited while a machine stood still may be one that the other side has given up.
    return httpx2.AsyncClient(timeout=WAIT, follow_redirects=False, limits=httpx2.Limits(max_keepalive_connections=0))


async def sign_in_at(url: str, login: str, back: str, *, agrees: bool = True) -> str:
    """A person signs in at the provider and agrees, or doesn't; the URL below `back` to which they're sent."""
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
    raise AssertionError(f"still not back after {_STEPS} steps: {url}")


class Visitor:
    """A person whose account is at the provider, and who opens the links of programs."""

    def __init__(self, login: str, way: str) -> None:
        self.login = login
        self.way = way
        self.pages: list[str] = []
        """What our server has shown."""

    async def visit(self, url: str) -> str:
        """Open a link, go to the provider, sign in and come back; where the browser is sent at last."""
        async with browser() as window:
            self.pages.append((await window.get(url)).text)
            ticket = re.search(r'name="ticket" value="([^"]+)"', self.pages[-1])
            assert ticket, self.pages[-1]
            here = urljoin(url, "/")
            form = {"ticket": unescape(ticket[1]), "way": self.way}
            page = await window.post(f"{here}authorize", data=form, headers={"origin": here.rstrip("/")})
            back = await sign_in_at(led_to(page.text), self.login, f"{here}sign-in/callback/{self.way}?")
            reply = await window.get(back)
            self.pages.append(reply.text)
            return str(reply.headers.get("location", ""))


def led_to(page: str) -> str:
    """Where our page leads on."""
    found = re.search(r'content="0;url=([^"]+)"', page)
    assert found, page
    return unescape(found[1])
