"""Hooks of MkDocs for building the site (mkdocs.yml names this file).

The navigation is docs/contents.md: its headings are tabs, its bold lines are groups that fold, and its lists are pages.
Pages that it doesn't link yet are at the end of their folder's tab, so every page can be reached. Pages for
contributors aren't in the navigation and the search: docs/contributing/index.md links them. Each public package gets a
page with its docstrings. The look of the site is docs/theme, with the fonts, colors, and mark of the product's pages.
"""

import os
import re
import shutil
import subprocess
import tomllib
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parent.parent / "docs"
CONTENTS = DOCS / "contents.md"
ROOT = DOCS.parent
SOURCES = ROOT / "src"
ASSETS = SOURCES / "millstream" / "_web" / "assets"
MERMAID = ROOT / "requirements" / "site" / "node_modules" / "mermaid" / "dist"
OUR_ASSETS = {
    "assets/tokens.css": ASSETS / "tokens.css",
    "assets/mark.svg": ASSETS / "mark.svg",
    "assets/fonts/inter.woff2": ASSETS / "vendor" / "inter.woff2",
    "assets/fonts/geist-mono.woff2": ASSETS / "vendor" / "geist-mono.woff2",
    "mermaid/mermaid.esm.min.mjs": MERMAID / "mermaid.esm.min.mjs",
}
"""Path in the site -> the file."""
TABS = {
    "tutorial.md": ("Tutorial", ""),
    "guides": ("Guides", ""),
    "coming-from": ("Guides", ""),
    "reference": ("Reference", ""),
    "explanation": ("Understand", ""),
    "recipes": ("Guides", ""),
}
"""Folder of a page that docs/contents.md doesn't link -> the tab and group for it."""
FOR_CONTRIBUTORS = ("architecture.md", "contributing/", "decisions/")
MODULE_TAB = "Modules"
DEMO = TemporaryDirectory(prefix="millstream-site-")
"""The inspector with a recorded session, written by scripts/demo.py in the environment of Millstream."""
PYTHON = ROOT / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
LINE = re.compile(
    r"^(?:## (?P<tab>.+)|\*\*(?P<group>.+)\*\*|- \[(?P<title>.+?)\]\((?P<page>[\w./-]+\.md)\).*)$", re.MULTILINE
)
OUTWARD = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>(?!https?:|#|mailto:)[^)#\s]+)(?:#[^)]*)?\)")
REGION = re.compile(r"^# region: (?P<name>\S+)\n(?P<code>.*?)^# endregion", re.MULTILINE | re.DOTALL)

ROW = re.compile(r"(?<=<tr>\n)<td><code>(?P<name>-?-?[\w.-]+)</code>")

Nav = list[Any]


def navigation(contents: str, pages: list[str]) -> Nav:
    """Return the tabs of the site.

    Args:
        contents: The text of docs/contents.md.
        pages: Every page, relative to docs/.
    """
    tabs: dict[str, Nav] = {}
    here: Nav = []
    linked = {"index.md", CONTENTS.name}
    for match in LINE.finditer(contents):
        if match["tab"]:
            here = tabs.setdefault(match["tab"], [])
        elif match["group"]:
            here = []
            tabs[next(reversed(tabs))].append({match["group"]: here})
        else:
            here.append({match["title"]: match["page"]})
            linked.add(match["page"])
    groups: dict[tuple[str, str], Nav] = {}
    for page in sorted(set(pages) - linked):
        tab, group = TABS.get(page.split("/")[0], ("Understand", ""))
        there = tabs.setdefault(tab, [])
        if group:
            if (tab, group) not in groups:
                there.append({group: groups.setdefault((tab, group), [])})
            there = groups[tab, group]
        there.append(page)
    return [{"Home": "index.md"}, *({tab: each[0] if len(each) == 1 else each} for tab, each in tabs.items())]


def public_modules() -> list[str]:
    """Return every module that users may import, ordered by name."""
    found = []
    for path in (SOURCES / "millstream").rglob("*.py"):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        names = parts[:-1] if parts[-1] == "__init__" else parts
        public = not any(name.startswith("_") for name in names)
        if public and (parts is names or "__all__" in path.read_text("utf-8")):  # else, it has only modules
            found.append(".".join(names))
    return sorted(found)


def modules() -> dict[str, list[str]]:
    """Page -> modules. All modules of a package are on one page."""
    found: dict[str, list[str]] = {}
    for name in public_modules():
        found.setdefault(f"modules/{'.'.join(name.split('.')[:2])}.md", []).append(name)
    return found


def on_config(config: Any) -> Any:
    """Fill in the navigation."""
    if not MERMAID.exists():
        raise PluginError("The library of the diagrams isn't installed. Run `make docs-site`, which installs it.")
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    for_users = [page for page in pages if not page.startswith(FOR_CONTRIBUTORS)]
    nav = navigation(CONTENTS.read_text("utf-8"), for_users)
    config.nav = [*nav, {MODULE_TAB: [{Path(page).stem: page} for page in modules()]}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the modules, our fonts and colors, the library of the diagrams, and the inspector."""
    for page, (first, *more) in modules().items():
        below = "".join(f"\n## `{name}`\n\n::: {name}\n    options:\n      heading_level: 3\n" for name in more)
        files.append(File.generated(config, page, content=f"# `{first}`\n\n::: {first}\n{below}"))
    chunks = {f"mermaid/{path.relative_to(MERMAID)}": path for path in MERMAID.glob("chunks/mermaid.esm.min/*.mjs")}
    demo = {f"demo/{path.relative_to(DEMO.name).as_posix()}": path for path in record_demo()}
    for place, path in (OUR_ASSETS | chunks | demo).items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def record_demo() -> list[Path]:
    """Return the files of the demonstration on the home page."""
    folder = Path(DEMO.name)
    if not any(folder.iterdir()):  # `make docs-serve` builds repeatedly
        done = subprocess.run(
            [PYTHON, ROOT / "scripts" / "demo.py", folder], capture_output=True, text=True, cwd=ROOT, check=False
        )
        if done.returncode:
            raise PluginError(f"scripts/demo.py failed:\n{done.stderr}")
    return [path for path in folder.rglob("*") if path.is_file()]


def on_env(env: Any, config: Any, files: Files) -> Any:
    """Give the templates links to pages, and examples."""

    def page_url(target: str) -> str:
        file = files.get_file_from_path(target)
        if file is None:
            raise PluginError(f"docs/theme/home.html links {target}, which isn't there.")
        return str(file.url)

    env.globals |= {
        "page_url": page_url,
        "example": partial(highlighted, "python"),
        "shell": partial(code, "sh"),
    }
    return env


def highlighted(language: str, source: str) -> str:
    """Return a region of an example as a code block."""
    path, _, region = source.partition("#")
    regions = {match["name"]: match["code"] for match in REGION.finditer((ROOT / path).read_text("utf-8"))}
    return code(language, regions[region].strip("\n"))


def code(language: str, text: str) -> str:
    """Return a code block in the form of the pages."""
    from markdown import Markdown  # noqa: PLC0415  MkDocs brings it

    extensions = ["pymdownx.highlight", "pymdownx.superfences"]
    return Markdown(extensions=extensions).convert(f"```{language}\n{text}\n```")


def found_by(page: str) -> tuple[list[str], float]:
    """Return the search words of a page that aren't in its text, and its weight among the results."""
    table = tomllib.loads((DOCS / "search.toml").read_text("utf-8"))
    weights = [weight for place, weight in table["weights"].items() if page.startswith(place)]
    return table["words"].get(page.removesuffix(".md"), []), min(weights, default=1.0)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Convert links to files outside of docs/, which the site lacks, to plain text.

    Pages with two columns get the full width, and colors for the other library's code, which our tests treat as text.
    The text of the home page is docs/theme/home.html.
    """
    source = page.file.src_uri
    words, weight = found_by(source)
    page.meta |= {"tags": words, "search": {"boost": weight}}
    if source.startswith(FOR_CONTRIBUTORS):
        page.meta |= {"search": {"exclude": True}, "hide": ["navigation"]}
    if source == "index.md":
        page.meta |= {"template": "home.html", "hide": ["navigation", "toc"], "title": "Millstream"}
        page.meta["search"] = {"exclude": True}
        markdown = ""
    if source == CONTENTS.name:
        page.meta |= {"search": {"exclude": True}, "hide": ["navigation", "toc"]}
        title, *tabs = re.split(r"^(?=## )", markdown, flags=re.MULTILINE)
        lists = "\n\n".join(columns(tab) for tab in tabs)
        markdown = f'{title}\n<div class="contents" markdown>\n\n{lists}\n\n</div>'
    if source.startswith("coming-from/"):
        page.meta["hide"] = ["navigation", "toc"]
    if source.startswith(("coming-from/", "comparison.md")):
        markdown = markdown.replace("```text\n", "```python\n")

    def plain(match: re.Match[str]) -> str:
        target = (DOCS / source).parent / match["target"]
        return match[0] if target.resolve().is_relative_to(DOCS) else match["text"]

    return OUTWARD.sub(plain, markdown)


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Give each row of the reference that begins with a name an address: ``reference/gateway/#isolation``.

    The cells of tables with three or four columns name their column, because a phone shows a row as lines.
    """
    if page.file.src_uri.startswith("reference/"):
        html = with_addresses(html)
    return re.sub(r"<table>.*?</table>", with_labels, html, flags=re.DOTALL)


def with_labels(table: re.Match[str]) -> str:
    """Return a table in which each cell has the title of its column."""
    titles = [re.sub(r"<[^>]+>", "", each) for each in re.findall(r"<th[^>]*>(.*?)</th>", table[0], re.DOTALL)]
    if not 3 <= len(titles) <= 4:
        return table[0]
    labels = cycle(titles)
    return re.sub(r"<td(?=[ >])", lambda _: f'<td data-label="{next(labels)}"', table[0])


def with_addresses(html: str) -> str:
    """Return the HTML of a page with an address for each row that begins with a name."""
    taken = set(re.findall(r'id="([^"]*)"', html))

    def mark(match: re.Match[str]) -> str:
        name, section = match["name"], re.findall(r'<h[23] id="([^"]*)"', html[: match.start()])
        place = next((each for each in (name, f"{section[-1] if section else ''}-{name}") if each not in taken), "")
        taken.add(place)
        return f'<td id="{place}"><a class="row" href="#{place}"><code>{name}</code></a>' if place else match[0]

    return ROW.sub(mark, html)


def on_post_page(output: str, **_: Any) -> str:
    """Name the search dialog, which the theme doesn't, and make neither a table's empty corner a heading, nor each
    level of a table of contents a landmark: two may have the same name.
    """
    output = re.sub(r'<nav class="md-nav" aria-label="[^"]*">', '<nav class="md-nav" role="none">', output)
    return re.sub(r"<th([^>]*)></th>", r"<td\1></td>", output).replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )


def on_post_template(output: str, *, template_name: str, config: Any, **_: Any) -> str:
    """Treat the page for unknown addresses as the others."""
    return on_post_page(output) if template_name == "404.html" else output


def on_post_build(config: Any) -> None:
    """Also write the pages as Markdown for models: each beside its HTML, and a list in llms.txt.

    See https://llmstxt.org.
    """
    site = Path(config.site_dir)
    for page in DOCS.rglob("*.md"):
        place = site / page.relative_to(DOCS)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, place)
    leave_out_stop_words(site)
    rest = CONTENTS.read_text("utf-8").partition("\n")[2]
    (site / "llms.txt").write_text(f"# {config.site_name}\n\n> {config.site_description}\n{rest}", "utf-8")


def leave_out_stop_words(site: Path) -> None:
    """Let the search ignore words such as "a" in a question, which it would complete to all words that begin so.

    The last word stays, because it may be half typed.
    """
    (worker,) = site.glob("assets/javascripts/workers/search.*.js")
    text, terms = worker.read_text("utf-8"), r".split(/\s+/g).reduce("
    if text.count(terms) != 1:
        raise PluginError("The theme's search has changed. Adapt leave_out_stop_words in scripts/site.py.")
    words = r".split(/\s+/g).filter((word,at,all)=>at===all.length-1||lunr.stopWordFilter(word))"
    worker.write_text(text.replace(terms, f"{words}.reduce("), "utf-8")


def columns(tab: str) -> str:
    """Return a section of the contents with its groups in columns."""
    title, _, lists = tab.partition("\n")
    return f'{title}\n\n<div class="columns" markdown>\n\n{lists.strip()}\n\n</div>'
