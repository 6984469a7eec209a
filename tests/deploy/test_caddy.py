import asyncio
import json
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from websockets.asyncio.client import connect

from auth.test_tls import make
from millstream import Client
from millstream.client import Options
from patience import WAIT
from processes import ROOT, free_port, run_command, run_server
from programs import find_program, needs
from workers_world import start_program, until

CADDY = find_program("caddy")
pytestmark = [pytest.mark.server, needs("caddy")]
PROGRAM = "examples/broadcast/main.py"
GUIDE = "docs/guides/behind-a-proxy.md"


def configuration(page: str) -> str:
    """Return the only Caddyfile of a page."""
    (found,) = re.findall(
        r"^```text\n(mcp\.example\.com \{\n.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return str(found)


@contextmanager
def caddy(folder: Path, site: str, certificate: str = "") -> Iterator[tuple[int, ssl.SSLContext]]:
    """Run Caddy with a site at localhost, and yield its port and what trusts its certificate.

    Args:
        certificate: The site's certificate. By default, Caddy makes one.
    """
    assert CADDY is not None
    port = free_port()
    own = ["admin off", "local_certs", "skip_install_trust", "auto_https disable_redirects", "default_bind 127.0.0.1"]
    own_lines = "\n".join([*own, f"https_port {port}"])
    (folder / "Caddyfile").write_text(f"{{\n{own_lines}\n}}\n" + site.replace("mcp.example.com", "localhost"))
    command = [CADDY, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    root = folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    log = folder / "caddy.log"
    with run_server(command, port, log, HOME=str(folder), XDG_DATA_HOME=str(folder)):
        if not certificate:
            until(lambda: "certificate obtained" in log.read_text("utf-8"))
        yield port, ssl.create_default_context(cafile=certificate or str(root))


async def check(port: int, trust: ssl.SSLContext, private: int) -> None:
    """Read the private pages, and call a tool while an event stream and a WebSocket are open."""
    url = f"https://localhost:{port}"
    async with httpx2.AsyncClient(timeout=WAIT, verify=trust) as web:
        for page in ("dashboard", "chat", "inspect", "metrics"):
            assert (await web.get(f"{url}/{page}")).status_code == private
        async with web.stream("GET", f"{url}/events") as events:
            lines = events.aiter_lines()
            assert (await anext(lines)).startswith("id: ")
            async with Client(f"{url}/mcp", options=Options(tls=trust)) as client:
                await client.call("send_sse_message", message="Hello through Caddy")
            async with asyncio.timeout(WAIT):
                assert "data: Hello through Caddy" in [await anext(lines) for _ in range(3)]
    async with connect(f"wss://localhost:{port}/ws", ssl=trust) as socket:
        assert json.loads(await socket.recv())["type"] == "connected"


async def test_caddy_passes_events_and_the_server_blocks_private_pages(tmp_path: Path) -> None:
    behind = free_port()
    site = configuration("docs/recipes/team-gateway.md").replace("127.0.0.1:8000", f"127.0.0.1:{behind}")
    with run_server(run_command(PROGRAM, behind), behind, tmp_path / "server"), caddy(tmp_path, site) as (port, trust):
        await check(port, trust, 403)


async def test_caddy_blocks_private_pages(tmp_path: Path) -> None:
    behind = free_port()
    site = configuration(GUIDE).replace("127.0.0.1:8000", f"127.0.0.1:{behind}")
    with run_server(run_command(PROGRAM, behind), behind, tmp_path / "server"), caddy(tmp_path, site) as (port, trust):
        await check(port, trust, 404)


async def test_caddy_reaches_a_unix_socket_and_blocks_private_pages(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    (line,) = re.findall(r"^reverse_proxy unix//.*$", (ROOT / GUIDE).read_text("utf-8"), re.MULTILINE)
    site = configuration(GUIDE).replace("reverse_proxy 127.0.0.1:8000 {", line)
    site = site.replace("/run/millstream/server.sock", str(path))
    assert str(path) in site
    command = run_command(PROGRAM, 8000, "--uds", str(path))
    with start_program(command, 0, tmp_path / "log", env=dict(os.environ)), caddy(tmp_path, site) as (port, trust):
        await check(port, trust, 404)


async def test_caddy_serves_the_certificate_of_a_private_network(tmp_path: Path) -> None:
    behind, page = free_port(), (ROOT / "docs/recipes/team-gateway.md").read_text("utf-8")
    (line,) = re.findall(r"`(tls /etc/caddy/cert\.pem /etc/caddy/key\.pem)`", page)
    certificate, key = make(tmp_path, "localhost")
    site = configuration("docs/recipes/team-gateway.md").replace("127.0.0.1:8000", f"127.0.0.1:{behind}")
    first = line.replace("/etc/caddy/cert.pem", certificate).replace("/etc/caddy/key.pem", key)
    site = site.replace("{\n", f"{{\n    {first}\n", 1)
    with (
        run_server(run_command(PROGRAM, behind), behind, tmp_path / "server"),
        caddy(tmp_path, site, certificate) as (port, trust),
    ):
        await check(port, trust, 403)
