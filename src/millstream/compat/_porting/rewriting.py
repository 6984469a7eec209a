"""A program with its imports changed, and nothing else."""

import difflib
from collections.abc import Iterable

from millstream.compat._porting.survey import Change


def rewritten(source: str, changes: Iterable[Change]) -> str:
    """The program with our modules in the place of theirs."""
    lines = source.splitlines(keepends=True)
    for change in changes:
        at = change.line - 1
        line = lines[at]
        start = line.index(change.theirs, change.column)
        lines[at] = line[:start] + change.ours + line[start + len(change.theirs) :]
    return "".join(lines)


def difference(before: str, after: str, name: str) -> str:
    """What changes, as a unified diff."""
    return "".join(difflib.unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), name, name))
