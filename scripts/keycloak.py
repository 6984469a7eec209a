"""Sign in to a Millstream server with a real Keycloak, as the guide describes: ``keycloak.py FOLDER``.

FOLDER is an unpacked distribution of Keycloak. The script starts it on a free port with its defaults, enters what the
guide "Sign in with Keycloak" says, and lets a client sign in. It prints what each step shows, and fails at the first
difference. It needs Java, and its first start takes minutes, so it isn't part of the tests.
"""

import asyncio
import contextlib
import html
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from millstream import Client
from millstream.client import MemoryTokenStore, OAuth, Options

PASSWORD = "correct horse battery"  # noqa: S105  of a server that lasts a minute
PROGRAM = '''
import os
from millstream import Context, Server, auth

mcp = Server("notes", auth=auth.oidc(
    os.environ["ISSUER"], audience=os.environ["AUDIENCE"], resource=os.environ["URL"],
    scope_claims=["scope", "realm_access.roles"], client_ids=os.environ.get("CLIENTS", "").split(),
))

@mcp.tool
async def who(ctx: Context) -> str:
    """Return the caller."""
    claims = ctx.principal.claims
    return f"{claims['preferred_username']} {claims['aud']} {sorted(ctx.principal.scopes & {'mcp', 'offline_access'})}"
'''


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ask(method: str, url: str, body: bytes | None = None, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send a request, without following redirects."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    with contextlib.closing(connection):
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()


@contextlib.contextmanager
def running(words: list[str], folder: Path, port: int, path: str, **environ: str) -> Iterator[None]:
    """Run a server, and wait until it responds at a path."""
    log = folder / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(words, cwd=folder, env={**os.environ, **environ}, stdout=out, stderr=out)
    try:
        for _ in range(4000):
            with contextlib.suppress(OSError, http.client.HTTPException):
                if ask("GET", f"http://127.0.0.1:{port}{path}")[0] < 500:
                    break
            if process.poll() is not None:
                raise SystemExit(log.read_text("utf-8")[-3000:])
            time.sleep(0.2)
        else:
            raise SystemExit(log.read_text("utf-8")[-3000:])
        yield
    finally:
        process.terminate()
        process.wait(120)


class Keycloak:
    """The administration of a running Keycloak."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        form = {"grant_type": "password", "client_id": "admin-cli", "username": "admin", "password": PASSWORD}
        place = f"{self.base}/realms/master/protocol/openid-connect/token"
        reply = ask("POST", place, urlencode(form).encode(), content_type="application/x-www-form-urlencoded")
        self._token = json.loads(reply[2])["access_token"]

    def enter(self, path: str, values: Any, method: str = "POST") -> str:
        """Create or change something, and return its id."""
        status, headers, body = ask(
            method, f"{self.base}/admin/realms{path}", json.dumps(values).encode(),
            authorization=f"Bearer {self._token}", content_type="application/json",
        )  # fmt: skip
        if status not in (201, 204):
            raise SystemExit(f"{method} {path}: {status} {body!r}")
        return (headers["location"] or "").rpartition("/")[2]

    def find(self, path: str) -> Any:
        """Return what's at a path."""
        return json.loads(ask("GET", f"{self.base}/admin/realms{path}", authorization=f"Bearer {self._token}")[2])


def visit(url: str) -> str:
    """Sign in on Keycloak's page, consent, and return the redirect to the client."""
    jar: dict[str, str] = {}
    form: dict[str, str] | None = None
    for _ in range(6):
        more = {"cookie": "; ".join(f"{name}={value}" for name, value in jar.items())} if jar else {}
        if form is not None:
            more["content_type"] = "application/x-www-form-urlencoded"
        status, headers, body = ask(
            "GET" if form is None else "POST", url, None if form is None else urlencode(form).encode(), **more
        )
        for line in headers.get_all("set-cookie") or ():
            jar |= {name: each.value for name, each in SimpleCookie(line).items()}
        if status in (302, 303):
            url, form = headers["location"], None
            if "/callback" in url:
                return url
            continue
        text = body.decode()
        action = re.search(r'<form[^>]*action="([^"]+)"', text)
        if action is None:
            raise SystemExit(text[:2000])
        url = html.unescape(action[1])
        if not url.startswith("http"):
            url = f"http://{urlsplit(jar.get('base', '')).netloc or BASE}{url}"
        form = {"username": "ada", "password": PASSWORD} if 'name="password"' in text else {"accept": "Yes"}
        hidden = re.findall(r'<input[^>]*type="hidden"[^>]*name="([^"]+)"[^>]*value="([^"]*)"', text)
        form |= dict(hidden)
    raise AssertionError("The sign-in doesn't end.")


BASE = ""


async def sign_in(url: str, **options: Any) -> str:
    """Sign in as a client, and return what the tool says."""

    async def person(link: str) -> str:
        return await asyncio.to_thread(visit, link)

    issuer = options.pop("issuer", "")
    oauth = OAuth(store=MemoryTokenStore(), redirect_handler=person, **options)
    if issuer:
        oauth.for_issuer(issuer)
    async with Client(url, options=Options(auth=oauth)) as client:
        return (await client.call("who")).text


def main(distribution: Path) -> None:
    """Run the guide."""
    global BASE  # noqa: PLW0603  one run
    folder = Path(tempfile.mkdtemp(prefix="millstream-keycloak-"))
    port, own = free_port(), free_port()
    BASE = f"127.0.0.1:{port}"
    url = f"http://127.0.0.1:{own}/mcp"
    start = ["sh", str(distribution / "bin/kc.sh"), "start-dev", f"--http-port={port}", "--http-host=127.0.0.1"]
    admin = {"KC_BOOTSTRAP_ADMIN_USERNAME": "admin", "KC_BOOTSTRAP_ADMIN_PASSWORD": PASSWORD, "KC_DB": "dev-mem"}
    try:
        with running(start, folder, port, "/realms/master", **admin):
            keycloak = Keycloak(port)
            keycloak.enter("", {"realm": "team", "enabled": True})
            keycloak.enter("/team/users", {
                "username": "ada", "enabled": True, "email": "ada@example.com", "emailVerified": True,
                "firstName": "Ada", "lastName": "L", "credentials": [{"type": "password", "value": PASSWORD}],
            })  # fmt: skip
            keycloak.enter("/team/clients", {
                "clientId": "desk", "publicClient": True, "redirectUris": ["http://127.0.0.1:8765/callback"],
            })  # fmt: skip
            issuer = f"http://127.0.0.1:{port}/realms/team"
            (folder / "app.py").write_text(PROGRAM, "utf-8")
            serve = [sys.executable, "-m", "millstream", "run", "app.py", "--port", str(own)]
            known = {"client_id": "desk", "issuer": issuer}
            with running(serve, folder, own, "/livez", ISSUER=issuer, URL=url, AUDIENCE="account", CLIENTS="desk"):
                print("as it is:", asyncio.run(sign_in(url, **known)))
            scope = keycloak.enter("/team/client-scopes", {
                "name": "mcp", "protocol": "openid-connect", "attributes": {"include.in.token.scope": "true"},
            })  # fmt: skip
            keycloak.enter(f"/team/client-scopes/{scope}/protocol-mappers/models", {
                "name": "audience", "protocol": "openid-connect", "protocolMapper": "oidc-audience-mapper",
                "config": {"included.custom.audience": url, "access.token.claim": "true"},
            })  # fmt: skip
            keycloak.enter(f"/team/default-default-client-scopes/{scope}", {}, "PUT")
            (desk,) = keycloak.find("/team/clients?clientId=desk")
            keycloak.enter(f"/team/clients/{desk['id']}/default-client-scopes/{scope}", {}, "PUT")
            with running(serve, folder, own, "/livez", ISSUER=issuer, URL=url, AUDIENCE=url):
                print("with the mapper:", asyncio.run(sign_in(url, **known)))
                try:
                    print("a client that registers:", asyncio.run(sign_in(url)))
                except Exception as exc:  # the person sees it
                    print("a client that registers:", type(exc).__name__, exc)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
