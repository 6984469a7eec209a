"""Run the templates and examples from the wheel in empty environments, with the commands of their README or docstring.

`pip` is uv's, with the versions of the lock file and the wheel of this tree; otherwise the environments have no access
to this one.
"""

import ast
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec import Struct

from empty_environment import Environment, build_wheel, run
from examples_index import read_index, read_outputs
from patience import WAIT
from processes import ROOT, free_port, run_server
from property_settings import NIGHTLY
from reader_world import fits

pytestmark = pytest.mark.server

EXAMPLES = ROOT / "examples"
KEY = "my_secret_key"
CONFINED = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")


class Options(Struct):
    """What we add to a template's commands, because port 8000 may be taken here."""

    start: str = ""
    call: str = ""
    more: Sequence[tuple[str, str]] = ()
    """Further lines of its README to type while it runs, and what each prints. PORT is replaced by the port."""
    ports: int = 1
    key: str = ""
    """What MCP_SERVER_AUTH_KEY is set to."""


BUILD_FILES = ("pyproject.toml", "README.md", "LICENSE", "scripts/metadata.py")
"""What builds the package, beside its sources."""
INSTALL = "pip install -r requirements.txt"
SYSTEMS = {system.template: system for system in read_index()}
OUTPUTS = read_outputs()
"""What docs/examples.md shows."""
OPTIONS = {
    "agent": Options(start=" --port PORT"),
    "broadcast": Options(
        call=" ws://127.0.0.1:PORT/ws",
        more=[("python load.py http://127.0.0.1:PORT", "5,000 deliveries")],
    ),
    "math": Options(start=" --port PORT", call=" http://127.0.0.1:PORT"),
    "greet": Options(start=" --port PORT", call=" http://127.0.0.1:PORT/sse"),
    "mounted": Options(
        start=" --port PORT",
        call=" http://127.0.0.1:PORT",
        more=[("sh stateless.sh http://127.0.0.1:PORT", "hello"), ("sh stateful.sh http://127.0.0.1:PORT", "10")],
    ),
    "orders": Options(
        ports=5,
        key=KEY,
        more=[  # the services learn of an order from the hub, which may take a moment
            ("millstream call http://127.0.0.1:PORT3/mcp list_sent", "tea"),
            ("millstream call http://127.0.0.1:PORT4/mcp report", "tea"),
        ],
    ),
}


def calls_of(name: str, ports: Sequence[int]) -> list[tuple[str, str]]:
    """Return the lines to type while a template runs, and what each prints."""
    first = re.sub(r":800(\d)", lambda match: f":PORT{match[1]}", SYSTEMS[name].call) + OPTIONS[name].call
    lines = [(first, SYSTEMS[name].printed), *OPTIONS[name].more]
    return [(re.sub(r"PORT(\d?)", lambda match: str(ports[int(match[1] or 0)]), line), out) for line, out in lines]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel, without extras."""
    folder = tmp_path_factory.mktemp("base")
    environment = Environment(folder / "venv", wheel)
    environment.type("pip install millstream", folder)
    return environment


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of each template's environment. Bytecode stays valid there, because paths and times are the same."""
    return tmp_path_factory.mktemp("template")


def words_of(path: Path) -> str:
    text = path.read_text("utf-8")
    return text if path.suffix == ".md" else ast.get_docstring(ast.parse(text)) or ""


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc" and path.name != ".env"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", OPTIONS)
def test_template_runs_as_its_readme_says(
    name: str, base: Environment, wheel: Path, place: Path, tmp_path: Path
) -> None:
    folder = tmp_path / name
    base.type(f"millstream init {name} --template {name}", tmp_path)
    files = files_of(folder)
    assert files.pop(".gitignore")
    assert files.pop("pyproject.toml")
    files["requirements.txt"] = re.sub(rb" @ file://.*", b"", files["requirements.txt"])  # where the wheel came from
    assert files == files_of(EXAMPLES / SYSTEMS[name].folder)
    text = words_of(folder / "README.md")
    for line in (INSTALL, SYSTEMS[name].start, "pip install pytest"):
        assert line in text
    assert "docker compose up" in text
    environment = Environment(place / "venv", wheel)
    environment.variables["PYTHONPYCACHEPREFIX"] = str(place / "bytecode")
    environment.type(INSTALL, folder)
    if OPTIONS[name].key:
        environment.variables["MCP_SERVER_AUTH_KEY"] = OPTIONS[name].key
    with started(name, environment.variables, folder, tmp_path / "log") as ports:
        compared = set[str]()
        for line, printed in calls_of(name, ports):
            said = until_printed(printed, environment, line, folder)
            if (command := as_documented(line, ports)) in OUTPUTS:
                assert fits(said, OUTPUTS[command]), line
                compared.add(command)
        assert SYSTEMS[name].call in compared
    environment.type("pip install pytest", folder)
    assert " passed in" in environment.type("pytest -q", folder)


