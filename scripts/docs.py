"""Insert the examples into the documents, and check the documents' links.

A block of code follows a line such as ``<!-- examples/greet.py#server -->``, which names a file and a region in it (``#
region: server`` to ``# endregion``, or the same after ``//``), or a file alone for all of it. ``make docs`` updates the
blocks. The tests fail if they differ.
"""

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(
    r"(?:^<!-- (?P<source>[\w./-]+\.\w+(?:#[\w-]+)?) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
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


def broken_links(page: Path) -> list[str]:
    """Return the targets of links inside the project that don't exist."""
    targets = [match["target"] for match in LINK.finditer(page.read_text("utf-8"))]
    return [target for target in targets if not (page.parent / target).exists()]


def main() -> int:
    """Write the blocks. Return 1 if a link is broken."""
    broken = 0
    for page in documents():
        text = page.read_text("utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, "utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
        for target in broken_links(page):
            print(f"{page.relative_to(ROOT)} points to {target}, which is not there")
            broken += 1
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
