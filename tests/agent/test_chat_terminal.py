import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent_world import ScriptedModel, Step, breaks_off, calls, hangs, says
from millstream._cli.chat.conversation import ConsolePrompts
from millstream._cli.chat.screen import PlainScreen, TerminalScreen
from millstream.agent._configuration import Approval
from millstream.agent._events import TextDelta
from processes import ROOT, TEST_PATH
from terminal_world import Terminal, needs_tmux, terminal

pytestmark = [pytest.mark.server, needs_tmux]

SHOP = str(ROOT / "tests" / "agent" / "shop.py")
PAGE = """\
# Prices

The book **costs 4**, and that's a *fair* price, because the number of it is four characters long, which anybody can
count on the fingers of one hand.

| book | price |
|---|---|
| Emma | 4 |

```python
def price():

    return 4
```

- one [link](http://evil.example)
- two \x1b[31mred\x07
"""
Chat = Callable[..., Terminal]


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    """``chat(step, …, columns=80)``: a conversation with a scripted model."""
    with ExitStack() as stack:

        def start(*script: Step, columns: int = 80, options: tuple[str, ...] = ()) -> Terminal:
            api = stack.enter_context(ScriptedModel(*script))
            lines = f"API_URL={api.url}\nAPI_KEY=sk-right\nDEFAULT_MODEL=test-model\n"
            (tmp_path / ".env").write_text(lines)
            # Coverage of the tests' own run would look for its settings in this folder.
            env = {"PYTHONPATH": TEST_PATH, "TERM": "xterm-256color"}
            opened = terminal(["chat", SHOP, *options], tmp_path, columns=columns, env=env)
            return stack.enter_context(opened)

        yield start


@pytest.mark.parametrize("columns", [80, 120])
def test_answers_fit_the_terminal_and_show_tool_calls(chat: Chat, columns: int) -> None:
    wanted = calls(("price", '{"isbn": "9780"}'), ("fail", "{}"), text="Let me see.")
    shown = chat(wanted, says(PAGE, pieces=40), columns=columns)
    shown.until("test-model with 11 tools of shop", ">")
    shown.type("How much?")
    lines = shown.until("two", "\n>")
    assert max(map(len, lines)) <= columns
    begin = lines.index("> How much?")
    assert lines[begin + 1 : begin + 4] == ["Let me see.", "", '→ shop: price(isbn="9780")']
    text = "\n".join(lines)
    assert "← 4" in text
    assert "! The tool reported an error: Sold out." in text
    assert "The book costs 4, and that's a fair price" in text
    assert "    return 4" in text
    assert "one link (http://evil.example)" in text
    assert "two \ufffd[31mred\ufffd" in text
    assert "**" not in text
    assert "```" not in text
    assert "\n\n\n" not in text
    assert "…" not in text  # what stood there while the model was asked


def test_tools_can_be_approved_once_or_always(chat: Chat) -> None:
    burn = calls(("burn", '{"isbn": "1"}'))
    shown = chat(burn, says("Kept."), burn, says("Burned."), burn, says("Burned again."))
    shown.until("\n>")
    for answer, words in (("", "Kept."), ("what", "Allow it?"), ("always", "Burned.")):
        if words != "Burned.":
            shown.type("Burn it" if not answer else "Once more")
            shown.until("The model wants to run burn of shop (Burn a book.):", 'isbn: "1"', "Allow it?")
        shown.type(answer)
        shown.until(words)
    shown.until("Burned.", "\n>")
    shown.type("And again")
    text = "\n".join(shown.until("Burned again.", "\n>"))
    assert text.count("wants to run burn") == 2
    assert "✗ The user didn't allow this call." in text


def test_read_only_tools_of_several_servers_are_approved_once(chat: Chat) -> None:
    price = calls(("shop__price", '{"isbn": "1"}'))
    shown = chat(price, says("Four."), price, says("Still four."), options=(SHOP,))
    shown.until("\n>")
    shown.type("How much?")
    shown.until(
        "The model wants to run price of shop", "It's marked as read-only, so you're asked only once.", "Allow it?"
    )
    shown.type("yes")
    shown.until("Four.", "\n>")
    shown.type("And now?")
    assert "\n".join(shown.until("Still four.", "\n>")).count("Allow it?") == 1


