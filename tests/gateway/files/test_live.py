"""Changes to a gateway's file while it runs in one process. tests/workers/test_live_gateways.py has several workers."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import pytest
from msgspec.structs import replace

from gateway.accounts import ALICE, run_scenario
from http_peer import RunningServer, serve
from issuer_world import claims, run_issuer, token
from millstream import Context, Server, auth
from millstream._gateway.files.live import LiveConfig
from millstream.client import AccessDenied, Client, ClientError, ServerError, ToolFailed
from millstream.gateway import UpstreamPolicy
from patience import WAIT
from wire import POST
from workers_world import until_async

pytestmark = pytest.mark.server

TOOLS = "visit", "wait", "order", "prepare", "visit_often"
REVISIONS = "2026-07-28", "2025-06-18"


@pytest.fixture(autouse=True)
def _fast_looks(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setattr("millstream._tasks._LOOK_SECONDS", 0.02)
    monkeypatch.setattr("millstream._gateway.files.live._HALF_WRITTEN_SECONDS", 0.02)


def make_shop(name: str = "shop") -> Server:
    mcp = Server(name)
    mcp.gate = asyncio.Event()  # type: ignore[attr-defined]

    @mcp.tool
    async def visit(ctx: Context) -> str:
        """Count the visits of a session."""
        number = await ctx.session_state.get("visits", 0) + 1
        await ctx.session_state.set("visits", number)
        return f"{name} {number}"

    @mcp.tool
    async def wait() -> str:
        """Wait until the test ends it."""
        await mcp.gate.wait()  # type: ignore[attr-defined]
        return "done"

    mcp.orders = 0  # type: ignore[attr-defined]

    @mcp.tool
    def order() -> str:
        """Order a book."""
        mcp.orders += 1  # type: ignore[attr-defined]
        return "ordered"

    @mcp.tool(task="allowed")
    async def prepare() -> str:
        """Wait as a task."""
        await mcp.gate.wait()  # type: ignore[attr-defined]
        return "prepared"

    @mcp.tool
    def visit_often() -> str:
        """Visit a thousand times."""
        return "many visits " * 1000

    @mcp.resource("shop://stock")
    def stock() -> str:
        """Books in stock."""
        return name

    return mcp


@asynccontextmanager
async def serve_shops(*names: str) -> AsyncIterator[dict[str, tuple[Server, RunningServer]]]:
    async with AsyncExitStack() as stack:
        shops = {name: make_shop(name) for name in names}
        for mcp in shops.values():
            stack.push_async_callback(mcp.stop)
        yield {name: (mcp, await stack.enter_async_context(serve(mcp))) for name, mcp in shops.items()}


def table(name: str, port: int, *lines: str) -> str:
    start = f"start_timeout = {WAIT}\nconnect_timeout = {WAIT}"
    return "\n".join((f'[upstreams.{name}]\nurl = "http://127.0.0.1:{port}/mcp"\n{start}', *lines, ""))


class LiveGateway:
    """A gateway in this process, and its file."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        path.write_text(text, "utf-8")
        self.live = LiveConfig(path)
        self.mcp = Server(self.live.config.name, settings=None, serve=self.live.config.serve)
        self.mcp.definition.configure(**self.live.config.settings)
        self.mcp.definition.live = self.live
        for each in self.live.config.upstreams:
            self.mcp.definition.add_upstream(each)
        for some in self.live.config.sets:
            self.mcp.definition.add_set(some)
        self.part: Any = None
        self.shops: dict[str, Any] = {}

    @property
    def state(self) -> tuple[int, str]:
        return self.live.version.number, self.live.refusal

    async def change(self, *texts: str) -> None:
        """Write the file, and wait until the gateway uses it or says why it doesn't."""
        before, self.live.on_update = self.state, (read := asyncio.Event()).set
        self.path.write_text("".join(texts), "utf-8")
        async with asyncio.timeout(WAIT):
            while self.state == before:
                await read.wait()
                read.clear()


@asynccontextmanager
async def run_gateway(path: Path, *texts: str) -> AsyncIterator[LiveGateway]:
    gateway = LiveGateway(path, "".join(texts))
    async with gateway.mcp.running() as runtime:
        gateway.part = runtime.host.gateway
        yield gateway


Table = Callable[..., str]


@asynccontextmanager
async def run_two_shops(folder: Path, revision: str | None = None) -> AsyncIterator[tuple[Any, Client, Table, Table]]:
    """Run a gateway of two shops and a client. Yield them and functions for the tables `a` and `b` with more lines."""
    async with serve_shops("a", "b") as shops:
        a, b = (partial(table, name, running.port) for name, (_, running) in shops.items())
        async with (
            run_gateway(folder / "gateway.toml", a(), b()) as gateway,
            Client(gateway.mcp, revision=revision, timeout=WAIT) as client,
        ):
            gateway.shops = {name: shop for name, (shop, _) in shops.items()}
            yield gateway, client, a, b


async def names_of(client: Client) -> set[str]:
    return {tool.name for tool in await client.tools(fresh=True)}


