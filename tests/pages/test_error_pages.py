import pytest
from playwright.sync_api import expect

from pages_world import OpenPage, find_layout_problems

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("path", "heading", "width", "scheme"),
    [
        ("/mcp", "Hello Server", 1280, "light"),
        ("/mcp", "Hello Server", 390, "dark"),
        ("/nothing", "There's no such page", 390, "light"),
    ],
)
def test_error_pages_and_the_mcp_endpoint_page_are_accessible(
    plain: str, open_page: OpenPage, path: str, heading: str, width: int, scheme: str
) -> None:
    page = open_page(plain + path, fresh=True, lossy=True, width=width, color_scheme=scheme)
    expect(page.get_by_role("heading", level=1)).to_have_text(heading)
    assert find_layout_problems(page) == []
    assert page.evaluate("document.fonts.ready.then((fonts) => [...fonts].map(({ status }) => status))") == ["loaded"]
    page.get_by_role("link", name="Start page" if path == "/nothing" else "Connect a client").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Hello Server")


def test_suggested_paths_are_links(plain: str, open_page: OpenPage) -> None:
    page = open_page(f"{plain}/dashbord", fresh=True, lossy=True)
    page.get_by_role("link", name="/dashboard").click()
    expect(page.locator("#state")).to_have_text("Live")
