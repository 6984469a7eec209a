"""Odd or malicious authorization servers: the result is a token, or one typed error without leaked credentials.

One server is the resource and the issuer (`rude`). The rules are RFC 6749, 8414, 9207, and 9728.
"""

import asyncio
import json
import logging
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from cases import for_each
from client.misbehaving_servers import DONE, ReceivedRequest, assert_readable, misbehaving, with_discovery
from millstream import Client
from millstream.client import OAuth, Options
from millstream.client._errors import AccessDenied, ClientError, ConnectFailed, TargetError
from millstream.client._oauth import FileTokenStore, MemoryTokenStore, StoredCredentials, Tokens
from millstream.client._oauth.flow import default_store
from millstream.client._oauth.loopback import Loopback, parse_redirect
from patience import WAIT

GOOD = {"access_token": "good", "token_type": "Bearer"}


class World:
    """Responses of the issuer that differ from the usual ones. ``@`` is replaced with its origin."""

    def __init__(
        self,
        *,
        resource: Mapping[str, Any] = {},
        issuer: Mapping[str, Any] = {},
        registration: Mapping[str, Any] = {},
        token: Any = GOOD,
        back: Mapping[str, str | None] = {},
    ) -> None:
        self._said: dict[str, Any] = {
            "/.well-known/oauth-protected-resource/mcp": {
                "resource": "@/mcp",
                "authorization_servers": ["@"],
                **resource,
            },
            "/.well-known/oauth-authorization-server": {
                "issuer": "@",
                "authorization_endpoint": "@/authorize",
                "token_endpoint": "@/token",
                "registration_endpoint": "@/register",
                "code_challenge_methods_supported": ["S256"],
                **issuer,
            },
            "/register": {"client_id": "me", **registration},
            "/token": token,
        }
        self._back = back
        self.visits = 0
        self.shown: list[str] = []
        """What the server was shown by way of a token."""
        self.came = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def behave(self, asked: ReceivedRequest) -> None:
        said = self._said.get(asked.path)
        if isinstance(said, list):
            said = said.pop(0)
        if said is not None:
            if not isinstance(said, dict | bytes):
                raise ConnectionError
            body = said if isinstance(said, bytes) else json.dumps(said).encode()
            await asked.reply(body.replace(b"@", f"http://{asked.headers['host']}".encode()))
        elif asked.path != "/mcp":
            await asked.reply(b"", status="404 Not Found")
        elif (shown := asked.headers.get("authorization", "")) in ("Bearer good", "Bearer old"):
            self.shown.append(shown)
            await with_discovery(lambda asked: asked.result(DONE))(asked)
        else:
            self.shown += [shown] if shown else []
            await asked.reply(b"", status="401 Unauthorized", more="WWW-Authenticate: Bearer\r\n")

    async def visit(self, url: str) -> str:
        """Act as a user who logs in immediately."""
        self.visits += 1
        self.came.set()
        await self.go_on.wait()
        asked = dict(parse_qsl(urlsplit(url).query))
        answer = {"code": "c", "state": asked["state"], **self._back}
        return f"{asked['redirect_uri']}?{urlencode({name: each for name, each in answer.items() if each is not None})}"

    def client(self, url: str, store: Any = None, **more: Any) -> Client:
        auth = OAuth(store=store or MemoryTokenStore(), redirect_handler=self.visit)
        return Client(url, timeout=more.pop("timeout", WAIT), options=Options(auth=auth, **more))


@for_each(
    "world",
    [
        {"resource": {"scopes_supported": None}},
        {"issuer": {"revocation_endpoint": None, "scopes_supported": None}},
        {"registration": {"client_secret": None, "client_secret_expires_at": 0}},
        {"token": {**GOOD, "expires_in": None, "refresh_token": None, "scope": None}},
        {"token": {**GOOD, "expires_in": "3600"}},
        {"token": {**GOOD, "expires_in": 1e308}},
        {"token": {**GOOD, "token_type": "bearer"}},
        {"token": {"access_token": "good"}},
        {"token": {**GOOD, "expires_in": "never"}},
        {"token": {**GOOD, "expires_in": [], "scope": ["read"], "refresh_token": 5}},
        {"issuer": {"scopes_supported": "read write"}},
        {"issuer": {"scopes_supported": {"a": 1}, "token_endpoint_auth_methods_supported": "none"}},
        {"resource": {"scopes_supported": "read write", "dpop_signing_alg_values_supported": 5}},
        {"registration": {"token_endpoint_auth_method": 5}},
        {"issuer": {"registration_endpoint": None}},
    ],
)
async def test_slightly_malformed_issuer_responses_are_accepted(world: dict[str, Any]) -> None:
    odd = World(**world)
    async with asyncio.timeout(WAIT), misbehaving(odd.behave) as server, odd.client(server.url) as client:
        assert (await client.call("x")).text == "done"
    assert (odd.visits, set(odd.shown)) == (1, {"Bearer good"})