def test_forms_ask_again_after_invalid_input(chat: Chat) -> None:
    shown = chat(calls(("deliver", "{}")), says("On its way."), calls(("deliver", "{}")), says("A pity."))
    shown.until("\n>")
    shown.type("Send it")
    shown.until("shop asks: Where to?", "Type /no to decline", "street:")
    shown.type("")
    shown.until("Please answer.", "street:")
    shown.type("Mill Lane")
    shown.until("copies (a whole number) [1]:")
    shown.type("many")
    shown.until("This must be an integer", "copies (a whole number) [1]:")
    shown.type("3")
    shown.until("← Mill Lane, 3", "On its way.", "\n>")
    shown.type("Send it again")
    shown.until("On its way.", "street:")
    shown.type("/no")
    shown.until("On its way.", "! ", "A pity.")


def test_ctrl_c_stops_an_answer_and_a_second_one_exits(chat: Chat) -> None:
    shown = chat(hangs("Wait for it"), calls(("forever", "{}")), calls(("burn", '{"isbn": "1"}')), says("Still here."))
    shown.until("\n>")
    shown.type("Hello")
    shown.until("Wait for it")
    shown.press("C-c")
    shown.until("Wait for it", "Stopped.", "\n>")
    shown.type("Call it")
    shown.until("→ shop: forever()")
    shown.press("C-c")
    shown.until("→ shop: forever()", "Stopped.", "\n>")
    shown.type("Burn it")
    shown.until("Allow it?")
    shown.press("C-c")
    shown.until("Allow it?", "Stopped.", "\n>")
    shown.type("Are you there?")
    shown.until("Still here.", "\n>")
    shown.press("C-c")
    shown.until("Press Ctrl-C again")
    shown.press("C-c")
    shown.until("ended with 0")


def test_slash_commands_work(chat: Chat, tmp_path: Path) -> None:
    shown = chat(says("Praised."), says("Read."), breaks_off("Half"), says("Whole."))
    shown.until("\n>")
    shown.type("/help")
    shown.until("/save FILE", "Ctrl-C stops an answer.")
    shown.type("/tools")
    shown.until("NAME", "price", "The price of", "weird_name_xxx")
    shown.type("/prompt")
    shown.until("shop:pitch title= [tone=]", "Praise a book.")
    shown.type("/prompt pitch 'title=Emma Woodhouse'")
    shown.until("Praised.")
    shown.type("/read")
    shown.until("shop:book://{isbn}")
    shown.type("/read book://7")
    shown.until("@shop:book://7", "characters for the model")
    shown.type("What is in it?")
    shown.until("Read.", "\n>")
    shown.type("/read nothing://7")
    shown.until("Error: shop can't provide nothing://7")
    shown.type("/nothing")
    shown.until("Error: There is no command /nothing. Type /help for a list.")
    shown.type("Go on")
    shown.until("Ignore the text above. The connection to the model was lost.", "Whole.")
    shown.type("/save talk.jsonl")
    shown.until("talk.jsonl", "lines")
    shown.type("/quit")
    shown.until("ended with 0")
    kinds = [json.loads(line)["type"] for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert kinds.count("answer_end") == 3


def test_answers_cannot_control_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    with open(leader, "rb", buffering=0) as seen, open(follower, "w") as terminal:  # noqa: PTH123  descriptors
        monkeypatch.setattr(sys, "stdout", terminal)
        PlainScreen().show(TextDelta("two \x1b]52;c;cm0=\x07red"))
        monkeypatch.undo()
        assert seen.read(100) == "two \ufffd]52;c;cm0=\ufffdred".encode()


def test_blocks_with_many_marks_are_printed_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    screen = TerminalScreen()
    for text in ("*_" * 10_000, "**bold**"):
        screen.show(TextDelta(text))
        screen.pause()
    printed = capsys.readouterr().out
    assert printed.count("*") == 10_000
    assert "bold" in printed


def test_tool_names_cannot_add_lines_to_approvals() -> None:
    shown: list[str] = []

    class Seen(PlainScreen):
        def note(self, text: str) -> None:
            shown.append(text)

    prompts = ConsolePrompts(Seen(), lambda prompt: "no", yes=False)
    assert not prompts.approve(Approval(kind="tool", server="shop", tool="wipe\n of nothing:\n  all: false"))
    assert not any("\n" in each for each in shown)
