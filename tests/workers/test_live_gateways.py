"""Changes to a gateway's file, in processes with one worker and with two.

tests/gateway/files/test_live.py has the rest.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from millstream.client import Client, ClientError
from patience import WAIT
from processes import free_port
from redis_parts import RedisServer
from workers_world import Program, kill, start_program, until_async

pytestmark = pytest.mark.server

PROC = Path("/proc")
SHOP = """
import asyncio, os
from millstream import Server
mcp = Server("shop")
@mcp.tool
def pid() -> int:
    return os.getpid()
@mcp.tool
async def wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"
mcp.prompt(lambda: "Order a book.", name="ask")
mcp.resource("shop://shelf", name="shelf")(lambda: "A book.")
mcp.run("stdio")
"""
HOLD = """
import os, pathlib, sys, time
hold, held = pathlib.Path({!r}), pathlib.Path({!r})
if "gateway" in sys.orig_argv and hold.exists():
    held.with_name("new").write_text(str(os.getpid()))
    held.with_name("new").replace(held)
    while hold.exists():
        time.sleep(0.01)
"""


def write(folder: Path, *tables: str, start: str = "") -> Path:
    program, file = folder / "shop.py", folder / "gateway.toml"
    program.write_text(SHOP, "utf-8")
    texts = [start]
    for each in tables:
        name, _, lines = each.partition("\n")
        command = f'command = ["{sys.executable}", "{program}"]'
        texts.append(f"[upstreams.{name}]\n{command}\nstart_timeout = {WAIT}\n{lines}\n")
    new = folder / "new.toml"
    new.write_text("".join(texts), "utf-8")
    new.replace(file)
    return file


@contextmanager
def run_gateway(folder: Path, *tables: str, workers: int = 2, start: str = "") -> Iterator[Program]:
    file, port = write(folder, *tables, start=start), free_port()
    command = [sys.executable, "-m", "millstream", "gateway", str(file), "--port", str(port)]
    with start_program([*command, "--workers", str(workers)], port, folder / "log", cwd=folder) as served:
        yield served


async def health(served: Program) -> dict[str, Any]:
    async with httpx2.AsyncClient(timeout=WAIT) as http:  # a new connection, to any worker
        found: dict[str, Any] = (await http.get(f"http://127.0.0.1:{served.port}/health")).json()
        return found


async def metrics(served: Program) -> str:
    async with httpx2.AsyncClient(timeout=WAIT) as http:
        return (await http.get(f"http://127.0.0.1:{served.port}/metrics")).text


async def versions(served: Program) -> set[int]:
    """Return the versions that eight new connections see."""
    return {(await health(served))["configuration"]["version"] for _ in range(8)}


async def until_true(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT):
        while not await condition():  # noqa: ASYNC110  other processes
            await asyncio.sleep(0.05)


async def wait_for_version(served: Program, number: int, workers: int = 2) -> None:
    await until_async(lambda: served.count_lines(f"Version {number} of ") == workers)


@asynccontextmanager
async def connect(served: Program, **options: Any) -> AsyncIterator[Client]:
    async with Client(f"http://127.0.0.1:{served.port}/mcp", timeout=WAIT, **options) as client:
        yield client


async def names(served: Program) -> set[str]:
    async with connect(served) as client:
        return {tool.name for tool in await client.tools()}


async def test_a_worker_that_starts_later_gets_the_version_in_force(tmp_path: Path) -> None:
    with run_gateway(tmp_path, "a", start='instructions = "first"\n') as served:
        write(tmp_path, "a", "b")
        await wait_for_version(served, 2)
        assert await versions(served) == {2}
        (tmp_path / "gateway.toml").write_text("[upstreams.c]\nurl = 3\n", "utf-8")
        await until_async(lambda: served.count_lines("gateway.toml, line 2: upstreams.c.url: it must be a string") == 1)
        victims = served.pids[:1]
        kill(victims[0])
        await until_async(lambda: served.count_lines("is ready") > 0 and bool(set(served.children()) - {*served.pids}))
        await until_async(lambda: len(served.children()) == 2)

        async def is_replaced() -> bool:
            return len({*_pids(await health(served))} - {*victims}) == 2

        await until_true(is_replaced)
        found = [await health(served) for _ in range(8)]
        assert {each["configuration"]["version"] for each in found} == {2}
        assert all("line 2: upstreams.c.url" in each["configuration"]["refused"] for each in found)
        assert {each["status"] for each in found} == {"degraded"}
        assert [await names(served) for _ in range(6)] == 6 * [{"a_pid", "a_wait", "b_pid", "b_wait"}]
        write(tmp_path, "b")
        await wait_for_version(served, 3)
        assert [await names(served) for _ in range(6)] == 6 * [{"b_pid", "b_wait"}]
        assert (await health(served))["status"] == "ok"


async def test_sets_are_added_and_removed_on_each_worker(tmp_path: Path) -> None:
    with run_gateway(tmp_path, "a") as served:
        url = f"http://127.0.0.1:{served.port}/mcp/visitors"

        async def statuses() -> set[int]:
            async with httpx2.AsyncClient(timeout=WAIT, limits=httpx2.Limits(max_keepalive_connections=0)) as http:
                return {(await http.delete(url)).status_code for _ in range(12)}

        assert await statuses() == {404}
        for version in 2, 4:
            write(tmp_path, 'a\n[sets.visitors]\nallow = ["a_pid"]\n')
            await wait_for_version(served, version)
            assert 404 not in await statuses()
            async with AsyncExitStack() as stack:
                clients = [
                    await stack.enter_async_context(Client(url, timeout=WAIT, revision=revision))
                    for revision in ("2026-07-28", "2025-06-18") * 3
                ]
                for client in clients:
                    assert [each.name for each in await client.tools()] == ["a_pid"]
                    assert len({(await client.call("a_pid")).text for _ in range(4)}) == 1
            write(tmp_path, "a")
            await wait_for_version(served, version + 1)
            assert await statuses() == {404}
            assert await names(served) == {"a_pid", "a_wait"}


async def test_clients_of_each_worker_hear_that_an_upstream_has_gone(tmp_path: Path) -> None:
    rest = '[sets.some]\nupstreams = ["b*"]\n'
    with run_gateway(tmp_path, "a", f"b\n{rest}") as served:
        async with AsyncExitStack() as stack:
            base = f"http://127.0.0.1:{served.port}"
            urls = [f"{base}{path}" for path in ("/mcp", "/mcp/some") for _ in range(4)]
            clients = [
                await stack.enter_async_context(Client(url, timeout=WAIT, revision=revision))
                for url in urls
                for revision in ("2026-07-28", "2025-06-18")
            ]
            pick: dict[str, Any] = {"tools": True, "prompts": True, "resources": True}
            watches = [await stack.enter_async_context(each.watch(**pick)) for each in clients]
            changes = [f"b\n{rest}"], [f"bb\n{rest}"], ["a", f"bb\ndisabled = true\n{rest}"], ["a", f"b\n{rest}"]
            for version, tables in enumerate(changes, 2):
                write(tmp_path, *tables)
                await wait_for_version(served, version)
                async with asyncio.timeout(WAIT):
                    for each in watches[: 8 if version == 2 else None]:  # the set never had what goes first
                        kinds = set[str]()
                        while kinds != {*pick}:
                            kinds.add((await anext(each)).kind)


async def test_replacement_does_not_serve_an_earlier_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, held = tmp_path / "hold", tmp_path / "held"
    (tmp_path / "sitecustomize.py").write_text(HOLD.format(str(hold), str(held)), "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with run_gateway(tmp_path, "a") as served:
        hold.touch()
        kill(served.pids[0])
        await until_async(held.exists)
        write(tmp_path, "a", "b")
        await wait_for_version(served, 2, 1)
        hold.unlink()
        ready = f"(process {held.read_text('utf-8')}) is ready"
        await until_async(lambda: served.count_lines(ready) == 1 and served.count_lines("Version 2 of ") == 2)
        log = (tmp_path / "log").read_text("utf-8")
        assert log.rindex("Version 2 of ") < log.index(ready)
        assert await versions(served) == {2}


async def test_reasons_are_shown_to_operators(tmp_path: Path) -> None:
    with run_gateway(tmp_path, "a", "b", start='serve = ["web"]\n') as served:
        origin = f"http://127.0.0.1:{served.port}"
        write(tmp_path, "a", "b\nurll = 1", start='serve = ["web"]\n')
        reason = "gateway.toml, line 9: upstreams.b.urll: unknown option; did you mean 'url'?"
        await until_async(lambda: served.count_lines("Version 1 of the configuration stays in force.") == 1)
        assert served.count_lines(reason) == 1
        command = [sys.executable, "-m", "millstream", "doctor", f"{origin}/mcp", "--json"]
        doctor = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        steps = json.loads((await doctor.communicate())[0])["steps"]
        (step,) = [each for each in steps if each["name"] == "configuration"]
        assert (step["ok"], reason in step["found"]) == (False, True)
        async with httpx2.AsyncClient(timeout=WAIT) as http:
            page = (await http.get(f"{origin}/gateway/upstreams")).json()["configuration"]
            assert (page["version"], reason in page["refused"]) == (1, True)
            assert reason in (await http.get(f"{origin}/readyz")).text


def _pids(found: dict[str, Any]) -> list[int]:
    return [each["pid"] for each in found["workers"] if each["state"] == "ready"]


@pytest.mark.parametrize("workers", [1, 2])
async def test_hangup_reads_the_file(workers: int, tmp_path: Path) -> None:
    with run_gateway(tmp_path, "a", "b", workers=workers) as served:
        async with connect(served) as client:
            before = (await client.call("a_pid")).data
            running = asyncio.create_task(client.call("a_wait", seconds=2))
            write(tmp_path, "a", "c")
            served.process.send_signal(signal.SIGHUP)
            if workers == 1:
                await wait_for_version(served, 2, workers)
            else:
                await until_async(lambda: served.count_lines("The new version is serving") == 1)
            assert await versions(served) == {2}
            assert (await running).text == "done"
            if workers == 1:
                assert (await client.call("a_pid")).data == before
        served.process.send_signal(signal.SIGHUP)
        if workers > 1:
            await until_async(lambda: served.count_lines("The new version is serving") == 2)
        assert served.process.poll() is None
        assert await versions(served) == {2}
        assert await names(served) == {"a_pid", "a_wait", "c_pid", "c_wait"}


async def test_restart_uses_changes_that_need_one(tmp_path: Path) -> None:
    with run_gateway(tmp_path, "a", "b") as served:
        write(tmp_path, "a", "b", start='name = "other"\n')
        await until_async(lambda: served.count_lines("name: it can't change while the gateway runs") == 1)
        assert (await health(served))["name"] == "gateway"
        served.process.send_signal(signal.SIGHUP)

        await until_async(lambda: served.count_lines("The new version is serving") == 1)
        assert {(await health(served))["name"] for _ in range(6)} == {"other"}
        (tmp_path / "gateway.toml").write_text("broken", "utf-8")
        served.process.send_signal(signal.SIGHUP)
        await until_async(lambda: served.count_lines("The restart failed. The current workers keep serving.") == 1)
        assert await names(served) == {"a_pid", "a_wait", "b_pid", "b_wait"}


async def test_first_rule_about_other_approvers_needs_a_restart(tmp_path: Path) -> None:
    start = '[auth.keys.named_keys]\nada = "the-key-of-ada-0123456789"\nmeg = "the-key-of-meg-0123456789"\n'
    headers = [{"authorization": f"Bearer the-key-of-{name}-0123456789"} for name in ("ada", "meg")]
    with run_gateway(tmp_path, "a", start=start) as served:
        write(tmp_path, 'a\npolicy.approve = { by = ["user:meg"] }', start=start)
        reason = (
            "upstream 'a': the first approve.by needs the page /approvals, which opens when the gateway starts. "
            "Restart the gateway."
        )
        await until_async(lambda: served.count_lines(reason) > 0)
        async with connect(served, headers=headers[0]) as client:
            assert (await client.call("a_pid")).data > 0
        served.process.send_signal(signal.SIGHUP)
        await until_async(lambda: served.count_lines("The new version is serving") == 1)
        async with connect(served, headers=headers[0]) as client:
            said = await client.call("a_pid", raise_on_error=False)
            assert "waits for approval by user:meg" in said.text
        write(tmp_path, 'a\npolicy.approve = { by = ["user:meg"], within = "2h" }', start=start)

        async def is_outdated() -> bool:
            async with httpx2.AsyncClient(timeout=WAIT, headers=headers[1]) as http:
                found = (await http.get(f"http://127.0.0.1:{served.port}/approvals")).json()["requests"]
                return [each["outdated"] for each in found] == [True]

        await until_true(is_outdated)  # later rules apply while it runs


async def test_failed_restart_leaves_the_version_in_force(tmp_path: Path) -> None:
    with run_gateway(tmp_path, "a", "b") as served:
        before = (await health(served))["configuration"]
        store = f'store = "sqlite:///{tmp_path}/missing/x.db"\n'
        write(tmp_path, "a", "b", start=f'{store}[settings]\nauth_keys = "keys.json"\n')
        await until_async(lambda: served.count_lines("it can't change while the gateway runs") == 1)
        served.process.send_signal(signal.SIGHUP)
        await until_async(lambda: served.count_lines("The restart failed. The current workers keep serving.") == 1)
        assert (await health(served))["configuration"]["digest"] == before["digest"]
        (tmp_path / "missing").mkdir()
        write(tmp_path, "a", "c", start=f'{store}[settings]\nauth_keys = "keys.json"\n')
        await until_async(lambda: served.count_lines("it can't change while the gateway runs") >= 2)
        assert {(await health(served))["configuration"]["digest"] for _ in range(6)} == {before["digest"]}
        write(tmp_path, "a", "c")
        await until_async(lambda: served.count_lines("is in force: added c, removed b") >= 2)
        assert await names(served) == {"a_pid", "a_wait", "c_pid", "c_wait"}


async def test_deeply_nested_file_is_refused(tmp_path: Path) -> None:
    with run_gateway(tmp_path, "a", "b") as served:
        (tmp_path / "gateway.toml").write_text(f"x = {'[' * 20_000}{']' * 20_000}", "utf-8")
        await until_async(lambda: served.count_lines("nested too deeply") == 1)
        served.process.send_signal(signal.SIGHUP)
        await until_async(lambda: served.count_lines("The restart failed. The current workers keep serving.") == 1)
        write(tmp_path, "a", "c")
        await wait_for_version(served, (await health(served))["configuration"]["version"] + 1)


async def test_large_and_secret_texts_reach_workers_by_their_pipe(tmp_path: Path) -> None:
    start = f'instructions = "{"long " * 100_000}"\n'  # more than a socket's buffer
    with run_gateway(tmp_path, "a", "b\nenv = { KEY = 'sesame-1' }", start=start) as served:
        write(tmp_path, "a", "b\nenv = { KEY = 'sesame-2' }", start=start)
        await wait_for_version(served, 2)
        shown = json.dumps(await health(served)) + await metrics(served) + served.log
        for pid in (served.process.pid, *served.children()):
            shown += "".join((PROC / f"{pid}/{name}").read_text() for name in ("cmdline", "environ"))
        assert "sesame" not in shown


async def test_metrics_show_the_versions_of_all_workers(tmp_path: Path) -> None:
    with run_gateway(tmp_path, "a", "b", start='serve = ["metrics"]\n') as served:
        digest = (await health(served))["configuration"]["digest"]
        write(tmp_path, "a", "c", start='serve = ["metrics"]\n')
        await wait_for_version(served, 2)
        found = (await health(served))["configuration"]
        assert found["digest"] != digest

        async def are_counted() -> bool:
            text = await metrics(served)
            assert "gateway_config_refused 0.0\n" in text
            return f'gateway_config{{digest="{found["digest"]}",version="2"}} 2.0\n' in text

        await until_true(are_counted)
        assert 'version="1"' not in await metrics(served)


async def test_no_call_fails_on_any_worker_during_ten_changes(tmp_path: Path) -> None:
    with run_gateway(tmp_path, "a", 'b\nprefix = "v1"') as served:
        stop, calls = asyncio.Event(), 0

        async def keep_calling(revision: str) -> None:
            nonlocal calls
            seen = 0
            async with connect(served, revision=revision) as client:  # on one worker
                while not stop.is_set() or calls < 300:
                    await client.call("a_pid")
                    calls += 1
                    tools = {tool.name for tool in await client.tools(fresh=True)}
                    (version,) = {int(name.partition("_")[0][1:]) for name in tools if name[0] == "v"}
                    assert version >= seen
                    seen = version
            assert seen == 11

        calling = [asyncio.create_task(keep_calling(each)) for each in ("2026-07-28", "2025-06-18") * 3]
        for number in range(2, 12):
            write(tmp_path, "a", f'b\nprefix = "v{number}"')
            await wait_for_version(served, number)
        stop.set()
        await asyncio.gather(*calling)
        assert calls >= 300


@pytest.mark.nightly
@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"])
async def test_versions_never_go_back_while_workers_are_killed(store: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/store.db"}.get(store, "")
        if not url:
            server = RedisServer()
            stack.callback(server.close)
            url = server.url
        start = f'store = "{url}"\n'
        served = stack.enter_context(run_gateway(tmp_path, "a", 'b\nprefix = "v1"', start=start))
        stop, floor, calls, lost = asyncio.Event(), 1, 0, 0

        async def keep_calling(revision: str) -> None:
            nonlocal calls, lost
            while not stop.is_set():
                with suppress(ClientError):
                    async with connect(served, revision=revision) as client:
                        while not stop.is_set():
                            lowest = floor
                            lost += 1
                            await client.call("a_pid")
                            tools = {tool.name for tool in await client.tools(fresh=True)}
                            lost -= 1
                            calls += 1
                            (version,) = {int(name.partition("_")[0][1:]) for name in tools if name[0] == "v"}
                            assert version >= lowest

        calling = [asyncio.create_task(keep_calling(each)) for each in ("2026-07-28", "2025-06-18") * 3]
        for number in range(2, 12):
            victim = _pids(await health(served))[number % 2]
            write(tmp_path, "a", f'b\nprefix = "v{number}"', start=start)
            await asyncio.sleep(number % 5 / 4)  # before, while, and after it's read
            kill(victim)

            async def is_everywhere(number: int = number, victim: int = victim) -> bool:
                pids = _pids(await health(served))
                return len(pids) == 2 and victim not in pids and await versions(served) == {number}

            await until_true(is_everywhere)
            floor = number
        stop.set()
        await asyncio.gather(*calling)
        assert calls >= 300
        assert lost <= 10 * len(calling)  # those of the killed workers
