"""The chat of a server with sign-in: verified names, and each user's permissions."""

import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from millstream import auth
from pages_world import OpenPage, find_layout_problems
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server

PASSWORD = "correct horse battery"
PROGRAM = """
import os
from millstream import Context, Server, auth

url = os.environ["TEAM_URL"]
mcp = Server("team", serve="all", auth=auth.issuer(url, users=auth.users(file=os.environ["TEAM_USERS"])))

@mcp.tool
async def send_sse_message(message: str, name: str = "", channel: str = "broadcast") -> None:
    await mcp.hub.publish(channel, {"name": name, "message": message})
"""


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a server with three people, of whom ada may not write."""
    folder, port = tmp_path_factory.mktemp("team"), free_port()
    (folder / "users.json").write_text('{"users":[]}', "utf-8")
    users = auth.users(file=folder / "users.json")
    for name in ("bob", "eve", "ada"):
        scopes = ("millstream:chat",) if name == "ada" else ("millstream:publish",)
        users.add(name, PASSWORD, scopes, time.time())
    program = folder / "team.py"
    program.write_text(PROGRAM, "utf-8")
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEAM_URL", url)
        patch.setenv("TEAM_USERS", str(folder / "users.json"))
        with run_server(run_command(str(program), port), port, folder / "log"):
            yield url


def enter(open_page: OpenPage, team: str, name: str, *, lossy: bool = False) -> Page:
    """Sign in, and open the chat."""
    page = open_page(f"{team}/sign-in?next=/chat", lossy=lossy)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("Live")
    return page


def say(page: Page, text: str) -> None:
    """Send a message."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    expect(page.locator(".message.own:not(.sending)", has_text=text)).to_be_visible()


def publish_as_bob(page: Page, text: str) -> None:
    """Publish with the page's cookie under the name of bob, as a script can."""
    body = {"data": {"name": "bob", "message": text}}
    status = page.evaluate(
        """async (body) => (await fetch("publish", {method: "POST", headers: {"content-type": "application/json"},
        body: JSON.stringify(body)})).status""",
        body,
    )
    assert status == 200


def test_chat_shows_the_signed_in_name_regardless_of_claimed_names(team: str, open_page: OpenPage) -> None:
    bob, eve = enter(open_page, team, "bob"), enter(open_page, team, "eve")
    expect(eve.get_by_role("button", name="Change name")).to_be_hidden()
    for own, other in ((bob, "eve"), (eve, "bob")):
        member = own.locator("#members li", has_text=other)
        expect(member.get_by_title("Signed in under this name")).to_be_visible()
    publish_as_bob(eve, "names: I am bob")
    message = bob.locator(".message", has_text="names: I am bob")
    expect(message.locator("strong")).to_have_text("eve")
    expect(message.get_by_title("Signed in under this name")).to_be_visible()
    say(bob, "names: I am")
    message = eve.locator(".message", has_text="names: I am").last
    expect(message.locator("strong")).to_have_text("bob")
    assert find_layout_problems(bob) == []


def test_chat_marks_unverified_names(team: str, open_page: OpenPage) -> None:
    bob, eve = enter(open_page, team, "bob"), enter(open_page, team, "eve")
    eve.evaluate(
        """() => fetch("tools/send_sse_message", {method: "POST", headers: {"content-type": "application/json"},
        body: JSON.stringify({message: "typed: hello", name: "bob"})})"""
    )
    message = bob.locator(".message", has_text="typed: hello")
    expect(message.locator("strong")).to_have_text("bob")
    expect(message.get_by_text("not checked")).to_be_visible()
    expect(message.get_by_title("Signed in under this name")).to_have_count(0)


def test_chat_shows_the_missing_scope_before_the_user_writes(team: str, open_page: OpenPage) -> None:
    ada = enter(open_page, team, "ada")
    expect(ada.locator("#read-only")).to_contain_text("Writing takes the scope millstream:publish")
    expect(ada.get_by_label("Message", exact=True)).to_be_hidden()
    assert find_layout_problems(ada) == []


def test_pages_link_only_pages_that_a_person_may_open(team: str, open_page: OpenPage) -> None:
    ada = enter(open_page, team, "ada")
    expect(ada.locator("#account-name")).to_have_text("ada")
    expect(ada.get_by_role("navigation", name="Pages").get_by_role("link", name="Dashboard")).to_have_count(0)
    ada.goto(f"{team}/connect")
    expect(ada.locator("#pages").get_by_role("link", name="Inspect")).to_be_visible()
    expect(ada.locator("#pages").get_by_role("link", name="Dashboard")).to_have_count(0)


def test_denied_page_shows_the_scope_and_links_back(team: str, open_page: OpenPage) -> None:
    ada = enter(open_page, team, "ada", lossy=True)
    ada.goto(f"{team}/dashboard")
    expect(ada.get_by_text("millstream:watch")).to_be_visible()
    expect(ada.get_by_role("link", name="Sign in")).to_have_attribute("href", "/sign-in?next=%2Fdashboard")
