"""The examples of the guides about protecting and running a server."""

import asyncio
import hashlib
import hmac
import json
import re
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from account_parts import KeyFile, UserFile
from auth_world import make_server, run_guarded
from examples import carded, keyed, serverless, shop_pages, sign_in_methods
from issuer_world import Issuer, claims, run_issuer, token
from millstream import Server
from millstream.client import BlockingClient
from processes import free_port, run_command, run_server
from wire import request

DESK, ROBOT, SECRET = (f"a-key-of-the-{name}-for-this-test" for name in ("desk", "robot", "central-bank"))


def with_features(server: Server) -> Server:
    """Return a server with the sign-in of another one, and with tools and pages."""
    return make_server(list(server.definition.auth))


@pytest.fixture
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("DESK_KEY", DESK)
    monkeypatch.setenv("ROBOT_KEY", ROBOT)


@pytest.mark.usefixtures("_keys")
async def test_named_keys_have_their_scopes() -> None:
    for server in (make_server(keyed.named()), with_features(sign_in_methods.for_named_keys())):
        async with run_guarded(server) as world:
            assert (await world.call(DESK, "who")).message["result"]["content"][0]["text"] == "desk"
            assert (await world.call(ROBOT, "who")).message["result"]["content"][0]["text"] == "robot"
            assert (await world.call("another", "who")).status == 403


@pytest.mark.usefixtures("_keys")
async def test_keys_in_a_file_and_in_code_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    in_file = KeyFile(path).add("ada", (), 0.0, None)
    server = keyed.from_file(str(path))
    async with run_guarded(server) as world:
        for key, status in ((in_file, 200), (DESK, 200), ("another", 403)):
            assert (await world.post(key, request("ping"))).status == status


AUDIENCE = f"{sign_in_methods.URL}/mcp"


async def test_methods_in_a_list_each_accept_their_own_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTLY_KEY", DESK)
    async with (
        run_issuer() as staff,
        run_issuer() as partners,
        run_issuer() as stranger,
    ):
        monkeypatch.setattr(sign_in_methods, "LOGIN", staff.url)
        monkeypatch.setattr(sign_in_methods, "PARTNERS", partners.url)
        tokens = [token(claims(iss=each.url, aud=AUDIENCE)) for each in (staff, partners, stranger)]
        async with run_guarded(sign_in_methods.for_staff_and_partners()) as world:
            statuses = [(await world.post(each, request("ping"))).status for each in (*tokens, DESK, ROBOT)]
        assert statuses == [200, 200, 401, 200, 401]


@pytest.mark.usefixtures("_keys")
async def test_a_key_from_the_environment_is_added_unless_the_program_has_its_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MCP_SERVER_AUTH_KEY", SECRET)
    in_file = KeyFile(tmp_path / "millstream-keys.json").add("ada", (), 0.0, None)
    for server, status in ((keyed.from_file("millstream-keys.json"), 200), (sign_in_methods.without_variables(), 403)):
        async with run_guarded(server) as world:
            assert (await world.post(in_file, request("ping"))).status == 200
            assert (await world.post(SECRET, request("ping"))).status == status


