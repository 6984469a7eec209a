import asyncio
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from cases import for_each
from client.certificates import self_signed
from client.misbehaving_servers import (
    DONE,
    GREETING,
    OFFER,
    ReceivedRequest,
    assert_readable,
    check_failure,
    connected,
    misbehaving,
    read_request,
    refuse,
    with_discovery,
    with_handshake,
)
from millstream import Client, Server
from millstream.client import (
    AccessDenied,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    NotMcp,
    Options,
    RequestTimeout,
    ServerError,
    SessionLost,
    TlsFailed,
    UnknownVersion,
)
from millstream.client._recovery import Attempt, Recovery, plan_recovery
from patience import WAIT
from processes import free_port

NEVER = 0.05
"""A timeout that is meant to run out."""


async def test_closed_port_is_explained() -> None:
    with pytest.raises(ConnectFailed) as caught:
        async with Client(f"http://127.0.0.1:{free_port()}/mcp"):
            pass
    assert_readable(caught.value, "There is no server at http://127.0.0.1:")


async def test_unknown_host_is_explained() -> None:
    """RFC 6761 §6.4: `.invalid` never resolves."""
    with pytest.raises(ConnectFailed) as caught:
        async with Client("http://nowhere.invalid/mcp"):
            pass
    assert_readable(caught.value, "http://nowhere.invalid")


@for_each("connect", [with_discovery, with_handshake])
async def test_methods_of_extensions_are_sent(connect: Any) -> None:
    async def behave(request: ReceivedRequest) -> None:
        await request.result({**DONE, "seen": request.headers["mcp-method"]})

    async with connected(connect(behave)) as (_, client):
        for method in ("acme:list", "com.acme/x@1", "$/progress", "a.b-c_d~1"):
            assert (await client.request(method))["seen"] == method
        for method in ("a\r\nX-Admin: 1", "a\tb", " a", "a ", "ü", "two words", "a,b", 'a"b', "a;b"):
            with pytest.raises(ClientError, match="aren't allowed in headers"):
                await client.request(method)


@for_each("status", ["200 OK", "404 Not Found", "405 Method Not Allowed"])
async def test_web_page_instead_of_json_is_explained(status: str) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.reply(b"<html><h1>Welcome</h1>", status=status, type="text/html; charset=utf-8")

    await check_failure(behave, NotMcp, "isn't an MCP endpoint", "a web page")


@for_each("status", ["400 Bad Request", "404 Not Found", "415 Unsupported Media Type"])
async def test_problem_reason_is_shown(status: str) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.reply(b'{"detail":"Use /v2/mcp."}', status=status, type="application/problem+json")

    await check_failure(behave, NotMcp, "isn't an MCP endpoint", "Use /v2/mcp")


@for_each(("status", "words"), [("401 Unauthorized", "credentials"), ("403 Forbidden", "rejected")])
async def test_error_for_rejected_credentials_suggests_a_fix(status: str, words: str) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.reply(b"{}", status=status, more='WWW-Authenticate: Bearer scope="a"\r\n')

    async with misbehaving(behave) as server:
        with pytest.raises(AccessDenied) as caught:
            async with Client(server.url):
                pass
        assert_readable(caught.value, words)
        assert caught.value.status == int(status[:3])
        assert caught.value.challenge == 'Bearer scope="a"'
        assert len(server.requests) == 1


async def test_rejected_header_shows_the_reason() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        body = b'{"detail":"Send Bearer, a space, and the token."}'
        await asked.reply(body, status="401 Unauthorized", type="application/problem+json")

    async with misbehaving(behave) as server:
        with pytest.raises(AccessDenied) as caught:
            async with Client(server.url, headers={"authorization": "mellon"}):
                pass
        assert_readable(caught.value, "rejected these credentials (401): Send Bearer, a space, and the token")


@for_each(("description", "shown"), [
    ("The token has expired", "(401): The token has expired."), ("", "(401)."),
])  # fmt: skip
async def test_rejected_token_shows_the_description_in_the_challenge(description: str, shown: str) -> None:
    """RFC 6750 §3."""

    async def behave(asked: ReceivedRequest) -> None:
        challenge = f'Bearer error="invalid_token", error_description="{description}"'
        more = f"WWW-Authenticate: {challenge if description else 'Bearer'}\r\n"
        await asked.reply(b"", status="401 Unauthorized", more=more)

    async with misbehaving(behave) as server:
        with pytest.raises(AccessDenied) as caught:
            async with Client(server.url, headers={"authorization": "Bearer old"}):
                pass
        assert shown in str(caught.value)


