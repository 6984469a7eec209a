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
    page.get_by_role("link").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Hello Server")
