"""The page on stability lists each public module, and the pages explain each public name."""

import ast
import re
from functools import cache

import pytest

from processes import ROOT

pytestmark = pytest.mark.check

DOCS = ROOT / "docs"
SOURCES = ROOT / "src"
SENTENCE = "\n\nExperimental: a minor version can change it. See Stability in the documentation.\n"
"""In the docstring of each experimental module, and in no other one."""
ADMONITION = re.compile(
    r'!!! warning "Experimental"\n    A minor version can change what this (page|section) describes. See \[Stability]\('
)
"""On the pages of each experimental module, and on no other one."""
ROW = re.compile(r"^\| `(?P<module>millstream[\w.]*)` \| (?P<tier>\w+) \| (?P<purpose>.+) \|$", re.MULTILINE)
SPAN = re.compile(r"`[^`]+`")
WORDS_FOR_A_NAME = 2
"""A sentence or row has more words outside of code than this for each of its names. A list of names has fewer."""


@cache
def public_modules() -> dict[str, ast.Module]:
    """Return the public modules by their dotted names."""
    names = {
        ".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (SOURCES / "millstream").rglob("*.py")
    }
    return {name: ast.parse(path.read_text("utf-8")) for name, path in names.items() if not re.search(r"\._", name)}


def public_names(tree: ast.Module) -> list[str]:
    """Return the names in ``__all__``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def rows() -> dict[str, tuple[str, str]]:
    """Return the tier and the purpose of each module on the page."""
    found = ROW.findall((DOCS / "stability.md").read_text("utf-8"))
    return {module: (tier, purpose) for module, tier, purpose in found}


def prose(text: str) -> list[str]:
    """Return the sentences and table rows of a page, without code blocks, headings, and generated tables."""
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!-- options: [\w-]+ -->\n\n(?:\|.*\n)+", "", text)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [part for line in lines for part in ([line] if line.startswith("|") else re.split(r"(?<=[.:?!]) ", line))]


def explained_names(text: str) -> set[str]:
    """Return the names in sentences that say something about each of them, and in such rows or their first cells."""
    found = set[str]()
    for part in prose(text):
        words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\]\([^)]*\)|<!--.*?-->", "", SPAN.sub("", part)))
        for named in (part, *re.findall(r"^\| (`[^|]+`) \|", part)):
            spans = SPAN.findall(named)
            if len(words) > WORDS_FOR_A_NAME * len(spans):
                found |= {name for span in spans for name in re.findall(r"\w+", span)}
    return found


def test_stability_page_lists_each_public_module() -> None:
    assert set(rows()) == set(public_modules()) - {"millstream.__main__"}
    assert {tier for tier, _ in rows().values()} == {"stable", "experimental"}


def test_docstrings_of_exactly_the_experimental_modules_say_so() -> None:
    marked = {name for name, tree in public_modules().items() if SENTENCE in f"{ast.get_docstring(tree)}\n"}
    assert marked == {module for module, (tier, _) in rows().items() if tier == "experimental"}


def test_pages_of_exactly_the_experimental_modules_say_so() -> None:
    linked = {
        page
        for tier, purpose in rows().values()
        if tier == "experimental"
        for page in re.findall(r"\]\(([\w/-]+\.md)", purpose)
    }
    purposes = [purpose for tier, purpose in rows().values() if tier == "experimental"]
    assert all("](" in purpose for purpose in purposes)
    marked = {
        path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if ADMONITION.search(path.read_text("utf-8"))
    }
    assert marked - {"reference/agent.md"} == linked
    assert "reference/agent.md" in marked


def test_pages_explain_each_public_name() -> None:
    pages = [path for path in DOCS.rglob("*.md") if path.parts[len(DOCS.parts)] not in ("contributing", "decisions")]
    explained = set[str]().union(*(explained_names(path.read_text("utf-8")) for path in pages))
    unexplained = {
        f"{module}.{name}"
        for module, tree in public_modules().items()
        if not f"{module}.".startswith("millstream.compat.")
        for name in public_names(tree)
        if name not in explained
    }
    assert unexplained == set()


def test_bare_lists_and_generated_tables_explain_nothing() -> None:
    assert explained_names("The module exports `is_array`, `is_object`, and `members`.") == set()
    assert explained_names("- `is_array`\n- `is_object`\n") == set()
    assert explained_names("| `is_array` | `is_object` |\n") == set()
    assert explained_names("```python\n# `is_array` says whether a value is an array\n```\n") == set()
    assert explained_names("<!-- options: x -->\n\n| `is_array` | Whether the value is an array. |\n\n") == set()
    assert explained_names("| `is_array` | Check that a value is an array. |") == {"is_array"}
