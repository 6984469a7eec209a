"""The table of features by revision: a feature has a cell for each revision in which its test runs.

`behavior.combinations` knows in which revisions a test runs. A cell says "yes", or how the feature differs there.
"""

import importlib
from collections.abc import Mapping
from typing import NamedTuple

from millstream.protocol import REVISIONS

FIRST, STREAMS, FORMS, LINKS, NEWEST = REVISIONS
HANDSHAKE = (FIRST, STREAMS, FORMS, LINKS)


class Feature(NamedTuple):
    """A row: its test, and what to write instead of "yes"."""

    name: str
    test: str
    words: Mapping[str, str] = {}
    """Revision -> how the feature works there."""
    over: str = ""
    """The only transport that counts."""
    elsewhere: Mapping[str, str] = {}
    """Revision -> the test that runs there, of features with another test for it."""


def _in(word: str, *revisions: str) -> dict[str, str]:
    return dict.fromkeys(revisions, word)


CALLS = "behavior/test_calls.py::test_text_results_become_one_text_block"
TRANSPORTS = "client/test_transports.py::test_every_feature_works_over_every_transport"
EVENTS = "extensions/test_events.py::test_stream_delivers_published_events"
LOGS = "behavior/test_notifications.py::test_requests_receive_logs_at_or_above_their_level"
FEATURES = (
    Feature("stdio", CALLS, over="stdio"),
    Feature(
        "HTTP+SSE (`/sse`)",
        CALLS,
        _in("served", NEWEST),
        over="sse",
        elsewhere=_in("bad_input/test_sse.py::test_per_request_messages_are_served_on_http_sse", NEWEST),
    ),
    Feature("Streamable HTTP (`/mcp`)", CALLS, over="lane"),
    Feature("WebSocket (`/ws`, subprotocol `mcp`)", "", elsewhere=_in(TRANSPORTS, *REVISIONS)),
    Feature("in memory (tests)", CALLS, over="memory"),
    Feature("sessions", "behavior/test_sessions.py::test_second_initialize_is_rejected", _in("by stream", FIRST)),
    Feature("resume with `Last-Event-ID`", "behavior/test_resumption.py::test_resume_continues_after_any_event"),
    Feature("batches", "behavior/test_batches.py::test_batch_responses_are_sent_together"),
    Feature("tools, resources, templates, prompts", "behavior/test_lists.py::test_pages_form_the_whole_list_in_order"),
    Feature("completion", "behavior/test_reading.py::test_completion_uses_a_function_or_the_type"),
    Feature(
        "audio", "behavior/test_calls.py::test_content_is_converted_for_older_revisions", _in("as resource", FIRST)
    ),
    Feature(
        "progress",
        "behavior/test_notifications.py::test_progress_carries_the_token_of_its_request_and_increases",
        _in("without text", FIRST),
    ),
    Feature(
        "structured output, resource links",
        "behavior/test_calls.py::test_values_are_structured_if_the_revision_supports_it",
        _in("as text", FIRST, STREAMS),
    ),
    Feature(
        "log messages",
        "behavior/test_notifications.py::test_sessions_receive_logs_at_or_above_their_level",
        {**_in("by session", *HANDSHAKE), NEWEST: "by request"},
        elsewhere=_in(LOGS, NEWEST),
    ),
    Feature(
        "sampling",
        "behavior/test_questions.py::test_sampling_returns_the_response_from_the_clients_model",
        _in("by rounds", NEWEST),
    ),
    Feature(
        "sampling with tools",
        "behavior/test_questions.py::test_sampling_with_tools_requires_the_capability",
        _in("by rounds", NEWEST),
    ),
    Feature("roots", "behavior/test_questions.py::test_roots_returns_the_clients_folders", _in("by rounds", NEWEST)),
    Feature(
        "elicitation, form",
        "behavior/test_questions.py::test_forms_return_a_value_of_the_requested_type",
        _in("by rounds", NEWEST),
    ),
    Feature(
        "elicitation, URL",
        "behavior/test_questions.py::test_url_elicitation_returns_when_the_user_agrees",
        _in("by rounds", NEWEST),
    ),
    Feature(
        "resource subscriptions",
        "behavior/test_changes.py::test_updates_reach_the_resource_subscribers",
        _in("`subscriptions/listen`", NEWEST),
    ),
    Feature(
        "tasks",
        "",
        _in("extension", NEWEST),
        elsewhere=_in("extensions/tasks/test_task_calls.py::test_call_becomes_a_task_with_a_stored_result", NEWEST),
    ),
    Feature(
        "list changes",
        "behavior/test_changes.py::test_list_changes_are_announced",
        _in("`subscriptions/listen`", NEWEST),
    ),
    Feature(
        "cache hints", "", elsewhere=_in("behavior/test_calls.py::test_results_have_the_fields_of_their_era", NEWEST)
    ),
    Feature("parameter headers", "behavior/test_calls.py::test_parameter_headers_must_match_their_arguments"),
    Feature(
        "[events](../guides/events.md) (in Beta): polls, webhooks",
        "",
        _in("served", *REVISIONS[:-1]),
        elsewhere=_in("extensions/test_events.py::test_handshake_clients_can_read_events", *REVISIONS),
    ),
    Feature("events: streams", "", elsewhere=_in(EVENTS, NEWEST)),
)


def revisions_of(test: str, over: str = "") -> set[str]:
    """Return the revisions in which a test runs, by its marks."""
    path, _, name = test.partition("::")
    function = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    combinations = [
        each.values[0]
        for mark in function.pytestmark
        if mark.name == "parametrize" and mark.args[0] == "combination"
        for each in mark.args[1]
    ]
    if over:
        from behavior.combinations import choose  # noqa: PLC0415  it imports pytest

        combinations = choose(over=(over,))
    return {each.revision for each in combinations}


async def features_table() -> str:
    """Return the table of the page."""
    lines = [f"| | {' | '.join(REVISIONS)} |", f"|---|{'---|' * len(REVISIONS)}"]
    for row in FEATURES:
        found = revisions_of(row.test, row.over) if row.test else set[str]()
        assert not found & set(row.elsewhere), row.name
        assert set(row.words) <= found | set(row.elsewhere), row.name
        found |= set(row.elsewhere)
        cells = [row.words.get(each, "yes") if each in found else "–" for each in REVISIONS]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
