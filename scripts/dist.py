"""Build the package as for a release, and use it as a new user would: `make dist`.

The source archive and the wheel go to dist/, with a list of what an installation contains (CycloneDX). Each must pass
``twine check --strict``, and when installed alone in an empty environment, print its version and respond to a client
over stdio. Dependencies have the versions of requirements/run.txt. With ``--everywhere``, the wheel is also tried on
the other Pythons that it promises, and beside the newest versions of packages that people use it with.

A package without addresses is only good for trying: it's reported, and for a tag, it's an error.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
MINUTES = 10
NEIGHBORS = ("fastapi", "fastmcp")
"""Packages whose newest versions must be installable beside Millstream."""
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


def read_metadata(wheel: Path) -> Message:
    """Return the metadata in a wheel."""
    with ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def find_unfinished(metadata: Message) -> list[str]:
    """Return what's missing for a release."""
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    missing = {
        "pyproject.toml has no `repository`, so the package has no addresses.": not metadata.get_all("Project-URL"),
        'README.md says "Until the first release".': "Until the first release" in (metadata.get_payload() or ""),
        "CHANGELOG.md has no date for this version.": f"## {metadata['Version']} (not released)" in changelog,
    }
    return [what for what, applies in missing.items() if applies]


def is_tagged(version: str) -> bool:
    """Return whether this is built for a tag, in the workflow or in a clone."""
    if os.environ.get("GITHUB_REF_TYPE") == "tag":
        return True
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return False
    return f"v{version}" in run("git", "tag", "--points-at", "HEAD").split()


def install(file: Path, folder: Path, python: str = sys.executable, *more: str) -> Path:
    """Install a file with its dependencies into a new environment, and return the folder with its commands.

    Args:
        file: The archive or wheel.
        folder: The folder for the environment.
        python: The Python to use.
        more: Packages to install beside it, in their newest versions instead of locked ones.
    """
    uv("venv", "--no-project", "--python", python, folder / ".venv")
    bin_ = folder / ".venv" / ("Scripts" if os.name == "nt" else "bin")
    locked = () if more else ("--constraint", ROOT / "requirements" / "run.txt")
    uv("pip", "install", "--python", python_in(bin_), *locked, file, *more)
    return bin_


def python_in(bin_: Path) -> Path:
    """Return the Python of an environment."""
    return bin_ / ("python.exe" if os.name == "nt" else "python")


def newest(*requirements: str | Path) -> dict[str, str]:
    """Return the versions that a new installation gets."""
    given = "\n".join(map(str, requirements))
    command = (
        sys.executable,
        "-m",
        "uv",
        "--quiet",
        "pip",
        "compile",
        "--python",
        sys.executable,
        "--no-annotate",
        "-",
    )
    return dict(re.findall(r"^([\w.-]+)==(\S+)", run(*command, given=given), re.MULTILINE))


def try_everywhere(wheel: Path, metadata: Message) -> None:
    """Use the wheel on the other Pythons that it promises, and beside other packages."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    promised = re.findall(r"Python :: (3\.\d+)$", "\n".join(metadata.get_all("Classifier", [])), re.MULTILINE)
    for version in promised:
        if version == own:
            continue
        found = subprocess.run([ROOT / "scripts" / "python", version], capture_output=True, text=True, check=False)
        if found.returncode:
            print(f"{wheel.name}: not tried on Python {version}. {found.stderr.strip()}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            try_out(install(wheel, Path(folder), found.stdout.strip()), Path(folder))
        print(f"{wheel.name}: works on Python {version}")
    alone, together = newest(*NEIGHBORS), newest(*NEIGHBORS, wheel)
    for name in NEIGHBORS:
        if alone[name] != together[name]:
            sys.exit(f"Beside {wheel.name}, {name} is {together[name]} instead of {alone[name]}. Lower a floor.")
    pinned = [f"{name}=={alone[name]}" for name in NEIGHBORS]
    with tempfile.TemporaryDirectory() as folder:
        try_out(install(wheel, Path(folder), sys.executable, *pinned), Path(folder))
    print(f"{wheel.name}: works beside {', '.join(pinned)}")


def list_contents(bin_: Path, file: Path) -> None:
    """Write the list of what's in an environment, as CycloneDX."""
    run(
        sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--output-format", "JSON",
        "--output-file", file, python_in(bin_),
    )  # fmt: skip


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
    parser.add_argument("--everywhere", action="store_true", help="try it on each Python, and beside other packages")
    options = parser.parse_args(arguments)
    files = build(options.out)
    (wheel,) = (file for file in files if file.suffix == ".whl")
    metadata = read_metadata(wheel)
    unfinished = find_unfinished(metadata)
    if unfinished and is_tagged(metadata["Version"]):
        sys.exit(f"This can't be released: {' '.join(unfinished)} See docs/contributing/releasing.md.")
    for each in unfinished:
        print(f"Warning: {each}", file=sys.stderr)
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            bin_ = install(file, Path(folder))
            version = try_out(bin_, Path(folder))
            if file == wheel:
                list_contents(bin_, options.out / f"millstream-{version}.cdx.json")
        print(f"{file.name}: installs, says it is {version}, and answers over stdio")
    if options.everywhere:
        try_everywhere(wheel, metadata)
    return 0


if __name__ == "__main__":
    sys.exit(main())
