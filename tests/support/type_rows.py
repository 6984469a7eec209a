"""The rows of docs/reference/types.md, and what the annotations in them mean."""

import datetime as dt
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, List, Literal, Tuple  # noqa: UP035  they are on the page
from uuid import UUID

from pydantic import HttpUrl, JsonValue, SecretStr

from examples import argument_types
from scripts.docs import ROOT

PAGE = (ROOT / "docs" / "reference" / "types.md").read_text("utf-8")
ROWS = [
    [cell.strip().strip("`").replace("\\|", "|") for cell in re.split(r" (?<!\\)\| ", line.strip("|"))]
    for line in PAGE.split("### Other types")[0].splitlines()
    if line.startswith("| `")
]
"""Annotation, schema, a valid value, and an invalid one, of each row of the tables before "Other types"."""
NAMES: dict[str, Any] = {
    **vars(argument_types),
    **{each.__name__: each for each in (Decimal, Path, UUID, HttpUrl, SecretStr)},
    "List": List,  # noqa: UP006  as above
    "Tuple": Tuple,  # noqa: UP006  as above
    "Iterable": Iterable,
    "JsonValue": JsonValue,
    "dt": dt,
    "Annotated": Annotated,
    "Any": Any,
    "Literal": Literal,
}


def type_in(annotation: str) -> Any:
    """Return the type of an annotation on the page."""
    return eval(annotation, NAMES)  # noqa: S307  our own page
