import json
from pathlib import Path

import msgspec
from msgspec import Raw, Struct

from behavior.judge import judge_of
from cases import for_each
from millstream._protocol import notifications
from millstream._protocol.content import Image, Message, ResourceContents, Text, ToolAnnotations
from millstream._protocol.jsonrpc import PeerError, encode
from millstream._protocol.metadata import Implementation
from millstream._protocol.notifications import NOTIFICATIONS, read_cancellation
from millstream._protocol.revisions import ALL
from protocol_messages import QUESTIONS, REQUESTS

SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"
# Struct -> the definitions that it stands for, where the names differ. A dot leads to a member without a name.
DEFINITIONS = {
    "ToolDescription": ["Tool"],
    "ResourceDescription": ["Resource"],
    "TemplateDescription": ["ResourceTemplate"],
    "PromptDescription": ["Prompt"],
    "Description": ["BaseMetadata", "Icons"],
    "EmptyResult": ["Result"],
    "Params": [],
    "InputRequest": ["ListRootsRequest"],
    "Reference": ["PromptReference", "ResourceTemplateReference"],
    "CompletionArgument": ["CompleteRequestParams.argument"],
    "CompletionContext": ["CompleteRequestParams.context"],
    "Completion": ["CompleteResult.completion"],
    "ElicitRequestParams": ["ElicitRequestFormParams", "ElicitRequestURLParams"],
    "SampleResult": ["CreateMessageResult"],
    "PeerError": ["Error"],
    "ResourceContents": ["TextResourceContents", "BlobResourceContents"],
}
NOBODY_READS_IT = "nobody reads `_meta` here, and unknown members are ignored"
# (Struct, member of the schema) -> why it is left out.
LEFT_OUT = {
    ("Implementation", "icons"): "nobody shows a picture of a peer",
    ("Reference", "title"): "the name is what counts",
    (
        "CreateMessageRequestParams",
        "includeContext",
    ): "deprecated, and never sent by a server of ours",
    ("SampleResult", "_meta"): NOBODY_READS_IT,
    ("Root", "_meta"): NOBODY_READS_IT,
    ("CancelledNotificationParams", "_meta"): NOBODY_READS_IT,
    ("LoggingMessageNotificationParams", "_meta"): NOBODY_READS_IT,
}
# (Struct, member) -> why it is there although the newest schema lacks it.
BESIDE = {
    ("InitializeResult", "resultType"): "the base of all results; without it a result is complete",
    ("PaginatedResult", "ttlMs"): "in the schema of every list",
    ("PaginatedResult", "cacheScope"): "in the schema of every list",
    ("ElicitRequestParams", "elicitationId"): "URLs of 2025-11-25 have one",
    ("Description", "description"): "in the schema of every described thing but not of what they share",
    ("Description", "_meta"): "in the schema of every described thing but not of what they share",
}


STRUCTS: list[type[Struct]] = [
    *(
        value
        for module in (notifications, notifications, notifications)
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and not value.__name__.startswith("_")
    ),
    ToolAnnotations,
    Implementation,
    PeerError,
    ResourceContents,
]
"""Everything that is a message or a part of one."""


def properties(definition: str) -> set[str]:
    """Return the member names of a definition, in the newest revision that has it."""
    name, _, inner = definition.partition(".")
    for revision in reversed(ALL):
        document = json.loads((SCHEMAS / f"{revision.date}.schema.json").read_text("utf-8"))
        found = document.get("$defs", document.get("definitions", {})).get(name)
        if found is None and name.endswith("RequestParams"):  # older schemas have parameters inside of the request
            request = document.get("definitions", {}).get(name.removesuffix("Params"))
            found = request and request["properties"]["params"]
        if found is not None:
            return set(found["properties"][inner]["properties"] if inner else found["properties"])
    raise AssertionError(f"no schema has {definition}")


