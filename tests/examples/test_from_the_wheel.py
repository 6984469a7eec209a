"""Run the examples from the wheel in an empty environment, with the commands of their README or docstring.

`pip` is uv's, with the versions of the lock file and the wheel of this tree; otherwise the environments have no access
to this one.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec import Struct

from patience import WAIT
from processes import ROOT, free_port, run_server

pytestmark = pytest.mark.server

EXAMPLES = ROOT / "examples"
KEY = "my_secret_key"


class Example(Struct):
    """One example: the lines that its text tells people to type, and what they see."""

    text: str
    """File below the example's folder that has the lines, in its docstring or as Markdown."""
    install: str
    start: str
    calls: Sequence[tuple[str, str]]
    """Lines to type while it runs, and what each prints. PORT is replaced by the server's port."""
    options: str = ""
    """What we add to `start`, because port 8000 may be taken here."""
    ports: int = 1
    key: str = ""
    """What MCP_SERVER_AUTH_KEY is set to."""


FOLDERS = {
    "time_agent": Example(
        text="README.md",
        install="pip install -r requirements.txt",
        start="python3 mcp_server.py --auth-key my_secret_key",
        options=" --port PORT",
        calls=[("millstream call http://127.0.0.1:PORT/mcp get_current_time --auth my_secret_key", "T")],
    ),
    "broadcast": Example(
        text="main.py",
        install="pip install -r requirements.txt",
        start="python main.py",
        calls=[
            (
                "millstream call http://127.0.0.1:PORT/mcp send_sse_message message=Hello",
                "Sent to 0 listeners on this worker.",
            ),
            ("python websocket_client.py ws://127.0.0.1:PORT/ws", '"type":"event"'),
        ],
    ),
    "streaming_math": Example(
        text="README.md",
        install="pip install -r requirements.txt",
        start="python mcp_server_add_http.py",
        options=" --port PORT",
        calls=[("python mcp_client_http.py http://127.0.0.1:PORT", "15")],
    ),
    "greet": Example(
        text="servernetwork.py",
        install="pip install millstream",
        start="python servernetwork.py",
        options=" --port PORT",
        calls=[("python clientnetwork.py http://127.0.0.1:PORT/sse", "Hello")],
    ),
    "mounted": Example(
        text="main.py",
        install="pip install -r requirements.txt",
        start="uvicorn main:app",
        options=" --port PORT",
        calls=[
            ("python client.py http://127.0.0.1:PORT", "hello"),
            ("sh stateless.sh http://127.0.0.1:PORT", "hello"),
            ("sh stateful.sh http://127.0.0.1:PORT", "10"),
        ],
    ),
    "orders": Example(
        text="README.md",
        install="pip install millstream",
        start="python start.py",
        ports=5,
        key=KEY,
        calls=[("millstream call http://127.0.0.1:PORT2/mcp place_order user=ada item=tea copies=2", "tea")],
    ),
}


class Environment:
    """An environment in which nothing is installed yet."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        run([sys.executable, "-m", "uv", "venv", "--quiet", "--no-project", "--python", sys.executable, folder])
        self.bin = folder / "bin"
        pins = re.findall(r"^[\w.-]+==[^ ;\\]+", (ROOT / "requirements" / "test.lock").read_text("utf-8"), re.MULTILINE)
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join([*pins, f"millstream @ {wheel.as_uri()}"]))
        pip = self.bin / "pip"
        pip.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m uv --quiet pip "$@" --python "{self.bin}/python"\n')
        pip.chmod(0o755)
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "XDG_STATE_HOME") if name in os.environ}
        self.variables = {
            **kept,
            "PATH": f"{self.bin}{os.pathsep}/usr/local/bin{os.pathsep}/usr/bin{os.pathsep}/bin",
            "UV_CONSTRAINT": str(constraints),
        }

    def type(self, line: str, folder: Path) -> str:
        """Type a line in a shell, and return what it prints. Only pip sees how this machine reaches packages."""
        variables = {**os.environ, **self.variables} if line.startswith("pip ") else self.variables
        return run(["sh", "-c", line], folder, variables)


def run(command: Sequence[str | Path], folder: Path = ROOT, variables: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=10 * WAIT, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", out, ROOT])
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel, without extras."""
    folder = tmp_path_factory.mktemp("base")
    environment = Environment(folder / "venv", wheel)
    environment.type("pip install millstream", folder)
    return environment


def words_of(path: Path) -> str:
    text = path.read_text("utf-8")
    return text if path.suffix == ".md" else ast.get_docstring(ast.parse(text)) or ""


@pytest.mark.parametrize("name", FOLDERS)
def test_example_runs_as_its_text_says(name: str, wheel: Path, tmp_path: Path) -> None:
    example = FOLDERS[name]
    folder = tmp_path / name
    shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = words_of(folder / example.text)
    assert example.install in text
    assert example.start in text
    environment = Environment(tmp_path / "venv", wheel)
    environment.type(example.install, folder)
    if example.key:
        environment.variables["MCP_SERVER_AUTH_KEY"] = example.key
    ports = [free_port() for _ in range(example.ports)]
    numbered = " ".join(map(str, ports)) if example.ports > 1 else ""
    start = f"exec {example.start} {numbered}{example.options.replace('PORT', str(ports[0]))}"
    variables = (
        {**environment.variables, "MILLSTREAM_PORT": str(ports[0])} if example.ports == 1 else environment.variables
    )
    command = [
        "env",
        "-i",
        "-C",
        str(folder),
        *(f"{key}={value}" for key, value in variables.items()),
        "sh",
        "-c",
        start,
    ]
    with ExitStack() as stack:
        stack.enter_context(run_server(command, ports[0], tmp_path / "log"))
        for line, printed in example.calls:
            filled = re.sub(r"PORT(\d?)", lambda match: str(ports[int(match[1] or 0)]), line)
            assert printed in environment.type(filled, folder), line


def test_programs_list_their_tools_as_their_docstrings_say(base: Environment, tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    found: dict[str, str] = {}
    for path in sorted(EXAMPLES.glob("*.py")):
        words = words_of(path)
        if path.name == "consul.py":
            continue  # it needs an agent, which test_consul.py has
        if re.search(rf"millstream (?:run|dev) (?:examples/)?{path.name}", words):
            install = re.search(r"``(pip install .*?)``", words)
            found[path.name] = install[1] if install else ""
    assert "greet.py" in found
    for name in sorted(found, key=found.__getitem__):  # first those that need nothing else
        if found[name]:
            base.type(found[name], folder)
        base.type(f"millstream list {name}", folder)
    assert base.type("millstream call greet.py greet name=Ada", folder) == "Hello, Ada!\n"
