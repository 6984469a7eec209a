"""What MkDocs asks while it builds the site (mkdocs.yml names this file as its hook).

The navigation is docs/index.md: its headings are tabs, its bold lines are groups, and its lists are pages. Pages that
it doesn't link yet stand at the end of the tab of their folder, so that none is ever out of reach. Each public module
gets a page with what its docstrings say.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parent.parent / "docs"
SOURCES = DOCS.parent / "src"
MODULES = (
    "millstream",
    "millstream.client",
    "millstream.agent",
    "millstream.middleware",
    "millstream.extensions",
    "millstream.protocol",
    "millstream.auth",
    "millstream.hub",
    "millstream.testing",
    "millstream.gateway._openapi",
    "millstream.compat.fastmcp",
    "millstream.compat.types",
)
"""The public modules, in the order of the site. One that isn't there is left out."""
TABS = {
    "tutorial.md": "Tutorial",
    "guides": "Guides",
    "coming-from": "Guides",
    "reference": "Reference",
    "explanation": "Explanation",
    "decisions": "Decisions",
    "contributing": "Contributing",
}
"""The folder of a page that docs/index.md doesn't link -> the tab that gets it."""
MODULE_TAB = "Modules"
LINE = re.compile(
    r"^(?:## (?P<tab>.+)|\*\*(?P<group>.+)\*\*|- \[(?P<title>.+?)\]\((?P<page>[\w./-]+\.md)\).*)$", re.MULTILINE
)
OUTWARD = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>(?!https?:|#|mailto:)[^)#\s]+)(?:#[^)]*)?\)")

Nav = list[Any]


def navigation(index: str, pages: list[str]) -> Nav:
    """The tabs of the site.

    Args:
        index: the text of docs/index.md.
        pages: every page, relative to docs/.
    """
    tabs: dict[str, Nav] = {}
    here: Nav = []
    linked = {"index.md"}
    for match in LINE.finditer(index):
        if match["tab"]:
            here = tabs.setdefault(match["tab"], [])
        elif match["group"]:
            here = []
            tabs[next(reversed(tabs))].append({match["group"]: here})
        else:
            here.append({match["title"]: match["page"]})
            linked.add(match["page"])
    for page in sorted(set(pages) - linked):
        tabs.setdefault(TABS.get(page.split("/")[0], "Explanation"), []).append(page)
    return [{"Home": "index.md"}, *({tab: each[0] if len(each) == 1 else each} for tab, each in tabs.items())]


def modules() -> dict[str, str]:
    """Page -> module."""
    paths = {name: SOURCES / name.replace(".", "/") for name in MODULES}
    there = [name for name, path in paths.items() if path.is_dir() or path.with_suffix(".py").exists()]
    return {f"modules/{name}.md": name for name in there}


def on_config(config: Any) -> Any:
    """Fill in the navigation."""
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    nav = navigation((DOCS / "index.md").read_text("utf-8"), pages)
    config.nav = [*nav, {MODULE_TAB: [{name: page} for page, name in modules().items()]}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the modules."""
    for page, name in modules().items():
        files.append(File.generated(config, page, content=f"# `{name}`\n\n::: {name}\n"))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Make plain text of links that lead to files outside of docs/: the site doesn't have them.

    Pages with two columns get the whole width, and colors for the code of the others, which is text to our tests.
    """
    if page.file.src_uri.startswith("coming-from/"):
        page.meta["hide"] = ["navigation", "toc"]
        markdown = markdown.replace("```text\n", "```python\n")

    def plain(match: re.Match[str]) -> str:
        target = (DOCS / page.file.src_uri).parent / match["target"]
        return match[0] if target.resolve().is_relative_to(DOCS) else match["text"]

    return OUTWARD.sub(plain, markdown)