@for_each("lifetime", [1e308, -5, 0, "never"])
async def test_tokens_with_an_unusable_lifetime_have_no_expiry(lifetime: float | str) -> None:
    odd, store = World(token={**GOOD, "expires_in": lifetime}), MemoryTokenStore()
    async with asyncio.timeout(WAIT), misbehaving(odd.behave) as server, odd.client(server.url, store) as client:
        await client.call("x")
    assert [each.expires_at for each in store.load().tokens.values()] == [0]


@for_each("named", ["/.well-known/oauth-protected-resource/mcp", "'@/elsewhere'", "nowhere:", "http://[bad"])
async def test_a_challenge_without_a_url_does_not_prevent_a_login(named: str) -> None:
    odd = World()

    async def behave(asked: ReceivedRequest) -> None:
        if asked.path == "/mcp" and "authorization" not in asked.headers:
            place = named.replace("@", f"http://{asked.headers['host']}")
            challenge = f'WWW-Authenticate: Bearer resource_metadata="{place}"\r\n'
            await asked.reply(b"", status="401 Unauthorized", more=challenge)
        else:
            await odd.behave(asked)

    async with asyncio.timeout(WAIT), misbehaving(behave) as server, odd.client(server.url) as client:
        assert (await client.call("x")).text == "done"


@for_each(
    ("place", "words"), [("/moved", ""), ("http://127.0.0.1:9/moved", "isn't available"), ("@", "isn't available")]
)
async def test_metadata_is_found_after_one_redirect_within_its_origin(place: str, words: str) -> None:
    odd = World()
    usual = "/.well-known/oauth-authorization-server"

    async def behave(asked: ReceivedRequest) -> None:
        if asked.path == usual:
            where = place.replace("@", usual)
            await asked.reply(b"", status="301 Moved Permanently", more=f"Location: {where}\r\n")
        else:
            asked.path = usual if asked.path == "/moved" else asked.path
            await odd.behave(asked)

    async with asyncio.timeout(WAIT), misbehaving(behave) as server:
        client = odd.client(server.url)
        if not words:
            async with client:
                assert (await client.call("x")).text == "done"
        else:
            with pytest.raises(AccessDenied) as caught:
                async with client:
                    await client.call("x")
            assert_readable(caught.value, words)


