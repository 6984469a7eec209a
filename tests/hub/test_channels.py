from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import for_each
from millstream.hub import InvalidName
from millstream.hub._channels import check_channel, check_client_id, check_name, check_pattern, is_pattern, matches
from millstream.hub._subscriber import PatternIndex

REACHED = [
    ("orders", "orders"),
    ("orders.*", "orders.new"),
    ("*.new", "orders.new"),
    ("orders.*.paid", "orders.7.paid"),
    ("orders.>", "orders.new"),
    ("orders.>", "orders.7.paid"),
    (">", "orders.7.paid"),
    ("*", "orders"),
    ("$presence.*", "$presence.chat"),
    ("$presence.>", "$presence.chat.1"),
    ("a*", "a*"),
]
NOT_REACHED = [
    ("orders", "orders.new"),
    ("orders.*", "orders"),
    ("orders.*", "orders.7.paid"),
    ("orders.>", "orders"),
    ("orders.>", "others.7"),
    ("*", "orders.new"),
    (">", "$presence.chat"),
    ("*.chat", "$presence.chat"),
    ("*.>", "$client.7"),
    ("a*", "ab"),
]


@for_each(("pattern", "channel"), REACHED)
def test_patterns_match_like_nats(pattern: str, channel: str) -> None:
    assert matches(pattern, channel)


@for_each(("pattern", "channel"), NOT_REACHED)
def test_leading_wildcards_do_not_match_hub_channels(pattern: str, channel: str) -> None:
    assert not matches(pattern, channel)


@for_each("name", ["broadcast", "a.b.c", "Größe", "1", "$presence.x", "a*", "x" * 200])
def test_a_channel_may_be_any_visible_text(name: str) -> None:
    check_channel(name)
    check_pattern(name)
    assert not is_pattern(name)


@for_each(
    "name",
    [
        "",
        "x" * 201,
        "a b",
        "a\nb",
        "a\0",
        "a..b",
        ".a",
        "a.",
        "a,b",
        "a\u2028b",
        "\ud800",
        "a\u00a0b",
        "a\ufffd",
        3,
        b"a",
        None,
    ],
)
def test_invalid_channel_names_are_rejected(name: Any) -> None:
    with pytest.raises(InvalidName):
        check_channel(name)
    with pytest.raises(InvalidName):
        check_pattern(name)


@for_each("name", ["a.*", "*", ">", "a.>"])
def test_patterns_are_not_channels(name: str) -> None:
    check_pattern(name)
    assert is_pattern(name)
    with pytest.raises(InvalidName):
        check_channel(name)


def test_multi_segment_wildcard_is_allowed_only_at_the_end() -> None:
    with pytest.raises(InvalidName):
        check_pattern("a.>.b")


@for_each("client_id", ["", "a b", "a\n", "*", "a.>", "x" * 129, "a..b"])
def test_client_ids_follow_channel_name_rules(client_id: str) -> None:
    with pytest.raises(InvalidName):
        check_client_id(client_id)


def test_display_names_may_contain_spaces_but_not_line_breaks() -> None:
    check_name("")
    check_name("Zoë van Dijk 👩‍🚀")
    for name in ("a\nb", "a\0", "x" * 81, "\ufffd"):
        with pytest.raises(InvalidName):
            check_name(name)


@given(st.text(), st.text())
def test_any_string_is_rejected_or_matches_itself(name: str, other: str) -> None:
    try:
        check_pattern(name)
        check_pattern(other)
    except InvalidName:
        return
    assert matches(name, name)
    assert isinstance(matches(name, other), bool)


SEGMENTS = st.sampled_from(["a", "b", "$a", "*"])


@given(
    st.lists(st.tuples(st.lists(SEGMENTS, max_size=3), st.booleans()), max_size=8),
    st.lists(st.sampled_from(["a", "b", "$a"]), min_size=1, max_size=4),
    st.data(),
)
def test_pattern_index_finds_matching_patterns(
    patterns: list[tuple[list[str], bool]], channel: list[str], data: st.DataObject
) -> None:
    index, name = PatternIndex(), ".".join(channel)
    names = {".".join([*segments, *[">"] * rest]) for segments, rest in patterns if segments or rest}
    found: dict[str, Any] = {pattern: object() for pattern in names if is_pattern(pattern)}
    for pattern, subscription in found.items():
        index.add(pattern, subscription)
    for pattern in list(found):
        if data.draw(st.booleans()):
            index.discard(pattern, found.pop(pattern))
            index.discard(pattern, object())  # type: ignore[arg-type]
    assert set(index.find(name)) == {found[pattern] for pattern in found if matches(pattern, name)}
    for pattern, subscription in found.items():
        index.discard(pattern, subscription)
    assert not index
