import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import other_types
from cases import for_each
from examples import argument_types
from millstream.items import ArgumentError
from millstream.testing import connect
from plans import Plan, plan, read_arguments
from type_rows import PAGE, ROWS, type_in


def tool_with(annotation: str) -> Plan:
    def tool(x: Any) -> Any:
        return x

    tool.__annotations__["x"] = type_in(annotation)
    return plan(tool)


@for_each(("annotation", "schema", "accepted", "refused"), ROWS, ids=lambda cell: cell[:40])
def test_type_table_matches_behavior(annotation: str, schema: str, accepted: str, refused: str) -> None:
    made = tool_with(annotation)
    listed = made.input_schema["properties"]["x"]
    assert listed == json.loads(schema)
    assert list(listed.get("enum", ())) == json.loads(schema).get("enum", [])
    read_arguments(made, b'{"x":%b}' % accepted.encode())
    assert Draft202012Validator(made.input_schema).is_valid({"x": json.loads(accepted)})
    if refused:
        with pytest.raises(ArgumentError, match="Invalid arguments for tool 'tool': "):
            read_arguments(made, b'{"x":%b}' % refused.encode())


async def test_types_example_works() -> None:
    async with connect(argument_types.mcp) as client:
        book, film = {"title": "Momo", "pages": 300}, {"title": "Momo", "minutes": 90}
        assert (await client.call("heavier", one=book, other=film)).data == {**book, "tags": []}
        assert (await client.call("heavier", one={"title": "Momo"}, other=film)).data == film


def test_types_page_covers_every_type() -> None:
    assert len(ROWS) >= 35


OTHERS = [
    [cell.strip() for cell in re.split(r" (?<!\\)\| ", line.strip("|"))]
    for line in PAGE.partition("### Other types")[2].partition("### Rules")[0].splitlines()
    if line.startswith("| `")
]


ANNOTATIONS = [[first.split("`")[1], sent.strip("`")] for first, sent, *_ in OTHERS]


def column(number: int) -> list[str]:
    return [row[number].strip("`").replace("\\|", "|") for row in OTHERS]


@pytest.mark.filterwarnings("ignore:Item 'at' on TypedDict")
@for_each("other", [Any, argument_types.Review | None])
async def test_other_types_arrive_as_the_table_shows(other: Any) -> None:
    assert len(ANNOTATIONS) >= 29
    assert await other_types.try_annotations(ANNOTATIONS, other) == column(2)
