"""Proxies in front of workers, and other programs that a test runs beside its server."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from processes import free_port, run_server

_PATH = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
NGINX = shutil.which("nginx", path=_PATH)
HAPROXY = shutil.which("haproxy", path=_PATH)


def _needs(program: str, found: str | None) -> pytest.MarkDecorator:
    """Where it's missing the test is skipped, in CI it fails."""
    why = f"{program} is not installed; make test installs it where it may"
    return pytest.mark.skipif(found is None and not os.environ.get("CI"), reason=why)


NEEDS_NGINX = _needs("nginx", NGINX)
NEEDS_HAPROXY = _needs("haproxy", HAPROXY)
# Without connections that are kept: each request is a new one, and the kernel gives it to any worker.
_SITE = """
upstream workers { %s }
server {
    listen 127.0.0.1:%d;
    client_max_body_size 16m;
    location %s {
        proxy_pass http://workers%s;
        proxy_http_version 1.1;
        proxy_set_header Host %s;
        proxy_set_header Connection "";
        proxy_buffering off;
        proxy_request_buffering off;
        proxy_read_timeout 1h;
    }
}
"""


@contextmanager
def nginx(folder: Path, *backends: int, at: str = "") -> Iterator[int]:
    """nginx in front of ports, in turns; gives its own. It removes the path prefix `at` from requests: ``/tools``."""
    assert NGINX is not None
    folder.mkdir(exist_ok=True)
    port = free_port()
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{each}_temp_path {folder}/{each};\n" for each in places)
    servers = " ".join(f"server 127.0.0.1:{each} max_fails=0;" for each in backends)
    below = "/" if at else ""
    site = _SITE % (servers, port, f"{at}/", below, "$http_host" if at else "$host")
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{ worker_connections 4096; }}\n"
        f"http {{ access_log off;\n{temporary}{site}}}\n"
    )
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with run_server(command, port, folder / "nginx.log"):
        yield port


@contextmanager
def haproxy(folder: Path, configuration: str) -> Iterator[int]:
    """haproxy with a configuration that binds port 80 and talks to ports of this machine; gives its port."""
    assert HAPROXY is not None
    folder.mkdir(exist_ok=True)
    port = free_port()
    assert "bind :80\n" in configuration
    path = folder / "haproxy.cfg"
    path.write_text(configuration.replace("bind :80\n", f"bind 127.0.0.1:{port}\n"))
    with run_server([HAPROXY, "-db", "-f", str(path)], port, folder / "haproxy.log"):
        yield port
