"""Machines that reach the store, but not each other. Each is in a network namespace."""

import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from patience import WAIT
from processes import kill_with_parent, run_command, terminate_after
from programs import require_program
from workers.test_state_of_callers import COMMAND, META, PER_REQUEST, PROGRAM, call_with, post_with
from workers_world import start_program, until

pytestmark = pytest.mark.server

SECRET = "the-secret-of-both-machines-0123456789"
STORE = "10.9.0.254"
ADDRESSES = "10.9.0.1", "10.9.0.2"
NOWHERE = "02:00:00:00:00:99"


class Network:
    """A network of namespaces: one for the store, and one for each machine."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._store = self._hold(["unshare", "--user", "--map-root-user", "--net"])
        self._run(self._store, "ip link set lo up && ip link add br0 type bridge && ip link set br0 up")
        self._run(self._store, f"ip addr add {STORE}/24 dev br0")
        self._machines: list[int] = []
        for number, address in enumerate(ADDRESSES):
            pid = self._hold([*_enter(self._store), "unshare", "--net"])
            self._run(self._store, f"ip link add v{number} type veth peer name eth0 netns {pid}")
            self._run(self._store, f"ip link set v{number} master br0 up")
            self._run(pid, f"ip link set lo up && ip addr add {address}/24 dev eth0 && ip link set eth0 up")
            self._machines.append(pid)

    def _hold(self, command: list[str]) -> int:
        process = subprocess.Popen(kill_with_parent([*command, "sleep", "infinity"]))
        self._stack.enter_context(terminate_after(process))
        name = Path(f"/proc/{process.pid}/comm")
        until(lambda: name.read_text() == "sleep\n")
        return process.pid

    @staticmethod
    def _run(namespace: int, command: str) -> None:
        subprocess.run([*_enter(namespace), "sh", "-c", command], check=True, timeout=WAIT)

    def start_store(self, folder: Path) -> str:
        """Start Redis and return its URL."""
        options = ["--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", str(folder)]  # noqa: S104
        command = [*_enter(self._store), require_program("redis-server"), *options, "--logfile", str(folder / "redis")]
        self._stack.enter_context(terminate_after(subprocess.Popen(kill_with_parent(command))))
        return f"redis://{STORE}:6379"

    def start_machine(self, number: int, folder: Path, store: str) -> str:
        """Start a gateway on a machine, and return its UNIX socket, which clients reach from any namespace."""
        folder.mkdir()
        (folder / "desk.py").write_text(COMMAND)
        (folder / "shop.py").write_text(PROGRAM)
        env = {"MILLSTREAM_STORE": store, "MILLSTREAM_SECRET_KEY": SECRET, "MILLSTREAM_PEER": ADDRESSES[number]}
        command = [*_enter(self._machines[number]), *run_command("shop.py", 0, "--uds", str(folder / "socket"))]
        self._stack.enter_context(start_program(command, 0, folder / "log", cwd=folder, env={**os.environ, **env}))
        return str(folder / "socket")

    def cut(self, kind: str) -> None:
        """Cut the network between the machines: packets are lost, or there's no route."""
        for machine, other in zip(self._machines, reversed(ADDRESSES), strict=True):
            if kind == "lost":
                self._run(machine, f"ip neigh replace {other} lladdr {NOWHERE} dev eth0 nud permanent")
            else:
                self._run(machine, f"ip route add unreachable {other}/32")

    def heal(self) -> None:
        """Undo a cut in which packets are lost."""
        for machine, other in zip(self._machines, reversed(ADDRESSES), strict=True):
            self._run(machine, f"ip neigh del {other} dev eth0")


def _enter(namespace: int) -> list[str]:
    return ["nsenter", "--target", str(namespace), "--user", "--net", "--preserve-credentials"]


@pytest.fixture
def network() -> Iterator[Network]:
    tools = "ip", "nsenter", "unshare"
    for each in tools:
        require_program(each)
    trial = subprocess.run(["unshare", "--user", "--map-root-user", "--net", "true"], capture_output=True, check=False)
    if trial.returncode != 0:
        pytest.skip("network namespaces aren't permitted here")
    with ExitStack() as stack:
        yield Network(stack)


@asynccontextmanager
async def connect(path: str) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.AsyncHTTPTransport(uds=path)
    async with httpx2.AsyncClient(base_url="http://127.0.0.1", transport=transport, timeout=WAIT) as http:
        yield http


