"""Run nginx, HAProxy, or Traefik in front of workers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from processes import ROOT, free_port, run_server
from programs import MISSING, find_program, needs

NGINX = find_program("nginx")
HAPROXY = find_program("haproxy")
TRAEFIK = ROOT / ".bench" / "traefik"
NEEDS_NGINX = needs("nginx")
NEEDS_HAPROXY = needs("haproxy")
_PLACES = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
# No keep-alive to backends: each request opens a connection, which any worker may accept.
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
def nginx(folder: Path, *backends: int, at: str = "", host: str = "$http_host") -> Iterator[int]:
    """Run nginx in front of backend ports and yield its port. It strips the path prefix `at`, such as ``/tools``, and
    passes `host` on.
    """
    assert NGINX is not None
    folder.mkdir(exist_ok=True)
    port = free_port()
    temporary = "".join(f"{each}_temp_path {folder}/{each};\n" for each in _PLACES)
    servers = " ".join(f"server 127.0.0.1:{each} max_fails=0;" for each in backends)
    below = "/" if at else ""
    site = _SITE % (servers, port, f"{at}/", below, host)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{ worker_connections 4096; }}\n"
        f"http {{ access_log off;\n{temporary}{site}}}\n"
    )
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with run_server(command, port, folder / "nginx.log"):
        yield port


@contextmanager
def nginx_site(folder: Path, site: str) -> Iterator[int]:
    """Run nginx with a site, and yield its port, which replaces port 80."""
    assert NGINX is not None
    folder.mkdir()
    port = free_port()
    temporary = "".join(f"{each}_temp_path {folder}/{each};\n" for each in _PLACES)
    site = site.replace("listen 80;", f"listen 127.0.0.1:{port};")
    user = "" if os.getuid() else "user root; "
    (folder / "nginx.conf").write_text(
        f"{user}daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off;\n{temporary}{site}}}\n"
    )
    with run_server([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")], port, folder / "nginx.log"):
        yield port


@contextmanager
def haproxy(folder: Path, configuration: str) -> Iterator[int]:
    """Run HAProxy and yield its port, which replaces port 80 in the configuration."""
    assert HAPROXY is not None
    folder.mkdir(exist_ok=True)
    port = free_port()
    assert "bind :80\n" in configuration
    path = folder / "haproxy.cfg"
    path.write_text(configuration.replace("bind :80\n", f"bind 127.0.0.1:{port}\n"))
    with run_server([HAPROXY, "-db", "-f", str(path)], port, folder / "haproxy.log"):
        yield port


@contextmanager
def traefik(folder: Path, static: str, routes: str) -> Iterator[int]:
    """Run Traefik and yield its port, which replaces port 80 in the static configuration."""
    if not TRAEFIK.exists():
        pytest.skip(f"{MISSING}traefik")
    port = free_port()
    for old, new in ((":80", f"127.0.0.1:{port}"), ("/etc/traefik", str(folder))):
        assert old in static
        static = static.replace(old, new)
    (folder / "traefik.yaml").write_text(static)
    (folder / "millstream.yaml").write_text(routes)
    command = [str(TRAEFIK), f"--configFile={folder}/traefik.yaml"]
    with run_server(command, port, folder / "traefik.log"):
        yield port
