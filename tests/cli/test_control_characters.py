import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from millstream._cli.chat.conversation import show_rows
from millstream._cli.chat.screen import JsonScreen
from millstream._cli.connect_options import run_to_exit
from millstream._cli.tables import fill_in, print_json, print_text, safe
from millstream.agent._events import ToolEnd
from millstream.client._errors import ServerError
from millstream.client._questions import Question
from millstream.client._transports.stdio import print_line

HIDDEN = "\x07\x9b\u202e\u200e\u200f\u061c\u2028\u200b\u2060\ufeff\u200d\U000e0041"
BAD = f"\x1b]52;c;cm0=31m{HIDDEN}"
SEEN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f4bb \u2764\ufe0f"
"""Text that joiners and variation selectors shape."""


@contextmanager
def at_a_terminal(patch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Make standard output and standard error a terminal, and yield a function that reads it."""
    leader, follower = os.openpty()
    with open(leader, "rb", buffering=0) as seen, open(follower, "w", encoding="utf-8") as terminal:  # noqa: PTH123
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)

        def read() -> str:
            terminal.flush()
            patch.undo()
            return seen.read(4000).decode()

        yield read


def says_bad() -> None:
    """The error of a server."""

    async def fail() -> int:
        raise ServerError(-1, BAD)

    with pytest.raises(SystemExit):
        run_to_exit(fail)


def asks_bad() -> None:
    """A question of a server, with nothing to fill in."""
    question = Question(message=BAD, requested_schema={"type": "object", "properties": {}})
    fill_in("The server", question, lambda _: "no", sys.stderr.write)


@pytest.mark.parametrize(
    "show",
    [
        lambda: print_json({"text": BAD}),
        lambda: JsonScreen().show(ToolEnd("1", "shop", BAD, BAD, "done")),
        lambda: show_rows([(BAD, "")]),
        lambda: print_text(BAD),
        lambda: print_line(BAD),
        says_bad,
        asks_bad,
    ],
    ids=["JSON", "events", "rows", "text", "output of a server", "an error", "a question"],
)
def test_control_characters_do_not_reach_the_terminal(
    show: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_a_terminal(monkeypatch) as read:
        show()
        shown = read()
    assert "52;c;cm0=" in shown
    assert "\x1b]" not in shown
    assert not set(HIDDEN) & set(shown)


def test_joiners_that_shape_text_are_kept() -> None:
    assert safe(SEEN) == SEEN
