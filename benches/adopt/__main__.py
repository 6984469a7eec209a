"""`make adopt`: published servers run unchanged behind Millstream, and offer the same as on their own.

Each has its own environment in .adopt/, created when it's first needed. A server runs in up to two ways: its command as
an upstream, and its server object in our process. Both ways must return the original's lists, on stdio and over
Streamable HTTP in both eras, and the same result for one call. Parts of tool schemas that clients reject are printed.

``python -m benches.adopt [WORD …]`` runs the servers whose package has one of the words in its name.
"""

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from benches.environments import make_environment
from benches.processes import free_port
from millstream import Client
from millstream._protocol.metadata import ORIGIN_KEY
from tests.support.client_restrictions import refused

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".adopt"
PAGE = ROOT / "docs" / "contributing" / "tested.md"
WAIT = 120.0
ERAS = ("2025-11-25", "2026-07-28")
LISTS = ("tools/list", "resources/list", "resources/templates/list", "prompts/list")
VOLATILE = ("_meta", "resultType", "ttlMs", "cacheScope")
"""Members of results in which revisions differ."""

ROWS = re.compile(r"(?<=<!-- The rows are written by make adopt. -->\n\n)((?:\|.*\n){2})(?:\|.*\n)*")
"""The table of published servers on the page, with its two lines of header."""


class Call(Struct):
    """One call of a tool."""

    tool: str
    arguments: dict[str, Any]
    expect: str = ""
    """Text that the result contains."""


class Server(Struct, rename={"more": "with"}):
    """A published server."""

    package: str
    command: list[str]
    call: Call
    more: list[str] = []
    """Requirements missing from its metadata."""
    program: str = ""
    """A file with its server object, or empty if the package has none."""
    environment: dict[str, str] = {}
    note: str = ""
    """Why it has no object, or why the object is rejected."""

    @property
    def name(self) -> str:
        """Name of the package, without the version."""
        return self.package.partition("==")[0]

    @property
    def home(self) -> Path:
        """Folder of its environment."""
        return CACHE / self.name

    @property
    def bin(self) -> Path:
        """The programs of its environment."""
        return self.home / "bin"


class Servers(Struct):
    """The file of servers."""

    server: list[Server]


def library_of(server: Server) -> str:
    """Return the library that a server is written for, with its version."""
    found = {
        each.name.lower(): each.version
        for each in metadata.distributions(path=[str(path) for path in server.home.glob("lib/python*/site-packages")])
    }
    name = "fastmcp" if "fastmcp" in found else "mcp"
    return f"{name} {found[name]}"


