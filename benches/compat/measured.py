"""A pytest plugin: which of the others' tests count, and how those that count ended.

A test counts where nothing in ``excluded.toml`` says that it's about something else: a rule looks at the path of its
file, at its name (as a `case`, with its parameters), or at its own source with that of its fixtures. What was left
out is counted by reason.
"""

import fnmatch
import inspect
import json
import os
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
SUITE = os.environ.get("COMPAT_SUITE", "")
RESULT = os.environ.get("COMPAT_RESULT", "")


def rules(suite: str) -> list[dict[str, Any]]:
    """What is left out of a suite: each with a reason, and `file`, `test` or `source`."""
    return tomllib.loads((HERE / "excluded.toml").read_text("utf-8"))[suite]["rule"]


def reason_of(item: Any, excluded: list[dict[str, Any]]) -> str | None:
    """Why a test doesn't count; None for one that does."""
    path, _, name = item.nodeid.partition("::")
    source = ""
    for rule in excluded:
        if "file" in rule and fnmatch.fnmatch(path, f"*{rule['file']}"):
            return rule["reason"]
        if "test" in rule and fnmatch.fnmatch(re.sub(r"\[.*", "", name), rule["test"]):
            return rule["reason"]
        if "case" in rule and fnmatch.fnmatch(name, rule["case"]):
            return rule["reason"]
        if "source" in rule:
            source = source or source_of(item)
            if re.search(rule["source"], source):
                return rule["reason"]
    return None


def source_of(item: Any) -> str:
    """The text of a test and of the fixtures of its file that it uses."""
    functions = [item.function]
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        functions += [each.func for each in definitions if ".py" in each.baseid and each.baseid in item.nodeid]
    texts = []
    for function in functions:
        try:
            texts.append(inspect.getsource(function))
        except (OSError, TypeError):
            continue
    return "\n".join(texts)


class Measure:
    """What is left out, and what happened to the rest."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self.passed: set[str] = set()
        self.failed: set[str] = set()
        self.skipped: set[str] = set()

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        excluded = rules(SUITE)
        kept, dropped = [], []
        for item in items:
            reason = reason_of(item, excluded)
            if reason is None:
                kept.append(item)
            else:
                dropped.append(item)
                self.left_out[reason] += 1
        items[:] = kept
        config.hook.pytest_deselected(items=dropped)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.skipped:
            self.skipped.add(report.nodeid)
        elif report.when == "call":
            self.passed.add(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not any(
            "file" in rule and fnmatch.fnmatch(report.nodeid, f"*{rule['file']}") for rule in rules(SUITE)
        ):
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        result = {
            "passed": sorted(self.passed - self.failed),
            "failed": sorted(self.failed),
            "skipped": sorted(self.skipped),
            "left_out": dict(self.left_out.most_common()),
        }
        Path(RESULT).write_text(json.dumps(result), "utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Measure, where the runner says for whom."""
    if RESULT:
        config.pluginmanager.register(Measure(), "millstream-compat-measure")
