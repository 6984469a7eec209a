import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from html import unescape
from itertools import cycle
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from account_parts import UserFile
from http_peer import NO_TRUST
from issuer_world import Issuer, claims, run_issuer, token
from issuing_world import VERIFIER, challenge
from patience import WAIT
from processes import TEST_PATH, free_port, run_command
from property_settings import NIGHTLY
from redis_parts import RedisServer
from web.token_server import Guarded, guarded
from wire import POST, request
from workers_world import start_program

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("quick_hashes")]

PROGRAM = f"""
import os, sys
sys.path[:0] = {TEST_PATH.split(os.pathsep)!r}
from auth.test_pages_elsewhere import Elsewhere
from millstream import Server, Settings, auth
from millstream._http.client import pool as fetch

# Who is asked here is in the process of the test, which may stand still for longer than servers wait.
fetch.fetch.__kwdefaults__["seconds"] = {WAIT}
url = os.environ["SHOP_URL"]
people = [auth.users(file=os.environ["SHOP_USERS"]), Elsewhere()]
foreign = auth.oidc(os.environ["SHOP_ISSUER"], audience=url + "/mcp", client_id="shop")
mcp = Server("shop", serve="all", auth=[auth.issuer(url, users=people), foreign, auth.keys("k" * 20)],
             settings=Settings(inspect_urls=(os.environ["SHOP_OTHER"],)))


@mcp.tool
async def greet() -> str:
    return "hello"
"""
TIMES = 4 if NIGHTLY else 1
"""Repetitions of each flow, so that different workers handle its steps."""
BACK = "http://127.0.0.1:5555/back"
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


class Next(httpx2.AsyncBaseTransport):
    """Sends each request to the next server, whatever its URL."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = cycle(ports)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request on a new connection."""
        request.url = request.url.copy_with(port=next(self._ports))
        async with httpx2.AsyncHTTPTransport(verify=NO_TRUST) as transport:
            reply = await transport.handle_async_request(request)
            await reply.aread()
        return reply


class World:
    """The servers, fake external services, and a browser that keeps cookies."""

    def __init__(self, ports: list[int], issuer: Issuer, other: Guarded) -> None:
        self.url = f"http://127.0.0.1:{ports[0]}"
        self.issuer = issuer
        self.other = other
        self._ports = ports

    def browser(self) -> httpx2.AsyncClient:
        """Return a new browser."""
        headers = {"origin": self.url, "accept": "text/html"}
        return httpx2.AsyncClient(base_url=self.url, transport=Next(self._ports), headers=headers, timeout=WAIT)


@asynccontextmanager
async def servers(folder: Path, kind: str) -> AsyncIterator[World]:
    """Run four workers of one server, or two servers with two workers each on Redis."""
    UserFile(folder / "users.json").add("ada", "correct horse", ("*",), time.time())
    (folder / "shop.py").write_text(PROGRAM)
    ports = [free_port() for _ in range(1 if kind == "four workers" else 2)]
    async with run_issuer() as issuer, guarded() as other:
        about = issuer.answers["/.well-known/openid-configuration"]
        about |= {f"{each}_endpoint": f"{issuer.url}/{each}" for each in ("authorization", "token")}
        world = World(ports, issuer, other)
        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setenv("SHOP_URL", world.url)
            patch.setenv("SHOP_USERS", str(folder / "users.json"))
            patch.setenv("SHOP_ISSUER", issuer.url)
            patch.setenv("SHOP_OTHER", other.url)
            options = ["--workers", "4"]
            if len(ports) > 1:
                redis = RedisServer()
                stack.callback(redis.close)
                options = ["--workers", "2", "--store", redis.url]
            for port in ports:
                command = run_command(str(folder / "shop.py"), port, *options)
                served = start_program(command, port, folder / f"{port}.log")
                await asyncio.to_thread(
                    stack.enter_context, served
                )  # in a thread, because it may contact the issuer in this loop
            yield world


async def by_password(world: World) -> None:
    """Sign in with a password, and with a key."""
    for form in ({"name": "ada", "password": "correct horse"}, {"key": "k" * 20}):
        async with world.browser() as browser:
            reply = await browser.post("/sign-in", data={**form, "next": "/dashboard"})
            assert reply.status_code == 303, reply.text
            assert await opened(browser) == 200


async def out_again(world: World) -> None:
    """Sign out: a copy of the cookie becomes invalid on every worker; another session stays valid."""
    for form in ({"name": "ada", "password": "correct horse"}, {"key": "k" * 20}):
        async with world.browser() as thief, world.browser() as other, world.browser() as browser:
            for each in (browser, other):
                assert (await each.post("/sign-in", data={**form, "next": "/dashboard"})).status_code == 303
            thief.cookies = httpx2.Cookies(dict(browser.cookies))
            assert await opened(thief) == 200
            assert (await browser.post("/sign-out")).status_code == 303
            async with asyncio.timeout(WAIT):
                while {(await thief.get("/dashboard")).status_code for _ in range(4 * TIMES)} != {401}:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert await opened(other) == 200