@for_each("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_structs_have_the_members_of_the_newest_schema(struct: type[Struct]) -> None:
    """https://modelcontextprotocol.io/specification/2026-07-28/schema"""
    name = struct.__name__
    expected: set[str] = set()
    for definition in DEFINITIONS.get(name, [name]):
        expected |= properties(definition)
    left_out = {member for owner, member in LEFT_OUT if owner == name}
    assert left_out <= expected, "left out is what the schema has"
    if name.endswith("RequestParams"):
        left_out.add("_meta")  # read by `protocol.admission`, before the parameters
    beside = {member for owner, member in BESIDE if owner == name}
    assert not beside & expected, "the newest schema has it: no exception is needed"
    tag = {struct.__struct_config__.tag_field} - {None}
    assert set(struct.__struct_encode_fields__) | tag == (expected - left_out) | beside


def test_every_method_has_params_and_result_types() -> None:
    assert set(REQUESTS) == {method for revision in ALL for method in revision.requests}
    assert set(QUESTIONS) == {method for revision in ALL for method in revision.asks}
    assert set(NOTIFICATIONS) >= {method for revision in ALL for method in revision.notifications}


WRITTEN: dict[tuple[str, str], Struct] = {
    ("InitializeRequest", "initialize"): notifications.InitializeRequestParams(
        "2025-11-25", Raw(b"{}"), Implementation("c", "1")
    ),
    ("SetLevelRequest", "logging/setLevel"): notifications.SetLevelRequestParams("info"),
    ("ListToolsRequest", "tools/list"): notifications.PaginatedRequestParams("next"),
    ("CallToolRequest", "tools/call"): notifications.CallToolRequestParams(name="add", arguments=Raw(b'{"a":1}')),
    ("GetPromptRequest", "prompts/get"): notifications.GetPromptRequestParams(name="greet", arguments={"who": "Ada"}),
    ("ReadResourceRequest", "resources/read"): notifications.ReadResourceRequestParams(uri="note://one"),
    ("SubscribeRequest", "resources/subscribe"): notifications.ResourceRequestParams("note://one"),
    ("CompleteRequest", "completion/complete"): notifications.CompleteRequestParams(
        notifications.Reference("ref/prompt", "greet"),
        notifications.CompletionArgument("who", "A"),
        notifications.CompletionContext({"b": "c"}),
    ),
    ("CreateMessageRequest", "sampling/createMessage"): notifications.CreateMessageRequestParams(
        [Message("user", "hello")], 7, system_prompt="Be brief"
    ),
    ("ElicitRequest", "elicitation/create"): notifications.ElicitRequestParams(
        mode="url", message="Please pay", url="https://example.com/pay", elicitation_id="1"
    ),
    ("ProgressNotification", "notifications/progress"): notifications.ProgressNotificationParams("t", 0.5, 1.0, "half"),
    ("LoggingMessageNotification", "notifications/message"): notifications.LoggingMessageNotificationParams(
        "info", {"a": 1}, "shop"
    ),
    ("CancelledNotification", "notifications/cancelled"): notifications.CancelledNotificationParams(7, "no more"),
    ("ResourceUpdatedNotification", "notifications/resources/updated"): notifications.ResourceUpdatedNotificationParams(
        "note://one"
    ),
}


@for_each(("definition", "method"), WRITTEN)
def test_messages_match_the_schema_and_round_trip(definition: str, method: str) -> None:
    params = WRITTEN[definition, method]
    written = encode(params)
    message = {"jsonrpc": "2.0", "method": method, "params": json.loads(written)}
    judge_of("2025-11-25").check(definition, message if "notifications/" in method else {**message, "id": 1})
    read = msgspec.json.decode(written, type=type(params))
    assert encode(read) == written


def test_unset_members_are_not_written() -> None:
    assert encode(notifications.CallToolRequestParams(name="add")) == b'{"name":"add"}'
    assert encode(notifications.SubscriptionFilter()) == b"{}"
    assert encode(notifications.ElicitRequestParams(message="Which?", requested_schema={})) == (
        b'{"message":"Which?","requestedSchema":{}}'
    )


def test_results_in_older_revisions_have_default_cache_hints() -> None:
    """https://modelcontextprotocol.io/specification/2026-07-28/server/utilities/caching"""
    result = msgspec.json.decode(b'{"tools":[]}', type=notifications.ListToolsResult)
    assert (result.result_type, result.ttl_ms, result.cache_scope, result.next_cursor) == (
        "complete",
        0,
        "private",
        None,
    )


def test_sample_text_joins_its_text_blocks() -> None:
    blocks = [Text("a"), Image(b"", "image/png"), Text("b")]
    assert notifications.SampleResult("assistant", blocks, "m").text == "a\nb"
    assert notifications.SampleResult("assistant", Text("a"), "m").text == "a"


@for_each("reason", [b'"enough"', b"7", b"null", b"{}"])
def test_cancellations_are_accepted_with_any_reason(reason: bytes) -> None:
    assert read_cancellation(b'{"requestId":7,"reason":%b}' % reason)[0] == 7
