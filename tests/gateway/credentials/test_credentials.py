import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
from msgspec import ValidationError, convert

from client.misbehaving_servers import DONE, OFFER, ReceivedRequest, misbehaving
from gateway.accounts import ALICE, BOB, reject_tokens, run_gateway, run_world
from http_peer import serve
from issuer_world import claims as said_of
from issuer_world import run_issuer, token
from millstream import Context, Server, Settings, auth
from millstream._gateway.credentials.source import LinkAuth, LinkCaller, UpstreamCredentials
from millstream._gateway.files.read import load_file
from millstream._gateway.options.credentials import Credentials
from millstream._protocol.errors import LocalError
from millstream.client import ServerError
from millstream.gateway import (
    Secret,
    UpstreamConfig,
    bearer,
    client_credentials,
    per_user_oauth,
    static_headers,
    token_exchange,
)
from patience import WAIT
from redis_parts import RedisServer, shared_servers

EXAMPLES = Path(__file__).parents[3] / "examples" / "gateway"
SECRET = "s3cret-of-the-upstream"
TOOL_LIST = {"tools": [{"name": "who", "inputSchema": {"type": "object"}}], "resultType": "complete", "ttlMs": 60_000}


class Echo:
    """An upstream that records the headers of each request and returns the caller."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[dict[str, str]] = []
        """The headers of tool calls."""
        self.wants = ""
        """The only accepted `Authorization`; None for any."""
        self.refusals = 0
        self.redirect = ""

    async def handle_request(self, asked: ReceivedRequest) -> None:
        """Answer a request."""
        if self.redirect:
            await asked.reply(b"", status="307 Temporary Redirect", more=f"Location: {self.redirect}\r\n")
        elif self.wants and asked.headers.get("authorization") != self.wants:
            self.refusals += 1
            await asked.reply(b"", status="401 Unauthorized", more='WWW-Authenticate: Bearer error="invalid_token"\r\n')
        elif asked.method == "tools/list":
            await asked.result(TOOL_LIST)
        elif asked.method == "server/discover":
            await asked.result(OFFER)
        elif asked.method == "tools/call":
            self.seen.append(asked.headers)
            text = asked.headers.get("x-tenant", "none")
            await asked.result({"resultType": "complete", "content": [{"type": "text", "text": text}]})
        elif asked.method in ("resources/list", "resources/templates/list"):
            await asked.result({"resources": [], "resourceTemplates": [], "resultType": "complete"})
        else:
            await asked.reply(b"", status="404 Not Found")


@asynccontextmanager
async def run_echo() -> AsyncIterator[Echo]:
    """Run an echo upstream for the duration of the block."""
    world = Echo()
    async with misbehaving(world.handle_request) as server:
        world.url = server.url
        yield world


async def test_caller_credentials_do_not_go_upstream() -> None:
    async with run_echo() as other, run_gateway(other.url, auth=None) as gate:
        for revision in ("2025-06-18", "2026-07-28"):
            called = gate.call(ALICE, "up_who", revision=revision, headers={"x-tenant": "blue", "cookie": "a=b"})
            assert await called == "none"
    assert len(other.seen) >= 2
    for headers in other.seen:
        assert not {"authorization", "cookie", "x-tenant"} & headers.keys()
        assert ALICE not in str(headers)


async def test_secrets_come_from_variables_and_files_and_stay_hidden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("UPSTREAM_TOKEN", SECRET)
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    for options in (
        bearer(env="UPSTREAM_TOKEN"), bearer(file=str(file)), bearer(SECRET),
        static_headers({"authorization": Secret(env="UPSTREAM_TOKEN")}),
    ):  # fmt: skip
        assert SECRET not in repr(options)
        value = SECRET if options.__struct_config__.tag == "headers" else f"Bearer {SECRET}"
        async with run_echo() as other, run_gateway(other.url, auth=options) as gate:
            other.wants = value
            assert await gate.call(ALICE, "up_who") == "none"
            assert other.seen[-1]["authorization"] == value
            other.wants = "something else"
            said = await gate.call(ALICE, "up_who")
            assert said.startswith("The server 'up' behind this gateway rejected the gateway's credentials. ")
            gate.mcp.definition.upstreams.append(UpstreamConfig(name="x", target=other.url, headers={"x-key": SECRET}))
            assert SECRET not in repr(gate.mcp.definition.upstreams)
    assert SECRET not in caplog.text


async def test_rotated_secret_files_apply_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    async with run_echo() as other, run_gateway(other.url, auth=bearer(file=str(file))) as gate:
        other.wants = "Bearer new"
        file.write_text("new")
        assert await gate.call(ALICE, "up_who") == "none"
        assert await gate.call(ALICE, "up_who") == "none"
        assert other.refusals == 1


async def test_invalid_credential_options_prevent_startup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    url = "http://127.0.0.1:9/mcp"
    for options, words in (
        ({"auth": bearer(env="NOT_THERE")}, "NOT_THERE has no secret"),
        ({"auth": token_exchange(issuer="https://as.example")}, "has no auth"),
        ({"forward_headers": ["Mcp-Session-Id"]}, "belongs to one connection"),
        ({"forward_headers": ["transfer-encoding"]}, "belongs to one connection"),
        ({"forward_headers": ["cookie"]}, "belongs to one connection"),
        ({"forward_headers": ["X-Key"], "headers": {"x-key": "k"}}, "own configuration sets it"),
        ({"forward_headers": ["authorization"], "auth": bearer("t")}, "own configuration sets it"),
        ({"headers": {"Authorization": "k"}, "auth": bearer("t")}, "Remove one of them"),
    ):
        mcp = Server("gateway")
        mcp.upstream("up", url, **options)  # type: ignore[arg-type]
        with pytest.raises(LocalError, match=words):
            await mcp.start()
    behalf = {"kind": "token_exchange", "on_behalf_of": True, "issuer": "https://as.example", "client_id": "x",
              "client_secret": {"env": "S"}, "scope": ["x"]}  # fmt: skip
    convert(behalf, Credentials)
    for given in (
        {"kind": "bearer", "text": "in a file"}, {"kind": "bearer"}, {"kind": "per_user_oauth", "client_id": "x"},
        {"kind": "client_credentials", "client_id": "x", "issuer": "https://as.example"},
        {**behalf, "scope": []}, {**behalf, "audience": "x"}, {**behalf, "client_secret": None},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            convert(given, Credentials)


def test_documented_file_and_program_are_equivalent() -> None:
    file = {each.name: each.auth for each in load_file(EXAMPLES / "accounts.toml").upstreams}
    program = {each.name: each for each in run_path(str(EXAMPLES / "accounts.py"))["mcp"].definition.upstreams}
    assert file == {name: each.auth for name, each in program.items()}
    assert list(program["stock"].forward_headers) == ["x-tenant"]


async def test_forwarded_headers_stay_with_their_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = ["x-tenant", "authorization"]
    async with run_echo() as other, run_gateway(other.url, auth=None, forward_headers=names) as gate:
        assert "receives each caller's credential" in caplog.text
        for revision in ("2025-06-18", "2026-07-28"):
            blue, green = ({"x-tenant": each, "x-other": "secret"} for each in ("blue", "green"))
            async with (
                gate.client(ALICE, revision=revision, headers=blue) as one,
                gate.client(ALICE, revision=revision, headers=green) as two,
                gate.client(BOB, revision=revision) as three,
            ):
                for _ in range(2):
                    said = [(await each.call("up_who")).text for each in (one, two, three)]
                    assert said == ["blue", "green", "none"]
        assert {each["authorization"] for each in other.seen} == {f"Bearer {ALICE}", f"Bearer {BOB}"}
        assert not any("x-other" in each for each in other.seen)


async def test_forwarding_the_key_header_warns_like_authorization(caplog: pytest.LogCaptureFixture) -> None:
    async with run_echo() as other:
        for name in ("", "X-API-Key"):
            assert "own credential" not in caplog.text
            mcp = Server("gateway", auth=auth.keys(ALICE), settings=Settings(auth_key_header=name))
            mcp.upstream("up", other.url, forward_headers=["x-api-key"])
            async with mcp.running():
                pass
    assert "contains x-api-key: that server receives each caller's credential" in caplog.text


async def test_cross_origin_redirects_drop_credentials() -> None:
    async with run_echo() as evil, run_echo() as other, run_gateway(other.url, auth=bearer("t")) as gate:
        other.redirect = evil.url
        assert "isn't an MCP server" in await gate.call(ALICE, "up_who")
        assert evil.seen == []
        assert evil.refusals == 0


async def test_credentials_are_sent_over_websockets() -> None:
    mcp = Server("elsewhere", serve="hub", auth=auth.keys(named_keys={"up": SECRET}))

    @mcp.tool
    async def who(ctx: Context) -> str:
        assert ctx.principal is not None
        return ctx.principal.subject

    async with AsyncExitStack() as stack:
        stack.push_async_callback(mcp.stop)
        running = await stack.enter_async_context(serve(mcp))
        gate = await stack.enter_async_context(run_gateway(f"ws://127.0.0.1:{running.port}/ws", auth=bearer(SECRET)))
        assert await gate.call(ALICE, "up_who") == "up"


# The gateway's own


@pytest.mark.server
async def test_workers_share_one_gateway_token() -> None:
    redis = shared_servers(RedisServer)
    redis.flush()
    async with run_world() as other:
        options = client_credentials("gw", "s3cret", issuer=other.accounts.url, scope="books:write")
        async with (
            run_gateway(other.url, auth=options, store=redis.url) as one,
            run_gateway(other.url, auth=options, store=redis.url) as two,
        ):
            for gate in (one, two):
                said = await asyncio.gather(*(gate.call(key, "up_who") for key in (ALICE, BOB)))
                assert said == ["the-gateway", "the-gateway"]
            (form,) = other.accounts.forms
            assert (form["resource"], form["scope"]) == (other.url, "books:write")
            assert "client_secret" not in form
            keys = await (await one.mcp.start()).store.kv.keys("gateway-token:")
            assert len(keys) == 1


async def test_rejected_gateway_tokens_are_replaced_once() -> None:
    async with run_world() as other:
        options = client_credentials("gw", "s3cret", token_url=f"{other.accounts.url}/token")
        async with run_gateway(other.url, auth=options) as gate:
            assert await gate.call(ALICE, "up_who") == "the-gateway"
            async with reject_tokens(other.mcp):
                for _ in range(3):
                    assert "rejected the gateway's credentials" in await gate.call(ALICE, "up_who")
            assert len(other.accounts.forms) == 2


@pytest.mark.parametrize("refused_late", [False, True])
async def test_concurrent_calls_are_repeated_with_the_new_token(refused_late: bool) -> None:
    tokens, arrived = iter(("old", "new")), asyncio.Barrier(2)
    refused, may_renew, retried = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handle(asked: ReceivedRequest) -> None:
        credentials = asked.headers.get("authorization")
        if asked.path == "/token":
            token = next(tokens)
            if token == "new":
                await may_renew.wait()
            await asked.reply(f'{{"access_token": "{token}", "token_type": "Bearer"}}'.encode())
        elif asked.method == "tools/call" and credentials == "Bearer old":
            if await arrived.wait() and refused_late:
                await retried.wait()
            await asked.reply(b"", status="401 Unauthorized")
            refused.set()
        elif asked.method == "tools/call":
            retried.set()
            await asked.result(DONE)
        else:
            await asked.result(TOOL_LIST if asked.method == "tools/list" else OFFER)

    async with misbehaving(handle) as server:
        options = client_credentials("gw", "s3cret", token_url=server.url.replace("/mcp", "/token"))
        async with run_gateway(server.url, auth=options) as gate:
            calls = [asyncio.create_task(gate.call(key, "up_who")) for key in (ALICE, BOB)]
            await refused.wait()
            await gate.wait_for_tool("up_who")  # the gateway has read the refusals, too
            may_renew.set()
            assert [await each for each in calls] == ["done", "done"]


# Exchanged tokens


@asynccontextmanager
async def run_exchange_gateway(
    other: Any, lister: str = "", exchange: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Any]:
    """Run a gateway that exchanges its callers' tokens."""
    async with AsyncExitStack() as stack:
        issuer = await stack.enter_async_context(run_issuer())
        jwt = auth.oidc(issuer.url, audience="https://gateway.example/mcp")
        credentials = token_exchange(
            issuer=other.accounts.url, client_id="gw", client_secret="s3cret",
            lists_from=lister and f"{issuer.url} {lister}", **(exchange or {"audience": "books"}),
        )  # fmt: skip
        methods = [jwt, auth.keys(ALICE)]
        gate = await stack.enter_async_context(run_gateway(other.url, methods=methods, auth=credentials, **options))

        def sign(**changes: Any) -> str:
            return token(said_of(iss=issuer.url, aud="https://gateway.example/mcp", **changes))

        yield gate, sign


