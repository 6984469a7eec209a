"""Type the commands of five documents, in environments with only the wheel: ``make seeds``.

scripts/seeds.toml has each line of a document, and what's typed instead if that differs. The category of a line comes
from comparing the two. Only the port is replaced. An environment has the packages that the system's files and the
document install. Programs for other machines have environments without Millstream. Pages are opened in a browser. By
default, the lines of a system share an environment, a folder, and a server. With NIGHTLY=1, each line has its own, in
which the lines of `after` are typed first.
"""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml
from uv import find_uv_bin

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [
    str(ROOT / "tests" / "support"),
    str(ROOT / "tests"),
]  # without scripts, because its seeds.py would hide tests/seeds

from agent_world import KEY, ScriptedModel, calls, repeats  # noqa: E402  it needs the path
from empty_environment import Environment, build_wheel  # noqa: E402  as above
from processes import free_port  # noqa: E402  as above
from programs import find_program  # noqa: E402  as above
from seeds import scenes  # noqa: E402  as above
from seeds.scenes import Browser, Server, Stage  # noqa: E402  as above

LABELS = ("verbatim", "changed", "described", "not typed")
WAIT = 60.0
PORTS = 5
"""Maximum number of ports that a system needs, from 8000 on."""
PRIVATE = ("API", "MCP_", "MILLSTREAM_", "PYTHON", "VIRTUAL_ENV", "XDG_")
"""Variables with these beginnings, or `API` anywhere, don't reach the commands."""
Row = Mapping[str, Any]


class Place(NamedTuple):
    """The environment, folder, and server for typed lines."""

    folder: Path
    ports: Sequence[int]
    variables: dict[str, str]
    wheel: Path
    browser: Browser
    server: Server | None = None

    def fill(self, text: str) -> str:
        """Replace the document's ports 8000 to 8004, and PORT to PORT4 in our additions."""

        def port(found: re.Match[str]) -> str:
            return f"{found[1]}{self.ports[int(found[2] or 0)]}"

        return re.sub(r"(\b)PORT([1-4]?)\b", port, re.sub(r"(\b(?:localhost|127\.0\.0\.1):)800([0-4])\b", port, text))


def main(only: Sequence[str]) -> int:
    """Print the table. Return 1 if a line fails."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores SIGHUP, and servers use it to restart their workers
    tables = tomllib.loads((ROOT / "scripts" / "seeds.toml").read_text("utf-8"))
    groups: list[list[Row]] = []
    for name in tables["systems"]:
        rows = [row for row in tables["line"] if row["system"] == name]
        rows = [row for row in rows if not only or {row["seed"], name} & {*only}]
        typed = [row for row in rows if label(row) != "not typed"]
        groups += [[row] for row in typed] if os.environ.get("NIGHTLY") else [typed] if typed else []
    failures: dict[int, str] = {}
    with TemporaryDirectory() as out, ThreadPoolExecutor(2) as pool:
        wheel = build_wheel(Path(out))
        for found in pool.map(lambda rows: run_rows(tables["systems"], rows, wheel), groups):
            failures |= found
    counts: Counter[str] = Counter()
    for row in tables["line"]:
        if not only or {row["seed"], row["system"]} & {*only}:
            failure = failures.get(id(row), "")
            counts["failed" if failure else label(row)] += 1
            print(f"{row['seed']}  {'FAILED' if failure else label(row):<9}  {shown(row)}")
            if failure:
                print(f"     {failure}")
    print(f"\n{', '.join(f'{counts[each]} {each}' for each in LABELS)}, {counts['failed']} failed")
    return 1 if counts["failed"] else 0


def said(row: Row) -> str:
    """Return the document's text, from the table, or from the tests that also use it."""
    if "snippet" not in row:
        return str(row.get("says", ""))
    module, *names = row["snippet"].split(":")
    found: Any = vars(import_module(f"seeds.{module}"))
    for name in names:
        found = found[name]
    return str(found)


def typed(row: Row) -> str:
    """Return the typed text, with the document's port."""
    text = str(row.get("types", said(row)))
    for old, new in row.get("replaces", {}).items():
        text = text.replace(old, new)
    return text


def label(row: Row) -> str:
    """Return the category of a line."""
    if "omitted" in row:
        return "not typed"
    if "describes" in row:
        return "described"
    return "verbatim" if typed(row).strip() == said(row).strip() else "changed"