async def test_missing_tls_is_explained() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        with pytest.raises(TlsFailed) as caught:
            async with Client(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"):
                pass
        assert_readable(caught.value, "doesn't speak TLS", "http://")
    finally:
        server.close()


async def test_untrusted_certificate_is_explained(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = self_signed(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    world: list[ReceivedRequest] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                asked = await read_request(reader, writer)
                world.append(asked)
                await asked.result(OFFER if asked.method == "server/discover" else DONE)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}/mcp"
    try:
        with pytest.raises(TlsFailed) as caught:
            async with Client(url):
                pass
        assert_readable(caught.value, "isn't trusted", "Options.tls")
        trusting = ssl.create_default_context(cafile=certificate)
        async with Client(url, options=Options(tls=trusting)) as client:
            assert (await client.call("x")).text == "done"
    finally:
        server.close()


async def test_request_is_repeated_on_a_stale_connection() -> None:
    """RFC 9110 §9.2.2."""
    dead: list[str] = []

    async def behave(asked: ReceivedRequest) -> None:
        if not dead:
            dead.append(asked.method)
            raise ConnectionError
        await asked.result({"resultType": "complete", "tools": [], "ttlMs": 0, "cacheScope": "private"})

    async with connected(with_discovery(behave)) as (_, client):
        assert await client.tools() == []
        assert dead == ["tools/list"]


@for_each("supported", [["2099-01-01"], []])
async def test_unknown_server_versions_are_explained(supported: list[str]) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.error(-32022, "Unsupported protocol version", {"supported": supported}, status="400 Bad Request")

    await check_failure(behave, UnknownVersion, "2026-07-28", *supported)


async def test_unknown_handshake_versions_are_explained() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "initialize":
            await asked.result({**GREETING, "protocolVersion": "1999-12-31"})
        else:
            await asked.reply(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}')

    await check_failure(behave, UnknownVersion, "1999-12-31")


async def test_cross_origin_redirects_are_not_followed() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.reply(b"", status="307 Temporary Redirect", more="Location: http://evil.example/mcp\r\n")

    await check_failure(behave, NotMcp, "redirects to http://evil.example/mcp")


async def test_later_calls_go_to_the_place_of_a_redirect_that_begins_between_calls() -> None:
    moved = False

    async def behave(asked: ReceivedRequest) -> None:
        if moved and asked.path == "/mcp":
            await asked.reply(b"", status="307 Temporary Redirect", more="Location: /mcp/\r\n")
        else:
            await with_discovery(lambda asked: asked.result(DONE))(asked)

    async with connected(behave) as (server, client):
        await client.call("x")
        moved = True
        server.requests.clear()
        for _ in range(3):
            assert (await client.call("x")).text == "done"
        assert [asked.path for asked in server.requests] == ["/mcp", "/mcp/", "/mcp/", "/mcp/"]


async def test_same_origin_redirects_are_followed() -> None:

    async def behave(asked: ReceivedRequest) -> None:
        if asked.path == "/mcp":
            await asked.reply(b"", status="307 Temporary Redirect", more="Location: /mcp/\r\n")
        else:
            await with_discovery(lambda asked: asked.result(DONE))(asked)

    async with connected(behave) as (server, client):
        assert (await client.call("x")).text == "done"
        assert [asked.path for asked in server.requests] == ["/mcp", "/mcp/", "/mcp/"]


@for_each(
    ("status", "body"),
    [
        ("404 Not Found", b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"x"}}'),
        # As the examples of the official TypeScript SDK, and older versions of the Python SDK.
        (
            "400 Bad Request",
            b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"No valid session ID provided"}}',
        ),
        ("400 Bad Request", b"Bad Request: No valid session ID provided"),
        ("400 Bad Request", b"Invalid or missing session ID"),
        ("400 Bad Request", b"No active session"),
        ("400 Bad Request", b'{"error":"Session does not exist"}'),
        # As a server of the official TypeScript SDK that has been restarted.
        ("400 Bad Request", b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Server not initialized"}}'),
        # As older versions of the official Rust SDK.
        ("401 Unauthorized", b"Unauthorized: Session not found"),
        ("410 Gone", b""),
    ],
)
async def test_expired_sessions_are_reopened_and_the_call_repeated(status: str, body: bytes) -> None:
    """https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#session-management"""
    seen: list[str] = []

    async def behave(asked: ReceivedRequest) -> None:
        seen.append(asked.headers["mcp-session-id"])
        if len(seen) == 1:
            await asked.reply(body, status=status)
        else:
            await asked.result(DONE)

    async with connected(with_handshake(behave, session="s1")) as (server, client):
        assert (await client.call("x")).text == "done"
        assert [asked.method for asked in server.requests].count("initialize") == 2
        assert "mcp-session-id" not in [asked for asked in server.requests if asked.method == "initialize"][1].headers


