import re
from pkgutil import resolve_name

import pytest

from scripts.docs import ROOT

pytestmark = pytest.mark.check

PACKAGE = ROOT / "src" / "millstream"
PATH = re.compile(r"`((?:\w+/)+(?:\w+\.py)?|_\w+\.py)`")


def test_paths_on_the_page_exist() -> None:
    named = set(PATH.findall((ROOT / "docs" / "architecture.md").read_text("utf-8")))
    assert len(named) > 40
    assert [name for name in named if not (PACKAGE / name).exists() and not name.startswith("tests/")] == []


NAME = re.compile(r"`(millstream(?:\.\w+)+)(?:\(\))?`")


def test_dotted_names_on_all_pages_exist() -> None:
    """Decisions also tell what was there before."""
    pages = [page for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if page.parent.name != "decisions"]
    found = {name for page in pages for name in NAME.findall(page.read_text("utf-8"))} - {"millstream.py"}
    assert len(found) > 10
    for name in sorted(found):
        resolve_name(name)
