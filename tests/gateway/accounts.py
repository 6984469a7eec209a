"""An upstream that requires user accounts, its authorization server, a gateway, and users' browsers.

The upstream is a Millstream server. The authorization server is scripted: it checks requests as strictly as the RFCs
require, and records them.
"""

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from html import unescape
from itertools import count
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import httpx2

from http_peer import NO_TRUST, serve
from issuer_world import claims, key_set, token
from millstream import Context, Server, auth
from millstream.client import Client, Options
from millstream.gateway import per_user_oauth
from patience import WAIT
from processes import free_port

from client.misbehaving_servers import ReceivedRequest, misbehaving  # isort: skip

ALICE = "key-of-alice-0123456789"
BOB = "key-of-bob-0123456789"
URL_MODE = {"elicitation": {"url": {}}}


class Accounts:
    """The authorization server."""

    def __init__(self) -> None:
        self.url = ""
        self.resource = ""
        """Audience of the tokens."""
        self.numbers = count(1)
        self.forms: list[dict[str, str]] = []
        self.registered: list[dict[str, Any]] = []
        self.revoked: list[str] = []
        self.codes: dict[str, dict[str, str]] = {}
        """Code -> the authorization request and the user."""
        self.refresh: dict[str, tuple[str, str]] = {}
        """Valid refresh token -> user and scope."""
        self.expires_in: float = 600
        """`expires_in` of the token endpoint. Tokens are valid for ten minutes."""
        self.metadata_changes: dict[str, Any] = {}
        """Overrides of the metadata."""
        self.fails = ""
        """Error of the token endpoint, if any."""
        self.forgotten: set[str] = set()
        """Ids of clients that it no longer knows."""
        self.secrets = {"gw": "s3cret"}

    async def handle_request(self, asked: ReceivedRequest) -> None:
        """Handle a request."""
        path = asked.path.partition("?")[0]
        if path == "/.well-known/oauth-authorization-server":
            await asked.reply(json.dumps(self.metadata()).encode())
        elif path == "/register":
            self.registered.append(json.loads(asked.body))
            number = len(self.registered)
            registration = {"client_id": "registered" if number == 1 else f"registered-{number}"}
            await asked.reply(json.dumps(registration).encode(), status="201 Created")
        elif path == "/token":
            await self.token(asked)
        elif path == "/revoke":
            form = form_of(asked)
            self.revoked.append(form["token"])
            self.refresh.pop(form["token"], None)
            await asked.reply(b"")
        elif path == "/keys":
            await asked.reply(json.dumps(key_set("ES256")).encode())
        else:
            await asked.reply(b"", status="404 Not Found")

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the authorization server."""
        about = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "registration_endpoint": f"{self.url}/register",
            "revocation_endpoint": f"{self.url}/revoke",
            "jwks_uri": f"{self.url}/keys",
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            **self.metadata_changes,
        }
        return {name: value for name, value in about.items() if value is not None}

    def authorize(self, url: str, person: str, **changes: str) -> dict[str, str]:
        """Grant an authorization request, possibly with changes. Return the parameters of the redirect."""
        asked = {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}
        assert asked["code_challenge_method"] == "S256"
        code = f"code-{next(self.numbers)}"
        self.codes[code] = {**asked, **changes, "person": person}
        return {"code": code, "state": asked["state"], "iss": self.url}

    def issue(self, person: str, scope: str, **changes: Any) -> str:
        """Return an access token."""
        said = claims(
            iss=self.url, aud=self.resource, sub=person, scope=scope, exp=int(time.time()) + 600,
            jti=str(next(self.numbers)), **changes,
        )  # fmt: skip
        return token(said)

    async def token(self, asked: ReceivedRequest) -> None:
        """Handle a request to the token endpoint."""
        form = form_of(asked)
        self.forms.append(form)
        error, given = self.fails, dict[str, Any]()
        if form.get("client_id") in self.forgotten:
            error = "invalid_client"
        basic = asked.headers.get("authorization", "")
        if basic:
            name, _, secret = base64.b64decode(basic.removeprefix("Basic ")).decode().partition(":")
            if self.secrets.get(unquote(name)) != unquote(secret):
                error = error or "invalid_client"
        match form["grant_type"]:
            case "authorization_code":
                code = self.codes.pop(form["code"], None)
                verifier = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest())
                if (
                    code is None
                    or verifier.rstrip(b"=").decode() != code["code_challenge"]
                    or form["redirect_uri"] != code["redirect_uri"]
                    or form["resource"] != self.resource
                ):
                    error = error or "invalid_grant"
                else:
                    given = self._issue_refreshable(code["person"], code.get("scope", ""))
            case "refresh_token":
                known = self.refresh.pop(form["refresh_token"], None) if not error else None
                if known is None:
                    error = error or "invalid_grant"
                else:
                    given = self._issue_refreshable(*known)
            case "client_credentials":
                error = error or ("" if basic or "client_assertion" in form else "invalid_client")
                given = {"access_token": self.issue("the-gateway", form.get("scope", ""))}
            case _:
                token = form.get("subject_token") or form["assertion"]
                said = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
                given = {"access_token": self.issue(f"{said['sub']}-exchanged", said["scope"])}
        if error:
            await asked.reply(json.dumps({"error": error}).encode(), status="400 Bad Request")
            return
        await asked.reply(json.dumps({"token_type": "Bearer", "expires_in": self.expires_in, **given}).encode())

    def _issue_refreshable(self, person: str, scope: str) -> dict[str, Any]:
        refresh = f"refresh-{next(self.numbers)}"
        self.refresh[refresh] = person, scope
        return {"access_token": self.issue(person, scope), "refresh_token": refresh, "scope": scope}


def form_of(asked: ReceivedRequest) -> dict[str, str]:
    """Return the form in the body of a request."""
    return {name: values[-1] for name, values in parse_qs(asked.body.decode()).items()}


class World:
    """The upstream and its authorization server."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self.url = accounts.resource
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Start the upstream, for the first time or again."""
        self.mcp = make_upstream(self.accounts)
        self._stack.push_async_callback(self.mcp.stop)
        await self._stack.enter_async_context(serve(self.mcp, port=urlsplit(self.url).port or 0))

    async def stop(self) -> None:
        """Stop the upstream."""
        await self._stack.aclose()


def make_upstream(accounts: Accounts) -> Server:
    """Return the upstream that requires accounts."""
    jwt = auth.oidc(accounts.url, audience=accounts.resource)
    mcp = Server("elsewhere", serve="hub", auth=jwt)

    @mcp.tool
    async def who(ctx: Context) -> str:
        """Return the caller and its tenant header."""
        assert ctx.principal is not None
        tenant = ctx.headers.get("x-tenant", "")
        return f"{ctx.principal.subject}{tenant and ' of '}{tenant}"

    @mcp.tool(scopes=["books:write"])
    async def write() -> str:
        """Write a book."""
        return "written"

    return mcp


@asynccontextmanager
async def run_world(*, port: int = 0, path: str = "/mcp") -> AsyncIterator[World]:
    """Run the upstream and its authorization server for the duration of the block. Tokens are valid at one path."""
    accounts = Accounts()
    async with AsyncExitStack() as stack:
        scripted = await stack.enter_async_context(misbehaving(accounts.handle_request))
        accounts.url = scripted.url.removesuffix("/mcp")
        port = port or free_port()
        accounts.resource = f"http://127.0.0.1:{port}{path}"
        world = World(accounts)
        stack.push_async_callback(world.stop)
        await world.start()
        yield world


class Gateway:
    """A running gateway."""

    def __init__(self, mcp: Server, port: int) -> None:
        self.mcp = mcp
        self.base = f"http://127.0.0.1:{port}"

    @asynccontextmanager
    async def client(self, key: str, **options: Any) -> AsyncIterator[Client]:
        """Connect a client that signs in with a key."""
        headers = {"Authorization": f"Bearer {key}", **options.pop("headers", {})}
        async with Client(f"{self.base}/mcp", headers=headers, timeout=WAIT, **options) as client:
            yield client

    async def call(self, key: str, tool: str, **options: Any) -> str:
        """Call a tool and return the text of its result."""
        async with self.client(key, **options) as client:
            return (await client.call(tool, raise_on_error=False)).text

    async def wait_for_tool(self, tool: str, key: str = ALICE) -> None:
        """Wait until a tool is listed."""
        async with asyncio.timeout(WAIT), self.client(key, options=Options(cache=False)) as client:
            while tool not in {each.name for each in await client.tools()}:  # noqa: ASYNC110  lists come in their time
                await asyncio.sleep(0.01)


@asynccontextmanager
async def run_gateway(
    url: str, *, methods: Any = None, store: str = "", pages: str = "", **options: Any
) -> AsyncIterator[Gateway]:
    """Run a gateway with one upstream, ``up``, for the duration of the block."""
    known = auth.keys(named_keys={"alice": ALICE, "bob": BOB})
    mcp = Server("gateway", serve=pages, store=store, auth=known if methods is None else methods)
    mcp.upstream("up", url, **{"start_timeout": WAIT, "auth": per_user_oauth(), **options})
    async with AsyncExitStack() as stack:
        stack.push_async_callback(mcp.stop)
        running = await stack.enter_async_context(serve(mcp))
        yield Gateway(mcp, running.port)


class Browser:
    """A browser on the connections page."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.http = httpx2.AsyncClient(base_url=base, verify=NO_TRUST, timeout=WAIT, follow_redirects=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.http.aclose()

    async def sign_in(self, key: str, name: str = "") -> "Browser":
        """Sign in with a key or token, or with a name and its password."""
        form = {"name": name, "password": key} if name else {"key": key}
        reply = await self.http.post("/sign-in", data={**form, "next": "/connections"}, headers={"origin": self.base})
        assert reply.status_code == 303, reply.text
        return self

    async def page(self) -> str:
        """Return the HTML of the connections page."""
        return (await self.http.get("/connections", headers={"accept": "text/html"})).text

    async def submit(self, action: str, upstream: str = "up", **headers: str) -> httpx2.Response:
        """Submit a form of the page."""
        form = {"upstream": upstream, "action": action}
        return await self.http.post("/connections", data=form, headers={"origin": self.base, **headers})

    async def begin_login(self, upstream: str = "up") -> str:
        """Begin to connect an account. Return the URL that the browser is redirected to."""
        reply = await self.submit("connect", upstream)
        found = re.search(r'http-equiv="refresh" content="0;url=([^"]+)"', reply.text)
        assert found, reply.text
        return unescape(found[1])

    async def open_callback(self, answer: dict[str, str]) -> httpx2.Response:
        """Open the callback as after a cross-site redirect, which omits SameSite cookies."""
        cookies = "; ".join(f"{each.name}={each.value}" for each in self.http.cookies.jar if "browser" in each.name)
        async with httpx2.AsyncClient(base_url=self.base, verify=NO_TRUST, timeout=WAIT) as http:
            headers = {"sec-fetch-site": "cross-site", "cookie": cookies}
            return await http.get("/connections/callback", params=answer, headers=headers)

    async def finish(self, back: httpx2.Response) -> httpx2.Response:
        """Follow the redirect of the callback page."""
        found = re.search(r'http-equiv="refresh" content="0;url=([^"]+)"', back.text)
        assert found, back.text
        headers = {"sec-fetch-site": "same-origin", "accept": "text/html"}
        return await self.http.get(unescape(found[1]), headers=headers)

    async def connect(self, accounts: Accounts, person: str, upstream: str = "up", **changes: str) -> None:
        """Connect an account."""
        link = await self.begin_login(upstream)
        reply = await self.finish(await self.open_callback(accounts.authorize(link, person, **changes)))
        assert (reply.status_code, reply.headers.get("location")) == (303, "/connections"), reply.text


@asynccontextmanager
async def run_scenario() -> AsyncIterator[tuple[World, Gateway, Browser, Browser]]:
    """Run the upstream, a gateway, and the browsers of Alice and Bob for the duration of the block."""
    async with (
        run_world() as other,
        run_gateway(other.url) as gate,
        Browser(gate.base) as one,
        Browser(gate.base) as two,
    ):
        yield other, gate, one, two


class reject_tokens:  # noqa: N801  used like a function
    """Make a server reject all tokens for the duration of the block."""

    def __init__(self, mcp: Server) -> None:
        self._mcp = mcp

    async def __aenter__(self) -> None:
        runtime = await self._mcp.start()
        guard = runtime.guard
        assert guard is not None
        self._guard, self._methods = guard, guard.methods
        guard.methods = ()
        guard.verdicts.clear()

    async def __aexit__(self, *exc: object) -> None:
        self._guard.methods = self._methods
