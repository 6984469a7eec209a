import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator
from pathlib import Path
from time import monotonic
from typing import Any, cast

import pytest
from msgspec.structs import replace

from fleet import until
from millstream import Client
from millstream._gateway.errors import InUse
from millstream._gateway.options.upstream import UpstreamConfig
from millstream._gateway.processes.pool import ErrorLog, ProcessPool, UpstreamProcesses
from millstream.client._errors import ClientError, ConnectFailed, ConnectionLost
from millstream.client._transports.stdio import Command
from patience import WAIT

pytestmark = pytest.mark.server
AT_ONCE = 1e-9
"""Seconds after which an idle process can be stopped."""

SHELL = r"""
    while read -r line; do
        id=${line#*\"id\":}
        id=${id%%,*}
        case $line in
            *server/discover*) result='"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":0,"cacheScope":"private"' ;;
            *'"name":"die"'*) echo 'out of paper' >&2; exit 3 ;;
            *'"name":"hang"'*) continue ;;
            *) result='"content":[{"type":"text","text":"'$$'"}]' ;;
        esac
        case $line in
            *'"id":'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"resultType":"complete",%s}}\n' "$id" "$result" ;;
        esac
    done
"""  # noqa: E501


@contextlib.asynccontextmanager
async def open_pool(**options: float) -> AsyncGenerator[ProcessPool]:
    """Open a pool, close it after the block, and check that no process is left."""
    others = find_children()  # servers shared with tests in other files
    pool = ProcessPool(**options)  # type: ignore[arg-type]
    try:
        yield pool
    finally:
        await pool.close()
    assert find_children() <= others


def add(pool: ProcessPool, name: str, command: Command, **limits: Any) -> UpstreamProcesses:
    """Add the processes of an upstream with these limits."""
    return pool.add(UpstreamConfig(name=name, target=None, **limits), command)


def find_children() -> set[int]:
    """Return the child processes of pools, including zombies."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return {pid for pid in found if _is_of_pool(pid)}


def _is_of_pool(pid: int) -> bool:
    """Return whether a process is a server of these tests or a watchdog."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False
    return not words or b"server.sh" in words or b"watchdog.py" in words  # a zombie has no command line


