"""Type every line of scripts/seeds.toml in an empty folder, and print what works as it stands: ``make seeds``."""

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from processes import free_port, run_server  # noqa: E402  it needs the path

WAIT = 60.0
KINDS = ("verbatim", "with a change", "partly", "missing")
MARK = "localhost:8000"


def main() -> int:
    """Print the table; 1 if a line doesn't do what it should."""
    told = tomllib.loads((ROOT / "scripts" / "seeds.toml").read_text("utf-8"))
    lines: list[dict[str, Any]] = told["line"]
    results: list[tuple[str, str, str, str]] = []
    for name in dict.fromkeys(each["server"] for each in lines):
        mine = [each for each in lines if each["server"] == name]
        if not name:
            results += [(each["seed"], each["how"], each["note"], "") for each in mine]
            continue
        with folder_of(told["servers"][name]) as (folder, port, environment):
            results += [
                (each["seed"], each["how"], shown(each), typed(each, folder, port, environment)) for each in mine
            ]
    failed = [each for each in results if each[3]]
    for seed, how, text, wrong in sorted(results):
        print(f"{seed}  {'FAILED' if wrong else how:<14} {text}")
        if wrong:
            print(f"     {wrong}")
    counts = Counter(how for _, how, _, wrong in results if not wrong)
    print(f"\n{', '.join(f'{counts[kind]} {kind}' for kind in KINDS)}, {len(failed)} failed")
    return 1 if failed else 0


def shown(line: Mapping[str, Any]) -> str:
    """One row of the table."""
    text = " ".join(line["run"].replace("\\\n", " ").split())
    note = f"  ({line['note']})" if "note" in line else ""
    return (text if len(text) <= 90 else f"{text[:89]}…") + note


@contextmanager
def folder_of(server: Mapping[str, str]) -> Iterator[tuple[Path, int, dict[str, str]]]:
    """An empty folder with the example, whose server runs."""
    port = free_port()
    with TemporaryDirectory() as home:
        folder = Path(home) / "example"
        shutil.copytree(ROOT / "examples" / server["example"], folder)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": home, "LANG": "C.UTF-8", "MILLSTREAM_PORT": str(port)}
        more = "" if "main.py" in server["start"] else f" --port {port}"
        allowed = ["MILLSTREAM_ALLOWED_HOSTS=sse-mcp-server", "MILLSTREAM_ALLOWED_ORIGINS=null"]
        start = ["env", "-C", str(folder), *(f"{name}={value}" for name, value in environment.items()), *allowed]
        with run_server([*start, "sh", "-c", f"exec {server['start']}{more}"], port, Path(home) / "log"):
            yield folder, port, environment


def typed(line: Mapping[str, Any], folder: Path, port: int, environment: Mapping[str, str]) -> str:
    """Type a line; what went wrong, or nothing."""
    command = line["run"].replace(MARK, f"localhost:{port}")
    if line.get("stream"):
        said = streamed(
            command, line.get("then", "").replace(MARK, f"localhost:{port}"), line["expect"], folder, environment
        )
        return "" if line["expect"] in said else said[-300:] or "It printed nothing."
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=WAIT, check=False,
    )  # fmt: skip
    if done.returncode:
        return f"It ended with {done.returncode}: {done.stderr[-300:]}"
    return "" if line["expect"].lower() in done.stdout.lower() else done.stdout[-300:] or "It printed nothing."


def streamed(command: str, then: str, expect: str, folder: Path, environment: Mapping[str, str]) -> str:
    """What a line that runs on has printed once it was what's expected, or after a while."""
    with (folder / "said").open("wb") as file:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"], cwd=folder, env=environment, stdout=file, stderr=file
        )
    deadline = time.monotonic() + WAIT
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if then:
                subprocess.run(["sh", "-c", then], env=environment, capture_output=True, timeout=WAIT, check=False)
            time.sleep(0.2)
            said = (folder / "said").read_text("utf-8")
            if expect in said:
                return said
    finally:
        process.kill()
        process.wait()
    return (folder / "said").read_text("utf-8")


if __name__ == "__main__":
    sys.exit(main())
