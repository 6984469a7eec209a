"""`make compat`: others' tests against the door, then published servers behind it. Prints what passed, and why not.

The tests come from the source distributions that ``sources.toml`` names, which are downloaded and unpacked below
``.bench``. A suite that passes less than it did, or a test that fails without a reason in ``excluded.toml``, ends this
with an error.
"""

import argparse
import asyncio
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any

from benches.compat import servers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PLACE = ROOT / ".bench" / "compat"
GOAL = 0.9
_OPTIONS = {
    "sdk": [],
    "fastmcp": [
        *("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function", "--timeout", "20"),
        *("-o", "markers=integration\nclient_process\nsubprocess_heavy\nconformance", "--inline-snapshot=disable"),
    ],
}


def unpacked(source: dict[str, Any]) -> Path:
    """The folder of a source distribution, downloaded if it isn't there.

    Raises:
        SystemExit: what was downloaded is something else.
    """
    folder = PLACE / f"{source['name']}-{source['version']}"
    archive = PLACE / f"{folder.name}.tar.gz"
    if not archive.exists():
        PLACE.mkdir(parents=True, exist_ok=True)
        uv = str(Path(sys.executable).parent / "uv")
        wanted = f"{source['name']}=={source['version']}"
        command = [uv, "--quiet", "tool", "run", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--dest", str(PLACE), wanted], check=True)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != source["sha256"]:
        sys.exit(f"{archive.name} has the hash {found}, and sources.toml says {source['sha256']}.")
    if not folder.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(PLACE, filter="data")
    return folder


def run_suite(name: str, source: dict[str, Any], extra: list[str]) -> dict[str, Any]:
    """Run the tests of one suite; gives what `measured.Measure` wrote."""
    folder = unpacked(source)
    python = ROOT / f".venv-compat-{name}" / "bin" / "python"
    result = PLACE / f"{name}.json"
    result.unlink(missing_ok=True)
    paths = [*(folder / each for each in source["paths"]), ROOT / "src", ROOT]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "COMPAT_SUITE": name,
        "COMPAT_RESULT": str(result),
        "FASTMCP_TEST_MODE": "1",
        "FASTMCP_ENABLE_RICH_TRACEBACKS": "0",
    }
    options = ["-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider", "-q", "--tb=line", "-W", "ignore"]
    plugins = ["-p", f"benches.compat.{name}_shim", "-p", "benches.compat.measured", "--continue-on-collection-errors"]
    tests = [str(folder / each) for each in source["tests"]]
    command = [str(python), "-m", "pytest", *options, *_OPTIONS[name], *plugins, *extra, *tests]
    with (PLACE / f"{name}.log").open("wb") as log:
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    found: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return found


def report(name: str, source: dict[str, Any], result: dict[str, Any]) -> int:
    """Print how a suite ended; how many of its tests failed without a reason."""
    failing = tomllib.loads((HERE / "excluded.toml").read_text("utf-8"))[name].get("failing", [])
    passed, failed = len(result["passed"]), len(result["failed"])
    rate = passed / max(1, passed + failed)
    print(f"{source['name']} {source['version']}: {passed} of {passed + failed} tests pass ({rate:.1%})")
    unexplained = 0
    reasons: dict[str, int] = {}
    for test in result["failed"]:
        reason = next((each["reason"] for each in failing if fnmatch.fnmatch(test, each["test"])), "")
        reasons[reason] = reasons.get(reason, 0) + 1
        if not reason:
            unexplained += 1
            print(f"  fails without a reason: {test}")
    for reason, count in reasons.items():
        if reason:
            print(f"  {count:4} fail: {reason}")
    for reason, count in result["left_out"].items():
        print(f"  {count:4} not counted: {reason}")
    return unexplained + (rate < GOAL)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["sdk", "fastmcp", "servers"])
    parser.add_argument("extra", nargs="*", help="options of pytest")
    given = parser.parse_args()
    wrong = 0
    for name, source in tomllib.loads((HERE / "sources.toml").read_text("utf-8")).items():
        if given.only in (None, name):
            wrong += report(name, source, run_suite(name, source, given.extra))
    if given.only in (None, "servers"):
        print("Published servers")
        wrong += asyncio.run(servers.main(ROOT / ".venv-compat-servers" / "bin" / "python"))
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
