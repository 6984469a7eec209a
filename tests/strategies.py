"""Hypothesis strategies and ways of feeding that several test files share."""

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

SURROGATES = ("Cs",)

texts = st.text(st.characters(exclude_categories=SURROGATES))
"""Any text that UTF-8 can carry."""

one_line_texts = st.text(st.characters(exclude_categories=SURROGATES, exclude_characters="\r\n\0"))
"""What an SSE event name or id may be."""

visible_texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))
"""What an HTTP header value may be, edge spaces included."""

line_ends = st.sampled_from(["\n", "\r", "\r\n"])

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)

path_values = texts.filter(lambda value: value not in ("", ".", "..") and not set("/\\\0") & set(value))
"""What a URI template gives to a variable that must not cross a slash; not empty."""


def bytewise(data: bytes) -> Iterator[bytes]:
    """`data` one byte at a time."""
    return (data[index : index + 1] for index in range(len(data)))


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` in chunks cut at drawn places, empty chunks among them."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