def until_printed(printed: str, environment: Environment, line: str, folder: Path) -> str:
    """Type a line until it prints something, and return its output."""
    deadline = time.monotonic() + WAIT
    while printed not in (said := environment.type(line, folder)):
        assert time.monotonic() < deadline, f"{line}\nprints:\n{said}"
    return said


def as_documented(line: str, ports: Sequence[int]) -> str:
    """Return a line with the ports of the pages, and without the address that clients use by default."""
    for number, port in enumerate(ports):
        line = line.replace(str(port), f"800{number}")
    return re.sub(r"^(python \S+) \S+:8000\S*$", r"\1", line)


@contextmanager
def started(name: str, variables: dict[str, str], folder: Path, log: Path, before: str = "") -> Iterator[list[int]]:
    """Start a template in the block, and give its ports."""
    options = OPTIONS[name]
    ports = [free_port() for _ in range(options.ports)]
    numbered = f" {' '.join(map(str, ports))}" if options.ports > 1 else ""
    start = f"exec {before}{SYSTEMS[name].start}{numbered}{options.start.replace('PORT', str(ports[0]))}"
    one = {"MILLSTREAM_PORT": str(ports[0])} if options.ports == 1 else {}
    words = [f"{key}={value}" for key, value in {**variables, **one}.items()]
    with run_server(["env", "-i", "-C", str(folder), *words, "sh", "-c", start], ports[0], log):
        yield ports


def test_templates_are_projects_for_uv(base: Environment, wheel: Path, tmp_path: Path) -> None:
    copy = "millstream init news --template broadcast"
    assert fits(base.type(copy, tmp_path), OUTPUTS[copy])
    uv = [sys.executable, "-m", "uv", "--quiet"]
    run([*uv, "sync", "--python", sys.executable, "--find-links", wheel.parent], tmp_path / "news", unconfined())
    said = run([*uv, "run", "--no-sync", "pytest", "-q"], tmp_path / "news", unconfined())
    assert " passed in" in said


def test_uv_starts_each_example_from_a_clone(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for name in run(["git", "ls-files", "--cached", "--others", "--exclude-standard"]).splitlines():
        if name.startswith(("src/", "examples/")) or name in BUILD_FILES:
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    uv = f"{sys.executable} -m uv --quiet"
    run(["sh", "-c", f"{uv} sync --python {sys.executable}"], clone, unconfined())
    for name in OPTIONS if NIGHTLY else ("greet", "mounted"):  # by day, the templates above prove the others
        options = OPTIONS[name]
        folder = clone / "examples" / SYSTEMS[name].folder
        variables = unconfined() | ({"MCP_SERVER_AUTH_KEY": options.key} if options.key else {})
        with started(name, variables, folder, tmp_path / f"{name}.log", f"{uv} run --no-sync ") as ports:
            line, printed = calls_of(name, ports)[0]
            assert printed in run(["sh", "-c", f"{uv} run --no-sync {line}"], folder, variables)


def unconfined() -> dict[str, str]:
    """Return the environment of a user of this machine, where Python keeps bytecode."""
    return {name: value for name, value in os.environ.items() if name not in CONFINED}


LIST_ALL = """
import sys
from millstream._cli import main

for name in sys.argv[1:]:
    sys.argv = ["millstream", "list", name]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{name}: {ended.code}")
"""
"""Runs `millstream list` for each file, in one process that isn't the servers'."""


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
    (folder / "list_all.py").write_text(LIST_ALL)
    for install in sorted(set(found.values())):  # first those that need nothing else
        if install:
            base.type(install, folder)
        names = [name for name in found if found[name] == install]
        assert base.type(f"python list_all.py {' '.join(names)}", folder).count("\ntool\t") >= len(names) - 1
    assert base.type("millstream call greet.py greet name=Ada", folder) == "Hello, Ada!\n"
