"""Build the package as for a release, and use it as a new user would: `make dist`.

The source archive and the wheel go to dist/. Each must pass ``twine check --strict``, and when installed alone in an
empty environment, print its version and respond to a client over stdio. Dependencies have the versions of
requirements/run.lock.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINUTES = 10
SERVER = '''
from millstream import Server

mcp = Server("shop")


@mcp.tool
def price(book: str) -> int:
    """What a book costs."""
    return len(book)
'''
MESSAGES = (
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "dist", "version": "1"}},
    },
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "price", "arguments": {"book": "Momo"}}},
)


def run(*command: str | Path, given: str = "", where: Path = ROOT) -> str:
    """Return the output of a command.

    If it fails, end the program with its output. The environment has no ``PYTHONPATH``, so only installed packages can
    be imported.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, encoding="utf-8", timeout=60 * MINUTES, cwd=where,
        env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def uv(*arguments: str | Path) -> str:
    """Return the locked uv."""
    return run(sys.executable, "-m", "uv", "--quiet", *arguments)


def build(out: Path) -> list[Path]:
    """Build the source archive, and the wheel from it."""
    shutil.rmtree(out, ignore_errors=True)
    uv("build", "--out-dir", out, ROOT)
    files = [*out.glob("*.tar.gz"), *out.glob("*.whl")]
    if len(files) != 2:
        sys.exit(f"uv build should leave an archive and a wheel in {out}, and left {[each.name for each in files]}.")
    return files


def install(file: Path, folder: Path) -> Path:
    """Install a file with its dependencies into a new environment, and return the folder with its commands."""
    uv("venv", "--no-project", "--python", sys.executable, folder / ".venv")
    bin_ = folder / ".venv" / ("Scripts" if os.name == "nt" else "bin")
    python = bin_ / ("python.exe" if os.name == "nt" else "python")
    uv("pip", "install", "--python", python, "--constraint", ROOT / "requirements" / "run.lock", file)
    return bin_


def try_out(bin_: Path, folder: Path) -> str:
    """Use the installed package, and return the version that it prints."""
    (folder / "shop.py").write_text(SERVER, "utf-8")
    version = run(bin_ / "millstream", "--version", where=folder).split()[-1]
    lines = "".join(f"{json.dumps(message)}\n" for message in MESSAGES)
    said = run(bin_ / "millstream", "run", "shop.py", "--transport", "stdio", given=lines, where=folder).splitlines()
    answers = {reply["id"]: reply for reply in map(json.loads, said) if "id" in reply}
    if answers.get(2, {}).get("result", {}).get("content") != [{"type": "text", "text": "4"}]:
        sys.exit(f"The installed server didn't answer over stdio. It said: {said}")
    return version


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, check, install, and use the package."""
    parser = argparse.ArgumentParser(description="Build the package, check it, and try it in empty environments.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the files go; it is emptied first")
    out = parser.parse_args(arguments).out
    files = build(out)
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            version = try_out(install(file, Path(folder)), Path(folder))
        print(f"{file.name}: installs, says it is {version}, and answers over stdio")
    return 0


if __name__ == "__main__":
    sys.exit(main())
