import asyncio
import json
from pathlib import Path

import httpx2
import pytest
from websockets.asyncio.client import connect

from millstream import Client
from patience import WAIT
from processes import ROOT, free_port, run_command, run_server
from programs import MISSING, find_program

APACHE = find_program("apache2", "httpd")
MODULES = Path("/usr/lib/apache2/modules")
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(APACHE is None or not MODULES.is_dir(), reason=f"{MISSING}apache2"),
]
LOADED = ("mpm_event", "authz_core", "alias", "proxy", "proxy_http", "proxy_wstunnel")


def configuration(folder: Path, port: int, behind: int) -> str:
    """The example as a whole configuration, at other ports."""
    host = (ROOT / "examples" / "apache.conf").read_text("utf-8")
    host = host.replace("*:80", f"*:{port}").replace("127.0.0.1:8000", f"127.0.0.1:{behind}")
    modules = "\n".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in LOADED)
    return f"""
        ServerRoot {folder}
        PidFile {folder}/pid
        ErrorLog {folder}/errors
        Listen 127.0.0.1:{port}
        ServerName localhost
        {modules}
        {host}
    """


async def test_apache_passes_calls_and_blocks_private_pages(tmp_path: Path) -> None:
    assert APACHE is not None
    port, behind = free_port(), free_port()
    (tmp_path / "apache.conf").write_text(configuration(tmp_path, port, behind), "utf-8")
    command = [APACHE, "-d", str(tmp_path), "-f", str(tmp_path / "apache.conf"), "-DFOREGROUND"]
    server = run_command("examples/broadcast/main.py", behind)
    with run_server(server, behind, tmp_path / "server"), run_server(command, port, tmp_path / "front"):
        url = f"http://127.0.0.1:{port}"
        for page in ("dashboard", "gateway", "chat", "inspect", "metrics", "publish"):
            assert httpx2.get(f"{url}/{page}").status_code == 404
        async with httpx2.AsyncClient(timeout=WAIT) as web, web.stream("GET", f"{url}/events") as events:
            lines = events.aiter_lines()
            assert (await anext(lines)).startswith("id: ")
            async with Client(f"{url}/mcp") as client:
                await client.call("send_sse_message", message="Hello through Apache")
            async with asyncio.timeout(WAIT):
                assert "data: Hello through Apache" in [await anext(lines) for _ in range(3)]
        async with connect(f"ws://127.0.0.1:{port}/ws") as socket:
            assert json.loads(await socket.recv())["type"] == "connected"
