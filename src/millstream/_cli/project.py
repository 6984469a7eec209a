"""``millstream init``: create a project.

A project has a server and a passing test, and is created without network access. Templates are examples: the wheel has
them in `_templates`, a clone in `examples`.
"""

import json as json_module
import re
import shlex
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from millstream._app.server_process import CommandError
from millstream._cli.program import Json
from millstream._cli.tables import print_json, print_text
from millstream._version import __version__

_SERVER = '''\
"""{title}: an MCP server."""

from millstream import Server

mcp = Server("{name}")


@mcp.tool
def greet(name: str) -> str:
    """Greet a person."""
    return f"Hello, {{name}}!"


@mcp.resource("greeting://{{name}}")
def greeting(name: str) -> str:
    """The greeting of one person."""
    return greet(name)


if __name__ == "__main__":
    mcp.run({run})
'''
_TEST = '''\
"""Tests of the server through a client in memory, without a port or process."""

import asyncio

import server
from millstream import Client


def test_greets_by_name() -> None:
    async def talk() -> str:
        async with Client(server.mcp) as client:
            return await client.call("greet", name="Ada", result_type=str)

    assert asyncio.run(talk()) == "Hello, Ada!"
'''
_PROJECT = """\
[project]
name = "{package}"
version = "0.1.0"
description = "An MCP server."
requires-python = ">=3.11"
dependencies = {dependencies}

[dependency-groups]
dev = ["pytest>=9"]

[tool.pytest.ini_options]
pythonpath = ["."]
"""
_README = """\
# {title}

An MCP server. `server.py` has the tools; `test_server.py` tests them.

| command | what it does |
|---|---|
| `millstream dev server.py` | serve it while you write it, and open a page to try it |
{start}
| `millstream install server.py --client claude` | add it to an application; `millstream install --help` lists them |
| `pytest` | run the tests |

`pip install {own} pytest` installs both programs. With uv, run `uv sync`, and put `uv run` before each command.
"""
_STARTS = {
    "http": "| `millstream run server.py` | serve it at http://127.0.0.1:8000/mcp |",
    "stdio": "| `millstream run server.py --transport stdio` | serve over stdio, as desktop applications start it |",
}
_PACKAGE = Path(__file__).resolve().parents[1]
Template = Literal["agent", "broadcast", "deploy", "greet", "math", "mounted", "orders"]
_EXAMPLES: dict[str, str] = {"agent": "time_agent", "deploy": "../deploy", "math": "streaming_math"}
"""Template -> its folder in `examples`, unless that has the same name."""
_IGNORED = """\
.env
.pytest_cache/
.venv/
__pycache__/
certs/
state/
"""


def init(
    folder: Annotated[Path | None, Parameter(name="DIR")] = None,
    /,
    *,
    http: Annotated[bool, Parameter(negative="--stdio", show_default=False)] = True,
    name: str = "",
    template: Template | None = None,
    json: Json = False,
) -> None:
    """Create a new project: a server, a passing test, and their dependencies.

    Existing files aren't overwritten.

    **Examples**

    - `millstream init shop`

    - `millstream init --stdio`: in this folder, for a desktop application

    - `millstream init news --template broadcast`: an event stream, a WebSocket, and pages

    - `millstream init shop --template deploy`: files for Docker, Compose, systemd, and Kubernetes

    Args:
        folder: Folder for the project, by default this one, or a new one for a template.
        http: Serve HTTP (the default), or communicate with the program that starts it.
        name: Name of the server. [default: the folder]
        template: A whole system to start from, instead of a single server.
    """
    if template and not http:
        raise CommandError("--stdio and --template can't be combined.", fix="Leave out one of them.")
    folder = folder or Path(template or "")
    if folder.is_file():
        raise CommandError(f"{folder} is a file, not a folder.", fix="Use another folder: millstream init DIR")
    server_name = name or folder.resolve().name or "server"
    files = copy_template(server_name, template) if template else project(server_name, "http" if http else "stdio")
    existing = [each for each in files if (folder / each).exists()]
    if existing:
        raise CommandError(
            f"{folder.resolve()} already has {', '.join(existing)}.",
            why="Nothing was written, so that your files aren't overwritten.",
            fix="Use another folder: millstream init DIR",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for each, text in files.items():
            (folder / each).parent.mkdir(parents=True, exist_ok=True)
            (folder / each).write_text(text, "utf-8", newline="\n")
    except OSError as exc:
        raise CommandError(f"{exc.filename} can't be written: {exc.strerror}.") from exc
    if json:
        print_json({"folder": str(folder.resolve()), "name": server_name, "files": list(files)})
        return
    print_text(f"Created {server_name} in {folder.resolve()}: {', '.join(files)}.")
    change_folder = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    if template:
        print_text(f"Next: {change_folder}pip install -r requirements.txt. README.md explains how to start it.")
    else:
        print_text(f"Next: {change_folder}millstream dev server.py")


def copy_template(name: str, template: str) -> dict[str, str]:
    """Return the files of a template, with the requirements in a project file as well, for uv: name -> text."""
    source = _PACKAGE / "_templates" / template
    if not source.is_dir():
        source = _PACKAGE.parents[1] / "examples" / _EXAMPLES.get(template, template)
    files = {
        path.relative_to(source).as_posix(): path.read_text("utf-8")
        for path in sorted(source.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and path.name != ".env" and path.parent.name != "certs"
    }
    if template == "deploy":  # files for a clone of the repository, where the image is built from its source
        own = {each.removeprefix("project/"): text for each, text in files.items() if each.startswith("project/")}
        rest = {each: text for each, text in files.items() if not each.startswith("project/")}
        files = {each: text.replace("deploy/", "").replace(": ..", ": .") for each, text in rest.items()} | own
    required = re.sub(
        r"^millstream(\[.*?\])?$", lambda found: _require(found[1] or ""), files["requirements.txt"], flags=re.MULTILINE
    )
    files["requirements.txt"] = required
    return {
        **files,
        "pyproject.toml": _project_file(name, required.strip().splitlines()),
        ".gitignore": _IGNORED,
    }


def _require(extras: str = "") -> str:
    """Return the requirement of this Millstream: its version, or the address that it was installed from (PEP 610).

    Without a release, a project can't require a version.
    """
    origin: dict[str, Any] = {}
    with suppress(PackageNotFoundError):
        origin = json_module.loads(distribution("millstream").read_text("direct_url.json") or "{}")
    if not origin:
        return f"millstream{extras}>={__version__.partition('+')[0]}"
    vcs = origin.get("vcs_info")
    address = f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}" if vcs else origin["url"]
    return f"millstream{extras} @ {address}"


def _project_file(name: str, requirements: list[str]) -> str:
    package = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "server"
    return _PROJECT.format(package=package, dependencies=json_module.dumps(requirements))


def project(name: str, transport: str) -> dict[str, str]:
    """Return the files of a new project: name -> text."""
    quoted = json_module.dumps(name)[1:-1]
    own = _require()
    title = " ".join(name.split())
    return {
        "server.py": _SERVER.format(
            title=quoted, name=quoted, run="" if transport == "http" else f'transport="{transport}"'
        ),
        "test_server.py": _TEST,
        "pyproject.toml": _project_file(name, [own]),
        "README.md": _README.format(title=title, start=_STARTS[transport], own=shlex.quote(own.partition(">=")[0])),
        ".gitignore": _IGNORED,
    }
