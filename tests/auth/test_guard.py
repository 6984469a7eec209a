import asyncio
import json
from collections import Counter
from itertools import product
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from auth_world import ALICE, BOB, ROOT, GuardedServer, make_server, run_guarded
from cases import for_each
from fleet import until
from http_peer import listed_paths
from millstream import Server, Settings, auth
from millstream._protocol.principal import Principal
from millstream.auth._authorization_server import users
from millstream.auth._method import AuthMethod, Identity
from wire import encode_headers, encode_request, request

PING = request("ping", id=5)
OPEN = (
    "/health",
    "/livez",
    "/readyz",
    "/assets/",
    "/hub.js",
    "/sign-in",
    "/sign-out",
    "/inspect/callback",
    "/inspect/app",
)
"""The callback identifies its browser by another cookie (tests/web/test_inspect_sign_in.py); the frame of apps is an
empty document.
"""


def paths(world: GuardedServer) -> list[tuple[str, str]]:
    """Return all methods and paths, with an example for each prefix."""
    served = listed_paths(world.runtime.serve_http())
    return [(method, path.replace("*", "x")) for path, methods in served.items() for method in methods]


@for_each("lane", [True, False], ids=["lane", "asgi"])
async def test_every_path_except_probes_and_assets_requires_a_credential(lane: bool) -> None:
    async with run_guarded(lane=lane) as world:
        for method, path in paths(world):
            reply = await world.ask(None, method, path)
            if path.startswith(OPEN) and path != "/sign-in/account":
                assert reply.status != 401, path
            else:
                assert reply.status == 401, (method, path)
                assert reply.headers[b"www-authenticate"].startswith(b"Bearer"), path
                assert reply.headers[b"cache-control"] == b"no-store"


@for_each("lane", [True, False], ids=["lane", "asgi"])
@for_each("below", ["/assets/", "/sign-in/", "/sign-in-", "/sign-out/", "/.well-known/oauth-"])
async def test_mcp_below_a_public_path_requires_a_credential(below: str, lane: bool) -> None:
    served: dict[str, Any] = {"path": f"{below}mcp", "sse_path": f"{below}sse", "messages_path": f"{below}messages/"}
    async with run_guarded(lane=lane, **served) as world:
        asked = [(method, path) for method, path in paths(world) if path.rstrip("/").endswith(("mcp", "sse", "ages"))]
        assert {path.rstrip("/") for _, path in asked} >= {path.rstrip("/") for path in served.values()}
        for method, path in asked:
            assert (await world.ask(None, method, path)).status in (401, 404), (method, path)
        body = json.dumps(PING).encode()
        for path in served.values():
            for form in (path, path.rstrip("/"), path.rstrip("/") + "/"):
                reply = await world.ask(None, "POST", form, body, content_type="application/json")
                assert reply.status in (401, 404, 405), form


@for_each("lane", [True, False], ids=["lane", "asgi"])
async def test_wrong_keys_get_403_and_are_never_anonymous(lane: bool) -> None:
    async with run_guarded(lane=lane) as world:
        for method, path in paths(world):
            if not path.startswith(OPEN):
                reply = await world.ask("wrong-key", method, path)
                assert reply.status in (403, 429), (method, path)
                assert b"www-authenticate" not in reply.headers


@for_each("lane", [True, False], ids=["lane", "asgi"])
async def test_functions_see_the_principal_on_every_transport(lane: bool) -> None:
    async with run_guarded(lane=lane) as world:
        for key, name in ((ALICE, "alice"), (BOB, "bob"), (ROOT, "key")):
            for _ in range(3):  # cold, warm, and with cached headers
                reply = await world.call(key, "who")
                assert reply.message["result"]["content"][0]["text"] == name
            reply = await world.post(key, request("tools/call", {"name": "who", "arguments": {}}))
            assert reply.message["result"]["content"][0]["text"] == name
            reply = await world.ask(key, "POST", "/tools/who", b"{}", content_type="application/json")
            assert name in reply.body.decode()
            async with world.socket(key) as socket:
                await socket.recv()
                await socket.send('{"type":"mcp_call","tool":"who"}')
                assert name in str(await socket.recv())


