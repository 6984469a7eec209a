"""Values against a schema written by hand: whether they fit, and what a model reads when they don't.

`jsonschema-rs` decides, in time that grows with the value and not with the number of ways through the schema. Its list
of errors has no such bound, so `problems` looks for the reasons. Nothing is ever fetched. The library is an extra,
loaded where such a schema is registered (docs/decisions/0008).
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

from millstream._protocol.errors import MissingExtra
from millstream._protocol.json_schema import Schema, check_schema
from millstream._server.functions.problems import MAX_LISTED, MAX_WALKED, Matches, find_problems, problem_text

MAX_BACKTRACKS = 10_000
"""Steps of one `pattern` on one string, where it looks around or back; all other patterns take linear time."""
MAX_REASONS = 3


class SchemaCheck:
    """One schema, ready to be asked about any number of values.

    Raises:
        ValueError: for a schema that cannot be served, saying what is wrong and where.
        ImportError: the library is not installed.
    """

    __slots__ = ("_matches", "_schema", "_whole", "fits")

    def __init__(self, schema: Schema, *, whole: str, object_root: bool = True) -> None:
        check_schema(schema, object_root=object_root)
        try:
            import jsonschema_rs  # noqa: PLC0415  an extra
        except ImportError:
            raise MissingExtra("Checking arguments against a schema written by hand", "schema") from None
        patterns = jsonschema_rs.FancyRegexOptions(backtrack_limit=MAX_BACKTRACKS)
        compiled: Callable[[Schema], Any] = lambda each: jsonschema_rs.Draft202012Validator(  # noqa: E731
            each, offline=True, pattern_options=patterns
        )
        try:
            validator = compiled(schema)
        except jsonschema_rs.ValidationError as error:
            raise ValueError(f"#{''.join(f'/{each}' for each in error.instance_path)}: {error.message}") from error
        self.fits: Callable[[Any], bool] = validator.is_valid
        """Whether a JSON value fits."""
        self._matches: Matches = lambda pattern, text: compiled({"pattern": pattern}).is_valid(text)
        self._schema = schema
        self._whole = whole
        """What the value as a whole is called."""

    def reasons(self, value: Any, size: int) -> str:
        """Return what to fix in a value that doesn't fit: ``'a.b' must be an integer, got a string; missing 'c'``.

        Args:
            value: a JSON value.
            size: of its JSON, in bytes: a large value isn't looked into.
        """
        found = (
            list(islice(find_problems(self._schema, value, matches=self._matches), MAX_LISTED))
            if size <= MAX_WALKED
            else []
        )
        if not found:
            return f"{self._whole} must fit the schema"
        return problem_text(found, whole=self._whole, most=MAX_REASONS)
