import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from millstream import Client
from millstream.client import ToolFailed
from patience import WAIT
from processes import ROOT, free_port, run_server, wait_for_port

FOLDER = ROOT / "examples" / "orders"
KEY = "key-of-the-orders-example"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.mark.server
async def test_order_is_published_counted_and_broadcast(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(5)]
    hub, _, orders, notifications, analytics = (f"http://127.0.0.1:{port}" for port in ports)
    command = [sys.executable, str(FOLDER / "start.py"), *map(str, ports)]
    own = {"MCP_SERVER_AUTH_KEY": KEY, "STATE_FOLDER": str(tmp_path / "state")}
    with run_server(command, ports[0], tmp_path / "log", **own) as process:
        for port in ports:
            wait_for_port(process, port, tmp_path / "log")
        async with (
            asyncio.timeout(WAIT),
            httpx2.AsyncClient(timeout=WAIT, headers=HEADERS) as browser,
            browser.stream("GET", f"{hub}/events") as events,
            Client(f"{orders}/mcp", headers=HEADERS) as shop,
        ):
            assert events.status_code == 200
            assert (
                "Sign in to"
                in (await browser.get(f"{hub}/chat", headers={"Authorization": "", "Accept": "text/html"})).text
            )
            assert (await browser.get(f"{hub}/chat")).status_code == 200
            with pytest.raises(ToolFailed, match="There is no user 'eve'"):
                await shop.call("place_order", user="eve", item="tea")
            await shop.call("place_order", user="ada", item="tea", copies=2)
            message = "Ada Lovelace ordered 2 × tea."
            async for line in events.aiter_lines():
                if line.startswith("data:"):
                    assert line == f"data: {message}"
                    break
            async with Client(f"{notifications}/mcp", headers=HEADERS) as client:
                while (await client.call("list_sent")).data != [message]:
                    pass
            async with Client(f"{analytics}/mcp", headers=HEADERS) as client:
                while (await client.call("report")).data != {"tea": 2}:
                    pass


def service(name: str, ports: dict[str, int], folder: Path) -> AbstractContextManager[Any]:
    """Run one of the services, in a process of its own."""
    variables = {
        "MCP_SERVER_AUTH_KEY": KEY,
        "MILLSTREAM_PORT": str(ports[name]),
        "HUB_URL": f"http://127.0.0.1:{ports['hub']}",
        "USERS_URL": f"http://127.0.0.1:{ports['users']}",
        "STATE_FOLDER": str(folder / "state"),
    }
    return run_server([sys.executable, str(FOLDER / f"{name}.py")], ports[name], folder / f"{name}.log", **variables)


@pytest.mark.server
async def test_restarted_service_announces_each_order_once_and_skips_other_events(tmp_path: Path) -> None:
    ports = {name: free_port() for name in ("hub", "users", "order_service", "notifications")}
    hub, orders, notifications = (
        f"http://127.0.0.1:{ports[name]}" for name in ("hub", "order_service", "notifications")
    )

    async def announced() -> list[str]:
        async with Client(f"{notifications}/mcp", headers=HEADERS) as client:
            return list((await client.call("list_sent")).data)

    with ExitStack() as stack:
        for name in ("hub", "users", "order_service"):
            stack.enter_context(service(name, ports, tmp_path))
        async with (
            asyncio.timeout(WAIT),
            httpx2.AsyncClient(timeout=WAIT, headers=HEADERS) as browser,
            Client(f"{orders}/mcp", headers=HEADERS) as shop,
        ):
            with service("notifications", ports, tmp_path):
                await shop.call("place_order", user="ada", item="tea")
                odd = [{"x": 1}, "no order", [], {"order": 1, "copies": "two"}, None]
                for data in odd:
                    sent = await browser.post(f"{hub}/publish", json={"channel": "orders.created", "data": data})
                    assert sent.status_code == 200
                await shop.call("place_order", user="ada", item="cake")
                while len(await announced()) < 2:
                    pass
                assert (await browser.get(f"{notifications}/readyz")).text == "ok\n"
            assert (tmp_path / "notifications.log").read_text().count("isn't an order") == len(odd)
            await shop.call("place_order", user="grace", item="jam")
            with service("notifications", ports, tmp_path):
                while not (after := await announced()):
                    pass
                assert after == ["Grace Hopper ordered 1 × jam."]


@pytest.mark.server
async def test_orders_need_a_copy_and_a_hub_that_responds(tmp_path: Path) -> None:
    ports = {name: free_port() for name in ("hub", "users", "order_service")}
    with service("users", ports, tmp_path), service("order_service", ports, tmp_path):
        async with Client(f"http://127.0.0.1:{ports['order_service']}/mcp", headers=HEADERS) as shop:
            with pytest.raises(ToolFailed, match="copies"):
                await shop.call("place_order", user="ada", item="tea", copies=0)
            with pytest.raises(ToolFailed, match="Another service doesn't respond") as caught:
                await shop.call("place_order", user="ada", item="tea")
    assert str(ports["hub"]) not in str(caught.value)
    assert str(ports["hub"]) in (tmp_path / "order_service.log").read_text()


@pytest.mark.server
def test_start_restarts_a_killed_service(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(5)]
    command = [sys.executable, str(FOLDER / "start.py"), *map(str, ports)]
    own = {"MCP_SERVER_AUTH_KEY": KEY, "STATE_FOLDER": str(tmp_path / "state")}
    with run_server(command, ports[0], tmp_path / "log", **own) as process:
        wait_for_port(process, ports[1], tmp_path / "log")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        [users] = [int(each) for each in children if b"users.py" in Path(f"/proc/{each}/cmdline").read_bytes()]
        os.kill(users, signal.SIGKILL)
        while "users stopped, and starts again." not in (tmp_path / "log").read_text():
            assert process.poll() is None
        wait_for_port(process, ports[1], tmp_path / "log")


@pytest.mark.server
def test_start_stops_every_service_if_a_port_is_in_use(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(5)]
    with socket.create_server(("127.0.0.1", ports[3])):
        done = subprocess.run(
            [sys.executable, str(FOLDER / "start.py"), *map(str, ports)], check=False, capture_output=True, text=True,
            timeout=WAIT, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 1
    assert "notifications ended, so all stop. For other ports: python start.py" in done.stderr
    for port in ports:
        with socket.socket() as each:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", port))  # it would raise if a service were still listening


def test_compose_services_run_existing_programs_and_allow_their_own_host_name() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))["services"]
    assert len(services) == 5
    for name, service in services.items():
        program = service["command"].split()[-1].rstrip('"')
        assert (FOLDER / program).is_file()
        assert service["mem_limit"]
        called = any(f"//{name}:" in value for value in service["environment"].values())
        assert not called or service["environment"]["MILLSTREAM_ALLOWED_HOSTS"] == name
