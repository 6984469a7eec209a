from millstream._text import add_article, pluralize


def test_numbers_and_articles_agree() -> None:
    shown = [pluralize(number, "second") for number in (1, 1.0, 0.5, 2, 60.0, 1_000_000)]
    assert shown == ["1 second", "1 second", "0.5 seconds", "2 seconds", "60 seconds", "1,000,000 seconds"]
    assert [add_article(each) for each in ("int", "elicitation", "user", "bool", "Order")] == [
        "an int", "an elicitation", "a user", "a bool", "an Order",
    ]  # fmt: skip
