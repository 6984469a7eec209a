"""Type what five documents ask people to type, in environments with nothing but the wheel: ``make seeds``.

scripts/seeds.toml has each line as its document has it, and what we type instead, if that differs. What a line counts
as comes from comparing the two. Only the port is replaced. By day, the lines of a document share an environment, a
folder, and a server. With NIGHTLY=1, each line has its own.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from uv import find_uv_bin

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [
    str(ROOT / "tests" / "support"),
    str(ROOT / "tests"),
]  # not scripts, whose seeds.py would hide tests/seeds

from agent_world import KEY, ScriptedModel, calls, repeats  # noqa: E402  it needs the path
from empty_environment import Environment, build_wheel  # noqa: E402  as above
from processes import NODE, free_port, run_server  # noqa: E402  as above

LABELS = ("verbatim", "changed", "described", "not typed")
WAIT = 60.0
PAGE = ROOT / "tests" / "seeds" / "page.cjs"
PRIVATE = ("API", "MCP_", "MILLSTREAM_", "PYTHON", "VIRTUAL_ENV", "XDG_")
"""Variables with these beginnings, or `API` anywhere, don't reach the commands."""
Row = Mapping[str, Any]


class Place(NamedTuple):
    """Where lines are typed."""

    folder: Path
    port: int
    variables: dict[str, str]


def main(only: Sequence[str]) -> int:
    """Print the table. Return 1 if a line doesn't do what it should."""
    tables = tomllib.loads((ROOT / "scripts" / "seeds.toml").read_text("utf-8"))
    groups: list[list[Row]] = []
    for name in tables["systems"]:
        rows = [row for row in tables["line"] if row["system"] == name]
        rows = [row for row in rows if not only or row["seed"] in only]
        typed = [row for row in rows if label(row) != "not typed"]
        groups += [[row] for row in typed] if os.environ.get("NIGHTLY") else [typed] if typed else []
    failures: dict[int, str] = {}
    with TemporaryDirectory() as out, ThreadPoolExecutor(2) as pool:
        wheel = build_wheel(Path(out))
        for found in pool.map(lambda rows: run_rows(tables["systems"], rows, wheel), groups):
            failures |= found
    counts: Counter[str] = Counter()
    for row in tables["line"]:
        if not only or row["seed"] in only:
            failure = failures.get(id(row), "")
            counts["failed" if failure else label(row)] += 1
            print(f"{row['seed']}  {'FAILED' if failure else label(row):<9}  {shown(row)}")
            if failure:
                print(f"     {failure}")
    print(f"\n{', '.join(f'{counts[each]} {each}' for each in LABELS)}, {counts['failed']} failed")
    return 1 if counts["failed"] else 0


def said(row: Row) -> str:
    """Return what the document says: from the table, or from the tests that use it as well."""
    if "snippet" not in row:
        return str(row.get("says", ""))
    module, *names = row["snippet"].split(":")
    found: Any = vars(import_module(f"seeds.{module}"))
    for name in names:
        found = found[name]
    return str(found)


def typed(row: Row) -> str:
    """Return what is typed, with the document's port."""
    text = str(row.get("types", said(row)))
    for old, new in row.get("replaces", {}).items():
        text = text.replace(old, new)
    return text


def label(row: Row) -> str:
    """Return what a line counts as."""
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
            if failure:
                failures[id(row)] = failure
    return failures


@contextmanager
def prepare(system: Row, wheel: Path) -> Iterator[Place]:
    """An environment with what the system's README installs, a folder with its files, and its server."""
    with TemporaryDirectory() as home, ExitStack() as stack:
        cache = subprocess.run([sys.executable, "-m", "uv", "cache", "dir"], capture_output=True, text=True, check=True)
        environment = Environment(Path(home) / "venv", wheel)
        public = {name: each for name, each in os.environ.items() if not name.startswith(PRIVATE) and "API" not in name}
        variables = {
            **public, **environment.variables, **system.get("env", {}), "HOME": home, "LANG": "C.UTF-8",
            "UV_CACHE_DIR": cache.stdout.strip(), "UV_FIND_LINKS": str(wheel.parent),
        }  # fmt: skip
        for name, line in SHIMS.items():
            (environment.bin / name).write_text(f"#!/bin/sh\n{line}\n", "utf-8")
            (environment.bin / name).chmod(0o755)
        port = free_port()
        place = Place(Path(home) / "example", port, {**variables, "MILLSTREAM_PORT": str(port)})
        type_line("pip install millstream", place._replace(folder=Path(home)))
        for line in system["setup"]:
            type_line(line, place._replace(folder=Path(home)))
        if "model" in system:
            api = stack.enter_context(ScriptedModel(*[calls(("get_current_time", "{}")), repeats("It is ")] * 8))
            replace_in(place.folder / ".env.example", {"https://api.example.com/v1": api.url, "your_api_key": KEY})
            replace_in(place.folder / ".env.example", {"localhost:8000": f"localhost:{port}"})
            type_line("cp .env.example .env", place)
        if "start" in system:
            start = f"exec {system['start']}{system.get('option', '')}".replace("PORT", str(port))
            words = ["env", "-C", str(place.folder), *(f"{key}={value}" for key, value in place.variables.items())]
            stack.enter_context(run_server([*words, "sh", "-c", start], port, Path(home) / "log"))
        yield place


