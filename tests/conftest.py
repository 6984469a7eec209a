"""Hooks for all tests: signals, timeouts, test order, a separate state folder, and `--update` for transcripts."""

import asyncio
import gc
import os
import re
import signal
import sys
import traceback
from collections.abc import Generator, Iterator
from contextlib import suppress
from functools import cache
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

import file_queue
import property_settings  # noqa: F401  loads the profile of Hypothesis
from loaded import Loaded
from processes import ROOT, RunState
from programs import describe_missing


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.default_int_handler(number, frame)


# Servers started by tests would inherit signals that a background job or `nohup` ignores, but not a Python handler.
# SIGINT gets a handler other than Python's own, because asyncio replaces that one on each run of a loop, which is slow.
signal.signal(signal.SIGINT, _interrupt)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


HANGS = 120
"""Seconds after which a hanging test fails. Windows has no such alarm."""
MARKED_HANGS = 600
"""The same for tests with marks, and for all tests under `make busy`."""
NIGHTLY_HANGS = 2 * 3600


def _describe_stacks() -> str:
    """Return the stacks of all threads, and of the tasks of the running event loop."""
    text = StringIO()
    for thread, frame in sys._current_frames().items():
        text.write(f"\nThread {thread}:\n{''.join(traceback.format_stack(frame))}")
    with suppress(RuntimeError):  # no event loop runs
        for task in asyncio.all_tasks():
            text.write("\n")
            task.print_stack(file=text)
    return text.getvalue()


def _end_hanging_test(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"The test hangs{_describe_stacks()}")


if hasattr(signal, "SIGALRM"):
    signal.signal(signal.SIGALRM, _end_hanging_test)


def _seconds_to_hang(item: pytest.Item) -> int:
    if item.get_closest_marker("nightly"):
        return NIGHTLY_HANGS
    marked = any(item.get_closest_marker(each) for each in ("server", "many", "check"))
    return MARKED_HANGS if marked or os.environ.get("BUSY_MACHINE") else HANGS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite the server lines of tests/transcripts")


def pytest_configure(config: pytest.Config) -> None:
    """Let workers collect only the files that they run."""
    file_queue.install(config)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip files and folders whose tests are all deselected, without importing them."""
    expression = config.getoption("markexpr")
    left_out = frozenset(re.findall(r"\bnot (\w+)", expression))
    if collection_path.is_dir():
        files = list(collection_path.rglob("test_*.py"))
    else:
        files = [collection_path] if collection_path.name.startswith("test_") else []
    if expression == "check":
        return (bool(files) and not any("pytest.mark.check" in path.read_text("utf-8") for path in files)) or None
    return (bool(files) and all(_marks(path) & left_out for path in files)) or None


@cache
def _marks(path: Path) -> frozenset[str]:
    """Return the marks that a file gives to all of its tests."""
    line = re.search(r"^pytestmark = .*(?:\n[ )\]].*)*", path.read_text("utf-8"), re.MULTILINE)
    return frozenset(re.findall(r"pytest\.mark\.(\w+)", line.group())) if line else frozenset()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark property tests with `many`."""
    if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
        item.add_marker("many")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files so that all cores stay busy."""
    serve = {item.path for item in items if item.get_closest_marker("server") is not None}
    order = file_queue.order_files((item.path for item in items), serve)
    places = {path: place for place, path in enumerate(order)}
    items.sort(key=lambda item: places[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exclude collected tests from garbage collection, because they live as long as the run.

    Later collections run after 20,000 new objects instead of 700, because tests leave little garbage.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        gc.set_threshold(20_000)


@pytest.fixture(scope="module")
def no_garbage() -> Iterator[None]:
    """Turn garbage collection off for tests that keep the syntax trees of all sources: a million objects."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> None:  # pyright: ignore[reportUnusedFunction]
    """Use a separate state folder for this run, in child processes, too.

    Child processes write no bytecode. Otherwise, a program that a test changes twice within a second, keeping its
    length, would run in its older version.
    """
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    # A compile cache shared by all Node programs of the run makes Playwright start a fifth faster.
    os.environ["NODE_COMPILE_CACHE"] = str(tmp_path_factory.getbasetemp().parent / "node")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Send one report instead of six for each passed test from a pytest-xdist worker.

    The reports take longer than most tests. `--durations` requires all of them.
    """
    if not hasattr(item.config, "workerinput") or item.config.getoption("durations") is not None:
        return None
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    passed = all(report.passed for report in reports)
    for report in reports:
        if report.when == "call" or not passed:
            item.ihook.pytest_runtest_logreport(report=report)
    return True


def _describe_missing_programs(config: pytest.Config) -> list[str]:
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    skipped = [] if reporter is None else reporter.stats.get("skipped", [])
    return describe_missing(str(report.longrepr) for report in skipped)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in CI that left tests out."""
    if os.environ.get("CI") and _describe_missing_programs(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """End the run with what it left out for lack of a program, and how to install that."""
    lines = _describe_missing_programs(config)
    if lines:
        terminalreporter.section("left out")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """After a failure, servers that tests share are replaced at their next use."""
    report = yield
    if report.failed:
        RunState.failures += 1
        RunState.refused = ""
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Drop what a failed test left open, so that one failure isn't several: its sockets and tasks would be reported
    as errors of the tests that follow.
    """
    if hasattr(signal, "SIGALRM"):
        signal.alarm(_seconds_to_hang(item))
    Loaded.note()
    RunState.is_unit = not any(item.get_closest_marker(each) for each in ("server", "nightly", "check"))
    if RunState.failures > RunState.collected:
        RunState.collected = RunState.failures
        report, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            for name in ("last_exc", "last_type", "last_value", "last_traceback"):
                vars(sys).pop(name, None)
            gc.collect()
        finally:
            sys.unraisablehook = report
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """Turn off the alarm that `pytest_runtest_setup` has set, and fail a test that hid a refusal."""
    try:
        result = yield
    finally:
        Loaded.forget()
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)
        RunState.is_unit = False
        refused, RunState.refused = RunState.refused, ""
    assert not refused, refused
    return result


_ENVIRONMENTS = re.compile(re.escape(str(ROOT)) + r"/\.(?:venv-|bench/)")


_STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
_LOOKUPS = {"cc", "gcc", "ld", "ldconfig", "objdump", "uname"}
"""Commands that the standard library runs once per process, to find a library or to name the machine."""


def _refuse_in_unit(event: str, arguments: tuple[Any, ...], state: type[RunState] = RunState) -> None:
    """Refuse what `make unit` works without: processes, and ignored folders that only `make test` creates.

    `state` is a parameter because Python calls the hook until its end, when a module's names have no values.
    """
    if not state.is_unit or (event != "open" and event not in _STARTS):
        return
    name = str(arguments[0]) if arguments else ""
    if event != "open" and Path(name).name not in _LOOKUPS:
        state.refused = f"Tests that start processes need the mark `server`. This one starts {arguments!r:.200}."
        raise AssertionError(state.refused)
    if event == "open" and _ENVIRONMENTS.match(name) and not name.startswith(sys.prefix + os.sep):
        state.refused = f"Tests that read {name} need the mark `server`, because `make unit` works without it."
        raise AssertionError(state.refused)


sys.addaudithook(_refuse_in_unit)