def is_running(pid: int) -> bool:
    """Return whether a process is running and isn't a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture
def shell(tmp_path: Path) -> Command:
    """A server with tools that return its process id, end the process, or hang."""
    path = tmp_path / "server.sh"
    path.write_text(textwrap.dedent(SHELL))
    return Command(("sh", str(path)))


async def call(processes: UpstreamProcesses, key: str = "", tool: str = "pid") -> int:
    """Connect, call a tool, and disconnect."""
    async with Client(processes.target(key)) as client:
        return int((await client.call(tool)).text)


async def test_sessions_share_processes_within_the_limits(shell: Command) -> None:
    others = find_children()
    async with asyncio.timeout(WAIT), contextlib.AsyncExitStack() as clients, open_pool(min_idle_seconds=0) as pool:
        upstreams = [add(pool, f"files{number}", shell, max_processes=4, idle_seconds=AT_ONCE) for number in range(5)]
        most = 0
        for number in range(200):
            client = Client(upstreams[number % 5].target(f"session{number}"))
            await clients.enter_async_context(client)
            most = max(most, len(find_children() - others))
        assert most <= 5 * 4 + 1  # the watchdog
        for upstream in upstreams:
            report = upstream.describe()
            assert (report.running, report.started, report.ended_idle, report.crashed) == (4, 40, 36, 0)
            assert report.memory
        # Every session still works, with another process.
        first = Client(upstreams[0].target("session0"))
        await clients.enter_async_context(first)
        assert int((await first.call("pid")).text) in find_children()


async def test_process_limit_applies_to_all_upstreams(shell: Command) -> None:
    async with asyncio.timeout(WAIT), open_pool(limit=2, min_idle_seconds=0) as pool:
        upstreams = [add(pool, name, shell, idle_seconds=AT_ONCE) for name in "abc"]
        async with contextlib.AsyncExitStack() as clients:
            for upstream in upstreams:
                client = await clients.enter_async_context(Client(upstream.target()))
                await client.call("pid")
                assert len(pool.running) <= 2


async def test_busy_processes_are_not_stopped_to_make_room(shell: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.pool.WAIT_TIMEOUT", 0.3)
    async with asyncio.timeout(WAIT), open_pool(min_idle_seconds=0) as pool:
        upstream = add(pool, "files", shell, max_processes=1)
        async with Client(upstream.target("a")) as client:
            hanging = asyncio.create_task(client.call("hang", timeout=WAIT))
            await until(lambda: pool.running[0].idle_seconds(monotonic()) < 0)
            with pytest.raises(InUse, match=r"busy: the caller is using 1 of its 1 processes\..*max_processes"):
                await call(upstream, "b")
            assert upstream.describe().waiting == 0
            hanging.cancel()
            await asyncio.wait([hanging])
        assert await call(upstream, "b")


async def test_the_largest_owners_idle_processes_are_stopped_first(shell: Command) -> None:
    async with asyncio.timeout(WAIT), contextlib.AsyncExitStack() as clients, open_pool(min_idle_seconds=0) as pool:
        upstream = add(pool, "files", shell, max_processes=4)

        async def start(key: str, owner: str) -> int:
            client = await clients.enter_async_context(Client(upstream.target(key, owner=owner)))
            return int((await client.call("pid")).text)

        bob = await start("b1", "bob")
        alice = [await start(f"a{number}", "alice") for number in range(2)]
        assert await start("c1", "carol")
        assert all(map(is_running, (bob, *alice)))  # Carol got the last place
        assert await start("d1", "dave")
        assert [is_running(pid) for pid in (bob, *alice)] == [True, False, True]


async def test_an_owners_only_process_is_not_stopped_for_another_owner(
    shell: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream._server.pool.WAIT_TIMEOUT", 0.01)
    async with asyncio.timeout(WAIT), open_pool(min_idle_seconds=0) as pool:
        upstream = add(pool, "files", shell, max_processes=2)
        async with (
            Client(upstream.target("a", owner="ada")) as ada,
            Client(upstream.target("b", owner="bob")) as bob,
        ):
            before = [int((await each.call("pid")).text) for each in (ada, bob)]
            with pytest.raises(InUse, match=r'max_processes, or .* isolation = "shared"'):
                async with Client(upstream.target("c", owner="cleo")):
                    pass
            assert [int((await each.call("pid")).text) for each in (ada, bob)] == before


async def test_idle_processes_stop_and_restart(shell: Command) -> None:
    async with asyncio.timeout(WAIT), open_pool() as pool:
        upstream = add(pool, "files", shell, idle_seconds=60)
        async with Client(upstream.target()) as client:
            first = int((await client.call("pid")).text)
            pool.sweep(monotonic() + 30)
            assert pool.running[0].pid == first
            pool.sweep(monotonic() + 61)
            await until(lambda: not pool.running)
            assert not is_running(first)
            assert int((await client.call("pid")).text) != first
            pool.running[0].current.subscribed.set()
            pool.sweep(monotonic() + 61)
            assert not pool.running[0].closing
        assert upstream.describe().ended_idle == 1


async def test_spare_processes_serve_the_next_connections(shell: Command) -> None:
    async with asyncio.timeout(WAIT), open_pool() as pool:
        upstream = add(pool, "files", shell, spare_processes=2, max_processes=3)
        upstream.warm_up()
        await until(lambda: upstream.describe().spare == 2)
        spare = {transport.pid for transport in pool.running}
        assert await call(upstream) in spare
        await until(lambda: upstream.describe().spare == 2)
        os.kill(next(transport.pid for transport in pool.running if not transport.attached), signal.SIGKILL)
        await until(lambda: upstream.describe().crashed == 1)
        assert await call(upstream)
        pool.sweep(monotonic())
        await until(lambda: upstream.describe().spare == 2)


async def test_killed_processes_are_replaced_with_backoff(shell: Command) -> None:
    async with asyncio.timeout(WAIT), open_pool() as pool:
        upstream = add(pool, "printer", shell)
        async with Client(upstream.target("a")) as client:
            os.kill(int((await client.call("pid")).text), signal.SIGKILL)
            await until(lambda: not pool.running)
            assert int((await client.call("pid")).text)
            fault: ClientError | None = None
            delays: list[float] = []  # of each crash, because a slow machine has waited them out by the end
            while not isinstance(fault, ConnectFailed):
                try:
                    await client.call("die")
                except (ConnectionLost, ConnectFailed) as exc:
                    fault = exc
                    delays.append(upstream.describe().retry_seconds)
            assert "The process of printer exited" in str(fault)
            assert "code 3. Its last output: out of paper" in str(fault)
            assert await call(upstream, "b")
        report = upstream.describe()
        assert report.crashed >= 2
        assert max(delays) > 0
        assert "out of paper" in report.last_error


async def test_calls_that_end_their_process_delay_others_by_at_most_a_second(shell: Command) -> None:
    async with asyncio.timeout(WAIT), open_pool() as pool:
        upstream = add(pool, "printer", shell)
        async with Client(upstream.target()) as client:
            while upstream.describe().crashed < 5:
                with pytest.raises((ConnectionLost, ConnectFailed)):
                    await client.call("die")
                assert upstream.describe().retry_seconds <= 1


async def test_hung_processes_are_replaced(shell: Command) -> None:
    async with asyncio.timeout(WAIT), open_pool() as pool:
        upstream = add(pool, "files", shell, timeout=WAIT)
        async with Client(upstream.target()) as client:
            first = int((await client.call("pid")).text)
            os.kill(first, signal.SIGSTOP)
            with pytest.raises(ClientError):
                await client.call("pid", timeout=0.05)
            pool.sweep(monotonic())
            assert pool.running[0].fault is None
            for later in (WAIT, 2 * WAIT):  # a ping, and its timeout
                pool.sweep(monotonic() + later + 1)
            await until(lambda: not pool.running)
            assert int((await client.call("pid")).text) != first
        assert "stopped responding" in upstream.describe().last_error


async def test_process_that_answers_a_ping_survives_unanswered_calls(shell: Command) -> None:
    async with asyncio.timeout(WAIT), open_pool() as pool:
        upstream = add(pool, "files", shell, timeout=WAIT)
        async with Client(upstream.target()) as client:
            (transport,) = pool.running
            hanging = [asyncio.create_task(client.call("hang", timeout=10 * WAIT)) for _ in range(4)]
            await until(lambda: transport.waiting == len(hanging))
            for each in hanging[1:]:
                each.cancel()
            await asyncio.wait(hanging[1:])
            pool.sweep(monotonic() + WAIT + 1)
            await until(lambda: not transport._unanswered_count)
            pool.sweep(monotonic() + 2 * WAIT)
            assert transport.fault is None
            hanging[0].cancel()
            await asyncio.wait(hanging)


async def test_processes_that_do_not_read_use_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "deaf.sh"
    path.write_text(textwrap.dedent(SHELL).replace('*\'"name":"hang"\'*) continue ;;', "*hang*) sleep 1000 ;;"))
    async with asyncio.timeout(WAIT), open_pool() as pool:
        upstream = add(pool, "files", Command(("sh", str(path))))
        async with Client(upstream.target()) as client:
            calls = [client.call("hang", {"text": "x" * 100_000}, timeout=0.2) for _ in range(100)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, ClientError) for result in results)
            process = pool.running[0].process
            assert process is not None
            assert 0 < cast("asyncio.WriteTransport", process.get_pipe_transport(0)).get_write_buffer_size() < 1_000_000


async def test_stderr_is_logged_with_the_upstream_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "loud.sh"
    loud = "printf 'one\\033[2J\\n%s\\npart' $(seq -s, 2000) >&2\n" + textwrap.dedent(SHELL)
    path.write_text(loud.replace('*\'"name":"hang"\'*) continue ;;', "*flood*) yes flood >&2 & continue ;;"))
    caplog.set_level(logging.INFO, "millstream.gateway.processes")
    async with asyncio.timeout(WAIT), open_pool() as pool:
        upstream = add(pool, "printer", Command(("sh", str(path))))
        assert await call(upstream)
        lines = [record.getMessage() for record in caplog.records]
        assert lines[0].endswith(f", sh in {Path.cwd()}")
        assert lines[1] == "printer: one[2J"
        assert len(lines[2]) < 2100
        assert "printer: part" in lines
        async with Client(upstream.target()) as client:
            with contextlib.suppress(ClientError):
                await client.call("flood", timeout=1)
            assert (await client.call("pid")).text  # it still answers

            def left_out() -> bool:
                pool.sweep(monotonic())
                return any("dropped" in record.getMessage() for record in caplog.records)

            await until(left_out)
        floods = [record for record in caplog.records if record.getMessage() == "printer: flood"]
        assert len(floods) < 5_000


async def test_notification_floods_are_throttled(tmp_path: Path) -> None:
    path = tmp_path / "loud.sh"
    flood = '*flood*) yes \'{"jsonrpc":"2.0","method":"notifications/x"}\' & continue ;;'
    path.write_text(textwrap.dedent(SHELL).replace('*\'"name":"hang"\'*) continue ;;', flood))
    async with asyncio.timeout(WAIT), open_pool() as pool:
        loud, quiet = (add(pool, name, Command(("sh", str(path)))) for name in ("loud", "quiet"))
        async with Client(loud.target()) as flooded, Client(quiet.target()) as other:
            with contextlib.suppress(ClientError):
                await flooded.call("flood", timeout=0.5)
            for _ in range(100):
                await other.call("pid")
            transport = next(iter(loud.running))
            seen = transport.current.count
            assert seen > 0
            for _ in range(100):
                await other.call("pid")
            assert loud.describe().crashed == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of another process")
async def test_process_memory_is_limited() -> None:
    program = """
        import json, sys
        for line in sys.stdin:
            message = json.loads(line)
            result = {"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
                      "ttlMs": 0, "cacheScope": "private"}
            if message["method"] == "tools/call":
                result = {"resultType": "complete", "content": [{"type": "text", "text": str(len(bytes(10**9)))}]}
            print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
    """
    command = Command((sys.executable, "-c", textwrap.dedent(program)))
    async with asyncio.timeout(WAIT), open_pool() as pool:
        upstream = add(pool, "greedy", command, memory_limit=256 * 2**20)
        with pytest.raises(ConnectionLost, match="MemoryError"):
            await call(upstream)
        upstream.become(replace(upstream.config, memory_limit=2**33))  # for the next process
        assert await call(upstream) == 10**9


def test_no_process_survives_a_killed_gateway(tmp_path: Path) -> None:
    (tmp_path / "deaf.sh").write_text(
        "trap '' TERM\n"
        + textwrap.dedent(SHELL)
        + f"sleep 1000 & echo $! > {tmp_path}/child.$$\n"
        + f"setsid sh -c 'echo $$ > {tmp_path}/daemon.'$$'; exec sleep 1000' &\nwhile :; do sleep 1; done\n"
    )
    program = f"""
        import asyncio, sys
        from millstream import Client
        from millstream.client._transports.stdio import Command
        from millstream._gateway.processes.pool import ProcessPool
        from millstream._gateway.options.upstream import UpstreamConfig

        async def main():
            pool = ProcessPool()
            deaf = pool.add(UpstreamConfig(name="deaf", target=None), Command(("sh", "{tmp_path}/deaf.sh")))
            async with Client(deaf.target("a")) as a, Client(deaf.target("b")) as b:
                print((await a.call("pid")).text, (await b.call("pid")).text, flush=True)
                await asyncio.sleep(1000)

        asyncio.run(main())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as gateway:
        try:
            assert gateway.stdout is not None
            pids = [int(pid) for pid in gateway.stdout.readline().split()]
            assert len(pids) == 2
            watchdog = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children")
            pids += [int(pid) for pid in watchdog.read_text().split()]
            assert len(set(pids)) == 3
        finally:
            gateway.kill()
    # Daemons of a server, in sessions of their own, aren't in its process group.
    asyncio.run(until(lambda: sum(path.read_text() != "" for path in tmp_path.glob("*.[0-9]*")) == 4))
    pids += [int(path.read_text()) for path in tmp_path.glob("*.[0-9]*")]
    asyncio.run(until(lambda: not any(is_running(pid) for pid in pids)))