async def by_an_upstream(world: World) -> None:
    """Sign in with an upstream: the state comes from another worker, and is valid once."""
    async with world.browser() as browser:
        away = await browser.post("/sign-in", data={"way": "elsewhere", "next": "/dashboard"})
        query = {"state": queried(led_to(away))["state"], "code": "grace"}
        landed, again = [await browser.get("/sign-in/callback/elsewhere", params=query) for _ in range(2)]
        assert (landed.status_code, led_to(landed), again.status_code) == (200, "/dashboard", 400)
        assert await opened(browser) == 200


async def by_another_issuer(world: World) -> None:
    """Sign in with an external issuer: nonce and verifier come from another worker."""
    async with world.browser() as browser:
        away = await browser.post("/sign-in", data={"way": "oidc", "next": "/docs"})
        asked = queried(led_to(away))
        about = {"iss": world.issuer.url, "sub": "eve"}
        identity = token(claims(**about, aud="shop", nonce=asked["nonce"], client_id=None), typ="JWT")
        access = token(claims(**about, aud=f"{world.url}/mcp"))
        world.issuer.answers["/token"] = lambda request: (
            {"id_token": identity, "access_token": access, "token_type": "Bearer"}
            if challenge(parse_qs(request.rpartition(b"\r\n")[2].decode())["code_verifier"][0])
            == asked["code_challenge"]
            else b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
        )
        query = {"state": asked["state"], "code": "c", "iss": world.issuer.url}
        landed = await browser.get("/sign-in/callback/oidc", params=query)
        assert (landed.status_code, led_to(landed)) == (200, "/docs"), landed.text
        assert await opened(browser, "/docs") == 200


async def for_a_client(world: World) -> None:
    """Register, sign in, and refresh a token, each step on any worker."""
    async with world.browser() as browser, world.browser() as client:
        about = {"redirect_uris": [BACK], "token_endpoint_auth_method": "none",
                 "grant_types": ["authorization_code", "refresh_token"]}  # fmt: skip
        id = (await client.post("/register", json=about)).json()["client_id"]
        asked = {"response_type": "code", "client_id": id, "redirect_uri": BACK, "code_challenge": challenge(),
                 "code_challenge_method": "S256"}  # fmt: skip
        ticket = ticket_of(await browser.get("/authorize", params=asked))
        away = await browser.post("/authorize", data={"ticket": ticket, "way": "elsewhere"})
        query = {"state": queried(led_to(away))["state"], "code": "eve"}
        back = await browser.get("/sign-in/callback/elsewhere", params=query)
        assert back.status_code == 303, back.text
        form = {"grant_type": "authorization_code", "client_id": id, "code": queried(back.headers["location"])["code"],
                "code_verifier": VERIFIER}  # fmt: skip
        for _ in range(3):
            given = (await client.post("/token", data=form)).json()
            headers = {"authorization": f"Bearer {given['access_token']}", **POST}
            assert (await client.post("/mcp", json=request("ping"), headers=headers)).status_code == 200
            form = {"grant_type": "refresh_token", "client_id": id, "refresh_token": given["refresh_token"]}


async def at_another_server(world: World) -> None:
    """Sign in with the inspector: requests, registrations, and tokens are shared by all workers."""
    async with world.browser() as browser:
        browser.headers["authorization"] = "Bearer " + "k" * 20
        begun = await browser.post("/inspect/sign-in/1", json={"challenge": 'Bearer scope="books:read"'})
        assert begun.status_code == 200, begun.text
        query = {"state": queried(begun.json()["url"])["state"], "code": "c", "iss": world.other.origin}
        landed, again = [await browser.get("/inspect/callback", params=query) for _ in range(2)]
        assert (landed.status_code, again.status_code) == (200, 403), landed.text
        asked = len(world.other.forms)
        world.other.valid.clear()  # so that one worker refreshes the token while the others wait
        replies = await asyncio.gather(*(browser.post("/inspect/via/1", json=CALL) for _ in range(6)))
        assert {each.status_code for each in replies} == {200}
        assert [each["grant_type"] for each in world.other.forms[asked:]] == ["refresh_token"]
        assert (await browser.delete("/inspect/sign-in/1")).json() == {"revoked": True}
        assert (await browser.post("/inspect/via/1", json=CALL)).status_code == 401


