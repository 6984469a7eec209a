import re
from pathlib import Path

import pytest

from cases import for_each
from examples_index import read_index
from millstream._cli.project import copy_template
from scripts.docs import ROOT, broken_links, filled

pytestmark = pytest.mark.check

EXAMPLES = ROOT / "examples"
INDEX = EXAMPLES / "README.md"


def test_every_example_is_in_the_index() -> None:
    linked = {target.partition("/")[0] for target in re.findall(r"\]\(([^)]+)\)", INDEX.read_text("utf-8"))}
    present = {path.name for path in EXAMPLES.iterdir() if not path.name.startswith((".", "__"))}
    assert present - linked == {"README.md"}


@for_each("page", [INDEX, *sorted(EXAMPLES.glob("*/README.md"))], ids=lambda page: page.parent.name)
def test_links_and_copied_blocks_of_examples_are_current(page: Path) -> None:
    assert broken_links(page) == []
    assert filled(page.read_text("utf-8")) == page.read_text("utf-8")


def test_every_system_is_a_template_with_the_files_that_users_keep() -> None:
    for row in read_index():
        files = copy_template("x", row.template)
        assert files["README.md"] == (EXAMPLES / row.folder / "README.md").read_text("utf-8")
        assert {"README.md", "requirements.txt", "pyproject.toml", ".gitignore"} <= set(files)
        assert any(re.search(r"(^|/)(docker-)?compose\.ya?ml$", name) for name in files)
        assert any(name.startswith("test_") for name in files)
