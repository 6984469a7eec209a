"""What every test shares: a state folder of the run's own, the count of failures, `--update` for the transcripts."""

import gc
import os
import re
import signal
import sys
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from types import FrameType

import pytest
from _pytest.runner import runtestprotocol

import property_settings  # noqa: F401  loads the profile of Hypothesis
from processes import RunState


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.default_int_handler(number, frame)


# What a background job or `nohup` ignores, the servers that tests start would ignore, too. A Python handler does not
# outlive the start of another program. The one of SIGINT isn't Python's own: asyncio would replace that for each `run`
# of a loop, which takes longer than much of what runs there.
signal.signal(signal.SIGINT, _interrupt)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


HANGS = 900
"""Seconds after which a test that waits for what never comes fails, instead of the whole run."""
NIGHTLY_HANGS = 2 * 3600


def _end_hanging_test(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("The test hangs")


signal.signal(signal.SIGALRM, _end_hanging_test)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite the server lines of tests/transcripts")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file whose tests are all left out, and nothing of a folder of such files."""
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
    """Return the marks of all tests of a file."""
    line = re.search(r"^pytestmark = .*(?:\n[ )\]].*)*", path.read_text("utf-8"), re.MULTILINE)
    return frozenset(re.findall(r"pytest\.mark\.(\w+)", line.group())) if line else frozenset()


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test whose inputs are generated drives many, whatever else its file does."""
    if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
        item.add_marker("many")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a browser come first, and follow each other, so that they share it: they keep the cores busy. Of the
    others that need servers, the later half waits more than it computes, and takes turns with files that only compute.
    Some of these come last: at the end, each worker has something short to do.
    """
    files = dict.fromkeys(item.path for item in items)
    serve = {item.path for item in items if item.get_closest_marker("server") is not None}
    shown = [path for path in files if path in serve and path.parent.name == "pages"]
    waiting = [path for path in files if path in serve and path.parent.name != "pages"]
    computing = [path for path in files if path not in serve]
    half, most = len(waiting) // 2, len(computing) * 3 // 4
    later = waiting[half:]
    turns = [*enumerate(later), *((at * len(later) / most, path) for at, path in enumerate(computing[:most]))]
    order = [*shown, *waiting[:half], *(path for _, path in sorted(turns)), *computing[most:]]
    places = {path: place for place, path in enumerate(order)}
    items.sort(key=lambda item: places[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected lives as long as the run: no look for garbage goes through it, now or later.

    The garbage among it stays, too: to look for that takes as long as a hundred tests. Later looks are rarer than
    usual, since tests leave little: one for each 20,000 objects that stay, instead of 700.
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
    """For who keeps the syntax trees of all sources: a million objects, and to look for garbage among them again and
    again takes longer than to parse.
    """
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> None:  # pyright: ignore[reportUnusedFunction]
    """Keys that a server makes go to a folder of this run, in child processes too.

    These read the bytecode that this process has written, and write none: a program that a test changes twice within a
    second, to the same length, would be taken for the one before.
    """
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    # What Node has compiled is for all programs of the run: the start of Playwright takes a fifth less.
    os.environ["NODE_COMPILE_CACHE"] = str(tmp_path_factory.getbasetemp().parent / "node")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """A worker of pytest-xdist sends one report of a test that passed, and everything about one that did not.

    Otherwise it sends six messages for each test, which take longer than most tests. The list of the slowest phases
    needs them all.
    """
    if not hasattr(item.config, "workerinput") or item.config.getoption("durations") is not None:
        return None
    signal.alarm(NIGHTLY_HANGS if item.get_closest_marker("nightly") else HANGS)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    signal.alarm(0)
    passed = all(report.passed for report in reports)
    for report in reports:
        if report.when == "call" or not passed:
            item.ihook.pytest_runtest_logreport(report=report)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """After a failure, servers that tests share are replaced at their next use."""
    report = yield
    RunState.failures += report.failed
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Drop what a failed test left open, so that one failure isn't several: its sockets and tasks would be reported
    as errors of the tests that follow.
    """
    RunState.may_serve = item.get_closest_marker("server") is not None  # `make unit` needs no server
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