async def test_killed_watchdog_is_restarted(shell: Command, tmp_path: Path) -> None:
    others = find_children()
    async with asyncio.timeout(WAIT), open_pool() as pool, Client(add(pool, "files", shell).target()) as client:
        server = int((await client.call("pid")).text)
        (first,) = find_children() - {server} - others
        os.kill(first, signal.SIGKILL)
        await until(lambda: pool.watchdog.is_missing)
        pool.sweep(monotonic())
        await until(lambda: not pool.watchdog.is_missing)
        assert len(find_children() - others) == 2


def test_one_owners_output_does_not_use_up_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "millstream.gateway.processes")
    log = ErrorLog("printer")
    for _ in range(1_000):
        log.write("flood", 1, "ada")
    log.write("of bob", 2, "bob")
    assert caplog.records[-1].getMessage() == "printer: of bob"


async def test_call_waits_for_a_short_delay_after_a_crash(shell: Command) -> None:
    async with asyncio.timeout(WAIT), open_pool() as pool:
        upstream = add(pool, "printer", shell)
        async with Client(upstream.target()) as client:
            for _ in range(2):  # the second crash delays the next start
                os.kill(int((await client.call("pid")).text), signal.SIGKILL)
                await until(lambda: not pool.running)
            assert upstream.describe().crashed == 2
            assert int((await client.call("pid")).text)
