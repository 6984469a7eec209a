import re

import pytest

from cases import for_each
from page_files import asset, pages

pytestmark = pytest.mark.check

TOKENS = asset("/assets/tokens.css").body.decode()
DEFINED = dict(re.findall(r"^  (--[\w-]+):\s+([^;]+);(?: /\*.*\*/)?$", TOKENS.partition("\n}")[0], re.MULTILINE))
COLOR = re.compile(
    r"#(?:[0-9a-f]{3,4}|[0-9a-f]{6}|[0-9a-f]{8})\b|\b(?:rgba?|hsla?|oklch|oklab|lab|lch|hwb)\(|"
    r"(?:color|background|border|fill|stroke)[\w-]*: *[\w .]*\b(?:white|black|gray|grey|red|green|blue|teal|orange)\b",
    re.IGNORECASE,
)
QUERY = re.compile(r"@media ([^{]+)\{(.*?\})\s*\}", re.DOTALL)
"""The conditions of a media query, and its rules."""
STYLES = sorted(path for path in pages() if path.endswith(".css"))
SOURCES = sorted(
    path
    for path in pages()
    if path.endswith((".css", ".js")) and path != "/assets/tokens.css" and "/vendor/" not in path
)


def test_colors_have_light_and_dark_values() -> None:
    colors = {name: value for name, value in DEFINED.items() if "#" in value and not name.startswith("--shadow")}
    assert colors
    assert [name for name, value in colors.items() if not re.fullmatch(r"light-dark\(#\w+, #\w+\)", value)] == []


@for_each("path", SOURCES)
def test_colors_are_defined_only_in_tokens(path: str) -> None:
    text = re.sub(r"/\*.*?\*/", "", asset(path).body.decode(), flags=re.DOTALL)
    lines = [line for line in text.splitlines() if path.endswith(".css") or not line.lstrip().startswith("//")]
    assert [line for line in lines if COLOR.search(line) and "querySelector" not in line] == []


def test_schemes_change_only_colors() -> None:
    rules = [rule for path in STYLES for rule in re.findall(r"[^{}]*\{[^{}]*\}", asset(path).body.decode())]
    assert len(rules) > 300
    told = [rule for rule in rules if "prefers-color-scheme" in rule or "data-theme" in rule]
    assert [rule for rule in told if not re.search(r"\{\s+color-scheme: (light|dark);\s+\}", rule)] == []
    pairs = [line for path in STYLES for line in asset(path).body.decode().splitlines() if "light-dark(" in line]
    assert [line for line in pairs if not re.match(r"  --[\w-]+:", line)] == []


def test_desktop_and_laptop_layouts_differ_only_in_height() -> None:
    queries = [each for path in STYLES for each in QUERY.findall(asset(path).body.decode())]
    widths = [float(rem) for conditions, _ in queries for rem in re.findall(r"width: ([\d.]+)rem", conditions)]
    assert len(widths) > 8
    assert max(widths) * 16 < 1280
    assert not any(re.search(r"width(?:: [\d.]+px|[<> =])", conditions) for conditions, _ in queries)
    tall = [content for conditions, content in queries if "height" in conditions]
    changed = {name for content in tall for name in re.findall(r"([\w-]+): ", content)}
    assert changed == {"--chart"}
    scripts = [asset(path).body.decode() for path in SOURCES if path.endswith(".js")]
    assert not any(re.search(r"innerWidth|matchMedia\(.*width", script) for script in scripts)


def test_used_tokens_are_defined() -> None:
    used = {token for path in SOURCES for token in re.findall(r"var\((--[\w-]+)", asset(path).body.decode())}
    own = {name for path in STYLES for name in re.findall(r"(--[\w-]+):", asset(path).body.decode())}
    assert used - own - set(DEFINED) == set()


def test_pages_link_only_to_served_pages() -> None:
    links = re.compile(r'<a href="(\w+)"')
    everything = asset("/docs").body.decode()
    assert links.findall(everything) == ["connect", "inspect", "dashboard", "gateway", "docs", "chat"]
    assert re.findall(r'<a href="(\w+)" aria-current="page">', everything) == ["docs"]
    alone = asset("/docs", shown=frozenset({"docs"})).body.decode()
    assert links.findall(alone) == ["docs"]
    assert set(pages(["docs"])) >= {"/docs", "/assets/shell/shell.js"}
    assert not {"/chat", "/inspect", "/dashboard"} & set(pages(["docs"]))
