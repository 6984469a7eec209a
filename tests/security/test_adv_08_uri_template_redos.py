"""Advisory 8: ReDoS in URI templates (CVE-2026-0621). Matching takes a bounded number of steps."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from cases import for_each
from millstream._protocol.uri_template import UriTemplate

SMALL, LARGE = 1_000, 100_000

ATTACKS = [
    ("f://{a}-{b}-{c}-{d}-{e}/x", "f://", "-"),
    ("f://{a}{b}{c}{d}{e}!", "f://", "a"),
    ("f://{+a}/{+b}/{+c}/{+d}!", "f://", "/"),
    ("f://{+a}/{b}.{c}/{+d}{.e}{#f}!", "f://", "a/.#"),
    ("f://x{/a,b,c,d}{/e,f,g}!", "f://x", "/a"),
    ("f://x{.a,b,c}{.d}{;e,f}!", "f://x", ".;"),
    ("f://{a,b,c,d}", "f://", ","),
    ("f://{+a,b,c,d}", "f://", ","),
    ("f://x{?a}{&b}{#c}!", "f://x?", "&a=1"),
    ("f://{+a}" + "aaaaaaaaab" * 3 + "{+b}", "f://", "a"),
]
DECODED = [
    ("f://x{?a,b}", "f://x?", "z=1&"),
    ("f://x{;a,b}", "f://x;", "z=1;"),
    ("f://{a}", "f://", "%41"),
    ("f://{+a}{b}", "f://", "%41"),
    ("f://{+a}", "f://", "%"),
    ("f://{+a}", "f://", "%2F"),
    ("f://{+a}", "f://", "é"),
]


def lines_run(function: Callable[[], object]) -> int:
    """Return the number of Python lines that a call executes, including the standard library."""
    count = 0

    def trace(_frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def uri_of(start: str, piece: str, length: int) -> str:
    return start + piece * (length // len(piece))


@for_each(("template", "start", "piece"), ATTACKS)
def test_matching_a_100_kilobyte_uri_is_linear(template: str, start: str, piece: str) -> None:
    """CVE-2026-0621."""
    compiled = UriTemplate(template)
    small, large = uri_of(start, piece, SMALL), uri_of(start, piece, LARGE)
    compiled.match(small)
    allowed = lines_run(lambda: compiled.match(small)) + 50
    assert lines_run(lambda: compiled.match(large)) <= allowed
    assert lines_run(lambda: compiled.match(large + "\n")) <= allowed


@for_each(("template", "start", "piece"), ATTACKS + DECODED)
def test_search_and_decoding_are_linear(template: str, start: str, piece: str) -> None:
    """CVE-2026-0621: decoding visits each percent sign and pair once."""
    compiled = UriTemplate(template)
    small, large = uri_of(start, piece, SMALL), uri_of(start, piece, LARGE)
    compiled.match(small)
    once = lines_run(lambda: compiled.match(small))
    assert lines_run(lambda: compiled.match(large)) <= once * (LARGE // SMALL) * 1.1


def test_templates_with_a_hundred_expressions_match_in_linear_time() -> None:
    uri = "a" * 1_000
    few, many = UriTemplate("{a}" * 10 + "!"), UriTemplate("{a}" * 100 + "!")
    few.match(uri)
    assert lines_run(lambda: many.match(uri)) <= lines_run(lambda: few.match(uri)) * 12