def shown(row: Row) -> str:
    text = " ".join((row.get("describes") or said(row)).replace("\\\n", " ").split())
    reason = row.get("omitted") or row.get("because", "")
    return (text if len(text) <= 80 else f"{text[:79]}…") + (f"  ({reason})" if reason else "")


def run_rows(systems: Mapping[str, Any], rows: Sequence[Row], wheel: Path) -> dict[int, str]:
    """Run rows of a system in one place. Return the failures by the rows' identity."""
    failures: dict[int, str] = {}
    system = systems[rows[0]["system"]]
    with ExitStack() as stack:
        try:
            place = stack.enter_context(prepare(system, wheel))
        except Exception as exc:
            return dict.fromkeys(map(id, rows), f"It can't be set up: {str(exc)[-400:]}")
        for row in rows:
            try:
                failure = run_row(row, place)
            except Exception as exc:
                failure = f"{type(exc).__name__}: {str(exc)[-400:]}"
                failures[id(row)] = failure
    return failures


@contextmanager
def prepare(system: Row, wheel: Path) -> Iterator[Place]:
    """Prepare an environment with the packages of the system's README, a folder with its files, and its server."""
    with TemporaryDirectory() as home, ExitStack() as stack:
        cache = subprocess.run([sys.executable, "-m", "uv", "cache", "dir"], capture_output=True, text=True, check=True)
        environment = Environment(Path(home) / "venv", wheel)
        public = {name: each for name, each in os.environ.items() if not name.startswith(PRIVATE) and "API" not in name}
        ports = [free_port() for _ in range(PORTS)]
        variables = {
            **public, **environment.variables, **system.get("env", {}), "HOME": home, "LANG": "C.UTF-8",
            "UV_CACHE_DIR": cache.stdout.strip(), "UV_FIND_LINKS": str(wheel.parent),
            "VIRTUAL_ENV": str(Path(home) / "venv"), "MILLSTREAM_PORT": str(ports[0]),
        }  # fmt: skip
        for name, line in SHIMS.items():
            (environment.bin / name).write_text(f"#!/bin/sh\n{line}\n", "utf-8")
            (environment.bin / name).chmod(0o755)
        browser = stack.enter_context(Browser())
        place = Place(Path(home) / "example", ports, variables, wheel, browser)
        type_line("pip install millstream", place._replace(folder=Path(home)))
        for line in system["setup"]:
            type_line(line, place._replace(folder=Path(home)))
        if "model" in system:
            api = stack.enter_context(ScriptedModel(*[calls(("get_current_time", "{}")), repeats("It is ")] * 8))
            replace_in(place.folder / ".env.example", {"https://api.example.com/v1": api.url, "your_api_key": KEY})
            replace_in(place.folder / ".env.example", {"localhost:8000": f"localhost:{ports[0]}"})
            type_line("cp .env.example .env", place)
        if "start" in system:
            server = start(f"{system['start']}{place.fill(system.get('option', ''))}", place)
            place = place._replace(server=stack.enter_context(server))
        yield place


SHIMS = {
    "uv": f'exec "{find_uv_bin()}" --quiet "$@"',  # `python -m uv` would use the environment of that Python
    "open": 'printf %s "$1" > "$HOME/opened"',  # another system's browser; use ours instead
}


def start(line: str, place: Place) -> Server:
    """Return a server that a shell starts with a line."""
    words = ["env", "-C", str(place.folder), *(f"{key}={value}" for key, value in place.variables.items())]
    line = line if "&& exec " in line else f"exec {line}"
    return Server([*words, "bash", "-c", line], place.ports[0], place.folder.parent / f"{place.ports[0]}.log")


def replace_in(path: Path, words: Mapping[str, str]) -> None:
    text = path.read_text("utf-8")
    for old, new in words.items():
        text = text.replace(old, new)
    path.write_text(text, "utf-8")


def type_line(line: str | Sequence[str], place: Place) -> str:
    """Type a line in a shell, or run a command. Return what it prints."""
    command = ["bash", "-c", line] if isinstance(line, str) else line
    done = subprocess.run(
        command, cwd=place.folder, env=place.variables, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=5 * WAIT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[-1][:60]} ended with {done.returncode}: {(done.stdout + done.stderr)[-400:]}")
    return done.stdout + done.stderr


