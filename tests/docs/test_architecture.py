"""The pages about the architecture name files that exist."""

import re

import pytest

from scripts.docs import ROOT

pytestmark = pytest.mark.check

PACKAGE = ROOT / "src" / "millstream"
PATH = re.compile(r"`((?:\w+/)+(?:\w+\.py)?|_\w+\.py)`")


def test_paths_on_the_pages_exist() -> None:
    """A page that names a file of the past sends its reader away."""
    pages = [ROOT / "docs" / "architecture.md", *sorted((ROOT / "docs" / "architecture").glob("*.md"))]
    named = {(page.name, name) for page in pages for name in PATH.findall(page.read_text("utf-8"))}
    assert len(named) > 40
    below = ("_web/assets/", "")
    missing = [(page, name) for page, name in named if not any((PACKAGE / up / name).exists() for up in below)]
    assert [each for each in missing if not each[1].startswith("tests/")] == []
