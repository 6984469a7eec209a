"""Forms for JSON Schemas in the browser: fields to fill in, items to add and remove, and messages."""

from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from pages_world import OpenPage

pytestmark = pytest.mark.server

Schema = dict[str, Any]

MAKE = """async (schema) => {
  const { schemaForm } = await import(`${new URL("assets/schema/form.js", document.baseURI)}`);
  const form = schemaForm({type: "object", ...schema}, {id: "own"});
  const frame = document.createElement("form");
  frame.id = "own";
  frame.noValidate = true;
  frame.append(form.node, form.summary);
  document.body.prepend(frame);
  window.own = form;
}"""
READ = "() => own.read()"


class Form:
    """A form on a page."""

    def __init__(self, page: Page, **schema: Any) -> None:
        page.evaluate(MAKE, schema)
        self.node: Locator = page.locator("#own")
        self.page = page

    def read(self) -> Any:
        """Its values, or None where something is wrong."""
        return self.page.evaluate(READ)

    def button(self, name: str, within: str = "") -> Locator:
        """The buttons of that name, in the whole form or in one of its groups."""
        node = self.node.get_by_role("group", name=within) if within else self.node
        return node.get_by_role("button", name=name, exact=True)


@pytest.fixture
def page(plain: str, open_page: OpenPage) -> Page:
    """A page with the styles and modules of forms."""
    return open_page(f"{plain}/inspect")


PAIR: Schema = {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False}
PAIR |= {"minItems": 2, "maxItems": 2}


def test_tuples_have_a_fixed_number_of_items(page: Page) -> None:
    form = Form(page, properties={"pair": PAIR, "more": PAIR}, required=["pair"])
    pair = form.node.get_by_role("group", name="pair")
    expect(pair.get_by_role("button")).to_have_count(0)
    pair.get_by_role("spinbutton").fill("7")
    pair.get_by_role("textbox").fill("x")
    assert form.read() == {"pair": [7, "x"]}
    form.button("Add", within="more").click()
    more = form.node.get_by_role("group", name="more")
    expect(more.get_by_role("spinbutton")).to_be_focused()
    more.get_by_role("spinbutton").fill("8")
    more.get_by_role("textbox").fill("y")
    assert form.read() == {"pair": [7, "x"], "more": [8, "y"]}
    form.button("Remove", within="more").click()
    expect(form.button("Add", within="more")).to_be_focused()
    assert form.read() == {"pair": [7, "x"]}


def test_lists_grow_and_shrink_within_bounds(page: Page) -> None:
    bounded = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}
    form = Form(page, properties={"names": bounded}, required=["names"])
    expect(form.node.get_by_role("textbox")).to_have_count(1)
    expect(form.button("Remove item 1")).to_be_hidden()
    form.button("Add item").click()
    expect(form.button("Add item")).to_be_hidden()
    form.button("Remove item 1").click()
    expect(form.button("Add item")).to_be_focused()
    expect(form.button("Remove item 2")).to_be_hidden()


def test_object_items_are_added_and_focused(page: Page) -> None:
    line = {"type": "object", "properties": {"sku": {"type": "string"}}}
    form = Form(page, properties={"lines": {"type": "array", "items": line}})
    form.button("Add item").press("Enter")
    page.keyboard.insert_text("lamp")
    assert form.read() == {"lines": [{"sku": "lamp"}]}


def test_empty_items_are_reported_as_missing(page: Page) -> None:
    numbers: Schema = {"type": "array", "items": {"type": "number"}}
    prices: Schema = {"type": "object", "additionalProperties": {"type": "number"}}
    form = Form(page, properties={"numbers": numbers, "prices": prices})
    form.button("Add item").click()
    form.button("Add entry").click()
    assert form.read() is None
    told = form.node.locator(".error:visible").all_inner_texts()
    assert told == ["Required.", "Required.", "2 values don't fit the schema."]


def test_optional_booleans_have_three_choices(page: Page) -> None:
    maybe = {"anyOf": [{"type": "boolean"}, {"type": "null"}], "default": None}
    form = Form(page, properties={"maybe": maybe, "flag": {"type": "boolean", "default": False}})
    assert form.read() == {"flag": False}
    form.node.get_by_label("maybe").select_option("false")
    assert form.read() == {"maybe": False, "flag": False}


def test_alternatives_show_their_own_fields(page: Page) -> None:
    def tagged(kind: str, **properties: Schema) -> Schema:
        own = {"kind": {"type": "string", "enum": [kind]}, **properties}
        return {"type": "object", "required": list(own), "properties": own}

    shape = {"anyOf": [tagged("circle", radius={"type": "number"}), tagged("point")]}
    form = Form(page, properties={"shape": shape}, required=["shape"])
    expect(form.node.get_by_role("combobox")).to_have_count(1)
    form.node.get_by_label("radius").fill("2")
    assert form.read() == {"shape": {"kind": "circle", "radius": 2}}
    form.node.get_by_role("combobox").select_option("point")
    assert form.read() == {"shape": {"kind": "point"}}


def test_fields_follow_schema_order(page: Page) -> None:
    parts = [{"properties": {"first": {"type": "string"}}}, {"properties": {"second": {"type": "string"}}}]
    form = Form(page, properties={"both": {"type": "object", "allOf": parts}}, required=["both"])
    assert form.node.locator(".field:visible label").all_inner_texts() == ["first", "second"]


KINDS: list[tuple[Schema, str]] = [
    ({"type": "integer", "minimum": 1, "maximum": 9}, "integer, optional|1 to 9"),
    ({"type": "string", "minLength": 3, "maxLength": 3}, "string, optional|exactly 3 characters"),
    ({"type": "string", "minLength": 1}, "string, optional|"),
    ({"type": "string", "minLength": 1, "maxLength": 1}, "string, optional|exactly 1 character"),
    ({"type": "array", "maxItems": 1}, "array, optional|at most 1 item"),
    ({"type": "string", "format": "uuid", "description": "An id."}, "string, uuid, optional|An id."),
    ({"type": "string", "pattern": "^a", "description": "Text."}, "string, optional|Text. (matches ^a)"),
    ({"enum": ["a", 2]}, "value, optional|"),
    ({"type": "number", "exclusiveMinimum": 0, "multipleOf": 2}, "number, optional|more than 0, a multiple of 2"),
    ({}, "any JSON, optional|"),
]


def test_fields_show_type_and_limits(page: Page) -> None:
    form = Form(page, properties={f"p{number}": schema for number, (schema, _) in enumerate(KINDS)})
    fields = form.node.locator(".field:visible").all()
    told = [f"{each.locator('.kind').inner_text()}|{each.locator('.hint').text_content()}" for each in fields]
    assert told == [expected for _, expected in KINDS]
    expect(form.node.get_by_label("p6")).to_have_accessible_description("string, optional Text. (matches ^a)")
