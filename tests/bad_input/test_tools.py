import json
import logging
import re
from typing import Any

import pytest

from bad_input.shop import SECRET
from cases import for_each
from wire import Wire, per_request, request, routing

ERAS = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"]


async def call(wire: Wire, era: str, name: str, arguments: Any = None) -> tuple[int, dict[str, Any]]:
    """Return the status and message of a call."""
    params = {"name": name, **({} if arguments is None else {"arguments": arguments})}
    if era == ERAS[-1]:
        reply = await wire.post(per_request("tools/call", params, 7), routing("tools/call", name))
    else:
        reply = await wire.post(request("tools/call", params, 7), await wire.initialize(era))
    assert reply.message["id"] == 7
    return reply.status, reply.message


@for_each("era", ERAS)
async def test_a_tool_error_is_text_for_the_model(wire: Wire, era: str) -> None:
    status, message = await call(wire, era, "refuses")
    assert status == 200
    assert message["result"]["isError"] is True
    assert message["result"]["content"] == [{"type": "text", "text": "Try another day."}]


@pytest.mark.parametrize("era", ERAS)
async def test_other_failures_return_an_incident_and_are_logged(
    wire: Wire, era: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "millstream"):
        status, message = await call(wire, era, "breaks")
    assert (status, message["result"]["isError"]) == (200, True)
    text = message["result"]["content"][0]["text"]
    assert SECRET not in str(message)
    assert "RuntimeError" not in str(message)
    incident = re.search(r"[0-9a-f]{16}", text)
    assert incident is not None
    assert incident[0] in caplog.text
    assert SECRET in caplog.text


@pytest.mark.parametrize("era", ERAS)
async def test_results_that_violate_their_schema_are_internal_errors(
    wire: Wire, era: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "millstream"):
        status, message = await call(wire, era, "lies")
    assert (status, message["error"]["code"]) == (200, -32603)
    assert "$[0]" not in str(message)
    assert "int" not in message["error"]["message"].replace("Internal", "")
    assert "[0]" in caplog.text or "result" in caplog.text
    assert re.search(r"[0-9a-f]{16}", message["error"]["message"])


@pytest.mark.parametrize("era", ERAS)
async def test_results_that_violate_hand_written_schemas_are_internal_errors(
    wire: Wire, era: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "millstream"):
        status, message = await call(wire, era, "promises")
    assert (status, message["error"]["code"]) == (200, -32603)
    assert "isbn" not in str(message)
    assert "'items[0].isbn' must be a string, got the integer 9" in caplog.text


@for_each("era", ERAS)
@for_each(
    ("arguments", "text"),
    [
        (None, "missing 'items'"),
        ({"items": [{"isbn": 9}]}, "'items[0].isbn' must be a string, got the integer 9"),
        ([1], "the arguments must be an object, got the array [1]"),
    ],
)
async def test_hand_written_and_generated_schemas_reject_the_same_values(
    wire: Wire, era: str, arguments: Any, text: str
) -> None:
    status, message = await call(wire, era, "packs", arguments)
    whole = f"Invalid arguments for tool 'packs': {text}. Expected: {{\"items\": array of object}}"
    assert status == 200
    if era >= "2025-11-25":
        assert message["result"]["isError"] is True
        assert message["result"]["content"] == [{"type": "text", "text": whole}]
    else:
        assert message["error"] == {"code": -32602, "message": whole}
    assert (await call(wire, era, "packs", {"items": [{}]}))[1]["result"]["content"][0]["text"] == "1 items"


@for_each("era", ERAS)
async def test_an_empty_array_means_no_arguments(wire: Wire, era: str) -> None:
    """PHP encodes an empty object as an empty array."""
    for arguments in ([], {}):
        assert "missing 'a', 'b'" in json.dumps((await call(wire, era, "add", arguments))[1])
    params = {"name": "greet", "arguments": []}
    sent = per_request("prompts/get", params) if era == ERAS[-1] else request("prompts/get", params)
    headers = routing("prompts/get", "greet") if era == ERAS[-1] else await wire.initialize(era)
    assert "missing 'name'" in json.dumps((await wire.post(sent, headers)).message)
