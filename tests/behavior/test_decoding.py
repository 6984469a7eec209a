import json
from collections.abc import Callable
from typing import Any

import msgspec

from behavior.combinations import Combination, in_combinations
from behavior.conftest import Connect
from behavior.harness import Json
from millstream._protocol import notifications as ours
from millstream._protocol.content import Text
from millstream._protocol.revisions import BY_DATE
from protocol_messages import REQUESTS

CALLS: dict[str, tuple[Json, Callable[[Any], bool]]] = {
    "ping": ({}, lambda result: result == ours.EmptyResult()),
    "server/discover": (
        {},
        lambda result: result.instructions == "Ask for anything." and "tools" in result.capabilities,
    ),
    "tools/list": ({}, lambda result: result.tools[0].name == "add" and result.next_cursor is not None),
    "tools/call": (
        {"name": "add", "arguments": {"a": 1, "b": 2}},
        lambda result: result.content == [Text("3")] and not result.is_error,
    ),
    "resources/list": ({}, lambda result: result.resources[0].size == 5),
    "resources/templates/list": (
        {},
        lambda result: result.resource_templates[0].uri_template == "book://{isbn}/{page}",
    ),
    "resources/read": ({"uri": "note://bytes"}, lambda result: result.contents[0].blob == b"\x00\x01"),
    "resources/subscribe": ({"uri": "note://one"}, lambda result: result == ours.EmptyResult()),
    "resources/unsubscribe": ({"uri": "note://one"}, lambda result: result == ours.EmptyResult()),
    "prompts/list": ({}, lambda result: len(result.prompts) > 1),
    "prompts/get": ({"name": "greet", "arguments": {"name": "Ada"}}, lambda result: result.messages[0].role == "user"),
    "completion/complete": (
        {"ref": {"type": "ref/resource", "uri": "book://{isbn}/{page}"}, "argument": {"name": "isbn", "value": "11"}},
        lambda result: result.completion == ours.Completion(["111", "112"], 2, False),
    ),
    "logging/setLevel": ({"level": "error"}, lambda result: result == ours.EmptyResult()),
}
ELSEWHERE = {"initialize": "the client of these tests has sent it", "subscriptions/listen": "it ends with its stream"}


@in_combinations("session")
async def test_results_of_every_method_decode(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    methods = set(BY_DATE[combination.revision].requests) & set(REQUESTS) - set(ELSEWHERE)
    for method in sorted(methods):
        params, expected = CALLS[method]
        result = (await client.request(method, params)).result
        decoded = msgspec.json.decode(json.dumps(result), type=REQUESTS[method][1])
        assert expected(decoded), f"{method}: {decoded}"


@in_combinations("handshake")
async def test_discovery_results_decode(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    told = msgspec.json.decode(json.dumps(client.initialized), type=ours.InitializeResult)
    assert told.protocol_version == combination.revision
    assert (told.server_info.name, told.server_info.version) == ("world", "1.2.3")
