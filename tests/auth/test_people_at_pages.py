import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from account_parts import UserFile
from auth_world import ROOT, GuardedServer, make_server, run_guarded
from http_messages import HttpRequest
from issuing_world import Desk, KnownUsers
from millstream import auth
from millstream.auth._method import NotAdmitted
from millstream.auth.providers import OAuthClient, Provider, User
from patience import WAIT
from shared_store import MemoryStore
from wire import Reply

ISSUER = "http://127.0.0.1:8000"
ADA = {"name": "ada", "password": "correct horse"}
BOB = {"name": "bob", "password": "battery staple"}
OWN = {"origin": "http://127.0.0.1", "sec_fetch_site": "same-origin"}


def issuing(users: Any, **options: Any) -> Any:
    """Return the auth method."""
    return auth.issuer(ISSUER, users=users, **options)


async def send(world: GuardedServer, form: dict[str, str], **headers: str) -> Reply:
    """Submit the form."""
    body = urlencode({**form, "next": "/docs"}).encode()
    given = {"content_type": "application/x-www-form-urlencoded", **(headers or OWN)}
    return await world.ask(None, "POST", "/sign-in", body, **given)


async def jar(world: GuardedServer, form: dict[str, str]) -> str:
    """Sign in, and return the cookie."""
    reply = await send(world, form)
    assert (reply.status, reply.headers[b"location"]) == (303, b"/docs"), reply
    return reply.headers[b"set-cookie"].split(b";")[0].decode()


async def status(world: GuardedServer, page: str, cookie: str) -> int:
    """Return a page's status with a cookie."""
    return (await world.ask(None, "GET", page, cookie=cookie)).status


async def asked(methods: Any) -> tuple[bool, bool, bool, bool]:
    """Return whether the form has a password field, a login button, a key field, and a note about other issuers."""
    async with run_guarded(make_server(methods)) as world:
        page = (await world.ask(None, "GET", "/docs", accept="text/html")).body
        return (
            b'name="password"' in page,
            b'name="way"' in page,
            b'name="key"' in page,
            b"You can't sign in with" in page,
        )


async def test_login_form_matches_the_auth_methods() -> None:
    google = auth.login_provider("google", allow=["*"], client_id="a", client_secret="b")
    foreign: dict[str, Any] = {"audience": f"{ISSUER}/mcp"}
    assert await asked(issuing(KnownUsers())) == (True, False, False, False)
    assert await asked([issuing(KnownUsers()), auth.keys(ROOT)]) == (True, False, True, False)
    assert await asked(issuing([KnownUsers(), google])) == (True, True, False, False)
    assert await asked([issuing(google), auth.keys(ROOT)]) == (False, True, True, False)
    assert await asked(auth.keys(ROOT)) == (False, False, True, False)
    assert await asked(auth.oidc("https://id.example.com", **foreign)) == (False, False, True, True)
    assert await asked(auth.oidc("https://id.example.com", **foreign, client_id="a")) == (False, True, False, False)


async def test_password_login_opens_pages_within_scopes() -> None:
    people = KnownUsers()
    people.people["eve"] = ("watch the mill", User("eve", "Eve", ("millstream:watch",)))
    async with run_guarded(make_server([issuing(people), auth.keys(ROOT)])) as world:
        ada, bob = await jar(world, ADA), await jar(world, BOB)
        eve = await jar(world, {"name": "eve", "password": "watch the mill"})
        for page in ("/docs", "/chat", "/inspect"):
            assert [await status(world, page, each) for each in (ada, bob, eve)] == [200] * 3
        assert [await status(world, "/dashboard", each) for each in (ada, bob, eve)] == [200, 403, 200]
        for each, sees in ((ada, True), (bob, False), (eve, False)):
            assert (b"/tools/order" in (await world.ask(None, "GET", "/openapi.json", cookie=each, **OWN)).body) == sees
        said = await world.ask(None, "POST", "/tools/who", b"{}", cookie=ada, content_type="application/json", **OWN)
        assert b"ada" in said.body
        assert await status(world, "/docs", await jar(world, {"key": ROOT})) == 200


