"""What the documents show is what the tests run (STYLE 37).

A block of code or configuration equals a region of a file in `examples/`, all of which are run by tests. A shell block
holds only commands of the list below, each of which a test runs, or which is `make`; or ``curl``, which
`test_commands.py` runs. ``make docs`` repairs blocks.
"""

from pathlib import Path

import pytest

from scripts.docs import ROOT, blocks, broken_links, documents, region

PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in documents()]
COPIED = {"python", "nginx", "json", "js", "yaml"}
FREE = {"", "text"}
COMMANDS = {
    # tests/cli/test_run.py
    "millstream run examples/bookshop.py",
    "millstream run examples/bookshop.py --transport stdio",
    "millstream run examples/echo_math.py:echo_server",
    # tests/docs/test_commands.py
    "millstream run examples/hub.py",
    "millstream run examples/rooms.py",
    ".venv/bin/millstream run examples/greet.py",
    "python examples/greet.py",
    # tests/examples/test_under_uvicorn.py
    "uvicorn examples.echo_math:app",
    "uvicorn examples.hub:mcp",
    # the project's own commands
    "make setup",
    "make run",
    "make test",
}


@pytest.mark.parametrize("page", PAGES)
def test_code_is_copied_from_the_examples(page: Path) -> None:
    """STYLE 37: every code block is included from a file in examples/."""
    for block in blocks(page.read_text("utf-8")):
        if block.language in COPIED:
            assert block.source.startswith("examples/"), f"name the source of this block:\n{block.body}"
        if block.source:
            assert block.body == region(block.source), f"run `make docs`: {block.source} has changed"


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_ones_that_a_test_runs(page: Path) -> None:
    """A command in a document that nobody runs is wrong sooner or later."""
    for block in blocks(page.read_text("utf-8")):
        assert block.language in COPIED | FREE | {"sh"}
        if block.language == "sh":
            lines = {line for line in block.body.splitlines() if not line.startswith("curl ")}
            assert lines <= COMMANDS


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    """Links inside the project; addresses on the network are not looked up."""
    assert broken_links(page) == []
