"""The systems that examples/README.md lists: their template, folder, commands, and output."""

import re
from typing import NamedTuple

from processes import ROOT
from reader_world import TypedCommand, steps


class System(NamedTuple):
    """A row of the table."""

    template: str
    folder: str
    start: str
    call: str
    printed: str


def read_index() -> list[System]:
    """Return the rows."""
    rows: list[System] = []
    for line in (ROOT / "examples" / "README.md").read_text("utf-8").splitlines():
        if match := re.match(r"\| `(\w+)` \| \[(\w+)\]\(\w+/README\.md\)", line):
            start, call, printed = re.findall(r"`([^`]+)`", line)[-3:]
            rows.append(System(match[1], match[2], start, call, printed))
    return rows


def read_outputs() -> dict[str, str]:
    """Return each command on docs/examples.md, with its output. Times match any time."""
    text = re.sub(r"20\d\d-\d\d-\d\dT[\d:]{8}\+\d\d", "20…+…", (ROOT / "docs" / "examples.md").read_text("utf-8"))
    return {step.command: step.printed for step in steps(text) if isinstance(step, TypedCommand)}