async def test_oidc_options_accept_the_listed_applications_and_show_a_button(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_SECRET", SECRET)
    async with run_issuer() as issuer:
        monkeypatch.setattr(sign_in_methods, "LOGIN", issuer.url)
        await check_applications(issuer)


async def check_applications(issuer: Issuer) -> None:
    async with run_guarded(with_features(sign_in_methods.with_a_button())) as world:
        for client, scope, status in (
            ("desk", "orders:write", 200),
            ("orders", "orders:read", 200),
            ("orders", "", 403),
            ("another", "orders:read", 401),
        ):
            good = token(claims(iss=issuer.url, aud=AUDIENCE, client_id=client, scope=scope))
            assert (await world.post(good, request("ping"))).status == status, (client, scope)
        assert b"Continue with" in (await world.ask(None, "GET", "/docs", accept="text/html")).body


async def test_introspection_options_ask_the_issuer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_SECRET", SECRET)
    async with run_issuer() as issuer:
        body = json.dumps({"active": True, **claims(iss=issuer.url, aud=AUDIENCE)}).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
        issuer.answers["/introspect"] = lambda request: head + body
        monkeypatch.setattr(sign_in_methods, "LOGIN", issuer.url)
        async with run_guarded(sign_in_methods.for_opaque_tokens()) as world:
            assert (await world.post("opaque", request("ping"))).status == 200


async def test_signed_tokens_are_accepted_with_the_keys_at_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_issuer() as issuer:
        monkeypatch.setattr(sign_in_methods, "LOGIN", issuer.url)
        async with run_guarded(sign_in_methods.for_signed_tokens()) as world:
            for audience, status in ((AUDIENCE, 200), ("https://another.example.com", 401)):
                signed = token(claims(iss=issuer.url, aud=audience))
                assert (await world.post(signed, request("ping"))).status == status


async def test_issuers_of_the_reference_name_themselves_and_show_their_ways_to_sign_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    monkeypatch.setenv("NIGHTLY_PUBLIC_KEY", pem.decode())
    monkeypatch.chdir(tmp_path)
    for name in ("ORDERS_SECRET", "DESK_SECRET"):
        monkeypatch.setenv(name, SECRET)
    for name in ("GOOGLE", "GITHUB"):
        monkeypatch.setenv(f"{name}_CLIENT_ID", "orders")
        monkeypatch.setenv(f"{name}_CLIENT_SECRET", SECRET)
    UserFile(tmp_path / "users.json").add("ada", "correct horse battery", (), 0.0)
    async with run_issuer() as login:
        monkeypatch.setattr(sign_in_methods, "LOGIN", login.url)
        for server, way in (
            (sign_in_methods.for_people(), 'name="password"'),
            (sign_in_methods.for_members(), "urn:ietf:params:oauth:grant-type:jwt-bearer"),
            (sign_in_methods.for_staff(), "Continue with our sign-in"),
            (sign_in_methods.with_google(), "Continue with Google"),
            (sign_in_methods.with_github(), "Continue with GitHub"),
            (sign_in_methods.for_a_job(), "client_credentials"),
        ):
            async with run_guarded(with_features(server)) as world:
                resource = await world.ask(None, "GET", "/.well-known/oauth-protected-resource/mcp")
                assert json.loads(resource.body)["authorization_servers"] == [sign_in_methods.URL]
                about = await world.ask(None, "GET", "/.well-known/oauth-authorization-server")
                page = await world.ask(None, "GET", "/docs", accept="text/html")
                assert way in (about.body + page.body).decode()


async def test_own_method_accepts_badges() -> None:
    async with run_guarded(with_features(sign_in_methods.for_badges())) as world:
        assert (await world.call("b-17", "who")).message["result"]["content"][0]["text"] == "ada"
        assert (await world.post("b-18", request("ping"))).status == 403


def test_serverless_example_answers_in_a_new_event_loop_each_time() -> None:
    async def call() -> httpx2.Response:
        transport = httpx2.ASGITransport(serverless.mcp)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            message = request("tools/call", {"name": "price", "arguments": {"isbn": "123"}})
            return await http.post("/mcp", json=message, headers={"accept": "application/json, text/event-stream"})

    for _ in range(2):
        reply = asyncio.run(call())
        assert reply.headers["content-type"] == "application/json"
        assert reply.json()["result"]["content"][0]["text"] == "300"


@pytest.mark.server
def test_traced_example_prints_the_call_and_its_child_span(tmp_path: Path) -> None:
    port, output = free_port(), tmp_path / "log"
    with run_server(run_command("examples/traced.py", port), port, output):
        url = f"http://127.0.0.1:{port}/mcp"
        with BlockingClient(url) as client:
            assert client.call("price", isbn="123").data == 300
    text = output.read_text("utf-8")  # a stopping program writes what's waiting
    spans = {
        each["name"]: each for each in map(json.loads, re.findall(r"^\{\n.*?^\}$", text, re.MULTILINE | re.DOTALL))
    }
    assert spans["look up"]["parent_id"] == spans["tools/call price"]["context"]["span_id"]
    assert spans["tools/call price"]["attributes"]["gen_ai.operation.name"] == "execute_tool"


async def test_shop_webhook_checks_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"order":"7"}'
    unset, right = (hmac.new(secret, body, hashlib.sha256).hexdigest() for secret in (b"", SECRET.encode()))
    transport = httpx2.ASGITransport(shop_pages.mcp)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        assert (await http.post("/hooks/bank", content=body, headers={"x-signature": unset})).status_code == 403
        monkeypatch.setattr(shop_pages, "SECRET", SECRET)
        for signature, status in (("", 403), ("0" * 64, 403), (right, 200)):
            reply = await http.post("/hooks/bank", content=body, headers={"x-signature": signature})
            assert reply.status_code == status
        assert shop_pages.paid == ["7"]
        assert "stranger" in (await http.get("/account")).text
    await shop_pages.mcp.stop()


async def test_example_card_describes_the_server() -> None:
    transport = httpx2.ASGITransport(carded.mcp)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        card = (await http.get("/mcp/server-card")).json()
    assert (card["title"], card["description"]) == ("Book shop", "Search books, and order them.")
    await carded.mcp.stop()
