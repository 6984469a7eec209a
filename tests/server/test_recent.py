from millstream._recent import Recent


def test_new_entries_displace_the_oldest() -> None:
    recent = Recent[str, int](2)
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        recent.keep(key, value)
    assert list(recent.items()) == [("a", 3), ("c", 4)]
