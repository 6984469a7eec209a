"""Items without a function."""

from millstream._protocol.json_schema import Schema
from millstream._protocol.metadata import find_annotations
from millstream._server.features import Run
from millstream._server.features.sources import ItemSource
from millstream._server.functions.engine import SchemaCheck, output_from_schema
from millstream._server.functions.plan import read_checked


def source_from_schema(
    name: str,
    run: Run,
    *,
    input_schema: Schema,
    output_schema: Schema | None = None,
    description: str = "",
) -> ItemSource:
    """Return a source without a function. `run` receives the arguments as a dict that matches the schema.

    Raises:
        ValueError: The schema is invalid.
        ImportError: The extra for schema checks isn't installed.
    """
    check = SchemaCheck(input_schema, whole="the arguments")
    return ItemSource(
        name,
        run,
        lambda raw: read_checked(raw, f"tool {name!r}", input_schema, check),
        description=description,
        schema=input_schema,
        output=None if output_schema is None else output_from_schema(output_schema),
        headers=find_annotations(input_schema),
    )
