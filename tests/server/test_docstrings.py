from collections.abc import Callable
from typing import Any

from cases import for_each
from millstream._server.functions.description import describe


def documented(text: str | None) -> Callable[..., Any]:
    def function() -> None: ...

    function.__doc__ = text
    return function


CASES: list[tuple[str | None, str, dict[str, str]]] = [
    (None, "", {}),
    ("One line.", "One line.", {}),
    (
        """Add.

        More about it.

        Args:
            a: first
                of two
            b (int, optional): second: and last

            *rest: others

        Returns:
            The sum.
        """,
        "Add.\n\nMore about it.",
        {"a": "first\nof two", "b": "second: and last", "rest": "others"},
    ),
    (
        """Add.

        Parameters
        ----------
        a : int
            first

            - of two
        b
            second

        Returns
        -------
        int
            The sum.
        """,
        "Add.",
        {"a": "first\n\n- of two", "b": "second"},
    ),
    (
        """Add.

        :param a: first
            of two
        :param int b: second: and last
        :type a: int
        :param rest:
        :returns: the sum
        """,
        "Add.",
        {"a": "first\nof two", "b": "second: and last"},
    ),
    ("Add.\n\nArgs:\n    a: first\nThe end.", "Add.", {"a": "first"}),
    ("Add.\n\nArgs:\n    no colon here", "Add.\n\nArgs:\n    no colon here", {}),
    ("Add.\n\nArgs:\n    a:", "Add.", {}),
    ("Add.\n\nReturns:\n    The sum.\n\nArgs:\n    a: late", "Add.", {"a": "late"}),
    ("Notes on adding.\n\nExample\n\nParameters of it.", "Notes on adding.\n\nExample\n\nParameters of it.", {}),
]


@for_each(("text", "description", "parameters"), CASES)
def test_google_numpy_and_sphinx_sections_describe_parameters(
    text: str | None, description: str, parameters: dict[str, str]
) -> None:
    assert describe(documented(text)) == (description, parameters)
