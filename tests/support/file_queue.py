"""Distribute files to pytest-xdist's workers, which collect a file's tests when they run it.

Without this, each worker collects all tests before the first one runs. Here, the items that a worker collects first are
the files. A free worker takes the next file, so the tests of a file stay together.

Runs in one process (`-n 0`), of test ids, and with options that compare all tests work as usual.
"""

import gc
from collections.abc import Generator, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScheduling

_COMPARING = ("lf", "failedfirst", "newfirst", "stepwise")
"""Options that order or choose among all collected tests."""


def order_files(files: Iterable[Path], serve: set[Path]) -> list[Path]:
    """Order the files so that all cores stay busy. `serve` are those with server tests.

    Browser tests come first and together, because they share a browser. The later half of the other server tests mostly
    waits, so these files alternate with files that only compute. Short files come last.
    """
    files = list(dict.fromkeys(files))
    shown = [path for path in files if path in serve and path.parent.name == "pages"]
    waiting = [path for path in files if path in serve and path.parent.name != "pages"]
    computing = [path for path in files if path not in serve]
    half, most = len(waiting) // 2, len(computing) * 3 // 4
    later = waiting[half:]
    turns = [*enumerate(later), *((at * len(later) / most, path) for at, path in enumerate(computing[:most]))]
    return [*shown, *waiting[:half], *(path for _, path in sorted(turns)), *computing[most:]]


_TESTS = pytest.StashKey[list[pytest.Item]]()


def get_selected_tests(session: pytest.Session) -> list[pytest.Item]:
    """Return the tests that a fixture may prepare for: those of the file that runs, or all that were collected."""
    return session.stash.get(_TESTS, session.items)


class QueuedFile(pytest.Item):
    """A file whose tests aren't collected yet."""

    def runtest(self) -> None:
        raise NotImplementedError

    def run_tests(self, nextitem: pytest.Item | None) -> None:
        """Collect the file, and run its selected tests."""
        session = self.session
        place = session.items.index(self)
        session.stash[_TESTS] = tests = self._collect()
        for test, following in pairwise([*tests, nextitem]):
            assert test is not None
            session.items[place] = test  # each report has to be about the item that the worker runs
            test.ihook.pytest_runtest_protocol(item=test, nextitem=following)
            if session.shouldfail or session.shouldstop:
                break
        session.items[place] = self
        if not tests:  # the fixtures of an earlier file's folder end here if the next file is elsewhere
            session._setupstate.teardown_exact(nextitem)

    def _collect(self) -> list[pytest.Item]:
        assert self.parent is not None
        gc.disable()
        try:
            module = pytest.Module.from_parent(self.parent, path=self.path)
            tests = list(self.session.genitems(module))
            self.config.hook.pytest_collection_modifyitems(session=self.session, config=self.config, items=tests)
        finally:
            gc.enable()
        return tests


class WorkerFiles:
    """Hooks of a worker that takes files."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makemodule(self, module_path: Path, parent: pytest.Collector) -> Any:
        nodeid = module_path.relative_to(parent.config.rootpath).as_posix()
        return QueuedFile.from_parent(parent, name=module_path.name, path=module_path, nodeid=nodeid)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None]:
        """Order the files. Options such as `-m` apply to their tests."""
        queued = {item.path: item for item in items if isinstance(item, QueuedFile)}
        if queued:
            items.clear()
        yield
        serve = {path for path in queued if "mark.server" in path.read_text("utf-8")}
        items.extend(queued[path] for path in order_files(queued, serve))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if not isinstance(item, QueuedFile):
            return None
        item.run_tests(nextitem)
        return True


class ControllerFiles:
    """Hooks of the process that distributes the files."""

    def __init__(self) -> None:
        self._files = 0
        self._begun: set[str] = set()
        self._tests: set[str] = set()

    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["files"] = True

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Give a worker the next file when it begins its last one. A file that ends its worker isn't run again."""
        config.option.maxschedchunk = 1
        return LoadScheduling(config, log)

    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._files = len(ids)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Count the tests, so that a run without tests fails."""
        self._session = session
        result = yield
        session.testscollected = len(self._tests)
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Estimate the number of tests, for the progress that pytest prints."""
        self._tests.add(report.nodeid)
        self._begun.add(report.nodeid.split("::")[0])
        self._session.testscollected = len(self._tests) * self._files // len(self._begun)


class RetriedFiles:
    """With `--last-failed`, run every test of a file that has ended a worker, also of those that hadn't begun."""

    def __init__(self, last_failed: Any) -> None:
        self._last_failed = last_failed

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if isinstance(collector, pytest.File) and _get_id(collector) in self._last_failed.lastfailed:
            self._last_failed.lastfailed |= {_get_id(test): True for test in report.result}
        return report


def _get_id(node: Any) -> Any:
    return getattr(node, "id", node.nodeid)  # before pytest 9.2, its plugin knows tests by their nodeid


def install(config: pytest.Config) -> None:
    """Add the hooks for this process."""
    hooks: list[object] = []
    if hasattr(config, "workerinput"):
        hooks += [WorkerFiles()] if "files" in config.workerinput else []
    elif config.getoption("dist", "no") == "loadfile" and not any("::" in each for each in config.args):
        hooks += [] if any(config.getoption(each, False) for each in _COMPARING) else [ControllerFiles()]
    if config.getoption("lf", False):
        hooks.append(RetriedFiles(config.pluginmanager.get_plugin("lfplugin")))
    for each in hooks:
        config.pluginmanager.register(each)
