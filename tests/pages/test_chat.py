"""The chat in two browsers: messages, presence, history, and a cut that loses nothing."""

import json

import pytest
from playwright.sync_api import Page, expect

from pages_world import OpenPage, call

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
    """Our choice: two browsers chat and see each other."""
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


def test_the_chat_works_on_a_server_that_has_none_of_the_tools_of_an_example(plain: str, open_page: OpenPage) -> None:
    """A fixed defect: the page called a tool of `examples/hub.py`, and could send nothing anywhere else."""
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


def test_a_name_is_asked_for_once(hub: str, open_page: OpenPage) -> None:
    """Our choice: a live chat with names. Later visits know it."""
    page = open_page(f"{hub}/chat")
    expect(page.get_by_label("Your name")).to_be_focused()
    page.get_by_label("Your name").fill("Mary")
    page.keyboard.press("Enter")
    live(page)
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.reload()
    live(page)
    expect(page.locator("#members").get_by_text("Mary (you)")).to_be_visible()


def test_who_was_offline_misses_nothing(hub: str, open_page: OpenPage) -> None:
    """Our choice: one goes offline and comes back without a gap."""
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


def test_what_cannot_be_sent_stays_in_the_field(hub: str, open_page: OpenPage) -> None:
    """Our choice: a message is never lost silently."""
    page = open_page(f"{hub}/chat", name="Joan", lossy=True)
    live(page)
    page.context.set_offline(True)
    page.get_by_label("Message", exact=True).fill("kept: still here")
    page.keyboard.press("Enter")
    expect(page.locator("#failure")).to_contain_text("Not sent.")
    expect(page.get_by_label("Message", exact=True)).to_have_value("kept: still here")
    page.context.set_offline(False)
    live(page)
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".bubble").get_by_text("kept: still here")).to_be_visible()
    assert heard(page, "kept:") == ["kept: still here"]


def test_a_reload_shows_the_history_once_and_in_order(hub: str, open_page: OpenPage) -> None:
    """Our choice: history after reload."""
    page = open_page(f"{hub}/chat", name="Hedy")
    live(page)
    for number in range(3):
        say(page, f"past: {number}")
    expect(page.locator(".bubble").get_by_text("past: 2")).to_be_visible()
    page.reload()
    live(page)
    expect(page.locator(".bubble").get_by_text("past: 2")).to_be_visible()
    assert heard(page, "past:") == ["past: 0", "past: 1", "past: 2"]


def test_messages_of_other_programs_are_text_whatever_they_hold(hub: str, open_page: OpenPage) -> None:
    """Seed 001 sends plain text; what looks like markup must not become any."""
    page = open_page(f"{hub}/chat", name="Ada")
    live(page)
    hostile = "plain: <img src=x onerror=alert(1)>"
    call(hub, "send_sse_message", {"message": hostile, "channel": "chat"})
    expect(page.locator(".bubble").get_by_text(hostile, exact=True)).to_be_visible()
    assert page.locator(".bubble img").count() == 0


def test_somebody_of_the_same_name_is_not_you(hub: str, open_page: OpenPage) -> None:
    """A fixed defect: what one Ada said stood as "You" on the page of the other. A reload knows its own still."""
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
def test_a_message_with_a_time_that_is_none_hides_nothing_behind_it(hub: str, open_page: OpenPage, time: str) -> None:
    """A fixed defect: one such message, which any program can publish, ended everybody's chat there."""
    mark = f"odd {time}:"
    for text in (f"{mark} before", f'{{"message":{json.dumps(mark + " itself")},"time":{time}}}', f"{mark} after"):
        call(hub, "send_sse_message", {"message": text, "channel": "chat"})
    page = open_page(f"{hub}/chat", name="Ada")
    expect(page.locator(".bubble").get_by_text(f"{mark} after", exact=True)).to_be_visible()
    assert heard(page, mark) == [f"{mark} before", f"{mark} itself", f"{mark} after"]
