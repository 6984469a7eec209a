"""Path traversal (CVE-2026-77825, a check with `startswith`): served files are listed in a table, so no path can open
another file.
"""

import pytest

from cases import for_each
from four_workers import ADMIN_KEY, FOUR, ON_FOUR
from http_peer import Peer
from millstream import Server, Settings
from page_files import pages
from wire import run_wire

NAMES = ["pages.py", "../pages.py", "..%2fpages.py", "%2e%2e/pages.py", "%2e%2e%2fpages.py", "..%5cpages.py",
         "....//pages.py", "..;/pages.py", "%252e%252e/pages.py", "..%c0%afpages.py", "..%00/pages.py", "%00", ".",
         "..", "base.css/../../pages.py", "base.css%00.html", "base.css/", "/etc/passwd", "//etc/passwd",
         "../assets_of_a_neighbor/x", "../../../../../../../../etc/passwd", "base.css?/../../pages.py&x",
         "~root", "C:\\windows\\win.ini", "file:///etc/passwd"]  # fmt: skip
HEAD = f"host: 127.0.0.1\r\nconnection: close\r\nauthorization: Bearer {ADMIN_KEY}\r\n"
BEFORE = ["/assets/", "/docs/", "/dashboard/", "/", "/.well-known/", "/mcp/sse/", "/tools/", "/metrics/"]


@pytest.mark.parametrize("way", ["lane", "asgi", ON_FOUR])
@for_each("before", BEFORE)
async def test_no_path_spelling_reaches_a_file(before: str, way: str) -> None:
    server = Server("s", serve="all", settings=Settings())
    async with run_wire(server, way if way == FOUR else "lane") as wire:
        assert wire.running is not None
        for name in NAMES:
            peer: Peer = await wire.running.connect()
            await peer.send(f"GET {before}{name} HTTP/1.1\r\n{HEAD}\r\n".encode())
            status, headers = await peer.head()
            if headers.get(b"content-type", b"").startswith(b"text/event-stream"):
                assert before == "/mcp/sse/"  # there, the rest of the path is a client's name
                peer.writer.transport.abort()
                continue
            said = await peer.reader.read()
            peer.close()
            assert status < 500, name
            assert b"root:" not in said, name
            assert b'"""' not in said, name
            assert b"import " not in said, name
            if status == 200:
                assert name == "base.css?/../../pages.py&x", (before, name)


async def test_served_files_are_fixed_at_startup() -> None:
    assert all(path.count("..") == 0 and path.startswith(("/assets/", "/")) for path in pages())
    assert not any(path.endswith(".py") for path in pages())
