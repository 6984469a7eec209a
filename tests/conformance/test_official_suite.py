import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from conformance.official import PATIENT, SELECTIONS, Report, run_suite
from file_queue import get_selected_tests
from patience import WAIT
from processes import NODE, ROOT, free_port, run_command, run_server, uvicorn_command
from property_settings import NIGHTLY
from proxies import NEEDS_NGINX, nginx
from redis_parts import RedisServer

pytestmark = pytest.mark.server


def of_four(target: str, port: int) -> list[str]:
    """Return the command of a server with four workers."""
    return run_command(target, port, "--workers", "4")


WAYS = {
    "lane": (run_command, "examples/everything.py"),
    "asgi": (uvicorn_command, "examples.everything:mcp"),
    "workers": (of_four, "examples/everything.py"),
}
SCORED = [name for name in SELECTIONS if name.startswith("scored")]
AGAIN = {"all-2025-11-25": "scored-2025-11-25", "all-2026-07-28": "scored-2026-07-28"}
"""Selections whose scenarios are all in another one."""
SKILLS = [name for name in SELECTIONS if name.startswith("skills")]
"""An extension that works the same on every server."""
OURS = [
    (way, name)
    for way in WAYS
    for name in SELECTIONS
    if way == "lane" or name in SCORED or (NIGHTLY and name not in (*AGAIN, *SKILLS))
]
"""By day, the revisions that aren't scored run against one of the ways."""
RUNS = [*OURS, *(pytest.param("nginx", name, marks=NEEDS_NGINX) for name in SCORED[0 if NIGHTLY else -1 :])]
_OF_SEVERAL = {
    "sep-2575-server-sends-prompts-list-changed-on-subscription",
    "sep-2575-server-sends-tools-list-changed-on-subscription",
}
REFUSED = {"workers": _OF_SEVERAL, "nginx": _OF_SEVERAL}
"""Expected warnings: with several workers, a call can't add a tool or prompt to all of them."""
AT_ONCE = 3
PAGE = ROOT / "docs" / "contributing" / "tested.md"


@contextmanager
def behind_nginx(folder: Path) -> Iterator[int]:
    """Run two servers with two workers each behind nginx; yield the port of nginx."""
    folder.mkdir()
    with ExitStack() as stack:
        redis = stack.enter_context(closing(RedisServer()))
        ports = free_port(), free_port()
        for port in ports:
            command = run_command("examples/everything.py", port, "--workers", "2", "--store", redis.url)
            stack.enter_context(run_server(command, port, folder / f"{port}.log"))
        yield stack.enter_context(nginx(folder, *ports))


class Runs:
    """Runs of the suite, each against a new server, started on first use."""

    def __init__(self, pool: ThreadPoolExecutor, folder: Path) -> None:
        self._pool = pool
        self._folder = folder
        self._futures: dict[tuple[str, str], Future[Report]] = {}

    def start(self, way: str, name: str) -> Future[Report]:
        if (way, name) not in self._futures:
            self._futures[way, name] = self._pool.submit(self._run, way, name)
        return self._futures[way, name]

    def _run(self, way: str, name: str) -> Report:
        output = self._folder / f"{way}-{name}"
        with ExitStack() as stack:
            if way == "nginx":
                port = stack.enter_context(behind_nginx(output.with_suffix(".front")))
            else:
                command, target = WAYS[way]
                port = free_port()
                stack.enter_context(run_server(command(target, port), port, output.with_suffix(".log")))
            return run_suite(f"http://127.0.0.1:{port}/mcp", SELECTIONS[name], output)

    def report(self, way: str, name: str) -> Report:
        return self.start(way, name).result()


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Yield the runs for the collected tests, already started."""
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        runs = Runs(pool, tmp_path_factory.mktemp("conformance"))
        for item in get_selected_tests(request.session):
            if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec"):
                runs.start(item.callspec.params.get("way", "lane"), item.callspec.params["name"])
        yield runs


def explained() -> dict[tuple[str, str], str]:
    """Return the reasons in the table of the page, by scenario and check."""
    row = re.compile(r"^\| `([^`|]+)` \| `([^`|]+)` \| (?:WARNING|SKIPPED) \| (.+?) \|$", re.MULTILINE)
    return {(scenario, check): reason for scenario, check, reason in row.findall(PAGE.read_text("utf-8"))}


@pytest.mark.parametrize(("way", "name"), RUNS)
def test_official_suite_passes_without_unexplained_results(runs: Runs, way: str, name: str) -> None:
    report = runs.report(way, name)
    assert report.having("FAILURE") == []
    assert report.exit_code == 0, report.printed
    assert len(report.scenarios) == SELECTIONS[name].scenarios
    reasons, refused = explained(), REFUSED.get(way, set())
    unexplained = [each for each in report.having("WARNING", "SKIPPED") if (each.scenario, each.id) not in reasons]
    assert [check for check in unexplained if check.id not in refused] == []


@pytest.mark.parametrize("name", AGAIN)
def test_scenarios_run_on_one_server_are_covered_by_another(runs: Runs, name: str) -> None:
    looked_at = {
        one: {(each.scenario, each.id) for each in runs.report("lane", one).checks} for one in (name, AGAIN[name])
    }
    assert looked_at[name] <= looked_at[AGAIN[name]]


def test_every_explanation_is_used(runs: Runs) -> None:
    happened = {
        (check.scenario, check.id)
        for way, name in OURS
        for check in runs.report(way, name).having("WARNING", "SKIPPED")
        if check.id not in REFUSED.get(way, set())
    }
    assert set(explained()) - happened == set()


def test_suite_timeouts_tolerate_a_stalled_machine() -> None:
    script = """
const started = performance.now(), controller = new AbortController();
const took = (name) => () => console.log(name, performance.now() - started);
controller.signal.onabort = took("stream");
setTimeout(() => controller.abort(), 600);
AbortSignal.timeout(500).onabort = took("request");
setTimeout(took("pause"), 600);
setTimeout(() => { while (performance.now() - started < 2000); }, 10);
"""
    command = [NODE, "--require", str(PATIENT), "-e", script]
    printed = subprocess.run(
        command, env={**os.environ, "PATIENCE_MS": "2800"}, capture_output=True, text=True, timeout=WAIT, check=True
    ).stdout
    took = {name: float(milliseconds) for name, milliseconds in map(str.split, printed.splitlines())}
    granularity = 1  # Node's timers have a resolution of a millisecond
    assert took["request"] >= 2_500 - granularity
    assert took["pause"] >= 2_600 - granularity
    assert took["stream"] >= 2_800 - granularity