@pytest.mark.parametrize("revision", REVISIONS)
async def test_other_upstreams_keep_sessions_and_calls(revision: str, tmp_path: Path) -> None:
    async with serve_shops("a", "b", "c") as shops, AsyncExitStack() as stack:
        a, b, c = (table(name, running.port) for name, (_, running) in shops.items())
        gateway = await stack.enter_async_context(run_gateway(tmp_path / "gateway.toml", a, b))
        client = await stack.enter_async_context(Client(gateway.mcp, revision=revision, timeout=WAIT))
        listens, heard = asyncio.Event(), asyncio.Event()

        async def listen() -> None:
            async with client.watch(tools=True) as changes:
                listens.set()
                async for change in changes:
                    if change.kind == "tools":
                        heard.set()

        listening = asyncio.create_task(listen())
        await listens.wait()
        kept, has_session = gateway.part.upstreams["a"], revision != REVISIONS[0]
        if has_session:
            assert (await client.call("a_visit")).text == "a 1"
        running = [asyncio.create_task(client.call(f"{name}_wait")) for name in "ab"]
        await until_async(lambda: shops["a"][0].runtimes.calls + shops["b"][0].runtimes.calls == 2)
        await gateway.change(a, c)
        assert gateway.state == (2, "")
        async with asyncio.timeout(WAIT):
            await heard.wait()
        assert await names_of(client) == {f"{name}_{tool}" for name in "ac" for tool in TOOLS}
        assert gateway.part.upstreams["a"] is kept
        if has_session:
            assert (await client.call("a_visit")).text == "a 2"
        assert (await client.call("c_order")).text == "ordered"
        with pytest.raises(ServerError, match="Unknown tool: 'b_order'"):
            await client.call("b_order")
        for name in "ab":
            shops[name][0].gate.set()  # type: ignore[attr-defined]
        assert [(await each).text for each in running] == ["done", "done"]
        listening.cancel()
    assert set(gateway.part.upstreams) == {"a", "c"}


async def test_other_rules_keep_sessions(tmp_path: Path) -> None:
    async with run_two_shops(tmp_path, REVISIONS[1]) as (gateway, client, a, b):
        assert (await client.call("a_visit")).text == "a 1"
        await gateway.change(a(), '[upstreams.a.policy]\ndeny = ["order"]\n', b())
        assert "a_order" not in await names_of(client)
        assert (await client.call("a_visit")).text == "a 2"
        await gateway.change('[policy]\ndeny = ["b_*"]\n', a(), b())
        assert await names_of(client) == {f"a_{tool}" for tool in TOOLS}
        assert (await client.call("a_visit")).text == "a 3"


async def test_timeouts_intervals_and_bounds_change_in_place(tmp_path: Path) -> None:
    others = "refresh_seconds = 9\nmax_processes = 9\nspare_processes = 1"
    bounds = "memory_limit = 99999999\nmax_catalog_bytes = 99999"
    async with run_two_shops(tmp_path, REVISIONS[1]) as (gateway, client, a, b):
        await gateway.change(a("timeout = 1000"), b())
        assert (await client.call("a_visit")).text == "a 1"
        await gateway.change(a("timeout = 0.1", "idle_seconds = 7", others, bounds), b())
        assert gateway.state == (3, "")
        assert "didn't respond in time" in (await client.call("a_wait", raise_on_error=False)).text
        assert (await client.call("a_visit")).text == "a 2"


@pytest.mark.parametrize("revision", REVISIONS)
async def test_more_connections_are_allowed_in_place(tmp_path: Path, revision: str) -> None:
    async with run_two_shops(tmp_path, revision) as (gateway, client, a, b):
        await gateway.change(a("max_connections = 2"), b())
        counted = revision == REVISIONS[1]  # otherwise, clients have no session
        assert not counted or (await client.call("a_visit")).text == "a 1"
        upstream = gateway.part.upstreams["a"]
        waiting = [asyncio.create_task(client.call("a_wait")) for _ in range(4)]
        await gateway.change(a("max_connections = 50"), b())
        assert gateway.part.upstreams["a"] is upstream
        assert (await client.call("a_order")).text == "ordered"
        assert not counted or (await client.call("a_visit")).text == "a 2"
        gateway.shops["a"].gate.set()
        assert {(await each).text for each in waiting} == {"done"}


async def test_clients_learn_that_sessions_at_a_changed_upstream_have_ended(tmp_path: Path) -> None:
    async with run_two_shops(tmp_path, REVISIONS[1]) as (gateway, client, a, b):
        assert (await client.call("a_visit")).text == "a 1"
        assert (await client.call("b_visit")).text == "b 1"
        await gateway.change(a("forward_client = false"), b())
        lost = await client.call("a_visit", raise_on_error=False)
        assert "This gateway has restarted, or has closed your session with the server 'a'" in lost.text
        assert (await client.call("a_visit")).text == "a 1"
        assert (await client.call("b_visit")).text == "b 2"


