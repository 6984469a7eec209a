import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from account_parts import KeyFile
from auth_world import ALICE, BOB, ROOT, STREAM, GuardedServer, make_server, run_guarded
from cases import for_each
from http_peer import listed_paths
from millstream import Principal, Server, auth
from wire import POST, Reply, encode_headers, encode_request

FORM = {"content_type": "application/x-www-form-urlencoded"}
OWN = {"origin": "http://127.0.0.1", "sec_fetch_site": "same-origin"}
JSON = {"content_type": "application/json", "accept": POST["accept"]}
PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'


async def sign_in(world: GuardedServer, key: str = ROOT, wanted: str = "/dashboard", **headers: str) -> Reply:
    """Submit the form."""
    body = urlencode({"key": key, "next": wanted}).encode()
    return await world.ask(None, "POST", "/sign-in", body, **{**FORM, **OWN, **headers})


async def cookie(world: GuardedServer, key: str = ROOT) -> str:
    """Sign in, and return the cookie header."""
    reply = await sign_in(world, key)
    assert reply.status == 303, reply
    return reply.headers[b"set-cookie"].split(b";")[0].decode()


async def test_pages_show_the_form_before_login() -> None:
    async with run_guarded() as world:
        for page in ("/dashboard", "/chat", "/inspect", "/docs", "/connect"):
            reply = await world.ask(None, "GET", page, accept="text/html,*/*")
            assert reply.status == 401
            assert reply.headers[b"content-type"].startswith(b"text/html")
            assert f'value="{page}"'.encode() in reply.body
            policy = reply.headers[b"content-security-policy"]
            assert b"default-src 'none'" in policy
            assert b"frame-ancestors 'none'" in policy
            assert b"script" not in policy
            reply = await world.ask(None, "GET", page)
            assert reply.headers[b"content-type"] == b"application/problem+json"
        assert (await world.ask(None, "POST", "/mcp", b"{}", accept="text/html")).headers[b"content-type"] == (
            b"application/problem+json"
        )


async def test_login_sets_a_strict_http_only_cookie() -> None:
    async with run_guarded() as world:
        reply = await sign_in(world)
        assert (reply.status, reply.headers[b"location"]) == (303, b"/dashboard")
        name, *rest = reply.headers[b"set-cookie"].decode().split("; ")
        assert name.startswith("millstream=")
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(rest)
        assert ROOT not in reply.headers[b"set-cookie"].decode()
        jar = name
        for page in ("/dashboard", "/chat", "/inspect", "/docs", "/connect"):
            for site in ({}, {"sec_fetch_site": "none"}, {"sec_fetch_site": "same-origin"}):
                assert (await world.ask(None, "GET", page, cookie=f"other=1; {jar}", **site)).status == 200
        secure = await sign_in(world, x_forwarded_proto="https")
        if b"__Host-" in secure.headers[b"set-cookie"]:  # through a trusted proxy
            assert b"; Secure" in secure.headers[b"set-cookie"]


@for_each("wanted", ['"><script>alert(1)</script>', "'onload=alert(1)", "&lt;"])
async def test_form_does_not_repeat_submitted_values(wanted: str) -> None:
    async with run_guarded() as world:
        reply = await sign_in(world, key="wrong", wanted=wanted)
        assert reply.status == 403
        assert wanted.encode() not in reply.body
        assert b'name="next" value=""' in reply.body


FOREIGN: list[dict[str, str]] = [
    {"origin": "http://localhost"}, {"origin": "http://127.0.0.1:9"}, {"sec_fetch_site": "same-site"},
    {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "none"}, {},
    # The same host over plain http, where a network attacker can forge pages.
    {"origin": "http://127.0.0.1", "sec_fetch_site": "cross-site"},
    {"origin": "http://127.0.0.1", "sec_fetch_site": "same-site"},
]  # fmt: skip


