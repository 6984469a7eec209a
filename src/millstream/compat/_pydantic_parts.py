"""What the door uses of pydantic. The libraries it stands in for are built on it, so that the programs are, too."""

from millstream._protocol.errors import MissingExtra

try:
    from pydantic import (
        AnyUrl,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        RootModel,
        TypeAdapter,
        ValidationError,
        WithJsonSchema,
        create_model,
        field_validator,
        validate_call,
    )
    from pydantic.alias_generators import to_camel
    from pydantic.errors import PydanticUserError
    from pydantic.fields import FieldInfo
    from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind
except ImportError:
    raise MissingExtra("millstream.compat", "pydantic") from None

from pydantic_core import SchemaError, to_json, to_jsonable_python
from pydantic_core.core_schema import CoreSchema, is_instance_schema
from typing_extensions import TypeAliasType

__all__ = [
    "AnyUrl",
    "BaseModel",
    "BeforeValidator",
    "ConfigDict",
    "CoreSchema",
    "Field",
    "FieldInfo",
    "GenerateJsonSchema",
    "JsonSchemaWarningKind",
    "PydanticUserError",
    "RootModel",
    "SchemaError",
    "TypeAdapter",
    "TypeAliasType",
    "ValidationError",
    "WithJsonSchema",
    "create_model",
    "field_validator",
    "is_instance_schema",
    "to_camel",
    "to_json",
    "to_jsonable_python",
    "validate_call",
]
