"""One value that fits a JSON Schema, for the examples of the OpenAPI document.

It knows the schemas that signatures become, and gives `UNSET` rather than a value it cannot vouch for: a pattern, an
unknown format, a recursive type.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import UNSET

from millstream.protocol.json_schema import Schema, is_object

MAX_DEPTH = 8

_FORMATS = {
    "": "text",
    "date": "2000-01-31",
    "date-time": "2000-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
    "email": "ann@example.com",
    "uri": "https://example.com/",
}