@for_each(
    ("origin", "site", "status"),
    [
        ("http://127.0.0.1:8443", "same-origin", 303),
        ("http://127.0.0.1:8443", "same-site", 403),  # another program's page on this machine
        ("http://127.0.0.1:8443", "none", 403),
        ("http://127.0.0.1:8443", "", 403),
        ("http://localhost:8443", "same-origin", 403),
    ],
)
async def test_sign_in_works_behind_a_proxy_that_drops_the_port(origin: str, site: str, status: int) -> None:
    async with run_guarded() as world:
        reply = await sign_in(world, origin=origin, sec_fetch_site=site)
        assert reply.status == status
        if status == 403:
            for word in (origin, "arrived for '127.0.0.1'", "$http_host"):
                assert word.encode() in reply.body


@for_each("headers", FOREIGN)
async def test_cross_origin_login_forms_are_rejected(headers: dict[str, str]) -> None:
    async with run_guarded() as world:
        body = urlencode({"key": ROOT}).encode()
        for path in ("/sign-in", "/sign-out"):
            reply = await world.ask(None, "POST", path, body, **FORM, **headers)
            assert reply.status == 403
            assert b"set-cookie" not in reply.headers


@for_each("headers", FOREIGN)
@for_each(
    ("method", "path"),
    [
        ("POST", "/mcp"),
        ("DELETE", "/mcp"),
        ("POST", "/publish"),
        ("GET", "/events"),
        ("POST", "/tools/who"),
        ("GET", "/dashboard/events"),
        ("GET", "/openapi.json"),
        ("GET", "/inspect/servers"),
        ("POST", "/inspect/via/1"),
    ],
)
async def test_cookie_works_only_for_same_origin_requests(method: str, path: str, headers: dict[str, str]) -> None:
    async with run_guarded() as world:
        reply = await world.ask(None, method, path, PING, cookie=await cookie(world), **JSON, **headers)
        assert reply.status in (401, 403)
        assert b"result" not in reply.body


async def test_ignored_cookies_are_explained() -> None:
    async with run_guarded() as world:
        jar = await cookie(world)
        for path in ("/openapi.json", "/metrics"):
            reply = await world.ask(None, "GET", path, cookie=jar)
            assert (reply.status, "Sec-Fetch-Site: same-origin" in reply.body.decode()) == (401, True)
            assert reply.headers[b"www-authenticate"] == b"Bearer"
            without = await world.ask(None, "GET", path, cookie="other=1")
            assert "Sec-Fetch-Site" not in without.body.decode()


async def test_dashboard_requests_work_with_the_cookie() -> None:
    async with run_guarded(make_server(auth.keys(ROOT))) as world:
        known = await cookie(world)
        for path in ("/dashboard/history?seconds=60", "/dashboard/calls", "/dashboard/readers"):
            reply = await world.ask(None, "GET", path, cookie=known, sec_fetch_site="same-origin")
            assert reply.status == 200, path
        for query in ("", "?seconds=3600", "?seconds=x", "?seconds=99999999"):
            reply = await world.ask(
                None, "GET", "/dashboard/history" + query, cookie=known, sec_fetch_site="same-origin"
            )
            assert json.loads(reply.body)["seconds"] == 60, query  # covers the life of a new server


async def test_page_calls_work_with_the_cookie() -> None:
    async with run_guarded() as world:
        jar = await cookie(world)
        for own in ({"origin": "http://127.0.0.1"}, {"sec_fetch_site": "same-origin"}):
            assert (await world.ask(None, "POST", "/mcp", PING, cookie=jar, **JSON, **own)).status == 200
            assert (await world.ask(None, "GET", "/inspect/servers", cookie=jar, **own)).status == 200
            assert (await world.ask(None, "POST", "/inspect/via/1", PING, cookie=jar, **JSON, **own)).status == 404
            assert (await world.ask(None, "POST", "/publish", b'{"data":1}', cookie=jar, **JSON, **own)).status == 200
            reply = await world.ask(None, "POST", "/tools/who", b"{}", cookie=jar, **JSON, **own)
            assert b"key" in reply.body
            for path in ("/events", "/dashboard/events", "/mcp/sse/me"):
                peer = await world.send(None, "GET", path, cookie=jar, **STREAM, **own)
                assert (await peer.head())[0] == 200
        origin = f"http://127.0.0.1:{world.running.port}"
        async with world.socket(None, cookie=jar, origin=origin) as socket:
            assert "connected" in str(await socket.recv())