async def test_token_exchange_is_per_caller() -> None:
    async with run_world() as other, run_exchange_gateway(other) as (gate, sign):
        ada, brian, reader = sign(sub="ada"), sign(sub="brian"), sign(sub="ada", scope="orders:read", client_id="other")
        await gate.wait_for_tool("up_who", ada)
        other.accounts.forms.clear()
        async with gate.client(ada) as one, gate.client(brian) as two, gate.client(reader) as three:
            for _ in range(3):
                said = [(await each.call("up_who")).text for each in (one, two, three)]
                assert said == ["ada-exchanged", "brian-exchanged", "ada-exchanged"]
        subjects = [each["subject_token"] for each in other.accounts.forms]
        assert sorted(subjects) == sorted([brian, reader])  # Ada's token was exchanged to read the lists
        form = other.accounts.forms[0]
        assert (form["resource"], form["audience"]) == (other.url, "books")
        assert form["subject_token_type"] == "urn:ietf:params:oauth:token-type:access_token"
        assert "an API key can't be exchanged" in await gate.call(ALICE, "up_who")


async def test_entra_exchanges_a_token_on_behalf_of_its_owner() -> None:
    """https://learn.microsoft.com/entra/identity-platform/v2-oauth2-on-behalf-of-flow"""
    entra = {"on_behalf_of": True, "scope": ["api://books/.default"]}
    async with run_world() as other, run_exchange_gateway(other, exchange=entra) as (gate, sign):
        ada, brian = sign(sub="ada"), sign(sub="brian")
        await gate.wait_for_tool("up_who", ada)
        assert [await gate.call(each, "up_who") for each in (ada, brian)] == ["ada-exchanged", "brian-exchanged"]
        for form, token in zip(other.accounts.forms, (ada, brian), strict=True):
            assert form == {
                "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": token,
                "requested_token_use": "on_behalf_of", "scope": "api://books/.default", "client_id": "gw",
            }  # fmt: skip


