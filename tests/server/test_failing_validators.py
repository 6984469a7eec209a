import asyncio
from typing import Any

import pydantic
import pytest

from cases import for_each
from millstream import Server, Settings
from millstream.items import ArgumentError
from patience import WAIT
from plans import plan, read_arguments
from wire import LATEST_HANDSHAKE, POST, per_request, request, routing, run_wire


class Named(pydantic.BaseModel):
    name: Any

    @pydantic.field_validator("name")
    @classmethod
    def tidy(cls, name: Any) -> Any:
        return name.strip()  # a number has none


def greet(who: Named) -> str:
    return who.name


def count(words: set[Any]) -> int:
    return len(words)


@for_each("way", ["asgi", "lane"])
@for_each("era", ["handshake", "per request"])
async def test_validators_that_raise_any_error_produce_a_protocol_response(way: str, era: str) -> None:
    mcp = Server("shop", settings=Settings(secret_key="k" * 40, sessions=False))
    mcp.tool(greet)
    params = {"name": "greet", "arguments": {"who": {"name": 5}}}
    async with run_wire(mcp, way) as wire, asyncio.timeout(WAIT):
        if era == "handshake":
            reply = await wire.post(request("tools/call", params), {**POST, "mcp-protocol-version": LATEST_HANDSHAKE})
        else:
            reply = await wire.post(per_request("tools/call", params), routing("tools/call", "greet"))
    assert (reply.status, reply.message["result"]["isError"]) == (200, True)
    assert "incident" in reply.message["result"]["content"][0]["text"]


@for_each("raw", [b'{"words":[[1]]}', b'{"words":[1,{"a":1}]}'])
def test_unhashable_set_members_are_explained(raw: bytes) -> None:
    made = plan(count)
    with pytest.raises(
        ArgumentError, match=r"'words\[\d\]' is an array or object, but the items of this array must be unique"
    ):
        read_arguments(made, raw)
    assert read_arguments(made, b'{"words":[1,"a"]}').words == {1, "a"}