MALFORMED = {
    "no scheme": ("key", 401),
    "basic": ("Basic a2V5OmtleQ==", 401),
    "nothing": ("", 401),
    "bearer alone": ("Bearer", 400),
    "bearer and blanks": ("Bearer    ", 400),
    "two tokens": (f"Bearer {ALICE} {BOB}", 400),
    "not ascii": ("Bearer k\xe9y", 400),
}


@for_each(("value", "status"), MALFORMED.values(), ids=MALFORMED)
async def test_malformed_credentials_are_rejected(value: str, status: int) -> None:
    """RFC 6750 §3.1."""
    async with run_guarded() as world:
        reply = await world.ask(None, "POST", "/mcp", b"{}", content_type="application/json", authorization=value)
        assert reply.status == status


@for_each("name", ["Bearer", "bearer", "BEARER"])
async def test_authorization_scheme_is_case_insensitive(name: str) -> None:
    """RFC 9110 §11.1."""
    async with run_guarded() as world:
        assert (await world.ask(None, "GET", "/docs", authorization=f"{name} {ALICE}")).status == 200


async def test_header_spelling_variants_are_not_cached_separately() -> None:
    async with run_guarded() as world:
        guard = world.runtime.guard
        assert guard is not None
        schemes = [f"{''.join(letters)} " for letters in product(*zip("bearer", "BEARER", strict=True))]
        for value in [f"{each}{ALICE}" for each in (*schemes, *(f"Bearer{' ' * count}" for count in range(1, 50)))]:
            assert (await world.post(None, request("ping"), authorization=value)).status == 200
        assert 1 <= len(guard.verdicts) <= 2


@for_each("lane", [True, False], ids=["lane", "asgi"])
@for_each("order", [(ALICE, "wrong"), ("wrong", ALICE), (ALICE, BOB), (ALICE, ALICE)])
async def test_duplicate_authorization_headers_get_400(lane: bool, order: tuple[str, str]) -> None:
    async with run_guarded(lane=lane) as world:
        assert (await world.post(ALICE, PING)).status == 200
        fields = encode_headers({"host": "127.0.0.1", "content-type": "application/json"})
        fields += [(b"authorization", f"Bearer {key}".encode()) for key in order]
        peer = await world.running.connect()
        await peer.send(encode_request("POST", "/mcp", fields, b"{}"))
        assert (await peer.reply())[0] == 400


async def test_keys_in_query_or_other_headers_are_ignored() -> None:
    async with run_guarded() as world:
        for path in (f"/docs?access_token={ALICE}", f"/docs?key={ALICE}", f"/events?token={ALICE}"):
            assert (await world.ask(None, "GET", path, accept="text/event-stream")).status == 401
        for name in ("x_api_key", "x_forwarded_authorization", "x_upstream_authorization", "proxy_authorization"):
            assert (await world.ask(None, "GET", "/docs", **{name: f"Bearer {ALICE}"})).status == 401


async def test_unauthenticated_websockets_are_rejected_before_accept() -> None:
    """RFC 6455 §4.2.2."""
    async with run_guarded() as world:
        for key, status in ((None, 401), ("wrong", 403)):
            with pytest.raises(InvalidStatus) as refused:
                async with world.socket(key):
                    pass
            assert refused.value.response.status_code == status


@pytest.mark.minutes
def test_wrong_passwords_are_counted_per_minute() -> None:
    assert [(each.count, each.seconds) for each in (users._FAILURES, users._NAMED)] == [
        (10, 60),
        (15, 300),
    ]


async def test_wrong_keys_throttle_the_address_but_not_known_callers() -> None:
    async with run_guarded() as world:
        assert (await world.post(ALICE, PING)).status == 200
        statuses = [(await world.post(f"wrong{number}", PING)).status for number in range(32)]
        assert statuses == [403] * 30 + [429] * 2
        reply = await world.post("wrong", PING)
        assert reply.headers[b"retry-after"] == b"2880"
        assert reply.headers[b"ratelimit-policy"] == b'"sign-in";q=30;w=86400'
        assert (await world.post(ALICE, PING)).status == 200


