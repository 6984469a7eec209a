"""The hub's client, `/hub.js`, in a browser. tests/hub/test_hub_client.py has it in Node.js."""

import re
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from playwright.sync_api import Page, WebSocket, expect

from faulty_proxy import faulty_proxy
from pages_world import OpenPage
from patience import WAIT
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server

TRANSPORTS = ("websocket", "sse")
LISTEN = """async ([url, channel, options, subscription]) => {
  const { connect } = await import(`${url}/hub.js`);
  window.hub = connect(url, options);
  window.heard = [];
  window.gaps = [];
  hub.on("gap", (gap) => gaps.push(gap));
  hub.on("state", ({ state }) => { window.state = state; });
  await new Promise((ready) => {
    hub.subscribe(channel, subscription).on("event", ({ data }) => heard.push(data)).on("ready", ready);
  });
}"""


def listen(page: Page, url: str, channel: str, options: dict[str, Any], **subscription: Any) -> None:
    """Subscribe, and wait until all earlier events have arrived."""
    page.evaluate(LISTEN, [url, channel, options, subscription])


def publish(page: Page, url: str, channel: str, *texts: str) -> None:
    """Publish texts from outside of the page."""
    for text in texts:
        assert page.request.post(f"{url}/publish", data={"channel": channel, "data": text}).ok


def wait_until_heard(page: Page, *texts: str) -> None:
    """Wait until a text was heard last, and check all of them."""
    page.wait_for_function("(text) => heard.at(-1) === text", arg=texts[-1])
    assert page.evaluate("[heard, gaps]") == [list(texts), []]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_dead_connection_without_a_close_is_replaced(hub: str, open_page: OpenPage, transport: str) -> None:
    room = f"silent-{transport}"
    with faulty_proxy(int(hub.rpartition(":")[2])) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        page = open_page(f"{url}/docs", lossy=True, fresh=True)
        page.clock.install()
        listen(page, url, room, {"transport": transport})
        publish(page, hub, room, "1")
        wait_until_heard(page, "1")
        proxy.silence()
        publish(page, hub, room, "2")
        page.clock.run_for(46_000)
        page.clock.run_for(1_000)
        wait_until_heard(page, "1", "2")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_page_that_slept_reconnects_when_it_is_shown(hub: str, open_page: OpenPage, transport: str) -> None:
    """After a sleep, the clock has moved, timers haven't run, and the connection is dead."""
    room = f"asleep-{transport}"
    with faulty_proxy(int(hub.rpartition(":")[2])) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        page = open_page(f"{url}/docs", lossy=True, fresh=True)
        page.clock.install()
        listen(page, url, room, {"transport": transport})
        proxy.silence()
        publish(page, hub, room, "1")
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.clock.run_for(1_000)
        assert page.evaluate("state") == "open"  # it was heard from recently
        page.clock.set_system_time(page.evaluate("Date.now() + 3600_000"))
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_function("() => state === 'waiting'")
        page.clock.run_for(1_000)
        wait_until_heard(page, "1")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_frozen_tab_misses_nothing(hub: str, open_page: OpenPage, transport: str) -> None:
    """The browser freezes the tab twice."""
    room = f"frozen-{transport}"
    page = open_page(f"{hub}/docs", lossy=True, fresh=True)
    listen(page, hub, room, {"transport": transport})
    session = page.context.new_cdp_session(page)
    for number in ("1", "2"):
        session.send("Page.setWebLifecycleState", {"state": "frozen"})
        publish(page, hub, room, number)
        session.send("Page.setWebLifecycleState", {"state": "active"})
    wait_until_heard(page, "1", "2")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_offline_page_reconnects_as_soon_as_it_is_online(hub: str, open_page: OpenPage, transport: str) -> None:
    room = f"offline-{transport}"
    page = open_page(f"{hub}/docs", lossy=True, fresh=True)
    listen(page, hub, room, {"transport": transport})
    page.context.set_offline(True)
    page.wait_for_function("() => state === 'offline'")
    publish(page, hub, room, "1")
    page.context.set_offline(False)
    wait_until_heard(page, "1")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_members_and_their_changes_have_no_race(hub: str, open_page: OpenPage, transport: str) -> None:
    """Two people: the second one comes after the list, and leaves."""
    room = f"present-{transport}"
    ada, bob = (open_page(f"{hub}/docs", fresh=True) for _ in range(2))
    listen(ada, hub, room, {"transport": transport}, name="Ada")
    ada.evaluate(
        """async (room) => {
          const { members, event } = await hub.members(room);
          window.names = members.map(({ name }) => name);
          window.changes = [];
          hub.subscribe(`$presence.${room}`, { from: event })
            .on("event", ({ event, data }) => changes.push(`${JSON.parse(data).name} ${event}`));
        }""",
        room,
    )
    assert ada.evaluate("names") == ["Ada"]
    listen(bob, hub, room, {"transport": transport}, name="Bob")
    ada.wait_for_function("() => changes.length")
    bob.evaluate("hub.close()")
    ada.wait_for_function("() => changes.length > 1")
    assert ada.evaluate("changes") == ["Bob join", "Bob leave"]


def _keep_frames(frames: list[str], socket: WebSocket) -> None:
    socket.on("framereceived", lambda frame: frames.append(str(frame)))


def test_board_listens_with_the_cookie_of_each_person(open_page: OpenPage, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with run_server(run_command("examples/board.py", port, "--auth", "key-of-the-board-0123"), port, tmp_path / "log"):
        pages = [open_page(f"{url}/board", fresh=True, lossy=True) for _ in range(2)]
        for page in pages:
            frames = list[str]()
            page.on("websocket", partial(_keep_frames, frames))
            page.get_by_role("textbox").fill("key-of-the-board-0123")
            page.keyboard.press("Enter")
            for _ in range(int(WAIT * 50)):
                if any("subscribed" in frame for frame in frames):
                    break
                page.wait_for_timeout(20)
        pages[0].evaluate("import('/hub.js').then(({ connect }) => connect().publish('broadcast', 'Open at 9'))")
        for page in pages:
            expect(page.get_by_role("listitem")).to_have_text(["Open at 9"])


def test_page_of_another_origin_uses_a_key(open_page: OpenPage, tmp_path: Path) -> None:
    """Pages from other ports of this machine are allowed."""
    port, elsewhere = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    command = run_command("examples/board.py", port, "--auth", "key-of-the-board-0123")
    with (
        run_server(command, port, tmp_path / "log"),
        run_server(run_command("examples/news.py", elsewhere), elsewhere, tmp_path / "log of news"),
    ):
        page = open_page(f"http://127.0.0.1:{elsewhere}/news", fresh=True, lossy=True)
        listen(page, url, "broadcast", {"token": "key-of-the-board-0123"})
        page.evaluate("hub.publish('broadcast', { open: 9 })")
        wait_until_heard(page, '{"open":9}')
        assert page.evaluate("hub.members('broadcast').then(({ members }) => members)") == []


def test_served_module_has_its_types(hub: str) -> None:
    with urlopen(f"{hub}/hub.js") as response:  # noqa: S310  loopback
        assert response.headers["content-type"].startswith("text/javascript")
        assert re.search(r"@property .* \[transport\]", response.read().decode())
