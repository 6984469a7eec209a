import json
from pathlib import Path

import pytest

from agent_world import ScriptedModel, calls, model, repeats, says
from examples import use_agent

pytestmark = pytest.mark.server


async def test_agent_program_orders_and_saves_the_transcript(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "order.jsonl"
    order = '{"isbn": "9780141439600", "copies": 2}'
    with ScriptedModel(calls(("order", order)), repeats("Ordered: ")) as api:
        await use_agent.ask(model(api), "Order two copies of Middlemarch.", path)
    assert capsys.readouterr().out.splitlines() == [
        "bookshop wants order: {'isbn': '9780141439600', 'copies': 2}",
        "order {'isbn': '9780141439600', 'copies': 2}",
        'Ordered: {"ordered":2}',
    ]
    assert json.loads(path.read_text().splitlines()[0])["text"] == "Order two copies of Middlemarch."


async def test_agent_program_uses_a_resource_and_a_prompt() -> None:
    with ScriptedModel(says("Very."), says("Dry.")) as api:
        assert await use_agent.review(model(api), "9780141439600") == "Very.\nDry."
    assert "Middlemarch, George Eliot, 880 pages" in api.requests[0].last["content"][1]["text"]
    assert api.requests[1].last["content"].startswith("Write a dry review of the book Middlemarch")
