import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from pages_world import OpenPage, call, find_layout_problems
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server


def say(page: Page, text: str) -> None:
    """Write a message and send it with the Enter key."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message", exact=True)).to_have_value("")


def heard(page: Page, mark: str) -> list[str]:
    """The messages that bear the mark of a test, in the order on the page."""
    return [text for text in page.locator(".bubble").all_inner_texts() if text.startswith(mark)]


def live(page: Page) -> None:
    """Wait until the page is connected."""
    expect(page.locator("#state")).to_have_text("Live")


def test_two_browsers_chat_and_see_each_other(hub: str, open_page: OpenPage) -> None:
    ada = open_page(f"{hub}/chat", name="Ada")
    grace = open_page(f"{hub}/chat", name="Grace")
    live(ada)
    live(grace)
    for page, own, other in ((ada, "Ada (you)", "Grace"), (grace, "Grace (you)", "Ada")):
        names = page.locator("#members")
        expect(names.get_by_text(own, exact=True)).to_be_visible()
        expect(names.get_by_text(other, exact=True)).to_be_visible()
    say(ada, "two: hello")
    say(grace, "two: hello yourself")
    for page in (ada, grace):
        expect(page.locator(".bubble").get_by_text("two: hello yourself", exact=True)).to_be_visible()
        assert heard(page, "two:") == ["two: hello", "two: hello yourself"]
    grace.context.close()
    expect(ada.locator("#members").get_by_text("Grace", exact=True)).to_be_hidden()


def test_chat_shows_the_server_name(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/chat", name="Ada")
    live(page)
    expect(page.locator(".server")).to_have_text("hub 1.0.0")


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1280, 720), (390, 844)])
def test_first_screen_shows_the_server_and_links_to_the_playground(
    hub: str, open_page: OpenPage, width: int, height: int
) -> None:
    page = open_page(f"{hub}/chat", width=width, height=height)
    expect(page.get_by_label("Your name")).to_be_focused()
    expect(page.locator(".server")).to_have_text("hub 1.0.0")
    side, bar = page.locator("#side").bounding_box(), page.locator(".bar").bounding_box()
    assert bar is not None
    assert (side is None) == (width < 832)
    if side is not None:
        assert (side["x"], side["y"], side["height"]) == (0, bar["height"], height - bar["height"])
    assert find_layout_problems(page) == []
    page.get_by_role("link", name="ask a model in the playground").click()
    expect(page.get_by_role("heading", name="Playground")).to_be_visible()
    expect(page.get_by_label("Your name")).to_be_hidden()


def test_chat_works_without_example_tools(plain: str, open_page: OpenPage) -> None:
    ada, grace = open_page(f"{plain}/chat", name="Ada"), open_page(f"{plain}/chat", name="Grace")
    live(ada)
    live(grace)
    say(ada, "plain: hello")
    for page, who in ((ada, "You"), (grace, "Ada")):
        message = page.locator(".message", has_text="plain: hello")
        expect(message.locator("strong")).to_have_text(who)
        expect(message.locator("time")).to_be_visible()
    ada.reload()
    live(ada)
    expect(ada.locator(".message.own", has_text="plain: hello")).to_be_visible()


def test_chat_asks_for_a_name_once(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/chat")
    expect(page.get_by_label("Your name")).to_be_focused()
    page.get_by_label("Your name").fill("Mary")
    page.keyboard.press("Enter")
    live(page)
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.reload()
    live(page)
    expect(page.locator("#members").get_by_text("Mary (you)")).to_be_visible()


def test_users_receive_every_message_after_being_offline(hub: str, open_page: OpenPage) -> None:
    ada = open_page(f"{hub}/chat", name="Ada")
    grace = open_page(f"{hub}/chat", name="Grace", lossy=True)
    live(ada)
    live(grace)
    say(ada, "cut: before")
    expect(grace.locator(".bubble").get_by_text("cut: before")).to_be_visible()
    grace.context.set_offline(True)
    expect(grace.locator("#state")).to_have_text("Offline")
    for number in range(3):
        say(ada, f"cut: while away {number}")
    grace.context.set_offline(False)
    live(grace)
    say(ada, "cut: after")
    expect(grace.locator(".bubble").get_by_text("cut: after")).to_be_visible()
    assert heard(grace, "cut:") == heard(ada, "cut:")
    assert len(heard(grace, "cut:")) == 5
    expect(grace.locator(".event.gap")).to_have_count(0)


def test_pages_reach_a_local_server_without_a_network(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/chat", name="Alan")
    live(page)
    page.evaluate("""() => {
        Object.defineProperty(navigator, "onLine", { get: () => false });
        dispatchEvent(new Event("offline"));
    }""")
    expect(page.locator("#banner")).to_contain_text("This device is offline.")
    live(page)
    say(page, "island: hello")
    expect(page.locator(".message.own:not(.waiting, .sending)", has_text="island: hello")).to_be_visible()


def test_messages_written_offline_are_sent_once(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/chat", name="Joan", lossy=True)
    live(page)
    page.context.set_offline(True)
    expect(page.locator("#state")).to_have_text("Offline")
    say(page, "kept: still here")
    expect(page.locator(".message.waiting")).to_contain_text("Waiting for the connection")
    expect(page.locator("#banner")).to_contain_text("This device is offline.")
    page.context.set_offline(False)
    live(page)
    expect(page.locator(".message.own:not(.waiting, .sending)", has_text="kept: still here")).to_be_visible()
    page.reload()
    live(page)
    expect(page.locator(".message.own", has_text="kept: still here")).to_be_visible()
    assert heard(page, "kept:") == ["kept: still here"]


GUARDED = """
from millstream import Server

