from millstream.extensions import Share


def test_owner_holds_at_most_half_and_others_get_the_rest() -> None:
    share = Share(10)
    assert [share.take("mallory") for _ in range(7)] == [True] * 5 + [False] * 2
    assert [share.take("ada", 2) for _ in range(3)] == [True, True, False]
    assert (share.count("mallory"), share.count("ada"), share.used) == (5, 4, 9)


def test_returned_shares_can_be_taken_again() -> None:
    share = Share(2)
    assert share.take("ada")
    assert not share.take("ada")
    share.leave("ada")
    assert share.take("ada")
    share.leave("ada")
    assert (share.count("ada"), share.used) == (0, 0)


def test_empty_owner_may_hold_everything() -> None:
    share = Share(10)
    assert share.take("", 9)
    assert share.take("ada")
    assert not share.take("")
    share.leave("", 9)
    share.leave("ada")
    assert share.used == 0


def test_share_grows_to_fit_two_large_amounts() -> None:
    share = Share(10)
    share.fit(20)
    assert share.take("ada", 20)
    assert share.take("bob", 20)
    share.fit(5)
    assert share.maximum == 40
