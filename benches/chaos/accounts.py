"""An authorization server that forgets its clients, and a person who connects an account at a gateway."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from html import unescape
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2

EXPIRES_IN = 20
"""Seconds after which the gateway renews a token."""


class ForgottenClient(Exception):
    """The authorization server doesn't know a client, and says so to its user."""


class AuthorizationServer:
    """Registers clients and issues tokens, which it writes into a file that the upstreams read."""

    def __init__(self, tokens: Path) -> None:
        self.url = ""
        self._tokens = tokens
        self._valid: dict[str, str] = {}
        """Access token -> client."""
        self._numbers = count(1)
        self._clients: set[str] = set()
        self._codes: dict[str, str] = {}
        """Code -> client."""
        self._refresh: dict[str, str] = {}

    def forget(self) -> None:
        """Lose all registrations, and with them all tokens."""
        self._clients.clear()
        self._codes.clear()
        self._refresh.clear()
        self._valid.clear()
        self._write()

    def authorize(self, url: str) -> dict[str, str]:
        """Grant an authorization request, and return the parameters of the redirect.

        Raises:
            ForgottenClient: The client isn't registered.
        """
        query = {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}
        if query["client_id"] not in self._clients:
            raise ForgottenClient
        code = f"code-{next(self._numbers)}"
        self._codes[code] = query["client_id"]
        return {"code": code, "state": query["state"], "iss": self.url}

    async def respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Respond to the requests of one connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                size = re.search(r"content-length: (\d+)", head)
                body = await reader.readexactly(int(size[1]) if size else 0)
                status, answer = self._answer(head.split()[1].partition("?")[0], body.decode())
                data = json.dumps(answer).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(data)}\r\n\r\n".encode()
                    + data
                )
        writer.close()

    def _answer(self, path: str, body: str) -> tuple[int, Mapping[str, Any]]:
        if path == "/.well-known/oauth-authorization-server":
            places = {"authorization": "authorize", "token": "token", "registration": "register"}
            more = {f"{name}_endpoint": f"{self.url}/{place}" for name, place in places.items()}
            return 200, {"issuer": self.url, "code_challenge_methods_supported": ["S256"], **more}
        if path == "/register":
            client = f"client-{next(self._numbers)}"
            self._clients.add(client)
            return 201, {"client_id": client}
        if path != "/token":
            return 404, {}
        form = {name: values[-1] for name, values in parse_qs(body).items()}
        if (client := form.get("client_id", "")) not in self._clients:
            return 401, {"error": "invalid_client"}
        grants = self._codes if "code" in form else self._refresh
        if grants.pop(form.get("code") or form.get("refresh_token", ""), None) != client:
            return 400, {"error": "invalid_grant"}
        token, refresh = f"token-{next(self._numbers)}", f"refresh-{next(self._numbers)}"
        self._valid[token] = self._refresh[refresh] = client
        self._write()
        return 200, {"access_token": token, "refresh_token": refresh, "token_type": "Bearer", "expires_in": EXPIRES_IN}

    def _write(self) -> None:
        new = self._tokens.with_suffix(".new")
        new.write_text("\n".join(self._valid), "utf-8")
        new.replace(self._tokens)


@asynccontextmanager
async def run_authorization_server(tokens: Path) -> AsyncIterator[AuthorizationServer]:
    """Run an authorization server inside the block. It writes its URL beside the tokens."""
    issuer = AuthorizationServer(tokens)
    server = await asyncio.start_server(issuer.respond, "127.0.0.1", 0)
    issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    tokens.with_suffix(".issuer").write_text(issuer.url, "utf-8")
    issuer.forget()
    try:
        yield issuer
    finally:
        server.close()


async def connect_account(base: str, key: str, upstream: str, issuer: AuthorizationServer, timeout: float) -> None:
    """Connect an account on the gateway's page, as a person in a browser would.

    Raises:
        ForgottenClient: The gateway uses a registration that the authorization server has lost.
        RuntimeError: The gateway refuses.
    """
    async with httpx2.AsyncClient(base_url=base, timeout=timeout, headers={"origin": base}) as http:
        await http.post("/sign-in", data={"key": key, "next": "/connections"})
        page = (await http.post("/connections", data={"upstream": upstream, "action": "connect"})).text
        answer = issuer.authorize(_redirect(page))
        page = (await http.get("/connections/callback", params=answer)).text
        reply = await http.get(_redirect(page), headers={"accept": "text/html"})
        if reply.headers.get("location") != "/connections":
            raise RuntimeError(f"not connected: {reply.text[-500:]}")


def _redirect(page: str) -> str:
    """Return the URL that a page leads to."""
    found = re.search(r'http-equiv="refresh" content="0;url=([^"]+)"', page)
    if found is None:
        raise RuntimeError(f"a page that leads nowhere: {page[-1000:]}")
    return unescape(found[1])