@for_each("path", ["/sse", "/metrics", "/messages/?session_id=x"])
async def test_cookie_is_rejected_elsewhere(path: str) -> None:
    async with run_guarded() as world:
        method = "POST" if "mess" in path or "tools" in path else "GET"
        peer = await world.send(None, method, path, b"{}", cookie=await cookie(world), accept=POST["accept"], **OWN)
        status, _ = await peer.head()  # an accepted cookie could open a stream, which doesn't end
        peer.close()
        assert status == 401


@for_each("place", [0, 5, -1])
async def test_changed_forged_and_duplicate_cookies_are_ignored(place: int) -> None:
    async with run_guarded() as world:
        jar = await cookie(world)
        name, _, value = jar.partition("=")
        letters = list(value)
        letters[place] = "A" if letters[place] != "A" else "B"
        for wrong in (f"{name}={''.join(letters)}", f"{name}=", f"{name}=x", f"{jar}; {jar}", f"__Host-{jar}", value):
            assert (await world.ask(None, "GET", "/docs", cookie=wrong)).status == 401
        assert (await world.ask(None, "GET", "/docs", cookie=jar)).status == 200


async def test_cookie_value_is_not_a_bearer_token() -> None:
    async with run_guarded() as world:
        value = (await cookie(world)).partition("=")[2]
        assert (await world.ask(None, "GET", "/docs", cookie=f"millstream={value}")).status == 200
        for given in (f"Bearer {value}", value, f"cookie {value}"):
            assert (await world.ask(None, "GET", "/docs", authorization=given)).status in (400, 401, 403)


async def test_cookie_does_not_override_a_wrong_authorization() -> None:
    async with run_guarded() as world:
        assert (await world.ask("wrong", "GET", "/docs", cookie=await cookie(world), **OWN)).status == 403


async def test_cookie_expires_on_time_or_when_its_key_is_revoked(tmp_path: Any) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key = file.add("ada", ("*",), 0.0, None)
    async with run_guarded(make_server(auth.keys(file=file.path))) as world:
        jar = await cookie(world, key)
        assert (await world.ask(None, "GET", "/docs", cookie=jar)).status == 200
        file.remove("ada")
        assert world.runtime.guard is not None
        world.runtime.guard.refresh()
        assert (await world.ask(None, "GET", "/docs", cookie=jar)).status == 401


async def test_wrong_keys_in_the_form_count_as_guesses() -> None:
    async with run_guarded() as world:
        statuses = [(await sign_in(world, key=f"wrong{number}")).status for number in range(31)]
        assert statuses == [403] * 30 + [429]
        assert (await sign_in(world)).status == 429


async def test_credentials_that_a_cookie_cannot_hold_are_not_checked() -> None:
    checked: list[int] = []

    class AnyCredential(auth.AuthMethod):
        async def identify(self, credential: str) -> auth.Identity | None:
            checked.append(len(credential))
            return auth.Identity(Principal("ada", "https://id.example"), 3600.0)

        def holds(self, id: str) -> bool:
            return True

        def epoch(self) -> int:
            return 0

    async with run_guarded(make_server(AnyCredential())) as world:
        assert (await sign_in(world, key="k" * 2048)).status == 303
        assert (await sign_in(world, key="k" * 2049)).status == 403
    assert set(checked) == {2048}


async def test_signing_out_deletes_the_cookie() -> None:
    async with run_guarded() as world:
        reply = await world.ask(None, "POST", "/sign-out", b"", **OWN)
        assert (reply.status, reply.headers[b"location"]) == (303, b"/sign-in")
        assert b"Max-Age=0" in reply.headers[b"set-cookie"]


async def test_remote_login_requires_https() -> None:
    async with run_guarded(make_server(allowed_hosts=("mcp.example.com",))) as world:
        fields = {"host": "mcp.example.com", "origin": "http://mcp.example.com", "sec-fetch-site": "same-origin",
                  "content-type": FORM["content_type"]}  # fmt: skip
        peer = await world.running.connect()
        await peer.send(encode_request("POST", "/sign-in", encode_headers(fields), urlencode({"key": ROOT}).encode()))
        status, headers, body = await peer.reply()
        assert (status, b"https" in body, b"set-cookie" in headers) == (403, True, False)


