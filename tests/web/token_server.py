"""A server that requires tokens and issues them itself, on a real socket, and misbehaves as a test specifies."""

import json
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

from client.misbehaving_servers import ReceivedRequest, misbehaving


class Guarded:
    """What it is asked, and how it answers."""

    def __init__(self) -> None:
        self.url = ""
        self.forms: list[dict[str, str]] = []
        """What came to the token endpoint."""
        self.asked: Counter[str] = Counter()
        self.valid: set[str] = set()
        self.given: dict[str, Any] = {}
        """Added to what the token endpoint answers."""
        self.about: dict[str, Any] = {}
        """Added to the issuer's metadata; None takes a member away."""
        self.registers = True
        """Whether it takes registrations, whatever its metadata says."""
        self.redirect = ""
        """Where the token endpoint redirects to, in place of an answer."""
        self.seen: list[str] = []
        """Each `Authorization` that came to the server itself."""
        self.revoked: list[dict[str, str]] = []

    @property
    def origin(self) -> str:
        return self.url.removesuffix("/mcp")

    async def behave(self, asked: ReceivedRequest) -> None:
        """Answer a request."""
        path = asked.path.partition("?")[0]
        self.asked[path] += 1
        if path.startswith("/.well-known/oauth-protected-resource"):
            await asked.reply(json.dumps({"resource": self.url, "authorization_servers": [self.origin]}).encode())
        elif path == "/.well-known/oauth-authorization-server":
            await asked.reply(json.dumps(self.metadata()).encode())
        elif path == "/register" and self.registers:
            await asked.reply(b'{"client_id": "me"}', status="201 Created")
        elif path == "/token":
            await self.token(asked)
        elif path == "/revoke":
            self.revoked.append(form_of(asked))
            await asked.reply(b"")
        else:
            token = asked.headers.get("authorization", "")
            self.seen.append(token)
            if token.removeprefix("Bearer ") in self.valid:
                await asked.reply(b'{"jsonrpc": "2.0", "id": 1, "result": {}}')
            else:
                await asked.reply(
                    b"", status="401 Unauthorized", more='WWW-Authenticate: Bearer scope="books:read"\r\n'
                )

    def metadata(self) -> dict[str, Any]:
        origin = self.origin
        about = {
            "issuer": origin,
            "authorization_endpoint": f"{origin}/authorize",
            "token_endpoint": f"{origin}/token",
            "registration_endpoint": f"{origin}/register",
            "revocation_endpoint": f"{origin}/revoke",
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            **self.about,
        }
        return {name: value for name, value in about.items() if value is not None}

    async def token(self, asked: ReceivedRequest) -> None:
        """The token endpoint: each token is new, and so is each refresh token."""
        self.forms.append(form_of(asked))
        if self.redirect:
            await asked.reply(b"", status="307 Temporary Redirect", more=f"Location: {self.redirect}\r\n")
            return
        token = token_for("ada", len(self.forms))
        self.valid = {token}
        answer = {"access_token": token, "token_type": "Bearer", "refresh_token": f"refresh-{len(self.forms)}"}
        await asked.reply(json.dumps({**answer, **self.given}).encode())


def token_for(name: str, number: int) -> str:
    """A token that says whose it is."""
    parts = ({"alg": "RS256"}, {"sub": name, "n": number})
    head, payload = (urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=") for each in parts)
    return f"{head}.{payload}.secret-signature"


def form_of(asked: ReceivedRequest) -> dict[str, str]:
    """A form that came."""
    return {name: values[-1] for name, values in parse_qs(asked.body.decode()).items()}


@asynccontextmanager
async def guarded() -> AsyncIterator[Guarded]:
    """One for the length of the block."""
    world = Guarded()
    async with misbehaving(world.behave) as server:
        world.url = server.url
        yield world
