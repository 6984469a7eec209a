"""Causes that an operator has to tell apart: what the log, `doctor`, `/health`, the gateway page, and callers say.

`doctor` and `/health` show `describe_states`, and the page `describe`.
"""

import asyncio
import errno
import json
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from auth_world import run_guarded
from cases import for_each
from client.misbehaving_servers import ReceivedRequest, misbehaving, with_handshake
from command_line import run_in_process
from fleet import one_worker, until
from http_peer import serve
from millstream import Client, Context, Server, Settings, auth
from millstream._cli.diagnosis import health_steps, read_health, read_states, remedy_of, upstream_step
from millstream._http.client.url import parse_url
from millstream._protocol.jsonrpc import encode
from millstream._troubles import local_time
from millstream.client import AccessDenied
from millstream.gateway import UpstreamPolicy, bearer
from patience import WAIT
from shared_store import SharedStore

Target = tuple[Any, dict[str, Any]]
TOOL = {"name": "add", "description": "Add.", "inputSchema": {"type": "object"}}


def answer(status: str, body: bytes = b"", *, type: str = "application/json", more: str = "") -> Any:
    """Return a target whose server gives the same response to each request."""

    @asynccontextmanager
    async def run() -> AsyncIterator[Target]:
        async with misbehaving(lambda asked: asked.reply(body, status=status, type=type, more=more)) as server:
            yield server.url, {}

    return run


@asynccontextmanager
async def run_command(*code: str) -> AsyncIterator[Target]:
    yield [*code], {}


@asynccontextmanager
async def run_at_file_limit() -> AsyncIterator[Target]:
    yield "http://full.invalid/mcp", {}


@asynccontextmanager
async def run_unknown_host() -> AsyncIterator[Target]:
    yield "http://shop.invalid/mcp", {}


@asynccontextmanager
async def run_with_large_lists() -> AsyncIterator[Target]:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.result({"tools": [{**TOOL, "description": "x" * 4000}]} if asked.method == "tools/list" else {})

    async with misbehaving(with_handshake(behave)) as server:
        yield server.url, {"max_catalog_bytes": 2000}


@asynccontextmanager
async def run_with_key() -> AsyncIterator[Target]:
    refuse = answer("401 Unauthorized", b'{"error":"invalid_token"}', more='WWW-Authenticate: Bearer error="x"\r\n')
    async with refuse() as (url, options):
        yield url, {**options, "auth": bearer("old-key-of-the-shop")}


@asynccontextmanager
async def run_with_narrow_token() -> AsyncIterator[Target]:
    challenge = 'WWW-Authenticate: Bearer error="insufficient_scope", scope="shop:write"\r\n'
    async with answer("403 Forbidden", more=challenge)() as (url, options):
        yield url, {**options, "auth": bearer("narrow-token-of-the-shop")}


@asynccontextmanager
async def run_with_expired_certificate() -> AsyncIterator[Target]:
    """Serve with a certificate that expired. The rest of the chain is trusted, so that only this can be the reason."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        key, certificate = Path(folder, "key.pem"), Path(folder, "certificate.pem")
        write_certificate(key, certificate, valid_until=datetime.now(UTC) - timedelta(days=1))
        patch.setenv("SSL_CERT_FILE", str(certificate))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=tls)
        try:
            yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp", {}
        finally:
            server.close()


def write_certificate(key: Path, certificate: Path, *, valid_until: datetime) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
    made = made.not_valid_before(valid_until - timedelta(days=9)).not_valid_after(valid_until)
    made = made.add_extension(address, critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate.write_bytes(made.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


CAUSES: dict[str, tuple[Callable[[], AbstractAsyncContextManager[Target]], str, str]] = {
    "no such path": (answer("404 Not Found"), "404", "responded with status 404"),
    "a page of a proxy": (
        answer("200 OK", b"<html><title>Sign in</title></html>", type="text/html"), "a web page", "isn't an MCP server",
    ),
    "a redirect to a sign-in": (
        answer("302 Found", more="Location: https://login.example/\r\n"), "login.example", "isn't an MCP server",
    ),
    "a rotated key": (run_with_key, "rejected these credentials (401)", "operator has to replace them"),
    "no key": (answer("401 Unauthorized"), "requires credentials (401)", "operator has to add them"),
    "a missing scope": (run_with_narrow_token, "shop:write", "has to replace them"),
    "too many requests": (
        answer("429 Too Many Requests", more="Retry-After: 120\r\n"), "429", "Try again in 120 seconds.",
    ),
    "no such command": (lambda: run_command("no-such-command"), "no-such-command", "correct the command"),
    "a command that exits": (
        lambda: run_command(sys.executable, "-c", "import sys; sys.exit('no license')"),
        "no license",
        "log has the reason",
    ),
    "an unknown host": (run_unknown_host, "shop.invalid", "correct its URL"),
    "too many open files": (run_at_file_limit, "Raise the limit: `ulimit -n`", "can't be reached"),
    "an expired certificate": (run_with_expired_certificate, "expired", "TLS certificate that this gateway trusts"),
    "lists that are too large": (run_with_large_lists, "2,000", "can't be used"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def unusual_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a name unknown, also on machines without a name server, and another one fail for lack of open files."""
    look_up = asyncio.BaseEventLoop.getaddrinfo

    async def getaddrinfo(self: Any, host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "shop.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if host == "full.invalid":
            raise OSError(errno.EMFILE, "Too many open files")
        return await look_up(self, host, *arguments, **options)

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)