class Workplace:
    """The folder and the variables in which one server runs."""

    def __init__(self, server: Server, folder: Path) -> None:
        subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
        self.server = server
        self.folder = folder
        self.environment: dict[str, str] = {
            "PATH": f"{server.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": str(folder),
            "PYTHONHASHSEED": "0",  # some lists were sets
            **{name: self.fill(value) for name, value in server.environment.items()},
        }
        self.command: list[str] = [str(server.bin / server.command[0]), *map(self.fill, server.command[1:])]

    def fill(self, value: Any) -> Any:
        """Return a value with the name of the folder for ``{folder}``."""
        return value.replace("{folder}", str(self.folder)) if isinstance(value, str) else value

    @contextlib.asynccontextmanager
    async def run(self, target: str) -> AsyncIterator[str]:
        """Run ``millstream run TARGET`` in the server's environment, and yield the URL."""
        port = free_port()
        command = [str(self.server.bin / "millstream"), "run", target, "--port", str(port)]
        log = self.folder / "log"
        with log.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=self.folder, env={**os.environ, **self.environment}, stdout=sink, stderr=sink
            )
        try:
            await self._wait(process, port, log)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    @staticmethod
    async def _wait(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        async with asyncio.timeout(WAIT):
            while process.returncode is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return
                await asyncio.sleep(0.1)
        raise RuntimeError(f"doesn't start: {_last_lines(log)}")


def _last_lines(log: Path) -> str:
    return " ".join(log.read_text("utf-8", "replace").strip().splitlines()[-3:])


class Findings(Struct):
    """A server's lists, and the result of one call."""

    lists: dict[str, Any]
    result: dict[str, Any]


async def examine(target: Any, revision: str | None, server: Server, workplace: Workplace) -> Findings:
    """Return a server's lists, and the result of its call."""
    async with Client(target, revision=revision, timeout=WAIT) as client:
        lists: dict[str, Any] = {}
        for method in LISTS:
            capability = method.partition("/")[0]
            result = await client.request(method) if capability in client.capabilities else {}
            lists |= {
                name: [without_origin(item) for item in value]
                for name, value in result.items()
                if isinstance(value, list)
            }
        arguments = {name: workplace.fill(value) for name, value in server.call.arguments.items()}
        result = await client.request("tools/call", {"name": server.call.tool, "arguments": arguments})
    text = msgspec.json.encode(result.get("content")).decode()
    expected = workplace.fill(server.call.expect)
    if expected.lower() not in text.lower():
        raise RuntimeError(f"{server.call.tool} doesn't say {expected!r}: {text[:200]}")
    return Findings(
        {name: lists.get(name, []) for name in ("tools", "resources", "resourceTemplates", "prompts")},
        {name: value for name, value in result.items() if name not in VOLATILE},
    )


def without_origin(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item without the name of its upstream, which every gateway adds (docs/explanation/eras.md)."""
    meta = {name: value for name, value in item.get("_meta", {}).items() if name != ORIGIN_KEY}
    return {**{name: value for name, value in item.items() if name != "_meta"}, **({"_meta": meta} if meta else {})}


def differences(original: Any, found: Any, path: str = "") -> list[str]:
    """Return the differences between two values."""
    if isinstance(original, dict) and isinstance(found, dict):
        names = sorted({*original, *found})
        return [
            each
            for name in names
            for each in (
                differences(original[name], found[name], f"{path}.{name}")
                if name in original and name in found
                else [f"{path}.{name} {'is missing' if name in original else 'is new'}"]
            )
        ]
    if isinstance(original, list) and isinstance(found, list) and len(original) == len(found):
        return [
            each
            for at, pair in enumerate(zip(original, found, strict=True))
            for each in differences(*pair, f"{path}[{at}]")
        ]
    return [] if original == found else [f"{path}: {str(original)[:80]} became {str(found)[:80]}"]


def compare(original: Findings, found: Findings, server: Server) -> None:
    """Check that a server offers the same behind Millstream as on its own.

    Raises:
        RuntimeError: It doesn't. The text contains the first differences.
    """
    different = differences(original.lists, found.lists)
    if bool(original.result.get("isError")) != bool(found.result.get("isError")):
        different.append(f"{server.call.tool} gives {str(found.result)[:200]}")
    if different:
        raise RuntimeError(f"{len(different)} differences: {'; '.join(different[:3])}")


async def check(server: Server) -> tuple[list[str], int]:
    """Run one server in every way. Return its row of the table, and how many ways failed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workplace = Workplace(server, folder)
        entry = {"command": workplace.command[0], "args": workplace.command[1:], "cwd": name}
        alone = {"mcpServers": {"it": {**entry, "env": workplace.environment}}}
        originals = await originals_of(alone, server, workplace)
        lists = originals[ERAS[0]].lists
        for tool in lists["tools"]:
            for problem in refused(tool):
                print(f"  {tool['name']}: {problem}", flush=True)
        file = folder / "program.py"
        file.write_text(server.program, "utf-8")
        ways = {"command": f"env {shlex.join(workplace.command)}", "object": str(file) if server.program else ""}
        cells, failed = [], 0
        for way, target in ways.items():
            if not target:
                cells.append(server.note or "none")
                continue
            try:
                async with workplace.run(target) as url:
                    await wait_for_tools(url)
                    for era in ERAS:
                        compare(originals[era], await examine(url, era, server, workplace), server)
                cells.append("identical")
            except Exception as error:  # try the others as well
                failed += 1
                cells.append(f"FAILED: {way}: {type(error).__name__}: {error}")
        counts = (len(lists["tools"]), len(lists["resources"]) + len(lists["resourceTemplates"]), len(lists["prompts"]))
        return [server.name, library_of(server), *map(str, counts), *cells], failed


async def wait_for_tools(url: str) -> None:
    """Wait until a gateway has its upstream's lists."""
    async with asyncio.timeout(WAIT):
        while True:
            async with Client(url, timeout=WAIT) as client:  # a client that connects too early never asks for tools
                if await client.tools():
                    return


async def originals_of(target: Mapping[str, Any], server: Server, workplace: Workplace) -> dict[str, Findings]:
    """Return a server's own lists by era. If it supports only the older era, the same lists apply to both."""
    found = {ERAS[0]: await examine(target, ERAS[0], server, workplace)}
    async with Client(target, timeout=WAIT) as client:
        newest = client.revision
    found[ERAS[1]] = await examine(target, ERAS[1], server, workplace) if newest == ERAS[1] else found[ERAS[0]]
    return found


async def main(words: Sequence[str]) -> int:
    """Print a row for each server, write the page, and return how many ways failed."""
    CACHE.mkdir(exist_ok=True)
    servers = msgspec.convert(tomllib.loads((HERE / "servers.toml").read_text("utf-8")), Servers).server
    chosen = [each for each in servers if not words or any(word in each.package for word in words)]
    rows: list[list[str]] = []
    failed = 0
    for server in chosen:
        try:
            make_environment(server.home, [server.package, *server.more])
            row, failures = await check(server)
        except Exception as error:  # try the others as well
            row, failures = [server.name, "FAILED", f"{type(error).__name__}: {error}"], 1
        failed += failures
        rows.append(row)
        print(" | ".join(each[:300] for each in row), flush=True)
    print(f"{len(rows)} servers, {failed} failures")
    if not words and not failed:
        table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
        PAGE.write_text(ROWS.sub(lambda match: match[1] + table, PAGE.read_text("utf-8")), "utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    if shutil.which("git") is None:
        sys.exit("make adopt needs git.")
    sys.exit(asyncio.run(main(sys.argv[1:])))
