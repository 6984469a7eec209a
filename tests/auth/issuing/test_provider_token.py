"""Tools that act at the provider as the person who signed in there."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from html import unescape
from re import search
from typing import Annotated, Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx2
import pytest

from auth_world import run_guarded
from issuer_world import Issuer, run_issuer, token
from millstream import Client, Context, Depends, Server, auth
from millstream.client import MemoryTokenStore, OAuth, Options
from patience import WAIT
from processes import free_port
from redis_parts import until

Token = Annotated[auth.ProviderToken, Depends(auth.provider_token)]
SECRETS = ("access-1", "access-2", "refresh-1", "refresh-2")


class Provider:
    """An OpenID provider where Ada and Eve have accounts."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer, self.forms, self.nonce, self.person = issuer, list[dict[str, str]](), "", "ada"
        self.expires_in, self.refuses, self.numbers = 3_600, "", iter(range(1, 100))
        self.said: dict[str, Any] = {}
        """Changes to the response."""
        issuer.answers["/.well-known/openid-configuration"] = {
            "issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys", "authorization_endpoint": f"{issuer.url}/auth",
            "token_endpoint": f"{issuer.url}/token", "scopes_supported": ["openid", "offline_access"],
        }  # fmt: skip
        issuer.answers["/token"] = self._token

    def _token(self, request: bytes) -> Any:
        form = dict(parse_qsl(request.partition(b"\r\n\r\n")[2].decode()))
        self.forms.append(form)
        if self.refuses:
            body = json.dumps({"error": self.refuses}).encode()
            return b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        now, number = int(time.time()), next(self.numbers)
        claims = {"iss": self.issuer.url, "aud": "desk", "sub": self.person, "nonce": self.nonce, "iat": now,
                  "exp": now + 600, "email": f"{self.person}@example.com", "email_verified": True}  # fmt: skip
        return {
            "id_token": token(claims, typ="JWT"),
            "access_token": f"access-{number}", "refresh_token": f"refresh-{number}", "token_type": "Bearer",
            "expires_in": self.expires_in, "scope": "openid calendar", **self.said,
        }  # fmt: skip


class Browser:
    """The browser of a person who signs in with the provider."""

    def __init__(self, provider: Provider, person: str = "ada") -> None:
        self.provider, self.person, self.asked = provider, person, dict[str, list[str]]()

    async def visit(self, url: str) -> str:
        """Open a link, consent, and return from the provider; return the redirect."""
        self.provider.person = self.person
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        async with httpx2.AsyncClient(trust_env=False, timeout=WAIT) as http:
            ticket = search(r'name="ticket" value="([^"]*)"', (await http.get(url)).text)
            assert ticket
            form = {"ticket": unescape(ticket[1]), "answer": "allow", "way": "openid"}
            away = await http.post(f"{origin}/authorize", data=form, headers={"origin": origin})
            target = search(r'content="0;url=([^"]*)"', away.text)
            assert target, away.text
            self.asked = parse_qs(urlsplit(unescape(target[1])).query)
            self.provider.nonce = self.asked["nonce"][0]
            query = {"state": self.asked["state"][0], "code": "c"}
            back = await http.get(f"{origin}/sign-in/callback/openid", params=query)
            return str(back.headers["location"])


def calendar(url: str, issuer: str, token_scopes: Sequence[str] = ("calendar",), **options: Any) -> Server:
    users = auth.login_provider(
        issuer, allow=["@example.com"], client_id="desk", client_secret="s" * 32, token_scopes=token_scopes
    )
    server = Server("calendar", auth=auth.issuer(url, users=users), **options)

    @server.tool
    async def events(token: Token) -> str:
        """What the provider would get, in an order that shows no secret."""
        assert "access" not in f"{token!r} {token}"
        return f"{token.access_token[::-1]} {' '.join(token.scopes)}"

    @server.tool
    async def who(ctx: Context) -> str:
        assert ctx.principal is not None
        return ctx.principal.subject

    return server


@asynccontextmanager
async def world() -> AsyncIterator[tuple[Provider, str]]:
    """Run a provider, and a server where people sign in with it."""
    async with AsyncExitStack() as stack:
        provider = Provider(await stack.enter_async_context(run_issuer()))
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        await stack.enter_async_context(run_guarded(calendar(url, provider.issuer.url), port=port))
        yield provider, url


def client_of(url: str, browser: Browser, store: MemoryTokenStore | None = None) -> Client:
    oauth = OAuth(store=store or MemoryTokenStore(), redirect_handler=browser.visit)
    return Client(f"{url}/mcp", options=Options(auth=oauth), timeout=WAIT)


