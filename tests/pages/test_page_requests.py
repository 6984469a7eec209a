import pytest

from pages_world import OpenPage

pytestmark = pytest.mark.server

FILES = """() => performance.getEntriesByType("resource")
  .map(({ name, transferSize }) => [new URL(name).pathname, transferSize])
  .filter(([path]) => path.includes("/assets/") && !/\\.woff2$|mark\\.svg$/.test(path))"""
"""Each file of a page, and what came over the network for it; 0 for what the browser has kept. A font is loaded with
the first text that uses it, which may come later. Some browsers load the icon again for the tab.
"""


@pytest.mark.parametrize("name", ["inspect", "dashboard", "docs", "chat"])
def test_page_files_are_loaded_once_and_cached(hub: str, open_page: OpenPage, name: str) -> None:
    page = open_page(f"{hub}/{name}", fresh=True)
    page.wait_for_load_state("load")
    first = page.evaluate(FILES)
    assert len(first) > 15
    assert [path for path, _ in first if [each for each, _ in first].count(path) > 1] == []
    assert all(size for _, size in first)
    page.goto("about:blank")
    page.goto(f"{hub}/{name}")
    page.wait_for_load_state("load")
    again = page.evaluate(FILES)
    assert {path for path, _ in again} == {path for path, _ in first}
    assert [path for path, size in again if size] == []
