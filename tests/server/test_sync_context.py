"""`SyncContext` has what `Context` has."""

import inspect

from millstream import Context, SyncContext


def test_every_method_and_value_of_the_context_is_there_for_def_functions() -> None:
    """docs/reference/context.md, "the same methods". A fixed defect: `lifespan` was missing."""
    public = {name for name, _ in inspect.getmembers(Context) if not name.startswith("_")}
    assert public <= {name for name, _ in inspect.getmembers(SyncContext)}