@for_each(
    ("world", "expected", "words"),
    [
        ({"resource": {"resource": "http://[bad"}}, AccessDenied, "another server"),
        ({"resource": {"authorization_servers": ["http://[bad"]}}, TargetError, "isn't a valid URL"),
        ({"resource": {"authorization_servers": ["javascript:1"]}}, TargetError, "isn't a server URL"),
        ({"resource": {"authorization_servers": ["http://issuer.example"]}}, AccessDenied, "https"),
        ({"issuer": {"issuer": "https://evil.example"}}, AccessDenied, "another issuer"),
        ({"issuer": {"authorization_endpoint": None}}, AccessDenied, "no authorization endpoint"),
        ({"issuer": {"authorization_endpoint": "http://evil.example/a"}}, AccessDenied, "https"),
        ({"issuer": {"token_endpoint": "http://evil.example/t"}}, AccessDenied, "https"),
        ({"issuer": {"code_challenge_methods_supported": ["plain"]}}, AccessDenied, "PKCE"),
        ({"registration": {"client_id": 5}}, AccessDenied, "register"),
        (
            {"registration": {"client_id": None, "error": "x", "error_description": "Ask it@a.example"}},
            AccessDenied,
            "Ask it",
        ),
        ({"issuer": {"issuer": 5}}, AccessDenied, "issuer has a value"),
        ({"issuer": {"token_endpoint": ["@/token"]}}, AccessDenied, "token_endpoint has a value"),
        ({"issuer": {"code_challenge_methods_supported": "S256"}}, AccessDenied, "assume_pkce"),
        ({"resource": {"authorization_servers": "https://other.example"}}, AccessDenied, "authorization_servers has"),
        ({"token": {**GOOD, "token_type": ["Bearer"]}}, AccessDenied, "token_type has"),
        ({"token": b"<html>"}, AccessDenied, "unreadable response"),
        ({"token": {**GOOD, "token_type": "mac"}}, AccessDenied, "of type mac"),
        ({"token": {**GOOD, "access_token": "good\r\nX-Evil: 1"}}, AccessDenied, "can't send"),
        ({"token": {**GOOD, "access_token": "→"}}, AccessDenied, "can't send"),
        ({"token": {"error": "no", "error_description": "one\ntwo" * 9999}}, AccessDenied, "one two"),
        ({"token": 0}, ConnectFailed, "didn't send a usable response"),
        ({"back": {"state": "another"}}, AccessDenied, "another sign-in"),
        ({"back": {"iss": "https://evil.example/\n"}}, AccessDenied, "https://evil.example/, but"),
        ({"back": {"code": None, "error": "access_denied"}}, AccessDenied, "access_denied"),
        ({"back": {"code": None, "error_description": "one\ntwo" * 9999}}, AccessDenied, "one two"),
    ],
)
async def test_issuer_errors_end_the_login(world: dict[str, Any], expected: type[ClientError], words: str) -> None:
    odd = World(**world)
    async with asyncio.timeout(WAIT), misbehaving(odd.behave) as server:
        with pytest.raises(expected) as caught:
            async with odd.client(server.url):
                pass
    assert_readable(caught.value, words)
    assert (odd.visits <= 1, odd.shown) == (True, [])


async def test_clients_register_for_the_scopes_that_they_request() -> None:
    """RFC 7591 §2: an issuer may refuse other scopes to the client."""
    registered: list[dict[str, Any]] = []
    world = World(resource={"scopes_supported": ["read"]})

    async def behave(asked: ReceivedRequest) -> None:
        if asked.path == "/register":
            registered.append(json.loads(asked.body))
            if "scope" in registered[-1] and len(registered) == 1:
                await asked.reply(b'{"error":"invalid_client_metadata"}', status="400 Bad Request")
                return
        await world.behave(asked)

    async with asyncio.timeout(WAIT), misbehaving(behave) as server, world.client(server.url):
        pass
    assert [each.get("scope") for each in registered] == ["read", None]


async def test_issuers_that_only_read_secrets_from_forms_are_accepted() -> None:
    world = World(
        issuer={"token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"]},
        registration={"client_secret": "mine", "token_endpoint_auth_method": "client_secret_basic"},
    )

    async def behave(asked: ReceivedRequest) -> None:
        if asked.path == "/token" and dict(parse_qsl(asked.body.decode())).get("client_secret") != "mine":
            await asked.reply(b'{"error":"invalid_client"}', status="401 Unauthorized")
        else:
            await world.behave(asked)

    async with asyncio.timeout(WAIT), misbehaving(behave) as server, world.client(server.url) as client:
        assert (await client.call("x")).text == "done"


@for_each("kept", ["memory", "file"])
async def test_clients_with_a_shared_token_store_use_a_refresh_token_once(kept: str, tmp_path: Path) -> None:
    valid, spent = {"token": "first"}, list[str]()

    async def behave(asked: ReceivedRequest) -> None:
        if asked.path == "/token":
            spent.append(dict(parse_qsl(asked.body.decode()))["refresh_token"])
            valid["token"] = f"new{len(spent)}"
            await asyncio.sleep(0)
            reply = {"access_token": valid["token"], "refresh_token": f"r{len(spent) + 1}", "expires_in": 3600}
            await asked.reply(json.dumps(reply).encode())
        elif asked.path == "/mcp" and asked.headers.get("authorization") == f"Bearer {valid['token']}":
            await with_discovery(lambda asked: asked.result(DONE))(asked)
        else:
            await World().behave(asked)

    def store() -> Any:
        return memory if kept == "memory" else FileTokenStore(tmp_path / "tokens.json")

    memory = MemoryTokenStore()
    async with asyncio.timeout(WAIT), misbehaving(behave) as server:
        url = server.url
        tokens = Tokens("first", url.removesuffix("/mcp"), "r1", resource=url)
        store().save(StoredCredentials({}, {url: tokens}))
        clients = [Client(url, timeout=WAIT, options=Options(auth=OAuth(store=store()))) for _ in range(2)]
        async with clients[0], clients[1]:
            valid["token"] = "elsewhere"
            replies = await asyncio.gather(*(each.call("x") for each in clients * 4))
        assert {each.text for each in replies} == {"done"}
    assert spent == ["r1"]