async def test_login_cookie_is_sealed_and_not_a_credential() -> None:
    async with run_guarded(make_server(issuing(KnownUsers()))) as world:
        reply = await send(world, ADA)
        cookie, *flags = reply.headers[b"set-cookie"].decode().split("; ")
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(flags)
        value = cookie.partition("=")[2]
        assert (await world.ask(value, "GET", "/docs")).status == 401
        assert (await send(world, {"key": value})).status == 403
        assert await status(world, "/docs", f"{cookie[:-9]}{'A' * 9}") == 401
        for foreign in ({"origin": "http://localhost"}, {"sec_fetch_site": "cross-site"}):
            assert (await send(world, ADA, **foreign)).status == 403
            assert (await world.ask(None, "POST", "/tools/who", b"{}", cookie=cookie, **foreign)).status in (401, 403)
    async with run_guarded(make_server(auth.issuer("http://127.0.0.1:9000", users=KnownUsers()))) as other:
        assert await status(other, "/docs", cookie) == 401


@pytest.mark.usefixtures("quick_hashes")
async def test_removal_and_password_change_end_cookie_and_streams(tmp_path: Path) -> None:
    file = UserFile(tmp_path / "users.json")
    file.add("ada", ADA["password"], ("*",), 1.0)
    async with run_guarded(make_server(issuing(auth.users(file=file.path)))) as world:
        origin, form = f"http://127.0.0.1:{world.running.port}", ADA
        for change in (lambda: file.set_password("ada", "battery staple", 2.0), lambda: file.remove("ada")):
            cookie = await jar(world, form)
            async with world.socket(None, cookie=cookie, origin=origin) as socket:
                await socket.recv()
                assert await status(world, "/docs", cookie) == 200
                change()
                await asyncio.wait_for(socket.wait_closed(), WAIT)
            assert await status(world, "/docs", cookie) == 401
            form = {**ADA, "password": "battery staple"}
        assert (await send(world, form)).status == 403


@pytest.mark.usefixtures("quick_hashes")
async def test_users_with_many_scopes_and_groups_get_a_small_cookie(tmp_path: Path) -> None:
    file = UserFile(tmp_path / "users.json")
    many = tuple(f"{number:0>40}" for number in range(100))
    file.add("ada", ADA["password"], ("*", *many), 1.0, many)
    async with run_guarded(make_server(issuing(auth.users(file=file.path)))) as world:
        cookie = await jar(world, ADA)
        assert len(cookie) < 4096
        assert await status(world, "/docs", cookie) == 200


async def test_login_with_a_new_password_ends_older_streams() -> None:
    store = MemoryStore()
    await store.open()
    desk = Desk(store)
    running, id = desk.running, "https://mcp.example.com ada"
    request = HttpRequest("POST", "/sign-in", (), {}, peer="192.0.2.1")
    old = (await running.admit(request, **ADA))[0]
    assert await running.recall(old) is not None
    before = running.epoch()
    desk.people.people["ada"] = ("battery staple", User("ada", "Ada", ("*",), 2.0))
    new = (await running.admit(request, "ada", "battery staple"))[0]
    assert await running.recall(new) is not None
    assert running.epoch() != before
    assert not running.holds(id)
    assert await running.recall(old) is None
    assert await running.recall(new) is not None
    running.epoch()
    assert running.holds(id)


async def test_wrong_passwords_share_one_counter() -> None:
    async with run_guarded(make_server([issuing(KnownUsers()), auth.keys(ROOT)])) as world:
        statuses = [(await send(world, {"name": "ada", "password": f"wrong{number}"})).status for number in range(11)]
        assert statuses == [403] * 10 + [429]
        assert (await send(world, ADA)).status == 429
        assert world.runtime.guard is not None
        running: Any = world.runtime.guard.methods[0]
        with pytest.raises(NotAdmitted, match="Too many attempts"):
            await running._authorize.throttle.check("127.0.0.1", **ADA)
        assert (await send(world, {"key": ROOT})).status == 303


async def test_provider_limits_apply_to_pages() -> None:
    class Ours(Provider):
        async def grantable(self, user: User, client: OAuthClient, scopes: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(each for each in scopes if each != "secrets")

        async def claims(self, user: User, client: OAuthClient) -> dict[str, object]:
            return {"team": "books", "sub": "somebody else"}

    async with run_guarded(
        make_server(issuing(KnownUsers(), provider=Ours(), scope_includes={"orders:write": ["more"]}))
    ) as world:
        assert world.runtime.guard is not None
        running: Any = world.runtime.guard.methods[0]
        request = HttpRequest("POST", "/sign-in", (), {}, peer="127.0.0.1")
        found = await running.recall((await running.admit(request, **ADA))[0])
        assert found is not None
        assert found.principal.scopes == {"orders:write", "more"}
        assert found.principal.claims == {"name": "Ada", "team": "books", "iss": ISSUER, "sub": "ada"}
        assert found.principal.id == f"{ISSUER} ada"
