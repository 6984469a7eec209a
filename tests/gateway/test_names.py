import re
from collections.abc import Callable

import pytest

from cpu import DEAR_TEXT, check_linear, repeat
from millstream._gateway.loops import CAPABILITY, MAX_LOOPS, find_loops, leads_back, read_announcement
from millstream._gateway.names import Names, ascii_name, fold, safe_names


def test_number_of_loop_prefixes_compared_with_upstream_items_is_bounded() -> None:
    """Thousands would stop the gateway for half a minute at each refresh of a hostile upstream's lists."""
    ways = {f"p{number}": {"id": "ours"} for number in range(1900)}
    announcement = read_announcement({"experimental": {CAPABILITY: {"id": "theirs", "upstreams": ways}}}, "ours")
    loops = find_loops(announcement, "ours")
    assert len(loops) == MAX_LOOPS
    assert leads_back(loops, "tools", "p0_search")
    assert not leads_back(loops, "tools", "search")


def test_uris_without_a_scheme_get_one_and_are_found_again() -> None:
    """Clients of the official Python SDK 1.x refuse a list with a URI that has none."""
    names = Names("shop")
    for uri in ("memo://1", "urn:x:y", "not a uri", "/etc/hosts", "", ":", ":a", "data:,hi", "C:/x", "{id}"):
        listed = names.uri(uri)
        assert re.match("[A-Za-z][A-Za-z0-9+.-]*:", listed)
        assert names.original_uri(listed) == uri


def _name(number: int) -> str:
    return chr(0x4E00 + number % 20_000) + chr(0x4E00 + number // 20_000)


@pytest.mark.parametrize(
    "name",
    [
        lambda number: f"{_name(number)}xxxx",  # alike without their odd characters
        lambda number: f"a {number}",
        lambda number: f"{'a' * 70}{_name(number)}",
        lambda number: f"value_{number}" if number % 2 else _name(number),  # takes the numbers that others would get
        lambda number: "a" + "/" * (1 + number % 40) + str(number % 7) + "é" * (number // 280),
    ],
    ids=["alike", "different", "long", "taken", "mixed"],
)
def test_odd_argument_names_are_replaced_in_linear_time(name: Callable[[int], str]) -> None:
    def replace(size: int) -> dict[str, str]:
        return safe_names({"properties": {name(number): {} for number in range(size)}})

    check_linear(replace, 200)
    found = replace(200)
    assert len({*found, *map(name, range(200))} - {*found.values()}) == len({*map(name, range(200))})


@pytest.mark.parametrize("unit", DEAR_TEXT.values(), ids=DEAR_TEXT)
def test_long_names_are_folded_in_linear_time(unit: str) -> None:
    for run in (fold, lambda name: ascii_name(name, "a-z"), lambda name: safe_names({"properties": {name: {}}})):
        check_linear(lambda size, run=run: run(repeat(unit, size)), 5_000)


def test_names_that_differ_only_in_marks_that_no_language_has_look_alike() -> None:
    assert fold("x" + "\u0301\u0316" * 20) == fold("x" + "\u0301\u0316" * 40) == "x"