async def test_lists_are_read_with_a_named_callers_exchanged_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "millstream.gateway")
    async with run_world() as other, run_exchange_gateway(other, "ada", start_timeout=0.1) as (gate, sign):
        eve = sign(sub="eve", scope="books:read")
        with pytest.raises(ServerError, match="Unknown tool"):
            await gate.call(eve, "up_who")
        await gate.wait_for_tool("up_write", sign(sub="ada", scope="books:write"))
        assert await gate.call(eve, "up_who") == "eve-exchanged"
        assert re.findall("The upstream up is ready: .*", caplog.text) == ["The upstream up is ready: 2 tools"]


async def test_lists_are_read_with_the_first_callers_token_while_it_works() -> None:
    async with run_world() as other, run_exchange_gateway(other) as (gate, sign):
        await gate.wait_for_tool("up_who", sign(sub="ada"))
        credentials = (await gate.mcp.start()).host.gateway.upstreams["up"].credentials
        first = await credentials.lister()
        assert await gate.call(sign(sub="eve"), "up_who") == "eve-exchanged"
        assert await credentials.lister() == first
        credentials.avoid_lister(first)  # as if Ada's token couldn't read them
        assert await gate.call(sign(sub="eve"), "up_who") == "eve-exchanged"
        assert await credentials.lister() != first


