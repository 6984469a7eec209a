"""`make fuzz MINUTES=10`: every parser under atheris, every route under Hypothesis, also as signed-in users, and REST
and OAuth under schemathesis.

It counts inputs, and exits with 1 at the first fault: a crash, an unexpected error, a 500, or an input that takes more
than a second. The input is saved in `results/fuzz`.
"""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz import oauth_routes, plausible, routes
from fuzz.parsers import PARSERS
from fuzz.servers import SERVERS
from processes import TEST_PATH, free_port, run_command

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "results" / "fuzz"
AT_ONCE = 2


def fuzz(name: str, seconds: int) -> tuple[str, int, str]:
    """Fuzz one target, and print its name, input count, and faults."""
    command = [sys.executable, "-m", "fuzz.one", name, str(seconds), str(FOLDER)]
    done = subprocess.run(
        command,
        capture_output=True,
        timeout=seconds + 300,
        cwd=ROOT / "tests",
        env=os.environ | {"MILLSTREAM_ACCESS_LOG": "true", "PYTHONPATH": TEST_PATH},
        check=False,
    )
    said = done.stderr.decode("utf-8", "replace") + done.stdout.decode("utf-8", "replace")
    counts = re.findall(r"stat::number_of_executed_units:\s*(\d+)", said) or re.findall(r"^#(\d+)", said, re.MULTILINE)
    (FOLDER / f"{name}.log").write_text(said)
    fault = "" if done.returncode == 0 else said[-2000:]
    return name, int(counts[-1]) if counts else 0, fault


def operations(seconds: int) -> tuple[str, int, str]:
    """Run schemathesis on the OpenAPI document."""
    port = free_port()
    log = FOLDER / "operations-server.log"
    with log.open("wb") as sink:
        server = subprocess.Popen(
            run_command("../examples/hub.py", port, "--serve", "all"), cwd=ROOT / "tests",
            env=os.environ | {"MILLSTREAM_ACCESS_LOG": "true", "PYTHONPATH": TEST_PATH},
            stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
        )  # fmt: skip
    try:
        routes._wait(server, port)
        command = [
            str(Path(sys.executable).parent / "schemathesis"), "run", f"http://127.0.0.1:{port}/openapi.json",
            "--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--max-examples", "2000",
            "--request-timeout", "5", "--no-color", "--exclude-operation-id", "long_task",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
            said, failed = done.stdout.decode("utf-8", "replace"), done.returncode != 0
        except subprocess.TimeoutExpired as over:
            said, failed = (over.stdout or b"").decode("utf-8", "replace"), False
    finally:
        server.terminate()
        server.wait(30)
    (FOLDER / "operations.log").write_text(said)
    asked = log.read_bytes().count(b'"transport":"rest"')  # a line of the access log for each request
    return "operations", asked, said[-2000:] if failed else ""


def signing_in(seconds: int) -> tuple[str, int, str]:
    """Run schemathesis on the OAuth routes."""
    with plausible.shop(FOLDER) as (port, log):
        bounds = ["--max-examples", "100000", "--max-time", str(seconds)]
        answers, said = oauth_routes.run(port, FOLDER, *bounds, seconds=seconds + 120)
    if b"Traceback" in log.read_bytes():
        said += f"there's a traceback in {log}"
    return "oauth", answers.total(), said


def people(seconds: int) -> tuple[str, int, str, routes.Routes]:
    """Send damaged requests of signed-in users to every route, after checking that the originals are valid."""
    with plausible.shop(FOLDER) as (port, log):
        asking = plausible.Plausible(port)
        faults = [f"not good: {name} {statuses}" for name, statuses in asking.prove().items()]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            plausible.run(asking, examples=500, until=until)
        faults += asking.routes.faults
    if b"Traceback" in log.read_bytes():
        faults.append(f"there's a traceback in {log}")
    return "people", sum(asking.by_recipe.values()), "\n".join(faults[:20]), asking.routes


def main() -> int:
    """Divide the time among all targets."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    FOLDER.mkdir(parents=True, exist_ok=True)
    names = [*PARSERS, *SERVERS]
    begun = time.monotonic()
    each = max(5, int(minutes * 60 * AT_ONCE / (len(names) + 8)))
    results: list[tuple[str, int, str]] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for result in pool.map(lambda name: fuzz(name, each), names):
            results.append(result)
            print(f"{result[0]:16} {result[1]:>10,} inputs  {'FAULT' if result[2] else 'ok'}", flush=True)
    found = routes.run(each, FOLDER)
    results.append(("routes", found.inputs, "\n".join(found.faults[:20])))
    results.append(operations(each))
    results.append(signing_in(each))
    *signed_in, requests = people(each)
    results.append((signed_in[0], signed_in[1], signed_in[2]))
    for name, count, fault in results[-4:]:
        print(f"{name:16} {count:>10,} inputs  {'FAULT' if fault else 'ok'}")
    for name, each_route in (("routes", found), ("people", requests)):
        statuses = dict(sorted(each_route.statuses.items()))
        print(f"{name} by status: {statuses}; the slowest took {each_route.slowest * 1000:.0f} ms")
    faults = [(name, fault) for name, _, fault in results if fault]
    total = sum(count for _, count, _ in results)
    print(f"{total:,} inputs in {(time.monotonic() - begun) / 60:.1f} minutes: {len(faults)} targets with faults.")
    for name, fault in faults:
        print(f"\n== {name}\n{fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