SHIMS = {
    "uv": f'exec "{find_uv_bin()}" --quiet "$@"',  # `python -m uv` would use the environment of that Python
    "open": 'exec curl -sSf "$@"',  # the browser of another system
}


def replace_in(path: Path, words: Mapping[str, str]) -> None:
    text = path.read_text("utf-8")
    for old, new in words.items():
        text = text.replace(old, new)
    path.write_text(text, "utf-8")


def type_line(line: str, place: Place) -> str:
    """Type a line in a shell. Return what it prints."""
    done = subprocess.run(
        ["bash", "-c", line], cwd=place.folder, env=place.variables, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=5 * WAIT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{line[:60]} ended with {done.returncode}: {(done.stdout + done.stderr)[-400:]}")
    return done.stdout + done.stderr


def run_row(row: Row, place: Place) -> str:
    """Run a row. Return what went wrong, or nothing."""
    if row.get("needs"):
        type_line(f"pip install {' '.join(row['needs'])}", place)
    place = place._replace(variables={**place.variables, **row.get("env", {})})
    option = "" if row.get("kind") == "start" else row.get("option", "").replace("PORT", str(place.port))
    text = typed(row).replace("localhost:8000", f"localhost:{place.port}") + option
    then = row.get("then", "").replace("localhost:8000", f"localhost:{place.port}")
    kind = row.get("kind", "line")
    if kind == "start":
        return start_row(row, text, place)
    if kind == "file":
        (place.folder / row["file"]).write_text(text, "utf-8")
        text = row["then"].replace("localhost:8000", f"localhost:{place.port}")
    command = {
        "page": [NODE, "--experimental-eventsource", "--no-warnings", str(PAGE), text],
        "python": ["python", "-u", "-c", f"{text}\n{row.get('check', '')}"],
    }.get(kind, ["bash", "-c", text])
    if row.get("stream"):
        output = follow(command, then, row["expect"], place)
    else:
        done = subprocess.run(
            command, cwd=place.folder, env=place.variables, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=5 * WAIT, check=False,
        )  # fmt: skip
        output = done.stdout + done.stderr
        if done.returncode:
            return f"It ended with {done.returncode}: {output[-400:]}"
    return "" if row["expect"] in output else f"No {row['expect']!r} in: {output[-400:]}"


def start_row(row: Row, text: str, place: Place) -> str:
    """Start a server on another port, and call it."""
    port = free_port()
    variables = {**place.variables, "MILLSTREAM_PORT": str(port), "FASTMCP_PORT": str(port)}
    text = text.replace("8000", str(port)) + row.get("option", "").replace("PORT", str(port))
    words = ["env", "-C", str(place.folder), *(f"{key}={value}" for key, value in variables.items())]
    log = place.folder.parent / f"{port}.log"
    try:
        with run_server([*words, "bash", "-c", f"exec {text}"], port, log):
            output = follow(["bash", "-c", row["then"].replace("8000", str(port))], "", row["expect"], place)
    except AssertionError as exc:
        return str(exc)[-400:]
    return "" if row["expect"] in output else f"No {row['expect']!r} in: {output[-400:]}"


def follow(command: Sequence[str], then: str, expect: str, place: Place) -> str:
    """Return what a command has printed once it printed what's expected, or at its end, or after a while.

    Args:
        then: typed again and again until then.
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
            if expect in path.read_text("utf-8", "replace") or ended:
                break
            if then:
                subprocess.run(
                    ["bash", "-c", then], env=place.variables, capture_output=True, timeout=WAIT, check=False
                )
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return path.read_text("utf-8", "replace")


if __name__ == "__main__":
    shutil.which("curl") or sys.exit("make seeds needs curl.")
    sys.exit(main(sys.argv[1:]))
