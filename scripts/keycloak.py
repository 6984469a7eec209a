"""Sign in to a Millstream server with a real Keycloak, as the guide describes: ``keycloak.py FOLDER``.

FOLDER is an unpacked distribution of Keycloak. The script starts it on a free port with its defaults, enters the values
of the guide "Sign-in providers", and lets a client sign in. It prints the result of each step, and fails at the
first difference. It needs Java.
"""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "interop"))

from person import visit  # noqa: E402  a helper of the tests

from millstream import Client  # noqa: E402
from millstream.client import MemoryTokenStore, OAuth, Options  # noqa: E402

BACK = "http://127.0.0.1:8765/callback"

PASSWORD = "correct horse"  # noqa: S105  of a server that lasts a minute
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
        """Return the object at a path."""
        return json.loads(ask("GET", f"{self.base}/admin/realms{path}", authorization=f"Bearer {self._token}")[2])


async def sign_in(url: str, **options: Any) -> str:
    """Sign in as a client, and return the tool's result."""

    async def person(link: str) -> str:
        return await asyncio.to_thread(visit, link, BACK)

    issuer = options.pop("issuer", "")
    oauth = OAuth(store=MemoryTokenStore(), redirect_handler=person, redirect_uri=BACK, **options)
    if issuer:
        oauth.for_issuer(issuer)
    async with Client(url, options=Options(auth=oauth)) as client:
        return (await client.call("who")).text


@contextlib.contextmanager
def realm(distribution: Path) -> Iterator[tuple[Keycloak, str]]:
    """Run Keycloak with the realm, the person, and the client of the guide, and yield it and the issuer."""
    port = free_port()
    start = ["sh", str(distribution / "bin/kc.sh"), "start-dev", f"--http-port={port}", "--http-host=127.0.0.1"]
    admin = {"KC_BOOTSTRAP_ADMIN_USERNAME": "admin", "KC_BOOTSTRAP_ADMIN_PASSWORD": PASSWORD, "KC_DB": "dev-mem"}
    with (
        tempfile.TemporaryDirectory(prefix="millstream-keycloak-") as folder,
        running(start, Path(folder), port, "/realms/master", **admin),
    ):
        keycloak = Keycloak(port)
        keycloak.enter("", {"realm": "team", "enabled": True})
        keycloak.enter("/team/users", {
            "username": "ada", "enabled": True, "email": "ada@example.com", "emailVerified": True,
            "firstName": "Ada", "lastName": "L", "credentials": [{"type": "password", "value": PASSWORD}],
        })  # fmt: skip
        keycloak.enter("/team/clients", {
            "clientId": "desk", "publicClient": True, "redirectUris": [BACK, "http://localhost:*"],
        })  # fmt: skip
        yield keycloak, f"http://127.0.0.1:{port}/realms/team"


def main(distribution: Path) -> None:
    """Run the guide."""
    folder = Path(tempfile.mkdtemp(prefix="millstream-notes-"))
    own = free_port()
    url = f"http://127.0.0.1:{own}/mcp"
    try:
        with realm(distribution) as (keycloak, issuer):
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
                except Exception as exc:  # the person sees this text
                    print("a client that registers:", type(exc).__name__, exc)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
