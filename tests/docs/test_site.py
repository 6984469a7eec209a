import importlib
import inspect
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from cases import for_each
from scripts.docs import ROOT
from site_world import build_site

pytestmark = [pytest.mark.server, pytest.mark.check]

SOURCES = ROOT / "src"
FOR_CONTRIBUTORS = ("architecture", "contributing", "decisions")


def public_names() -> dict[str, list[str]]:
    """Return every module without an underscore in its name -> its public names, if it has any."""
    paths = (SOURCES / "millstream").rglob("*.py")
    names = {".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    found = {}
    for name in sorted(name for name in names if "._" not in name):
        module = importlib.import_module(name)
        own = [each for each, value in vars(module).items() if getattr(value, "__module__", "") == name]
        listed = getattr(module, "__all__", [each for each in own if not each.startswith("_")])
        found[name] = [each for each in listed if not inspect.ismodule(getattr(module, each))]
    return {name: listed for name, listed in found.items() if listed}


def page_for(module: str) -> str:
    """Return the page of a module, which is its package's."""
    return ".".join(module.split(".")[:2])


class Links(HTMLParser):
    """The addresses that a page links, loads, or shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.linked: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the addresses of one element."""
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name == "href" and value:
                (self.linked if tag == "a" else self.loaded).append(value)
            elif name in {"src", "srcset"} and value:
                self.loaded.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as built by `make docs-site`."""
    return build_site(tmp_path_factory)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Links]:
    """Page, relative to the site -> what it links."""
    found = {page.relative_to(site).as_posix(): page.read_text("utf-8") for page in site.rglob("*.html")}
    return {name: Links(text) for name, text in found.items() if not name.startswith("demo/")}


def test_pages_are_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text("utf-8")
    listed = {target.rstrip("/") for target in re.findall(r'href="([\w./-]+)/"', home)}
    pages = {
        page.relative_to(ROOT / "docs").with_suffix("").as_posix().removesuffix("/README")
        for page in (ROOT / "docs").rglob("*.md")
    }
    assert pages - listed - {"index", "contents"} == {page for page in pages if page.startswith(FOR_CONTRIBUTORS)}


def test_pages_for_contributors_are_linked_and_not_in_the_search(site: Path, pages: dict[str, Links]) -> None:
    assert "../contributing/" in pages["contents/index.html"].linked
    linked = {urljoin("/contributing/", target) for target in pages["contributing/index.html"].linked}
    assert {"/architecture/", "/decisions/", "/contributing/glossary/"} <= linked
    places = {entry["location"] for entry in json.loads((site / "search/search_index.json").read_text("utf-8"))["docs"]}
    assert [place for place in places if place.startswith(FOR_CONTRIBUTORS)] == []


def test_every_decision_is_listed_for_contributors(pages: dict[str, Links]) -> None:
    numbers = {page.name[:4] for page in (ROOT / "docs" / "decisions").glob("0*.md")}
    linked = {urljoin("/decisions/", target) for target in pages["decisions/index.html"].linked}
    assert {target[11:15] for target in linked if target.startswith("/decisions/0")} == numbers


@for_each("module", sorted(public_names()))
def test_public_names_have_an_entry(site: Path, module: str) -> None:
    page = (site / "modules" / page_for(module) / "index.html").read_text("utf-8")
    assert [name for name in public_names()[module] if f'id="{module}.{name}"' not in page] == []


def test_private_modules_have_no_page(site: Path) -> None:
    assert {path.parent.name for path in site.glob("modules/*/index.html")} == set(map(page_for, public_names()))


def test_links_lead_to_pages_and_headings(pages: dict[str, Links]) -> None:
    """MkDocs checks what is written as Markdown; the home page and the theme aren't."""
    broken = []
    for page, links in pages.items():
        for target in links.linked:
            parts = urlsplit(urljoin(f"http://site/{page}", target))
            place = unquote(parts.path.removeprefix("/"))
            place = f"{place}index.html" if not place or place.endswith("/") else place
            if parts.netloc == "site" and page != "404.html" and place.endswith(".html"):
                there = pages.get(place)
                if there is None or (parts.fragment and unquote(parts.fragment) not in there.anchors):
                    broken.append((page, target))
    assert broken == []


def test_options_in_the_reference_have_an_address_of_their_own(pages: dict[str, Links]) -> None:
    for page, names in {
        "gateway": {"isolation", "refresh_seconds"},
        "gateway-rules": {"allow", "sets-limit"},
        "server": {"lifespan", "coerce", "task_ttl"},
        "client": {"elicit", "max_bytes"},
        "settings": {"max_calls"},
    }.items():
        links = pages[f"reference/{page}/index.html"]
        assert names - links.anchors == set()
        assert {f"#{name}" for name in names} - set(links.linked) == set()


def test_search_finds_pages_and_names(site: Path) -> None:
    places = {entry["location"] for entry in json.loads((site / "search/search_index.json").read_text("utf-8"))["docs"]}
    assert {"tutorial/", "modules/millstream/#millstream.Server"} <= places


def test_site_loads_only_its_own_files(site: Path, pages: dict[str, Links]) -> None:
    for page, links in pages.items():
        for target in links.loaded:
            parts = urlsplit(urljoin(f"http://site/{page}", target))
            assert parts.netloc == "site", (page, target)
            place = site / unquote(parts.path.removeprefix("/"))
            assert place.exists() or page == "404.html" or place.name in {"", "."}, (page, target)
    for sheet in site.rglob("*.css"):
        assert re.findall(r"url\(\"?https?:[^)]*\)", sheet.read_text("utf-8")) == []


def test_links_outside_the_documents_are_plain_text(site: Path) -> None:
    page = (site / "guides/deploying/index.html").read_text("utf-8")
    assert "The compose file" in page
    assert "deploy/compose.yaml" not in re.sub(r"<code.*?</code>", "", page, flags=re.DOTALL)


def test_llms_txt_links_every_page_as_markdown(site: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([\w./-]+\.md)\)", (site / "llms.txt").read_text("utf-8"))
    assert "guides/tools.md" in links
    assert [link for link in links if not (site / link).is_file()] == []