async def test_tool_gets_the_token_of_its_caller(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with world() as (provider, url):
        ada, eve = Browser(provider), Browser(provider, "eve")
        async with client_of(url, ada) as first, client_of(url, eve) as second:
            assert (await first.call("who")).text == "openid:ada"
            assert ada.asked["scope"] == ["openid email profile calendar offline_access"]
            assert (await second.call("who")).text == "openid:eve"
            for _ in range(2):
                assert (await first.call("events")).text == "1-ssecca openid calendar"
                assert (await second.call("events")).text == "2-ssecca openid calendar"
    assert not [secret for secret in SECRETS if secret in caplog.text]


async def test_token_is_renewed_once_for_concurrent_calls() -> None:
    async with world() as (provider, url):
        provider.expires_in = 1
        async with client_of(url, Browser(provider)) as client:
            await client.call("who")
            provider.expires_in = 3_600

            async def renewed() -> bool:
                return not (await client.call("events")).text.startswith("1-")

            await until(renewed)
            texts = await asyncio.gather(*(client.call("events") for _ in range(5)))
            assert {each.text for each in texts} == {"2-ssecca openid calendar"}
        refreshed = [each["refresh_token"] for each in provider.forms if each["grant_type"] == "refresh_token"]
        assert refreshed == ["refresh-1"]


async def test_caller_hears_what_to_do_after_the_provider_has_ended_it() -> None:
    async with world() as (provider, url):
        provider.expires_in = 1
        async with client_of(url, Browser(provider)) as client:
            await client.call("who")
            provider.refuses = "invalid_grant"

            async def refused() -> bool:
                return "connect it again" in (await client.call("events", raise_on_error=False)).text

            await until(refused)


async def test_token_survives_what_only_the_operator_can_fix() -> None:
    async with world() as (provider, url):
        provider.expires_in = 1
        async with client_of(url, Browser(provider)) as client:
            await client.call("who")
            provider.refuses = "invalid_client"

            async def refused() -> bool:
                return "isn't responding" in (await client.call("events", raise_on_error=False)).text

            await until(refused)
            provider.refuses, provider.expires_in = "", 3_600

            async def renewed() -> bool:
                return (await client.call("events", raise_on_error=False)).text.startswith("2-")

            await until(renewed)


@pytest.mark.parametrize(
    ("said", "scopes"),
    [
        ({"scope": "calendar,mail"}, "calendar mail"), ({"scope": None}, "calendar"), ({"scope": ["a"]}, "calendar"),
        ({"expires_in": "3600"}, "openid calendar"), ({"expires_in": 10**400}, "openid calendar"),
    ],
)  # fmt: skip
async def test_members_of_other_types_are_read_or_ignored(said: dict[str, Any], scopes: str) -> None:
    async with world() as (provider, url):
        provider.said = said
        async with client_of(url, Browser(provider)) as client:
            assert (await client.call("events")).text == f"1-ssecca {scopes}"


@pytest.mark.parametrize("token", [None, {"a": 1}, "", "x" * 20_000, "a\nb"])
async def test_tokens_that_cannot_be_sent_are_not_kept(token: Any) -> None:
    async with world() as (provider, url):
        provider.said = {"access_token": token}
        async with client_of(url, Browser(provider)) as client:
            assert "can't act in your name" in (await client.call("events", raise_on_error=False)).text


@pytest.mark.parametrize("person", ["ada", "auth0|ada lovelace"])
async def test_token_is_deleted_when_a_sign_in_is_revoked(person: str) -> None:
    async with world() as (provider, url):
        kept = MemoryTokenStore()
        first, second = Browser(provider, person), Browser(provider, person)
        async with client_of(url, first, kept) as one, client_of(url, second) as two:
            assert (await one.call("events")).text
            assert (await two.call("events")).text == "2-ssecca openid calendar"
            (tokens,) = kept.load().tokens.values()
            form = {"client_id": kept.load().registrations[url].client_id, "token": tokens.refresh_token}
            async with httpx2.AsyncClient(trust_env=False, timeout=WAIT) as http:
                assert (await http.post(f"{url}/revoke", data=form)).status_code == 200

            async def deleted() -> bool:
                return "can't act in your name" in (await two.call("events", raise_on_error=False)).text

            await until(deleted)


async def test_deleted_token_is_not_used_by_workers_that_were_not_told() -> None:
    async with run_issuer() as issuer:
        provider, port = Provider(issuer), free_port()
        url = f"http://127.0.0.1:{port}"
        server = calendar(url, issuer.url)
        async with run_guarded(server, port=port) as guarded, client_of(url, Browser(provider)) as client:
            assert (await client.call("events")).text == "1-ssecca openid calendar"
            kv = guarded.runtime.store.kv
            for key in await kv.keys("provider-token"):
                await kv.delete(key)
            assert "can't act in your name" in (await client.call("events", raise_on_error=False)).text


async def test_refresh_token_of_an_earlier_sign_in_stays() -> None:
    async with world() as (provider, url):
        async with client_of(url, Browser(provider)) as client:
            assert (await client.call("events")).text == "1-ssecca openid calendar"
        provider.expires_in, provider.said = 1, {"refresh_token": None}
        async with client_of(url, Browser(provider)) as client:
            await client.call("who")

            async def renewed() -> bool:
                return (await client.call("events")).text.startswith("3-")

            await until(renewed)
    refreshed = [each["refresh_token"] for each in provider.forms if each["grant_type"] == "refresh_token"]
    assert set(refreshed) == {"refresh-1"}


async def test_callers_who_signed_in_elsewhere_hear_where_to_sign_in() -> None:
    plain = Server("plain")
    plain.tool(lambda token: "", name="events")

    @plain.tool(name="kept")
    async def kept(token: Token) -> str:
        return token.access_token

    async with Client(plain, timeout=WAIT) as client:
        found = await client.call("kept", raise_on_error=False)
        assert "token_scopes=" in found.text


@pytest.mark.parametrize("scopes", [["calendar"], []])
async def test_store_has_tokens_of_the_provider_sealed_and_only_with_token_scopes(scopes: list[str]) -> None:
    async with run_issuer() as issuer:
        provider, port = Provider(issuer), free_port()
        url = f"http://127.0.0.1:{port}"
        server = calendar(url, issuer.url, token_scopes=scopes)
        async with run_guarded(server, port=port) as guarded, client_of(url, Browser(provider)) as client:
            assert (await client.call("who")).text == "openid:ada"
            kv = guarded.runtime.store.kv
            keys = await kv.keys("")
            assert any(key.startswith("provider-token") for key in keys) == bool(scopes), keys
            kept = b"".join(each or b"" for each in await kv.get_many(keys))
            assert not any(secret.encode() in kept for secret in SECRETS)
