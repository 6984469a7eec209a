import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from auth_world import GuardedServer, run_guarded
from cases import for_each
from issuing_world import BACK, FORM, KnownUsers, authorization
from millstream import Server, Settings, auth
from patience import WAIT
from processes import free_port

HOST = "mcp.example.com"
EVIL = "https://evil.example"
ROOT = "/.well-known/oauth-authorization-server"
CONFIGURATION = "/.well-known/openid-configuration"
WAYS = pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])


def shop(url: str = f"https://{HOST}", *more: Any, **options: Any) -> Server:
    """Return a server with a public URL, as behind a proxy."""
    methods = [auth.issuer(url, users=KnownUsers(), scopes=["shop:use"], **options), *more]
    server = Server("shop", auth=methods, settings=Settings(allowed_hosts=[HOST]))

    @server.tool(scopes=["orders:write"])
    async def order() -> str:
        """Order a book."""
        return "ordered"

    return server


@WAYS
async def test_metadata_is_served_at_every_path_and_origin(lane: bool) -> None:
    """RFC 8414 §2 and §3, OpenID Connect Discovery."""
    async with run_guarded(shop(), lane=lane) as world:
        for path in (ROOT, CONFIGURATION):
            reply = await world.ask(None, "GET", path, host=HOST, origin=EVIL)
            assert (reply.status, reply.headers[b"access-control-allow-origin"]) == (200, b"*")
            said = reply.message
            assert said["issuer"] == f"https://{HOST}"
            for name, place in {"authorization": "authorize", "token": "token", "registration": "register",
                                "revocation": "revoke", "introspection": "introspect"}.items():  # fmt: skip
                assert said[f"{name}_endpoint"] == f"https://{HOST}/{place}"
            assert said["jwks_uri"] == f"https://{HOST}/.well-known/jwks.json"
            assert said["code_challenge_methods_supported"] == ["S256"]
            assert said["response_types_supported"] == ["code"]
            assert said["grant_types_supported"] == ["authorization_code", "refresh_token", "client_credentials"]
            assert said["authorization_response_iss_parameter_supported"] is True
            assert said["client_id_metadata_document_supported"] is True
            assert {"none", "private_key_jwt", "client_secret_basic"} <= set(
                said["token_endpoint_auth_methods_supported"]
            )
            assert "none" not in said["token_endpoint_auth_signing_alg_values_supported"]
            assert said["scopes_supported"] == ["orders:write", "shop:use"]
        resource = (await world.ask(None, "GET", "/.well-known/oauth-protected-resource/mcp", host=HOST)).message
        assert resource["authorization_servers"] == [f"https://{HOST}"]
        assert resource["resource"] == f"https://{HOST}/mcp"


async def test_issuer_with_a_path_serves_metadata_at_all_well_known_urls() -> None:
    async with run_guarded(shop(f"https://{HOST}/books")) as world:
        for path in (f"{ROOT}/books", f"{CONFIGURATION}/books", f"/books{CONFIGURATION}", ROOT):
            said = (await world.ask(None, "GET", path, host=HOST)).message
            assert (said["issuer"], said["token_endpoint"]) == (f"https://{HOST}/books", f"https://{HOST}/books/token")
        for prefix in ("", "/books"):
            assert (await world.ask(None, "GET", f"{prefix}/.well-known/jwks.json", host=HOST)).status == 200
            page = await world.ask(None, "GET", f"{prefix}/authorize", host=HOST)
            styles = re.findall(r'<link rel="stylesheet" href="[./]*(assets/[\w.-]+)">', page.body.decode())
            found = [await world.ask(None, "GET", f"{prefix}/{style}", host=HOST) for style in styles]
            assert [each.status for each in found] == [200] * 4
            assert (await world.ask(None, "POST", f"{prefix}/token", host=HOST)).status == 415
        resource = (await world.ask(None, "GET", "/.well-known/oauth-protected-resource", host=HOST)).message
        assert resource["resource"] == f"https://{HOST}/books/mcp"


