import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest

from millstream.client import Client
from patience import WAIT
from processes import ROOT, free_port, run_command, run_server
from proxies import NEEDS_NGINX, nginx_site
from redis_parts import RedisServer, shared_servers

pytestmark = [
    pytest.mark.server,
    NEEDS_NGINX,
]
SITE = (ROOT / "examples" / "nginx.conf").read_text("utf-8")
GUARD = re.compile(r"    location ~ .*?\n    }\n", re.DOTALL)
HERE_ONLY = ["/dashboard", "/chat", "/inspect", "/metrics", "/dashboard/audit", "/dashboard/events"]


@contextmanager
def nginx(folder: Path, site: str, backend: int) -> Iterator[int]:
    """Start nginx with the site of the example; yield its port."""
    with nginx_site(folder, site.replace("127.0.0.1:8000", f"127.0.0.1:{backend}")) as port:
        yield port


def status(port: int, path: str, body: bytes | None = None) -> int:
    """Return the status of a request to the public name."""
    headers = {"host": "mcp.example.com", "content-type": "application/json", "accept": "application/json"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
    try:
        with urllib.request.urlopen(asked, timeout=WAIT) as reply:  # noqa: S310  a loopback address
            return int(reply.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


@pytest.mark.parametrize(
    ("site", "refusal", "workers"),
    [(SITE, 404, 1), (GUARD.sub("", SITE), 403, 1), (GUARD.sub("", SITE), 403, 4)],
    ids=["the example", "an example without its location", "the same in front of four workers"],
)
def test_loopback_only_paths_are_rejected_behind_nginx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str, refusal: int, workers: int
) -> None:
    monkeypatch.setenv("MILLSTREAM_ALLOWED_HOSTS", "mcp.example.com")
    backend = free_port()
    store = shared_servers(RedisServer).url if workers > 1 else "memory://"
    options = ("--serve", "all", "--workers", str(workers), "--store", store)
    command = run_command("examples/greet.py", backend, *options)
    with run_server(command, backend, tmp_path / "log"), nginx(tmp_path / "nginx", site, backend) as port:
        assert {path: status(port, path) for path in HERE_ONLY} == dict.fromkeys(HERE_ONLY, refusal)
        assert status(port, "/publish", b'{"data":1}') == refusal
        assert status(port, "/docs") == 200
        assert status(port, "/mcp", b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}') == 200


@pytest.mark.parametrize("host", ["$http_host", "$host"])
def test_users_sign_in_behind_nginx_on_another_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("MILLSTREAM_ALLOWED_HOSTS", "mcp.example.com")
    key, backend = "k" * 20, free_port()
    command = run_command("examples/greet.py", backend, "--serve", "all", "--auth", key)
    site = GUARD.sub("", SITE).replace("$http_host", host)
    with run_server(command, backend, tmp_path / "log"), nginx(tmp_path / "nginx", site, backend) as port:
        form = urlencode({"key": key, "next": "/dashboard"}).encode()
        headers = {
            "host": f"127.0.0.1:{port}", "origin": f"http://127.0.0.1:{port}", "sec-fetch-site": "same-origin",
            "sec-fetch-mode": "navigate", "sec-fetch-dest": "document", "accept": "text/html",
            "content-type": "application/x-www-form-urlencoded",
        }  # fmt: skip
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/sign-in", form, headers)
        with browser.open(asked, timeout=WAIT) as page:  # it follows the redirect
            assert (page.status, page.url.rpartition("/")[2]) == (200, "dashboard")


async def test_websockets_pass_nginx(tmp_path: Path) -> None:
    backend = free_port()
    command = run_command("examples/greet.py", backend, "--serve", "hub")
    with run_server(command, backend, tmp_path / "log"), nginx(tmp_path / "nginx", SITE, backend) as port:
        async with Client(f"ws://127.0.0.1:{port}/ws") as client:
            assert (await client.call("greet", {"name": "Ada"})).text == "Hello, Ada!"
