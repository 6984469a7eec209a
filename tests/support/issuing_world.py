"""A test's authorization server and its visitors: a browser with cookies, and clients.

`Desk` is an authorization server on a store, called without a network. Several of them on one store are its workers.
"""

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from html import unescape
from itertools import cycle
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pytest

from millstream import Settings, auth
from millstream._http.message import HttpRequest, Response
from millstream._protocol.principal import EVERYTHING
from millstream._server.calls import Secrets
from millstream._server.calls.services import ChangeFeed, Services
from millstream._stores.store import Store
from millstream.auth._method import Identity, NotAdmitted
from millstream.auth.providers import User
from store_parts import BACKINGS

URL = "https://mcp.example.com"
RESOURCE = f"{URL}/mcp"
OTHER = "https://other.example.com/mcp"
BACK = "https://app.example.com/back"
VERIFIER = "v" * 43
SECRETS = Secrets((b"s" * 32,), "setting")
FORM = "application/x-www-form-urlencoded"


def challenge(verifier: str = VERIFIER) -> str:
    """Return the PKCE code challenge of a verifier (RFC 7636)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


STORE_KINDS = ["memory", pytest.param("redis", marks=pytest.mark.server)]
"""Stores for `desk_on`: one worker in memory, or four on Redis."""


class KnownUsers:
    """Users with passwords, in memory: the sign-in method of most tests."""

    def __init__(self) -> None:
        self.people = {
            "ada": ("correct horse", User("ada", "Ada", (EVERYTHING,))),
            "bob": ("battery staple", User("bob", "Bob", ("orders:read",))),
        }
        self.changes = 0

    async def check(self, name: str, password: str) -> User | None:
        """Return the user with a name and password."""
        known = self.people.get(name)
        return known[1] if known is not None and known[0] == password else None

    def find(self, subject: str) -> User | None:
        """Return the user with a subject."""
        known = self.people.get(subject)
        return None if known is None else known[1]

    def remove(self, name: str) -> None:
        """Remove a user."""
        del self.people[name]
        self.changes += 1

    def epoch(self) -> int:
        """The number of removals."""
        return self.changes


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Reply:
    """An HTTP reply."""

    def __init__(self, response: Response) -> None:
        self.status = response.status
        self.body = response.body
        lines = response.head.decode("latin-1").split("\r\n")
        self.headers: dict[str, str] = {}
        self.cookies: dict[str, str] = {}
        self.set_cookies: list[str] = []
        for name, _, value in (line.partition(": ") for line in lines if line):
            self.headers[name] = value
            if name == "set-cookie":
                self.set_cookies.append(value)
                key, _, rest = value.partition("=")
                self.cookies[key] = rest.partition(";")[0]

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def message(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The error code in a JSON reply."""
        return str(self.message.get("error"))

    @property
    def location(self) -> str:
        return self.headers["location"]

    @property
    def answer(self) -> dict[str, str]:
        """The parameters of a redirect back to the client, each of which occurs once."""
        pairs = parse_qsl(urlsplit(self.location).query, keep_blank_values=True)
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    @property
    def ticket(self) -> str:
        """The ticket in the form of a sign-in or consent page."""
        found = re.search(r'name="ticket" value="([^"]*)"', self.text)
        assert found, self.text
        return unescape(found[1])