@for_each(
    ("status", "more", "body", "error", "words", "handshakes"),
    [
        ("401 Unauthorized", "WWW-Authenticate: Bearer\r\n", b"Your session has an invalid login: session expired",
         AccessDenied, "credentials", {1}),
        ("400 Bad Request", "", b'{"jsonrpc":"2.0","id":2,"error":{"code":-32602,"message":"Pass your session."}}',
         ServerError, "Pass your session", {1}),
        # A server that never accepts its session is given up.
        ("401 Unauthorized", "", b"Unauthorized: Session not found", SessionLost, "session", {1, 2, 3}),
    ],
)  # fmt: skip
async def test_rejected_calls_keep_their_session(
    status: str, more: str, body: bytes, error: type[ClientError], words: str, handshakes: set[int]
) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.reply(body.replace(b'"id":2', b'"id":%d' % asked.message["id"]), status=status, more=more)

    async with connected(with_handshake(behave, session="s1")) as (server, client):
        with pytest.raises(error, match=words):
            await client.call("x")
        assert [asked.method for asked in server.requests].count("initialize") in handshakes


async def test_broken_streams_are_resumed() -> None:
    """https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#resumability-and-redelivery"""
    call: list[ReceivedRequest] = []

    async def behave(asked: ReceivedRequest) -> None:
        if asked.verb == "POST":
            call.append(asked)
            await asked.stream()
            await asked.event(b"", "id: e1\nretry: 1\n")
            raise ConnectionError
        assert asked.headers["last-event-id"] == "e1"
        await asked.stream()
        await asked.event(call[0].answer(DONE), "id: e2\n")
        await asked.end()

    async with connected(with_handshake(behave)) as (_, client):
        assert (await client.call("x")).text == "done"


async def test_broken_streams_without_event_id_fail_their_call() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.stream()
        await asked.end()

    await check_failure(with_handshake(behave), ConnectionLost, "before its response")


async def test_many_calls_share_few_connections() -> None:
    open_now = most = 0

    async def behave(asked: ReceivedRequest) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0)
        open_now -= 1
        await asked.result(DONE)

    options = Options(max_connections=3)
    async with connected(with_discovery(behave), options=options) as (server, client):
        results = await asyncio.gather(*(client.call("x") for _ in range(50)))
        assert [result.text for result in results] == ["done"] * 50
        assert len({asked.writer for asked in server.requests}) <= 3
    assert most <= 3


async def test_calls_waiting_for_a_connection_can_be_canceled() -> None:
    go_on = asyncio.Event()

    async def behave(asked: ReceivedRequest) -> None:
        await go_on.wait()
        await asked.result(DONE)

    options = Options(max_connections=1)
    async with connected(with_discovery(behave), options=options) as (_, client):
        first, second, third = (asyncio.create_task(client.call("x")) for _ in range(3))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second.cancel()
        go_on.set()
        async with asyncio.timeout(WAIT):
            assert (await first).text == (await third).text == "done"
        with pytest.raises(asyncio.CancelledError):
            await second


async def test_invalid_http_is_explained() -> None:
    await check_failure(lambda asked: asked.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), InvalidResponse, "HTTP/1.1")


async def test_client_closes_its_connections() -> None:
    async with misbehaving(with_discovery(lambda asked: asked.result(DONE))) as server:
        async with Client(server.url) as client:
            await asyncio.gather(*(client.call("x") for _ in range(5)))
        with pytest.raises(ZeroDivisionError):
            async with Client(server.url) as client:
                _ = 1 / 0
        await asyncio.wait_for(server.left.wait(), WAIT)
        assert server.open == 0