def run_row(row: Row, place: Place) -> str:
    """Run a row. Return the problem, or an empty string."""
    with ExitStack() as stack:
        place = place._replace(variables={**place.variables, **row.get("env", {})})
        text = typed(row)
        for line in row.get("after", ()):
            type_line(line, place)
        if "compose" in row:
            text = compose(place, row["compose"])
        if "file" in row:
            (place.folder / row["file"]).write_text(text, "utf-8")
            text = row["runs"]
        if row.get("kind") == "start":
            ports = [free_port() for _ in range(PORTS)]
            place = place._replace(
                ports=ports,
                variables={**place.variables, **dict.fromkeys(("MILLSTREAM_PORT", "FASTMCP_PORT"), str(ports[0]))},
            )
            # Use the document's own port wherever the line has it.
            text = re.sub(r"\b8000\b", str(ports[0]), text) + place.fill(row.get("option", ""))
            try:
                place = place._replace(server=stack.enter_context(start(text, place)))
            except AssertionError as exc:
                return str(exc)[-400:]
            text = row.get("then", "true")
        else:
            text += row.get("option", "")
        return check_row(row, place.fill(text), place)


def compose(place: Place, file: str) -> str:
    """Return the command of a compose file's service. Its environment is added to the place's."""
    (service,) = yaml.safe_load((place.folder / file).read_text("utf-8"))["services"].values()
    place.variables.update(
        {name: str(each) for name, each in service.get("environment", {}).items() if each is not None}
    )
    command = str(service["command"])
    return command.removeprefix('sh -c "').removesuffix('"').replace("&& ", "&& exec ")


def check_row(row: Row, text: str, place: Place) -> str:
    """Type a row's text, and return the expected output, broadcast, or page that's missing."""
    wanted = [row["expect"]] if isinstance(row["expect"], str) else row["expect"]
    then = ["bash", "-c", place.fill(row["then"])] if row.get("stream") and "then" in row else None
    if row.get("kind") == "page":
        return place.browser.run_script(text, then, wanted, place.variables)
    command = ["bash", "-c", text]
    if row.get("kind") == "python":
        command = [find_python(row, place), "-u", "-c", f"{text}\n{row.get('check', '')}"]
    if row.get("hears"):
        listener = ["bash", "-c", place.fill("exec curl -sN http://localhost:8000/events")]
        output = follow(listener, command, [row["hears"]], place)
        if row["hears"] not in output:
            return f"Listeners don't hear {row['hears']!r}: {output[-400:]}"
    output = follow(command, then, wanted, place) if row.get("stream") or row.get("kind") == "start" else ""
    output = output or type_line(command, place)
    opened = place.folder.parent / "opened"
    if opened.exists():
        output += place.browser.read(opened.read_text("utf-8"), wanted)
        opened.unlink()
    missing = [each for each in wanted if each not in output]
    if missing:
        return f"No {' or no '.join(missing)} in: {output[-400:]}"
    if "scene" in row and place.server is not None:
        type_here = partial(type_in_shell, place)
        getattr(scenes, row["scene"])(Stage(place.ports, place.server, place.browser, place.folder, type_here))
    return ""


def find_python(row: Row, place: Place) -> str:
    """Return the Python for a program: the environment's, or one for another machine, with only its packages."""
    if "packages" not in row:
        return "python"
    machine = Environment(Path(place.variables["HOME"]) / "machine", place.wheel)
    path = {"PATH": f"{machine.bin}{os.pathsep}{place.variables['PATH']}"}
    type_line(f"pip install {' '.join(row['packages'])}", place._replace(variables={**place.variables, **path}))
    return str(machine.bin / "python")


def type_in_shell(place: Place, line: str) -> str:
    """Type a line with the place's ports."""
    return type_line(place.fill(line), place)


def follow(command: Sequence[str], then: Sequence[str] | None, wanted: Sequence[str], place: Place) -> str:
    """Return a command's output once it contains all wanted texts, at the end of the command, or after a timeout.

    Args:
        then: run repeatedly until then.
    """
    path = place.folder.parent / "printed"
    with path.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=place.folder, env=place.variables, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + WAIT
    try:
        while time.monotonic() < deadline:
            ended = process.poll() is not None
            text = path.read_text("utf-8", "replace")
            if all(each in text for each in wanted) or ended:
                break
            if then:
                subprocess.run(
                    then, cwd=place.folder, env=place.variables, capture_output=True, timeout=WAIT, check=False
                )
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return path.read_text("utf-8", "replace")


if __name__ == "__main__":
    for names in (("curl",), ("chromium-headless-shell", "chromium", "google-chrome")):
        find_program(*names) or sys.exit(f"make seeds needs {names[0]}.")
    sys.exit(main(sys.argv[1:]))