async def stolen_steps(world: World) -> None:
    """Refuse states, tickets, codes, and tokens of another browser or client, and forms of another site."""
    async with world.browser() as browser, world.browser() as thief, world.browser() as client:
        ids = []
        for _ in range(2):
            about = {"redirect_uris": [BACK], "token_endpoint_auth_method": "none",
                     "grant_types": ["authorization_code", "refresh_token"]}  # fmt: skip
            ids.append((await client.post("/register", json=about)).json()["client_id"])
        asked = {"response_type": "code", "client_id": ids[0], "redirect_uri": BACK, "code_challenge": challenge(),
                 "code_challenge_method": "S256"}  # fmt: skip
        tickets = [ticket_of(await each.get("/authorize", params=asked)) for each in (browser, thief)]
        signed = {"ticket": tickets[0], "name": "ada", "password": "correct horse"}
        for who, form in ((thief, signed), (browser, {**signed, "ticket": tickets[1]})):
            assert (await who.post("/authorize", data=form)).status_code == 403
        for path, form in (("/authorize", signed), ("/sign-in", signed), ("/sign-out", {})):
            for origin in ("http://127.0.0.1:1", "null"):
                reply = await browser.post(path, data=form, headers={"origin": origin})
                assert (reply.status_code, "set-cookie" in reply.headers) == (403, False)
        # The thief's own login is taken no further by the other browser, and the other way round.
        for victim, other in ((browser, thief), (thief, browser)):
            away = await victim.post("/sign-in", data={"way": "elsewhere", "next": "/dashboard"})
            query = {"state": queried(led_to(away))["state"], "code": "grace"}
            assert (await other.get("/sign-in/callback/elsewhere", params=query)).status_code == 403
            assert "millstream" not in other.cookies
        # A consent page of one user isn't answered by another who has signed in at the same browser since.
        await thief.post("/authorize", data={**signed, "ticket": tickets[1]})
        ticket = ticket_of(await thief.get("/authorize", params={**asked, "prompt": "consent"}))
        away = await thief.post("/authorize", data={"ticket": ticket, "way": "elsewhere"})
        query = {"state": queried(led_to(away))["state"], "code": "eve"}
        assert (await thief.get("/sign-in/callback/elsewhere", params=query)).status_code == 303
        assert (await thief.post("/authorize", data={"ticket": ticket, "answer": "allow"})).status_code == 403
        back = await browser.post("/authorize", data=signed)
        form = {"grant_type": "authorization_code", "client_id": ids[0], "code_verifier": VERIFIER,
                "code": queried(back.headers["location"])["code"]}  # fmt: skip
        for wrong in ({"client_id": ids[1]}, {"code_verifier": "w" * 43}):
            refused = await client.post("/token", data={**form, **wrong})
            assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
        given = (await client.post("/token", data=form)).json()
        form = {"grant_type": "refresh_token", "client_id": ids[1], "refresh_token": given["refresh_token"]}
        assert (await client.post("/token", data=form)).json()["error"] == "invalid_grant"
        assert "access_token" in (await client.post("/token", data={**form, "client_id": ids[0]})).json()
        # The inspector's sign-in belongs to the browser that began it.
        for each in (browser, thief):
            each.headers["authorization"] = "Bearer " + "k" * 20
        begun = await browser.post("/inspect/sign-in/1", json={"challenge": 'Bearer scope="books:read"'})
        query = {"state": queried(begun.json()["url"])["state"], "code": "c", "iss": world.other.origin}
        assert (await thief.get("/inspect/callback", params=query)).status_code == 403


def ticket_of(page: httpx2.Response) -> str:
    """Return the sealed request in a consent page."""
    found = re.search(r'name="ticket" value="([^"]+)"', page.text)
    assert found, page.text
    return unescape(found[1])


def led_to(reply: httpx2.Response) -> str:
    """Return the page's redirect target."""
    found = re.search(r'content="0;url=([^"]+)"', reply.text)
    assert found, reply.text
    return unescape(found[1])


def queried(url: str) -> dict[str, str]:
    """Return the query of a URL."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


async def opened(browser: httpx2.AsyncClient, page: str = "/dashboard") -> int:
    """Return a page's status, the same on every server."""
    found = {(await browser.get(page)).status_code for _ in range(TIMES)}
    assert len(found) == 1
    return found.pop()


WAYS: list[Callable[[World], Awaitable[None]]] = [
    by_password, out_again, by_an_upstream, by_another_issuer, for_a_client, at_another_server, stolen_steps,
]  # fmt: skip


@pytest.mark.parametrize("kind", ["four workers", *(["two servers with Redis"] if NIGHTLY else [])])
async def test_login_can_continue_on_another_worker(tmp_path: Path, kind: str) -> None:
    async with servers(tmp_path, kind) as world:
        for way in WAYS * TIMES:
            await way(world)
