"""The words of documents, help, errors and docstrings: none of the patterns that scripts/prose.py knows."""

import ast

import pytest

from scripts.prose import everything, judged, texts

WRONG = [
    "The client is told when the call ends.",
    "Who returns with the last id hears everything behind it.",
    "Who is late may wait. Who returns in time gets it at once.",
    "Kept are the newest 10,000 events.",
    "MILLSTREAM_PORT is no setting.",
    "A message of which not even the method could be read is counted.",
    "A side effect belongs into a function of its own.",
    "Every client, of any age, can call it.",
    "This allows to call it.",
    "It shall be closed.",
    "Millstream asks it. Back come the status and the body.",
    "The file is opened anew.",
    "A worker with own sockets.",
    "The colour of the page.",
    "It is serialised once.",
    "Call it twice, e.g. in a test.",
]
RIGHT = [
    "There is no such tool. Nothing is no longer there; it's no more than a hint.",
    "Types are told apart by their tag.",
    "Who is there? Who asks for that?",
    "Who may publish: everybody who has a key.",
    "Shall we send it?",
    "`is told` is code, and so is ``the own one``.",
    "Keep the newest events.",
    "Not everything is lost.",
    "```text\nThe client is told.\n```",
]


@pytest.mark.parametrize("text", WRONG)
def test_a_pattern_is_found(text: str) -> None:
    """Our choice: what a native speaker wouldn't write, from our own earlier pages."""
    assert list(judged("page.md", 1, text))


@pytest.mark.parametrize("text", RIGHT)
def test_what_is_good_english_passes(text: str) -> None:
    """A checker with false alarms is one that people turn off."""
    assert list(judged("page.md", 1, text)) == []


def test_the_line_of_a_finding_is_where_it_stands() -> None:
    """Sentences go over lines, and code between them is skipped."""
    page = (
        "# Page\n\n```sh\nmillstream is told\n```\n\nA client\nis told, and this\nline is long.\n\nThe file is\ntold.\n"
    )
    assert [found.line for found in judged("page.md", 1, page)] == [7, 11]


def test_docstrings_messages_and_help_are_read() -> None:
    """What people see of a source; other strings are data."""
    lines = [
        '"""Doc."""', 'x = "data"', 'raise ValueError(f"no {x} here")', 'option(help="Help.")',
        'logger.info("Said.", x)', "def f():", '    """In f."""',
    ]  # fmt: skip
    assert [text for _, text in texts(ast.parse("\n".join(lines)), everything=False) if text] == [
        "Doc.", "no `…` here", "Help.", "Said.", "In f.",
    ]  # fmt: skip


@pytest.mark.many
def test_the_project_has_none() -> None:
    """The whole project, as `make check` reads it."""
    assert [f"{each.path}:{each.line}: {each.words}: {each.advice}" for each in everything()] == []
