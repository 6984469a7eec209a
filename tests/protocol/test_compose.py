import sys
import unicodedata

import pytest

from cpu import DEAR_TEXT, check_linear, repeat
from millstream._protocol.compose import MAX_COMPOSED, compose, has_long_runs


def test_runs_that_no_language_has_are_cut_after_30_marks() -> None:
    assert compose("NFKC", "x" + "\u0316" * 31 + "y") == "x" + "\u0316" * 30 + "y"
    assert compose("NFD", "e" + "\u0301" * 30) == "e" + "\u0301" * 30
    assert not has_long_runs("e" + "\u0301" * 30)
    for mark in "\u0316\u0f73\u0f75\u0f81\uff9e\uff9f":
        assert has_long_runs("x" + mark * 31)


def test_every_character_that_becomes_a_mark_counts_as_one() -> None:
    found = [
        each
        for each in map(chr, range(0x80, sys.maxunicode))
        if unicodedata.combining(unicodedata.normalize("NFKD", each)[0])
    ]
    assert {"\u0301", "\u0f73", "\u0f75", "\u0f81", "\uff9e", "\uff9f"} < {*found}
    assert [each for each in found if not has_long_runs(each * 31)] == []


def test_result_is_bounded() -> None:
    assert len(compose("NFKC", "\ufdfa" * 1_000_000)) == 18 * MAX_COMPOSED


def test_whole_ascii_text_is_returned() -> None:
    assert compose("NFKC", "a" * 10_000) == "a" * 10_000


@pytest.mark.parametrize("unit", DEAR_TEXT.values(), ids=DEAR_TEXT)
def test_text_is_composed_in_linear_time(unit: str) -> None:
    check_linear(lambda size: compose("NFKC", repeat(unit, size)), 5_000)
    check_linear(lambda size: has_long_runs(repeat(unit, size)), 5_000)