async def test_unusable_files_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MISSING", raising=False)
    monkeypatch.setitem(sys.modules, "re2", None)  # type: ignore[arg-type]  as if it weren't installed
    path = tmp_path / "gateway.toml"
    async with serve_shops("a", "b") as shops:
        a, b = (table(name, running.port) for name, (_, running) in shops.items())
        start = f'name = "front"\n[settings]\nmax_calls = 9\n{a}{b}'
        other = f'{start}[upstreams.c]\nurl = "http://127.0.0.1:1/mcp"\n'
        async with run_gateway(path, start) as gateway, Client(gateway.mcp, timeout=WAIT) as client:
            names = await names_of(client)
            for text, reason in {
                f"{start}[upstreams": "isn't valid TOML",
                f"{start}urll = 1": ": unknown option; did you mean 'url'",
                f"{start}headers = {{ A = '${{MISSING}}' }}": "MISSING",
                f'{other}prefix = "a"': "already has the prefix 'a'",
                f'{other}auth = {{ kind = "per_user_oauth" }}': "'c' has per_user",
                f'{other}[upstreams.c.policy]\napprove = {{ by = ["group:x"] }}': "'c' has approve.by, but this",
                start.replace("= 9", "= 8"): ", line 3: settings.max_calls: it can't change while the gateway runs.",
                start.replace("front", "back"): ", line 1: name: it can't change while the gateway runs. Restart",
                f'{start}[auth.keys]\nfile = "keys.json"': ", line 12: auth.keys: ",
                f'store = "sqlite:///{tmp_path}/s.db"\n{start}': ", line 1: store: it can't change",
                f'{other}[upstreams.c.policy]\nredact_results = ["x"]': "pip install 'millstream[redact]'",
                'name = "front"\n[settings]\nmax_calls = 9\n': "has no upstreams. Add one, or stop the gateway.",
            }.items():
                await gateway.change(text)
                number, refusal = gateway.state
                assert number == 1, text
                assert str(path) in refusal, text
                assert reason in refusal, refusal
                assert await names_of(client) == names
            path.unlink()
            await until_async(lambda: "can't be read" in gateway.live.refusal)
            await gateway.change(start)  # nothing has changed, after all
            assert gateway.state == (1, "")
            await gateway.change(start, "prefix = 'x'")
            assert gateway.state == (gateway.live.version.number, "")
            assert await names_of(client) == {name.replace("b_", "x_") for name in names}


async def test_relays_and_catalogs_stay_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    async with serve_shops("a", "b") as shops:
        a, b = (running.port for _, running in shops.values())
        async with (
            run_gateway(path, table("a", a, 'prefix = ""')) as gateway,
            Client(gateway.mcp, timeout=WAIT) as client,
        ):
            await gateway.change(table("a", a, 'prefix = ""'), table("b", b))
            assert "relays its only upstream, 'a', which can't change while it runs" in gateway.live.refusal
            assert (await client.call("order")).text == "ordered"
        async with (
            run_gateway(path, table("a", a, 'prefix = ""'), table("b", b)) as gateway,
            Client(gateway.mcp, timeout=WAIT) as client,
        ):
            await gateway.change(table("a", a, 'prefix = ""'))
            assert "would relay it, which can't change while it runs" in gateway.live.refusal
            assert (await client.call("b_order")).text == "ordered"


async def test_saves_without_a_change_and_by_renaming(tmp_path: Path) -> None:
    path, other = tmp_path / "gateway.toml", tmp_path / ".gateway.swp"
    async with serve_shops("a", "b") as shops:
        a, b = (table(name, running.port) for name, (_, running) in shops.items())
        async with run_gateway(path, a, b) as gateway:
            path.write_text(a + b, "utf-8")
            await gateway.live.update(_refuse)
            assert gateway.state == (1, "")
            other.write_text(f"# comment\n{a}", "utf-8")
            other.replace(path)
            await until_async(lambda: gateway.state == (2, ""))
            path.write_text(a, "utf-8")
            path.write_text(f"{a}{b}[upstreams.b.policy]\nallow = ['order']\n", "utf-8")
            await until_async(lambda: gateway.state[0] > 2)
            await gateway.change(f"{a}{b}[upstreams.b.policy]\nallow = ['visit']\n")
            async with Client(gateway.mcp, timeout=WAIT) as client:
                assert await names_of(client) == {*(f"a_{tool}" for tool in TOOLS), "b_visit"}


async def _refuse(*version: Any) -> None:
    raise ValueError("The same text is no new version.")


@pytest.mark.parametrize("revision", REVISIONS)
async def test_no_call_fails_during_ten_changes(revision: str, tmp_path: Path) -> None:
    async with serve_shops("a", "b") as shops:
        a, b = (running.port for _, running in shops.values())
        async with (
            run_gateway(tmp_path / "gateway.toml", table("a", a), table("b", b, 'prefix = "v1"')) as gateway,
            Client(gateway.mcp, revision=revision, timeout=WAIT) as client,
        ):
            stop, calls, seen = asyncio.Event(), 0, list[int]()

            async def keep_calling() -> None:
                nonlocal calls
                while not stop.is_set() or calls < 300:
                    assert (await client.call("a_order")).text == "ordered"
                    calls += 1
                    (version,) = {int(name.partition("_")[0][1:]) for name in await names_of(client) if name[0] == "v"}
                    seen.append(version)

            calling = [asyncio.create_task(keep_calling()) for _ in range(4)]
            for number in range(2, 12):
                await gateway.change(table("a", a), table("b", b, f'prefix = "v{number}"'))
                assert gateway.state == (number, "")
            stop.set()
            await asyncio.gather(*calling)
            assert calls >= 300
            assert seen == sorted(seen)
            assert set(seen) == {*range(seen[0], 12)}


