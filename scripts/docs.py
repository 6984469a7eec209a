"""Insert the examples into the documents, and check the documents' links.

A block of code follows a line such as ``<!-- examples/greet.py#server -->``, which names a file and a region in it (``#
region: server`` to ``# endregion``, or the same after ``//``), or a file alone for all of it. ``make docs`` updates the
blocks. The tests fail if they differ.

A table follows a line such as ``<!-- table: limits -->``, a function of `tests/support/route_tables.py` or
`feature_table.py`. The rows come from running servers, and from the revisions in which tests run. After ``<!-- options:
upstreams -->``, names, types, and defaults come from the code, by `scripts/option_tables.py`. ``make docs``
updates all of them.
"""

import asyncio
import logging
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(
    r"(?:^<!-- (?P<source>[\w./-]+\.\w+(?:#[\w-]+)?) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
TABLE = re.compile(r"^<!-- table: (?P<name>[\w-]+) -->\n\n(?P<body>(?:\|.*\n)*)", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://)(?P<target>[^)#]+)(?:#[^)]*)?\)")


class Block(NamedTuple):
    """A fenced block. `source` is empty if no comment names one."""

    source: str
    language: str
    body: str


def documents() -> list[Path]:
    """Return the README and every page below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> Iterator[Block]:
    """Return the fenced blocks of a page, in order."""
    for match in FENCE.finditer(text):
        yield Block(match["source"] or "", match["language"], match["body"])


def region(source: str) -> str:
    """Return the text of ``path#region``, without the marks and the common indentation, or all of ``path``.

    Raises:
        ValueError: The file has no such region.
    """
    path, _, name = source.partition("#")
    text = (ROOT / path).read_text("utf-8")
    if not name:
        return text
    found = re.search(
        rf"^ *(?:#|//) region: {re.escape(name)}\n(.*?)^ *(?:#|//) endregion$", text, re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise ValueError(f"{path} has no region {name}")
    return textwrap.dedent(found[1]).strip("\n") + "\n"


def filled(text: str) -> str:
    """Return the page with every block replaced by its named source."""

    def fill(match: re.Match[str]) -> str:
        source = match["source"]
        return f"<!-- {source} -->\n```{match['language']}\n{region(source)}```" if source else match[0]

    return FENCE.sub(fill, text)


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """Return the page with every named table replaced."""
    return TABLE.sub(lambda match: f"<!-- table: {match['name']} -->\n\n{tables[match['name']]}", text)


async def make_tables() -> dict[str, str]:
    """Return every table by name."""
    sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests")]
    from feature_table import features_table  # noqa: PLC0415  it imports tests
    from route_tables import TABLES  # noqa: PLC0415  it starts servers, which the tests of other pages don't need

    return {name: await make() for name, make in TABLES.items()} | {"features": await features_table()}


def broken_links(page: Path) -> list[str]:
    """Return the targets of links inside the project that don't exist."""
    targets = [match["target"] for match in LINK.finditer(page.read_text("utf-8"))]
    return [target for target in targets if not (page.parent / target).exists()]


def main() -> int:
    """Write the blocks and tables. Return 1 if a link is broken."""
    logging.disable()  # warnings about settings that nobody would use
    broken, tables = 0, asyncio.run(make_tables())
    from scripts.option_tables import with_options  # noqa: PLC0415  like the tables above

    for page in documents():
        text = page.read_text("utf-8")
        if (new := with_options(with_tables(filled(text), tables))) != text:
            page.write_text(new, "utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
        for target in broken_links(page):
            print(f"{page.relative_to(ROOT)} points to {target}, which is not there")
            broken += 1
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
