"""Validation against handwritten schemas, with error messages for models.

`jsonschema-rs` decides in time that grows with the value and not with the number of paths through the schema. Its list
of errors has no such bound, so `problems` finds the reasons. Nothing is fetched. The library is an extra, loaded when
such a schema is registered (docs/decisions/0008).
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

from millstream._protocol.errors import MissingExtra
from millstream._protocol.json_schema import Schema, check_schema
from millstream._server.functions.problems import MAX_LISTED, MAX_WALKED, Matches, find_problems, problem_text

MAX_BACKTRACKS = 10_000
"""Maximum steps of a `pattern` with lookaround or backreferences on one string. All other patterns take linear time."""
MAX_REASONS = 3


class SchemaCheck:
    """A compiled schema.

    Raises:
        ValueError: The schema is invalid. The text says what is wrong and where.
        ImportError: The library isn't installed.
    """

    def __init__(self, schema: Schema, *, whole: str, object_root: bool = True) -> None:
        check_schema(schema, object_root=object_root)
        try:
            import jsonschema_rs  # noqa: PLC0415  an extra
        except ImportError:
            raise MissingExtra("Validating arguments against a handwritten schema", "schema") from None
        patterns = jsonschema_rs.FancyRegexOptions(backtrack_limit=MAX_BACKTRACKS)
        compiled: Callable[[Schema], Any] = lambda each: jsonschema_rs.Draft202012Validator(  # noqa: E731
            each, offline=True, pattern_options=patterns
        )
        try:
            validator = compiled(schema)
        except jsonschema_rs.ValidationError as error:
            raise ValueError(f"#{''.join(f'/{each}' for each in error.instance_path)}: {error.message}") from error
        self.fits: Callable[[Any], bool] = validator.is_valid
        """Returns whether a JSON value is valid."""
        self._matches: Matches = lambda pattern, text: compiled({"pattern": pattern}).is_valid(text)
        self._schema = schema
        self._whole = whole
        """The name of the value as a whole."""

    def reasons(self, value: Any, size: int) -> str:
        """Return what to fix in an invalid value: ``'a.b' must be an integer, got a string; missing 'c'``.

        Args:
            value: The JSON value.
            size: The size of its JSON in bytes. Large values aren't examined.
        """
        found = (
            list(islice(find_problems(self._schema, value, matches=self._matches), MAX_LISTED))
            if size <= MAX_WALKED
            else []
        )
        if not found:
            return f"{self._whole} must match the schema"
        return problem_text(found, whole=self._whole, most=MAX_REASONS)
