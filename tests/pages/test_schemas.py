"""JSON Schema in the pages: validation, messages for invalid values, and forms."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page

from pages_world import OpenPage

pytestmark = pytest.mark.server

TREE = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["v"], "properties": {
    "v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}}}  # fmt: skip
SHAPES = {"oneOf": [
    {"type": "object", "required": ["kind", "r"], "properties": {"kind": {"const": "circle"}, "r": {"type": "number"}}},
    {"type": "object", "required": ["kind", "w"], "properties": {"kind": {"const": "square"}, "w": {"type": "number"}}},
]}  # fmt: skip

CASES: list[tuple[dict[str, Any] | bool, Any, list[tuple[str, str]]]] = [
    ({}, {"anything": [1]}, []),
    (False, 1, [("", "false")]),
    ({"type": "integer"}, 1.0, []),
    ({"type": "integer"}, 1.5, [("", "type")]),
    ({"type": ["string", "null"]}, None, []),
    ({"type": "boolean"}, 0, [("", "type")]),
    ({"enum": ["a", {"b": [1]}]}, {"b": [1]}, []),
    ({"enum": ["a", 2]}, "2", [("", "enum")]),
    ({"const": {"a": 1, "b": 2}}, {"b": 2, "a": 1}, []),
    ({"minimum": 1, "exclusiveMaximum": 3}, 3, [("", "exclusiveMaximum")]),
    ({"multipleOf": 0.1}, 0.3, []),
    ({"minLength": 2}, "\U0001f600", [("", "minLength")]),
    ({"pattern": "^a+$"}, "b", [("", "pattern")]),
    ({"format": "date"}, "2026-02-30", [("", "format")]),
    ({"format": "date"}, "2028-02-29", []),
    ({"format": "date-time"}, "2026-07-28T10:00:00Z", []),
    ({"format": "date-time"}, "yesterday", [("", "format")]),
    ({"format": "uuid"}, "123e4567-e89b-12d3-a456-426614174000", []),
    ({"format": "duration"}, "P1DT2H", []),
    ({"format": "duration"}, "P", [("", "format")]),
    (
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        [1, "x", 1],
        [("", "uniqueItems"), ("1", "type")],
    ),
    ({"prefixItems": [{"type": "string"}], "items": False}, ["a", 1], [("1", "false")]),
    ({"contains": {"type": "null"}}, [1, 2], [("", "contains")]),
    ({"required": ["a"], "properties": {"b": {"type": "string"}}}, {"b": 1}, [("a", "required"), ("b", "type")]),
    ({"properties": {"a": True}, "additionalProperties": False}, {"a": 1, "z": 1}, [("z", "additionalProperties")]),
    ({"patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False}, {"x-a": 1}, []),
    ({"additionalProperties": {"type": "integer"}}, {"a": "1"}, [("a", "type")]),
    ({"propertyNames": {"pattern": "^[a-z]$"}}, {"ab": 1}, [("ab", "propertyNames")]),
    ({"dependentRequired": {"card": ["name"]}}, {"card": 1}, [("name", "required")]),
    ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, 3, [("", "maximum")]),
    ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, 7, []),
    ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, [], [("", "anyOf")]),
    (SHAPES, {"kind": "square", "r": 1}, [("w", "required")]),
    ({"oneOf": [{"type": "integer"}, {"minimum": 1}]}, 3, [("", "oneOf")]),
    ({"not": {"type": "string"}}, "a", [("", "not")]),
    (
        {"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["c"]}},
        {"a": 1},
        [("b", "required")],
    ),
    (TREE, {"v": 1, "next": {"v": 2, "next": None}}, []),
    (TREE, {"v": 1, "next": {"v": "2"}}, [("next.v", "type")]),
    ({"$ref": "#"}, 1, []),
    ({"properties": {"a": {"$ref": "#/$defs/gone"}}}, {"a": 1}, []),
]

LIST = {"type": "array", "items": {"type": "integer"}}
FORMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (TREE, {"v": 1, "next": {"v": 2, "next": {"v": 3}}}),
    ({"properties": {"shape": SHAPES}}, {"shape": {"kind": "square", "w": 2}}),
    ({"properties": {"shape": SHAPES}}, {}),
    ({"properties": {"x": {"type": ["string", "integer"]}}}, {"x": 7}),
    ({"properties": {"m": {"type": "object", "additionalProperties": LIST}}}, {"m": {"a": [1, 2]}}),
    ({"properties": {"pair": {"type": "array", "prefixItems": [{"type": "string"}, LIST]}}}, {"pair": ["a", [3]]}),
    ({"properties": {"when": {"type": "string", "format": "date-time"}}}, {"when": "2026-07-28T10:00:00.000Z"}),
    ({"properties": {"on": {"type": "boolean"}, "off": {"type": "boolean"}}}, {"on": True}),
    ({"properties": {"pick": {"enum": [1, "1", None]}}}, {"pick": "1"}),
    ({"properties": {"many": {"type": "array", "items": {"enum": ["a", "b"]}}}}, {"many": ["b"]}),
    ({"properties": {"any": {}}, "allOf": [{"properties": {"more": LIST}}]}, {"any": {"free": [None]}, "more": [2]}),
    ({"properties": {"kind": {"const": "fixed"}}, "required": ["kind"]}, {"kind": "fixed"}),
]  # fmt: skip


@pytest.fixture
def page(hub: str, open_page: OpenPage) -> Iterator[Page]:
    """A page of the server, whose modules a test can call."""
    opened: Page = open_page(f"{hub}/docs")
    return opened  # type: ignore[return-value]


def test_values_are_validated_according_to_the_specification(page: Page) -> None:
    """JSON Schema 2020-12: each keyword that tools use, with the place of each problem."""
    found = page.evaluate(
        """async (cases) => {
          const { validate } = await import("./assets/schema/validate.js");
          const told = ({path, keyword}) => [path.join("."), keyword];
          return cases.map(([schema, value]) => validate(value, schema).map(told));
        }""",
        [[schema, value] for schema, value, _ in CASES],
    )
    wrong = [
        (json.dumps(schema), value, got)
        for (schema, value, expected), got in zip(CASES, found, strict=True)
        if sorted(map(tuple, got)) != sorted(expected)
    ]
    assert wrong == []


def test_nested_alternatives_do_not_block_the_page(page: Page) -> None:
    schema: dict[str, Any] = {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [
        {"properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]},
        {"properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["y"]},
    ]}}}  # fmt: skip
    value: dict[str, Any] = {}
    for _ in range(40):
        value = {"x": value}
    found = page.evaluate(
        """async ([schema, value]) => {
          const { validate } = await import("./assets/schema/validate.js");
          return validate(value, schema).length;
        }""",
        [schema, value],
    )
    assert found <= 50


def test_patterns_that_backtrack_are_left_to_the_server(page: Page) -> None:
    text = "a" * 40 + "!"
    hard = [
        "^(a+)+$", "^([a-z0-9]+[.-]?)+@example$", "^(a|a)*$", "^(?:a|aa)+$", "^(a?){40}$", "^(a*)*$", "^(\\w+\\s?)*$",
        "a*a*a*a*a*a*b", "^" + "(a|a)" * 40 + "$", "^(?:a{1,40}){1,40}$", "^(([a-z])+.)+$", "^" + "a?" * 40 + "a{40}b$",
    ]  # fmt: skip
    easy = ["^[a-z]{2,9}-[0-9]+$", "^b+$", "^[0-9a-f]{8}(-[0-9a-f]{4}){3}$", "^(red|green|blue)$", "\\d{3}"]
    found = page.evaluate(
        """async ([patterns, text]) => {
          const { validate } = await import("./assets/schema/validate.js");
          return patterns.map((pattern) => validate(text, { type: "string", pattern }).length);
        }""",
        [hard + easy, text],
    )
    assert list(found) == [0] * len(hard) + [1] * len(easy)


def test_forms_round_trip_values(page: Page) -> None:
    found = page.evaluate(
        """async (forms) => {
          const { schemaForm } = await import("./assets/schema/form.js");
          return forms.map(([schema, value], index) => {
            const form = schemaForm({ type: "object", ...schema }, { id: `f${index}` });
            document.body.append(form.node);
            form.write(value);
            const fields = form.read();
            form.showJson(true);
            const raw = form.read();
            form.showJson(false);
            return [fields, raw, form.read()];
          });
        }""",
        FORMS,
    )
    assert list(found) == [[value] * 3 for _, value in FORMS]


def recursive(definition: Any) -> dict[str, Any]:
    """Return a schema with a definition that refers to itself."""
    return {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}, "required": ["n"], "$defs": {"N": definition}}


MANY = {f"p{number}": {"$ref": "#/$defs/N"} for number in range(12)}
RECURSIVE = [
    recursive({"type": "object", "properties": MANY}),
    recursive({"type": "object", "properties": MANY, "required": list(MANY)}),
    recursive({"type": "array", "prefixItems": list(MANY.values()), "minItems": 12}),
    recursive({"anyOf": [{"type": "object", "title": name, "properties": MANY} for name in MANY]}),
    recursive({"type": "object", "additionalProperties": {"anyOf": list(MANY.values())}}),
]


def test_recursive_schemas_have_bounded_descriptions_and_forms(page: Page) -> None:
    found = page.evaluate(
        """async (schemas) => {
          const { schemaForm } = await import("./assets/schema/form.js");
          const { describe } = await import("./assets/schema/describe.js");
          return schemas.map((schema) => {
            const form = schemaForm(schema, { id: "own" });
            return [describe(schema, schema), form.node].map((node) => node.querySelectorAll("*").length);
          });
        }""",
        RECURSIVE,
    )
    assert [size for sizes in found for size in sizes if not 3 < size < 40_000] == []


def test_descriptions_show_each_property_of_a_large_schema(page: Page) -> None:
    wide = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(1_500)}}
    count = """async (schema) => {
      const { describe } = await import("./assets/schema/describe.js");
      return describe(schema, schema).querySelectorAll("li").length;
    }"""
    assert page.evaluate(count, wide) == 1_500
    assert page.evaluate(count, {"type": "object", "properties": {"a": wide}}) == 1_501


ODD: list[Any] = [
    None, True, False, 5, "text", [], [{}],
    {"properties": {"a": True, "b": False, "c": None, "d": 5, "e": []}, "required": None},
    {"properties": None, "required": "a", "allOf": None},
    {"properties": [], "required": ["a", 5, None], "additionalProperties": None},
    {"properties": {"a": {"type": None}, "b": {"type": []}, "c": {"type": [["x"], None]}}, "required": ["a", "b", "c"]},
    {"properties": {"a": {"enum": 5}, "b": {"enum": None, "enumNames": 5}, "c": {"examples": "x"}}, "required": ["a"]},
    {"properties": {"a": {"anyOf": [True, None, 5]}, "b": {"oneOf": "x"}, "c": {"anyOf": []}}, "required": ["a", "b"]},
    {"properties": {"a": {"type": "array", "items": [True, None], "prefixItems": 5, "minItems": "1"}}},
    {"properties": {"a": {"type": "array", "items": False, "minItems": 1}}, "required": ["a"]},
    {"properties": {"a": {"type": "number", "minimum": "1", "multipleOf": 0}}, "required": ["a"]},
    {"properties": {"a": {"type": "string", "format": ["x"], "pattern": "(", "description": 5, "title": {}}}},
    {"properties": {"a": {"type": "string", "pattern": {}, "maxLength": None}}, "required": ["a"]},
    {"properties": {"a": {"$ref": 5}, "b": {"$ref": "#/%"}, "c": {"$ref": "#"}}, "required": ["a", "b", "c"]},
    {"allOf": [{"$ref": "#"}], "properties": {"a": {"anyOf": [{"$ref": "#"}]}}, "required": ["a"]},
    {"$defs": {"loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"type": "null"}]}}, "anyOf": [{"$ref": "#/$defs/loop"}]},
    {"patternProperties": None, "dependentRequired": {"a": None}, "propertyNames": None, "if": None, "not": None},
]  # fmt: skip


def test_odd_schemas_have_forms_and_descriptions(page: Page) -> None:
    """Servers that the inspector connects to send any JSON as a schema."""
    found = page.evaluate(
        """async (schemas) => {
          const { validate } = await import("./assets/schema/validate.js");
          const { schemaForm } = await import("./assets/schema/form.js");
          const { sample } = await import("./assets/schema/sample.js");
          const { describe } = await import("./assets/schema/describe.js");
          const { withoutSecrets } = await import("./assets/schema/controls.js");
          const { requestHeaders } = await import("./assets/mcp/transports.js");
          const values = { a: 1, b: "x", c: [1], d: { e: null }, e: {} };
          const params = { name: "x", arguments: values };
          const uses = [
            (schema) => validate(values, schema),
            (schema) => sample(schema),
            (schema) => describe(schema, schema),
            (schema) => withoutSecrets(values, schema),
            (schema) => requestHeaders("2026-07-28", { method: "tools/call", params }, schema),
            (schema) => {
              const form = schemaForm(schema, { id: "odd" });
              document.body.append(form.node);
              form.write(values);
              form.read();
            },
          ];
          const failures = [];
          for (const schema of schemas) for (const use of uses) {
            try {
              use(schema);
            } catch (error) {
              if (error.constructor.name === "Unreadable") continue;
              failures.push([JSON.stringify(schema), uses.indexOf(use), String(error)]);
            }
          }
          return failures;
        }""",
        ODD,
    )
    assert found == []


def test_list_items_without_a_name_are_left_out(page: Page) -> None:
    found = page.evaluate(
        """async () => {
          const { Client } = await import("./assets/mcp/client.js");
          const client = Object.create(Client.prototype);
          client.request = async () => ({ tools: [null, 5, {}, { name: 7 }, { name: "good" }], nextCursor: null });
          return (await client.list("tools/list", "tools")).map(({ name }) => name);
        }"""
    )
    assert found == ["good"]
