import re

import pytest
from playwright.sync_api import expect

from pages_world import OpenPage, find_layout_problems

pytestmark = pytest.mark.server

PARTS = [
    ("dashboard", "", "history", "the history"),
    ("dashboard", "Recent calls", "calls", "the recent calls"),
    ("dashboard", "Streams", "readers", "the readers of streams"),
    ("dashboard", "", "audit", "the audit log"),
]
WORDS = {
    401: "You're signed out, so {} can't be shown. Sign in again.",
    403: "You don't have access to {}.",
    503: r"The server failed to return {} \(status 503\). This page tries again",
}


@pytest.mark.parametrize(("name", "part", "path", "what"), PARTS, ids=[each[2] for each in PARTS])
def test_errors_are_shown_with_their_reason(
    hub: str, open_page: OpenPage, name: str, part: str, path: str, what: str
) -> None:
    page = open_page(f"{hub}/assets/mark.svg", name="Ada", fresh=True, lossy=True)
    status, asked = 401, re.compile(rf"\d/{name}/{path}(\?|$)")
    page.route(asked, lambda route: route.fulfill(status=status, json={"detail": "No."}))
    banner = page.get_by_role("alert")
    for status, words in WORDS.items():
        page.goto(f"{hub}/{name}")
        if part:
            page.get_by_role("tab", name=part).click()
        expect(banner).to_contain_text(re.compile(words.format(what)))
        assert banner.get_by_role("button", name="Sign in").count() == (status == 401)
    if path == "history":
        assert find_layout_problems(page) == []
        page.unroute(asked)
        expect(banner).to_be_hidden()
    elif part:
        page.get_by_role("tab", name="Tools").click()
        expect(banner).to_be_hidden()