async def test_pages_receive_the_users_scopes() -> None:
    async with run_guarded() as world:
        bob, alice = await cookie(world, BOB), await cookie(world, ALICE)
        assert (await world.ask(None, "GET", "/dashboard", cookie=bob)).status == 403
        assert (await world.ask(None, "GET", "/inspect", cookie=bob)).status == 200
        for jar, sees in ((bob, False), (alice, True)):
            reply = await world.ask(None, "GET", "/openapi.json", cookie=jar, **OWN)
            assert (b"/tools/order" in reply.body) == sees


@for_each(("body", "status"), [(b"a=1&" * 5, 400), (b"key=" + b"%4" * 40_000, 413)])
async def test_login_forms_that_are_too_large_are_rejected_without_reading_them(body: bytes, status: int) -> None:
    async with run_guarded() as world:
        reply = await world.ask(None, "POST", "/sign-in", body, **FORM, **OWN)
        assert (reply.status, b"This form is too large." in reply.body) == (status, status == 413)


async def test_custom_pages_support_sign_in_and_event_source() -> None:
    server = make_server()

    @server.route("/board")
    async def board(request: object) -> Response:
        return HTMLResponse("<title>Board</title>")

    async with run_guarded(server) as world:
        form = await world.ask(None, "GET", "/board", accept="text/html")
        assert (form.status, b'value="/board"' in form.body) == (401, True)
        assert b'value="/board"' in (await world.ask(None, "GET", "/sign-in?next=/board")).body
        assert (await sign_in(world, wanted="/board")).headers[b"location"] == b"/board"
        assert (await sign_in(world, wanted="/")).headers[b"location"] == b"/connect"
        jar = await cookie(world)
        assert (await world.ask(None, "GET", "/board", cookie=jar, sec_fetch_site="same-origin")).status == 200
        assert (await world.ask(None, "GET", "/board", cookie=jar, sec_fetch_site="cross-site")).status == 401


def own_site(folder: Path) -> Server:
    """Return a server whose program has pages, files, and a webhook of its own."""
    server = make_server()
    (folder / "app.js").write_text("let x;")

    @server.route("/notes/{number:int}", methods=["GET", "POST", "DELETE"])
    async def note(request: Request) -> Response:
        return PlainTextResponse(f"{request.method} {request.path_params['number']} {request.state.principal.subject}")

    @server.route("/hook", methods=["POST"], public=True)
    async def hook(request: Request) -> Response:
        return PlainTextResponse(str(request.state.principal))

    other = Server("stock")

    @other.route("/shelf/{name}")
    async def shelf(request: Request) -> Response:
        return PlainTextResponse(request.path_params["name"])

    server.mount(other, prefix="stock")
    server.static("/files", folder)
    return server


async def test_cookie_gives_access_to_every_private_route(tmp_path: Path) -> None:
    async with run_guarded(own_site(tmp_path)) as world:
        jar = await cookie(world)
        for method, path, text in [
            ("GET", "/notes/7", b"GET 7 key"),
            ("POST", "/notes/7", b"POST 7 key"),
            ("DELETE", "/notes/7", b"DELETE 7 key"),
            ("GET", "/stock/shelf/tea", b"tea"),
            ("GET", "/files/app.js", b"let x;"),
        ]:
            for own in ({"origin": "http://127.0.0.1"}, {"sec_fetch_site": "same-origin"}, OWN):
                reply = await world.ask(None, method, path, b"x=1", cookie=jar, **FORM, **own)
                assert (reply.status, reply.body) == (200, text), (method, path, own)
            assert (await world.ask(None, method, path)).status == 401
        assert (await world.ask(None, "POST", "/hook", cookie=jar, **OWN)).body == b"None"
        assert (await world.ask(None, "GET", "/notes/7", cookie=jar, sec_fetch_site="none")).status == 200
        assert (await world.ask(None, "GET", "/notes/x", cookie=jar, **OWN)).status == 404


