"""docs/architecture.md says what the code does: houses, functions, and who imports whom."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts.docs import ROOT
from test_structure import LAYERS, PACKAGE, imported, tree_of

PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
STEP = re.compile(
    r"(?P<indent> *)(?:(?P<mark>->|~>) )?(?P<file>[\w/]+\.py) (?P<name>[\w.]+)(?: \[(?P<by>[\w/]+\.py)\])?(?:: .+)?"
)


class Step(NamedTuple):
    """One line of a drawing, and the step that calls it."""

    file: str
    name: str
    mark: str
    by: str
    caller: "Step | None"


def drawing(text: str) -> list[Step]:
    """The steps of one drawing."""
    steps: list[Step] = []
    above: list[tuple[int, Step]] = []
    for line in text.splitlines():
        found = STEP.fullmatch(line)
        assert found, f"no step: {line!r}"
        indent = len(found["indent"])
        above = [(depth, step) for depth, step in above if depth < indent]
        caller = above[-1][1] if above else None
        step = Step(found["file"], found["name"], found["mark"] or "", found["by"] or "", caller)
        above.append((indent, step))
        steps.append(step)
    return steps


DRAWINGS = [drawing(text) for text in re.findall(r"^```text\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)]
STEPS = [step for steps in DRAWINGS for step in steps]
TOLD = [pytest.param(step, id=f"{step.file}:{step.name}") for step in STEPS]


def imports(importer: str, file: str) -> bool:
    """Whether a file imports another, anywhere in its code."""
    if importer == file:
        return True
    module = "millstream." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    names = set(imported(PACKAGE / importer))
    house = PACKAGE / Path(file).parent / "__init__.py"
    if any(name == module or name.startswith(f"{module}.") for name in names):
        return True
    # By way of the package that shows the module's names, as `from millstream.hub import Hub` does.
    package = module.rpartition(".")[0]
    shown = {name.rpartition(".")[2] for name in imported(house) if name.startswith(f"{module}.")}
    return any(name == f"{package}.{each}" for each in shown for name in names)


def test_the_houses_are_those_of_the_structure_in_their_order() -> None:
    """One list; the page explains it."""
    table = PAGE.partition("## The houses")[2].partition("## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)
    assert [house for house, _ in rows] == LAYERS
    empty = [house for house in LAYERS if not (PACKAGE / house).exists() and not (PACKAGE / f"{house}.py").exists()]
    assert [house for house, text in rows if text.startswith("*Empty.*")] == empty


def test_every_way_is_drawn() -> None:
    """A drawing that the pattern does not find would not be tested."""
    titles = re.findall(r"^## (One .+)$", PAGE, re.MULTILINE)
    assert titles == [
        "One call", "One question", "One broadcast", "One WebSocket message", "One page of a program's own",
    ]  # fmt: skip
    assert len(DRAWINGS) == PAGE.count("```text")
    for title in titles:
        assert "```text" in PAGE.partition(f"## {title}")[2].partition("\n## ")[0], title
    assert [step for steps in DRAWINGS for step in steps[1:] if step.caller is None or not step.mark] == []


@pytest.mark.parametrize("step", TOLD)
def test_what_a_drawing_names_exists(step: Step) -> None:
    """A renamed function is renamed on the page too."""
    body: list[ast.stmt] = tree_of(PACKAGE / step.file).body
    for part in step.name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [node for node in body if isinstance(node, kinds) and node.name == part]
        assert found, f"{step.file} has no {step.name}"
        body = found[0].body


@pytest.mark.parametrize("step", TOLD)
def test_a_step_is_imported_by_its_caller_or_handed_over_as_the_drawing_says(step: Step) -> None:
    """An arrow is an import; a wave is none, and names the file that knows both ends."""
    if step.caller is None:
        return
    known = imports(step.caller.file, step.file)
    if step.mark == "->":
        assert not step.by
        assert known, f"{step.caller.file} does not import {step.file}"
    else:
        assert not known, f"{step.caller.file} imports {step.file}: draw an arrow"
        assert step.by, "say who puts the two together"
        assert imports(step.by, step.file), f"{step.by} does not import {step.file}"