WAYS: dict[str, tuple[Callable[[str], Any], str]] = {
    "HTTP+SSE": (lambda url: {"mcpServers": {"it": {"type": "sse", "url": url}}}, "2024-11-05"),
    "the per-request era": (lambda url: url, "2026-07-28"),
    "WebSocket": (lambda url: url.replace("http:", "ws:"), "2026-07-28"),
}
"""Ways to connect to a URL, and a revision to speak."""


@for_each("how", ["cut", "silence"])
@for_each("way", WAYS)
async def test_timeout_during_connect_is_not_misreported(way: str, how: str) -> None:

    async def behave(asked: ReceivedRequest) -> None:
        if how == "silence":
            await asyncio.get_running_loop().create_future()
        raise ConnectionError

    target, revision = WAYS[way]
    options = Options(connect_timeout=0.1)
    async with misbehaving(behave) as server:
        with pytest.raises((ConnectionLost, ConnectFailed, RequestTimeout)):
            async with Client(target(server.url), revision=revision, options=options, timeout=0.1):
                pass


@for_each("late", [False, True])
async def test_url_that_ignores_the_probe_gets_a_handshake(*, late: bool) -> None:
    """A response that comes late, but before the handshake's, still counts."""
    asked_both = asyncio.Event()

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "server/discover":
            await asked_both.wait()
            await asked.result(OFFER)
        elif asked.method == "initialize":
            if late:
                asked_both.set()
                await asyncio.get_running_loop().create_future()
            await asked.result(GREETING)
        elif "id" in asked.message:
            await asked.result(DONE)
        else:
            await asked.reply(b"", status="202 Accepted")

    options = Options(probe_timeout=0.1)
    async with connected(behave, options=options) as (_, client):
        assert client.revision == ("2026-07-28" if late else GREETING["protocolVersion"])
        await client.call("x")


async def test_handshake_that_ends_along_with_the_probe_leaves_no_session() -> None:
    initialized, sent = asyncio.Event(), list[tuple[str | None, str | None]]()

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "server/discover":
            await initialized.wait()
            await asked.result(OFFER)
        elif asked.method == "notifications/initialized":
            initialized.set()
            await asyncio.get_running_loop().create_future()
        elif asked.method == "initialize":
            await asked.result(GREETING, more="Mcp-Session-Id: s\r\n")
        else:
            sent.append((asked.headers.get("mcp-protocol-version"), asked.headers.get("mcp-session-id")))
            await asked.result(DONE)

    options = Options(probe_timeout=0.1)
    async with connected(behave, options=options) as (_, client):
        assert client.revision == "2026-07-28"
        await client.call("x")
    assert sent == [("2026-07-28", None)]


class SlowPerson:
    """A sign-in that takes several times as long as the client waits for a response."""

    def __init__(self, *, agrees: bool) -> None:
        self.asked = 0
        self.done = asyncio.Event()
        self._agrees = agrees

    async def headers(self, url: Any, method: str, token: str | None = None) -> dict[str, str]:
        """Send no credentials."""
        return {}

    def learn_nonce(self, *_: Any) -> bool:
        """Ignore the nonce."""
        return False

    async def handle_challenge(self, url: Any, status: int, challenge: str) -> bool:
        """Return whether the person signed in."""
        self.asked += 1
        await asyncio.sleep(10 * NEVER)
        self.done.set()
        return self._agrees


class NoAccount(SlowPerson):
    """A person whose account isn't connected."""

    async def headers(self, url: Any, method: str, token: str | None = None) -> dict[str, str]:
        """Raise the error of a source without credentials."""
        raise AccessDenied("No account is connected.")


@for_each("url", ["http://127.0.0.1:9/mcp", "http://127.0.0.1:9/sse", "ws://127.0.0.1:9/ws"])
async def test_missing_credentials_are_not_a_challenge_of_the_server(url: str) -> None:
    person = NoAccount(agrees=False)
    with pytest.raises(AccessDenied, match="No account is connected"):
        async with Client(url, options=Options(auth=person)):
            pass
    assert person.asked == 0


