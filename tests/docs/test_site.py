import json
import re
import subprocess
from pathlib import Path

import pytest

from patience import WAIT
from scripts.docs import ROOT

pytestmark = [pytest.mark.server, pytest.mark.check]

MKDOCS = [str(ROOT / ".venv-docs" / "bin" / "python"), "-m", "mkdocs", "build", "--strict", "--site-dir"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as built by `make docs-site`. A broken link is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([*MKDOCS, folder], capture_output=True, text=True, timeout=5 * WAIT, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_pages_are_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text("utf-8")
    listed = {target.rstrip("/") for target in re.findall(r'href="([\w./-]+)/"', home)}
    pages = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages - listed == {"index"}


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("millstream", ["Server", "Client", "Context", "Depends", "ToolResult"]),
        ("millstream.auth", ["keys", "oidc", "issuer", "google"]),
        ("millstream.agent", ["Agent", "ToolStart"]),
        ("millstream.middleware", ["Middleware"]),
        ("millstream.extensions", ["Extension", "ServerHost", "method"]),
        ("millstream.testing", ["connect"]),
        ("millstream.compat.fastmcp", ["FastMCP"]),
    ],
)
def test_public_names_have_an_entry(site: Path, module: str, names: list[str]) -> None:
    page = (site / "modules" / module / "index.html").read_text("utf-8")
    assert [name for name in names if f'id="{module}.{name}"' not in page] == []


def test_search_finds_pages_and_names(site: Path) -> None:
    places = {entry["location"] for entry in json.loads((site / "search/search_index.json").read_text("utf-8"))["docs"]}
    assert {"tutorial/", "modules/millstream/#millstream.Server"} <= places


def test_site_loads_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert re.findall(r'<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="https?://[^"]*"', text) == []


def test_links_outside_the_documents_are_plain_text(site: Path) -> None:
    page = (site / "guides/deploying/index.html").read_text("utf-8")
    assert "The compose file" in page
    assert "deploy/compose.yaml" not in re.sub(r"<code.*?</code>", "", page, flags=re.DOTALL)
