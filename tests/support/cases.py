"""Run all cases in one test instead of one parametrized test each.

A failure names its case. Use `pytest.mark.parametrize` for cases with marks or with fresh fixtures.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def for_each(names: str | Sequence[str], values: Iterable[Any], *, ids: object = None) -> Callable[[Any], Any]:
    """Call a test once for each value; with several names, each value is a tuple.

    Example:
        >>> @for_each(("text", "number"), [("1", 1), ("2", 2)])
        ... def test_text_becomes_a_number(text: str, number: int) -> None:
        ...     assert int(text) == number
    """
    del ids  # accepted so that a table can move between `for_each` and `parametrize`
    parts = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    cases = [dict(zip(parts, value if len(parts) > 1 else (value,), strict=True)) for value in values]
    assert cases, "for_each needs at least one case"
    assert not any(hasattr(value, "marks") for case in cases for value in case.values()), (
        "Use parametrize for cases with marks"
    )

    def wrap(test: Any) -> Any:
        if inspect.iscoroutinefunction(test):

            async def looped(*args: Any, **fixtures: Any) -> None:
                for case in cases:
                    try:
                        await test(*args, **fixtures, **case)
                    except BaseException as exc:
                        exc.add_note(f"Case: {case!r:.2000}")
                        raise
        else:

            def looped(*args: Any, **fixtures: Any) -> None:  # type: ignore[misc]
                for case in cases:
                    try:
                        test(*args, **fixtures, **case)
                    except BaseException as exc:
                        exc.add_note(f"Case: {case!r:.2000}")
                        raise

        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(looped, name, getattr(test, name))
        vars(looped).update(vars(test))
        found = inspect.signature(test)
        rest = [parameter for name, parameter in found.parameters.items() if name not in parts]
        looped.__signature__ = found.replace(parameters=rest)  # type: ignore[attr-defined]
        looped.place_as = test  # type: ignore[attr-defined]  the location that pytest reports
        return looped

    return wrap