@WAYS
async def test_token_endpoint_allows_every_origin_and_consent_page_allows_none(lane: bool) -> None:
    async with run_guarded(shop(), lane=lane) as world:
        for path in ("/token", "/register", "/revoke", "/.well-known/jwks.json"):
            preflight = await world.ask(
                None, "OPTIONS", path, host=HOST, origin=EVIL, access_control_request_method="POST",
                access_control_request_headers="content-type, authorization",
            )  # fmt: skip
            assert (preflight.status, preflight.headers[b"access-control-allow-origin"]) == (204, b"*")
            assert b"authorization" in preflight.headers[b"access-control-allow-headers"]
        body = json.dumps({"redirect_uris": [BACK], "token_endpoint_auth_method": "none"}).encode()
        reply = await world.ask(
            None, "POST", "/register", body, host=HOST, origin=EVIL, content_type="application/json"
        )
        assert (reply.status, reply.headers[b"access-control-allow-origin"]) == (201, b"*")
        assert b"access-control-allow-credentials" not in reply.headers
        query = authorization(reply.message["client_id"])
        read = await world.ask(None, "GET", f"/authorize?{query}", host=HOST, origin=EVIL)
        assert (read.status, b"access-control-allow-origin" in read.headers) == (403, False)
        sent = await world.ask(None, "POST", "/authorize", b"ticket=x", host=HOST, origin=EVIL, content_type=FORM)
        assert sent.status == 403
        silent = await world.ask(
            None, "POST", "/authorize", b"ticket=x", host=HOST, sec_fetch_site="cross-site", content_type=FORM
        )
        assert silent.status == 403
        shown = await world.ask(None, "GET", f"/authorize?{query}", host=HOST, sec_fetch_site="cross-site")
        assert shown.status == 200


@WAYS
async def test_unserved_hosts_are_rejected_on_oauth_paths(lane: bool) -> None:
    async with run_guarded(shop(), lane=lane) as world:
        for method, path in [("GET", ROOT), ("GET", CONFIGURATION), ("POST", "/token"), ("POST", "/register"),
                             ("GET", "/authorize"), ("GET", "/.well-known/jwks.json")]:  # fmt: skip
            for origin in ({}, {"origin": EVIL}):
                assert (await world.ask(None, method, path, host="evil.example", **origin)).status == 421


async def test_oauth_paths_reject_other_methods() -> None:
    async with run_guarded(shop()) as world:
        assert (await world.ask(None, "GET", "/token", host=HOST)).status == 405
        assert (await world.ask(None, "PUT", "/authorize", host=HOST)).status == 405
        assert (await world.ask(None, "HEAD", ROOT, host=HOST)).status == 200
    async with run_guarded() as world:
        for path in ("/token", "/register", "/authorize", CONFIGURATION):
            assert (await world.ask(None, "GET", path)).status == 404
            assert (await world.ask(None, "POST", path, origin=EVIL)).status == 403


async def signed_in(world: GuardedServer, **asked: Any) -> str:
    """Sign Ada in over HTTP, and return her token."""
    about = {"redirect_uris": [BACK], "token_endpoint_auth_method": "none", "grant_types": ["authorization_code"]}
    reply = await world.ask(
        None, "POST", "/register", json.dumps(about).encode(), host=HOST, content_type="application/json"
    )
    id = reply.message["client_id"]
    page = await world.ask(None, "GET", f"/authorize?{authorization(id, scope='orders:write', **asked)}", host=HOST)
    ticket = page.body.decode().split('name="ticket" value="')[1].split('"')[0]
    form = urlencode({"ticket": ticket, "name": "ada", "password": "correct horse", "answer": "allow"}).encode()
    cookie = page.headers[b"set-cookie"].decode().split(";")[0]
    sent = await world.ask(
        None, "POST", "/authorize", form, host=HOST, origin=f"https://{HOST}", cookie=cookie, content_type=FORM
    )
    code = sent.headers[b"location"].decode().split("code=")[1].split("&")[0]
    form = urlencode({"grant_type": "authorization_code", "client_id": id, "code": code, "code_verifier": "v" * 43})
    given = await world.ask(None, "POST", "/token", form.encode(), host=HOST, content_type=FORM)
    return str(given.message["access_token"])


