"""Hypothesis strategies and input helpers for several test files."""

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

SURROGATES = ("Cs",)

texts = st.text(st.characters(exclude_categories=SURROGATES))
"""Any text that UTF-8 can carry."""

one_line_texts = st.text(st.characters(exclude_categories=SURROGATES, exclude_characters="\r\n\0"))
"""Valid names and ids of SSE events."""

visible_texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))
"""Valid HTTP header values, including leading and trailing spaces."""

line_ends = st.sampled_from(["\n", "\r", "\r\n"])

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)

path_values = texts.filter(lambda value: value not in ("", ".", "..") and not set("/\\\0") & set(value))
"""Values of a URI template variable that can't contain a slash. Not empty."""


def bytewise(data: bytes) -> Iterator[bytes]:
    """Yield `data` byte by byte."""
    return (data[index : index + 1] for index in range(len(data)))


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Yield `data` in chunks of drawn sizes, including empty chunks."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
