"""pydantic models through msgspec: reading, writing, describing; and programs that have no pydantic."""

import subprocess
import sys
from typing import Annotated, Any

import annotated_types
import msgspec
import pydantic
import pytest
from msgspec import NODEFAULT, Meta

from millstream._server.functions.pydantic_types import as_meta, dec_hook, enc_hook, is_model, schema_hook
from patience import WAIT


class Leaf(pydantic.BaseModel):
    """A leaf."""

    leaf_size: int = pydantic.Field(ge=1)
    title: str = pydantic.Field(default="t", title="Heading")
    kind: str = pydantic.Field(default="k", alias="leafKind")


class Branch(pydantic.BaseModel):
    leaves: list[Leaf]

    @pydantic.field_validator("leaves")
    @classmethod
    def some(cls, leaves: list[Leaf]) -> list[Leaf]:
        if not leaves:
            raise ValueError("a branch has leaves")
        return leaves

    @pydantic.model_validator(mode="after")
    def few(self) -> "Branch":
        if len(self.leaves) > 1:
            raise ValueError("too many")
        return self


def test_models_are_read_and_written_by_the_names_on_the_wire() -> None:
    """Aliases are what clients see in the schema."""
    value = msgspec.convert({"leaf_size": 1, "leafKind": "x"}, Leaf, dec_hook=dec_hook)
    assert value == Leaf(leaf_size=1, leafKind="x")
    assert msgspec.json.decode(msgspec.json.encode(value, enc_hook=enc_hook)) == {
        "leaf_size": 1, "title": "t", "leafKind": "x"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"leaves": []}, r"leaves: Value error, a branch has leaves - at `\$\[0\]`"),
        ({"leaves": [{"leaf_size": 0}]}, r"leaves.0.leaf_size: Input should be greater than or equal to 1"),
        ({"leaves": [{"leaf_size": 1}, {"leaf_size": 1}]}, r"^Value error, too many - at"),
    ],
)
def test_refused_values_say_where_and_why_in_one_line(value: Any, text: str) -> None:
    """The text reaches a model that corrects its arguments."""
    with pytest.raises(msgspec.ValidationError, match=text) as caught:
        msgspec.convert([value], list[Branch], dec_hook=dec_hook)
    assert "\n" not in str(caught.value)


def test_other_classes_are_a_type_error() -> None:
    """The hooks know models and nothing else."""
    for hook in (schema_hook, enc_hook):
        with pytest.raises(TypeError):
            hook(complex)
    with pytest.raises(TypeError, match="complex"):
        dec_hook(complex, 1)
    assert not is_model(1)
    assert not is_model(list[int])


def test_schemas_have_only_the_titles_that_somebody_wrote() -> None:
    """Derived titles are noise that a model pays for by the token."""
    assert schema_hook(Branch) == {
        "type": "object",
        "properties": {"leaves": {"type": "array", "items": {"$ref": "#/$defs/Leaf"}}},
        "required": ["leaves"],
        "$defs": {
            "Leaf": {
                "type": "object",
                "description": "A leaf.",
                "properties": {
                    "leaf_size": {"type": "integer", "minimum": 1},
                    "title": {"type": "string", "default": "t", "title": "Heading"},
                    "leafKind": {"type": "string", "default": "k"},
                },
                "required": ["leaf_size"],
            }
        },
    }


class Renamed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(title="Heading")
    name: str = pydantic.Field(title="Name")


def test_titles_that_somebody_wrote_stay_even_where_they_look_derived() -> None:
    """`Field(title="Name")` on `name` is a decision, not noise."""
    schema = schema_hook(Renamed)
    assert schema["title"] == "Heading"
    assert schema["properties"]["name"]["title"] == "Name"


def test_fields_and_annotated_types_become_metas() -> None:
    """Our choice: pydantic.Field in `Annotated`."""
    metas, default = as_meta(pydantic.Field(default=3, ge=1, pattern="x", description="d", json_schema_extra={"a": 1}))
    assert metas == [Meta(description="d", extra_json_schema={"a": 1}), Meta(ge=1), Meta(pattern="x")]
    assert default == 3
    assert as_meta(pydantic.Field())[1] is NODEFAULT
    assert as_meta(pydantic.Field(default_factory=list))[1] == []
    assert as_meta(pydantic.Field(json_schema_extra=lambda schema: None))[0] == [Meta()]
    assert as_meta(annotated_types.Interval(ge=1, lt=5)) == ([Meta(ge=1), Meta(lt=5)], NODEFAULT)
    assert as_meta(annotated_types.Len(0, 5))[0][-1] == Meta(max_length=5)
    assert as_meta(object()) == ([], NODEFAULT)
    assert as_meta(Annotated) == ([], NODEFAULT)


def test_a_program_without_pydantic_plans_functions_without_loading_it() -> None:
    """pydantic is an extra: nothing imports it for those who do not use it."""
    program = (
        "import sys\n"
        "from millstream._server.functions.plan import plan\n"
        "def f(a: int = 1) -> dict[str, int]: return {}\n"
        "assert plan(f).output_schema\n"
        "assert 'pydantic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=WAIT)
