"""The pages for a first user, typed: into an empty folder, with the package installed from its wheel.

Nothing of the project is within reach but what the page has one write. The packages that pip would get from the index
are those of the tests' own environment.
"""

import asyncio
import json
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from docs_world import Shown, expect, shown
from patience import WAIT
from processes import ROOT, free_port, wait_for_port
from scripts.docs import blocks
from seeds.programs import running

pytestmark = pytest.mark.server

FOLDER = "/home/you/bookshop"
"""What the pages call the reader's folder."""
BEFORE = {"docs/how-to/test-your-server.md": "docs/tutorial.md", "docs/how-to/connect-a-client.md": "docs/tutorial.md"}
"""The page whose files a page goes on with."""
WRITTEN = {"python", "ini"}
INSTALLING = ("python3 -m venv .venv", ". .venv/bin/activate", "pip install ")
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the package from its wheel; what it needs comes from the environment of the tests."""
    home = tmp_path_factory.mktemp("installed")
    uv = [sys.executable, "-m", "uv", "--quiet", "--offline"]
    environment = home / ".venv"
    for arguments in (
        ["build", "--wheel", "--out-dir", str(home), str(ROOT)],
        ["venv", "--python", sys.executable, str(environment)],
        ["pip", "install", "--no-deps", "--python", str(environment), "--find-links", str(home), "millstream"],
    ):
        subprocess.run([*uv, *arguments], check=True, timeout=WAIT, cwd=home)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    return environment


class Reader:
    """Somebody who does what a page says, in a folder of their own."""

    def __init__(self, folder: Path, environment: Path) -> None:
        (folder / ".venv").symlink_to(environment)
        self.folder = folder
        self.port = free_port()
        self.environment = {"PATH": f"{environment / 'bin'}:/usr/bin:/bin", "HOME": str(folder)}

    def write(self, page: str) -> None:
        """Write the files of a page, each block behind the last one of its file."""
        if page in BEFORE:
            self.write(BEFORE[page])
        for block in blocks((ROOT / page).read_text("utf-8")):
            if block.language in WRITTEN:
                name = Path(block.source.partition("#")[0]).name
                with (self.folder / name).open("a", encoding="utf-8") as file:
                    file.write(f"{block.body}\n\n")

    def run(self, *command: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """A command that ends by itself."""
        return subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=WAIT, cwd=self.folder, check=False,
            env={**self.environment, **environment},
        )  # fmt: skip

    @contextmanager
    def serving(self, command: Sequence[str]) -> Iterator[None]:
        """A server, on a port that is free."""
        log = self.folder / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*command, "--port", str(self.port)], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            )  # fmt: skip
        try:
            wait_for_port(process, self.port, log)
            yield
        finally:
            process.terminate()
            process.wait(WAIT)

    def speaks_stdio(self, command: Sequence[str]) -> None:
        """A client that starts this command gets an answer."""
        here = [part.replace(FOLDER, str(self.folder)) for part in command]
        done = self.run(*here, given=f"{json.dumps(INITIALIZE)}\n")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["result"]["protocolVersion"] == "2025-11-25"

    async def get(self, url: str) -> str:
        """What curl prints for an address of a page."""
        done = await asyncio.to_thread(self.run, "curl", "-sf", url.replace(":8000", f":{self.port}"))
        assert done.returncode == 0, url
        return done.stdout


@pytest.fixture
def reader(tmp_path: Path, installed: Path) -> Reader:
    """Somebody with an empty folder."""
    return Reader(tmp_path, installed)


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
async def test_a_page_works_when_it_is_typed_into_an_empty_folder(reader: Reader, page: str) -> None:
    """A fixed defect: the tutorial raised NameError, and started a command that was not on the path yet."""
    reader.write(page)
    ready = False
    todo = [each for each in shown(ROOT / page) if not each.command.startswith(("make ", "claude "))]
    for at, each in enumerate(todo):
        command = shlex.split(each.command)
        if each.command.startswith(INSTALLING):
            ready = ready or each.command == "pip install millstream"
        elif command[0] == "millstream":
            assert ready, f"{page} says {each.command} before millstream is installed"
            if "stdio" in command:
                reader.speaks_stdio(command)
            else:
                with reader.serving(command):
                    await calls(reader, todo[at + 1 :])
                    if "web" in command:
                        assert "<title>Inspect</title>" in await reader.get("http://127.0.0.1:8000/inspect")
        else:
            assert command[0] == "curl", each.command


async def calls(reader: Reader, following: Sequence[Shown]) -> None:
    """The curl commands up to the next other one."""
    for each in following:
        if not each.command.startswith("curl "):
            return
        command = each.command.replace("127.0.0.1:8000", f"127.0.0.1:{reader.port}")
        async with running("bash", "-c", f"exec {command}") as program:
            await expect(program, each, reader.port)


def test_the_test_of_a_page_passes_with_the_plugins_that_the_page_installs(reader: Reader) -> None:
    """A fixed defect: the page had an async test, and no word of the plugin without which pytest refuses it."""
    page = "docs/how-to/test-your-server.md"
    reader.write(page)
    (install, test) = (each.command for each in shown(ROOT / page))
    plugins = [f"{name.replace('-', '_')}.plugin" for name in install.split()[2:] if name != "pytest"]
    done = reader.run(
        str(reader.folder / ".venv/bin/python"), "-P", "-m", test,
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTEST_PLUGINS=",".join(plugins),
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def configurations(value: Any) -> Iterator[dict[str, Any]]:
    """Every server that the configuration of a client names."""
    for each in value.values():
        yield from ([each] if {"command", "url"} & set(each) else configurations(each))


def test_every_client_of_the_page_gets_an_answer(reader: Reader) -> None:
    """A fixed defect: no page said how a client is connected. Each command is started, each URL served."""
    page = "docs/how-to/connect-a-client.md"
    reader.write(page)
    text = (ROOT / page).read_text("utf-8")
    servers = [each for b in blocks(text) if b.language == "json" for each in configurations(json.loads(b.body))]
    commands = [[each["command"], *each["args"]] for each in servers if "command" in each]
    urls = {each["url"] for each in servers if "url" in each}
    for each in shown(ROOT / page):
        words = shlex.split(each.command)
        if words[:3] == ["claude", "mcp", "add"] and "--" in words:
            commands.append(words[words.index("--") + 1 :])
        elif words[0] == "claude":
            urls.add(words[-1])
    assert len(commands) == 3
    assert urls == {"http://127.0.0.1:8000/mcp"}
    assert shlex.join(commands[0]) in {b.body.strip() for b in blocks(text)}
    for command in commands:
        reader.speaks_stdio(command)
    with reader.serving(["millstream", "run", "bookshop.py"]):
        done = reader.run("curl", "-sf", f"http://127.0.0.1:{reader.port}/mcp", "-H", "content-type: application/json",
                          "-d", json.dumps(INITIALIZE))  # fmt: skip
        assert json.loads(done.stdout)["result"]["serverInfo"]["name"] == "bookshop"


def test_a_new_project_passes_its_test_with_nothing_but_the_wheel(installed: Path, tmp_path: Path) -> None:
    """`millstream init` asks no network; the project's test needs pytest and no plugin."""
    for words in (["millstream", "init", "shop"], ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "shop"]):
        command = [str(installed / "bin" / words[0]), *words[1:]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