async def test_processes_of_unchanged_upstreams_stay(tmp_path: Path) -> None:
    program = tmp_path / "shop.py"
    program.write_text(
        "import os\nfrom millstream import Server\nmcp = Server('s')\n@mcp.tool\ndef pid() -> int:\n"
        "    return os.getpid()\nmcp.run('stdio')\n",
        "utf-8",
    )

    def command(name: str, *lines: str) -> str:
        text = f"[upstreams.{name}]\ncommand = ['{sys.executable}', '{program}']\nstart_timeout = {WAIT}"
        return "\n".join((text, *lines, ""))

    async with (
        run_gateway(tmp_path / "gateway.toml", command("a"), command("b")) as gateway,
        Client(gateway.mcp, timeout=WAIT) as client,
    ):
        kept, removed = [(await client.call(f"{name}_pid")).data for name in "ab"]
        await gateway.change(command("a", "[upstreams.a.policy]", 'allow = ["pid"]'), command("c"))
        assert (await client.call("a_pid")).data == kept
        await until_async(lambda: not _exists(removed))
        await gateway.change(command("a", "env = { A = 'b' }"), command("c"))
        assert (await client.call("a_pid")).data != kept
    assert not _exists(kept)


def _exists(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.parametrize("revision", REVISIONS)
async def test_resource_subscriptions_survive(revision: str, tmp_path: Path) -> None:
    async with run_two_shops(tmp_path, revision) as (gateway, client, a, b):
        uris = {each.uri: name for each in await client.resources() for name in "ab" if name in each.uri[:9]}
        assert len(uris) == 2, uris
        updates: asyncio.Queue[str] = asyncio.Queue()

        async def listen() -> None:
            async with client.watch(*uris) as changes:
                updates.put_nowait("")
                async for change in changes:
                    if change.kind == "resource" or change.uri:
                        updates.put_nowait(change.uri)

        listening = asyncio.create_task(listen())
        async with asyncio.timeout(WAIT):
            await updates.get()
            await gateway.change(a(), b("forward_client = false"))
            for uri, name in uris.items():
                found = ""
                while found != uri:
                    await gateway.shops[name].resource_updated("shop://stock")
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.2):
                            found = await updates.get()
        listening.cancel()


