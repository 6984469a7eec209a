import re

from millstream.gateway._names import CAPABILITY, MAX_LOOPS, Names, find_loops, leads_back, read_announcement


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