async def test_slow_sign_in_is_not_started_twice() -> None:
    """A person takes longer than the response to a probe may."""
    person = SlowPerson(agrees=False)

    async def behave(asked: ReceivedRequest) -> None:
        await asked.reply(b"", status="401 Unauthorized", more="WWW-Authenticate: Bearer\r\n")

    options = Options(probe_timeout=NEVER, auth=person)
    async with misbehaving(behave) as server:
        with pytest.raises(AccessDenied):
            async with Client(server.url, options=options):
                pass
    assert person.asked == 1


async def test_slow_sign_in_at_initialized_is_not_started_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some servers let clients initialize before they sign in."""
    monkeypatch.setattr("millstream.client._transports.http._INITIALIZED_TIMEOUT", NEVER)
    person = SlowPerson(agrees=True)

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "notifications/initialized" and not person.done.is_set():
            await asked.reply(b"", status="401 Unauthorized", more="WWW-Authenticate: Bearer\r\n")
        else:
            await with_handshake(lambda call: call.result(DONE))(asked)

    async with misbehaving(behave) as server, Client(server.url, options=Options(auth=person)) as client:
        async with asyncio.timeout(WAIT):
            await person.done.wait()
        assert (await client.call("x")).text == "done"
    assert person.asked == 1


async def test_event_stream_that_breaks_before_the_endpoint_event_is_a_lost_connection() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.stream()
        raise ConnectionError

    async with misbehaving(behave) as server:
        with pytest.raises(ConnectionLost):
            async with Client(WAYS["HTTP+SSE"][0](server.url), revision="2024-11-05"):
                pass


@for_each("clients", [1, 2])
async def test_server_from_another_era_is_reached_immediately(clients: int) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "initialize" or "mcp-session-id" in asked.headers:
            await asked.reply(b"", status="404 Not Found")
        else:
            await asked.result(DONE)

    async with AsyncExitStack() as stack:
        async with misbehaving(with_handshake(behave, "s")) as server:
            client = await stack.enter_async_context(Client(server.url, timeout=WAIT))
            assert client.revision == "2025-11-25"
        await stack.enter_async_context(misbehaving(with_discovery(behave), server.port))
        if clients == 2:
            client = await stack.enter_async_context(Client(server.url, timeout=WAIT))
        assert (await client.call("x")).text == "done"
        assert client.revision == "2026-07-28"


async def test_reconnecting_client_reports_the_status_of_a_proxy_and_recovers() -> None:
    away = False

    async def calls(asked: ReceivedRequest) -> None:
        nonlocal away
        away = asked.method == "tools/call" and asked.message["params"]["name"] == "restart"
        await (asked.reply(b"", status="404 Not Found") if away else asked.result(DONE))

    handshake = with_handshake(calls, "s1")

    async def behave(asked: ReceivedRequest) -> None:
        if away:  # a proxy without a server behind it
            await asked.reply(b"<h1>Not found</h1>", status="404 Not Found", type="text/html")
        else:
            await handshake(asked)

    async with connected(behave) as (_, client):
        await client.ping()
        with pytest.raises(NotMcp, match="responded with 404"):
            await client.call("restart")
        away = False
        assert (await client.call("x")).text == "done"


FIRST, AGAIN = Attempt(is_first=True), Attempt()
SSE = Attempt(sse=True)
KNOWN_HANDSHAKE = Attempt(began_with_handshake=True)
CONNECTED = Attempt(is_connected=True)


def with_status(error: ClientError, status: int) -> ClientError:
    error.status = status
    return error


def after_waiting(error: ConnectFailed) -> ConnectFailed:
    error.__cause__ = TimeoutError()
    return error


TABLE: list[tuple[BaseException, Attempt, Recovery]] = [
    # The server is down, or restarts behind a proxy.
    (ConnectFailed("refused"), FIRST, Recovery.RETRY_LATER),
    (ConnectFailed("refused"), SSE, Recovery.RETRY_LATER),
    (ConnectionLost("503"), AGAIN, Recovery.RETRY_LATER),
    (RequestTimeout("late"), AGAIN, Recovery.RETRY_LATER),
    # Another transport is at the URL.
    (with_status(NotMcp("405"), 405), FIRST, Recovery.OTHER_TRANSPORT),
    (with_status(NotMcp("405"), 405), AGAIN, Recovery.OTHER_TRANSPORT),
    (with_status(NotMcp("no event stream"), 400), SSE, Recovery.OTHER_TRANSPORT),
    (after_waiting(ConnectFailed("no headers")), SSE, Recovery.OTHER_TRANSPORT),
    (ConnectionLost("reset"), FIRST, Recovery.OTHER_TRANSPORT),
    (InvalidResponse("HTML"), AGAIN, Recovery.OTHER_TRANSPORT),
    # The server has another era.
    (ServerError(-32601, "no initialize"), KNOWN_HANDSHAKE, Recovery.OTHER_ERA),
    (UnknownVersion("2030-01-01"), KNOWN_HANDSHAKE, Recovery.OTHER_ERA),
    (ConnectionLost("exited"), Attempt(has_ended=True), Recovery.OTHER_ERA),
    (ConnectionLost("exited"), Attempt(has_ended=True, is_pinned=True), Recovery.RETRY_LATER),
    (ServerError(-32601, "no initialize"), AGAIN, Recovery.GIVE_UP),
    # A request fails after the negotiation.
    (ServerError(-32600, "Bad Request: Missing session ID"), CONNECTED, Recovery.NEGOTIATE),
    (ServerError(-32000, "Bad Request: Server not initialized"), CONNECTED, Recovery.NEGOTIATE),
    (ServerError(-32022, "Unsupported protocol version"), CONNECTED, Recovery.NEGOTIATE),
    (with_status(NotMcp("405"), 405), CONNECTED, Recovery.NEGOTIATE),
    (ServerError(-32602, "Unknown tool"), CONNECTED, Recovery.GIVE_UP),
    (InvalidResponse("id"), CONNECTED, Recovery.GIVE_UP),
    (ConnectionLost("reset"), CONNECTED, Recovery.RETRY_LATER),
    # Someone has to act.
    (AccessDenied("401"), AGAIN, Recovery.GIVE_UP),
    (AccessDenied("401"), CONNECTED, Recovery.GIVE_UP),
]


@pytest.mark.parametrize(("error", "attempt", "expected"), TABLE)
def test_failure_leads_to_the_step_that_can_succeed(error: BaseException, attempt: Attempt, expected: Recovery) -> None:
    assert plan_recovery(error, attempt) is expected


TOOLS = {"tools": [{"name": "hello", "inputSchema": {"type": "object"}}]}


async def answer(request: ReceivedRequest, *, handshake: bool) -> None:
    results = {"tools/list": TOOLS, "tools/call": DONE, "initialize" if handshake else "server/discover": OFFER}
    if handshake:
        results["initialize"] = GREETING
    if request.method in results:
        await request.result(results[request.method])
    else:
        await refuse(request)


@pytest.mark.parametrize("handshake", [False, True], ids=["per-request", "handshake"])
async def test_server_that_closes_after_each_response_is_usable(*, handshake: bool) -> None:
    async def behave(request: ReceivedRequest) -> None:
        await answer(request, handshake=handshake)
        raise ConnectionError

    async with misbehaving(behave) as server:
        async with Client(server.url, timeout=WAIT) as client:
            assert [(await client.call("hello")).text for _ in range(5)] == ["done"] * 5
        mcp = Server("front")
        mcp.upstream("up", server.url, prefix="", start_timeout=WAIT)
        async with Client(mcp, timeout=WAIT) as client:
            calls = await asyncio.gather(*[client.call("hello") for _ in range(20)])
            assert [each.text for each in calls] == ["done"] * 20
        assert sum(each.method == "tools/call" for each in server.requests) == 25


async def test_call_that_a_reused_connection_may_have_delivered_is_not_repeated() -> None:
    served: set[int] = set()

    async def behave(request: ReceivedRequest) -> None:
        """Respond to the first request of each connection, and close at the second."""
        if id(request.writer) in served and request.method == "tools/call":
            raise ConnectionError
        served.add(id(request.writer))
        await answer(request, handshake=False)

    async with connected(behave) as (server, client):
        with pytest.raises(ConnectionLost, match="closed the connection before it responded"):
            await client.call("hello")
        assert sum(each.method == "tools/call" for each in server.requests) == 1
        # It isn't trusted any more: these get connections of their own.
        assert [(await client.call("hello")).text for _ in range(3)] == ["done"] * 3