@WAYS
async def test_tokens_and_keys_work_side_by_side(lane: bool) -> None:
    key = "key-of-a-job-0123456789"
    async with run_guarded(shop(f"https://{HOST}", auth.keys(key)), lane=lane) as world:
        token = await signed_in(world)
        for credential in (token, key):
            assert (await world.call(credential, "order")).status == 200
        missing = await world.call(None, "order")
        challenge = missing.headers[b"www-authenticate"].decode()
        assert 'scope="shop:use"' in challenge
        assert f'resource_metadata="https://{HOST}/.well-known/oauth-protected-resource/mcp"' in challenge
        forged = token[:-6] + ("AAAAAA" if not token.endswith("AAAAAA") else "BBBBBB")
        assert (await world.call(forged, "order")).status == 401


async def test_other_servers_accept_tokens_through_metadata() -> None:
    port, other = free_port(), "https://other.example.com/mcp"
    url = f"http://127.0.0.1:{port}"
    async with run_guarded(shop(url, resources=[other]), port=port) as world:
        method = auth.oidc(url, audience=other)
        found = await method.identify(await signed_in(world, resource=other))
        assert found is not None
        assert (found.principal.subject, found.principal.issuer) == ("ada", url)
        assert await method.identify(await signed_in(world, resource=None)) is None


async def test_wrong_passwords_and_clients_are_audited(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    server = Server(
        "shop",
        auth=auth.issuer(f"https://{HOST}", users=KnownUsers(), clients=[auth.client("job", secret="s" * 32)]),
        settings=Settings(allowed_hosts=[HOST, "127.0.0.1"], audit_log=str(path)),
        serve="web",
    )
    async with run_guarded(server) as world:
        about = json.dumps({"redirect_uris": [BACK], "token_endpoint_auth_method": "none"}).encode()
        registered = await world.ask(None, "POST", "/register", about, host=HOST, content_type="application/json")
        page = await world.ask(None, "GET", f"/authorize?{authorization(registered.message['client_id'])}", host=HOST)
        form = {"ticket": page.body.decode().split('name="ticket" value="')[1].split('"')[0], "answer": "allow"}
        cookie = page.headers[b"set-cookie"].decode().split(";")[0]
        sent = {
            "/authorize": {**form, "name": "ada", "password": "wrong"},
            "/token": {"grant_type": "client_credentials", "client_id": "job", "client_secret": "wrong"},
            "/revoke": {"token": "x", "client_id": "job", "client_secret": "wrong"},
            "/sign-in": {"name": "ada", "password": "wrong"},
        }
        for number, (where, said) in enumerate(sent.items(), 1):
            host = "127.0.0.1" if where == "/sign-in" else HOST  # the form refuses passwords over remote http
            own = {"host": host, "origin": f"https://{host}", "content_type": FORM, "cookie": cookie}
            reply = await world.ask(None, "POST", where, urlencode(said).encode(), **own)
            assert reply.status in (401, 403), where
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            assert [(each["method"], each["outcome"]) for each in lines] == [("sign-in", "refused")] * number, where
    assert "wrong" not in path.read_text("utf-8")


@pytest.mark.server
def test_servers_without_an_issuer_do_not_import_its_module() -> None:
    program = (
        "import sys; from millstream import Server, auth; Server('x', auth=auth.keys('k' * 20));"
        "print([name for name in sys.modules if name.endswith('server.server') or name[:6] in ('jinja2', 'joserf')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=True)
    assert done.stdout.strip() == "[]"


@for_each(("url", "said"), [
    ("http://mcp.example.com", "https.*not 'http://mcp.example.com'"), ("https://mcp.example.com?x=1", "query"),
    ("https://mcp.example.com#f", "fragment"),
    ("mcp.example.com", "https"), ("https://u:p@mcp.example.com", "user name"),
])  # fmt: skip
def test_invalid_issuer_urls_are_rejected(url: str, said: str) -> None:
    """RFC 8414 §2."""
    with pytest.raises(ValueError, match=said) as refused:
        auth.issuer(url, users=KnownUsers())
    assert "u:p" not in str(refused.value)
