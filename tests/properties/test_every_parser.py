import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import for_each
from fuzz import parsers, servers
from fuzz.parsers import Target
from property_settings import examples

pytestmark = pytest.mark.many
EXAMPLES = examples(20)
TARGETS = {**parsers.PARSERS, **servers.SERVERS}
SEEDS = {**parsers.SEEDS, **servers.SEEDS}
made: dict[str, Target] = {}


@st.composite
def damaged_seeds(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw a seed with a few bytes removed, inserted, or repeated, or arbitrary bytes."""
    data = draw(st.sampled_from(seeds)) if seeds else b""
    for _ in range(draw(st.integers(0, 3)) if seeds else 1):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 8)))
        put = draw(st.binary(max_size=12) | st.sampled_from([b"\r\n", b"\0", b'"', b"\\u", b"{", b"[" * 70, b"9" * 30]))
        data = data[:start] + put + data[end:]
    return data


@for_each("name", TARGETS)
def test_parsers_accept_or_reject_arbitrary_bytes(name: str) -> None:
    target = made.setdefault(name, TARGETS[name]())
    inputs = 0

    @settings(max_examples=EXAMPLES)
    @given(damaged_seeds(SEEDS.get(name, [])) | st.binary(max_size=200))
    def run(data: bytes) -> None:
        nonlocal inputs
        inputs += 1
        target(data)

    run()
    assert inputs >= EXAMPLES // 2
