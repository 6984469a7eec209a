from millstream.gateway._names import CAPABILITY, MAX_LOOPS, find_loops, leads_back, read_announcement


def test_few_ways_back_are_compared_with_the_items_of_an_upstream() -> None:
    """Thousands would stop the gateway for half a minute at each refresh of a hostile upstream's lists."""
    ways = {f"p{number}": {"id": "ours"} for number in range(1900)}
    announcement = read_announcement({"experimental": {CAPABILITY: {"id": "theirs", "upstreams": ways}}}, "ours")
    loops = find_loops(announcement, "ours")
    assert len(loops) == MAX_LOOPS
    assert leads_back(loops, "tools", "p0_search")
    assert not leads_back(loops, "tools", "search")