async def test_one_callers_token_reads_the_lists_after_all_have_failed() -> None:
    async with run_world() as other, run_exchange_gateway(other) as (gate, sign):
        await gate.wait_for_tool("up_who", sign(sub="ada"))
        credentials = (await gate.mcp.start()).host.gateway.upstreams["up"].credentials
        ada = await credentials.lister()
        credentials.avoid_lister(ada)
        assert await gate.call(sign(sub="eve"), "up_who") == "eve-exchanged"
        eve = await credentials.lister()
        credentials.avoid_lister(eve)
        assert await gate.call(sign(sub="ada"), "up_who") == "ada-exchanged"
        assert await credentials.lister() == ada != eve
        assert await gate.call(sign(sub="eve"), "up_who") == "eve-exchanged"
        assert await credentials.lister() == ada


async def test_lists_are_read_again_when_the_same_caller_has_a_new_token() -> None:
    async with run_world() as other, run_exchange_gateway(other) as (gate, sign):
        await gate.wait_for_tool("up_who", sign(sub="ada"))
        credentials = (await gate.mcp.start()).host.gateway.upstreams["up"].credentials
        first = await credentials.lister()
        credentials._callers[first].until = 0.0  # as if Ada's token had expired
        async with asyncio.timeout(WAIT), asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(credentials.lister())
            await asyncio.sleep(0)
            assert not waiting.done()
            assert await gate.call(sign(sub="ada"), "up_who") == "ada-exchanged"
            assert await waiting == first