class Desk:
    """The authorization server of one worker."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock | None = None,
        people: Any = None,
        settings: Settings | None = None,
        **options: Any,
    ) -> None:
        self.services = Services(settings or Settings(), store, ChangeFeed(), SECRETS)
        self.clock = clock
        if clock is not None:
            self.services.clock = clock
        self.people = KnownUsers() if people is None else people
        given: dict[str, Any] = {"url": URL, "users": self.people, "resources": [OTHER], "scopes": [], **options}
        self.issuer = auth.issuer(**given)
        self.peer = "192.0.2.1" if given["url"].startswith("https:") else "127.0.0.1"
        """The default client address."""
        scopes = ["orders:read", "orders:write"]
        self.running = self.issuer.bind(self.services, "Book shop", lambda: scopes)
        self.paths = self.running.paths()

    async def ask(
        self, method: str, path: str, *, query: str = "", body: bytes = b"", peer: str = "", **headers: str
    ) -> Reply:
        """One request."""
        fields = {"host": "mcp.example.com", **{name.replace("_", "-"): value for name, value in headers.items()}}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
        request = HttpRequest(
            method, path, raw, dict(raw), body, query.encode("latin-1"), peer or self.peer, "", "https"
        )
        response = await self.paths[path][method](request)
        assert isinstance(response, Response)
        return Reply(response)

    async def post(self, path: str, form: Any, **headers: str) -> Reply:
        """POST a form."""
        body = urlencode(form, doseq=True).encode()
        return await self.ask("POST", path, body=body, **{"content_type": FORM, **headers})

    async def guess(self, peer: str, name: str, password: str = "wrong") -> User | str:  # noqa: S107
        """Try a password and return the user, or the message of the refusal."""
        try:
            return await self.running._authorize.throttle.check(peer, name, password)
        except NotAdmitted as exc:
            return str(exc)

    async def register(self, **said: Any) -> Any:
        """Register a client and return its metadata."""
        about = {"client_name": "Reader", "redirect_uris": [BACK], "token_endpoint_auth_method": "none",
                 "grant_types": ["authorization_code", "refresh_token"], **said}  # fmt: skip
        reply = await self.ask("POST", "/register", body=json.dumps(about).encode(), content_type="application/json")
        assert reply.status == 201, reply.text
        return reply.message

    async def sign_in(self, client: str, *, browser: "Browser | None" = None, **asked: Any) -> dict[str, str]:
        """Sign in, consent, and return the parameters of the redirect to the client."""
        browser = browser or Browser(self)
        page = await browser.open(client, **asked)
        reply = page if page.status == 303 else await browser.answer(page)
        assert reply.status == 303, reply.text
        return reply.answer

    async def authorize(self) -> tuple[str, str]:
        """Register a client, sign in, and return the client's id and code."""
        client = (await self.register())["client_id"]
        return client, (await self.sign_in(client))["code"]

    async def token(self, client: str, code: str, /, **changes: Any) -> Reply:
        """Exchange a code for tokens."""
        form = {"grant_type": "authorization_code", "client_id": client, "code": code, "redirect_uri": BACK,
                "code_verifier": VERIFIER, **changes}  # fmt: skip
        return await self.post("/token", {name: value for name, value in form.items() if value is not None})

    async def tokens(self, client: str, **asked: Any) -> Any:
        """Sign in and return the reply of the token endpoint."""
        reply = await self.token(client, (await self.sign_in(client, **asked))["code"])
        assert reply.status == 200, reply.text
        return reply.message

    async def refresh(self, client: str, token: str, /, **more: Any) -> Reply:
        """Use a refresh token."""
        return await self.post(
            "/token", {"grant_type": "refresh_token", "client_id": client, "refresh_token": token, **more}
        )

    async def who(self, token: str) -> Identity | None:
        """Return the identity behind an access token, as the guard looks it up."""
        return await self.running.identify(token)


class Desks(Desk):
    """Several workers of one authorization server, which take requests in rotation."""

    def __init__(self, stores: Sequence[Store], *, people: Any = None, **options: Any) -> None:
        people = KnownUsers() if people is None else people
        super().__init__(stores[0], people=people, **options)
        self.workers = [self, *(Desk(store, people=people, **options) for store in stores[1:])]
        self._turns = cycle([each.paths for each in self.workers])

    async def ask(self, method: str, path: str, **more: Any) -> Reply:
        """Send a request to the next worker."""
        self.paths = next(self._turns)
        return await super().ask(method, path, **more)


@asynccontextmanager
async def desk_on(kind: str, **options: Any) -> AsyncIterator[Desks]:
    """Run an authorization server with one worker in memory or four on Redis."""
    backing = BACKINGS[kind]()
    stores = [await backing.worker() for _ in range(1 if kind == "memory" else 4)]
    yield Desks(stores, **options)
    await backing.close()


class Browser:
    """A browser that keeps cookies."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.cookies: dict[str, str] = {}

    async def ask(self, method: str, path: str, **more: Any) -> Reply:
        """One request."""
        if self.cookies:
            more["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        reply = await self.desk.ask(method, path, **more)
        self.cookies.update(reply.cookies)
        self.cookies = {name: value for name, value in self.cookies.items() if value}
        return reply

    async def open(self, client: str, **asked: Any) -> Reply:
        """Open the authorization request of a client."""
        return await self.ask("GET", "/authorize", query=authorization(client, **asked))

    async def answer(self, page: Reply, **form: Any) -> Reply:
        """Submit the form of a sign-in or consent page. By default, sign in as Ada and consent."""
        signed_in = 'name="password"' not in page.text
        said = {"answer": "allow"} if signed_in else {"answer": "allow", "name": "ada", "password": "correct horse"}
        return await self.send({"ticket": page.ticket, **(form or said)})

    async def send(self, form: Mapping[str, str], *, origin: str = URL) -> Reply:
        """Submit any form."""
        body = urlencode(form).encode()
        return await self.ask("POST", "/authorize", body=body, content_type=FORM, origin=origin)


def authorization(client: str, **changes: Any) -> str:
    """Return the query of an authorization request. None removes a parameter."""
    asked = {"response_type": "code", "client_id": client, "redirect_uri": BACK, "state": "st", "resource": RESOURCE,
             "code_challenge": challenge(), "code_challenge_method": "S256", **changes}  # fmt: skip
    return urlencode({name: value for name, value in asked.items() if value is not None}, doseq=True)


def claims_of(token: str) -> dict[str, Any]:
    """Return the unverified claims of a token."""
    payload = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))))


def query_of(url: str) -> dict[str, list[str]]:
    """Return the parsed query of a URL."""
    return parse_qs(urlsplit(url).query, keep_blank_values=True)
