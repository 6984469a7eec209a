"""Programs behave as with the library that they were written for: each runs with it, and ported."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from millstream import Client
from millstream.client import ClientError
from millstream.client._questions import Question
from patience import WAIT

pytestmark = pytest.mark.server
ORIGINALS = Path(__file__).resolve().parent / "originals"
REVISIONS = ["2025-11-25", "2026-07-28"]


Calls = list[tuple[str, Mapping[str, Any], Any]]


async def seen(program: Path, revision: str, calls: Calls, python: str = sys.executable) -> list[Any]:
    """What a client sees of a program: its tools, the questions that it asks, and what its tools answer."""
    asked: list[Any] = []
    answer: Any = None

    def elicit(question: Question) -> Any:
        form = dict(question.requested_schema or {})
        form.pop("title", None)  # SDK 2.3 says the name of the class in one era, and not in the other
        asked.append((question.message, form))
        return answer(question) if callable(answer) else answer

    async with Client(
        [python, str(program)],
        revision=revision,
        timeout=WAIT,
        elicit=elicit,
        sample=lambda request: f"{len(request.messages)} of {request.max_tokens}",
        roots=["file:///books"],
    ) as client:
        tools = [(tool.name, tool.input_schema) for tool in await client.tools()]
        found: list[Any] = []
        for name, arguments, each in calls:
            answer = each
            try:
                result = await client.call(name, dict(arguments))
                found.append((name, result.is_error, "" if result.is_error else result.text))
            except ClientError as error:
                found.append((name, type(error).__name__))
        return [tools, found, sorted(asked, key=str)]


def fill_in(question: Question) -> Any:
    """The answer of somebody who wants everything large and red."""
    return {"size": "L"} if "size" in (question.requested_schema or {}).get("properties", {}) else {"color": "red"}


RESOLVED: Calls = [
    ("order", {"isbn": "Momo"}, fill_in),
    ("order", {"isbn": "small"}, fill_in),
    ("order", {"isbn": "Momo"}, "decline"),
    ("paint", {"isbn": "Momo"}, fill_in),
    ("paint", {"isbn": "small"}, "cancel"),
    ("folders", {}, None),
    ("say", {"words": "hello"}, None),
]


@pytest.mark.parametrize("revision", REVISIONS)
async def test_resolvers_fill_in_parameters_as_with_the_official_sdk(ported: Path, revision: str) -> None:
    """SDK 2.x: `Annotated[T, Resolve(f)]`, in both eras."""
    theirs = await seen(ORIGINALS / "resolving.py", revision, RESOLVED)
    ours = await seen(ported / "resolving.py", revision, RESOLVED)
    assert ours == theirs
    assert ours[1][0] == ("order", False, "Momo in L")
    assert ours[1][2][1], "who declines ends the call"
    assert ours[1][3] == ("paint", False, "red, L")