async def test_rejected_exchange_affects_only_its_caller() -> None:
    async with run_world() as other, run_exchange_gateway(other) as (gate, sign):
        await gate.wait_for_tool("up_who", ada := sign(sub="ada"))
        other.accounts.fails = "invalid_target"
        assert "rejected the gateway's credentials" in await gate.call(sign(sub="brian"), "up_who")
        assert await gate.call(ada, "up_who") == "ada-exchanged"


async def test_open_connections_use_new_tokens_despite_requests_from_other_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("millstream._gateway.credentials.source._MAX_CALLERS", 2)
    credentials = Forwarding("up", ("x-trace",))

    def call(who: str, token: str, trace: str) -> Any:
        return SimpleNamespace(who=who, token=token, headers={b"x-trace": trace.encode()})

    opened = credentials.auth(credentials.link_key(call("ada", "old", "a")))
    for number in range(3):
        credentials.link_key(call("eve", "e", f"{number}"))
    credentials.link_key(call("ada", "new", "a"))
    assert isinstance(opened, LinkAuth)
    assert opened.caller.token == "new"


class Forwarding(UpstreamCredentials):
    """Credentials that call their caller by name."""

    def _identify(self, call: Any) -> LinkCaller:
        return LinkCaller(call.who, call.token)


@pytest.mark.parametrize("create", [client_credentials, token_exchange, per_user_oauth])
def test_type_checkers_know_each_option_of_credentials(create: Callable[..., Any]) -> None:
    hints = get_type_hints(create)
    (options,) = get_args(hints["options"])
    assert {*get_type_hints(options), *hints} - {"options", "return"} == set(hints["return"].__struct_fields__)


@pytest.mark.parametrize("create", [client_credentials, token_exchange, per_user_oauth])
def test_unknown_option_of_credentials_suggests_the_closest_one(create: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="has no option 'isuer'; did you mean 'issuer'"):
        create(client_id="gw", client_secret="s3cret", isuer="https://as.example")