def authorize(principal, action, channel):
    return not (channel == "secret" or (action == "publish" and channel in ("news", "chat.typing")))

mcp = Server("guarded", serve="all", authorize_channel=authorize)
"""


def test_rejected_messages_can_be_edited(tmp_path: Path, open_page: OpenPage) -> None:
    port = free_port()
    program = tmp_path / "guarded.py"
    program.write_text(GUARDED, "utf-8")
    with run_server(run_command(str(program), port), port, tmp_path / "log"):
        address = f"http://127.0.0.1:{port}"
        page = open_page(f"{address}/chat", name="Ada", lossy=True)
        live(page)
        page.get_by_label("Channel", exact=True).fill("news")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="# news")).to_be_visible()
        say(page, "rules: mine")
        failed = page.locator(".message.failed")
        expect(failed).to_contain_text("Not sent.")
        failed.get_by_role("button", name="Try again").click()
        expect(failed).to_contain_text("Not sent.")
        page.get_by_label("Message", exact=True).press("ArrowUp")
        expect(page.get_by_label("Message", exact=True)).to_have_value("rules: mine")
        expect(failed).to_have_count(0)
        page.evaluate("location.hash = 'channel=secret'")
        expect(page.locator("#note")).to_contain_text("You can't listen to this channel.")
        assert page.request.get(f"{address}/members?channel=secret").status == 403
        assert page.request.get(f"{address}/members?channel=a..b").status == 400
        page.get_by_role("button", name="Leave secret").click()
        expect(page.get_by_role("heading", name="# broadcast")).to_be_visible()
        expect(page.get_by_label("Message", exact=True)).to_have_value("")
        page.context.close()


def test_channels_have_their_own_drafts_and_unread_marks(plain: str, open_page: OpenPage) -> None:
    ada, grace = open_page(f"{plain}/chat", name="Ada"), open_page(f"{plain}/chat#channel=ops", name="Grace")
    live(ada)
    live(grace)
    expect(grace.get_by_role("heading", name="# ops")).to_be_visible()
    ada.get_by_label("Channel", exact=True).fill("#bad name")
    ada.keyboard.press("Enter")
    expect(ada.locator("#channel-error")).to_have_text("A channel's name has no spaces.")
    ada.get_by_label("Channel", exact=True).fill("#ops")
    ada.keyboard.press("Enter")
    expect(ada.locator("#members").get_by_text("Grace", exact=True)).to_be_visible()
    grace.get_by_label("Message", exact=True).press_sequentially("half a")
    expect(ada.locator("#typing")).to_have_text("Grace is typing…")
    ada.get_by_role("link", name="# broadcast").click()
    say(grace, "words: in ops")
    expect(ada.locator("#channels .count")).to_have_text("1 unread")
    expect(ada).to_have_title("(1) Chat")
    assert heard(ada, "words:") == []
    ada.get_by_label("Message", exact=True).fill("a draft")
    ada.get_by_role("link", name="# ops").click()
    expect(ada.locator(".unread")).to_be_visible()
    expect(ada.locator(".bubble").get_by_text("words: in ops")).to_be_visible()
    expect(ada).to_have_title("Chat")
    expect(ada.locator("#typing")).to_have_text("")
    ada.locator("#scroll").focus()
    ada.keyboard.press("k")
    expect(ada.get_by_label("Message", exact=True)).to_have_value("a draft")
    ada.reload()
    expect(ada.get_by_role("link", name="# ops")).to_be_visible()


def test_messages_show_code_links_and_days(plain: str, open_page: OpenPage) -> None:
    page = open_page(f"{plain}/chat#channel=drawn", name="Ada")
    live(page)
    said = {
        "Grace": (
            "2024-02-03T10:00:00Z",
            "drawn: see https://example.org/a_b_c, or **bold** and `x < y`.\n\n- <b>one</b>\n- two",
        ),
        "Hedy": ("2024-02-04T10:00:00Z", "drawn: first\n```python\nprint('<b>')\n```\nthen"),
        "ليلى": ("2024-02-04T10:01:00Z", "مرحبا drawn"),
    }
    for name, (time, message) in said.items():
        data = {"name": name, "message": message, "time": time}
        assert page.request.post(f"{plain}/publish", data={"channel": "drawn", "data": data}).ok
    bubbles = page.locator(".bubble")
    expect(bubbles).to_have_count(3)
    link = bubbles.nth(0).get_by_role("link")
    expect(link).to_have_attribute("href", "https://example.org/a_b_c")
    expect(link).to_have_attribute("rel", "noopener noreferrer")
    expect(bubbles.nth(0).locator("strong")).to_have_text("bold")
    expect(bubbles.nth(0).locator("li")).to_have_text(["<b>one</b>", "two"])
    expect(bubbles.nth(1).get_by_label("Code in python")).to_have_text("print('<b>')")
    expect(bubbles.nth(1).get_by_role("button", name="Copy the code")).to_be_visible()
    assert bubbles.nth(2).evaluate("node => getComputedStyle(node).direction") == "rtl"
    expect(page.locator(".day")).to_have_count(2)
    expect(page.locator(".day").first).to_contain_text("3 February 2024")


def test_reload_shows_the_history_once_in_order(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/chat", name="Hedy")
    live(page)
    for number in range(3):
        say(page, f"past: {number}")
    expect(page.locator(".bubble").get_by_text("past: 2")).to_be_visible()
    page.reload()
    live(page)
    expect(page.locator(".bubble").get_by_text("past: 2")).to_be_visible()
    assert heard(page, "past:") == ["past: 0", "past: 1", "past: 2"]


def test_messages_from_other_programs_are_plain_text(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/chat", name="Ada")
    live(page)
    hostile = "plain: <img src=x onerror=alert(1)>"
    call(hub, "send_sse_message", {"message": hostile, "channel": "broadcast"})
    expect(page.locator(".bubble").get_by_text(hostile, exact=True)).to_be_visible()
    assert page.locator(".bubble img").count() == 0


def test_another_user_with_your_name_is_distinguished(hub: str, open_page: OpenPage) -> None:
    one, other = open_page(f"{hub}/chat", name="Twin"), open_page(f"{hub}/chat", name="Twin")
    live(one)
    live(other)
    say(one, "twin: first")
    say(other, "twin: second")
    for page in (one, other):
        expect(page.locator(".bubble").get_by_text("twin: second", exact=True)).to_be_visible()
    one.reload()
    live(one)
    expect(one.locator(".bubble").get_by_text("twin: second", exact=True)).to_be_visible()
    for page, own, twin in ((one, "first", "second"), (other, "second", "first")):
        expect(page.locator(".message.own", has_text=f"twin: {own}").locator("strong")).to_have_text("You")
        expect(page.locator(".message:not(.own)", has_text=f"twin: {twin}").locator("strong")).to_have_text("Twin")


@pytest.mark.parametrize("time", ['"x"', "1e300", "{}", "[1]", "true"])
def test_messages_with_invalid_times_are_shown(hub: str, open_page: OpenPage, time: str) -> None:
    mark = f"odd {time}:"
    for text in (f"{mark} before", f'{{"message":{json.dumps(mark + " itself")},"time":{time}}}', f"{mark} after"):
        call(hub, "send_sse_message", {"message": text, "channel": "broadcast"})
    page = open_page(f"{hub}/chat", name="Ada")
    expect(page.locator(".bubble").get_by_text(f"{mark} after", exact=True)).to_be_visible()
    assert heard(page, mark) == [f"{mark} before", f"{mark} itself", f"{mark} after"]


def test_channels_can_be_used_by_keyboard_alone(plain: str, open_page: OpenPage) -> None:
    """WCAG 2.2, 2.1.1."""
    page = open_page(f"{plain}/chat", name="Ada")
    live(page)
    page.keyboard.press("Control+k")
    page.keyboard.type("join a channel")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Channel", exact=True)).to_be_focused()
    page.keyboard.type("keys")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="# keys")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("keys: hello")
    page.keyboard.press("Enter")
    expect(page.locator(".bubble").get_by_text("keys: hello")).to_be_visible()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("k")
    expect(page.get_by_role("heading", name="# broadcast")).to_be_visible()
    page.keyboard.press("/")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_thousand_messages_a_second_keep_the_list_short(plain: str, open_page: OpenPage) -> None:
    page = open_page(f"{plain}/chat#channel=flood", name="Ada")
    live(page)
    layouts = page.evaluate(
        """async () => {
          const { connectList, append, showRoom } = await import("./assets/chat/list.js");
          const { Conversation } = await import("./assets/chat/messages.js");
          connectList({ retry() {}, edit() {} });
          const room = new Conversation();
          showRoom(room);
          let reads = 0;
          const { get, set } = Object.getOwnPropertyDescriptor(Element.prototype, "scrollHeight");
          const counted = { get() { reads += 1; return get.call(this); }, set, configurable: true };
          Object.defineProperty(Element.prototype, "scrollHeight", counted);
          for (let number = 0; number < 1000; number += 1) {
            const text = `flood: ${number}`;
            const entry = { kind: "message", id: text, name: "Grace", text, at: new Date(), own: false };
            const before = room.entries.at(-1);
            room.add(entry);
            append(entry, before);
          }
          await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
          return reads;
        }"""
    )
    assert layouts < 10
    expect(page.locator(".bubble").last).to_have_text("flood: 999")
    assert page.locator("#messages > li").count() <= 400


def test_chat_shows_messages_from_curl_and_the_tool_and_sends_by_the_tool(hub: str, open_page: OpenPage) -> None:
    page, other = open_page(f"{hub}/chat", name="Ada"), open_page(f"{hub}/chat", name="Grace")
    live(page)
    live(other)
    call(hub, "send_sse_message", {"message": "tool: by curl"})
    expect(page.locator(".message", has_text="tool: by curl").locator("strong")).to_have_text("hub")
    assert page.request.post(f"{hub}/publish", data={"data": {"text": "tool: published"}}).ok
    assert page.request.post(f"{hub}/publish", data={"data": "tool: plain"}).ok
    for each in (page, other):
        expect(each.locator(".bubble").get_by_text("tool: plain", exact=True)).to_be_visible()
        assert heard(each, "tool:") == ["tool: by curl", "tool: published", "tool: plain"]
    page.get_by_label("Send with").select_option("tool")
    say(page, "tool: by the page")
    expect(other.locator(".bubble").get_by_text("tool: by the page")).to_be_visible()
    expect(page.locator(".message.own:not(.sending)", has_text="tool: by the page")).to_have_count(1)
    assert heard(page, "tool:")[-1:] == ["tool: by the page"]


def test_message_from_a_tool_without_a_name_shows_the_sender(tmp_path: Path, open_page: OpenPage) -> None:
    port = free_port()
    with run_server(run_command("examples/broadcast/main.py", port), port, tmp_path / "log"):
        url = f"http://127.0.0.1:{port}"
        ada, grace = (open_page(f"{url}/chat", name=name, lossy=True) for name in ("Ada", "Grace"))
        live(ada)
        live(grace)
        grace.get_by_label("Send with").select_option("tool")
        grace.get_by_label("Message", exact=True).press_sequentially("through the tool")
        expect(ada.get_by_text("Grace is typing")).to_be_visible()
        grace.keyboard.press("Enter")
        message = ada.locator(".message", has_text="through the tool")
        expect(message.locator("strong")).to_have_text("Grace")
        expect(message.locator("time")).to_have_count(1)
        expect(ada.get_by_text("Grace is typing")).to_be_hidden()
        call(url, "send_sse_message", {"message": "through the tool"})
        expect(ada.locator(".message", has_text="through the tool").last.locator("strong")).to_have_text("broadcast")


def test_messages_are_found_by_their_words_and_by_their_links(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/chat", name="Ada", permissions=["clipboard-read", "clipboard-write"])
    live(page)
    for number in range(30):
        call(hub, "send_sse_message", {"message": f"find: number {number}"})
    expect(page.locator(".bubble").get_by_text("find: number 29")).to_be_visible()
    page.locator("#scroll").focus()
    page.keyboard.press("f")
    page.keyboard.type("Number find: 7")
    expect(page.locator("#found")).to_have_text("3 messages")
    assert heard(page, "find:") == ["find: number 7", "find: number 17", "find: number 27"]
    page.locator(".message", has_text="find: number 7").get_by_role("button", name="Show in the conversation").click()
    expect(page.locator(".message.marked")).to_have_text(re.compile("find: number 7$"))
    expect(page.locator("#search")).to_be_hidden()
    assert len(heard(page, "find:")) == 30
    found = page.locator(".message", has_text="find: number 12")
    found.hover()
    found.get_by_role("button", name="Copy a link to this message").click()
    link = page.evaluate("navigator.clipboard.readText()")
    assert "message=" in link
    visitor = open_page(link, name="Grace", has_touch=True, width=390, height=844)
    expect(visitor.locator(".message.marked")).to_have_text(re.compile("find: number 12$"))
    visitor.get_by_role("button", name="Search the messages", exact=True).tap()
    visitor.get_by_label("Search the messages of this channel").fill("number 11")
    expect(visitor.locator("#found")).to_have_text("1 message")
    assert find_layout_problems(visitor) == []


def test_rejected_channel_does_not_change_the_open_one(hub: str, open_page: OpenPage) -> None:
    ada = open_page(f"{hub}/chat#channel=many-0", name="Ada")
    live(ada)
    for number in range(1, 12):
        ada.get_by_label("Channel", exact=True).fill(f"many-{number}")
        ada.keyboard.press("Enter")
    expect(ada.locator("#channel-error")).to_have_text("You're on 12 channels already. Leave one first.")
    expect(ada.locator("#talk-title")).to_have_text("# many-10")
    grace = open_page(f"{hub}/chat#channel=many-10", name="Grace")
    live(grace)
    expect(ada.locator("#members").get_by_text("Grace", exact=True)).to_be_visible()


def test_clients_without_a_name_join_an_empty_channel(hub: str, open_page: OpenPage) -> None:
    ada = open_page(f"{hub}/chat#channel=quiet", name="Ada")
    live(ada)
    expect(ada.locator("#members").get_by_text("Ada (you)")).to_be_visible()
    other = open_page(f"{hub}/docs")
    other.evaluate("window.stranger = new EventSource('events?channel=quiet&client_id=stranger')")
    expect(ada.locator("#messages")).to_contain_text("Someone joined")
    other.evaluate("stranger.close()")


def test_leaving_a_channel_drops_unsent_messages(hub: str, open_page: OpenPage) -> None:
    ada = open_page(f"{hub}/chat#channel=left", name="Ada", lossy=True)
    live(ada)
    expect(ada.locator("#members").get_by_text("Ada (you)")).to_be_visible()
    ada.context.set_offline(True)
    expect(ada.locator("#state")).to_have_text("Offline")
    say(ada, "left: never sent")
    expect(ada.locator(".message", has_text="left: never sent")).to_contain_text("Waiting")
    ada.get_by_role("button", name="Leave left").click()
    ada.context.set_offline(False)
    live(ada)
    ada.get_by_label("Channel", exact=True).fill("left")
    ada.keyboard.press("Enter")
    say(ada, "left: sent")
    grace = open_page(f"{hub}/chat#channel=left", name="Grace")
    expect(grace.locator(".bubble").get_by_text("left: sent")).to_be_visible()
    assert heard(grace, "left:") == ["left: sent"]