@pytest.mark.parametrize("revision", REVISIONS)
async def test_streams_that_end_during_a_change_release_what_is_denied_now(
    revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_two_shops(tmp_path, revision) as (gateway, client, a, b):
        (uri,) = [each.uri for each in await client.resources() if each.uri.startswith("shop://a/")]
        watches = gateway.part.upstreams["a"].watches
        async with asyncio.timeout(WAIT):
            async with client.watch(uri):
                assert list(watches.watched) == ["shop://stock"]

                async def later() -> None:
                    """The other streams come first."""

                monkeypatch.setattr(gateway.part._followed, "follow_again", later)
                await gateway.change(a('[upstreams.a.policy]\ndeny = ["shop://stock"]'), b())
                assert uri not in [each.uri for each in await client.resources(fresh=True)]
            while watches.watched:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert watches.size == 0


async def test_references_to_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLD_PORT", "1")
    async with serve_shops("a", "b") as shops:
        a, b = (running.port for _, running in shops.values())
        monkeypatch.setenv("NEW_PORT", str(a))
        monkeypatch.setenv("OLD_PORT", str(a))
        path = tmp_path / "gateway.toml"
        text = table("a", 0).replace(":0/", ":${OLD_PORT}/") + table("b", b)
        async with run_gateway(path, text) as gateway:
            kept = gateway.part.upstreams["a"]
            await gateway.change(text.replace("OLD", "NEW"))  # another name of the same value
            assert gateway.state == (2, "")
            assert gateway.part.upstreams["a"] is kept


async def test_accounts_at_upstreams_stay() -> None:
    async with run_scenario() as (world, gateway, alice, _):
        await (await alice.sign_in(ALICE)).connect(world.accounts, "ada")
        await gateway.wait_for_tool("up_who")
        part: Any = (await gateway.mcp.start()).host.gateway
        kept = part.upstreams["up"]
        rules = UpstreamPolicy(deny=("write",))
        for config in (replace(kept.config, policy=rules), replace(kept.config, policy=rules, forward_client=False)):
            await part.reconfigure([config])
            assert (part.upstreams["up"] is kept) is config.forward_client
            assert await gateway.call(ALICE, "up_who") == "ada"
            assert "Disconnect" in await alice.page()
        await alice.submit("disconnect")
        assert "up" in await gateway.call(ALICE, "up_who")  # the new upstream ends its connections, too


async def test_accepted_definitions_count_after_a_change(tmp_path: Path) -> None:
    async with serve_shops("a", "b") as shops:
        a, b = (running.port for _, running in shops.values())
        pinned = 'trust = "pin"\npolicy = { new_items = "quarantine" }'
        async with run_gateway(tmp_path / "gateway.toml", table("a", a), table("b", b)) as gateway:
            await gateway.change(table("a", a), table("b", b, pinned))
            async with Client(gateway.mcp, timeout=WAIT) as client:
                assert await names_of(client) == {f"a_{tool}" for tool in TOOLS}
                order = gateway.part.upstreams["b"].lists.quarantined
                (definition,) = [each.offered for each in order if each.name == "order"]
                (tmp_path / "gateway.lock").write_text(json.dumps({"b": {"tools": {"order": definition}}}))
                await until_async(lambda: gateway.state[0] == 3)  # the file of definitions is a part of the version
                await gateway.change(table("a", a, "forward_client = false"), table("b", b, pinned))

                async def is_offered() -> bool:
                    return "b_order" in await names_of(client)

                async with asyncio.timeout(WAIT):
                    while not await is_offered():  # noqa: ASYNC110  it looks once a second
                        await asyncio.sleep(0.01)


async def test_stored_results_outlive_a_change(tmp_path: Path) -> None:
    limited = "policy = { result_tokens = 1 }"
    async with run_two_shops(tmp_path) as (gateway, client, a, b):
        await gateway.change(a(limited), b())
        found = await client.call("a_visit_often")
        uri = found.text.rpartition(" ")[2]
        for line in ("forward_client = false", ""):
            await gateway.change(a(line, limited), b(f'headers = {{ x = "{len(line)}" }}'))
            assert "many visits" in str(await client.read(uri))
            assert len([each for each in await client.templates() if "result" in each.uri_template]) == 1
        await gateway.change(a(), b())
        with pytest.raises(ServerError):
            await client.read(uri)


async def test_found_tools_change(tmp_path: Path) -> None:
    async with serve_shops("a", "b") as shops:
        a, b = (running.port for _, running in shops.values())
        start = "[settings]\ntool_search = true\n"
        async with (
            run_gateway(tmp_path / "gateway.toml", start, table("a", a)) as gateway,
            Client(gateway.mcp, timeout=WAIT) as client,
        ):
            assert "b_order" not in (await client.call("search_tools", query="order a book")).text
            await gateway.change(start, table("a", a), table("b", b))
            assert "b_order" in (await client.call("search_tools", query="order a book")).text


async def test_order_of_the_file_is_the_order_of_lists(tmp_path: Path) -> None:
    async with serve_shops("a", "b", "c") as shops:
        a, b, c = (table(name, running.port) for name, (_, running) in shops.items())
        async with run_gateway(tmp_path / "gateway.toml", a, b) as gateway, Client(gateway.mcp, timeout=WAIT) as client:
            for texts in ((c, a, b), (b, c, a), (b, a), (a, b, c)):
                await gateway.change(*texts)
                order = [tool.name[0] for tool in await client.tools(fresh=True) if tool.name.endswith("order")]
                assert order == [text[11] for text in texts]


@pytest.mark.parametrize("changed", [False, True])
async def test_tasks_of_earlier_upstreams_end_well(changed: bool, tmp_path: Path) -> None:
    async with run_two_shops(tmp_path) as (gateway, client, a, b):
        task = await client.tasks.start("b_prepare", {})
        await gateway.change(a(), b("forward_client = false") if changed else "")
        gateway.shops["b"].gate.set()
        assert (await client.tasks.wait(task)).text == "prepared"


async def test_search_finds_what_a_set_has_after_a_change(tmp_path: Path) -> None:
    async with serve_shops("a") as shops:
        upstream = table("a", shops["a"][1].port) + "\n[settings]\ntool_search = true\n"
        one, other = ('[sets.visitors]\nallow = ["a_visit"]\n', '[sets.visitors]\nallow = ["a_order"]\n')
        async with (
            run_gateway(tmp_path / "gateway.toml", upstream, one) as gateway,
            serve(gateway.mcp) as running,
            Client(f"http://127.0.0.1:{running.port}/mcp/visitors", timeout=WAIT) as client,
        ):
            for choice, name in (("", "a_visit"), (other, "a_order"), (one, "a_visit")):
                if choice:
                    await gateway.change(upstream, choice)
                found = json.loads((await client.call("search_tools", query="visit order")).text)
                assert [each["name"] for each in found["tools"]] == [name]


async def test_choice_of_a_set_changes(tmp_path: Path) -> None:
    async with serve_shops("a") as shops:
        upstream = table("a", shops["a"][1].port)
        visits = '[sets.visitors]\nallow = ["a_visit"]\n'
        async with run_gateway(tmp_path / "gateway.toml", upstream, visits) as gateway, serve(gateway.mcp) as running:
            url = f"http://127.0.0.1:{running.port}/mcp/visitors"
            async with AsyncExitStack() as stack:
                clients = [
                    await stack.enter_async_context(Client(url, timeout=WAIT, revision=each)) for each in REVISIONS
                ]
                assert [await names_of(each) for each in clients] == [{"a_visit"}] * 2
                assert (await clients[1].call("a_visit")).text == "a 1"
                watches = [await stack.enter_async_context(each.watch(tools=True)) for each in clients]
                await gateway.change(upstream, '[sets.visitors]\nallow = ["a_visit", "a_order"]\n')
                assert gateway.state == (2, "")
                async with asyncio.timeout(WAIT):
                    for each in watches:
                        await anext(each)
                assert [await names_of(each) for each in clients] == [{"a_visit", "a_order"}] * 2
                assert (await clients[1].call("a_visit")).text == "a 2"
                assert await names_of(clients[0]) == {"a_visit", "a_order"}


async def test_file_that_is_half_written_is_read_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve_shops("a") as shops:
        upstream, rules = table("a", shops["a"][1].port), '[upstreams.a.policy]\ndeny = ["order"]\n'
        async with run_gateway(tmp_path / "gateway.toml", upstream, rules) as gateway:
            live, paused = sys.modules["millstream._gateway.files.live"], asyncio.Event()
            read: Any = live.read_file

            def finish_writing(path: Path) -> Any:
                found = read(path)
                if not paused.is_set():
                    paused.set()
                    path.write_text(upstream + "# Orders\n" + rules, "utf-8")
                return found

            monkeypatch.setattr(live, "read_file", finish_writing)
            await gateway.change(upstream)
            assert paused.is_set()
            async with Client(gateway.mcp, timeout=WAIT) as client:
                assert "a_order" not in await names_of(client)


async def test_clients_hear_that_an_upstream_has_gone_at_each_address(tmp_path: Path) -> None:
    async with serve_shops("a", "b") as shops:
        shops["b"][0].prompt(lambda: "Order a book.", name="ask")
        a, b = (table(name, running.port) for name, (_, running) in shops.items())
        rest = '[sets.some]\nupstreams = ["b*"]\n'
        async with (
            run_gateway(tmp_path / "gateway.toml", a, b, rest) as gateway,
            serve(gateway.mcp) as running,
            AsyncExitStack() as stack,
        ):
            urls = [f"http://127.0.0.1:{running.port}{path}" for path in ("/mcp", "/mcp/some")]
            clients = [
                await stack.enter_async_context(Client(url, timeout=WAIT, revision=revision))
                for url in urls
                for revision in REVISIONS
            ]
            watches = [
                await stack.enter_async_context(each.watch(tools=True, prompts=True, resources=True))
                for each in clients
            ]
            renamed = b.replace("[upstreams.b]", "[upstreams.bb]")
            for texts in ((a,), (a, b), (a, b, "disabled = true\n"), (a, b), (a, renamed)):
                await gateway.change(*texts, rest)
                assert gateway.live.refusal == ""
                async with asyncio.timeout(WAIT):
                    for each in watches:
                        kinds = set[str]()
                        while kinds != {"tools", "prompts", "resources"}:
                            kinds.add((await anext(each)).kind)


async def read_names(base: str, path: str, revision: str = "2026-07-28", **headers: str) -> set[str]:
    async with Client(f"{base}{path}", timeout=WAIT, revision=revision, headers=headers) as client:
        return await names_of(client)


async def test_sets_are_added_and_removed_at_each_of_their_addresses(tmp_path: Path) -> None:
    async with serve_shops("a") as shops:
        upstream = 'serve = ["rest", "hub"]\n' + table("a", shops["a"][1].port)
        visitors = '[sets.visitors]\nallow = ["a_order"]\n'
        async with (
            run_gateway(tmp_path / "gateway.toml", upstream) as gateway,
            serve(gateway.mcp) as running,
            httpx2.AsyncClient(base_url=(base := f"http://127.0.0.1:{running.port}"), timeout=WAIT) as http,
            Client(f"{base}/mcp", timeout=WAIT, revision=REVISIONS[1]) as kept,
        ):
            assert (await kept.call("a_visit")).text == "a 1"
            post = {"json": {"jsonrpc": "2.0", "id": 1, "method": "ping"}, "headers": POST}
            assert (await http.post("/mcp/visitors", **post)).status_code == 404
            for _ in range(2):
                await gateway.change(upstream, visitors)
                assert gateway.state[1] == ""
                assert [await read_names(base, "/mcp/visitors", each) for each in REVISIONS] == [{"a_order"}] * 2
                assert await read_names(base, "/mcp/visitors/sse", REVISIONS[1]) == {"a_order"}
                assert await read_names(base.replace("http", "ws"), "/mcp/visitors/ws", REVISIONS[1]) == {"a_order"}
                assert [*(await http.get("/mcp/visitors/openapi.json")).json()["paths"]] == [
                    "/mcp/visitors/tools/a_order"
                ]
                assert (await http.post("/mcp/visitors/tools/a_order", json={})).status_code == 200
                assert (await http.post("/mcp/visitors/tools/a_visit", json={})).status_code == 404
                await gateway.change(upstream)
                assert gateway.state[1] == ""
                for path in ("", "/", "/messages/", "/tools/a_order"):
                    assert (await http.post(f"/mcp/visitors{path}", **post)).status_code == 404
                for path in ("/sse", "/ws", "/openapi.json"):
                    assert (await http.get(f"/mcp/visitors{path}")).status_code == 404
                assert await names_of(kept) == {f"a_{tool}" for tool in TOOLS}
            assert (await kept.call("a_visit")).text == "a 2"


@pytest.mark.parametrize("path", ["/mcp/visitors", "/mcp/visitors/sse", "/mcp/visitors/ws"])
async def test_streams_of_a_removed_set_end(path: str, tmp_path: Path) -> None:
    async with serve_shops("a") as shops:
        upstream = 'serve = ["rest", "hub"]\n' + table("a", shops["a"][1].port)
        sets = '[sets.visitors]\nallow = ["a_visit"]\n', '[sets.others]\nallow = ["a_order"]\n'
        async with (
            run_gateway(tmp_path / "gateway.toml", upstream, *sets) as gateway,
            serve(gateway.mcp) as running,
            AsyncExitStack() as stack,
        ):
            base = f"{'ws' if path.endswith('/ws') else 'http'}://127.0.0.1:{running.port}"
            for revision in REVISIONS if path == "/mcp/visitors" else REVISIONS[1:]:
                client = await stack.enter_async_context(Client(f"{base}{path}", timeout=WAIT, revision=revision))
                await stack.enter_async_context(client.watch(tools=True))
            await until_async(lambda: len(gateway.part._host.streams) > 0)
            await gateway.change(upstream, sets[1])
            await until_async(lambda: len(gateway.part._host.streams) == 0)


async def test_rights_and_limits_of_a_set_change(tmp_path: Path) -> None:
    keys = {"alice": ("alice-key-of-the-test", ("orders",)), "bob": ("bob-key-of-the-test", ())}
    async with serve_shops("a") as shops:
        upstream = table("a", shops["a"][1].port)
        gateway = LiveGateway(tmp_path / "gateway.toml", upstream)
        gateway.mcp.definition.auth = (auth.keys("root-key-of-the-test", named_keys=keys),)
        async with gateway.mcp.running() as runtime, serve(gateway.mcp) as running, AsyncExitStack() as stack:
            gateway.part = runtime.host.gateway
            base = f"http://127.0.0.1:{running.port}"
            alice, bob = (f"Bearer {name}-key-of-the-test" for name in keys)
            await gateway.change(upstream, "[sets.staff]\n")
            for each in alice, bob:
                assert "a_order" in await read_names(base, "/mcp/staff", authorization=each)
            for revision in REVISIONS:
                client = Client(f"{base}/mcp/staff", revision=revision, timeout=WAIT, headers={"authorization": bob})
                await stack.enter_async_context((await stack.enter_async_context(client)).watch(tools=True))
            await until_async(lambda: len(runtime.host.streams) > 0)
            await gateway.change(upstream, '[sets.staff]\nscopes = ["orders"]\n')
            await until_async(lambda: len(runtime.host.streams) == 0)
            assert "a_order" in await read_names(base, "/mcp/staff", authorization=alice)
            with pytest.raises(AccessDenied, match="orders"):
                await read_names(base, "/mcp/staff", authorization=bob)
            await gateway.change(upstream, '[sets.staff]\nlimit = "1/hour"\n')
            for revision in REVISIONS:
                async with Client(
                    f"{base}/mcp/staff", revision=revision, timeout=WAIT, headers={"authorization": bob}
                ) as client:
                    if revision == REVISIONS[0]:
                        assert (await client.call("a_order")).text == "ordered"
                    with pytest.raises(ServerError, match="Too many requests"):
                        await client.call("a_order")
            async with Client(f"{base}/mcp", timeout=WAIT, headers={"authorization": bob}) as client:
                assert (await client.call("a_order")).text == "ordered"
            await gateway.change(upstream, "[sets.staff]\n")
            async with Client(f"{base}/mcp/staff", timeout=WAIT, headers={"authorization": bob}) as client:
                assert (await client.call("a_order")).text == "ordered"


async def test_sets_that_cant_be_served_are_refused_with_the_reason(tmp_path: Path) -> None:
    async with serve_shops("a") as shops:
        upstream = 'serve = ["web"]\n' + table("a", shops["a"][1].port)
        async with run_gateway(tmp_path / "gateway.toml", upstream, "[sets.one]\n") as gateway, serve(gateway.mcp):
            for text, says in {
                '[sets.two]\npath = "/gateway"\n': "'two' can't use /gateway, because the server serves it already.",
                '[sets.two]\npath = "/dashboard"\n': "'two' can't use /dashboard",
                '[sets.one]\n[sets.two]\npath = "/mcp/one"\n': "'two' can't use /mcp/one",
                '[sets.one]\n[sets.two]\npath = "/mcp/one/ws"\n': "'two' can't use /mcp/one/ws",
                '[sets.one]\n[sets.two]\npath = "/mcp/one/openapi.json"\n': "'two' can't use /mcp/one/openapi.json",
                '[sets.two]\npath = "/mcp"\n': "'two' is at the main path",
                '[sets.two]\nscopes = ["orders"]\n': "requires scopes or groups, which no caller has without sign-in",
            }.items():
                await gateway.change(upstream, text)
                assert says in gateway.state[1]
            await gateway.change(upstream, '[sets.two]\npath = "/mcp/one"\n')
            assert gateway.state[1] == ""
        relay = table("a", shops["a"][1].port, 'prefix = ""')
        async with run_gateway(tmp_path / "gateway.toml", relay) as gateway:
            await gateway.change(relay, "[sets.one]\n")
            assert "this gateway relays its only upstream, 'a', which can't change" in gateway.state[1]


async def test_a_set_that_was_added_has_metadata_and_tokens_for_its_address(tmp_path: Path) -> None:
    known = "/.well-known/oauth-protected-resource/mcp/staff"
    staff = '[sets.staff]\nscopes = ["orders"]\n'
    async with serve_shops("a") as shops, run_issuer() as issuer:
        upstream = table("a", shops["a"][1].port)
        gateway = LiveGateway(tmp_path / "gateway.toml", upstream)
        gateway.mcp.definition.auth = (auth.oidc(issuer.url, audience="http://127.0.0.1/mcp"),)
        sent = token(claims(iss=issuer.url, aud="http://127.0.0.1/mcp/staff", scope="orders"))
        async with (
            gateway.mcp.running(),
            serve(gateway.mcp) as running,
            httpx2.AsyncClient(base_url=(base := f"http://127.0.0.1:{running.port}"), timeout=WAIT) as http,
        ):
            assert (await http.get(known)).status_code == 404
            for _ in range(2):
                await gateway.change(upstream, staff)
                found = (await http.get(known)).json()
                assert found["resource"] == "http://127.0.0.1/mcp/staff"
                assert found["scopes_supported"] == ["orders"]
                challenge = (await http.post("/mcp/staff", json={})).headers["www-authenticate"]
                assert f'resource_metadata="http://127.0.0.1{known}"' in challenge
                assert "a_order" in await read_names(base, "/mcp/staff", authorization=f"Bearer {sent}")
                await gateway.change(upstream)
                assert (await http.get(known)).status_code == 404


def make_slow_person() -> tuple[asyncio.Event, asyncio.Event, Callable[[Any], Any]]:
    """Return an event for being asked, one for the answer, and a function that then accepts."""
    asked, released = asyncio.Event(), asyncio.Event()

    async def accept(request: Any) -> Any:
        asked.set()
        await released.wait()
        return {}

    return asked, released, accept


ASKS = "[upstreams.a.policy.tools.order]\napprove = true\n"


@pytest.mark.parametrize(
    "rules",
    [
        '[sets.visitors]\n[upstreams.a.policy]\ndeny = ["order"]\n' + ASKS,
        ASKS + '[sets.visitors]\n[upstreams.a.policy]\nredact_arguments = ["[0-9]+"]\n',
        ASKS + '[sets.visitors]\ndeny = ["a_order"]\n',
        ASKS,
        "",
    ],
)
@pytest.mark.parametrize("revision", REVISIONS)
async def test_answer_does_not_count_after_the_rules_have_changed(rules: str, revision: str, tmp_path: Path) -> None:
    async with serve_shops("a", "b") as shops:
        a, b = (table(name, running.port) for name, (_, running) in shops.items())
        start = a + ASKS + "[sets.visitors]\n"
        async with run_gateway(tmp_path / "gateway.toml", start) as gateway, serve(gateway.mcp) as running:
            asked, released, accept = make_slow_person()
            url = f"http://127.0.0.1:{running.port}/mcp/visitors"
            async with Client(url, revision=revision, timeout=WAIT, elicit=accept) as client:
                call = asyncio.create_task(client.call("a_order"))
                await asked.wait()
                await gateway.change(a + rules if rules else b + "[sets.visitors]\n")
                assert gateway.state[1] == ""
                released.set()
                with pytest.raises((ToolFailed, ClientError)) as error:
                    await call
                if rules and revision == REVISIONS[1]:
                    assert re.search("rules for this tool changed before|This address was removed", str(error.value))
            assert shops["a"][0].orders == 0  # type: ignore[attr-defined]


async def test_answer_does_not_count_after_its_person_has_left_a_group(tmp_path: Path) -> None:
    key, file = "bob-key-of-the-test", tmp_path / "keys.json"

    def write_keys(*groups: str) -> None:
        record = {"name": "bob", "hash": sha256(key.encode()).hexdigest(), "created": 0.0, "groups": groups}
        new = tmp_path / "new.json"
        new.write_text(json.dumps({"keys": [record]}), "utf-8")
        new.chmod(0o600)
        new.replace(file)

    write_keys("staff")
    async with serve_shops("a") as shops:
        rules = f'{ASKS}groups = ["staff"]\n[settings]\nauth_keys = "{file}"\n'
        upstream = table("a", shops["a"][1].port) + rules
        async with run_gateway(tmp_path / "gateway.toml", upstream) as gateway, serve(gateway.mcp) as running:
            asked, released, accept = make_slow_person()
            url, headers = f"http://127.0.0.1:{running.port}/mcp", {"authorization": f"Bearer {key}"}
            async with Client(url, revision=REVISIONS[1], timeout=WAIT, elicit=accept, headers=headers) as client:
                call = asyncio.create_task(client.call("a_order"))
                await asked.wait()
                write_keys()
                with pytest.raises(ToolFailed, match=r"Your rights have changed, so no answer counts\."):
                    await call
                released.set()
            assert shops["a"][0].orders == 0  # type: ignore[attr-defined]
