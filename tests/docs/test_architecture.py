import re

import pytest

from scripts.docs import ROOT

pytestmark = pytest.mark.check

PACKAGE = ROOT / "src" / "millstream"
PATH = re.compile(r"`((?:\w+/)+(?:\w+\.py)?|_\w+\.py)`")


def test_paths_on_the_page_exist() -> None:
    named = set(PATH.findall((ROOT / "docs" / "architecture.md").read_text("utf-8")))
    assert len(named) > 40
    assert [name for name in named if not (PACKAGE / name).exists() and not name.startswith("tests/")] == []