@asynccontextmanager
async def two_machines(folder: Path, network: Network) -> AsyncIterator[list[httpx2.AsyncClient]]:
    store = network.start_store(folder)
    paths = [network.start_machine(number, folder / str(number), store) for number in (0, 1)]
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connect(each)) for each in paths]


class Caller:
    """A caller without a session, or in the session of a client."""

    def __init__(self, person: str) -> None:
        self._person = person
        self._head = {"accept": "application/json, text/event-stream"}

    async def begin(self, http: httpx2.AsyncClient) -> "Caller":
        """Begin a session at a machine."""
        client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        reply = await self._post(http, "initialize", client)
        self._head["mcp-session-id"] = reply.headers["mcp-session-id"]
        return self

    async def list(self, http: httpx2.AsyncClient) -> None:
        reply = await self._post(http, "tools/list", {})
        assert (reply.status_code, "error" in reply.text) == (200, False)

    async def call(self, http: httpx2.AsyncClient, tool: str, **arguments: str) -> str:
        """Return the text of a result, or what the caller reads if there's none."""
        reply = await self._post(http, "tools/call", {"name": tool, "arguments": arguments})
        data = json.loads(reply.text.rpartition("data: ")[2])
        return str(data["result"]["content"][0]["text"] if "result" in data else data)

    async def _post(self, http: httpx2.AsyncClient, method: str, params: dict[str, Any]) -> httpx2.Response:
        head = self._head
        if method != "initialize" and "mcp-session-id" not in head:
            head = {
                **head,
                "mcp-protocol-version": PER_REQUEST,
                "mcp-method": method,
                "mcp-name": params.get("name", ""),
            }
            params = {**params, "_meta": META}
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return await post_with(http, self._person, "/mcp", message, **head)

    async def lose_state(self, http: httpx2.AsyncClient) -> None:
        """Call until the caller reads of the loss. The request before that may have waited for the other machine."""
        found: list[str] = []
        while not found or "lost its state" not in found[-1]:
            found.append(await self.call(http, "read"))
        assert ["lost its state" in each or "may have taken effect" in each for each in found] == [True] * len(found)
        assert len(found) <= 2


@pytest.mark.parametrize("kind", ["lost", "unreachable"])
async def test_machines_serve_everybody_while_the_network_between_them_is_cut(
    tmp_path: Path, network: Network, kind: str
) -> None:
    async with two_machines(tmp_path, network) as (one, two):
        assert await call_with(one, "ada", "keep", value="hers") == "hers"
        assert await call_with(two, "ada", "read") == "hers"
        network.cut(kind)
        for http, most in (two, 2), (one, 1):  # a request that waits for the other machine, and the loss
            failed = []
            while (reply := await post_with(http, "ada", "/tools/read", {})).status_code != 200:
                failed.append(reply.text)
            assert len(failed) <= most
            assert "lost its state" in failed[-1]
        assert await call_with(one, "ada", "keep", value="at one") == "at one"
        assert await call_with(two, "ada", "keep", value="at two") == "at two"
        assert [await call_with(each, "ada", "read") for each in (one, two) * 3] == ["at one", "at two"] * 3


@pytest.mark.parametrize("has_session", [False, True])
async def test_caller_reads_of_the_lost_one_of_two_states_when_the_network_is_back(
    tmp_path: Path, network: Network, has_session: bool
) -> None:
    async with two_machines(tmp_path, network) as (one, two):
        ada = Caller("ada")
        if has_session:
            await ada.begin(one)
        assert await ada.call(one, "keep", value="hers") == "hers"
        assert await ada.call(two, "read") == "hers"
        network.cut("lost")
        await ada.lose_state(two)
        await ada.lose_state(one)
        assert await ada.call(one, "keep", value="at one") == "at one"
        assert await ada.call(two, "keep", value="at two") == "at two"
        network.heal()
        # The state stays at the session's worker, or else at the one that claimed the caller last.
        gone, kept, value, rest = (two, one, "at two", "at one") if has_session else (one, two, "at one", "at two")
        await ada.list(gone)
        while (text := await ada.call(gone, "read")) == value:
            await ada.list(gone)
        assert "lost its state" in text
        assert [await ada.call(each, "read") for each in (gone, kept) * 3] == [rest] * 6
