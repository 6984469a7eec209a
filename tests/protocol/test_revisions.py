from cases import for_each
from millstream._protocol import revisions
from millstream._protocol.revisions import ALL, BY_DATE, HANDSHAKE, NEWEST, NEWEST_HANDSHAKE, PER_REQUEST, negotiate

L1, L2, L3, L4, M = ALL


@for_each(
    ("field", "values"),
    [
        ("handshake", (True, True, True, True, False)),
        ("batches", (False, True, False, False, False)),
        ("tool_annotations", (False, True, True, True, True)),
        ("named_titles", (False, False, True, True, True)),
        ("icons", (False, False, False, True, True)),
        ("structured", ("none", "none", "object", "object", "any")),
        ("progress_message", (False, True, True, True, True)),
        ("completions_capability", (False, True, True, True, True)),
        ("completion_context", (False, False, True, True, True)),
        ("rich_forms", (False, False, False, True, True)),
        ("sampling_tools", (False, False, False, True, True)),
        ("url_error", (False, False, False, True, False)),
        ("elicitation_ids", (False, False, False, True, False)),
        ("priming", (False, False, False, True, False)),
        ("event_ids", (False, True, True, True, False)),
        ("argument_errors_in_result", (False, False, False, True, True)),
        ("missing_resource_code", (-32002, -32002, -32002, -32002, -32602)),
        ("result_type", (False, False, False, False, True)),
        ("log_level_per_request", (False, False, False, False, True)),
        ("routing_headers", (False, False, False, False, True)),
    ],
)
def test_revisions_match_the_table_of_differences(field: str, values: tuple[object, ...]) -> None:
    assert tuple(getattr(revision, field) for revision in ALL) == values


def test_methods_are_limited_to_their_revisions() -> None:
    """MCP 2026-07-28, schema."""
    assert {"ping", "initialize", "logging/setLevel", "resources/subscribe"} <= L4.requests.keys()
    assert M.requests.keys().isdisjoint({"ping", "initialize", "logging/setLevel", "resources/subscribe"})
    assert M.requests.keys() - L4.requests.keys() == {"server/discover", "subscriptions/listen"}
    assert [("elicitation/create" in each.asks) for each in ALL] == [False, False, True, True, True]
    assert sorted(L1.content) == ["image", "resource", "text"]
    assert ALL[1].content - ALL[0].content == {"audio"}
    assert ALL[2].content - ALL[1].content == {"resource_link"}


def test_initialize_never_selects_a_per_request_revision() -> None:
    """MCP 2025-11-25, basic/lifecycle."""
    assert negotiate("2025-06-18") is L3
    for unknown in (NEWEST.date, "1999-01-01", ""):
        assert negotiate(unknown) is NEWEST_HANDSHAKE
    assert set(HANDSHAKE) | set(PER_REQUEST) == set(BY_DATE)


@for_each(
    ("version", "is_one"),
    [("2026-07-28", True), ("2027-01-01", True), ("2025-11-25", False), ("é", False), ("v9", False), ("", False)],
)
def test_version_dates_decide_the_era(version: str, *, is_one: bool) -> None:
    """MCP 2026-07-28, basic/versioning."""
    assert revisions.names_per_request_era(version) is is_one
