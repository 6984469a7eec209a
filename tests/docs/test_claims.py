"""Pages that describe the whole product name the test that proves each claim.

A comment after the claim, such as `<!-- test: auth/test_keys.py::test_expired_keys_are_rejected -->`, names one or more
tests. For another product or a measurement, `<!-- source: fastmcp 4.2.3 -->` names the version, URL, or file.
"""

import ast
import re
from functools import cache

import pytest

from scripts.docs import ROOT
from tests.support.cases import for_each

pytestmark = pytest.mark.check

# After "#" is the only section of the page that makes claims.
PAGES = ["docs/security.md", "README.md", "docs/comparison.md", "docs/reliability.md",
         "docs/explanation/eras.md#How a gateway joins two eras",
         "docs/reference/gateway-operation.md#Sessions and processes",
         "docs/contributing/tested.md#Security tests"]  # fmt: skip
# Sections of links.
WITHOUT_CLAIMS = ("Where next",)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# tests/docs/test_route_tables.py compares these tables with servers.
GENERATED = re.compile(r"^<!-- table: [\w-]+ -->\n\n(?:\|.*\n)*", re.MULTILINE)
HEADER = re.compile(r"^\|.*\n\|[-:| ]+\|$", re.MULTILINE)
PROOF = re.compile(r"<!-- (test|source): (.+?) -->")
CODE_OR_TARGET = re.compile(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->")
UNIVERSAL = re.compile(r"\b(?:all|every|any|always|never|only|nothing|no)\b", re.IGNORECASE)
ROW_OR_BULLET = re.compile(r"- |\|(?! \*\*[^|]*\*\* \|[ |]*$)")


def is_universal(line: str) -> bool:
    return UNIVERSAL.search(CODE_OR_TARGET.sub("", line)) is not None


def claims(text: str) -> list[str]:
    """Return the table rows, bullets, and paragraphs with a universal word."""
    found: list[str] = []
    for section in re.split(r"^##+ ", text, flags=re.MULTILINE):
        title, _, body = section.partition("\n")
        if title not in WITHOUT_CLAIMS:
            lines = HEADER.sub("", GENERATED.sub("", FENCE.sub("", body))).splitlines()
            found += [each for each in lines if ROW_OR_BULLET.match(each) or is_universal(each)]
    return found


def read(page: str) -> str:
    path, _, title = page.partition("#")
    text = (ROOT / path).read_text("utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0] if title else text


@cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / path).read_text("utf-8"))
    functions = (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
    return {each.name for each in functions if each.name.startswith("test_")}


@for_each("page", PAGES)
def test_claims_name_their_test(page: str) -> None:
    lines = claims(read(page))
    assert len(lines) > 5
    assert [line for line in lines if not PROOF.search(line)] == []


@for_each("page", PAGES)
def test_named_tests_and_files_exist(page: str) -> None:
    for kind, names in PROOF.findall(read(page)):
        for name in names.split(", "):
            path, _, function = name.partition("::")
            if kind == "test":
                assert (ROOT / "tests" / path).is_file(), name
                assert function in names_in(path), name
            elif path.startswith(("benches/", "docs/", "tests/")):
                assert (ROOT / path).is_file(), name


def test_universal_words_rows_and_bullets_are_claims() -> None:
    text = (
        "# Page\n\nSome `only`.\n\nIt never fails.\n\n| a | b |\n|---|---|\n| **Part** | |\n| x | y |\n\n- One.\n\n"
        "```sh\nall\n```\n\n<!-- table: paths -->\n\n| a |\n|---|\n| all |\n\n## Where next\n\n- [A page](all.md)\n"
    )
    assert claims(text) == ["It never fails.", "| x | y |", "- One."]
