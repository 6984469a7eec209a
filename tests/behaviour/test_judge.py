"""The judge itself: a schema that lets everything pass would prove nothing."""

from typing import Any

import pytest

from behaviour.combinations import NEWEST, REVISIONS
from behaviour.judge import judge_of

TEXT = {"type": "text", "text": "x"}
LINK = {"type": "resource_link", "uri": "a://b", "name": "b"}


def response(result: Any) -> dict[str, Any]:
    """A response with a result."""
    return {"jsonrpc": "2.0", "id": 1, "result": result}


@pytest.mark.parametrize("date", REVISIONS)
def test_what_is_right_passes(date: str) -> None:
    """The schemas as published."""
    judge = judge_of(date)
    judge.check_message(response({"content": [TEXT], "resultType": "complete"}), "tools/call")
    judge.check_message({"jsonrpc": "2.0", "id": 1, "error": {"code": -32601, "message": "no"}})
    judge.check_message({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})


@pytest.mark.parametrize("date", REVISIONS)
@pytest.mark.parametrize(
    ("message", "method"),
    [
        (response({"content": "x", "resultType": "complete"}), "tools/call"),
        (response({"content": [{"type": "text"}], "resultType": "complete"}), "tools/call"),
        (response({"tools": [{"name": "a"}], "resultType": "complete"}), "tools/list"),
        ({"jsonrpc": "2.0", "id": 1, "error": {"code": "x", "message": "no"}}, "tools/call"),
        ({"jsonrpc": "2.0", "id": 1.5, "result": {}}, "ping"),
        ({"jsonrpc": "1.0", "id": 1, "result": {}}, "ping"),
        ({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}}, None),
    ],
    ids=str,
)
def test_what_is_wrong_fails(date: str, message: dict[str, Any], method: str | None) -> None:
    """A member of the wrong type, or one that is missing."""
    with pytest.raises(AssertionError):
        judge_of(date).check_message(message, method)


def test_what_a_revision_does_not_have_fails() -> None:
    """Definitions differ by revision: content kinds, result types, questions."""
    with pytest.raises(AssertionError):
        judge_of("2025-03-26").check_message(response({"content": [LINK]}), "tools/call")
    judge_of("2025-06-18").check_message(response({"content": [LINK]}), "tools/call")
    with pytest.raises(AssertionError):
        judge_of(NEWEST).check_message(response({"content": [TEXT]}), "tools/call")
    with pytest.raises(AssertionError):
        judge_of("2025-03-26").check_message({"jsonrpc": "2.0", "id": 1, "method": "elicitation/create", "params": {}})
    question = {"a": {"method": "elicitation/create", "params": {"message": "x"}}}
    asking = response({"resultType": "input_required", "inputRequests": question})
    with pytest.raises(AssertionError):
        judge_of(NEWEST).check_message(asking, "tools/call")