async def test_options_for_odd_issuers_require_an_issuer_and_a_client() -> None:
    with pytest.raises(ValueError, match="client_id"):
        OAuth().for_issuer("https://login.example", send_resource=False)
    asked: list[str] = []
    world = World(issuer={"code_challenge_methods_supported": None})

    async def visit(url: str) -> str:
        asked.append(url)
        return await world.visit(url)

    async with asyncio.timeout(WAIT), misbehaving(world.behave) as server:
        oauth = OAuth(client_id="me", store=MemoryTokenStore(), redirect_handler=visit)
        oauth.for_issuer(server.url.removesuffix("/mcp"), send_resource=False, assume_pkce=True)
        async with Client(server.url, timeout=WAIT, options=Options(auth=oauth)) as client:
            assert (await client.call("x")).text == "done"
    assert "code_challenge=" in asked[0]
    assert "resource=" not in asked[0]


async def test_login_may_take_longer_than_the_request_timeout() -> None:
    slow = World()
    slow.go_on.clear()
    async with asyncio.timeout(WAIT), misbehaving(slow.behave) as server:
        client = slow.client(server.url)
        entering = asyncio.create_task(client.__aenter__())
        await slow.came.wait()
        now = asyncio.get_running_loop().time()
        [running] = client.conversation.requests.incoming.running.values()
        assert running.when - now > Options().max_call_seconds / 2
        slow.go_on.set()
        await entering
        await client.__aexit__()
    assert slow.visits == 1


async def test_valid_tokens_are_used_during_an_issuer_outage() -> None:
    away = World(issuer={"token_endpoint": "http://127.0.0.1:1/token"})
    store = MemoryTokenStore()
    async with asyncio.timeout(WAIT), misbehaving(away.behave) as server:
        store.save(StoredCredentials({}, {server.url: Tokens("old", "http://127.0.0.1:1", "again", expires_at=1.0)}))
        async with away.client(server.url, store) as client:
            assert (await client.call("x")).text == "done"
    assert (away.visits, set(away.shown)) == (0, {"Bearer old"})


async def test_login_prints_the_url_if_no_browser_opens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    loopback = Loopback()
    await loopback.open()
    try:
        with caplog.at_level(logging.WARNING):
            waiting = asyncio.create_task(loopback.visit("https://issuer.example/authorize"))
            while not caplog.records:  # noqa: ASYNC110  a thread writes it
                await asyncio.sleep(0.01)
        assert "Open this address in a browser on this machine: https://issuer.example/authorize" in caplog.text
        waiting.cancel()
    finally:
        await loopback.close()


def test_malformed_browser_callbacks_are_ignored() -> None:
    with pytest.raises(AccessDenied, match="an invalid URL"):
        parse_redirect("http://[bad")


@pytest.mark.parametrize("text", ["", "{", "[]", "\0", "[" * 100_000, '{"tokens":{"x":5}}'])
def test_broken_token_files_are_ignored(text: str, tmp_path: Path) -> None:
    store = FileTokenStore(tmp_path / "tokens.json")
    store.path.write_text(text)
    store.path.chmod(0o644)
    assert store.load() == StoredCredentials({}, {})
    store.save(StoredCredentials({}, {"x": Tokens("t")}))
    assert store.load().tokens == {"x": Tokens("t")}
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.json"]


def test_tokens_that_cannot_be_stored_last_for_the_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    store = FileTokenStore(tmp_path / "file" / "tokens.json")
    with caplog.at_level(logging.WARNING):
        store.save(StoredCredentials({}, {"x": Tokens("t")}))
    assert store.load().tokens == {"x": Tokens("t")}
    assert "can't be stored" in caplog.text
    (tmp_path / "file").unlink()
    store.save(StoredCredentials({}, {"x": Tokens("u")}))
    assert FileTokenStore(store.path).load().tokens == {"x": Tokens("u")}


def test_tokens_are_kept_in_memory_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert isinstance(default_store(), MemoryTokenStore)