@pytest.mark.server
@for_each("cause", CAUSES)
async def test_cause_is_shown_to_operators_and_what_to_do_to_callers(
    cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    run, words, advice = CAUSES[cause]
    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        target, options = await stack.enter_async_context(run())
        mcp = Server("front")
        mcp.upstream("up", target, start_timeout=WAIT, **options)
        runtime = await stack.enter_async_context(mcp.running())
        client = await stack.enter_async_context(Client(mcp, timeout=WAIT))
        gateway = runtime.host.gateway
        assert gateway is not None
        await until(lambda: gateway.describe()[0]["state"] == "degraded")
        [page], [state] = gateway.describe_all(), gateway.describe_states()
        assert words in page["reason"]
        assert words in state["reason"]
        assert page["since"] > 0
        [step] = map(upstream_step, read_states(gateway.describe_states()))
        assert (step.name, step.ok) == ("upstream up", False)
        assert words in step.found
        assert "degraded since" in step.found
        logged = [each.getMessage() for each in caplog.records]
        assert [each for each in logged if each.startswith("The upstream up ") and words in each], logged
        with pytest.raises(Exception, match="Unknown tool") as refused:
            await client.call("up_add")
        assert "'up'" in str(refused.value)
        assert advice in str(refused.value)


async def test_failing_refresh_is_logged_once_and_its_end_counts_the_attempts(caplog: pytest.LogCaptureFixture) -> None:
    failing = False

    async def behave(asked: ReceivedRequest) -> None:
        if failing and asked.method == "tools/list":
            error = {"code": -32603, "message": f"The database is locked, request {len(server.requests)}"}
            await asked.reply(json.dumps({"jsonrpc": "2.0", "id": asked.message.get("id"), "error": error}).encode())
        else:
            await asked.result({"tools": [TOOL]} if asked.method == "tools/list" else {})

    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        server = await stack.enter_async_context(misbehaving(with_handshake(behave)))
        mcp = Server("front")
        mcp.upstream("up", server.url, start_timeout=WAIT)
        runtime = await stack.enter_async_context(mcp.running())
        gateway: Any = runtime.host.gateway
        lists = gateway.upstreams["up"].lists

        async def refresh_until(reached: Callable[[], bool]) -> None:
            while not reached():
                lists.refresh()
                await asyncio.sleep(0)

        failing = True
        await refresh_until(lambda: gateway.describe()[0]["failed_reads"] >= 2)
        assert caplog.text.count("The database is locked") == 1
        [step] = map(upstream_step, read_states(gateway.describe_states()))
        assert (step.ok, "failed attempts to read its lists" in step.found) == (True, True)
        assert "database is locked" in step.found
        failing = False
        await refresh_until(lambda: gateway.describe()[0]["failed_reads"] == 0)
        assert "The upstream up lists its tools again. It failed " in caplog.text
        assert gateway.describe()[0]["reason"] == ""


@pytest.mark.server
async def test_process_that_keeps_failing_is_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    code = "import os, sys; sys.exit(f'no license for {os.getpid()}')"
    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        mcp = Server("front")
        mcp.upstream("up", [sys.executable, "-c", code], start_timeout=WAIT)
        runtime = await stack.enter_async_context(mcp.running())
        gateway: Any = runtime.host.gateway
        await until(lambda: gateway.describe()[0]["failed_reads"] >= 3)
        assert caplog.text.count("The upstream up can't be reached") <= 2  # it exited, and then it did too often


@for_each("number", [-1, errno.EMFILE])  # -1 is uvloop's own
async def test_command_that_needs_too_many_files_names_the_limit(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, "Unknown error -1")

    mcp = Server("front")
    mcp.upstream("up", [sys.executable, "-c", ""], start_timeout=WAIT)
    async with asyncio.timeout(WAIT):
        monkeypatch.setattr(type(asyncio.get_running_loop()), "subprocess_exec", fail)
        async with mcp.running() as runtime:
            gateway: Any = runtime.host.gateway
            await until(lambda: gateway.describe()[0]["state"] == "degraded")
            assert "couldn't be started: too many open files. Raise the limit" in gateway.describe()[0]["reason"]


async def test_server_that_hangs_after_a_failure_is_not_blamed_for_the_failure() -> None:
    hangs = False

    async def behave(asked: ReceivedRequest) -> None:
        if hangs:
            await asyncio.Event().wait()
        await asked.reply(b"", status="503 Service Unavailable")

    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        server = await stack.enter_async_context(misbehaving(behave))
        mcp = Server("front")
        mcp.upstream("up", server.url, connect_timeout=1)
        runtime = await stack.enter_async_context(mcp.running())
        gateway: Any = runtime.host.gateway
        await until(lambda: "503" in gateway.describe()[0]["reason"])
        hangs = True
        await until(lambda: gateway.describe()[0]["reason"] == "It hasn't responded within 1 second.")


async def test_server_that_connects_but_hangs_at_its_lists_is_told_apart() -> None:
    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        server = await stack.enter_async_context(misbehaving(with_handshake(lambda asked: asyncio.Event().wait())))
        mcp = Server("front")
        mcp.upstream("up", server.url, connect_timeout=1, start_timeout=0.1)
        runtime = await stack.enter_async_context(mcp.running())
        gateway: Any = runtime.host.gateway
        await until(lambda: gateway.describe()[0]["reason"] == "It hasn't returned its lists within 1 second.")


async def test_policy_that_leaves_everything_out_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    shop = Server("shop")

    @shop.tool
    def order() -> None:
        """Order a book."""

    mcp = Server("front")
    mcp.upstream("up", shop, policy=UpstreamPolicy(allow=["oder*"]))
    async with asyncio.timeout(WAIT), mcp.running() as runtime:
        gateway: Any = runtime.host.gateway
        await until(lambda: gateway.describe()[0]["state"] == "ready")
        [step] = map(upstream_step, read_states(gateway.describe_states()))
        assert "None of the items that it lists are offered. Check the patterns of the policy" in step.found
        assert "up: the policy leaves out all that it lists (1 item). Check its patterns." in caplog.text


@pytest.mark.server
def test_doctor_waits_for_a_command_that_starts_slowly(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("from millstream import Server\nmcp = Server('shop')\nmcp.run()\n")
    file = tmp_path / "gateway.toml"
    file.write_text(f"[upstreams.up]\ncommand = [{json.dumps(sys.executable)}, 'shop.py']\nstart_timeout = 0.001\n")
    result = run_in_process("doctor", str(file), "--timeout", str(WAIT))
    assert "ok    upstream up: ready since" in result.output


async def test_doctor_names_a_store_that_does_not_respond() -> None:
    health = b'{"status":"degraded","store":{"kind":"redis","up":false}}'
    async with answer("200 OK", health)() as (url, _):
        found = await read_health(parse_url(url), {}, WAIT)
    assert [(each.name, each.ok) for each in health_steps(found)] == [("store", False)]


@for_each("date", ["Sat, 01 Jan 2000 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT", "yesterday", "now"])
async def test_doctor_compares_the_clocks_if_credentials_are_rejected(date: str) -> None:
    given = formatdate(usegmt=True) if date == "now" else date
    async with answer("401 Unauthorized", more=f"Date: {given}\r\n")() as (url, _):
        with pytest.raises(AccessDenied) as denied:
            await Client(url, headers={"Authorization": "Bearer key"}, timeout=WAIT).__aenter__()
    remedy = remedy_of(denied.value)
    expected = {"2000": "behind", "2100": "ahead of"}.get(date[12:16], "Sign in")
    assert expected in remedy


async def test_doctor_names_what_fails_with_its_remedy() -> None:
    trouble = {"what": "Calls fail", "since": 1e9, "count": 3, "reason": "It's revoked.", "remedy": "Replace it."}
    health = encode({"status": "degraded", "store": {"kind": "sqlite", "up": False}, "troubles": [trouble]})
    async with answer("200 OK", health)() as (url, _):
        found = await read_health(parse_url(url), {}, WAIT)
    (step,) = health_steps(found)
    assert step.found == f"Calls fail: It's revoked; 3 failures since {local_time(1e9)}"
    assert (step.name, step.ok, step.remedy) == ("trouble", False, "Replace it.")


async def test_doctor_tells_who_may_see_why_a_server_is_degraded() -> None:
    server = Server("shop", auth=auth.keys(named_keys={"ops": ("o" * 32, ["millstream:watch"]), "ada": "a" * 32}))
    async with run_guarded(server) as world:
        world.runtime.host.check_ready(lambda: "the till is shut")
        shown = []
        for key in ("o", "a"):
            headers = {"Authorization": f"Bearer {key * 32}"}
            health = await read_health(parse_url(f"http://127.0.0.1:{world.running.port}/mcp"), headers, WAIT)
            shown += [(each.name, each.found, each.ok, bool(each.remedy)) for each in health_steps(health)]
    assert shown == [
        ("health", "the till is shut", False, False),
        ("health", "the server says that it's degraded, but not why", True, True),
    ]


@for_each("replay", [False, True])
@for_each("is_shared", [False, True])
async def test_doctor_names_tools_that_need_a_shared_store_to_ask(*, is_shared: bool, replay: bool) -> None:
    server = Server("shop", settings=Settings(replay=replay))

    @server.tool
    async def refund(ctx: Context) -> str:
        """Pay back."""
        return await ctx.elicit("Why?", str)

    @server.tool
    async def wrap(ctx: Context) -> list[str]:
        """Wrap."""

        async def choose(what: str) -> str:
            return await ctx.elicit(what, str)

        return await asyncio.gather(choose("Which paper?"), choose("Which ribbon?"))

    @server.tool(replay=True)
    async def look(ctx: Context) -> str:
        """Look."""
        return await ctx.elicit("Where?", str)

    @server.tool
    async def count(ctx: Context) -> int:
        """Count."""
        await ctx.progress(1)
        return 1

    starting = one_worker(lambda: server, SharedStore()) if is_shared else server.running()
    async with starting, serve(server) as running:
        health = await read_health(parse_url(f"http://127.0.0.1:{running.port}/mcp"), {}, WAIT)
        found = [(each.ok, each.remedy, each.found.partition(": ")[2]) for each in health_steps(health)]
    assert found == ([] if is_shared or replay else [(True, "", "refund, wrap")])
    assert health.status == "ok"


async def test_names_in_a_set_that_no_item_has_are_a_failed_step() -> None:
    shop, front = Server("shop"), Server("front")
    shop.tool(lambda: "hello", name="greet")
    front.upstream("a", shop, start_timeout=WAIT)
    front.add_set("/mcp/x", allow=["a_greet", "a_gret"])
    async with serve(front) as running:
        health = await read_health(parse_url(f"http://127.0.0.1:{running.port}/mcp"), {}, WAIT)
    (step,) = [each for each in health_steps(health) if each.name == "set"]
    assert (step.ok, step.found) == (
        False,
        "x at /mcp/x has 1 tool. It has a rule for 'a_gret', which no tool or prompt has. Did you mean 'a_greet'?",
    )