class Asks(AuthMethod):
    """A method whose verification takes as long as the test wants."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = asyncio.Event()

    async def identify(self, credential: str) -> Identity | None:
        self.asked.append(credential)
        await self.answer.wait()
        return Identity(Principal("ada"), 60.0) if credential.startswith("good") else None

    def holds(self, id: str) -> bool:
        return True

    def epoch(self) -> int:
        return 0


@for_each("form", [False, True], ids=["header", "form"])
async def test_concurrent_guesses_are_throttled(form: bool) -> None:
    method = Asks()
    async with run_guarded(make_server([method])) as world:

        async def guess(key: str) -> int:
            if form:
                said = {"content_type": "application/x-www-form-urlencoded", "sec_fetch_site": "same-origin"}
                return (await world.ask(None, "POST", "/sign-in", f"key={key}".encode(), **said)).status
            return (await world.post(key, PING)).status

        guesses = [asyncio.ensure_future(guess(f"guess-{number}")) for number in range(80)]
        await until(lambda: len(method.asked) >= 8)
        method.answer.set()
        found = Counter(await asyncio.gather(*guesses))
        assert found[403] == len(method.asked)
        assert 30 <= len(method.asked) < 30 + 8
        assert found[429] == 80 - len(method.asked)


async def test_concurrent_valid_credentials_are_all_accepted() -> None:
    method = Asks()
    async with run_guarded(make_server([method])) as world:
        calls = [asyncio.ensure_future(world.post(f"good-{number}", PING)) for number in range(80)]
        await until(lambda: len(method.asked) >= 8)
        method.answer.set()
        assert {reply.status for reply in await asyncio.gather(*calls)} == {200}
        assert world.runtime.guard is not None
        assert len(world.runtime.guard._checks) == 0


async def test_unresponsive_issuer_does_not_block_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: pending guesses blocked other callers at the address, even after the client had disconnected."""
    method = Asks()
    said = {"content_type": "application/x-www-form-urlencoded", "sec_fetch_site": "same-origin"}
    async with run_guarded(make_server([method, auth.keys(named_keys={"ada": "ada-" + "k" * 40})])) as world:
        calls = [asyncio.ensure_future(world.post(f"guess-{number}", PING)) for number in range(8)]
        await until(lambda: len(method.asked) == 8)
        monkeypatch.setattr("millstream.auth._method.PATIENCE", 0)
        for reply in (
            await world.post("ada-" + "k" * 40, PING),
            await world.ask(None, "POST", "/sign-in", b"key=ada", **said),
        ):
            assert (reply.status, b"Too many sign-ins from your address" in reply.body) == (503, True)
        assert len(method.asked) == 8
        method.answer.set()
        await asyncio.gather(*calls)
        assert (await world.post("ada-" + "k" * 40, PING)).status == 200
        assert world.runtime.guard is not None
        assert len(world.runtime.guard._checks) == 0


async def test_oversized_credentials_are_rejected_without_reading_them() -> None:
    async with run_guarded() as world:
        assert (await world.post("k" * 20_000, PING)).status == 403
        assert not any(len(value) > 100 for value in world.runtime.guard.verdicts)  # type: ignore[union-attr]


async def test_auth_methods_are_tried_in_order() -> None:
    both = [
        auth.keys(named_keys={"one": "key-of-one-0123456789"}),
        auth.keys(named_keys={"two": "key-of-two-0123456789"}),
    ]
    async with run_guarded(make_server(both)) as world:
        for key, name in (("key-of-one-0123456789", "one"), ("key-of-two-0123456789", "two")):
            assert name in (await world.call(key, "who")).body.decode()
        assert (await world.call("third-key", "who")).status == 403


@for_each("wrong", [[], (), "key", object(), [auth.keys("k" * 16), None]])
def test_ineffective_auth_is_rejected_at_construction(wrong: Any) -> None:
    with pytest.raises(TypeError, match="auth"):
        Server("s", auth=wrong, settings=Settings())


@for_each("key", ["", "  ", "two words", "k\xe9y", "a\nb"])
def test_unsendable_keys_are_rejected_at_construction(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        auth.keys(key)


async def test_servers_without_auth_add_no_call_frame_or_import() -> None:
    server = Server("open", settings=Settings())
    async with server.running() as runtime:
        assert runtime.guard is None
        handler = runtime.serve_http().find("POST", "/mcp")
        assert handler is not None
        assert handler.__name__ == "post"
