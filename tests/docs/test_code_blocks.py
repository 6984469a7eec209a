import re
from pathlib import Path

import pytest

from cases import for_each
from scripts.docs import ROOT, blocks, broken_links, documents, region

pytestmark = pytest.mark.check

PAGES = list(documents())
COPIED = {"python", "apache", "nginx", "html", "json", "js", "toml", "yaml", "ini"}
FREE = {"", "text", "mermaid"}
TYPED = re.compile(r"README\.md|docs/tutorial\.md|docs/(?:guides|recipes)/.*")
"""The pages whose commands test_typed_pages.py types."""
COMMANDS = {
    "millstream run shop.py": "tests/docs/test_typed_pages.py",
    "make dist": "tests/test_package.py",
    ".venv/bin/python -m benches --only text --only chunked --rounds 3 --against ../main/src": "tests/test_benches.py",
    "pip install fastapi": "it asks the index",
}
"""The commands of the other pages -> the test that runs each, or why none does."""
SERVES = re.compile(r"(?:\$ )?(?:[A-Z_]+=\S+ )*millstream (?:run|gateway|dev) ")
"""A command that doesn't return, so the next one needs another terminal."""
INSTALL = "install.md"
NEEDED = {"pytest", "fastapi"}
"""What examples import besides Millstream and what it brings."""


@for_each("page", PAGES)
def test_code_blocks_match_the_examples(page: Path) -> None:
    for block in blocks(page.read_text("utf-8")):
        if block.language in COPIED:
            assert block.source.startswith(("examples/", "tests/interop/")), (
                f"name the source of this block:\n{block.body}"
            )
        if block.source:
            assert block.body == region(block.source), f"run `make docs`: {block.source} has changed"


@for_each("page", PAGES)
def test_documented_commands_are_tested(page: Path) -> None:
    for block in blocks(page.read_text("utf-8")):
        assert block.language in COPIED | FREE | {"sh"}
        if block.language == "sh":
            typed = TYPED.fullmatch(page.relative_to(ROOT).as_posix())
            assert typed or set(block.body.splitlines()) <= set(COMMANDS)


@for_each("page", [page for page in PAGES if page.parent.name == "recipes"])
def test_recipe_blocks_end_with_the_command_that_serves(page: Path) -> None:
    for block in blocks(page.read_text("utf-8")):
        if block.language in ("sh", "text"):
            typed = [line for line in block.body.splitlines() if block.language == "sh" or line.startswith("$ ")]
            assert not [line for line in typed[:-1] if SERVES.match(line)], f"start the server last:\n{block.body}"


@for_each("page", PAGES)
def test_links_resolve(page: Path) -> None:
    assert broken_links(page) == []


@for_each("page", PAGES)
def test_pages_mention_the_extras_they_need(page: Path) -> None:
    text = page.read_text("utf-8")
    shell = [line for block in blocks(text) if block.language == "sh" for line in block.body.splitlines()]
    if any(line.startswith(("millstream ", "uvicorn ", "pytest")) for line in shell):
        assert "pip install millstream" in shell or f"{INSTALL})" in text or "(../tutorial.md)" in text
    code = "".join(block.body for block in blocks(text) if block.language == "python")
    imported = {name for name in NEEDED if re.search(rf"^(?:import|from) {name}\b", code, re.MULTILINE)}
    got = {name for line in shell if line.startswith("pip install ") for name in line.split()[2:]}
    assert imported <= got