@for_each("headers", FOREIGN)
async def test_forms_from_foreign_pages_are_rejected_with_a_reason(headers: dict[str, str], tmp_path: Path) -> None:
    async with run_guarded(own_site(tmp_path)) as world:
        jar = await cookie(world)
        for method in ("POST", "DELETE"):
            reply = await world.ask(None, method, "/notes/7", b"x=1", cookie=jar, **FORM, **headers)
            assert reply.status == 403, headers
            assert b"key" not in reply.body
            assert b"must be sent from this server's own page" in reply.body or b"rigin" in reply.body
        if headers.get("sec_fetch_site", "none") != "none":
            for path in ("/notes/7", "/files/app.js", "/stock/shelf/tea"):
                assert (await world.ask(None, "GET", path, cookie=jar, **headers)).status in (401, 403)


@for_each("headers", [each for each in FOREIGN if each.get("sec_fetch_site", "none") != "none" or "origin" in each])
async def test_every_route_ignores_the_cookie_from_foreign_pages(headers: dict[str, str], tmp_path: Path) -> None:
    async with run_guarded(own_site(tmp_path)) as world:
        jar = await cookie(world)
        routes = listed_paths(world.runtime.serve_http())
        anybody = (
            "/assets/",
            "/hub.js",
            "/health",
            "/livez",
            "/readyz",
            "/inspect/app",
            "/inspect/callback",
            "/sign-in",
            "/hook",
        )
        tried = 0
        for path, methods in routes.items():
            for method in methods:
                if path.startswith(anybody) and path != "/sign-in/account" and method in ("GET", "HEAD"):
                    continue
                if path == "/hook" or (method in ("GET", "HEAD") and "sec_fetch_site" not in headers):
                    continue  # public, or the page of an old browser, which can't send the cookie from elsewhere
                for kind in (FORM, {"content_type": "text/plain"}, JSON):
                    found = await world.ask(
                        None, method, path.replace("*", "x"), PING, cookie=jar, **{**JSON, **kind}, **headers
                    )
                    assert found.status in (401, 403), (method, path, kind, found)
                    assert b"set-cookie" not in found.headers
                tried += 1
        assert tried > 15


@for_each(
    ("path", "wanted"),
    [
        ("/notes/7", "/notes/7"),
        ("/notes/7?tab=2&x=%2F", "/notes/7?tab=2&amp;x=%2F"),
        ("/files/app.js", "/files/app.js"),
        ("/stock/shelf/a%20b", "/stock/shelf/a%20b"),
    ],
)
async def test_signing_in_returns_to_the_requested_page(path: str, wanted: str, tmp_path: Path) -> None:
    async with run_guarded(own_site(tmp_path)) as world:
        form = await world.ask(None, "GET", path, accept="text/html")
        assert (form.status, f'name="next" value="{wanted}"'.encode() in form.body) == (401, True)
        target = wanted.replace("&amp;", "&")
        assert (await sign_in(world, wanted=target)).headers[b"location"] == target.encode()


@for_each("wanted", ["//evil.example/files/", "/\\evil.example/files/", "https://evil.example/notes/7",
                     "/notes/7\r\nx: y", "/notes/x", "/hook", "/files", "notes/7", "/%2Fevil.example",
                     "/ notes/7", "https://evil.example", "//evil.example", "/\\evil.example", "", "/mcp",
                     "dashboard", "/dashboard\r\nx: y", "/dashboard/../x", "javascript:alert(1)"])  # fmt: skip
async def test_signing_in_never_redirects_to_another_server(wanted: str, tmp_path: Path) -> None:
    async with run_guarded(own_site(tmp_path)) as world:
        reply = await sign_in(world, wanted=wanted)
        assert reply.headers[b"location"] == (b"/files" if wanted == "/files" else b"/connect")
        assert b"x" not in reply.headers


async def test_account_shows_the_signed_in_user_and_scopes() -> None:
    async with run_guarded() as world:
        for key, told in ((ROOT, ("key", ["everything"])), (ALICE, ("alice", ["orders:write", "secrets"]))):
            jar = await cookie(world, key)
            reply = await world.ask(None, "GET", "/sign-in/account", cookie=jar, sec_fetch_site="same-origin")
            found = json.loads(reply.body)
            assert (found["name"], found["scopes"], reply.headers[b"cache-control"]) == (*told, b"no-store")
            assert (await world.ask(None, "GET", "/sign-in/account", cookie=jar)).status == 401
